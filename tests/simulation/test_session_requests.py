"""Pause, resume, stop and retry of a running session whose movers are services: asked for by the
command line and by the API, in mid-transfer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

import standby.cli
from cli.processes import wait_until
from net.nursery import Piped
from simulation.served import Served, check_done, finish
from standby.model.session import SessionState, TaskState
from standby.road.lease import is_processing
from standby.units import MiB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="service movers run on Linux")

DATA = 14 * MiB
SLOW = """\
[traffic.slow]
from = ["127.0.0.0/8"]
to = ["127.0.0.0/8"]
limit = "24 Mbit/s"
"""
WAYS = ("cli", "api")
"""How each session is asked, one after the other, each time when more has arrived."""


class Slow(Served):
    """Transfers that last long enough to be asked something in their midst."""

    tuned: ClassVar[Mapping[str, Any]] = {
        "standby.road.source_proxy.BATCH_SIZE": MiB,
        "standby.server.journey.FIGURES_EVERY_S": 0.2,
    }

    def arrived(self) -> int:
        """Bytes of vm1's unfinished disk at the target."""
        folder = self.replica().path
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("*.partial.vhdx"))

    def until_under_way(self) -> None:
        """More of vm1 has arrived than now, a seventh, and the server knows."""
        arrived, told = self.arrived(), self.told()
        wait_until(lambda: self.arrived() >= arrived + 2 * MiB, "some of vm1 arrived")
        wait_until(lambda: self.told() not in (0, told), "the server says so")

    def told(self) -> int:
        """Bytes of vm1 sent, as the session's report says now."""
        with self.store() as store:
            machines = [item for report in store.sessions("job") for item in report.machines]
        return sum(disk.sent for item in machines if item.machine == "vm1" for disk in item.disks)

    def until_left_alone(self) -> None:
        """No mover is the writer of vm1's replica, and none sends."""
        wait_until(lambda: not is_processing(self.replica()), "the replica of vm1 is closed")

    def tasks(self, session: str) -> dict[str, TaskState]:
        with self.store() as store:
            return {task.machine: task.state for task in store.queue.tasks(session)}

    def ask(self, way: str, *arguments: str) -> str:
        """A command here, or by the API of the server; what it printed."""
        more = ("--config", str(self.config)) if way == "cli" else ("--server", self.url)
        environment = {"STANDBY_TOKEN": self.token}
        done = CliRunner().invoke(standby.cli.cli, [*arguments, *more], env=environment)
        assert done.exit_code in (0, 3), done.output
        return done.output

    @property
    def url(self) -> str:
        return self.api if "://" in self.api else f"http://{self.api}"

    @contextmanager
    def running(self) -> Iterator[Piped]:
        made = self.command("token", "add", "test", "--role", "operator", "--json")
        assert made.returncode == 0, made.stderr
        self.token = json.loads(made.stdout)["token"]
        with self.server() as process:
            yield process


@pytest.fixture
def site(tmp_path) -> Iterator[Slow]:
    made = Slow(tmp_path / "site", more=SLOW)
    made.add_machine(sizes=(16 * MiB,))
    made.write(0, DATA)
    yield made
    made.close()


def test_a_session_that_is_paused_while_it_sends_goes_on_where_it_was(site: Slow) -> None:
    with site.running() as process:
        session = site.queue()
        for way in WAYS:
            site.until_under_way()
            assert "asked: pause" in site.ask(way, "job", "pause", "job")
            site.wait_for(session, SessionState.PAUSED)
            site.until_left_alone()
            arrived = site.arrived()
            assert site.replica().points() == ()
            assert site.tasks(session) == {"vm1": TaskState.QUEUED}
            assert "asked: resume" in site.ask(way, "job", "resume", "job")
        machine = check_done(*site.ended(session))
        finish(process)
    (disk,) = machine.disks
    assert disk.written < DATA - arrived + 2 * MiB
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_a_session_that_is_stopped_while_it_sends_is_tried_again_when_asked(site: Slow) -> None:
    with site.running() as process:
        session = site.queue()
        for way in WAYS:
            site.until_under_way()
            site.ask(way, "job", "stop", "job")
            run, report = site.ended(session)
            assert run.state is SessionState.STOPPED
            (machine,) = report.machines
            assert machine.outcome == "interrupted"
            assert 0 < machine.disks[0].sent < DATA
            assert 0 < machine.disks[0].read <= machine.disks[0].virtual_size
            site.until_left_alone()
            arrived = site.arrived()
            assert "asked: retry" in site.ask(way, "job", "retry", "job")
            site.wait_for(session, SessionState.QUEUED, SessionState.RUNNING)
        machine = check_done(*site.ended(session))
        finish(process)
    (disk,) = machine.disks
    assert disk.written < DATA - arrived + 2 * MiB
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_one_vm_of_a_session_is_paused_and_the_other_goes_on(site: Slow) -> None:
    site.add_machine("vm2", sizes=(8 * MiB,))
    site.write(0, 4 * MiB, machine="vm2")
    with site.running() as process:
        session = site.queue()
        for way in WAYS:
            site.until_under_way()
            site.ask(way, "job", "pause", "job", "--machine", "vm1")
            site.wait_for(session, SessionState.PAUSED)
            assert site.tasks(session) == {"vm1": TaskState.QUEUED, "vm2": TaskState.DONE}
            replicas = [site.replica(f"{name}_replica") for name in ("vm1", "vm2")]
            assert [len(replica.points()) for replica in replicas] == [0, 1]
            site.until_left_alone()
            site.ask(way, "job", "resume", "job", "--machine", "vm1")
            site.wait_for(session, SessionState.QUEUED, SessionState.RUNNING)
        run, _ = site.ended(session)
        assert run.state in (SessionState.DONE, SessionState.WARNINGS)
        finish(process)
    assert site.tasks(session) == {"vm1": TaskState.DONE, "vm2": TaskState.DONE}
    assert site.check_points() == 1
    site.check_nothing_leaked()
