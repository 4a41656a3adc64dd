"""Changed pieces of which much is as it was: the target says what it looked like."""

from __future__ import annotations

import numpy as np
import pytest

from standby.errors import ProtocolError
from standby.wan.marking import FIRST_PIECES
from standby.wan.names import marks
from standby.wan.references import PIECE, UNIT, Answer, Kind, Question
from standby.wan.varints import Malformed
from wan_pairs import Pair, noise

COUNT = 4 * UNIT
OFFSETS = np.arange(COUNT) * PIECE


def paired() -> tuple[Pair, np.ndarray]:
    """A pair that nothing is known to but the disk at the target: of noise, four units."""
    pair = Pair(COUNT, asks=False, marks=True)
    data = noise(COUNT)
    pair.target.disk(pair.base)[:] = data.reshape(-1)
    pair.target.commit(pair.base)
    return pair, data


def test_of_pieces_that_were_edited_in_place_only_the_edited_parts_travel() -> None:
    pair, data = paired()
    changed = data.copy()
    changed[:, 1000] += 1
    changed[:, 3000:3010] += 1
    (decoded,) = pair.send(OFFSETS, changed)
    assert decoded.is_complete
    assert pair.holds(OFFSETS, changed)
    sent = pair.encoder.sent
    assert sent.pieces[Kind.PARTS] == COUNT
    assert sent.answers < COUNT * (32 + 1)
    assert sent.wire_bytes < COUNT * (2 * 256 + 32 + 16)


def test_pieces_between_that_are_all_new_travel_whole() -> None:
    pair, data = paired()
    changed = data.copy()
    changed[:, 7] += 1
    changed[5::9] = noise(len(changed[5::9]), 3)
    pair.send(OFFSETS, changed)
    assert pair.holds(OFFSETS, changed)
    assert pair.encoder.sent.pieces[Kind.PARTS] == COUNT - len(changed[5::9])
    assert pair.encoder.sent.units_resent == 0


def test_zeros_at_the_target_have_no_marks() -> None:
    pair = Pair(COUNT, asks=False, marks=True)
    pair.send(OFFSETS, noise(COUNT))
    assert pair.encoder.sent.answers < COUNT // 8 + 10
    assert pair.encoder.sent.pieces[Kind.PARTS] == 0


def test_where_marks_do_not_pay_few_are_asked_for() -> None:
    pair, _ = paired()
    pair.send(OFFSETS, noise(COUNT, 2))
    first = pair.encoder.sent.answers
    assert first > COUNT * 32
    for seed in range(16):
        pair.send(OFFSETS, noise(COUNT, 10 + seed))
    assert pair.encoder.sent.answers - first < 16 * COUNT * (2 + 1)
    assert pair.holds(OFFSETS, noise(COUNT, 25))


def test_before_the_first_answer_they_are_asked_for_a_bounded_number_of_pieces() -> None:
    pair = Pair(2 * FIRST_PIECES, asks=False, marks=True)
    batches = [
        pair.encoder.prepare(at + OFFSETS, noise(COUNT, 1))
        for at in range(0, 2 * FIRST_PIECES * PIECE, COUNT * PIECE)
    ]
    wanted = sum(len(batch.marked) for batch in batches)
    assert FIRST_PIECES <= wanted <= FIRST_PIECES + FIRST_PIECES // 8


def test_content_that_the_source_holds_itself_needs_no_marks() -> None:
    pair = Pair(COUNT, marks=True, store_bytes=8 << 20)
    data = noise(COUNT)
    pair.send(OFFSETS, data)
    pair.commit()
    edited = data.copy()
    edited[:, 9] += 1
    batch = pair.encoder.prepare(OFFSETS, edited)
    assert len(batch.marked) == 0


def test_marks_that_lie_cost_units_sent_again_and_no_wrong_byte() -> None:
    pair, data = paired()
    changed = data.copy()
    changed[:, 100] += 1
    batch = pair.encoder.prepare(OFFSETS, changed)
    told = Answer.from_bytes(pair.decoder.answer(batch.question))
    lies = told.marks.copy()
    lies[UNIT + 3] = marks(changed[UNIT + 3][None], batch.key)[0]
    frame = pair.encoder.encode(
        batch, Answer(batch.serial, told.hits, told.is_marked, lies).to_bytes()
    )
    first = pair.decoder.decode(frame)
    assert not first.is_complete
    again = pair.decoder.decode(pair.encoder.settle(first.receipt))
    assert again.is_complete
    for part in (first, again):
        pair.target.write(pair.base, part.runs)
    assert pair.holds(OFFSETS, changed)
    assert (pair.encoder.sent.units_resent, pair.encoder.sent.units_wrong) == (1, 0)


def test_a_place_that_cannot_be_read_has_no_marks() -> None:
    pair, _ = paired()
    question = Question(1, np.empty((0, 6), np.uint8), np.array([[0, 2], [1 << 30, 1]]))
    told = Answer.from_bytes(pair.decoder.answer(question.to_bytes()))
    assert told.is_marked.tolist() == [True, True, False]
    assert told.marks.shape == (2, 16)


@pytest.mark.parametrize(
    "places",
    [[[3, 2], [4, 1]], [[3, 0]], [[1 << 36, 1]], [[0, 4096], [5000, 1]]],
)
def test_places_that_are_none_are_refused(places: list[list[int]]) -> None:
    asked = Question(1, np.empty((0, 6), np.uint8), np.array(places)).to_bytes()
    with pytest.raises(Malformed):
        Question.from_bytes(asked)


def test_marks_of_other_pieces_than_those_asked_for_are_refused() -> None:
    pair, _ = paired()
    batch = pair.encoder.prepare(OFFSETS, noise(COUNT, 2))
    told = Answer.from_bytes(pair.decoder.answer(batch.question))
    short = Answer(1, told.hits, told.is_marked[:-1], told.marks[:-1]).to_bytes()
    with pytest.raises(ProtocolError):
        pair.encoder.encode(batch, short)
    whole = told.to_bytes()
    for cut in (1, 32, 100):
        with pytest.raises(Malformed):
            Answer.from_bytes(whole[:-cut])
