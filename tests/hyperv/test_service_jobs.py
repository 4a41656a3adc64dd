"""Jobs from a simulated Hyper-V host through proxies on machines of their own: service movers read
where the host's share is mounted with them, write at the target, keep the repository."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import standby
from hyperv.sites import Site, only
from simulation.several import CuttableMachine
from standby.server.config import MoverConfig, load_config
from standby.server.hyperv_hosts import hyperv_source
from standby.units import KiB, MiB
from standby.wire.link import Link

TOML = """\
[standby]
installation = "test"

[server]
reconnect_every = "1s"
reconnect_for = "10s"

{movers}

[hosts.prod]
kind = "hyperv"
address = "hv1.example.test"
credentials = {{ username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }}

[hosts.dr]
kind = "folder"
path = "{folder}/replicas"
mover = "dr1"

[repositories.main]
path = "{folder}/repository/main"
mover = "repo"

[proxies.px1]
mover = "px1"
side = "source"
paths = {{ prod = {{ 'C:\\Hyper-V' = "{storage}" }} }}

[proxies.px2]
mover = "px2"
side = "source"
paths = {{ prod = {{ 'C:\\Hyper-V' = "{storage}" }} }}

[proxies.dr1]
mover = "dr1"
side = "target"

[jobs.nightly]
source = "prod"
machines = ["*"]
target = "dr"
repository = "main"
"""
ROLES = {"px1": ("source",), "px2": ("source",), "repo": ("repository",), "dr1": ("target", "host")}


class ServiceSite(Site):
    """The site with a mover on every machine: two proxies, the repository, the target."""

    def __init__(self, folder: Path) -> None:
        self.movers_by_name: dict[str, CuttableMachine] = {}
        super().__init__(folder)

    def write_config(self, more: str = "") -> None:
        for name, roles in ROLES.items():
            if name not in self.movers_by_name:
                self.movers_by_name[name] = CuttableMachine(
                    name, self.folder, roles, clock=self.world.clock, accept_timeout_s=20
                )
        movers = "\n".join(
            f'[movers.{name}]\naddress = "{machine.listener.address}"'
            for name, machine in self.movers_by_name.items()
        )
        text = TOML.format(movers=movers, folder=self.folder, storage=self.storage)
        self.config.write_text(text)

    def link(self, mover: MoverConfig) -> Link:
        return self.movers_by_name[mover.name].server_link("server")

    @contextlib.contextmanager
    def server(self) -> Iterator[standby.BackupServer]:
        config = load_config(self.config)
        clock = self.world.clock
        with self.host.door("prod") as door:
            source = hyperv_source(config, config.hosts["prod"], clock, door)
            with standby.BackupServer(
                config, clock=clock, hosts={"prod": source}, make_link=self.link
            ) as server:
                yield server

    def close(self) -> None:
        for machine in self.movers_by_name.values():
            machine.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServiceSite]:
    made = ServiceSite(tmp_path)
    with made.host, contextlib.closing(made):
        yield made


def test_a_vm_is_replicated_through_proxies_by_what_its_host_tracked(site: ServiceSite) -> None:
    web = site.world.add_machine("web", "hv1", [16 * MiB, 8 * MiB])
    site.world.write(web, 5 * MiB, b"data" * 64 * KiB)
    assert [disk.mode for disk in only(site.session()).disks] == ["full", "full"]
    site.world.write(web, 9 * MiB, b"next" * KiB)
    second = only(site.session())
    assert [(disk.mode, disk.changed) for disk in second.disks] == [
        ("incremental", 4 * KiB),
        ("incremental", 0),
    ]
    assert "tracker" in second.disks[0].reason
    assert site.check_points() == 2
    site.world.settle()
    assert (site.world.depth(web), len(web.points), web.checkpoints) == (1, 1, [])


def test_a_proxy_that_vanishes_costs_no_restore_point(site: ServiceSite) -> None:
    web = site.world.add_machine("web", "hv1", [64 * MiB])
    for at in range(0, 48, 4):
        site.world.write(web, at * MiB, bytes([at]) * 64 + b"x" * (4 * MiB - 64))
    gone = []
    for name in ("px1", "px2"):
        proxy = site.movers_by_name[name]

        def vanish(proxy: CuttableMachine = proxy) -> None:
            if not gone:
                gone.append(proxy)
                proxy.vanish()

        proxy.cuts, proxy.cut_after, proxy.on_cut = False, 64 * KiB, vanish
    only(site.session())
    assert len(gone) == 1
    assert site.check_points() == 1
    site.world.settle()
    assert (site.world.depth(web), web.checkpoints) == (1, [])


def test_paths_that_lead_a_proxy_to_another_disk_stop_it(site: ServiceSite) -> None:
    web = site.world.add_machine("web", "hv1", [8 * MiB])
    copy = site.folder / "copy"
    shutil.copytree(site.storage, copy)
    other = site.world.add_machine("db", "hv1", [8 * MiB])
    (right, wrong) = (machine.disks()[0].path for machine in (web, other))
    assert right is not None
    assert wrong is not None
    shutil.copy(wrong, copy / right.relative_to(site.storage))
    site.storage = copy
    site.write_config()
    report = {item.machine: item for item in site.session().machines}
    assert report["web"].outcome == "failed"
    assert "the host says" in (report["web"].error or "")
    site.world.settle()
    assert web.checkpoints == []
