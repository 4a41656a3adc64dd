"""The extent log: what it says after any interruption, and what it costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.errors import DiskCorrupt, DiskIO, ProtocolError
from standby.road.extent_log import KIND_DATA, KIND_ZERO, ExtentLog, LogHeader

SIZE = 8 * PAGE + 512
HEADER = LogHeader("disk0", "20260101T000000Z-0001", 1, "checkpoint-1", SIZE, "ab" * 16)


def rows(*items: tuple[int, int, int]) -> np.ndarray:
    return np.array(items, dtype=np.int64).reshape(-1, 3)


def leaves(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


def zero_leaves() -> np.ndarray:
    return np.full(LEAVES_PER_PAGE, ZERO_LEAF, dtype=np.uint64)


def page_of(log: ExtentLog, number: int) -> np.ndarray:
    found = zero_leaves()
    log.overlay(number, found)
    return found


@pytest.fixture
def log(tmp_path: Path):
    made = ExtentLog.create(tmp_path / "a.extents", HEADER)
    yield made
    made.close()


def reopened(log: ExtentLog) -> ExtentLog:
    log.close()
    return ExtentLog.open(log.path)


def test_a_new_log_says_what_it_belongs_to_and_nothing_else(log: ExtentLog) -> None:
    again = reopened(log)
    assert again.header == HEADER
    assert (again.checkpoint_id, again.mark, again.logged_bytes) == ("checkpoint-1", 0, 0)
    assert len(again.pages()) == 0
    assert len(again.zeroed_pages()) == 0
    assert np.array_equal(page_of(again, 3), zero_leaves())
    again.close()


def test_what_is_appended_counts_only_after_the_sync(log: ExtentLog) -> None:
    log.append(rows((0, PIECE, KIND_DATA)), leaves(1, 1))
    log.append_mark(PIECE)
    assert log.logged_bytes == 0
    assert log.mark == 0
    assert len(log.pages()) == 0
    assert log.sync() == PIECE
    assert (log.logged_bytes, log.mark) == (PIECE, PIECE)
    assert page_of(log, 0)[0] == 1
    assert log.sync() == 0


def test_later_records_win_piece_by_piece_also_after_a_reopen(log: ExtentLog) -> None:
    log.append(rows((0, 8 * PIECE, KIND_DATA)), leaves(10, 8))
    log.sync()
    log.append(rows((2 * PIECE, PIECE, KIND_ZERO), (4 * PIECE, PIECE, KIND_DATA)), leaves(99, 1))
    log.append(rows((5 * PIECE, PIECE, KIND_DATA)), leaves(77, 1))
    log.sync()
    expected = zero_leaves()
    expected[:8] = [10, 11, int(ZERO_LEAF), 13, 99, 77, 16, 17]
    assert np.array_equal(page_of(log, 0), expected)
    again = reopened(log)
    assert np.array_equal(page_of(again, 0), expected)
    assert again.logged_bytes == 11 * PIECE
    again.close()


def test_rows_across_page_borders_and_the_short_last_piece(log: ExtentLog) -> None:
    start = PAGE - 2 * PIECE
    length = PAGE + 5 * PIECE
    count = length // PIECE
    log.append(
        rows((start, length, KIND_DATA), (8 * PAGE, 512, KIND_DATA)), leaves(1000, count + 1)
    )
    log.sync()
    assert log.pages().tolist() == [0, 1, 2, 8]
    assert page_of(log, 0)[-2:].tolist() == [1000, 1001]
    assert np.array_equal(page_of(log, 1), leaves(1002, LEAVES_PER_PAGE))
    assert page_of(log, 2)[:4].tolist() == [1002 + 4096, 1003 + 4096, 1004 + 4096, int(ZERO_LEAF)]
    assert page_of(log, 8)[:2].tolist() == [1000 + count, int(ZERO_LEAF)]


def test_zeroed_pages_are_those_whose_newest_word_is_zero_as_a_whole(log: ExtentLog) -> None:
    log.append(rows((0, PIECE, KIND_DATA), (PAGE, 2 * PAGE, KIND_ZERO)), leaves(5, 1))
    log.sync()
    assert log.zeroed_pages().tolist() == [1, 2]
    log.append(rows((2 * PAGE, PIECE, KIND_DATA)), leaves(6, 1))
    log.append(rows((8 * PAGE, 512, KIND_ZERO)), leaves(0, 0))
    log.append(rows((3 * PAGE, PAGE - PIECE, KIND_ZERO)), leaves(0, 0))
    log.sync()
    assert log.zeroed_pages().tolist() == [1, 8]
    assert log.pages().tolist() == [0, 1, 2, 3, 8]


def test_the_mark_begins_again_with_another_checkpoint(log: ExtentLog) -> None:
    log.append_mark(3 * PAGE)
    log.sync()
    log.append_checkpoint("checkpoint-2")
    log.sync()
    again = reopened(log)
    assert (again.checkpoint_id, again.mark) == ("checkpoint-2", 0)
    again.close()


def test_open_ranges_add_up_until_they_are_closed(log: ExtentLog) -> None:
    log.append_open([(0, PAGE)])
    log.sync()
    log.append_open([(4 * PAGE, 5 * PAGE)])
    log.sync()
    again = reopened(log)
    assert again.open_ranges == [(0, PAGE), (4 * PAGE, 5 * PAGE)]
    again.append_close()
    again.append_open([(5 * PAGE, 6 * PAGE)])
    again.sync()
    last = reopened(again)
    assert last.open_ranges == [(5 * PAGE, 6 * PAGE)]
    last.close()


def test_a_new_log_can_declare_everything_open_at_once(tmp_path: Path) -> None:
    log = ExtentLog.create(tmp_path / "b.extents", HEADER, [(0, SIZE)])
    assert log.open_ranges == [(0, SIZE)]
    log.close()


def test_what_was_read_back_is_remembered_by_position(log: ExtentLog) -> None:
    log.append(rows((0, PIECE, KIND_DATA)), leaves(1, 1))
    log.sync()
    read = log.end
    log.append(rows((PAGE, PIECE, KIND_DATA)), leaves(2, 1))
    log.append_verified(read)
    log.append_copied(PAGE)
    log.sync()
    again = reopened(log)
    assert again.verified_position == read
    assert again.copied == PAGE
    assert again.pages(again.verified_position).tolist() == [1]
    assert again.pages(0, again.verified_position).tolist() == [0]
    mask = np.zeros(LEAVES_PER_PAGE, dtype=bool)
    again.overlay(0, None, start=again.verified_position, mask=mask)
    assert not mask.any()
    again.overlay(0, None, mask=mask)
    assert np.flatnonzero(mask).tolist() == [0]
    again.close()


def written_log(path: Path) -> list[tuple[int, int]]:
    """A log of four commits; (end, acknowledged bytes) after each."""
    log = ExtentLog.create(path, HEADER)
    ends = [(log.end, 0)]
    for number in range(4):
        log.append(rows((number * PAGE, 3 * PIECE, KIND_DATA)), leaves(number * 10, 3))
        log.append_mark(number * PAGE + 3 * PIECE)
        log.sync()
        ends.append((log.end, log.logged_bytes))
    log.close()
    return ends


def test_a_tail_torn_at_any_byte_is_cut_to_the_last_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "torn.extents"
    ends = written_log(path)
    data = path.read_bytes()
    assert len(data) == ends[-1][0]
    for length in range(ends[2][0], len(data) + 1, 7):
        path.write_bytes(data[:length])
        log = ExtentLog.open(path)
        whole = [acknowledged for end, acknowledged in ends if end <= length]
        # An extent record may be whole although the mark behind it is not.
        assert log.logged_bytes in (whole[-1], whole[-1] + 3 * PIECE)
        assert path.stat().st_size == log.end <= length
        log.append(rows((5 * PAGE, PIECE, KIND_DATA)), leaves(1, 1))
        log.sync()
        again = reopened(log)
        assert page_of(again, 5)[0] == 1
        again.close()


def test_nothing_behind_a_damaged_byte_counts(tmp_path: Path) -> None:
    path = tmp_path / "damaged.extents"
    ends = written_log(path)
    data = path.read_bytes()
    for position in range(ends[0][0], len(data), 5):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        log = ExtentLog.open(path, writable=False)
        assert log.end <= position
        assert log.logged_bytes <= max(done for end, done in ends if end <= position) + 3 * PIECE
        assert path.stat().st_size == len(data)  # a reader cuts nothing off
        log.close()


def test_an_old_record_behind_the_cut_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "old.extents"
    ends = written_log(path)
    data = path.read_bytes()
    log = ExtentLog.open(path)
    log.close()
    # The record of the third commit, moved to where the second one's was.
    (second, _), (third, _), (fourth, _) = ends[1:4]
    path.write_bytes(data[:second] + data[third:fourth])
    log = ExtentLog.open(path)
    assert log.logged_bytes == ends[1][1]
    log.close()


@pytest.mark.parametrize("length", [0, 5, 16, 31, 40])
def test_a_log_without_a_whole_header_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.extents"
    written_log(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DiskCorrupt):
        ExtentLog.open(path)


def test_another_magic_or_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.extents"
    written_log(path)
    data = bytearray(path.read_bytes())
    data[8] = 3
    path.write_bytes(data)
    with pytest.raises(DiskCorrupt, match="known version"):
        ExtentLog.open(path)


def test_a_record_damaged_after_the_open_is_noticed_when_read(tmp_path: Path) -> None:
    path = tmp_path / "later.extents"
    ends = written_log(path)
    log = ExtentLog.open(path)
    data = bytearray(path.read_bytes())
    data[ends[0][0] + 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(DiskCorrupt):
        log.overlay(0, zero_leaves())
    log.close()


@pytest.mark.parametrize(
    "bad",
    [
        [(0, 0, 1)],
        [(-PIECE, PIECE, 1)],
        [(100, PIECE, 1)],
        [(0, 100, 1)],
        [(0, PIECE, 2)],
        [(8 * PAGE, PIECE, 1)],
        [(PIECE, PIECE, 1), (0, PIECE, 1)],
        [(0, 2 * PIECE, 1), (PIECE, PIECE, 1)],
        [(0, 1 << 62, 0)],
        [((1 << 62), 1 << 62, 0)],
    ],
)
def test_extents_that_cannot_be_are_refused(log: ExtentLog, bad: list) -> None:
    with pytest.raises(ProtocolError):
        log.append(rows(*bad), leaves(0, len(bad)))


def test_leaves_have_to_match_the_data_rows(log: ExtentLog) -> None:
    with pytest.raises(ProtocolError):
        log.append(rows((0, PIECE, KIND_DATA), (PIECE, PIECE, KIND_ZERO)), leaves(0, 2))


def test_a_failed_sync_acknowledges_nothing_and_can_be_repeated(
    log: ExtentLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(rows((0, PIECE, KIND_DATA)), leaves(9, 1))

    def failing() -> None:
        raise DiskIO("x", "sync", 0, 0, "test")

    with monkeypatch.context() as patch:
        patch.setattr(log._file, "sync", failing)
        with pytest.raises(DiskIO):
            log.sync()
    assert log.logged_bytes == 0
    assert log.sync() == PIECE
    again = reopened(log)
    assert page_of(again, 0)[0] == 9
    again.close()


def test_scattered_rows_are_cut_into_records_that_stay_small(tmp_path: Path) -> None:
    size = 1 << 44
    log = ExtentLog.create(tmp_path / "wide.extents", HEADER.__class__("d", "p", 1, "c", size))
    count = 5000
    table = np.empty((count, 3), dtype=np.int64)
    table[:, 0] = np.arange(count) * (size // count // PIECE * PIECE)
    table[:, 1] = PIECE
    table[:, 2] = KIND_DATA
    log.append(table, leaves(0, count))
    log.append(rows((PAGE, size - PAGE, KIND_ZERO)), leaves(0, 0))
    log.sync()
    assert len(log.pages()) == size // PAGE
    assert len(log.zeroed_pages()) == size // PAGE - 1
    assert page_of(log, 0)[0] == 0
    assert log.path.stat().st_size < 64 * count
    log.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_sequence_of_batches_reads_as_a_plain_array(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "any.extents"
    pieces = 2 * LEAVES_PER_PAGE + 100
    log = ExtentLog.create(path, LogHeader("d", "p", 1, "c", pieces * PIECE))
    expected = np.full(3 * LEAVES_PER_PAGE, ZERO_LEAF, dtype=np.uint64)
    touched: set[int] = set()
    serial = 1
    for _ in range(data.draw(st.integers(1, 6))):
        cuts = sorted(data.draw(st.sets(st.integers(0, pieces), min_size=2, max_size=12)))
        batch, batch_leaves = [], []
        for first, stop in zip(cuts[::2], cuts[1::2], strict=False):
            kind = data.draw(st.sampled_from([KIND_DATA, KIND_ZERO]))
            batch.append((first * PIECE, (stop - first) * PIECE, kind))
            values = leaves(serial, stop - first) if kind == KIND_DATA else None
            serial += stop - first
            expected[first:stop] = ZERO_LEAF if values is None else values
            touched.update(range(first // LEAVES_PER_PAGE, (stop - 1) // LEAVES_PER_PAGE + 1))
            if values is not None:
                batch_leaves.append(values)
        flat = np.concatenate(batch_leaves) if batch_leaves else leaves(0, 0)
        log.append(rows(*batch), flat)
        if data.draw(st.booleans()):
            log.sync()
    log.sync()
    again = reopened(log)
    for number in range(3):
        wanted = expected[number * LEAVES_PER_PAGE : (number + 1) * LEAVES_PER_PAGE]
        assert np.array_equal(page_of(again, number), wanted)
    assert set(again.pages().tolist()) == touched
    again.close()
    path.unlink()


GOLDEN = Path(__file__).parent / "golden" / "log-2.extents"
GOLDEN_1 = Path(__file__).parent / "golden" / "log-1.extents"
"""As far as version 1 goes: all but the last record."""


def golden_log(path: Path) -> ExtentLog:
    """Every type of record, with fixed content."""
    log = ExtentLog.create(path, HEADER, [(0, PAGE)])
    log.append(rows((0, 2 * PIECE, KIND_DATA), (4 * PIECE, PIECE, KIND_ZERO)), leaves(7, 2))
    log.append_mark(5 * PIECE)
    log.append_close()
    log.append_open([(PAGE, 2 * PAGE)])
    log.append_copied(PIECE)
    log.sync()
    log.append_verified(log.end)
    log.append_checkpoint("checkpoint-2")
    log.append(rows((8 * PAGE, 512, KIND_DATA)), leaves(9, 1))
    log.sync()
    log.append_open([(0, PAGE), (4 * PAGE, 5 * PAGE)])
    log.append_only_open([(4 * PAGE, 5 * PAGE)])
    log.sync()
    return log


def test_version_2_is_read_and_written_to_the_byte(tmp_path: Path) -> None:
    golden_log(tmp_path / "new.extents").close()
    assert (tmp_path / "new.extents").read_bytes() == GOLDEN.read_bytes()
    log = ExtentLog.open(GOLDEN, writable=False)
    assert log.header == HEADER
    assert (log.checkpoint_id, log.mark, log.copied) == ("checkpoint-2", 0, PIECE)
    assert log.open_ranges == [(4 * PAGE, 5 * PAGE)]
    assert log.pages().tolist() == [0, 8]
    assert log.pages(log.verified_position).tolist() == [8]
    assert page_of(log, 0)[:5].tolist() == [7, 8, *[int(ZERO_LEAF)] * 3]
    assert page_of(log, 8)[0] == 9
    log.close()


def test_version_1_is_read_and_becomes_version_2_when_it_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "old.extents"
    path.write_bytes(GOLDEN_1.read_bytes())
    log = ExtentLog.open(path, writable=False)
    assert log.open_ranges == [(PAGE, 2 * PAGE)]
    assert log.pages().tolist() == [0, 8]
    log.close()
    assert path.read_bytes() == GOLDEN_1.read_bytes()
    log = ExtentLog.open(path)
    log.append_open([(0, PAGE), (4 * PAGE, 5 * PAGE)])
    log.append_only_open([(4 * PAGE, 5 * PAGE)])
    log.sync()
    log.close()
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_which_ranges_only_are_open_is_said_in_one_record(tmp_path: Path) -> None:
    """Cut anywhere, either all earlier ranges are open or the named ones: never none."""
    path = tmp_path / "cut.extents"
    log = ExtentLog.create(path, HEADER, [(0, PAGE), (PAGE, 2 * PAGE)])
    before = log.end
    log.append_only_open([(PAGE, 2 * PAGE)])
    log.sync()
    log.close()
    data = path.read_bytes()
    for length in range(before, len(data) + 1):
        path.write_bytes(data[:length])
        log = ExtentLog.open(path, writable=False)
        whole = [(PAGE, 2 * PAGE)]
        assert log.open_ranges == (whole if length == len(data) else [(0, PAGE), *whole])
        log.close()
    log = ExtentLog.open(path)
    log.append_only_open([])
    log.sync()
    assert log.open_ranges == []
    log.close()
