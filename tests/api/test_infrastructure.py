"""`standby infrastructure`: parts that work, and parts that do not, said by name."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.conftest import ServedSite
from cli.conftest import Run, small_site
from simulation.several import SeveralSite
from standby.server.infrastructure_check import Check, Level, checked
from standby.wire.link import Link


@pytest.fixture
def several(tmp_path: Path) -> Iterator[SeveralSite]:
    """Six movers."""
    site = SeveralSite(tmp_path / "site")
    yield site
    site.close()


def checks_of(site: SeveralSite) -> list[Check]:
    with site.server() as server:
        return checked(server.crews.fleet, server.config, server.clock)


def found(checks: list[Check], seen_from: str, what: str) -> Check:
    (check,) = (item for item in checks if (item.seen_from, item.what) == (seen_from, what))
    return check


def test_every_mover_road_and_folder_is_tried(several: SeveralSite) -> None:
    checks = checks_of(several)
    assert [item for item in checks if item.level is Level.ERROR] == []
    for mover in several.machines:
        assert found(checks, "server", f"mover {mover}").level is Level.OK
        assert found(checks, "server", f"mover {mover} clock").text == "as the server's"
    roads = {(item.seen_from, item.what) for item in checks if " as " in item.what}
    for sender in ("px1", "px2", "hv1"):
        assert (f"mover {sender}", "mover dr1 as target") in roads
        assert (f"mover {sender}", "mover repo as repository") in roads
    assert "can be written" in found(checks, "mover dr1", "host target").text
    assert "can be read" in found(checks, "mover hv1", "host source").text
    assert found(checks, "mover repo", "repository main opens").level is Level.OK


def test_a_mover_that_is_away_costs_its_own_lines_only(several: SeveralSite) -> None:
    several.machines["dr1"].close()
    checks = checks_of(several)
    away = found(checks, "server", "mover dr1")
    assert away.level is Level.ERROR
    assert "standby mover run" in away.hint
    assert found(checks, "mover px1", "mover dr1 as target").level is Level.ERROR
    assert "not connected" in found(checks, "mover dr1", "host target").text
    assert found(checks, "mover px1", "mover dr2 as target").level is Level.OK
    assert found(checks, "server", "mover hv1").level is Level.OK


def test_movers_that_an_active_server_drives_are_checked_all_the_same(
    several: SeveralSite,
) -> None:
    for machine in several.machines.values():
        machine.mover._generation.raise_to(4624685)  # as when `standby server` joined
    checks = checks_of(several)
    assert [item for item in checks if item.level is Level.ERROR] == []
    assert "least-generation" not in str(checks)
    assert {machine.mover._generation.current for machine in several.machines.values()} == {4624685}


def test_a_clock_that_is_wrong_and_a_path_outside_of_the_roots_are_named(
    several: SeveralSite,
) -> None:
    text = several.config.read_text()
    place = f'path = "{several.folder}/repository/main"'
    several.config.write_text(text.replace(place, 'path = "/elsewhere"'))
    several.clock.set_back(minutes=5)
    checks = checks_of(several)
    assert found(checks, "server", "mover px1 clock").text.startswith("300 s ahead")
    outside = found(checks, "mover repo", "repository main")
    assert outside.level is Level.ERROR
    assert "below none of the mover's roots" in outside.text


def test_a_mover_that_hangs_is_given_up(
    several: SeveralSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.server.mover_check.ANSWER_S", 0.5)
    original = several.link

    def deaf(mover: object) -> Link:
        link = original(mover)  # type: ignore[arg-type]
        if mover.name == "px2":  # type: ignore[attr-defined]
            link.send = lambda *message: None  # type: ignore[method-assign]
        return link

    monkeypatch.setattr(several, "link", deaf)
    check = found(checks_of(several), "server", "mover px2")
    assert check.level is Level.ERROR
    assert "no answer" in check.text


def test_the_command_on_one_machine(run: Run, tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    given = ("--config", site.config)
    listed = run("infrastructure", "list", *given).out
    assert "host        source" in listed
    ended = run("infrastructure", "check", *given, expect=None)
    assert ended.code in (0, 3)  # 3: the machine that runs the test is short of space
    assert f"server -> host target: {'WARNING: ' if ended.code else ''}{site.folder}" in ended.out
    (site.folder / "target").rmdir()
    (site.folder / "target").write_text("")
    assert "ERROR: " in run("infrastructure", "check", *given, expect=15).out


def test_a_target_that_cannot_be_written_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(dir: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    site = small_site(tmp_path / "site")
    monkeypatch.setattr("standby.road.probing.tempfile.TemporaryFile", refused)
    ended = run("infrastructure", "check", "--config", site.config, expect=15)
    assert "host target: ERROR: " in ended.out
    assert "cannot be written: Read-only file system" in ended.out


def test_by_the_api_it_is_the_same(
    run: Run, served: ServedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run("infrastructure", "check", "--config", served.site.config, "--json", expect=None)
    monkeypatch.setenv("STANDBY_TOKEN", served.tokens["operator"])
    monkeypatch.setenv("STANDBY_SERVER", served.api.address)
    there = run("infrastructure", "check", "--json", expect=None)
    assert there.code == here.code
    whats = [[item["what"] for item in each.json["checks"]] for each in (here, there)]
    assert whats[0] == whats[1] != []
    assert run("infrastructure", "list").out.startswith("part ")


def test_sites_that_are_away_hold_up_neither_a_list_nor_a_failover(several: SeveralSite) -> None:
    several.add_machine()
    text = several.config.read_text()
    several.config.write_text(text.replace('reconnect_for = "20s"', 'reconnect_for = "10h"'))
    with several.server() as server:
        assert server.start("job").outcome == "done"
        several.machines["hv1"].close()
        assert server.replicas.plan("failover", "vm1_replica").becomes == "failover"
        assert server.replicas.failover("vm1_replica").record.state.value == "failover"
        several.machines["dr1"].close()
        assert server.replicas.all() == []
        (problem,) = server.replicas.unreadable().values()
        assert "dr1" in problem
