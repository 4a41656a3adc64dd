"""The job of `site` between machines: service movers of a source site and a target site.

Each mover is the real one, in this process, over plain TCP on the loopback device (`road.plain`);
`kill` ends one as kill -9 would for everybody else: its connections end, nothing is answered.
"""

from __future__ import annotations

from pathlib import Path

import standby
from road.plain import Machine, connected
from simulation.site import Site
from standby.server.config import MoverConfig
from standby.wire.link import Link

TOML = """\
[standby]
installation = "test"
[server]
reconnect_every = "1s"
reconnect_for = "20s"
{movers}
[hosts.source]
kind = "folder"
path = "{folder}/source"
mover = "hv1"
[hosts.target]
kind = "folder"
path = "{folder}/target"
mover = "dr1"
[repositories.main]
path = "{folder}/repository/main"
mover = "repo"
[proxies.px1]
mover = "px1"
side = "source"
paths = {{ source = {{ "{folder}/source" = "{folder}/source" }} }}
[proxies.px2]
mover = "px2"
side = "source"
paths = {{ source = {{ "{folder}/source" = "{folder}/source" }} }}
[proxies.dr1]
mover = "dr1"
side = "target"
[proxies.dr2]
mover = "dr2"
side = "target"
paths = {{ target = {{ "{folder}/target" = "{folder}/target" }} }}
[jobs.job]
source = "source"
target = "target"
machines = ["*"]
restore_points = {restore_points}
compression = "fast"
{more}
"""

ROLES = {
    "hv1": ("host", "source"),
    "px1": ("source",),
    "px2": ("source",),
    "repo": ("repository",),
    "dr1": ("target", "host"),
    "dr2": ("target",),
}
HOMES = {"hv1": "source", "px1": "source", "px2": "source", "repo": "repository"}


class SeveralSite(Site):
    """A source site with a host, two proxies and a repository, and a target site with two."""

    def __init__(self, folder: Path, restore_points: int = 7, more: str = "") -> None:
        super().__init__(folder, restore_points, more)
        self.machines = {name: self.make_mover(name) for name in ROLES}
        movers = "\n".join(
            f'[movers.{name}]\naddress = "{machine.listener.address}"'
            for name, machine in self.machines.items()
        )
        self.config.write_text(
            TOML.format(folder=folder, movers=movers, restore_points=restore_points, more=more)
        )

    def make_mover(self, name: str) -> Machine:
        """The mover of that name, with its listener."""
        home = self.folder / HOMES.get(name, "target")
        return Machine(name, home, ROLES[name], accept_timeout_s=20)

    def link(self, mover: MoverConfig) -> Link:
        """A control connection to whoever listens for that mover now."""
        return connected(self.machines[mover.name].listener.address, "server", "server", mover.name)

    def server(self) -> standby.BackupServer:
        """The backup server, in this process."""
        return standby.BackupServer(self.config, clock=self.clock, make_link=self.link)

    def close(self) -> None:
        """End every mover."""
        for machine in self.machines.values():
            machine.close()
