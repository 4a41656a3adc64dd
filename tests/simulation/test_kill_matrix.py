"""kill -9 of every process at every kill point: the next start converges (RULES, last section)."""

from __future__ import annotations

import pytest

from simulation.site import Site

SERVER, SOURCE, TARGET = "server", "source mover", "target mover"

SESSION_POINTS = [
    (SERVER, "checkpoint intent"),
    (SERVER, "checkpoint made"),
    (SERVER, "child created"),
    (SERVER, "child created:2"),
    (SERVER, "released"),
    (SERVER, "repository commit"),
    (SERVER, "older tracker ids given up"),
    (SOURCE, "last extent"),
    (SOURCE, "last extent:2"),
    (TARGET, "extent log commit: disk flushed"),
    (TARGET, "extent log commit"),
    (TARGET, "extent log commit:2"),
    (TARGET, "verified"),
    (TARGET, "verified:2"),
    (TARGET, "file renamed"),
    (TARGET, "file renamed:2"),
    (TARGET, "file renamed:3"),
    (TARGET, "pending written"),
    (TARGET, "all files renamed"),
    (TARGET, "ready layers prepared"),
    (TARGET, "point renamed"),
    (TARGET, "ready layer renewed"),
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


def site(tmp_path, restore_points=7):
    made = Site(tmp_path / "site", restore_points)
    made.add_machine()
    made.fill()
    return made


def killed_then_converges(made, process, point):
    killed = made.start(STANDBY_KILL_POINT=point, STANDBY_KILL_PROCESS=process)
    assert killed.returncode not in (0, 2), f"was not killed: {killed.stdout}{killed.stderr}"
    again = made.start()
    assert again.returncode in (0, 3), again.stderr + again.stdout


@pytest.mark.parametrize(("process", "point"), SESSION_POINTS)
def test_a_first_session_killed_anywhere_converges(tmp_path, process, point):
    made = site(tmp_path)
    killed_then_converges(made, process, point)
    assert made.check_points() in (1, 2)
    made.check_nothing_leaked()


@pytest.mark.parametrize(("process", "point"), SESSION_POINTS)
def test_an_incremental_session_killed_anywhere_converges(tmp_path, process, point):
    made = site(tmp_path)
    assert made.start().returncode == 0
    made.change()
    killed_then_converges(made, process, point)
    assert made.check_points() in (2, 3)
    made.check_nothing_leaked()


@pytest.mark.parametrize("point", MERGE_POINTS)
def test_retention_killed_at_any_step_converges(tmp_path, point):
    made = site(tmp_path, restore_points=2)
    for _ in range(2):
        assert made.start().returncode == 0
        made.change()
    killed = made.start(STANDBY_KILL_POINT=point, STANDBY_KILL_PROCESS=TARGET)
    assert killed.returncode in (0, 3, 16), killed.stderr
    made.change()
    again = made.start()
    assert again.returncode in (0, 3), again.stderr
    assert made.check_points() == 2
    made.check_nothing_leaked()
