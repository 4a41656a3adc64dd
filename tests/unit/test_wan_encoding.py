"""Batches through a pair of WAN accelerators: what travels, and that it arrives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standby.errors import ProtocolError
from standby.wan.references import PIECE, PIECES_MAX, UNIT, Answer, Kind, Receipt
from wan_pairs import Pair, noise, shifted, text


def test_a_batch_arrives_as_it_was() -> None:
    pair = Pair(400)
    offsets = np.arange(0, 300, 2) * PIECE
    data = np.concatenate((noise(48), text(52), np.zeros((50, PIECE), np.uint8)))
    (decoded,) = pair.send(offsets, data)
    assert decoded.is_complete
    assert pair.holds(offsets, data)
    sent = pair.encoder.sent
    assert sent.pieces[Kind.ZERO] == 50
    assert sent.pieces[Kind.RAW] == 48
    assert sent.frames < 48 * PIECE + 52 * PIECE * 0.4


def test_zeros_cost_nearly_nothing() -> None:
    pair = Pair(4096)
    (decoded,) = pair.send(np.arange(4096) * PIECE, np.zeros((4096, PIECE), np.uint8))
    assert [run.data for run in decoded.runs] == [None]
    assert pair.encoder.sent.frames < 4096 // UNIT * 32 + 40


@pytest.mark.parametrize("asks", [False, True])
def test_content_that_the_target_has_elsewhere_is_named(asks: bool) -> None:
    pair = Pair(1000, asks=asks)
    data = noise(200)
    pair.send(np.arange(200) * PIECE, data)
    pair.commit()
    offsets = np.arange(700, 900) * PIECE
    pair.send(offsets, data)
    assert pair.holds(offsets, data)
    assert pair.encoder.sent.pieces[Kind.COPY] == 200
    assert pair.encoder.sent.wire_bytes < 4 * 32 + 60


def test_content_of_this_very_session_is_named() -> None:
    pair = Pair(1000)
    data = noise(200)
    pair.send(np.arange(200) * PIECE, data)
    offsets = np.arange(700, 900) * PIECE
    pair.send(offsets, data)
    assert pair.holds(offsets, data)
    assert pair.encoder.sent.pieces[Kind.COPY] == 200


def test_what_only_the_target_knows_is_found_by_asking() -> None:
    pair = Pair(1000)
    data = noise(300)
    pair.other_disk(data, is_known=False)
    offsets = np.arange(300) * PIECE
    pair.send(offsets, data)
    assert pair.holds(offsets, data)
    assert pair.encoder.sent.pieces[Kind.ASKED] == 300
    assert pair.encoder.sent.wire_bytes < 300 * 6 + 5 * 32 + 100


def test_content_moved_by_an_odd_distance_is_named_by_its_parts() -> None:
    pair = Pair(1000)
    data = noise(300)
    pair.other_disk(data, is_known=True)
    offsets = np.arange(300) * PIECE
    pair.send(offsets, shifted(data, 1001))
    assert pair.holds(offsets, shifted(data, 1001))
    assert pair.encoder.sent.pieces[Kind.PARTS] > 280
    assert pair.encoder.sent.wire_bytes < 30 * PIECE


def test_edited_content_is_a_delta_behind_what_was_sent_before() -> None:
    pair = Pair(2000, store_bytes=8 << 20)
    data = noise(256)
    pair.send(np.arange(256) * PIECE, data)
    pair.commit()
    moved = np.arange(1000, 1256) * PIECE
    edited = shifted(data, 77)
    edited[::4, ::500] += 1
    pair.send(moved, edited)
    assert pair.holds(moved, edited)
    in_place = data.copy()
    in_place[:, 100] += 1
    pair.send(np.arange(256) * PIECE, in_place)
    assert pair.holds(np.arange(256) * PIECE, in_place)
    assert pair.encoder.sent.pieces[Kind.DELTA] >= 510
    assert pair.encoder.sent.wire_bytes < 16 * PIECE


def test_a_delta_leaves_out_what_is_named_between_its_pieces() -> None:
    pair = Pair(400, store_bytes=4 << 20)
    data = noise(60)
    offsets = np.arange(60) * PIECE
    pair.send(offsets, data)
    pair.commit()
    pair.other_disk(noise(60, 5), is_known=True)
    edited = data.copy()
    edited[:, 7] += 1
    edited[10:40:3] = noise(60, 5)[10:40:3]
    pair.send(offsets, edited)
    assert pair.holds(offsets, edited)
    assert pair.encoder.sent.pieces[Kind.COPY] == 10
    assert pair.encoder.sent.pieces[Kind.DELTA] == 50


def test_later_batches_refer_to_earlier_ones_of_the_stream() -> None:
    pair = Pair(1000, asks=False)
    lines = text(50)
    pair.send(np.arange(50) * PIECE, lines)
    first = pair.encoder.sent.frames
    pair.send(
        np.arange(500, 549) * PIECE, lines.reshape(-1)[33 : 33 + 49 * PIECE].reshape(-1, PIECE)
    )
    assert pair.encoder.sent.frames - first < first / 20


def test_a_wrong_hint_costs_one_unit_once() -> None:
    pair = Pair(1000)
    data = noise(4 * UNIT)
    base = pair.other_disk(data.copy(), is_known=True)
    pair.target.disk(base)[:] = 7
    pair.target.commit(base)
    offsets = np.arange(3 * UNIT) * PIECE
    data[UNIT : 2 * UNIT] = noise(UNIT, 4)
    first, second = pair.send(offsets, data[: 3 * UNIT])
    assert not first.is_complete
    assert sum(run.length for run in first.runs) == UNIT * PIECE
    assert second.is_complete
    assert pair.holds(offsets, data[: 3 * UNIT])
    assert pair.encoder.sent.units_resent == 2


def test_nothing_is_learned_of_a_session_given_up() -> None:
    pair = Pair(1000, asks=False)
    data = noise(100)
    pair.send(np.arange(100) * PIECE, data)
    pair.index.give_up(pair.base)
    pair.begin()
    pair.send(np.arange(200, 300) * PIECE, data)
    assert pair.encoder.sent.pieces[Kind.COPY] == 0


def test_outdated_digests_are_dropped_at_the_source() -> None:
    pair = Pair(1000, asks=False)
    data = noise(100)
    pair.send(np.arange(100) * PIECE, data)
    pair.commit()
    pair.send(np.arange(100) * PIECE, noise(100, 2))
    pair.commit()
    pair.send(np.arange(200, 300) * PIECE, data)
    assert pair.encoder.sent.pieces[Kind.COPY] == 0
    assert pair.encoder.sent.units_resent == 0


@pytest.mark.parametrize(
    ("offsets", "pieces"),
    [([0], 2), ([], 0), ([1], 1), ([4096, 0], 2), ([0, 0], 2)],
)
def test_a_batch_that_is_none_is_refused(offsets: list[int], pieces: int) -> None:
    pair = Pair(10)
    with pytest.raises(ValueError):
        pair.encoder.prepare(np.array(offsets, np.int64), bytes(pieces * PIECE))


def test_a_batch_has_a_limit() -> None:
    with pytest.raises(ValueError):
        Pair(1).encoder.prepare(
            np.arange(PIECES_MAX + 1) * PIECE, np.zeros((PIECES_MAX + 1) * PIECE, np.uint8)
        )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x12",
        Answer(2, np.zeros(3, bool)).to_bytes(),
        Answer(1, np.zeros(4, bool)).to_bytes(),
        Answer(1, np.zeros(3, bool)).to_bytes() + b"\0",
    ],
)
def test_an_answer_to_another_question_is_refused(answer: bytes) -> None:
    pair = Pair(10)
    batch = pair.encoder.prepare(np.arange(3) * PIECE, noise(3))
    with pytest.raises(ProtocolError):
        pair.encoder.encode(batch, answer)


@pytest.mark.parametrize(
    "receipt",
    [
        b"",
        Receipt(2, np.array([0]), False).to_bytes(),
        Receipt(1, np.array([1]), False).to_bytes(),
        Receipt(1, np.array([0]), False).to_bytes()[:-1],
    ],
)
def test_a_receipt_for_something_else_is_refused(receipt: bytes) -> None:
    pair = Pair(10)
    pair.encode(np.arange(3) * PIECE, noise(3))
    with pytest.raises(ProtocolError):
        pair.encoder.settle(receipt)


def test_a_unit_is_sent_again_once_only() -> None:
    pair = Pair(10)
    pair.encode(np.arange(3) * PIECE, noise(3))
    receipt = Receipt(1, np.array([0]), False).to_bytes()
    assert pair.encoder.settle(receipt)
    with pytest.raises(ProtocolError):
        pair.encoder.settle(receipt)


CONTENTS = st.tuples(
    st.sampled_from(["noise", "text", "zero", "known", "moved", "edited", "asked"]),
    st.integers(1, 40),
    st.integers(0, 9),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(CONTENTS, min_size=1, max_size=5), min_size=1, max_size=3), st.booleans())
def test_any_batches_arrive_as_they_were(
    batches: list[list[tuple[str, int, int]]], asks: bool
) -> None:
    pair = Pair(800, asks=asks, marks=asks, store_bytes=1 << 19)
    known, unknown = noise(128, 50), text(128, 51)
    pair.other_disk(known, is_known=True)
    pair.other_disk(unknown, is_known=False)
    pair.send(np.arange(100) * PIECE, text(100, 52))
    pair.commit()
    for number, runs in enumerate(batches):
        at, offsets, parts = 250 * number, [], []
        for kind, count, gap in runs:
            offsets.append(np.arange(at, at + count))
            at += count + gap
            parts.append(_content(kind, count, gap + number, known, unknown))
        places, data = np.concatenate(offsets) * PIECE, np.concatenate(parts)
        assert pair.send(places, data)[-1].is_complete
        assert pair.holds(places, data)
        if number % 2:
            pair.commit()
    assert pair.encoder.sent.units_resent == 0


def _content(
    kind: str, count: int, seed: int, known: np.ndarray, unknown: np.ndarray
) -> np.ndarray:
    if kind == "noise":
        return noise(count, seed)
    if kind == "text":
        return text(count, seed)
    if kind == "zero":
        return np.zeros((count, PIECE), np.uint8)
    if kind == "known":
        return known[seed % 30 :][:count]
    if kind == "moved":
        return shifted(known, 1 + seed * 97)[:count]
    if kind == "asked":
        return unknown[:count]
    edited = text(100, 52)[:count]
    edited[:: 1 + seed, seed] += 1
    return edited
