"""Batches: what the source collects is what the target sees; a lie in any field is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standby import comparing, digesting
from standby.digesting import PIECE
from standby.errors import ProtocolError
from standby.model.extent import Extent, Kind
from standby.road.batches import BatchBuilder, joined_rows, parsed_batch, piece_ranges
from standby.road.packing import Packer, Unpacker
from standby.wire.messages import Batch

SIZE = 64 * PIECE


def collected(data, stored=None, virtual_size=SIZE, offset=0):
    """`data` put into a builder as a scanner does it."""
    builder = BatchBuilder(virtual_size)
    builder.begin(memoryview(bytearray(1 << 20)))
    pieces = -(-len(data) // PIECE)
    stored = np.full(pieces, digesting.ZERO_LEAF) if stored is None else stored
    builder.tail(len(data))[:] = data
    leaves = np.empty(pieces, np.uint64)
    runs = np.empty((pieces, 3), np.int64)
    count = comparing.scan(builder.tail(len(data)), stored, leaves, runs)
    builder.keep(offset, len(data), runs[:count], leaves)
    return builder


def payload_of(builder):
    rows, leaves = builder.tables()
    data = bytes(builder.slot[: builder.filled])
    return Batch(len(rows), len(leaves), len(data)), rows.tobytes() + leaves.tobytes() + data


def random_disk(seed, zero_pieces=()):
    data = np.random.default_rng(seed).integers(1, 256, SIZE, np.uint8)
    for piece in zero_pieces:
        data[piece * PIECE : (piece + 1) * PIECE] = 0
    return data.tobytes()


@given(st.integers(0, 1000), st.sets(st.integers(0, 63)), st.sets(st.integers(0, 63)))
def test_applying_a_batch_to_the_old_disk_gives_the_new_one(seed, zeros, equal):
    old = bytearray(random_disk(seed))
    new = bytearray(random_disk(seed + 1, zeros))
    for piece in equal:
        new[piece * PIECE : (piece + 1) * PIECE] = old[piece * PIECE : (piece + 1) * PIECE]
    builder = collected(bytes(new), digesting.leaves(old))
    if builder.is_empty:
        assert old == new
        return
    message, payload = payload_of(builder)
    batch = parsed_batch(message, memoryview(payload), None, SIZE, "x")
    position = 0
    for start, length, kind in batch.rows.tolist():
        part = bytes(length)
        if kind == 1:
            part = batch.data[position : position + length]
            position += length
        old[start : start + length] = part
    assert old == new
    kept = np.concatenate(
        [digesting.leaves(new[s : s + n]) for s, n, k in batch.rows.tolist() if k == 1]
        or [np.empty(0, np.uint64)]
    )
    assert (kept == batch.leaves).all()


def test_rows_that_touch_become_one():
    rows = np.array([[0, 8, 1], [8, 8, 1], [16, 4, 0], [20, 4, 0], [32, 8, 1], [40, 3, 1]])
    assert joined_rows(rows).tolist() == [[0, 16, 1], [16, 8, 0], [32, 11, 1]]
    assert joined_rows(rows[:1]).tolist() == [[0, 8, 1]]


def test_the_last_short_piece_of_a_disk_travels_with_its_length():
    data = random_disk(3)[: 3 * PIECE + 512]
    message, payload = payload_of(collected(data, virtual_size=len(data)))
    batch = parsed_batch(message, memoryview(payload), None, len(data), "x")
    assert batch.rows.tolist() == [[0, len(data), 1]]
    assert bytes(batch.data) == data
    assert (batch.leaves == digesting.leaves(data)).all()


def test_a_packed_batch_proves_its_leaves():
    builder = collected(random_disk(5, {4, 9}))
    rows, leaves = builder.tables()
    data = bytes(builder.slot[: builder.filled])
    frame = Packer("fast").pack(rows, data)
    unpacked = memoryview(Unpacker("x").unpack(frame))
    digest = digesting.leaves_digest(leaves)
    message = Batch(len(rows), len(leaves), len(data), -1, "zstd", digest)
    assert (parsed_batch(message, unpacked, None, SIZE, "x").leaves == leaves).all()
    flipped = bytearray(unpacked)
    flipped[-1] ^= 1
    with pytest.raises(ProtocolError, match="leaf digest"):
        parsed_batch(message, memoryview(flipped), None, SIZE, "x")


@pytest.mark.parametrize("frame", [b"", b"nothing", b"\x28\xb5\x2f\xfd\x00"])
def test_a_damaged_frame_is_refused(frame):
    with pytest.raises(ProtocolError):
        Unpacker("x").unpack(frame)


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, -PIECE), (0, 1), (0, SIZE), (1, 0), (1, -1), (1, 1 << 62), (1, 100), (2, 7)],
)
def test_a_row_outside_the_disk_or_not_of_whole_pieces_is_refused(column, value):
    message, payload = payload_of(collected(random_disk(1)[: 8 * PIECE]))
    data = bytearray(payload)
    np.frombuffer(data, np.int64, 3)[column] = value
    with pytest.raises(ProtocolError, match="refused"):
        parsed_batch(message, memoryview(data), None, SIZE, "x")


@pytest.mark.parametrize("field", ["rows", "pieces", "data_length"])
@pytest.mark.parametrize("value", [-1, 0, 3, 1 << 40])
def test_a_count_that_does_not_agree_is_refused(field, value):
    import msgspec

    message, payload = payload_of(collected(random_disk(1)[: 8 * PIECE]))
    with pytest.raises(ProtocolError):
        parsed_batch(
            msgspec.structs.replace(message, **{field: value}),
            memoryview(payload),
            None,
            SIZE,
            "x",
        )


def test_sector_extents_become_piece_ranges():
    extents = [
        Extent(0, 512, Kind.DATA),
        Extent(512, 8192 - 512, Kind.HOLE),
        Extent(8192, 1024, Kind.ZERO),
        Extent(9216, 512, Kind.DATA),
        Extent(9728, 20480 - 9728, Kind.HOLE),
    ]
    assert piece_ranges(extents, 0, 20480, 20480) == [
        (0, 4096, True),
        (4096, 8192, False),
        (8192, 12288, True),
        (12288, 20480, False),
    ]


def test_neighbouring_data_in_one_piece_is_read_once():
    extents = [Extent(0, 512), Extent(512, 512, Kind.ZERO), Extent(1024, 4096)]
    assert piece_ranges(extents, 0, 8192, 8192) == [(0, 8192, True)]
