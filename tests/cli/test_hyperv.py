"""A job from a Hyper-V host by the command line alone: check, plan, start, verify; as a user's
standby.toml has it, over HTTPS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clocks import HeldClock
from hyperv.certificates import Authority
from hyperv.installation import PASSWORD, SimulatedHost
from hyperv.world import World
from hyperv.wsman import WsmanServer
from standby.units import KiB, MiB

TOML = """\
[standby]
installation = "main-site"

[hosts.prod]
kind = "hyperv"
address = "127.0.0.1:{port}"
ca = "authority.pem"
credentials = {{ transport = "basic", username = "backup", password = "env:HV_PASSWORD" }}
checkpoints = {{ consistency = "application", fall_back = true, copy = true, min_free = "10 GiB" }}
audit_every = "30d"
max_tasks = 4

[hosts.dr]
kind = "folder"
path = "replicas"

# This machine reads the disks where the host's share is mounted.
[proxies.here]
side = "source"
paths = {{ prod = {{ 'C:\\Hyper-V' = "{storage}" }} }}

[repositories.main]
path = "repository"

[jobs.nightly]
source = "prod"
machines = ["web*"]
target = "dr"
repository = "main"
restore_points = 7
checkpoint_max_age = "12h"
checkpoint_max_growth = "64 GiB"
"""


class Site:
    """A configuration with one simulated host of one VM."""

    def __init__(self, folder: Path) -> None:
        self.world = World(HeldClock(datetime.now(UTC)), folder / "world")
        self.world.add_host("hv1")
        self.web = self.world.add_machine("web", "hv1", [16 * MiB])
        self.web.faults.seconds["merge"] = 0  # the command line's clock moves, the world's does not
        self.world.write(self.web, MiB, b"boot" * KiB)
        self.host = SimulatedHost(self.world, "hv1")
        tls = Authority(folder, "authority").issue("hv1")
        self.server = WsmanServer(self.host._execute, {"backup": PASSWORD}, tls)
        self.config = folder / "standby.toml"
        (folder / "replicas").mkdir()
        storage = self.world.root / "hv1"
        self.config.write_text(TOML.format(port=self.server.port, storage=storage))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("HV_PASSWORD", PASSWORD)
    made = Site(tmp_path)
    with made.host, made.server:
        yield made


@pytest.mark.usefixtures("with_thread_movers")
def test_check_plan_start_and_verify(run, site: Site) -> None:
    at = ("--config", site.config)
    run("check", *at)
    assert not site.server.shells.open
    done = run("job", "plan", "nightly", *at)
    assert "first restore point" in done.out
    assert not site.server.shells.open
    run("job", "start", "nightly", *at)
    site.world.clock.advance(3600)
    site.world.write(site.web, 4 * MiB, b"more" * KiB)
    done = run("job", "plan", "nightly", *at)
    assert "change tracker" in done.out
    report = json.loads(run("job", "start", "nightly", *at, "--json").out)
    (machine,) = report["machines"]
    assert (machine["outcome"], machine["warnings"], machine["alarms"]) == ("done", [], [])
    assert machine["disks"][0]["changed"] == 4 * KiB
    assert not site.server.shells.open
    run("replica", "verify", "web_replica", *at)
    run("infrastructure", "check", *at)
    shown = json.loads(run("infrastructure", "list", *at, "--json").out)
    assert {host["name"]: host["path"] for host in shown["hosts"]}["prod"] == "127.0.0.1"


def test_wrong_credentials_are_said_by_check_plan_and_session(run, site: Site) -> None:
    site.server.users["backup"] = "another"
    at = ("--config", site.config)
    done = run("check", *at, expect=10)
    assert "standby host check prod" in done.out + done.err
    done = run("job", "start", "nightly", *at, expect=None)
    assert done.code != 0
    assert "refused" in done.out + done.err
    assert PASSWORD not in done.out + done.err
