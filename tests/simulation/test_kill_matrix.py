"""kill -9 of every process at every kill point: the next start converges (RULES, last section).

The session that is killed runs as the command line with mover processes of its own; what comes
before and after runs in this process, which is quicker.
"""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest

import standby
from simulation.site import Site
from standby.digesting import PIECE, ZERO_LEAF
from standby.road.extent_log import ExtentLog
from standby.road.pages import zero_page

SERVER, SOURCE, TARGET = "server", "source mover", "target mover"

BEFORE_THE_LAST_BYTE = [
    (SERVER, "checkpoint intent"),
    (SERVER, "checkpoint made"),
    (SERVER, "child created"),
    (SERVER, "child created:2"),
    (SOURCE, "last extent"),
    (TARGET, "extent log commit: disk flushed"),
    (TARGET, "extent log commit"),
    (TARGET, "extent log commit:2"),
    (TARGET, "verified"),
    (TARGET, "digests written"),
]
"""At the last three one of the two disks may not even have begun to travel: nothing orders them,
and a commit is due after 5 s too."""

EVERYTHING_ACKNOWLEDGED = [
    (SOURCE, "last extent:2"),
    (TARGET, "verified:2"),
    (TARGET, "digests written:2"),
    (SERVER, "released"),
    (TARGET, "pending written"),
    (TARGET, "lease checked"),
    (TARGET, "file renamed"),
    (TARGET, "file renamed:3"),
    (TARGET, "all files renamed"),
    (TARGET, "point renamed"),
    (SERVER, "repository commit"),
    (SERVER, "older tracker ids given up"),
    (TARGET, "ready layers prepared"),
    (TARGET, "ready layers announced"),
    (TARGET, "ready layer renamed"),
    (TARGET, "ready layer renewed"),
]
"""From here on nothing may travel a second time."""

SESSION_POINTS = BEFORE_THE_LAST_BYTE + EVERYTHING_ACKNOWLEDGED

FIRST_SESSION_POINTS = [
    (SERVER, "child created"),
    (TARGET, "extent log commit"),
    (TARGET, "verified:2"),
    (SERVER, "released"),
    (TARGET, "file renamed:2"),
    (TARGET, "point renamed"),
    (SERVER, "repository commit"),
    (TARGET, "ready layer renamed"),
]

MERGE_POINTS = [
    "merge: intent",
    "merge: record removed",
    "merge: payload",
    "merge: base closed",
    "merge: locator",
    "merge: base guid",
    "merge: linkage2 cleared",
    "merge: record rewritten",
    "merge: child removed",
]

SEED_POINTS = ["seed announced", "seed announced:2", "child created", "extent log commit"]
MAP_POINTS = ["disk moved in", "disk moved in:2", "file renamed", "point renamed", "verified"]

ELSEWHERE = {
    "failover prepared",
    "state files put",
    "file taken back",
    "disk under way",
    "generation raised",
    "seed kept",
    "seed kept aside",
    "merge: slice copied",
    "merge: slice given up",
    "disk merge: child accepts both",
    "disk merge: content copied",
    "disk merge: identity passed on",
    "cache: appended",
    "cache: footer written",
    "cache: removing",
    "record restored",
}
"""No part of a session as it is run here: the tests of failing over, leases, merges and the global
cache kill there (test_commit_kill_points, test_merge_kill_points, test_failing_over,
test_session_faults, test_wan_cache_kills, test_record_copies, tests of `disk merge`), or where
several machines take part (test_installation)."""


def test_every_kill_point_is_in_the_matrix():
    named = set()
    for path in Path(standby.__file__).parent.rglob("*.py"):
        named |= set(re.findall(r'killpoints\.reach\("([^"]+)"\)', path.read_text("utf-8")))
    known = {point for _, point in SESSION_POINTS} | {*MERGE_POINTS, *SEED_POINTS, *MAP_POINTS}
    known = {re.sub(r":[0-9]+$", "", point) for point in known}
    assert known | ELSEWHERE >= named
    assert named >= known


def site(tmp_path, restore_points=7):
    made = Site(tmp_path / "site", restore_points)
    made.add_machine()
    made.fill()
    return made


class Kept:
    """A site after some sessions, as every test gets it: the same files at the same place."""

    def __init__(self, folder, sessions, **options):
        self.site = site(folder, **options)
        for _ in range(sessions):
            self.site.run()
            self.site.change()
        self.folder = folder / "kept"
        self.site.folder.rename(self.folder)

    def fresh(self):
        """The site, of which no other test knows."""
        made = copy.copy(self.site)
        made.points, made.states = copy.deepcopy((made.points, made.states))
        made.random = copy.deepcopy(made.random)
        made._digests = {}
        shutil.rmtree(made.folder, ignore_errors=True)
        shutil.copytree(self.folder, made.folder, symlinks=True)
        return made


@pytest.fixture(scope="module")
def after_a_session(module_path):
    return Kept(module_path / "one", 1)


@pytest.fixture(scope="module")
def after_two_sessions(module_path):
    return Kept(module_path / "two", 2, restore_points=2)


def killed(made, process, point):
    done = made.start(STANDBY_KILL_POINT=point, STANDBY_KILL_PROCESS=process)
    assert done.returncode not in (0, 2), f"was not killed: {done.stdout}{done.stderr}"


CHANGED = {"disk0": 5 * PIECE + 300 * 1024, "disk1": PIECE}
"""Bytes of data that `Site.change` is seen as, by whole pieces."""


def not_acknowledged(made):
    """Bytes of the change that no extent log has and no point, by disk: what may travel again."""
    folder = made.replica()
    if len(folder.points()) > 1:
        return dict.fromkeys(CHANGED, 0)
    left = dict(CHANGED)
    for path in folder.path.glob("*/*.extents"):
        log = ExtentLog.open(path, writable=False)
        for page in log.pages().tolist():
            leaves = zero_page()
            log.overlay(page, leaves)
            left[path.parent.name] -= int((leaves != ZERO_LEAF).sum()) * PIECE
        log.close()
    return left


def converges(made):
    """The next session ends well; the bytes it wrote, by disk."""
    made.states.append(made.content("vm1"))
    report = made.run()
    (machine,) = report.machines
    assert machine.outcome == "done", machine.error
    return {disk.disk_id: disk.written for disk in machine.disks}


@pytest.mark.parametrize(("process", "point"), FIRST_SESSION_POINTS)
def test_a_first_session_killed_anywhere_converges(tmp_path, process, point):
    made = site(tmp_path)
    killed(made, process, point)
    converges(made)
    assert made.check_points() in (1, 2)
    made.check_nothing_leaked()


@pytest.mark.parametrize(("process", "point"), SESSION_POINTS)
def test_an_incremental_session_killed_anywhere_converges(after_a_session, process, point):
    made = after_a_session.fresh()
    killed(made, process, point)
    left = not_acknowledged(made)
    assert min(left.values()) >= 0
    written = converges(made)
    assert all(written[disk] <= left[disk] for disk in CHANGED), (written, left)
    if (process, point) in EVERYTHING_ACKNOWLEDGED:
        assert set(written.values()) == {0}
    assert made.check_points() in (2, 3)
    made.check_nothing_leaked()


@pytest.mark.parametrize("point", MERGE_POINTS)
def test_retention_killed_at_any_step_converges(after_two_sessions, point):
    made = after_two_sessions.fresh()
    done = made.start(STANDBY_KILL_POINT=point, STANDBY_KILL_PROCESS=TARGET)
    # The point was committed before: the session is done, with a warning.
    assert done.returncode == 3, done.stdout + done.stderr
    assert "died" in done.stdout
    made.change()
    converges(made)
    assert made.check_points() == 2
    made.check_nothing_leaked()


def with_table(tmp_path, table):
    made = site(tmp_path)
    made.config.write_text(made.config.read_text() + f"[jobs.job.{table}]\n")
    return made


@pytest.mark.parametrize("point", SEED_POINTS)
def test_a_seeded_session_killed_anywhere_converges(tmp_path, point):
    made = with_table(tmp_path, "seed]\nvm1 = true\n#")
    replica = made.folder / "target" / "vm1_replica"
    replica.mkdir()
    for number in (0, 1):
        shutil.copy(made.disk(number), replica / f"disk{number}.vhdx")
    made.change()
    killed(made, SERVER if point == "child created" else TARGET, point)
    # What the seed holds is never sent.
    assert sum(converges(made).values()) <= 6 * 4096 + 300 * 1024
    assert made.check_points() == 1
    made.check_nothing_leaked()


@pytest.mark.parametrize("point", MAP_POINTS)
def test_a_mapped_session_killed_anywhere_converges(tmp_path, point):
    made = with_table(tmp_path, 'map]\nvm1 = "old"\n#')
    shutil.copytree(made.folder / "source" / "vm1", made.folder / "target" / "old")
    made.states.append(made.content("vm1"))
    made.change()
    killed(made, TARGET, point)
    assert sum(converges(made).values()) <= 6 * 4096 + 300 * 1024
    assert made.check_points() == 2
    made.check_nothing_leaked()
