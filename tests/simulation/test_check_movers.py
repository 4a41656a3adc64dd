"""`standby check` of an installation of several machines: each mover that a job needs is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulation.several import ROLES, SeveralSite
from standby.errors import ConfigurationError, RefusedByPeer
from standby.server.checking import check_configuration
from standby.server.config_check import Finding
from standby.server.fleet import Fleet, needed_roles
from standby.server.infrastructure_check import checked
from standby.server.mover_check import Movers
from standby.server.service_mover import Reconnect
from standby.units import MiB


class Roled(SeveralSite):
    """A site whose movers have other roles, or another configuration."""

    def __init__(self, folder: Path, roles: dict[str, tuple[str, ...]] | None = None) -> None:
        self.roles = ROLES | (roles or {})  # type: ignore[misc]
        super().__init__(folder)
        self.add_machine(sizes=(4 * MiB,))

    def change_config(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new, 1))

    def found(self) -> list[Finding]:
        with self.server() as server:
            fleet = Fleet(server.config, reconnect=Reconnect(0.1, 0), make_link=self.link)
            try:
                return check_configuration(server.config, server.host, fleet)
            finally:
                fleet.close()

    def told(self) -> list[tuple[str, str]]:
        return [(item.level.value, item.where) for item in self.found()]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Roled]:
    made = Roled(tmp_path / "site")
    yield made
    made.close()


def test_nothing_is_said_of_movers_that_answer(site: Roled) -> None:
    assert site.found() == []


@pytest.mark.parametrize(
    ("name", "level"), [("repo", "error"), ("dr1", "error"), ("px1", "warning"), ("dr2", "warning")]
)
def test_a_mover_that_is_away_is_named_and_is_no_error_where_another_does_its_work(
    site: Roled, name: str, level: str
) -> None:
    site.machines[name].close()
    (finding,) = site.found()
    assert (finding.level.value, finding.where) == (level, f"[movers.{name}]")
    assert f"mover {name} cannot be reached at 127.0.0.1:" in finding.problem
    assert "standby mover run" in finding.hint


def test_all_proxies_of_a_side_away_are_errors(site: Roled) -> None:
    for name in ("px1", "px2"):
        site.machines[name].close()
    assert site.told() == [("error", "[movers.px1]"), ("error", "[movers.px2]")]


def test_a_root_that_a_mover_does_not_have_is_named(site: Roled) -> None:
    site.change_config(f'path = "{site.folder}/repository/main"', 'path = "/elsewhere"')
    (finding,) = site.found()
    assert (finding.level.value, finding.where) == ("error", "[movers.repo]")
    assert "/elsewhere, for repository main, lies below none of the roots" in finding.problem


def test_a_path_map_that_covers_no_folder_of_the_host_is_named(site: Roled) -> None:
    site.change_config(f'{{ "{site.folder}/source" =', '{ "/other" =')
    (finding,) = site.found()
    assert (finding.level.value, finding.where) == ("warning", "[proxies.px1] paths.source")
    assert f"/other does not hold {site.folder}/source" in finding.problem
    site.change_config(f'{{ "{site.folder}/source" =', '{ "/other" =')
    *_, error = site.found()
    assert (error.level.value, error.where) == ("error", "[jobs.job]")
    assert "no proxy reads host source: " in error.problem


def test_a_proxy_without_paths_is_named(site: Roled) -> None:
    text = site.config.read_text()
    whole = f'paths = {{ source = {{ "{site.folder}/source" = "{site.folder}/source" }} }}'
    site.config.write_text(text.replace(whole, "", 1))
    (finding,) = site.found()
    assert (finding.level.value, finding.where) == ("warning", "[proxies.px1]")
    assert finding.problem == "sees no host's folders"
    assert finding.hint.startswith("write paths")


def test_a_proxy_whose_mover_is_no_source_is_named(tmp_path: Path) -> None:
    site = Roled(tmp_path / "site", {"px2": ("target",)})
    try:
        (finding,) = site.found()
        assert (finding.level.value, finding.where) == ("warning", "[movers.px2]")
        assert "mover px2 is no source, and needed as source for host source" in finding.problem
        assert "give mover px2 the role source" in finding.hint
    finally:
        site.close()


def test_a_host_mover_that_nobody_reads_for_must_be_a_source(tmp_path: Path) -> None:
    site = Roled(tmp_path / "site", {"hv1": ("host",)})
    try:
        assert site.found() == []  # px1 and px2 read everything
        with site.server() as server:
            checks = checked(server.crews.fleet, server.config, server.clock)
            assert [item for item in checks if item.level.value == "error"] == []
            roads = {(item.seen_from, item.what) for item in checks}
            assert ("mover px1", "mover dr1 as target") in roads
            assert ("mover hv1", "mover dr1 as target") not in roads
        text = site.config.read_text()
        start, end = text.index("[proxies.px1]"), text.index("[proxies.dr1]")
        site.config.write_text(text[:start] + text[end:])
        (finding,) = site.found()
        assert (finding.level.value, finding.where) == ("error", "[movers.hv1]")
        assert "its roles are host" in finding.problem
        with site.server() as server:
            assert set(needed_roles(server.config, "hv1")) == {"source", "host"}
            checks = checked(server.crews.fleet, server.config, server.clock)
        (error,) = (item for item in checks if item.level.value == "error")
        assert error.what == "mover hv1 roles"
        assert "source" in error.text
    finally:
        site.close()


def test_a_job_that_no_mover_may_read_for_says_so_before_it_begins(tmp_path: Path) -> None:
    site = Roled(tmp_path / "site", {"hv1": ("host",)})
    try:
        text = site.config.read_text()
        start, end = text.index("[proxies.px1]"), text.index("[proxies.dr1]")
        site.config.write_text(text[:start] + text[end:])
        with site.server() as server:
            for act in (server.plan, server.start):
                with pytest.raises(ConfigurationError) as caught:
                    act("job")
                assert "no proxy reads host source: mover hv1 is no source" in str(caught.value)
                assert "Give mover hv1 the role source" in caught.value.hint
    finally:
        site.close()


def test_a_proxy_without_the_role_is_left_out_of_a_session(tmp_path: Path) -> None:
    site = Roled(tmp_path / "site", {"px1": ("host",), "dr1": ("host",)})
    try:
        with site.server() as server:
            assert server.plan("job").machines[0].action == "replicate"
            report = server.start("job")
        (machine,) = report.machines
        assert machine.outcome == "done", machine.error
        assert {disk.proxy for disk in machine.disks} == {"px2"}
        assert any("px1 is no source" in text for text in machine.warnings)
    finally:
        site.close()


def test_a_role_that_a_certificate_lacks_is_named_and_not_the_network(
    site: Roled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(movers: Movers, mover: str, verb: str, **asked: Any) -> Any:
        if verb == "probe":
            raise RefusedByPeer(asked["name"], "it speaks as 'source', its roles are host")
        return original(movers, mover, verb, **asked)

    original = Movers.call
    monkeypatch.setattr(Movers, "call", refused)
    with site.server() as server:
        checks = checked(server.crews.fleet, server.config, server.clock)
    hints = {item.hint for item in checks if item.what == "mover dr1 as target"}
    assert "enrol px1 with the role source: `standby ca token px1 --role source`" in hints
    assert "firewall" not in str(hints)
