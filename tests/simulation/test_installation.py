"""Real movers, real TLS, real kills: the server, a proxy and the target die in mid-transfer."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from cli.processes import state_of, wait_until
from simulation.installed import Installation
from standby.units import MiB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals")

DATA = 40 * MiB
MIDST = "extent log commit:2"
"""8 MiB have arrived."""


class Committing(Installation):
    """What arrived is acknowledged by 4 MiB."""

    tuned: ClassVar[Mapping[str, Any]] = {"standby.road.group_commits.COMMIT_BYTES": 4 * MiB}


@pytest.fixture
def installation(tmp_path):
    made = Committing(tmp_path / "site")
    made.add_machine(sizes=(64 * MiB,))
    made.write(0, DATA)
    yield made
    made.close()


@contextmanager
def begun(installation):
    """A session under way."""
    arguments = ("job", "start", "job", "--json", "--config", installation.config)
    process = installation.nursery.piped(arguments)
    try:
        yield process
    finally:
        process.close()


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, 3), out + err
    (machine,) = json.loads(out)["machines"]
    assert machine["outcome"] == "done", machine
    return machine


def test_a_job_over_tls(installation):
    report = installation.start()
    assert report.returncode == 0, report.stdout + report.stderr
    installation.write(4096, 300 * 1024)
    installation.write(50 * MiB, MiB)
    report = installation.start()
    assert report.returncode == 0, report.stdout + report.stderr
    (disk,) = json.loads(report.stdout)["machines"][0]["disks"]
    assert disk["mode"] == "incremental"
    assert disk["sent"] < 2 * MiB
    assert installation.check_points() == 2
    verified = installation.command("replica", "verify", "vm1_replica", "--json")
    assert json.loads(verified.stdout)["is_ok"], verified.stderr
    installation.check_nothing_leaked()


def test_a_killed_server_joins_what_its_movers_finished_or_still_do(installation):
    died = installation.start(STANDBY_KILL_POINT="disk under way")
    assert died.returncode == -9
    report = installation.start()
    assert report.returncode in (0, 3), report.stdout + report.stderr
    (machine,) = json.loads(report.stdout)["machines"]
    assert "went on with what another process began" in machine["warnings"]
    (disk,) = machine["disks"]
    assert (disk["mode"], disk["retries"], disk["written"]) == ("full", 0, DATA)
    begun = [
        name
        for name in ("src", "px")
        for line in installation.log(name).splitlines()
        if "task begun" in line and "send_disk" in line
    ]
    assert len(begun) == 1
    assert installation.check_points() == 1
    installation.check_nothing_leaked()


def test_a_killed_proxy_gives_its_disk_to_the_other(installation):
    installation.states.append(installation.content("vm1"))
    installation.stop_mover("dr")
    installation.start_movers("dr", STANDBY_STOP_POINT=MIDST)
    target = installation.processes["dr"]
    with begun(installation) as process:
        wait_until(lambda: state_of(target.pid) in ("T", "t"), "some data arrived")
        sender = next(name for name in ("src", "px") if "send_disk" in installation.log(name))
        assert sender == "px"
        installation.kill_mover("px")
        target.send_signal(signal.SIGCONT)
        machine = finished(process)
    (disk,) = machine["disks"]
    assert (disk["proxy"], disk["retries"]) == ("src", 1)
    assert installation.check_points() == 1
    installation.start_movers("px")
    installation.check_nothing_leaked()


def test_a_killed_target_goes_on_where_it_was_when_it_is_back(installation):
    installation.states.append(installation.content("vm1"))
    installation.stop_mover("dr")
    installation.start_movers("dr", STANDBY_KILL_POINT=MIDST)
    with begun(installation) as process:
        assert installation.processes["dr"].wait() == -signal.SIGKILL
        installation.start_movers("dr")
        machine = finished(process)
    assert any("went on after" in text for text in machine["warnings"])
    assert installation.check_points() == 1
    installation.check_nothing_leaked()
