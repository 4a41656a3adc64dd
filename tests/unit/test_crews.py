"""What the resources hear of movers that are away, given up, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import wait_until
from simulation.several import SeveralSite
from standby.errors import LinkError, MoverDied, NoProxy
from standby.server.config import MoverConfig, load_config
from standby.server.crew import DiskTask
from standby.server.crews import Crews
from standby.server.fleet import Fleet
from standby.server.movers import child_movers
from standby.server.resources import TaskRequest
from standby.server.service_mover import Reconnect
from standby.wire.link import Link
from standby.wire.throttle import Throttle

AWAY = ("px1", "px2")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SeveralSite]:
    made = SeveralSite(tmp_path / "site")
    yield made
    made.close()


class Installation:
    """The crews of a site of which some movers are away at first."""

    def __init__(self, site: SeveralSite, reconnect: Reconnect) -> None:
        self.site = site
        self.is_away = True
        config = load_config(site.config)
        self.fleet = Fleet(config, reconnect=reconnect, make_link=self._link)
        self.crews = Crews(config, child_movers, self.fleet)
        self.resources = self.crews.resources

    def _link(self, mover: MoverConfig) -> Link:
        if self.is_away and mover.name in AWAY:
            raise LinkError(mover.name, "connection refused")
        return self.site.link(mover)

    def problems(self) -> dict[str, str]:
        """Of the proxies."""
        return {use.name: use.problem for use in self.resources.usage().slots}


def request(*proxies: str) -> TaskRequest:
    return TaskRequest("job", "s1", "vm1", "scsi:0:0", source_proxies=proxies)


def test_tasks_that_wait_for_movers_that_are_given_up_fail_until_one_is_back(
    site: SeveralSite,
) -> None:
    made = Installation(site, Reconnect(every_s=0.01, for_s=0.2))
    waiting = made.resources.request(request("px1", "px2"))
    waiting.cancel()
    for name in AWAY:
        made.resources.proxy_paused(name, "not asked yet")
    waiting = made.resources.request(request("px1", "px2"))
    for name in AWAY:
        with pytest.raises(MoverDied):
            made.fleet.mover(name).call("ping")
    with pytest.raises(NoProxy, match=r"px1: .*connection refused"):
        waiting.wait(10)
    with pytest.raises(NoProxy):
        made.resources.request(request("px2")).wait(0)
    # A new attempt that fails is no hope; one that succeeds is.
    made.fleet.try_again()
    wait_until(lambda: made.fleet.mover("px2")._keeper is None, "px2 is given up again")
    with pytest.raises(NoProxy):
        made.resources.request(request("px2")).wait(0)
    made.is_away = False
    made.fleet.try_again()
    wait_until(lambda: not made.problems()["px2"], "px2 is back")
    assert not made.fleet.has_given_up("px2")
    made.resources.request(request("px2")).wait(10).release()
    made.crews.close()


def test_a_mover_that_is_away_is_waited_for(site: SeveralSite) -> None:
    made = Installation(site, Reconnect(every_s=0.01, for_s=60))
    mover = made.fleet.mover("px1")
    mover.wait_connected(0)
    wait_until(lambda: "refused" in made.problems()["px1"], "px1 is missed")
    waiting = made.resources.request(request("px1"))
    assert waiting.is_waiting
    made.is_away = False
    assert waiting.wait(10).source_proxy == "px1"
    waiting.cancel()
    made.crews.close()


def test_a_disk_that_no_proxy_can_take_says_of_each_why(site: SeveralSite) -> None:
    made = Installation(site, Reconnect(every_s=0.01, for_s=0.2))
    job = load_config(site.config).jobs["job"]
    task = DiskTask(
        "t1", "vm1", "scsi:0:0", "d1", ("vm1/a.vhdx",), "vm1_replica", avoid=frozenset({"px1"})
    )
    with made.crews.lent(job, "s1", "vm1") as crew, pytest.raises(NoProxy) as caught:
        with crew.disk_link(task):
            pass
    side_only = "a proxy of the target side only"
    said = dict(reason.split(": ", 1) for reason in caught.value.reasons)
    assert "connection refused" in said.pop("px2")
    assert said == {"px1": "it failed at this disk before", "dr1": side_only, "dr2": side_only}
    made.crews.close()


def test_every_source_proxy_is_reached_before_a_task_asks_who_answers(site: SeveralSite) -> None:
    # Over a long line that is some round trips, in which nothing would travel.
    made = Installation(site, Reconnect(every_s=0.01, for_s=60))
    made.is_away = False
    config = load_config(site.config)
    with made.crews.lent(config.jobs["job"], "s1", "vm1"):
        for name in ("px1", "px2"):
            mover = made.fleet._movers[name]
            wait_until(lambda mover=mover: mover._link is not None, f"{name} is reached")
    made.crews.close()


def test_a_session_gives_back_what_its_tasks_held(site: SeveralSite) -> None:
    site.add_machine()
    site.fill()
    with site.server() as server:
        held = server.crews.resources.request(
            TaskRequest("job", "mine", "vm1", "scsi:0:9", source_proxies=("px1",))
        )
        assert held.grant is not None
        report = server.start("job", session="mine")
        assert report.outcome == "done", report.machines[0].error
        assert server.crews.resources.running == 0
        assert server.crews.resources.usage().waiting == 0


def test_two_servers_lend_one_limit_also_where_they_use_different_movers(tmp_path: Path) -> None:
    rule = '[traffic.wan]\nfrom = ["127.0.0.0/8"]\nlimit = "100 Mbit/s"\n'
    site = SeveralSite(tmp_path / "site", more=rule)
    config = load_config(site.config)
    limit_bps = config.traffic["wan"].limit_bps
    fleets = [Fleet(config, make_link=site.link) for _ in range(2)]
    used = ("px1", "px2")

    def throttle(name: str) -> Throttle:
        (found,) = site.machines[name].mover.throttles.covering("127.0.0.1", "127.0.0.1")
        return found

    try:
        for fleet, name in zip(fleets, used, strict=True):
            fleet.mover(name).call("ping")
            fleet.traffic.lend()
            throttle(name).flow()
        movers = [mover for fleet in fleets for mover in fleet._made()]
        assert len(movers) == 2 * len(config.movers)
        wait_until(lambda: all(mover.is_connected for mover in movers), "all are asked")

        def is_shared() -> bool:
            for name in used:
                throttle(name)._busy_s += 1e9  # a link of it has waited all the time
            for fleet in fleets:
                fleet.traffic.lend()
            rates = [throttle(name).rate_bps() or 0.0 for name in used]
            return sum(rates) <= limit_bps and min(rates) > limit_bps / 3

        wait_until(is_shared, "the limit is shared")
    finally:
        for fleet in fleets:
            fleet.close()
        site.close()
