"""The job of `site` between machines: service movers of a source site and a target site.

Each mover is the real one, in this process, over plain TCP on the loopback device (`road.plain`);
`kill` ends one as kill -9 would for everybody else: its connections end, nothing is answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import standby
from road.plain import Machine, PlainPeer
from simulation.site import Site
from standby.errors import LinkError
from standby.road.target_host import TargetVerbs
from standby.server.config import MoverConfig
from standby.wire.link import Link
from standby.wire.standing import Standing, Turn

TOML = """\
[standby]
installation = "test"
[server]
reconnect_every = "1s"
reconnect_for = "10s"
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


class CuttableMachine(Machine):
    """A machine whose data links can be cut, or that is gone altogether, when one of the links it
    makes has sent `cut_after` bytes; once. `cuts` False: then only `on_cut` is called."""

    cut_after = 0
    cuts = True
    on_cut: Callable[[], None] | None = None
    take_after = 0
    on_taken: Callable[[], None] | None = None
    """Called once when one of the links that others made brought `take_after` bytes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.made: list[Link] = []
        self.taken: list[Link] = []
        super().__init__(*arguments, **options)
        taken = self.listener._on_link

        def kept(link: Link, peer: PlainPeer) -> None:
            self.taken.append(link)
            self._count(link)
            taken(link, peer)

        self.listener._on_link = kept
        self._count_turns()

    def _count_turns(self) -> None:
        """What holds for links holds for the turns of those that stand."""
        connections = self.mover.connections
        stood, served = connections._stood, connections._served_turn

        def counted(end: Standing, count: Callable[[Link], None]) -> Standing:
            next_turn = end.next_turn

            def next_counted(*given: Any) -> Turn:
                turn = next_turn(*given)
                count(turn)
                return turn

            if "next_turn" not in vars(end):
                end.next_turn = next_counted  # type: ignore[method-assign]
            return end

        connections._stood = lambda *given: counted(stood(*given), self._cut_in_time)  # type: ignore[method-assign]
        connections._served_turn = lambda end, *given: served(counted(end, self._count), *given)  # type: ignore[method-assign]

    def _count(self, link: Link) -> None:
        original = link.receive

        def receive() -> Any:
            found = original()
            if self.take_after and link.received_bytes >= self.take_after:
                self.take_after = 0
                if self.on_taken is not None:
                    self.on_taken()
            return found

        link.receive = receive  # type: ignore[method-assign]

    def _connect(self, address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        link = super()._connect(address, name, role, own_role, timeout_s)
        self.made.append(link)
        self._cut_in_time(link)
        return link

    def _cut_in_time(self, link: Link) -> None:
        original = link.send

        def send(message: Any, *payload: Any) -> None:
            original(message, *payload)
            if self.cut_after and link.sent_bytes >= self.cut_after:
                self.cut_after = 0
                if self.cuts:
                    link.shutdown()
                if self.on_cut is not None:
                    self.on_cut()

        link.send = send  # type: ignore[method-assign]

    def vanish(self) -> None:
        """Be gone for everybody else, without a word, as when a machine loses its network."""
        self.listener.close()
        for link in [*self.made, *self.taken]:
            link.shutdown()


class SeveralSite(Site):
    """A source site with a host, two proxies and a repository, and a target site with two."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = ROLES

    def __init__(self, folder: Path, restore_points: int = 7, more: str = "") -> None:
        super().__init__(folder, restore_points, more)
        self.control: list[Link] = []
        self.is_cut_off = False
        self.hung: set[str] = set()
        self.released = threading.Event()
        self.machines = {name: self.make_mover(name) for name in self.roles}
        movers = "\n".join(
            f'[movers.{name}]\naddress = "{machine.listener.address}"'
            for name, machine in self.machines.items()
        )
        self.config.write_text(
            TOML.format(folder=folder, movers=movers, restore_points=restore_points, more=more)
        )

    def make_mover(self, name: str) -> CuttableMachine:
        """The mover of that name, with its listener."""
        home = self.folder / HOMES.get(name, "target")
        return CuttableMachine(name, home, self.roles[name], accept_timeout_s=20)

    def link(self, mover: MoverConfig) -> Link:
        """A control connection to whoever listens for that mover now."""
        if self.is_cut_off or (mover.name in self.hung and not self.released.is_set()):
            raise LinkError(mover.name, "no route to host")
        link = self.machines[mover.name].server_link("server")
        self.control.append(link)
        return link

    def cut_off_server(self) -> None:
        """The server's own network is gone: every control link ends, none can be made."""
        self.is_cut_off = True
        for link in self.control:
            link.shutdown()

    def hang(self, name: str) -> None:
        """What a data link of that mover does from now on, and whatever the server asks of it, is
        waited for in vain, until `released` is set. To be called by the link's own thread."""
        self.hung.add(name)
        for link in self.control:
            if link.peer == name:
                link.shutdown()
        assert self.released.wait(120)

    def open_replicas(self) -> list[str]:
        """Replicas that some mover is the writer of now."""
        return [
            path
            for machine in self.machines.values()
            for role in machine.mover._roles
            if isinstance(role, TargetVerbs)
            for path in role.replicas._replicas
        ]

    def running_tasks(self) -> list[str]:
        """Tasks that some mover is at now."""
        tasks = [task for machine in self.machines.values() for task in machine.mover._tasks]
        return [task.name for task in tasks if task.is_running]

    def server(self) -> standby.BackupServer:
        """The backup server, in this process."""
        return standby.BackupServer(self.config, clock=self.clock, make_link=self.link)

    def close(self) -> None:
        """End every mover."""
        self.released.set()
        for machine in self.machines.values():
            machine.close()
