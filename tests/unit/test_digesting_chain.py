"""Several `.digests` files as one state, and merging them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby import digesting
from standby.digesting import (
    LEAVES_PER_PAGE,
    PAGE,
    ZERO_LEAF,
    DigestChain,
    DigestFile,
    DigestWriter,
    merge_digests,
)
from standby.errors import DiskCorrupt, DiskIO

PAGES = 6
SIZE = PAGES * PAGE - 12345
State = dict[int, int]
"""What a disk holds: page number to content; a missing page is zero."""


def leaves_of(content: int) -> np.ndarray:
    if not content:
        return np.full(LEAVES_PER_PAGE, ZERO_LEAF)
    return np.arange(content, content + LEAVES_PER_PAGE, dtype=np.uint64)


def root_of(state: State, virtual_size: int = SIZE) -> bytes:
    numbers = sorted(number for number, content in state.items() if content)
    leaves = np.array([leaves_of(state[n]) for n in numbers], np.uint64)
    nodes = digesting.page_nodes(leaves.reshape(-1, LEAVES_PER_PAGE))
    return digesting.root_of_pages(virtual_size, np.array(numbers, np.int64), nodes)


def write(path: Path, changes: State, state: State, complete: bool) -> Path:
    with DigestWriter(path, SIZE, complete) as writer:
        for number in sorted(changes):
            writer.add(number, leaves_of(changes[number]))
        writer.finish(root_of(state))
    return path


def history(folder: Path, steps: list[State]) -> tuple[list[Path], State]:
    """Files, newest first, of a complete state and the changes after it; and the last state."""
    state: State = {}
    files: list[Path] = []
    for i, changes in enumerate(steps):
        state = state | changes
        files.insert(0, write(folder / f"{i}.digests", changes, dict(state), i == 0))
    return files, state


def check(chain: DigestChain, state: State) -> None:
    present = sorted(number for number, content in state.items() if content)
    assert chain.page_numbers.tolist() == present
    assert chain.nodes.shape == (len(present), 16)
    assert chain.root() == root_of(state)
    for number in range(PAGES):
        assert (chain.leaves(number) == leaves_of(state.get(number, 0))).all()


steps = st.lists(
    st.dictionaries(st.integers(0, PAGES - 1), st.integers(0, 3), max_size=4),
    min_size=1,
    max_size=5,
)


@given(steps)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_chain_and_every_merge_read_as_the_last_state(tmp_path: Path, drawn: list[State]):
    files, state = history(tmp_path, drawn)
    with DigestChain(files) as chain:
        check(chain, state)
    while len(files) > 1:  # retention: the two oldest become one, in place of the older
        merge_digests(files[-2], files[-1], files[-1])
        del files[-2]
        with DigestChain(files) as chain:
            check(chain, state)
    with DigestFile.open(files[0]) as file:
        assert file.is_complete
        assert file.root == root_of(state)


def test_two_changes_merge_into_one_that_keeps_its_zero_pages(tmp_path: Path):
    files, state = history(tmp_path, [{0: 1, 1: 1, 2: 1}, {1: 2, 2: 0}, {1: 0, 3: 5}])
    merge_digests(files[0], files[1], tmp_path / "merged")
    with DigestFile.open(tmp_path / "merged") as file:
        assert not file.is_complete
        assert file.page_numbers.tolist() == [1, 2, 3]
    with DigestChain([tmp_path / "merged", files[2]]) as chain:
        check(chain, state)


def test_a_complete_file_hides_what_is_older(tmp_path: Path):
    files, _ = history(tmp_path, [{0: 1, 1: 1}])
    newer = write(tmp_path / "newer", {2: 3}, {2: 3}, complete=True)
    with DigestChain([newer, *files]) as chain:
        check(chain, {2: 3})
    merge_digests(newer, files[0], tmp_path / "merged")
    with DigestChain([tmp_path / "merged"]) as chain:
        check(chain, {2: 3})


def test_a_chain_needs_a_complete_oldest_file(tmp_path: Path):
    files, _ = history(tmp_path, [{0: 1}, {0: 2}])
    with pytest.raises(DiskCorrupt, match="not complete"):
        DigestChain(files[:1])
    with pytest.raises(ValueError, match="at least one"):
        DigestChain([])


def test_a_chain_of_open_files_closes_them(tmp_path: Path):
    files, state = history(tmp_path, [{0: 1}, {4: 2}])
    opened = [DigestFile.open(path) for path in files]
    with DigestChain(opened) as chain:
        check(chain, state)
    with pytest.raises(DiskIO):
        opened[0].leaves(4)


def test_pages_behind_a_given_size_are_left_out(tmp_path: Path):
    files, _ = history(tmp_path, [{0: 1, 4: 2}])
    with DigestChain(files, virtual_size=2 * PAGE) as chain:
        assert chain.page_numbers.tolist() == [0]
        assert chain.root() == root_of({0: 1}, 2 * PAGE)
        assert chain.root(4 * PAGE) == root_of({0: 1}, 4 * PAGE)


def test_a_merge_that_meets_damage_leaves_the_target_alone(tmp_path: Path):
    files, _ = history(tmp_path, [{0: 1}, {1: 2}])
    data = bytearray(files[1].read_bytes())
    data[5000] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(DiskCorrupt, match="page 0"):
        merge_digests(files[0], files[1], files[1])
    assert files[1].read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.digests", "1.digests"]
