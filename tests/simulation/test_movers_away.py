"""Movers that are away when a point is committed already, or when somebody asks for a plan, are not
waited for as a transfer waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulation.several import SeveralSite
from simulation.site import at_kill_point
from standby.errors import LinkError, MoverDied

TIMEOUT_S = 60


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SeveralSite]:
    made = SeveralSite(tmp_path / "site", restore_points=2, more='target_proxies = ["dr1"]')
    text = made.config.read_text()
    made.config.write_text(text.replace('reconnect_for = "10s"', 'reconnect_for = "1h"'))
    made.add_machine()
    made.fill()
    yield made
    made.close()


def in_time(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises, which it does long before an hour has passed."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as exc:
            found.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    assert found, "it waits"
    return found[0]


def come_back(site: SeveralSite, name: str) -> None:
    """The machine is there again, at another address."""
    old = site.machines[name]
    old.mover.close()
    new = site.machines[name] = site.make_mover(name)
    text = site.config.read_text()
    site.config.write_text(text.replace(old.listener.address, new.listener.address))


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("dr1", "repository commit"),
        ("hv1", "repository commit"),
        ("repo", "point renamed"),
        ("dr1", "older tracker ids given up"),
    ],
)
def test_a_mover_that_is_away_after_the_commit_is_a_warning_and_made_good(
    site: SeveralSite, name: str, point: str
) -> None:
    for _ in range(2):
        assert site.run().outcome == "done"
        site.change()
    with at_kill_point(point, site.machines[name].vanish):
        report = in_time(site.run)
    (machine,) = report.machines
    assert (report.outcome, machine.outcome) == ("warnings", "done"), machine
    assert any(name in text for text in machine.warnings), machine.warnings
    come_back(site, name)
    site.change()
    last = in_time(site.run)
    assert last.machines[0].outcome == "done", last.machines[0].error
    assert {disk.mode for disk in last.machines[0].disks} == {"incremental"}
    assert site.check_points() == 2
    site.check_nothing_leaked()


@pytest.mark.parametrize("name", ["hv1", "dr1"])
def test_a_plan_says_at_once_who_is_away(site: SeveralSite, name: str) -> None:
    site.machines[name].vanish()
    found = in_time(site.plan)
    assert isinstance(found, LinkError | MoverDied)
    assert name in str(found)
    assert len(str(found).splitlines()) == 1


def test_a_plan_without_the_repository_says_so(site: SeveralSite) -> None:
    assert site.run().outcome == "done"
    site.machines["repo"].vanish()
    (machine,) = in_time(site.plan).machines
    assert machine.action == "replicate"
    assert any("repo" in text for text in machine.warnings)
