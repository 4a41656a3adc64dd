"""The repository: states, shared pages, staging, commits, the end of points."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from standby import digesting
from standby.errors import RepositoryError
from standby.repository import Mark, Repository, Staging

GIB = 1 << 30
PAGE = digesting.PAGE
EMPTY = np.empty(0, np.int64)


def some_leaves(seed: int, count: int = 1) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(1, 1 << 63, (count, 4096), dtype=np.uint64)


def zero_leaves(count: int = 1) -> NDArray[np.uint64]:
    return np.full((count, 4096), digesting.ZERO_LEAF, np.uint64)


def root_of(size: int, pages: dict[int, NDArray[np.uint64]]) -> bytes:
    """The root of a disk given its non-zero pages."""
    numbers = np.array(sorted(pages), np.int64)
    if not len(numbers):
        return digesting.root_of_pages(size, EMPTY, np.empty((0, 16), np.uint8))
    leaves = np.concatenate([pages[int(n)].reshape(1, -1) for n in numbers])
    return digesting.root_of_pages(size, numbers, digesting.page_nodes(leaves))


def put_all(staging: Staging, pages: dict[int, NDArray[np.uint64]]) -> None:
    for number, leaves in pages.items():
        staging.put([number], leaves.reshape(1, -1))


def commit_state(
    repository: Repository,
    point: str,
    pages: dict[int, NDArray[np.uint64]],
    *,
    size: int = GIB,
    changed: dict[int, NDArray[np.uint64]] | None = None,
    disk: str = "d0",
) -> bytes:
    """Commit `pages` as the whole state; `changed` on top of the newest one where given."""
    staging = repository.stage("web", disk, f"session {point}", point, size, changed is not None)
    put_all(staging, pages if changed is None else changed)
    staging.sync()
    root = root_of(size, pages)
    repository.commit("web", point, {disk: root})
    return root


def content(repository: Repository, point: str | None = None) -> dict[int, bytes]:
    numbers, nodes = repository.index("web", "d0", point)
    leaves = repository.leaves("web", "d0", numbers, point)
    assert (digesting.page_nodes(leaves) == nodes).all()
    return {int(n): leaves[row].tobytes() for row, n in enumerate(numbers)}


def as_bytes(pages: dict[int, NDArray[np.uint64]]) -> dict[int, bytes]:
    return {number: leaves.tobytes() for number, leaves in pages.items()}


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository(tmp_path / "repository") as made:
        yield made


def test_a_new_repository_knows_nothing(repository: Repository) -> None:
    assert repository.state("web", "d0") is None
    assert repository.states("web") == {}
    assert repository.points("web") == []
    assert repository.replicas() == []
    assert repository.staged("web") == []
    assert repository.verify() == []
    with pytest.raises(RepositoryError, match="replica web, disk d0: no point is known here"):
        repository.index("web", "d0")


def test_a_committed_state_reads_back(repository: Repository) -> None:
    pages = {0: some_leaves(1), 5: some_leaves(2), 63: some_leaves(3)}
    root = commit_state(repository, "p1", pages)
    state = repository.state("web", "d0")
    assert state is not None
    assert (state.point_id, state.root, state.virtual_size) == ("p1", root, GIB)
    assert content(repository) == as_bytes(pages)
    read = repository.leaves("web", "d0", [6, 5, 5, 0])
    assert (read[0] == digesting.ZERO_LEAF).all()
    assert (read[1:] == np.concatenate([pages[5], pages[5], pages[0]])).all()
    assert repository.verify() == []


def test_changes_build_on_the_newest_state_and_older_states_stay_readable(
    repository: Repository,
) -> None:
    first = {0: some_leaves(1), 1: some_leaves(2), 2: some_leaves(3)}
    commit_state(repository, "p1", first)
    second = {0: some_leaves(9), 2: first[2], 7: some_leaves(8)}
    commit_state(repository, "p2", second, changed={0: second[0], 1: zero_leaves(), 7: second[7]})
    assert content(repository) == as_bytes(second)
    assert content(repository, "p1") == as_bytes(first)
    assert repository.points("web") == ["p1", "p2"]
    assert repository.verify() == []


def test_a_complete_state_makes_pages_zero_that_it_does_not_name(repository: Repository) -> None:
    first = {0: some_leaves(1), 1: some_leaves(2), 9: some_leaves(3)}
    commit_state(repository, "p1", first)
    second = {1: first[1], 3: some_leaves(4)}
    commit_state(repository, "p2", second | {5: zero_leaves()})
    assert content(repository) == as_bytes(second)
    assert content(repository, "p1") == as_bytes(first)
    assert rows(repository, "leaves") == 4  # page 1 is shared by both states
    assert repository.verify() == []


def rows(repository: Repository, table: str) -> int:
    with repository._database.reading() as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_page_that_is_as_before_is_stored_once(repository: Repository) -> None:
    pages = {0: some_leaves(1), 1: some_leaves(2)}
    commit_state(repository, "p1", pages)
    commit_state(repository, "p2", pages, changed=pages)
    commit_state(repository, "p3", pages)
    assert rows(repository, "leaves") == rows(repository, "pages") == 2


def test_a_page_put_twice_has_its_last_value(repository: Repository) -> None:
    pages = {0: some_leaves(1), 1: some_leaves(2)}
    commit_state(repository, "p1", pages)
    staging = repository.stage("web", "d0", "s", "p2", GIB, True)
    for leaves in (some_leaves(5), some_leaves(6)):
        staging.put([0], leaves)
        staging.put([1], leaves)
        staging.sync()
    staging.put([1], pages[1])  # back to what the base has
    assert (
        staging.leaves([0, 1, 2]) == np.concatenate([some_leaves(6), pages[1], zero_leaves()])
    ).all()
    expected = pages | {0: some_leaves(6)}
    assert staging.root() == root_of(GIB, expected)
    repository.commit("web", "p2", {"d0": staging.root()})
    assert content(repository) == as_bytes(expected)
    assert repository.verify() == []


def test_a_disk_without_any_data_has_a_state(repository: Repository) -> None:
    commit_state(repository, "p1", {})
    assert len(repository.index("web", "d0")[0]) == 0
    commit_state(repository, "p2", {}, changed={3: zero_leaves()})
    assert rows(repository, "pages") == 0


def test_all_disks_of_a_point_are_committed_at_once_or_not_at_all(repository: Repository) -> None:
    pages = {0: some_leaves(1)}
    for disk in ("d0", "d1"):
        put_all(repository.stage("web", disk, "s", "p1", GIB, False), pages)
    # what was put is synced only for d0
    staging = repository.stage("web", "d0", "s", "p1", GIB, False)
    put_all(staging, pages)
    staging.sync()
    root = root_of(GIB, pages)
    with pytest.raises(RepositoryError, match="disk d1: the digests staged for point p1 have root"):
        repository.commit("web", "p1", {"d0": root, "d1": root})
    assert repository.states("web") == {}
    assert [s.disk for s in repository.staged("web")] == ["d0", "d1"]
    staging = repository.stage("web", "d1", "s", "p1", GIB, False)
    put_all(staging, pages)
    staging.sync()
    repository.commit("web", "p1", {"d0": root, "d1": root})
    assert set(repository.states("web")) == {"d0", "d1"}
    assert {s.sequence for s in repository.states("web").values()} == {1}
    assert repository.staged("web") == []


def test_repeating_a_commit_changes_nothing(repository: Repository) -> None:
    root = commit_state(repository, "p1", {0: some_leaves(1)})
    repository.commit("web", "p1", {"d0": root})
    assert repository.points("web") == ["p1"]
    with pytest.raises(RepositoryError, match="nothing is staged for point p1"):
        repository.commit("web", "p1", {"d0": bytes(16)})
    with pytest.raises(RepositoryError, match="nothing is staged for point p2"):
        repository.commit("web", "p2", {"d0": root})


def test_a_commit_refuses_changes_on_top_of_a_state_that_is_no_longer_the_newest(
    repository: Repository,
) -> None:
    pages = {0: some_leaves(1)}
    commit_state(repository, "p1", pages)
    staging = repository.stage("web", "d0", "s", "p3", GIB, True)
    staging.put([1], some_leaves(2))
    staging.sync()
    # another server commits p2 behind its back: staged by hand, as stage() would discard p3
    with repository._database.writing() as connection:
        connection.execute(
            "INSERT INTO states SELECT disk_id, 2, 'p2', root, virtual_size FROM states"
        )
    with pytest.raises(RepositoryError, match="on top of state 1, but the newest is 2"):
        repository.commit("web", "p3", {"d0": staging.root()})


def test_an_interrupted_staging_is_gone_on_from_with_its_mark(tmp_path: Path) -> None:
    first, second = some_leaves(1), some_leaves(2)
    with Repository(tmp_path / "r") as repository:
        staging = repository.stage("web", "d0", "s1", "p1", GIB, False)
        assert staging.mark == Mark("", 0)
        staging.put([0], first)
        staging.set_mark("checkpoint 1", PAGE)
        staging.put([1], second)  # never synced
    with Repository(tmp_path / "r", create=False) as repository:
        (left,) = repository.staged("web")
        assert (left.disk, left.session, left.point_id, left.pages) == ("d0", "s1", "p1", 1)
        assert (left.is_base, left.mark) == (False, Mark("checkpoint 1", PAGE))
        staging = repository.stage("web", "d0", "s2", "p1", GIB, False)
        assert staging.mark == ("checkpoint 1", PAGE)
        assert staging.index()[0].tolist() == [0]
        staging.put([1], second)
        repository.commit("web", "p1", {"d0": staging.root()})
        assert content(repository) == as_bytes({0: first, 1: second})


def test_a_staging_cleared_for_another_checkpoint_forgets_reverted_pages(
    repository: Repository,
) -> None:
    pages = {0: some_leaves(1), 1: some_leaves(2)}
    commit_state(repository, "p1", pages)
    staging = repository.stage("web", "d0", "s1", "p2", GIB, True)
    staging.put([0], some_leaves(5))
    staging.set_mark("checkpoint 1", PAGE)
    staging.put([7], some_leaves(6))
    staging = repository.stage("web", "d0", "s2", "p2", GIB, True)
    assert staging.mark == Mark("checkpoint 1", PAGE)
    staging.clear()  # under checkpoint 2 page 0 is as it was
    assert staging.mark == Mark("", 0)
    staging.put([1], some_leaves(9))
    assert staging.root() == root_of(GIB, pages | {1: some_leaves(9)})
    assert rows(repository, "leaves") == 3


def test_a_mark_of_another_checkpoint_drops_what_the_earlier_one_staged(
    repository: Repository,
) -> None:
    pages = {0: some_leaves(1), 1: some_leaves(2)}
    commit_state(repository, "p1", pages)
    staging = repository.stage("web", "d0", "s1", "p2", GIB, True)
    staging.put([0, 1, 2, 3], some_leaves(5, 4))
    staging.put([4], some_leaves(4))
    staging.set_mark("checkpoint 1", 5 * PAGE)
    staging = repository.stage("web", "d0", "s2", "p2", GIB, True)
    staging.put([2], some_leaves(6))
    staging.put([3], zero_leaves())
    staging.sync()
    staging.put([1], some_leaves(7))
    staging.set_mark("checkpoint 2", 3 * PAGE)
    staging.put([9], some_leaves(8))
    staging.set_mark("checkpoint 2", 9 * PAGE)
    expected = pages | {1: some_leaves(7), 2: some_leaves(6), 9: some_leaves(8)}
    repository.commit("web", "p2", {"d0": root_of(GIB, expected)})
    assert content(repository) == as_bytes(expected)
    assert repository.verify() == []


def test_a_staging_without_a_mark_is_not_gone_on_from(repository: Repository) -> None:
    staging = repository.stage("web", "d0", "s1", "p1", GIB, False)
    staging.put([0], some_leaves(5))
    staging.sync()
    staging = repository.stage("web", "d0", "s2", "p1", GIB, False)
    assert len(staging.index()[0]) == 0
    assert rows(repository, "leaves") == 0


@pytest.mark.parametrize(
    ("point", "size", "base"), [("p3", GIB, True), ("p2", 2 * GIB, True), ("p2", GIB, False)]
)
def test_a_staging_for_something_else_starts_empty(
    repository: Repository, point: str, size: int, base: bool
) -> None:
    commit_state(repository, "p1", {0: some_leaves(1)})
    staging = repository.stage("web", "d0", "s1", "p2", GIB, True)
    staging.put([1], some_leaves(2))
    staging.set_mark("c", 5)
    staging = repository.stage("web", "d0", "s2", point, size, base)
    assert staging.mark == Mark("", 0)
    assert 1 not in staging.index()[0]
    assert rows(repository, "leaves") == 1


def test_a_staging_taken_over_or_discarded_refuses_its_old_owner(repository: Repository) -> None:
    old = repository.stage("web", "d0", "s1", "p1", GIB, False)
    old.set_mark("c", 0)
    new = repository.stage("web", "d0", "s2", "p1", GIB, False)
    old.put([0], some_leaves(1))
    with pytest.raises(RepositoryError, match="session s2 has taken the staged digests over"):
        old.sync()
    new.put([0], some_leaves(1))
    new.sync()
    repository.discard("web", "d0")
    with pytest.raises(RepositoryError, match="committed or discarded meanwhile"):
        new.sync()
    assert rows(repository, "leaves") == 0


def test_discarding_a_replica_drops_the_staging_of_every_disk(repository: Repository) -> None:
    for disk in ("d0", "d1"):
        staging = repository.stage("web", disk, "s", "p1", GIB, False)
        staging.put([0], some_leaves(1))
        staging.sync()
    repository.discard("web")
    assert repository.staged("web") == []
    assert rows(repository, "leaves") == rows(repository, "staged_pages") == 0


def test_a_disk_may_grow_on_top_of_its_state_but_not_shrink(repository: Repository) -> None:
    pages = {0: some_leaves(1)}
    commit_state(repository, "p1", pages, size=GIB)
    with pytest.raises(RepositoryError, match="shrank from 1073741824 to 536870912"):
        repository.stage("web", "d0", "s", "p2", GIB // 2, True)
    grown = pages | {100: some_leaves(2)}
    commit_state(repository, "p2", grown, size=2 * GIB, changed={100: grown[100]})
    assert content(repository) == as_bytes(grown)
    shrunk = {0: pages[0]}
    commit_state(repository, "p3", shrunk, size=PAGE + 512)
    assert content(repository) == as_bytes(shrunk)
    assert content(repository, "p2") == as_bytes(grown)


@pytest.mark.parametrize("page", [-1, 2])
def test_a_page_outside_the_disk_is_refused(repository: Repository, page: int) -> None:
    staging = repository.stage("web", "d0", "s", "p1", PAGE + 512, False)
    staging.put([1], some_leaves(1))
    with pytest.raises(ValueError, match="of a disk with 2 pages"):
        staging.put([page], some_leaves(1))
    with pytest.raises(ValueError, match="leaves of shape"):
        staging.put([0, 1], some_leaves(1))


@pytest.mark.parametrize("seed", range(6))
def test_dropping_points_keeps_every_kept_state_whole_and_no_page_more(
    repository: Repository, seed: int
) -> None:
    random = np.random.default_rng(seed)
    states: dict[str, dict[int, NDArray[np.uint64]]] = {}
    pages: dict[int, NDArray[np.uint64]] = {}
    for number in range(8):
        changed = {}
        for page in random.choice(12, 4, replace=False).tolist():
            is_zero = random.random() < 0.3
            changed[page] = zero_leaves() if is_zero else some_leaves(1000 * number + page)
            pages = {**pages, page: changed[page]}
            if is_zero:
                del pages[page]
        point = f"p{number}"
        complete = number == 0 or random.random() < 0.3
        commit_state(repository, point, pages, changed=None if complete else changed)
        states[point] = pages
    keep = {point for point in states if random.random() < 0.4} | {"p7"}
    repository.drop_points("web", keep - {"p7"})  # the newest stays whatever is asked
    assert set(repository.points("web")) == keep
    for point in keep:
        assert content(repository, point) == as_bytes(states[point])
    distinct = {(n, v.tobytes()) for point in keep for n, v in states[point].items()}
    assert rows(repository, "leaves") <= len(distinct) + 2  # a value may come back later
    assert repository.verify() == []
    repository.drop_points("web", set())
    assert rows(repository, "leaves") == rows(repository, "pages") == len(pages)
    assert content(repository) == as_bytes(pages)


def test_a_disk_that_left_the_vm_goes_with_its_last_point(repository: Repository) -> None:
    for point, disks in (("p1", ("d0", "d1")), ("p2", ("d0",))):
        roots = {}
        for disk in disks:
            staging = repository.stage("web", disk, "s", point, GIB, False)
            staging.put([0], some_leaves(len(point)))
            roots[disk] = staging.root()
        repository.commit("web", point, roots)
    repository.drop_points("web", {"p2"})
    assert set(repository.states("web")) == {"d0"}
    assert rows(repository, "leaves") == 1


def test_forgetting_a_replica_leaves_the_others(repository: Repository) -> None:
    commit_state(repository, "p1", {0: some_leaves(1)})
    staging = repository.stage("db", "d0", "s", "p9", GIB, False)
    staging.put([3], some_leaves(3))
    staging.sync()
    repository.forget("web")
    repository.forget("no such replica")
    assert repository.replicas() == ["db"]
    assert rows(repository, "leaves") == 1
    repository.forget("db")
    for table in ("replicas", "disks", "states", "pages", "leaves", "stagings", "staged_pages"):
        assert rows(repository, table) == 0
    assert repository.verify() == []


def test_the_digests_of_random_data_take_at_most_a_quarter_percent(tmp_path: Path) -> None:
    count = 256  # a disk of 4 GiB
    with Repository(tmp_path / "r") as repository:
        staging = repository.stage("web", "d0", "s", "p1", count * PAGE, False)
        staging.put(range(count), some_leaves(1, count))
        repository.commit("web", "p1", {"d0": staging.root()})
    stored = sum(path.stat().st_size for path in (tmp_path / "r").iterdir())
    assert stored <= 0.0021 * count * PAGE


def test_a_sparse_disk_of_16_tib_costs_its_few_pages(repository: Repository) -> None:
    size = 16 << 40
    last = size // PAGE - 1
    pages = {0: some_leaves(1), 1 << 19: some_leaves(2), last: some_leaves(3)}
    root = commit_state(repository, "p1", pages, size=size)
    state = repository.state("web", "d0")
    assert state is not None
    assert state.root == root
    assert repository.index("web", "d0")[0].tolist() == [0, 1 << 19, last]
