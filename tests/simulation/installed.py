"""An installation of real processes: `standby mover run` per machine, TLS with the installation's
own authority, the command line as its server. On one machine, over the loopback device."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from cli.processes import wait_until
from net.nursery import Child
from simulation.site import Site
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder

ROLES = {
    "src": ("host", "source", "repository"),
    "px": ("source",),
    "dr": ("target", "host"),
}

TOML = """\
[standby]
installation = "test"
[server]
reconnect_every = "1s"
reconnect_for = "30s"
{movers}
[hosts.source]
kind = "folder"
path = "{folder}/source"
mover = "src"
[hosts.target]
kind = "folder"
path = "{folder}/target"
mover = "dr"
[repositories.main]
path = "{folder}/repository/main"
mover = "src"
[proxies.src]
mover = "src"
side = "source"
[proxies.px]
mover = "px"
side = "source"
paths = {{ source = {{ "{folder}/source" = "{folder}/source" }} }}
[jobs.job]
source = "source"
target = "target"
machines = ["*"]
{more}
"""


def free_port() -> int:
    """A port that nobody listens on now, below those that a system gives to whoever connects: such
    a one may be taken by a test beside before the mover listens on it."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Installation(Site):
    """Movers as processes; `close` ends those that still run."""

    roles: ClassVar[Mapping[str, tuple[str, ...]]] = ROLES
    """By mover."""
    tuned: ClassVar[Mapping[str, Any]] = {}
    """Constants of modules in the processes of movers and servers (see `Nursery`)."""

    def more_of(self, name: str) -> list[str]:
        """More lines of the mover's mover.toml, tables of their own."""
        return []

    def __init__(self, folder: Path, more: str = "") -> None:
        super().__init__(folder)
        (folder / "repository").mkdir()
        self.authority = Authority.create(folder / "authority", "test")
        self.enrol("server", folder / "identity", ("server",))
        self.ports = {name: free_port() for name in self.roles}
        self.processes: dict[str, Child] = {}
        for name in self.roles:
            self.write_mover(name)
        movers = "\n".join(
            f'[movers.{name}]\naddress = "127.0.0.1:{port}"' for name, port in self.ports.items()
        )
        self.config.write_text(TOML.format(folder=folder, movers=movers, more=more))
        self.start_movers(*self.roles)

    def enrol(self, name: str, folder: Path, roles: tuple[str, ...]) -> None:
        """Give a machine its certificate."""
        identity = IdentityFolder(folder)
        issued = self.authority.issue(identity.request(), name, roles)
        identity.install(issued, self.authority.certificate)

    def write_mover(self, name: str) -> None:
        home = self.folder / f"mover-{name}"
        home.mkdir()
        self.enrol(name, home / "identity", self.roles[name])
        roots = {"source": self.folder / "source", "repository": self.folder / "repository"}
        if "target" in self.roles[name]:
            roots = {"target": self.folder / "target"}
        lines = [
            f'name = "{name}"',
            f'listen = "127.0.0.1:{self.ports[name]}"',
            'identity = "identity"',
            'state = "state"',
            f"roles = {json.dumps(self.roles[name])}",
            "[roots]",
            *(f'{root} = "{path}"' for root, path in roots.items()),
            *self.more_of(name),
        ]
        (home / "mover.toml").write_text("\n".join(lines) + "\n")

    def start_movers(self, *names: str, **environment: str) -> None:
        """Start the movers of those names side by side, and wait until all listen."""
        assert self.nursery is not None
        for name in names:
            home = self.folder / f"mover-{name}"
            self.processes[name] = self.nursery.start(
                ["mover", "run", "--config", home / "mover.toml"],
                home / f"log-{len(list(home.glob('log-*.err')))}",
                environment=environment,
                tuned=self.tuned,
            )
        for name in names:
            wait_until(partial(_listens, self.processes[name]), f"{name} listens")

    def kill_mover(self, name: str) -> None:
        """kill -9."""
        self.processes[name].kill()

    def stop_mover(self, name: str) -> None:
        """SIGTERM, and wait for its end."""
        self.processes[name].terminate()
        self.processes[name].wait()

    def log(self, name: str) -> str:
        """What the movers of that name said so far."""
        home = self.folder / f"mover-{name}"
        return "".join(path.read_text() for path in sorted(home.glob("log-*.err")))

    def close(self) -> None:
        """End every mover in good order; one that does not end is a failure."""
        for process in self.processes.values():
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that a test stopped
        for name, process in self.processes.items():
            try:
                process.wait(30)
            except TimeoutError:
                process.kill()
                raise AssertionError(f"mover {name} did not end: {self.log(name)}") from None


def _listens(child: Child) -> bool:
    assert child.poll() is None, child.log()
    return "listens on" in child.said()
