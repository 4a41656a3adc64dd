"""An installation of several machines that are nearly real: hosts of network namespaces, processes
of the command line, TLS with the installation's own authority.

    source site                      target site
      src    host of the VMs           dr1     target proxy, host of the replicas
      px1    source proxy              dr2     target proxy that sees the same folder
      px2    source proxy              server  the backup server: `standby job start` …
      repo   repository

px1 and px2 see the source's folder where it is mounted for them alone (`unplug` takes it away),
dr1 and dr2 see the target's as it is. `Site` knows what every restore point must read as.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from cli.processes import PATIENCE_S, wait_until
from net.network import Line, Network
from net.nursery import Child, Nursery
from simulation.site import Site
from standby import BackupServer
from standby.errors import error_from_wire
from standby.road.lease import is_processing
from standby.server.config import MoverConfig, load_config
from standby.server.fleet import needed_roles
from standby.server.store import Store
from standby.units import MiB
from standby.wire import tls
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply

HOSTS = {
    "a": ("src", "px1", "px2", "repo"),
    "b": ("dr1", "dr2", "server"),
}
ROLES: Mapping[str, tuple[str, ...]] = {
    "src": ("host",),
    "px1": ("source",),
    "px2": ("source",),
    "repo": ("repository",),
    "dr1": ("target", "host"),
    "dr2": ("target",),
}
PORT = 9440

TUNED: Mapping[str, Any] = {
    "standby.wire.link.KEEPALIVE_IDLE_S": 1,
    "standby.wire.link.KEEPALIVE_INTERVAL_S": 1,
    "standby.wire.link.KEEPALIVE_COUNT": 2,
    "standby.wire.link.USER_TIMEOUT_S": 3,
    "standby.server.service_mover.PING_S": 1.0,
    "standby.server.service_mover.SILENCE_S": 8.0,
    "standby.server.task_ends.GRACE_S": 5.0,
    "standby.road.service.LOOK_S": 1.0,
    "standby.server.fleet.CONNECT_TIMEOUT_S": 3.0,
    "standby.road.connections.CONNECT_TIMEOUT_S": 5.0,
    "standby.road.connections.ACCEPT_TIMEOUT_S": 10.0,
    "standby.road.connections.PARK_S": 5.0,
    "standby.road.group_commits.COMMIT_BYTES": 4 * MiB,
    "standby.road.source_proxy.BATCH_SIZE": MiB,
}
"""Who vanished without a word is missed after seconds, not after one or two minutes; and what was
not yet acknowledged is a small part of a small disk too."""

TOML = """\
[standby]
installation = "test"
[server]
reconnect_every = "1s"
reconnect_for = "{reconnect_for}"
{movers}
[hosts.source]
kind = "folder"
path = "{folder}/source"
mover = "src"
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
paths = {{ source = {{ "{folder}/source" = "{folder}/views/px1" }} }}
[proxies.px2]
mover = "px2"
side = "source"
paths = {{ source = {{ "{folder}/source" = "{folder}/views/px2" }} }}
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
compression = "none"
{job}
"""


class Sites(Site):
    """Both sites with their movers running; ended by `close`, or at the end of the block."""

    hosts: ClassVar[Mapping[str, Sequence[str]]] = HOSTS
    roles: ClassVar[Mapping[str, Sequence[str]]] = ROLES

    def tables_of(self, name: str) -> list[str]:
        """More tables of that mover's mover.toml."""
        return []

    def __init__(
        self,
        folder: Path,
        nursery: Nursery,
        *,
        wan: Line | None = None,
        offload: bool = True,
        restore_points: int = 7,
        job: str = "",
        mover: str = "",
        protect: str = "",
        reconnect_for: str = "30s",
        tuned: Mapping[str, Any] = TUNED,
    ) -> None:
        """`job`, `mover` and `protect` are more lines of the job's table and of each mover.toml."""
        super().__init__(folder, restore_points)
        self.nursery = nursery
        self.tuned = tuned
        self.movers: dict[str, Child] = {}
        self.children: list[Child] = []
        self.views = {"px1": folder / "source", "px2": folder / "source"}
        self._sessions = 0
        self._contents: dict[str, tuple[list[tuple[str, int, int]], dict[str, str]]] = {}
        self.network = Network(wan, offload=offload, sites=self.hosts)
        self.network.__enter__()
        try:
            self._build(restore_points, job, mover, protect, reconnect_for)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sites:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(
        self, restore_points: int, job: str, mover: str, protect: str, reconnect_for: str
    ) -> None:
        folder = self.folder
        for name in ("repository", "logs", "views/px1", "views/px2"):
            (folder / name).mkdir(parents=True)
        self.authority = Authority.create(folder / "authority", "test")
        self.enrol("server", folder / "identity", ("server",))
        for name in self.roles:
            self._write_mover(name, mover, protect)
        movers = "\n".join(
            f'[movers.{name}]\naddress = "{self.address(name)}"' for name in self.roles
        )
        self.config.write_text(
            TOML.format(
                folder=folder,
                movers=movers,
                restore_points=restore_points,
                job=job,
                reconnect_for=reconnect_for,
            )
        )
        self.start_movers(*self.roles)

    def close(self) -> None:
        """End every process and the network."""
        try:
            for child in [*self.movers.values(), *self.children]:
                child.kill()
        finally:
            self.network.close()

    # --- machines ----------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """Where the mover of that name listens."""
        return f"{self.network[name].address}:{PORT}"

    def enrol(
        self,
        name: str,
        folder: Path,
        roles: Sequence[str],
        authority: Authority | None = None,
        days: int = 90,
    ) -> IdentityFolder:
        """Give a machine its certificate."""
        identity = IdentityFolder(folder)
        issued = (authority or self.authority).issue(identity.request(), name, roles, days)
        identity.install(issued, self.authority.certificate, self.authority.revocations())
        return identity

    def home(self, name: str) -> Path:
        """The folder of the mover's own files."""
        return self.folder / f"mover-{name}"

    def _write_mover(self, name: str, more: str, protect: str) -> None:
        home = self.home(name)
        home.mkdir()
        self.enrol(name, home / "identity", self.roles[name])
        root = {
            "src": self.folder / "source",
            "px1": self.folder / "views" / "px1",
            "px2": self.folder / "views" / "px2",
            "repo": self.folder / "repository",
        }.get(name, self.folder / "target")
        lines = [
            f'name = "{name}"',
            f'listen = "{self.address(name)}"',
            'identity = "identity"',
            'state = "state"',
            f"roles = {json.dumps(self.roles[name])}",
            more,
            "[roots]",
            f'data = "{root}"',
            "[protect]",
            protect,
            *self.tables_of(name),
        ]
        (home / "mover.toml").write_text("\n".join(lines) + "\n")

    def start_movers(self, *names: str, **environment: str) -> None:
        """Start the movers of those names side by side, and wait until all listen."""
        for name in names:
            if name in self.movers:
                self.movers[name].kill()
            place = self.folder / "views" / name
            self.movers[name] = self.nursery.start(
                ["mover", "run", "--config", self.home(name) / "mover.toml"],
                self._log_path(f"{name}-{self._count(name)}"),
                space=self.network[name].space,
                environment=environment,
                mounts=[(self.views[name], place)] if name in self.views else [],
                tuned=self.tuned,
            )
        for name in names:
            wait_until(partial(_has_begun, self.movers[name]), f"{name} listens")

    def _count(self, name: str) -> int:
        return len(list((self.folder / "logs").glob(f"{name}-*.out")))

    def _log_path(self, name: str) -> Path:
        return self.folder / "logs" / name

    def kill_mover(self, name: str) -> None:
        """kill -9."""
        self.movers[name].kill()

    def restart_mover(self, name: str) -> None:
        """kill -9, and a new one."""
        self.start_movers(name)

    def end_mover(self, name: str) -> None:
        """SIGTERM, as the system does; one that does not end is a failure."""
        self.movers[name].send_signal(signal.SIGTERM)
        assert self.movers[name].wait() in (0, 130), self.movers[name].log()

    def logs(self, name: str) -> str:
        """What the movers of that name said so far."""
        return "".join(
            path.read_text() for path in sorted((self.folder / "logs").glob(f"{name}-*.err"))
        )

    def unplug(self, proxy: str) -> None:
        """The proxy's way to the source's storage is gone; what it has open stays readable."""
        self._mounted(proxy, "umount", "-l", str(self.folder / "views" / proxy))

    def plug(self, proxy: str) -> None:
        """It is back."""
        place = self.folder / "views" / proxy
        self._mounted(proxy, "mount", "--bind", str(self.views[proxy]), str(place))

    def _mounted(self, proxy: str, *words: str) -> None:
        inside = ["nsenter", "-t", str(self.movers[proxy].pid), "-m", *words]
        subprocess.run(inside, check=True, capture_output=True)

    def sent_bytes(self) -> int:
        """What the source proxies have sent so far, each byte once (see `payload_bytes`)."""
        return sum(self.network[name].link.payload_bytes() for name in ("px1", "px2"))

    def partial_bytes(self) -> int:
        """How much of the points under way the target has on disk."""
        total = 0
        for path in (self.folder / "target").rglob("*.partial.vhdx"):
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512
        return total

    # --- the guest -----------------------------------------------------------------------------

    def content(self, machine: str) -> dict[str, str]:
        """See Site; disks that are as they were are not read again."""
        files = sorted((self.folder / "source" / machine).iterdir())
        facts = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        known, found = self._contents.get(machine, ([], {}))
        if known != facts:
            found = super().content(machine)
            self._contents[machine] = (facts, found)
        return found

    def write(self, offset: int, length: int, number: int = 0, machine: str = "vm1") -> None:
        """See Site."""
        self._contents.pop(machine, None)
        super().write(offset, length, number, machine)

    def zero(self, offset: int, length: int, number: int = 0, machine: str = "vm1") -> None:
        """See Site."""
        self._contents.pop(machine, None)
        super().zero(offset, length, number, machine)

    def change_disk(self, machine: str = "vm1") -> None:
        """A small change."""
        self.write(int(self.random.integers(0, 64)) * MiB // 4, 8192, machine=machine)

    # --- the backup server -------------------------------------------------------------------

    def spawn(self, *arguments: object, **environment: str) -> Child:
        """`standby arguments` on the backup server's machine."""
        self._sessions += 1
        child = self.nursery.start(
            [*arguments, "--config", self.config],
            self._log_path(f"server-{self._sessions:04}"),
            space=self.network["server"].space,
            environment=environment,
            tuned=self.tuned,
        )
        self.children.append(child)
        return child

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """See Site."""
        child = self.spawn(*arguments, **environment)
        code = child.wait(120)
        return subprocess.CompletedProcess(list(arguments), code, child.said(), child.log())

    def begin(self, *arguments: str, **environment: str) -> Child:
        """A session under way."""
        for machine in self.machine_names():
            self.states.append(self.content(machine))
        return self.spawn("job", "start", "job", "--json", *arguments, **environment)

    def machine_names(self) -> list[str]:
        """The VMs of the source."""
        return sorted(path.parent.name for path in (self.folder / "source").glob("*/vm.toml"))

    def finish(self, child: Child, timeout_s: float = 100) -> list[dict[str, Any]]:
        """The VMs' reports, all done; what was committed is remembered."""
        code = child.wait(timeout_s)
        assert code in (0, 3), f"{code}: {child.said()}{child.log()}"
        found: list[dict[str, Any]] = json.loads(child.said())["machines"]
        for machine in found:
            assert machine["outcome"] == "done", machine
            self.remember_point(machine["replica"], machine["point"], machine["machine"])
        return found

    def session(self, *arguments: str) -> list[dict[str, Any]]:
        """A session from beginning to end."""
        return self.finish(self.begin(*arguments))

    def nearby_server(self, **job: Any) -> BackupServer:
        """The backup server in this process, with what the configuration does not allow."""
        config = load_config(self.config)
        identity = IdentityFolder(self.folder / "identity")

        def connect(mover: MoverConfig) -> Link:
            role = needed_roles(config, mover.name)[0]
            with self.network["server"].inside():
                return tls.connect(mover.address, identity, mover.name, role, 10, role="server")

        jobs = {"job": replace(config.job("job"), **job)}
        return BackupServer(replace(config, jobs=jobs), make_link=connect)

    @contextlib.contextmanager
    def link(
        self, name: str, role: str = "", *, identity: IdentityFolder | None = None,
        host: str = "server", speaks: str = "server",
    ) -> Iterator[Link]:  # fmt: skip
        """A link from `host` to the mover, by default as its backup server."""
        identity = identity or IdentityFolder(self.folder / "identity")
        with self.network[host].inside():
            made = tls.connect(
                self.address(name), identity, name, role or self.roles[name][0], 10, role=speaks
            )
        with made:
            yield made

    # --- what must hold ----------------------------------------------------------------------

    def check_nothing_leaked(self, name: str = "vm1_replica") -> None:
        """See Site; and no task runs, no replica is open, no mover holds a file or a link."""
        super().check_nothing_leaked(name)
        for mover in self.roles:
            self.check_idle(mover)
        for path in (self.folder / "target").glob("*/replica.json"):
            assert not is_processing(self.replica(path.parent.name)), path
        with Store(load_config(self.config).state_place()) as store:
            assert store.journey_intents() == {}
            assert [report.id for report in store.unfinished_sessions()] == []
        running = [child.pid for child in self.children if child.poll() is None]
        assert running == []

    def check_idle(self, mover: str) -> None:
        """The mover has nothing to do and nothing open."""
        with self.link(mover) as link:
            told = ask(link, "join", generation=0)["tasks"]  # a guest, whoever leads
            running = [task for task in told if task["is_running"]]
            assert running == [], f"{mover} is at {running}"
        until = time.monotonic() + PATIENCE_S
        while held := self.held_by(mover):
            assert time.monotonic() < until, f"{mover} holds {held}"
            time.sleep(0.02)

    def held_by(self, mover: str) -> list[str]:
        """Files of the sites that the mover has open, and its connections."""
        pid = self.movers[mover].pid
        found = []
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = handle.readlink()
                is_ours = self.folder in target.parents and not target.is_dir()
                if is_ours and target.parent.name != "logs":
                    found.append(str(target))
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "01":  # established
                found.append(f"tcp {fields[1]} {fields[2]}")
        return found


def _has_begun(child: Child) -> bool:
    assert child.poll() is None, child.log()
    return "listens on" in child.said()


def ask(link: Link, verb: str, /, **arguments: Any) -> Any:
    """What the mover at the other end answers; raises what it refuses with."""
    link.send(Call(1, verb, arguments))
    message, _ = link.receive()
    if isinstance(message, Failed):
        raise error_from_wire(message.error)
    assert isinstance(message, Reply), message
    return message.result
