"""The target's half of a pair of WAN accelerators: whatever comes, nothing wrong is given out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standby.errors import ProtocolError
from standby.wan.compressing import Damaged, Stream, Unstream, compressed, decompressed
from standby.wan.decoding import Decoded, Decoder
from standby.wan.references import (
    PIECE,
    PIECES_MAX,
    UNIT,
    Answer,
    Frame,
    Kind,
    Message,
    Plan,
    Question,
    Receipt,
    kind_and_version,
)
from standby.wan.varints import Malformed, Writer
from wan_pairs import KEY, WINDOW_LOG, Pair, noise, shifted, text

KNOWN, UNKNOWN = noise(2 * UNIT, 50), text(UNIT, 51)


class Sample:
    """A batch that uses every kind of row, its frame, and a fresh target for each attempt."""

    def __init__(self) -> None:
        pair = self.pair()
        edited = text(UNIT, 52)
        edited[::3, 11] += 1
        moved = shifted(KNOWN, 501)[1 : UNIT // 2]
        nothing = np.zeros((5, PIECE), np.uint8)
        parts = (edited, KNOWN[:20], nothing, UNKNOWN[:30], moved, noise(16, 3), text(20, 4))
        self.data = np.concatenate(parts)
        self.offsets = np.arange(len(self.data)) * PIECE
        self.offsets[150:] += 10 * PIECE
        self.frame = pair.encode(self.offsets, self.data)
        assert all(pair.encoder.sent.pieces.values())

    @staticmethod
    def pair() -> Pair:
        pair = Pair(300, store_bytes=1 << 20)
        pair.other_disk(KNOWN, is_known=True)
        pair.other_disk(UNKNOWN, is_known=False)
        pair.send(np.arange(UNIT) * PIECE, text(UNIT, 52))
        pair.commit()
        return pair

    def target(self) -> Pair:
        """A pair whose target expects the frame."""
        pair = self.pair()
        batch = pair.encoder.prepare(self.offsets, self.data)
        pair.decoder.answer(batch.question)
        return pair

    def is_right(self, decoded: Decoded) -> bool:
        """Whether everything given out belongs to the batch."""
        places = {offset: row for row, offset in enumerate(self.offsets.tolist())}
        for run in decoded.runs:
            given_out = bytes(run.length) if run.data is None else bytes(run.data)
            rows = [places[run.offset + at] for at in range(0, run.length, PIECE)]
            if given_out != self.data[rows].tobytes():
                return False
        return True


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


def test_the_sample_arrives(sample: Sample) -> None:
    pair = sample.target()
    decoded = pair.decoder.decode(sample.frame)
    assert decoded.is_complete
    assert sample.is_right(decoded)
    assert sum(run.length for run in decoded.runs) == sample.data.size


def test_a_frame_that_ends_early_is_refused(sample: Sample) -> None:
    decoder = sample.target().decoder
    for length in [*range(60), *range(60, len(sample.frame), 2911), len(sample.frame) - 1]:
        with pytest.raises(ProtocolError):
            decoder.decode(sample.frame[:length])
    with pytest.raises(ProtocolError):
        decoder.decode(sample.frame + b"\0")
    assert decoder.decode(sample.frame).is_complete


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_frames_give_out_nothing_wrong(sample: Sample, data: st.DataObject) -> None:
    damaged = bytearray(sample.frame)
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of them in the plan and the digests, which are at the start.
        span = data.draw(st.sampled_from([400, len(damaged)]))
        damaged[data.draw(st.integers(0, span - 1))] = data.draw(st.integers(0, 255))
    pair = sample.target()
    try:
        decoded = pair.decoder.decode(bytes(damaged))
    except ProtocolError:
        return
    assert sample.is_right(decoded)
    given_out = sum(run.length for run in decoded.runs)
    assert decoded.is_complete == (given_out == sample.data.size)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(list(Message)))
def test_bytes_that_are_no_message_are_refused(body: bytes, message: Message) -> None:
    readers: dict[Message, Callable[[bytes], object]] = {
        Message.QUESTION: Question.from_bytes,
        Message.ANSWER: Answer.from_bytes,
        Message.FRAME: Frame.from_bytes,
        Message.RECEIPT: Receipt.from_bytes,
    }
    try:
        readers[message](kind_and_version(message) + body)
    except Malformed:
        pass


def _wrong(out: np.ndarray, ok: np.ndarray) -> np.ndarray:
    out[:: PIECE // 2] ^= 1
    return ok


def _gone(out: np.ndarray, ok: np.ndarray) -> np.ndarray:
    out[:] = 0
    return np.zeros(len(ok), bool)


def _partly(out: np.ndarray, ok: np.ndarray) -> np.ndarray:
    ok[::2] = False
    return ok


@pytest.mark.parametrize("lie", [_wrong, _gone, _partly])
def test_lies_of_the_look_ups_cost_one_literal_resend(
    sample: Sample, lie: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    pair = sample.pair()
    pair.target.lies = lie
    first, again = pair.send(sample.offsets, sample.data)
    assert sample.is_right(first)
    assert sample.is_right(again)
    assert again.is_complete
    assert pair.holds(sample.offsets, sample.data)
    assert pair.encoder.sent.units_resent < 4


def test_a_wrong_answer_costs_one_literal_resend(sample: Sample) -> None:
    pair = sample.pair()
    batch = pair.encoder.prepare(sample.offsets, sample.data)
    told = Answer.from_bytes(pair.decoder.answer(batch.question))
    lying = Answer(told.serial, ~told.hits).to_bytes()
    first = pair.decoder.decode(pair.encoder.encode(batch, lying))
    assert not first.is_complete
    assert sample.is_right(first)
    again = pair.decoder.decode(pair.encoder.settle(first.receipt))
    assert again.is_complete
    assert sample.is_right(again)


def test_a_broken_stream_starts_anew() -> None:
    pair = Pair(1000, asks=False)
    lost = pair.encode(np.arange(50) * PIECE, text(50))
    assert lost
    first, again = pair.send(np.arange(100, 150) * PIECE, text(50, 2))
    assert not first.runs
    assert again.is_complete
    (third,) = pair.send(np.arange(200, 250) * PIECE, text(50, 3))
    assert third.is_complete
    assert pair.encoder.sent.units_resent == 1


def test_a_damaged_stream_starts_anew() -> None:
    pair = Pair(1000, asks=False)
    frame = bytearray(pair.encode(np.arange(50) * PIECE, text(50)))
    frame[-3000:-2900] = bytes(100)
    decoded = pair.decoder.decode(bytes(frame))
    assert not decoded.runs
    again = pair.decoder.decode(pair.encoder.settle(decoded.receipt))
    assert again.is_complete
    pair.encoder.settle(again.receipt)
    (after,) = pair.send(np.arange(100, 150) * PIECE, text(50, 2))
    assert after.is_complete


def test_an_older_frame_is_refused(sample: Sample) -> None:
    pair = sample.target()
    pair.decoder.decode(sample.frame)
    with pytest.raises(ProtocolError):
        pair.decoder.decode(sample.frame)


def test_units_that_nobody_asked_for_again_are_refused() -> None:
    pair = Pair(100, asks=False)
    frame = pair.encode(np.arange(9) * PIECE, noise(9))
    literal = pair.encoder.settle(Receipt(1, np.array([0]), False).to_bytes())
    assert pair.decoder.decode(frame).is_complete
    with pytest.raises(ProtocolError):
        pair.decoder.decode(literal)


def test_units_sent_again_and_damaged_are_refused(sample: Sample) -> None:
    pair = sample.pair()
    pair.target.lies = _gone
    first = pair.decoder.decode(pair.encode(sample.offsets, sample.data))
    literal = bytearray(pair.encoder.settle(first.receipt))
    literal[len(literal) // 2] ^= 1
    with pytest.raises(ProtocolError):
        pair.decoder.decode(bytes(literal))


def test_open_questions_have_a_limit() -> None:
    decoder = Decoder(KEY, Pair(1).target, questions_max=2)
    asked = np.zeros((1, 6), np.uint8)
    decoder.answer(Question(1, asked).to_bytes())
    with pytest.raises(ProtocolError):
        decoder.answer(Question(1, asked).to_bytes())
    decoder.answer(Question(2, asked).to_bytes())
    with pytest.raises(ProtocolError):
        decoder.answer(Question(3, asked).to_bytes())


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises((Damaged, ProtocolError)):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_grows_beyond_its_announcement_is_stopped() -> None:
    bomb = compressed(bytes(200 << 20))
    assert len(bomb) < 1 << 20
    assert _peak(lambda: decompressed(bomb, 1 << 20)) < 8 << 20
    part = Stream(WINDOW_LOG).add(bytes(200 << 20))
    assert _peak(lambda: Unstream(WINDOW_LOG).take(part, 1 << 20)) < 8 << 20


def test_a_window_beyond_the_limit_is_refused() -> None:
    part = Stream(WINDOW_LOG + 1).add(bytes(1 << 12))
    with pytest.raises(Damaged):
        Unstream(WINDOW_LOG).take(part, 1 << 12)


def _plan(pieces: int, kind: Kind) -> Plan:
    extents = np.array([[0, pieces]], np.int64)
    return Plan(extents, np.array([kind]), np.array([pieces]))


def test_a_frame_of_too_many_pieces_is_refused_before_memory_is_taken() -> None:
    decoder = Decoder(KEY, Pair(1).target)
    frame = Frame(1, _plan(PIECES_MAX * 200, Kind.ZERO), b"").to_bytes()
    assert _peak(lambda: decoder.decode(frame)) < 1 << 20


def test_a_plan_that_grows_is_refused_before_memory_is_taken() -> None:
    decoder = Decoder(KEY, Pair(1).target)
    plan = compressed(bytes(100 << 20))
    out = Writer()
    out.raw(kind_and_version(Message.FRAME))
    for number in (1, 1, 100 << 20, len(plan), 0, 0, 0):
        out.number(number)
    out.raw(plan)
    assert _peak(lambda: decoder.decode(out.to_bytes())) < 1 << 20


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: setattr(plan, "regions", np.array([1])),
        lambda plan: setattr(plan, "parts", np.array([1])),
        lambda plan: setattr(plan, "delta_lengths", np.array([5])),
        lambda plan: setattr(plan, "copies", np.array([1 << 50])),
        lambda plan: setattr(plan, "counts", np.array([2])),
        lambda plan: setattr(plan, "kinds", np.array([7])),
        lambda plan: setattr(plan, "kinds", np.array([Kind.PARTS])),
        lambda plan: setattr(plan, "extents", np.array([[0, 1], [1, 2]])),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: Callable[[Plan], None]) -> None:
    plan = _plan(3, Kind.COPY)
    plan.copies = np.array([0])
    assert Plan.from_bytes(plan.to_bytes()).pieces == 3
    change(plan)
    with pytest.raises(Malformed):
        Plan.from_bytes(plan.to_bytes())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=300))
def test_answers_are_read_as_they_were_made(hits: list[bool]) -> None:
    made = Answer(7, np.array(hits, bool))
    read = Answer.from_bytes(made.to_bytes())
    assert read.hits.tolist() == hits
    assert len(made.to_bytes()) < 10 + len(hits) // 8
