"""One VM with replicas at two targets: both have one name, and are told apart by their host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Run, small_site
from simulation.several import ROLES, SeveralSite
from simulation.site import Site
from standby.errors import ConfigurationError
from standby.units import MiB

SECOND = """\
[hosts.second]
kind = "folder"
path = "{path}"
{mover}
[jobs.other]
source = "source"
target = "second"
machines = ["*"]
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    found = small_site(tmp_path / "site")
    with found.config.open("a") as file:
        file.write(SECOND.format(path="second", mover=""))
    with found.server() as server:
        for job in ("job", "other"):
            assert server.start(job).outcome == "done"
    return found


def test_every_verb_takes_host_and_name(run: Run, site: Site) -> None:
    given = ("--config", site.config)
    lines = run("replica", "list", *given).out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["replica", "target"],
        ["vm1_replica", "second"],
        ["vm1_replica", "target"],
    ]
    for name in ("vm1_replica", "vm1"):
        refused = run("replica", "show", name, *given, expect=10).err
        assert "second:vm1_replica or target:vm1_replica" in refused
    shown = run("replica", "show", "second:vm1_replica", *given).out
    assert f"in {site.folder}/second/vm1_replica" in shown
    assert "standby replica failover second:vm1_replica" in shown
    run("replica", "verify", "second:vm1_replica", *given)
    ended = run("replica", "failover", "second:vm1_replica", "--yes", *given)
    assert "power on second:vm1_replica" in ended.out
    states = {
        item["target"]: item["state"]
        for item in run("replica", "list", *given, "--json").json["replicas"]
    }
    assert states == {"target": "ready", "second": "failover"}
    run("replica", "undo-failover", "second:vm1", "--yes", *given)
    assert "target" not in run("replica", "list", "--target", site.folder / "second").out


def test_check_warns_of_one_name_at_two_targets(run: Run, site: Site) -> None:
    findings = run("check", "--config", site.config, "--json", expect=3).json["findings"]
    (finding,) = (item for item in findings if "suffix" in item["where"])
    assert finding["where"] == "[jobs.other] suffix"
    assert "both called vm1_replica" in finding["problem"]
    assert "target:vm1_replica or second:vm1_replica" in finding["hint"]


class TwoTargets(SeveralSite):
    """A second target host, at the mover dr2."""

    roles = ROLES | {"dr2": ("target", "host")}


@pytest.fixture
def away(tmp_path: Path) -> Iterator[TwoTargets]:
    made = TwoTargets(tmp_path / "site")
    made.add_machine(sizes=(4 * MiB,))
    with made.config.open("a") as file:
        path = made.folder / "target" / "second"
        path.mkdir()
        file.write(SECOND.format(path=path, mover='mover = "dr2"'))
    yield made
    made.close()


def test_at_movers_it_is_the_same(away: TwoTargets) -> None:
    with away.server() as server:
        for job in ("job", "other"):
            assert server.start(job).outcome == "done"
        with pytest.raises(ConfigurationError) as caught:
            server.replicas.show("vm1_replica")
        assert "second:vm1_replica or target:vm1_replica" in caught.value.hint
        assert {item.target for item in server.replicas.all()} == {"target", "second"}
        shown = server.replicas.show("second:vm1_replica")
        assert (shown.target, shown.identity.job) == ("second", "other")
        assert "standby replica failover second:vm1_replica" in shown.actions
        plan = server.replicas.plan("failover", "second:vm1_replica")
        assert plan.becomes == "failover"
        server.replicas.failover("second:vm1_replica")
        assert server.replicas.show("second:vm1").state == "failover"
        assert server.replicas.show("target:vm1").state == "ready"
        server.replicas.undo_failover("second:vm1")


def test_a_list_of_nothing_says_when_nobody_knows(run: Run, away: TwoTargets) -> None:
    from standby.cli.replica_texts import none_shown

    away.machines["dr2"].close()
    with away.server() as server:
        server.crews.fleet.mover("dr2").answers()
        assert none_shown(server.replicas.unreadable()) == "not known: second cannot be reached"
    assert none_shown({}) == "no replicas"
