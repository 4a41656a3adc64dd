"""A disk compared with the target's digest tree: exactly what differs is sent, no more is asked for
than lies under nodes that differ, and nothing is called done before it is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from standby import digesting
from standby.digesting import FANOUT, LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.errors import LinkError, ProtocolError
from standby.model.extent import Extent
from standby.road import tree_scanning
from standby.road.scanning import PageLookup, SendTask
from standby.road.tree_nodes import TreeAnswers, packed_children, unpacked_children, zero_child
from standby.road.tree_scanning import TreeScan
from standby.units import GiB, KiB, MiB, TiB

GROUP, UNIT = 64 * PAGE, 4096 * PAGE


class SparseDisk:
    """Pieces of 4 KiB where something was written, holes between; fast however large it is."""

    def __init__(self, virtual_size: int) -> None:
        self.path = Path("sparse")
        self.virtual_size = virtual_size
        self.pieces: dict[int, bytes] = {}
        self.hook: Callable[[], None] = lambda: None
        self._sorted: list[int] = []

    def write(self, offset: int, data: bytes) -> None:
        self.pieces[offset] = data
        self._sorted = sorted(self.pieces)

    def _between(self, start: int, stop: int) -> list[int]:
        return self._sorted[bisect_left(self._sorted, start) : bisect_left(self._sorted, stop)]

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        for offset in self._between(start, self.virtual_size if stop is None else stop):
            yield Extent(offset, len(self.pieces[offset]))

    def read_into(self, offset: int, buffer: Any) -> None:
        self.hook()
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        for place in self._between(offset, offset + len(view)):
            data = self.pieces[place]
            view[place - offset : place - offset + len(data)] = data


class Held:
    """The target's leaves, by page; what it does not have is zero."""

    def __init__(self, pages: dict[int, np.ndarray]) -> None:
        self.pages = pages

    def leaves(self, page: int) -> np.ndarray:
        found = self.pages.get(page)
        return np.full(LEAVES_PER_PAGE, ZERO_LEAF, np.uint64) if found is None else found.copy()

    def index(self) -> Any:
        numbers = np.array(sorted(self.pages), np.int64)
        nodes = [digesting.page_nodes(self.pages[page].reshape(1, -1)) for page in numbers.tolist()]
        return numbers, np.concatenate([np.empty((0, 16), np.uint8), *nodes])


class Owner:
    """A source proxy without threads and links; the target is `held`."""

    def __init__(self, disk: SparseDisk, held: Held, **given: Any) -> None:
        self.task = SendTask("t", disk, "c", "target", None, Staging(), threads=2, **given)  # type: ignore[arg-type]
        self.answers = TreeAnswers(held, disk.virtual_size, "source")  # type: ignore[arg-type]
        self.held = held
        self.stored_index = PageLookup(None)
        self.questions: list[tuple[int, int]] = []
        self.said = 0
        """Bytes of questions' numbers, and of answers."""
        self.sent: set[int] = set()
        """Pieces that were sent, or whose zeros were."""
        self.absent: list[int] = []
        """Pages that were sent without looking."""
        self.staged: dict[int, np.ndarray] = {}
        self.marks: list[int] = []
        self.read = 0
        self.failure: LinkError | None = None

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def children(self, level: int, numbers: Sequence[int]) -> Any:
        self.questions.append((level, len(numbers)))
        bits, rest = self.answers.children(level, numbers)
        self.said += len(bits) + len(rest) + 9 * len(numbers)
        return unpacked_children(level, len(numbers), bits + rest, "target")

    def fetch_leaves(self, pages: Sequence[int]) -> np.ndarray:
        return np.stack([self.held.leaves(page) for page in pages])

    def send_pages(self, pages: Any, stop: int, changes: Mapping[int, Any]) -> None:
        assert (np.diff(pages) > 0).all()
        assert stop >= pages[-1] * PAGE
        for page in pages.tolist():
            change = changes.get(page)
            if change is None:
                self.absent.append(page)
                assert page not in self.held.pages
                continue
            leaves, runs = change
            assert np.array_equal(leaves, leaves_of(self.task.disk, page))
            for first, last in runs.tolist():
                self.sent |= set(
                    range(page * LEAVES_PER_PAGE + first, page * LEAVES_PER_PAGE + last)
                )

    def tell_mark(self, mark: int) -> None:
        assert not self.marks or mark >= self.marks[-1]
        self.marks.append(mark)

    def stage(self, pages: list[int], leaves: np.ndarray) -> None:
        for page, own in zip(pages, leaves, strict=True):
            assert page not in self.staged
            self.staged[page] = own.copy()

    def scanner_done(self, read: int, source_s: float, proxy_s: float) -> None:
        self.read += read

    def run(self, pages: Sequence[int] | None = None) -> Owner:
        """Compare; `pages` are those that hold something here."""
        if pages is None:
            pages = sorted(pages_of(self.task.disk))  # type: ignore[arg-type]
        numbers = np.array(sorted(pages), np.int64)
        TreeScan(self, numbers[numbers >= self.task.resume_mark // PAGE]).run()
        return self


class Staging:
    def put(self, page_numbers: Any, leaves: Any) -> None: ...
    def set_mark(self, checkpoint_id: str, offset: int) -> None: ...
    def sync(self) -> None: ...


def pages_of(disk: SparseDisk) -> set[int]:
    """Those that hold something."""
    return {offset // PAGE for offset in disk.pieces}


def leaves_of(disk: SparseDisk, page: int) -> np.ndarray:
    leaves = np.full(LEAVES_PER_PAGE, ZERO_LEAF, np.uint64)
    for offset in disk._between(page * PAGE, (page + 1) * PAGE):
        leaves[offset % PAGE // PIECE] = digesting.leaves(disk.pieces[offset])[0]
    return leaves


def disk_of(size: int, offsets: Sequence[int], seed: int = 1) -> SparseDisk:
    """A piece of noise at each of these offsets."""
    disk = SparseDisk(size)
    chance = np.random.default_rng(seed)
    disk.pieces = {offset: chance.bytes(min(PIECE, size - offset)) for offset in offsets}
    disk._sorted = sorted(disk.pieces)
    return disk


def held_of(disk: SparseDisk) -> Held:
    return Held({page: leaves_of(disk, page) for page in sorted(pages_of(disk))})


def differing(disk: SparseDisk, held: Held) -> set[int]:
    """Pieces that differ, by reading everything."""
    pages = pages_of(disk) | set(held.pages)
    return {
        page * LEAVES_PER_PAGE + place
        for page in pages
        for place in np.flatnonzero(leaves_of(disk, page) != held.leaves(page)).tolist()
    }


SIZES = [100 * KiB, PAGE + 512, 3 * GROUP + 5 * MiB, UNIT + 512, 3 * UNIT + GROUP]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_what_differs_is_sent_and_nothing_else(size, seed):
    chance = np.random.default_rng((seed, size))
    pieces = -(-size // PIECE)

    def places(count: int) -> list[int]:
        found = set(chance.integers(0, pieces, count).tolist()) | {pieces - 1}
        found |= {(place + 1) % pieces for place in list(found)[:5]}
        return [place * PIECE for place in sorted(found)]

    disk = disk_of(size, places(30), seed)
    held = held_of(disk)
    for offset in places(int(chance.integers(0, 12))):
        page, place = divmod(offset // PIECE, LEAVES_PER_PAGE)
        leaves = held.leaves(page)
        leaves[place] = chance.choice([ZERO_LEAF, np.uint64(7)])
        held.pages[page] = leaves
    for page in chance.choice(sorted(held.pages), 3).tolist():
        held.pages.pop(page, None)
    held.pages = {p: it for p, it in held.pages.items() if (it != ZERO_LEAF).any()}
    owner = Owner(disk, held).run()
    there = {
        piece for piece in differing(disk, held) if piece // LEAVES_PER_PAGE not in owner.absent
    }
    assert owner.sent == there
    assert set(owner.absent).isdisjoint(held.pages)
    for page, leaves in owner.staged.items():
        assert np.array_equal(leaves, leaves_of(disk, page))
    stored = pages_of(disk)
    assert set(owner.staged) | set(owner.absent) >= stored
    assert owner.marks[-1] >= max([0, *stored]) * PAGE


def test_equal_disks_cost_a_question_and_the_first_unit():
    disk = disk_of(16 * UNIT, range(0, 16 * UNIT, UNIT // 4))
    owner = Owner(disk, held_of(disk)).run()
    assert owner.questions == [(5, 1), (4, 1)]
    assert owner.sent == set()
    assert owner.said < 9 * 2 + 8 * 2 + 16 * 16 + 64 * 16
    assert owner.marks[-1] == disk.virtual_size


def test_a_disk_of_which_the_target_has_nothing_is_sent_in_one_go():
    disk = disk_of(3 * UNIT, range(0, 3 * UNIT, UNIT // 4))
    owner = Owner(disk, Held({})).run()
    assert owner.questions == [(5, 1)]
    assert owner.said == 8 + 9
    assert len(owner.absent) == 12
    assert owner.read == 0


def dense(size: int, place: int) -> list[int]:
    """Offsets such that no node beside or above that of `place` is zero."""
    found = set(range(0, size, GROUP))
    found |= set(range(place // GROUP * GROUP, (place // GROUP + 1) * GROUP, PAGE))
    found |= set(range(place // PAGE * PAGE, (place // PAGE + 1) * PAGE, 256 * KiB))
    block = place // (256 * KiB) * 256 * KiB
    return sorted(found | set(range(block, block + 256 * KiB, PIECE)))


def test_one_piece_of_a_terabyte_is_found_in_six_questions():
    place = 700 * GiB + 20 * PAGE + 9 * 256 * KiB + 5 * PIECE
    disk = disk_of(TiB, dense(TiB, place))
    held = held_of(disk)
    disk.write(place, b"x" * PIECE)
    owner = Owner(disk, held).run()
    assert owner.sent == {place // PIECE}
    # The units; the groups of the first one; of the one that differs groups, pages, blocks, leaves.
    assert owner.questions == [(5, 1), (4, 1), (4, 1), (3, 1), (2, 1), (1, 1)]
    nodes = 16 * 16 + 4 * 64 * 16 + 64 * 8
    assert owner.said == nodes + 6 * (8 + 9)
    assert owner.said < 5 * KiB


def test_many_differences_take_no_more_questions():
    """64 pages of a group differ: their blocks, and leaves of these, come in one answer each."""
    disk = disk_of(GROUP, range(0, GROUP, PIECE * 1000))
    held = held_of(disk)
    for leaves in held.pages.values():
        leaves[leaves != ZERO_LEAF] = np.uint64(7)
    owner = Owner(disk, held).run()
    assert [level for level, _ in owner.questions] == [5, 4, 3, 2, 1]
    assert owner.sent == differing(disk, held)


def test_a_unit_behind_one_with_many_differences_is_gone_through_by_groups(monkeypatch):
    monkeypatch.setattr(tree_scanning, "CLOSE_PAGES", 2)
    disk = disk_of(4 * UNIT, range(0, 4 * UNIT, GROUP))
    held = held_of(disk)
    for page in list(held.pages)[64:80]:
        held.pages[page] = held.pages[page] ^ np.uint64(1)
    owner = Owner(disk, held).run()
    whole = [count for level, count in owner.questions if level == 3]
    assert whole == [16]  # of the second unit, at once; the third one needs none
    assert [count for level, count in owner.questions if level == 4] == [1, 1, 1]
    assert owner.sent == differing(disk, held)


def test_what_is_gone_here_is_found_too():
    """Pages that nothing is stored of on this side, and a whole unit of them."""
    disk = disk_of(2 * UNIT, [5 * PAGE])
    held = held_of(disk_of(2 * UNIT, [5 * PAGE, 7 * PAGE, UNIT + 9 * PAGE]))
    held.pages[5] = leaves_of(disk, 5)
    owner = Owner(disk, held).run()
    assert owner.sent == {7 * LEAVES_PER_PAGE, (4096 + 9) * LEAVES_PER_PAGE}
    assert owner.absent == []


@pytest.mark.parametrize("page", [0, 1, 63, 64, 70, 4096, 4100])
def test_what_lies_below_the_mark_is_not_looked_at(page):
    offsets = range(0, UNIT + GROUP, 13 * PAGE)
    disk = disk_of(UNIT + GROUP, offsets)
    held = held_of(disk)
    for leaves in held.pages.values():
        leaves[leaves != ZERO_LEAF] = np.uint64(9)
    owner = Owner(disk, held, resume_mark=page * PAGE).run()
    first = page * LEAVES_PER_PAGE
    assert owner.sent == {piece for piece in differing(disk, held) if piece >= first}
    assert min(owner.staged) >= page


@pytest.mark.parametrize("seed", range(3))
def test_candidates_alone_may_differ(seed):
    chance = np.random.default_rng(seed)
    offsets = sorted(set((chance.integers(0, GROUP // PIECE, 60) * PIECE).tolist()))
    disk = disk_of(2 * GROUP, offsets)
    held = held_of(disk)
    changed = offsets[::3]
    for offset in changed:
        page, place = divmod(offset // PIECE, LEAVES_PER_PAGE)
        held.pages[page][place] = chance.choice([np.uint64(3), ZERO_LEAF])
    candidates = tuple(Extent(offset + 512, 100) for offset in changed)
    pages = {offset // PAGE for offset in changed}
    owner = Owner(disk, held, candidates=candidates).run(sorted(pages))
    assert owner.sent == {offset // PIECE for offset in changed}
    assert {page: leaves_of(disk, page).tobytes() for page in pages} == {
        page: leaves.tobytes() for page, leaves in owner.staged.items()
    }
    assert 5 not in {level for level, _ in owner.questions}


def test_a_line_that_breaks_ends_the_survey():
    disk = disk_of(UNIT, range(0, UNIT, GROUP))
    owner = Owner(disk, held_of(disk))
    disk.hook = lambda: setattr(owner, "failure", LinkError("far", "gone"))
    with pytest.raises(LinkError, match="gone"):
        owner.run()


# --- how nodes travel ------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(1, 6))
@pytest.mark.parametrize("share", [0, 0.1, 1])
def test_children_arrive_as_they_are(level, share):
    chance = np.random.default_rng(level)
    if level == 1:
        children = np.full((5, FANOUT), ZERO_LEAF, np.uint64)
        other: Any = chance.integers(0, 1 << 60, (5, FANOUT)).astype(np.uint64)
    else:
        children = np.tile(zero_child(level), (5, FANOUT, 1))
        other = chance.integers(0, 256, (5, FANOUT, 16), np.uint8)
    is_there = chance.random((5, FANOUT)) < share
    children[is_there] = other[is_there]
    bits, rest = packed_children(level, children)
    assert len(bits + rest) == 40 + int(is_there.sum()) * (8 if level == 1 else 16)
    assert np.array_equal(unpacked_children(level, 5, bits + rest, "x"), children)
    for wrong in (bits + rest + b"x", (bits + rest)[:-1], b""):
        with pytest.raises(ProtocolError):
            unpacked_children(level, 5, wrong, "x")


@pytest.mark.parametrize(
    ("level", "numbers"),
    [
        (0, [0]),
        (6, [0]),
        (-1, [0]),
        (3, []),
        (3, [-1]),
        (3, [4]),
        (2, [193]),
        (2, list(range(65))),
        (1, [page * FANOUT for page in range(65)]),
        (1, [0] * 4097),
        (5, [1]),
        (4, [1 << 62]),
    ],
)
def test_a_target_answers_for_nodes_of_the_disk_alone(level, numbers):
    answers = TreeAnswers(Held({}), 3 * GROUP + 512, "source")  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="asked for"):
        answers.children(level, numbers)


def test_a_target_answers_for_the_last_nodes_too():
    disk = disk_of(3 * GROUP + 512, [3 * GROUP])
    answers = TreeAnswers(held_of(disk), disk.virtual_size, "source")  # type: ignore[arg-type]
    for level, number in ((5, 0), (4, 0), (3, 3), (2, 192), (1, 192 * 64)):
        found = unpacked_children(level, 1, b"".join(answers.children(level, [number])), "x")
        is_there = (found != zero_child(level)).reshape(FANOUT, -1).any(axis=1)
        assert is_there.sum() == 1
        assert is_there[{5: 0, 4: 3}.get(level, 0)]
