"""`standby host …` against a simulated host, by way of standby.toml, HTTPS and basic."""

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
from hyperv.world.account import Share
from hyperv.wsman import WsmanServer
from standby.units import MiB

TOML = """
[standby]
installation = "main"

[hosts.prod]
kind = "hyperv"
address = "127.0.0.1:{port}"
ca = "authority.pem"
credentials = {{ transport = "basic", username = "backup", password = "env:HV_PASSWORD" }}

[hosts.dr]
kind = "folder"
path = "."

[repositories.main]
path = "repository"

[proxies.here]
paths = {{ prod = {{ 'C:\\Hyper-V' = "{storage}" }} }}

[jobs.nightly]
source = "prod"
machines = ["*"]
target = "dr"
repository = "main"
"""


class Site:
    """A configuration with one simulated host of one VM."""

    def __init__(self, folder: Path) -> None:
        self.world = World(HeldClock(datetime.now(UTC)), folder / "world")
        self.node = self.world.add_host("hv1")
        self.world.add_machine("web", "hv1", [16 * MiB])
        self.node.shares = [Share("vms", "C:\\Hyper-V", {"EXAMPLE\\backup": "Read"})]
        self.host = SimulatedHost(self.world, "hv1")
        tls = Authority(folder, "authority").issue("hv1")
        self.server = WsmanServer(self.host._execute, {"backup": PASSWORD}, tls)
        self.config = folder / "standby.toml"
        storage = self.world.root / "hv1"
        self.config.write_text(TOML.format(port=self.server.port, storage=storage))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("HV_PASSWORD", PASSWORD)
    made = Site(tmp_path)
    with made.host, made.server:
        yield made


def test_a_sound_host(run, site: Site) -> None:
    done = run("host", "check", "prod", "--config", site.config)
    lines = done.out.splitlines()
    assert all(line.startswith("127.0.0.1 ") for line in lines)
    assert "127.0.0.1 clock: as this machine's" in lines
    assert f"127.0.0.1 proxy here: sees C:\\Hyper-V\\web as {site.world.root}/hv1/web" in lines
    assert lines[-1] == "127.0.0.1 shares: vms shows C:\\Hyper-V to EXAMPLE\\backup"


def test_warnings_and_errors_have_their_exit_codes_and_remedies(run, site: Site) -> None:
    site.node.skew_s = 60
    done = run("host", "check", "prod", "--config", site.config, expect=3)
    assert ". Do: take the time from one source: w32tm /resync on the host, NTP here" in done.out
    site.node.groups = []
    done = run("host", "check", "prod", "--config", site.config, "--json", expect=10)
    told = json.loads(done.out)
    assert told["host"] == "prod"
    (node,) = told["nodes"]
    assert node["address"] == "127.0.0.1"
    (rights,) = [item for item in node["findings"] if item["what"] == "rights"]
    assert rights["level"] == "error"
    assert "Add-LocalGroupMember" in rights["remedy"]


def test_a_host_that_refuses_the_secret(run, site: Site) -> None:
    site.server.users["backup"] = "another"
    done = run("host", "check", "prod", "--config", site.config, expect=10)
    assert "ERROR: backup is refused over basic" in done.out
    assert PASSWORD not in done.out + done.err


def test_names_that_are_no_hyperv_hosts(run, site: Site) -> None:
    done = run("host", "check", "dr", "--config", site.config, expect=10)
    assert "is a folder host" in done.err
    done = run("host", "check", "prodd", "--config", site.config, expect=10)
    assert "Did you mean prod?" in done.err


def test_the_language_of_a_host(run, site: Site) -> None:
    done = run("host", "selftest", "prod", "--language", "--config", site.config)
    assert done.out.startswith("127.0.0.1: 0 of ")
    done = run("host", "selftest", "prod", "--language", "--config", site.config, "--json")
    assert json.loads(done.out)["differences"] == []


def test_the_walk_of_a_host(run, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("standby.clock.SYSTEM_CLOCK", site.world.clock)
    walk = (
        "host",
        "selftest",
        "prod",
        "--folder",
        "C:\\Hyper-V\\Selftest",
        "--config",
        site.config,
    )
    done = run(*walk, "--json", expect=3)  # no guest writes in this world
    told = json.loads(done.out)
    assert told["host"] == "prod"
    marks = {
        step["name"]: {item["mark"] for item in step["findings"]} - {"told"}
        for step in told["steps"]
    }
    assert marks["replica"] == {"ok"}
    assert "differs" in marks["boot"]
    assert "snapshot …" in done.err
    assert {line["mark"] for line in told["assumed"] if line["step"] == "door"} == {"ok"}
    assert not list((site.world.root / "hv1" / "Selftest").iterdir())


def test_a_self_test_says_what_to_try(run, site: Site) -> None:
    done = run("host", "selftest", "prod", "--config", site.config, expect=2)
    assert "--language" in done.err
