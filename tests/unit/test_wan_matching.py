"""What the source knows, and the stages of matching by themselves."""

from __future__ import annotations

import numpy as np

from standby.wan.batches import UNDECIDED, Batch, extents_of, literal_ranges, plan_of
from standby.wan.knowledge import SourceIndex, parts_of, run_borders
from standby.wan.matching import find_deltas, find_parts, keep_incompressible
from standby.wan.names import names
from standby.wan.references import NOW, PIECE, PREFIX_MAX, Kind, Plan
from standby.wan.source_store import SourceStore
from standby.wan.table import LookupTable
from wan_pairs import BUDGET, KEY, noise, shifted, text


def batch_of(data: np.ndarray, offsets: np.ndarray | None = None) -> Batch:
    places = np.arange(len(data)) * PIECE if offsets is None else offsets
    kinds = np.full(len(data), UNDECIDED, np.int8)
    zeros = np.zeros(len(data), np.int64)
    none = np.empty(0, np.int64)
    return Batch(1, places, data, names(data, KEY), kinds, zeros - 1, zeros, none, KEY)


def index_of(data: np.ndarray) -> SourceIndex:
    """One disk, sent and committed."""
    index = SourceIndex(KEY, LookupTable, BUDGET)
    base = index.add_disk(data.size)
    index.learn(base, np.arange(len(data)) * PIECE, names(data, KEY), data)
    index.commit(base)
    return index


def test_parts_join_to_their_runs() -> None:
    data = noise(90)
    offsets = np.concatenate((np.arange(30), np.arange(50, 110))) * PIECE
    borders = run_borders(offsets)
    assert borders.tolist() == [0, 30, 90]
    starts, lengths, digests = parts_of(data, borders, KEY)
    assert len(starts) == len(lengths) == len(digests)
    assert (starts[1:] == (starts + lengths)[:-1]).all()
    assert int(lengths.sum()) == data.size
    assert 30 * PIECE in starts.tolist()


def test_copies_and_literals_of_parts_are_the_content() -> None:
    known = noise(60)
    moved = shifted(known, 777)
    moved[20] = noise(1, 7)[0]
    batch = batch_of(moved)
    find_parts(batch, index_of(known))
    batch.kinds[batch.kinds == UNDECIDED] = Kind.STREAM
    plan = plan_of(batch)
    rebuilt = np.zeros(moved.size, np.uint8)
    for start, stop in literal_ranges(plan).tolist():
        rebuilt[start:stop] = moved.reshape(-1)[start:stop]
    literal = plan.literal_bytes
    at = 0
    row_starts = (np.cumsum(plan.counts) - plan.counts) * PIECE
    flat = known.reshape(-1)
    part = 0
    for row, count in zip(row_starts[plan.kinds == Kind.PARTS], plan.parts, strict=True):
        at = int(row)
        for _ in range(count):
            at += int(plan.part_literals[part])
            length, origin = int(plan.part_copies[part]), int(plan.part_addresses[part])
            rebuilt[at : at + length] = flat[origin : origin + length]
            at += length
            part += 1
    assert (rebuilt.reshape(-1, PIECE) == moved).all()
    assert literal < 12 * PIECE


def test_what_is_named_already_is_not_taken_apart() -> None:
    known = noise(60)
    batch = batch_of(shifted(known, 100))
    batch.kinds[10:20] = Kind.COPY
    find_parts(batch, index_of(known))
    assert (batch.kinds[10:20] == Kind.COPY).all()
    assert len(set(batch.groups[:10].tolist()) & set(batch.groups[20:].tolist())) <= 1
    assert 0 not in batch.groups[21:50].tolist()


def test_a_delta_refers_to_no_more_than_a_prefix_may_be() -> None:
    store = SourceStore(32 << 20)
    known = noise(4096)
    index = index_of(known)
    store.put(np.arange(4096), known)
    scattered = known.reshape(-1, 8, PIECE)[::8].reshape(-1, PIECE)[:64].copy()
    batch = batch_of(scattered, (5000 + np.arange(64)) * PIECE)
    find_deltas(batch, index, store, 0, KEY)
    (delta,) = batch.deltas.values()
    assert int(delta.regions[:, 1].sum()) * PIECE <= PREFIX_MAX
    assert len(delta.frame) < 64 * PIECE / 10


def test_nothing_alike_makes_no_delta() -> None:
    store = SourceStore(1 << 20)
    store.put(np.arange(64), noise(64))
    batch = batch_of(text(64, 3))
    find_deltas(batch, index_of(noise(64)), store, 1 << 20, KEY)
    assert not batch.deltas
    assert (batch.kinds == UNDECIDED).all()


def test_an_old_piece_that_does_not_help_is_left() -> None:
    store = SourceStore(1 << 20)
    store.put(np.arange(64), noise(64, 4))
    batch = batch_of(noise(64, 5))
    find_deltas(batch, index_of(noise(64, 4)), store, 0, KEY)
    assert not batch.deltas


def test_only_what_does_not_shrink_is_sent_raw() -> None:
    batch = batch_of(np.concatenate((noise(24), text(24), noise(24))))
    keep_incompressible(batch)
    assert (batch.kinds == Kind.RAW).tolist() == [True] * 24 + [False] * 24 + [True] * 24


def test_addresses_of_several_disks_are_told_apart() -> None:
    index = SourceIndex(KEY, LookupTable, BUDGET)
    first, second = index.add_disk(10 * PIECE - 5), index.add_disk(10 * PIECE)
    assert (first, second) == (0, 10 * PIECE)
    for seed, base in ((1, first), (2, second)):
        data = noise(10, seed)
        index.learn(base, np.arange(10) * PIECE, names(data, KEY), data)
    index.commit(first)
    found = index.find_pieces(names(noise(10, 1), KEY))
    assert found.tolist() == (np.arange(10) * PIECE).tolist()
    found = index.find_pieces(names(noise(10, 2), KEY))
    assert found.tolist() == (second + NOW + np.arange(10) * PIECE).tolist()
    assert (index.find_pieces(names(noise(10, 3), KEY)) == -1).all()


def test_the_same_part_at_another_byte_of_its_piece_is_another() -> None:
    data = noise(30)
    index = index_of(data)
    moved = shifted(data, 8)
    index.learn(0, np.arange(30) * PIECE, names(moved, KEY), moved)
    _, _, digests = parts_of(data, run_borders(np.arange(30) * PIECE), KEY)
    found = index.find_parts(digests)
    assert not ((found >= 0) & (found < NOW) & (found % PIECE == 8)).any()
    starts, lengths, digests = parts_of(moved, run_borders(np.arange(30) * PIECE), KEY)
    found = index.find_parts(digests)
    there = found >= NOW
    assert there.sum() > 5
    for start, length, address in zip(
        starts[there], lengths[there], found[there] - NOW, strict=True
    ):
        part = moved.reshape(-1)[start : start + length]
        assert (moved.reshape(-1)[address : address + length] == part).all()


def test_extents_are_runs_of_offsets() -> None:
    offsets = np.array([0, 1, 2, 7, 9, 10]) * PIECE
    assert extents_of(offsets).tolist() == [[0, 3], [7, 1], [9, 2]]
    plan = Plan(extents_of(offsets), np.array([0]), np.array([6]))
    assert plan.offsets().tolist() == offsets.tolist()
