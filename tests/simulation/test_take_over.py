"""Two writers of one replica, whole sessions of real processes: one hangs, the other goes on.

RULES 2 and 3: SIGSTOP the target mover, take over from another process, commit, SIGCONT, and every
point still reads right; a failover does not wait for a session that runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulation.site import Site, content_digest
from standby.model.replica import ReplicaState
from standby.server.replicas import Replicas

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is of POSIX")


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "site")
    made.add_machine()
    made.fill()
    assert made.run().outcome == "done"
    made.change()
    return made


class Hung:
    """A session as a process of its own whose target mover is stopped at a kill point."""

    def __init__(self, site: Site, point: str) -> None:
        environment = {"STANDBY_STOP_POINT": point, "STANDBY_KILL_PROCESS": "target mover"}
        command = [sys.executable, "-m", "standby", "job", "start", "job", "--json"]
        self.process = subprocess.Popen(
            [*command, "--config", str(site.config)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.mover = self._stopped_child()

    def _stopped_child(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            for child in children(self.process.pid):
                if state_of(child) == "T":
                    return child
            time.sleep(0.02)
        raise AssertionError("the target mover did not stop")

    def wake(self) -> dict:
        """Let the mover go on; the report of the session when it has ended."""
        os.kill(self.mover, signal.SIGCONT)
        output, errors = self.process.communicate(timeout=60)
        return json.loads(output) if output else {"error": errors}

    def end(self) -> None:
        for pid in (self.mover, self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    threads = Path(f"/proc/{pid}/task")
    for thread in threads.iterdir():
        text += " " + (thread / "children").read_text()
    return [int(number) for number in text.split()]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.fixture
def hang(site):
    """`hang(point)` starts a session that hangs there."""
    hung = []

    def started(point):
        hung.append(Hung(site, point))
        return hung[-1]

    yield started
    for item in hung:
        item.end()


@pytest.mark.parametrize("point", ["extent log commit: disk flushed", "file renamed"])
def test_a_session_whose_target_hangs_is_taken_over_and_harms_nothing(site, hang, point):
    hung = hang(point)
    again = site.start()
    assert again.returncode == 16  # the job's session is running
    taken = site.command("job", "start", "job", "--take-over", "--json")
    assert taken.returncode in (0, 3), taken.stderr
    (machine,) = json.loads(taken.stdout)["machines"]
    assert machine["outcome"] == "done"
    site.remember_point("vm1_replica", machine["point"], "vm1")
    assert site.check_points() == 2

    report = hung.wake()
    (machine,) = report["machines"]
    assert machine["outcome"] == "interrupted", machine
    assert "fenced" in machine["error"]
    assert hung.process.returncode == 16
    assert site.check_points() == 2
    site.change()
    done = site.start()
    assert done.returncode in (0, 3), done.stderr
    assert site.check_points() == 3
    site.check_nothing_leaked()


def test_a_failover_does_not_wait_for_a_session_that_runs(site, hang):
    hung = hang("extent log commit")
    done = site.command("replica", "failover", "vm1_replica", "--yes", "--json")
    assert done.returncode == 3, done.stderr  # with a warning: a session was cut off
    newest = site.replica().newest().id
    assert json.loads(done.stdout)["point"]["id"] == newest
    (machine,) = hung.wake()["machines"]
    assert machine["outcome"] == "interrupted"
    assert "fenced" in machine["error"]
    folder = site.replica()
    assert folder.record().state is ReplicaState.FAILOVER
    assert len(folder.points()) == 1
    assert list(folder.path.glob("*/*.partial.vhdx"))  # kept for resume or undo
    Replicas.of_folder(site.folder / "target").undo_failover("vm1_replica")
    done = site.start()
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["machines"][0]["disks"][0]["mode"] == "resume"
    assert site.check_points() == 2
    site.check_nothing_leaked()


def test_a_failover_needs_nothing_but_the_target_folder(site):
    assert site.run().outcome == "done"
    points = [point.id for point in site.replica().points()]
    elsewhere = site.folder.parent / "survivor"
    shutil.move(site.folder / "target", elsewhere)
    shutil.rmtree(site.folder)  # source, repository, database, configuration: all gone
    command = [sys.executable, "-m", "standby", "replica"]
    command += ["failover", "vm1_replica", "--target", str(elsewhere), "--point", points[0]]
    done = subprocess.run(
        [*command, "--yes", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["point"]["id"] == points[0]
    ready = elsewhere / "vm1_replica" / "disk0" / "ready.vhdx"
    folder = Replicas.of_folder(elsewhere).folder("vm1_replica")
    chain = folder.chain_paths(folder.point(points[0]), "disk0")
    wanted = site.points[f"vm1_replica/{points[0]}"]["scsi:0:0"]
    assert content_digest(ready, chain) == wanted
