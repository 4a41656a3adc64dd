"""The bounded store of what the source has sent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standby.wan.references import PIECE
from standby.wan.source_store import NOW_PIECES, SourceStore


def content(pieces: np.ndarray, stamp: int) -> np.ndarray:
    made = np.zeros((len(pieces), PIECE), np.uint8)
    made.view(np.int64)[:, 0] = pieces
    made.view(np.int64)[:, 1] = stamp
    return made


def test_what_was_put_is_read_at_its_address() -> None:
    store = SourceStore(100 * PIECE)
    pieces = np.array([5, 900, 7, 1 << 34])
    store.put(pieces, content(pieces, 1))
    assert store.has(np.array([5, 6, 1 << 34])).tolist() == [True, False, True]
    assert (store.read(pieces[::-1]) == content(pieces, 1)[::-1]).all()
    with pytest.raises(KeyError):
        store.read(np.array([6]))


def test_the_oldest_goes_first_and_what_is_read_stays_longer() -> None:
    store = SourceStore(10 * PIECE)
    store.put(np.arange(10), content(np.arange(10), 1))
    store.read(np.array([0, 1]))
    store.put(np.arange(20, 24), content(np.arange(20, 24), 1))
    there = store.has(np.arange(10))
    assert there[:2].all()
    assert int(there.sum()) == 6
    assert store.has(np.arange(20, 24)).all()
    assert store.held_bytes == 10 * PIECE


@pytest.mark.parametrize("size", [0, PIECE - 1])
def test_a_store_of_nothing_holds_nothing(size: int) -> None:
    store = SourceStore(size)
    store.put(np.arange(3), content(np.arange(3), 1))
    assert not store.has(np.arange(3)).any()
    store.commit(0, 3 * PIECE)
    assert store.held_bytes == 0


def test_more_than_fits_keeps_the_last() -> None:
    store = SourceStore(4 * PIECE)
    store.put(np.arange(10), content(np.arange(10), 1))
    assert np.flatnonzero(store.has(np.arange(10))).tolist() == [6, 7, 8, 9]


def test_a_commit_replaces_what_was_there_even_where_the_new_did_not_stay() -> None:
    store = SourceStore(4 * PIECE)
    old = np.array([0, 1])
    store.put(old, content(old, 1))
    store.read(old)
    new = np.array([0, 5, 6, 7, 8]) + NOW_PIECES
    for number in new.tolist():
        one = np.array([number])
        store.put(one, content(one, 2))
        store.read(old[store.has(old)])
    store.commit(0, 100 * PIECE)
    left = np.flatnonzero(store.has(np.arange(10)))
    assert 0 not in left.tolist() or (store.read(np.array([0])) == content(new[:1], 2)).all()
    assert not store.has(new).any()


def test_a_session_given_up_leaves_what_was_before() -> None:
    store = SourceStore(10 * PIECE)
    old = np.array([0, 1])
    store.put(old, content(old, 1))
    store.put(old + NOW_PIECES, content(old, 2))
    store.give_up(0, 10 * PIECE)
    assert not store.has(old + NOW_PIECES).any()
    assert (store.read(old) == content(old, 1)).all()


def test_disks_are_committed_apart() -> None:
    store = SourceStore(10 * PIECE)
    both = np.array([3, 103]) + NOW_PIECES
    store.put(both, content(both, 1))
    store.commit(100 * PIECE, 50 * PIECE)
    assert store.has(np.array([103, 3 + NOW_PIECES])).all()
    assert not store.has(np.array([3, 103 + NOW_PIECES])).any()


STEPS = st.one_of(
    st.tuples(st.just("put"), st.lists(st.integers(0, 15), min_size=1, max_size=9, unique=True)),
    st.tuples(st.just("read"), st.lists(st.integers(0, 15), min_size=1, max_size=4)),
    st.tuples(st.sampled_from(["commit", "give_up"]), st.just([])),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 12), st.lists(STEPS, max_size=25))
def test_whatever_is_there_is_what_was_put_last(
    slots: int, steps: list[tuple[str, list[int]]]
) -> None:
    store = SourceStore(slots * PIECE)
    before: dict[int, int] = {}
    now: dict[int, int] = {}
    for stamp, (step, numbers) in enumerate(steps):
        pieces = np.array(numbers, np.int64)
        if step == "put":
            store.put(pieces + NOW_PIECES, content(pieces, stamp))
            now.update(dict.fromkeys(numbers, stamp))
        elif step == "read":
            store.read(pieces[store.has(pieces)])
        elif step == "commit":
            store.commit(0, 16 * PIECE)
            before.update(now)
            now = {}
        else:
            store.give_up(0, 16 * PIECE)
            now = {}
        assert store.held_bytes <= slots * PIECE
        for base, truth in ((0, before), (NOW_PIECES, now)):
            for number in np.flatnonzero(store.has(np.arange(16) + base)).tolist():
                (there,) = store.read(np.array([number + base]))
                assert (there == content(np.array([number]), truth[number])[0]).all()
