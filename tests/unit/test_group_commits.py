"""Group commits beside receiving: what they acknowledge, what a kill at any of their steps leaves,
and what becomes of their errors."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import partials
from partials import noise, rows, send, send_changes, spec_of
from standby import digesting, killpoints
from standby.digesting import PAGE, PIECE
from standby.errors import DiskFull, DiskIO, Fenced, error_from_wire
from standby.files import File
from standby.road.extent_log import KIND_DATA, ExtentLog
from standby.road.partial import PartialDisk
from standby.road.target_proxy import TargetProxy
from standby.units import MiB
from standby.wire.link import Link
from standby.wire.messages import Acknowledged, Attach, Batch, Failed, Finish, Finished

SIZE = 4 * PAGE
WAIT_S = 30


class Hold:
    """Holds the thread that comes to the place, once, until it is let go."""

    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.go = threading.Event()
        self.times = 0

    def reach(self) -> None:
        self.times += 1
        if self.times == 1:
            self.is_there.set()
            assert self.go.wait(WAIT_S)


@contextmanager
def held_at(place: str, patch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """`place`: the suffix of a file whose next sync is held when it has synced, or a kill point."""
    hold = Hold()
    plain = File.sync

    def sync(self: File) -> None:
        plain(self)
        if self.path.name.endswith(place):
            hold.reach()

    with patch.context() as context:
        if place.startswith("."):
            context.setattr(File, "sync", sync)
        else:
            killpoints.install(lambda name: hold.reach() if name == place else None)
        try:
            yield hold
        finally:
            hold.go.set()
            killpoints.install(None)


@contextmanager
def committing(partial: PartialDisk, hold: Hold) -> Iterator[list[int]]:
    """A commit of what was received, in a thread of its own, held; goes on when the block ends.
    The list has what it acknowledged then."""
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(partial.commit, partial.take())
        assert hold.is_there.wait(WAIT_S)
        yield done
        hold.go.set()
        done.append(future.result(WAIT_S))


PLACES = [
    ".vhdx",
    "extent log commit: disk flushed",
    ".extents",
    "extent log commit",
]


@pytest.mark.parametrize("place", PLACES)
def test_what_is_received_during_a_commit_is_not_acknowledged_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    content = noise(1, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send(partial, content, 0, MiB)
    with held_at(place, monkeypatch) as hold, committing(partial, hold) as acknowledged:
        send(partial, content, MiB, 3 * MiB)  # does not wait for the commit
        partial.mark(3 * MiB)
        assert not partial.should_commit()
    assert acknowledged == [MiB]
    assert (partial.acknowledged_bytes, partial.resume_mark) == (MiB, 0)
    held = partial.baseline.leaves(0)
    assert np.array_equal(held[:256], digesting.leaves(content[:MiB]))
    assert (held[256:] == digesting.ZERO_LEAF).all()
    assert partial.group_commit() == 2 * MiB
    assert (partial.acknowledged_bytes, partial.resume_mark) == (3 * MiB, 3 * MiB)
    assert partial.read_back() == []
    partial.close()


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_during_a_commit_beside_receiving_loses_nothing_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """What was written beside the commit, over acknowledged pieces too, is found by the resume."""
    monkeypatch.setattr("standby.road.group_commits.WINDOW", PAGE)
    first, second = noise(2, SIZE, 1.0), noise(3, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path / "live", spec_of(SIZE))
    send(partial, first, 0, PAGE + MiB)
    partial.group_commit()
    send(partial, first, PAGE + MiB, PAGE + 2 * MiB)
    with held_at(place, monkeypatch) as hold, committing(partial, hold):
        send(partial, second, PAGE, PAGE + 3 * MiB)
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    partial.close()
    again = PartialDisk.open(tmp_path / "killed", spec_of(SIZE))
    for page in range(2):
        expected = partials.content_of(again.path)[page * PAGE : (page + 1) * PAGE]
        assert np.array_equal(again.baseline.leaves(page), digesting.leaves(expected))
    send_changes(again, first)
    again.group_commit()
    assert again.read_back() == []
    assert partials.content_of(again.seal().partial_path) == first


@pytest.mark.parametrize("cut", ["first record", "middle", "last record"])
def test_a_log_cut_anywhere_leaves_open_what_is_written_beside_its_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Power fails during the log's sync: the log holds some of the records, the disk all writes."""
    monkeypatch.setattr("standby.road.group_commits.WINDOW", PAGE)
    first, second = noise(4, SIZE, 1.0), noise(5, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path / "live", spec_of(SIZE))
    send(partial, first, 0, PAGE)
    end = partial.log.end
    with held_at(".extents", monkeypatch) as hold, committing(partial, hold):
        send(partial, second, 5 * PIECE, 9 * PIECE)
        partial.disk.file.sync()
        shutil.copytree(tmp_path / "live", tmp_path / "cut")
    log = partial.log.path.name
    partial.close()
    data = (tmp_path / "cut" / log).read_bytes()
    length = {"first record": end + 40, "middle": (end + len(data)) // 2}.get(cut, len(data) - 1)
    (tmp_path / "cut" / log).write_bytes(data[:length])
    again = PartialDisk.open(tmp_path / "cut", spec_of(SIZE))
    held = partials.content_of(again.path)[:PAGE]
    assert np.array_equal(again.baseline.leaves(0), digesting.leaves(held))
    send_changes(again, first)
    assert partials.content_of(again.seal().partial_path)[:PAGE] == first[:PAGE]


def test_a_window_that_a_commit_closes_is_open_again_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.WINDOW", PAGE)
    content = noise(6, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    for page in (1, 2, 0):
        send(partial, content, page * PAGE, page * PAGE + PIECE)
    partial.group_commit()
    send(partial, content, 0, PIECE)
    open_when_written: list[list[tuple[int, int]]] = []
    plain = type(partial.disk).write

    def write(self: object, offset: int, data: memoryview) -> None:
        log = ExtentLog.open(partial.log.path, writable=False)
        open_when_written.append(log.open_ranges)
        log.close()
        plain(self, offset, data)  # type: ignore[arg-type]

    with held_at(".extents", monkeypatch) as hold, ThreadPoolExecutor(2) as pool:
        commit = pool.submit(partial.commit, partial.take())
        assert hold.is_there.wait(WAIT_S)
        monkeypatch.setattr(type(partial.disk), "write", write)
        send(partial, content, PIECE, 2 * PIECE)  # open all the time: does not wait
        later = pool.submit(send, partial, content, PAGE, PAGE + PIECE)  # waits for the log
        assert len(open_when_written) == 1
        hold.go.set()
        commit.result(WAIT_S)
        later.result(WAIT_S)
    assert open_when_written[0] == [(0, PAGE)]
    assert (PAGE, 2 * PAGE) in open_when_written[1]
    partial.close()


def test_a_window_first_written_beside_a_commit_stays_open_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.WINDOW", PAGE)
    content, newer = noise(12, SIZE, 1.0), noise(13, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path / "live", spec_of(SIZE))
    send(partial, content, 0, SIZE)
    partial.group_commit()
    send(partial, content, 0, PIECE)
    partial.group_commit()
    for page in (3, 1):
        send(partial, content, page * PAGE, page * PAGE + PIECE)
    assert partial.log.open_ranges[-1] == (PAGE, 3 * PAGE)  # one ahead
    place = "extent log commit: disk flushed"
    with held_at(place, monkeypatch) as hold, committing(partial, hold):
        send(partial, newer, 2 * PAGE, 2 * PAGE + PIECE)
    assert partial.log.open_ranges == [(PAGE, SIZE)]
    shutil.copytree(tmp_path / "live", tmp_path / "killed")
    partial.close()
    again = PartialDisk.open(tmp_path / "killed", spec_of(SIZE))
    assert again.baseline.leaves(2)[0] == digesting.leaves(newer[2 * PAGE : 2 * PAGE + PIECE])[0]
    again.close()


def test_reading_back_goes_on_beside_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(7, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send(partial, content, 0, PAGE)
    partial.group_commit()
    send(partial, content, PAGE, 2 * PAGE)
    for place in (".vhdx", ".extents"):
        with held_at(place, monkeypatch) as hold, committing(partial, hold):
            send(partial, content, 2 * PAGE, 2 * PAGE + MiB)
            assert partial.read_back() == []
        assert partial.read_back() == []
    partial.close()


@pytest.mark.parametrize("place", [".vhdx", ".extents"])
def test_a_sync_that_fails_beside_receiving_ends_the_disk_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    content = noise(8, SIZE, 1.0)
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    send(partial, content, 0, MiB)
    with monkeypatch.context() as patch:
        patch.setattr(File, "sync", failing(place, DiskIO("disk", "sync", 0, 0, "test")))
        with pytest.raises(DiskIO, match="test"):
            partial.group_commit()
    for call in (
        lambda: send(partial, content, MiB, 2 * MiB),
        partial.take,
        partial.group_commit,
        partial.seal,
    ):
        with pytest.raises(DiskIO, match="unusable"):
            call()
    partial.close()
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    send_changes(again, content)
    assert partials.content_of(again.seal().partial_path) == content


def failing(suffix: str, error: Exception):
    plain = File.sync

    def sync(self: File) -> None:
        if self.path.name.endswith(suffix):
            raise error
        plain(self)

    return sync


# --- the station -------------------------------------------------------------------------------


class Station:
    """A target proxy in a thread and the source's end of its link."""

    def __init__(self, folder: Path, check_lease=None) -> None:
        ours, theirs = socket.socketpair()
        self.link, self.far = Link(ours, "target mover"), Link(theirs, "source mover")
        self.partial = PartialDisk.open(folder, spec_of(SIZE))
        self.proxy = TargetProxy(
            "task", "vm1", self.partial, SIZE, self.far, None, check_lease=check_lease
        )
        self.pool = ThreadPoolExecutor(1)
        self.run = self.pool.submit(self.proxy.run)
        self.link.send(Attach("task"))

    def send(self, content: bytearray, start: int, stop: int) -> None:
        data = content[start:stop]
        leaves = digesting.leaves(data)
        table = rows((start, stop - start, KIND_DATA))
        self.link.send(Batch(1, len(leaves), len(data)), table, leaves, data)

    def close(self) -> None:
        self.link.shutdown()
        self.pool.shutdown(wait=True)
        self.link.close()
        self.far.close()
        self.partial.close()


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit is due with every batch."""
    monkeypatch.setattr("standby.road.group_commits.COMMIT_BYTES", 1)


@pytest.mark.usefixtures("every_batch")
def test_the_station_receives_beside_a_commit_and_acknowledges_what_it_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(9, SIZE, 1.0)
    station = Station(tmp_path)
    received = threading.Event()
    plain = PartialDisk.should_commit

    def should_commit(self: PartialDisk) -> bool:
        if station.proxy.counters.written >= 2 * MiB:
            received.set()
        return plain(self)

    monkeypatch.setattr(PartialDisk, "should_commit", should_commit)
    with held_at("extent log commit: disk flushed", monkeypatch) as hold:
        station.send(content, 0, MiB)
        assert hold.is_there.wait(WAIT_S)
        station.send(content, MiB, 2 * MiB)
        assert received.wait(WAIT_S)  # written while the first commit is held
        assert station.partial.acknowledged_bytes == 0
        hold.go.set()
        station.link.send(Finish())
        answers = [station.link.receive()[0] for _ in range(4)]
    assert answers[:2] == [Acknowledged(MiB), Acknowledged(2 * MiB)]
    assert answers[3] == Finished(2 * MiB, 0)
    assert station.run.result(WAIT_S).written == 2 * MiB
    station.close()


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize("place", [".vhdx", ".extents"])
def test_a_sync_that_fails_in_the_committer_fails_the_task_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    content = noise(10, SIZE, 1.0)
    station = Station(tmp_path)
    station.send(content, 0, PIECE)
    assert station.link.receive()[0] == Acknowledged(PIECE)  # windows are open from here on
    monkeypatch.setattr(File, "sync", failing(place, DiskFull("disk", 5, 0)))
    station.send(content, PIECE, 2 * PIECE)
    station.send(content, 2 * PIECE, 3 * PIECE)
    failed = station.link.receive()[0]
    assert isinstance(failed, Failed)
    assert isinstance(error_from_wire(failed.error), DiskFull)
    with pytest.raises(DiskFull):
        station.run.result(WAIT_S)
    monkeypatch.undo()
    station.close()
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    assert send_changes(again, content)[0] >= PIECE  # the first piece was acknowledged
    again.close()


@pytest.mark.usefixtures("every_batch")
def test_a_fenced_writer_commits_nothing_more(tmp_path: Path) -> None:
    checks: list[int] = []

    def check_lease() -> None:
        checks.append(1)
        if len(checks) == 2:
            raise Fenced("vm1", 1, 2)

    content = noise(11, SIZE, 1.0)
    station = Station(tmp_path, check_lease)
    station.send(content, 0, PIECE)
    station.send(content, PIECE, 2 * PIECE)
    with pytest.raises(Fenced):
        station.run.result(WAIT_S)
    assert station.partial.acknowledged_bytes == PIECE
    station.close()
