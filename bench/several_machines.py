"""Figure 8: what it costs that the road leads through several machines.

    python bench/several_machines.py [--small] [--json] [--turns N] [--in FOLDER]

The same job in turns: with child movers of the backup server (socket pairs, shared memory); with
two service movers, a source site's and a target site's, over loopback without TLS (`plain = true`;
such movers share memory for what travels, the sockets carry tables); over loopback with TLS. First
session of a VM and the session after a day of changes, VHDX to VHDX. Movers run before the clock
starts; what starting them takes is told apart. Every session's point is compared with the source,
untimed. With `auto` compression the first session is to be as fast as with none: loopback is a fast
link. The bare pumps of wire_layer.py move as many bytes in the same turns, from memory to memory:
what the whole road, disk to disk with all that is proved on it, is measured by. What a machine
allows such a road is told by its floor: the same bytes read, hashed, written, synced, read back and
hashed by plain calls in two processes that share memory, without format, protocol or log.
Processor seconds of server and movers are told beside, for machines that others use too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import floors
import standby
import wire_layer
from installation import (
    Installation,
    changed_pieces,
    content_bytes,
    must_be_done,
    must_be_equal,
    nonzero_bytes,
    session,
    write_pieces,
)
from standby.model.report import SessionReport
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder
from timing import (
    Claim,
    Contender,
    Report,
    Result,
    Timed,
    arguments,
    copy,
    disks,
    in_turns,
    run_bench,
    warm,
)

ALONE, PLAIN, TLS = "child movers", "service movers, plain", "service movers, TLS"
PUMPS = ("bare socket", "bare ssl socket")
FLOOR = "the road by plain calls"
KINDS = (ALONE, PLAIN, TLS)
FULL, DAY = "first session", "a day of changes"
ROLES = {"here": ("host", "source", "repository"), "there": ("host", "target")}
SIDES = {"here": ("production", "repository"), "there": ("recovery",)}

_CONFIG = """\
[standby]
installation = "bench"
{movers}
[hosts.production]
kind = "folder"
path = "{folder}/production"
mover = "here"
[hosts.recovery]
kind = "folder"
path = "{folder}/recovery"
mover = "there"
[repositories.main]
path = "{folder}/repository"
mover = "here"
[proxies.here]
mover = "here"
side = "source"
[proxies.there]
mover = "there"
side = "target"
[jobs.bench]
source = "production"
target = "recovery"
machines = ["*"]
compression = "{compression}"
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class Spent:
    """What movers and server took beside wall-clock time."""

    started_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0


class Movers:
    """Two service movers as processes, for an installation's folder."""

    def __init__(self, folder: Path, *, plain: bool, compression: str) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        ports = {name: free_port() for name in ROLES}
        made = Authority.create(folder / "authority", "bench")
        identities = {"server": folder / "identity"}
        for name in ROLES:
            home = folder / f"mover-{name}"
            identities[name] = folder / "identity" if plain else home / "identity"
            home.mkdir()
            lines = [
                f'name = "{name}"',
                f'listen = "127.0.0.1:{ports[name]}"',
                f'identity = "{identities[name]}"',
                'state = "state"',
                f"plain = {json.dumps(plain)}",
                f"roles = {json.dumps(ROLES[name])}",
                "[roots]",
                *(f'{side} = "{folder / side}"' for side in SIDES[name]),
            ]
            (home / "mover.toml").write_text("\n".join(lines) + "\n")
        if not plain:
            for name, place in identities.items():
                identity = IdentityFolder(place)
                roles = ROLES.get(name, ("server",))
                certificate = made.issue(identity.request(), name, roles)
                identity.install(certificate, made.certificate, made.revocations())
        movers = "\n".join(
            f'[movers.{name}]\naddress = "127.0.0.1:{port}"\nplain = {json.dumps(plain)}'
            for name, port in ports.items()
        )
        text = _CONFIG.format(folder=folder, movers=movers, compression=compression)
        (folder / "standby.toml").write_text(text)

    def start(self) -> None:
        """Start both and wait until they listen."""
        for name in ROLES:
            home = self.folder / f"mover-{name}"
            command = [sys.executable, "-m", "standby", "mover", "run", "--config"]
            with (home / "log").open("a") as log:
                process = subprocess.Popen(
                    [*command, home / "mover.toml"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self.processes.append(process)
        for process in self.processes:
            assert process.stdout is not None
            if "listens on" not in process.stdout.readline():
                raise SystemExit(f"a mover does not listen; see {self.folder}/mover-*/log")

    def close(self) -> None:
        """End both."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            assert process.stdout is not None
            process.stdout.close()
            process.wait(60)
        self.processes = []


class Road:
    """One kind of road with an installation of its own, on the same VM."""

    def __init__(self, folder: Path, kind: str, disk: Path, *, compression: str = "none") -> None:
        self.folder = folder
        self.kind = kind
        self.installation = Installation(folder, compression=compression)
        self.movers: Movers | None = None
        if kind != ALONE:
            self.movers = Movers(folder, plain=kind == PLAIN, compression=compression)
        self.disk = disk
        self.source = self.installation.add_machine("web01", disk)
        self.source.unlink()
        self.server: standby.BackupServer | None = None
        self.spent = Spent()
        self.steps_s: dict[str, list[float]] = {}

    def close(self) -> None:
        """End server and movers, with their peak of memory noted."""
        if self.server is not None:
            self._note_peak()
            self.server.close()
            self.server = None
        if self.movers is not None:
            self.movers.close()

    def empty(self) -> None:
        """End what runs, and leave no disk: the place may be memory, which must do for one road."""
        self.close()
        self.source.unlink(missing_ok=True)
        for name in ("recovery", "repository"):
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()
        for path in self.folder.glob("*.sqlite*"):
            path.unlink()

    def begin(self) -> None:
        """The VM's first state, no replica, and movers that have done nothing yet."""
        self.empty()
        copy(self.disk, self.source)
        warm(self.source)
        begun = time.perf_counter()
        if self.movers is not None:
            self.movers.start()
        self.server = standby.BackupServer(self.folder / "standby.toml")
        if self.movers is None:
            self.server.start_movers()
        self.spent.started_s.append(time.perf_counter() - begun)

    def run(self) -> Timed:
        """One session."""
        assert self.server is not None
        before = self._cpu_s()
        timed = session(self.server)
        self.spent.cpu_s.append(self._cpu_s() - before)
        return timed

    def check(self, report: SessionReport) -> None:
        """The session is done, the new point is what the source is."""
        must_be_done(report)
        for step, seconds in report.machines[0].steps_s.items():
            self.steps_s.setdefault(step, []).append(seconds)
        must_be_equal(self.source, self.installation.newest_layer("web01"))
        self.empty()

    def forget(self) -> None:
        """Begin to measure anew."""
        self.steps_s.clear()
        self.spent.started_s.clear()
        self.spent.cpu_s.clear()

    def _pids(self) -> list[int]:
        if self.movers is not None:
            return [process.pid for process in self.movers.processes]
        assert self.server is not None
        pairs = self.server.crews._idle
        handles = [mover for pair in pairs for mover in (pair.source, pair.target)]
        return [mover.process.pid for mover in handles if mover.process is not None]

    def _cpu_s(self) -> float:
        """Processor seconds so far of the server, which is this process, and the movers."""
        total = time.process_time()
        for pid in self._pids():
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def _note_peak(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
                self.spent.peak_bytes = max(self.spent.peak_bytes, int(line.split()[1]) * 1024)


@contextlib.contextmanager
def all_closed(roads: dict[str, Road]) -> Iterator[None]:
    """End what runs behind the block."""
    try:
        yield
    finally:
        for road in roads.values():
            road.close()


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = disks(options)
    pieces = changed_pieces(made.path("base", "raw"), made.path("next", "raw"))
    size = nonzero_bytes(made.path("base", "raw"))
    auto = f"{PLAIN}, auto"
    roads = {kind: Road(folder / str(n), kind, made.path("base")) for n, kind in enumerate(KINDS)}
    roads[auto] = Road(folder / "auto", PLAIN, made.path("base"), compression="auto")

    def first(kind: str) -> Contender:
        road = roads[kind]
        return Contender(kind, road.run, lambda: road.begin(), road.check)

    def day(kind: str) -> Contender:
        road = roads[kind]

        def prepare() -> None:
            road.begin()
            assert road.server is not None
            must_be_done(session(road.server).value)
            write_pieces(road.source, pieces)
            warm(road.source)

        return Contender(kind, road.run, prepare, road.check)

    disk, target = made.path("base"), folder / "floor.vhdx"
    ranges = floors.data_ranges(disk)
    with all_closed(roads):
        with (
            wire_layer.sending(
                folder / "pumps", size // wire_layer.BATCH * wire_layer.BATCH
            ) as bare,
            floors.whole_road() as plain_calls,
        ):
            pumps = [
                Contender(kind, partial(bare.run, kind), check=wire_layer.must_be_true)
                for kind in PUMPS
            ]
            floor = Contender(
                FLOOR,
                lambda: Timed(plain_calls.run(disk, target, ranges), None),
                prepare=lambda: warm(disk),
                check=lambda _: target.unlink(),
            )
            full = in_turns([*(first(kind) for kind in roads), *pumps, floor], options.turns)
        _note(report, roads, FULL)
        daily = in_turns([day(kind) for kind in KINDS], options.turns)
        _note(report, roads, DAY)
    report.times(_named(full, FULL), size, f"{FULL}, {ALONE}")
    report.times(_named(daily, DAY), content_bytes(pieces), f"{DAY}, {ALONE}")
    for what, result in ((FULL, full), (DAY, daily)):
        report.claims.append(_claim(result, f"{what}: plain", PLAIN, ALONE, 1.15))
        report.claims.append(_claim(result, f"{what}: TLS", TLS, ALONE, 2.2))
    faster = _claim(full, "", PLAIN, auto, 0.97)
    faster.text = f"{FULL}, plain: speed with auto compression over that with none"
    faster.is_at_most = False
    report.claims.append(faster)
    for name, pump, goal in ((TLS, PUMPS[1], 0.6), (PLAIN, PUMPS[0], 0.45)):
        road_speed = _claim(full, "", pump, name, goal)
        road_speed.text = f"{FULL}, {name}: speed of the whole road over that of a {pump} pump"
        road_speed.is_at_most = False
        report.claims.append(road_speed)
    allowed = _claim(full, "", PUMPS[0], FLOOR, 0.0)
    allowed.text = f"{FLOOR}: its speed over that of a {PUMPS[0]} pump"
    allowed.goal = None
    report.claims.append(allowed)
    report.claims.append(
        Claim(
            f"{FULL}: plain over {FLOOR}",
            full.ratio(PLAIN, FLOOR),
            spread=full.ratio_range(PLAIN, FLOOR),
        )
    )
    peak = max(road.spent.peak_bytes for road in roads.values())
    report.claims.append(Claim("most memory of a mover, MiB", peak / 2**20, 256))


def _named(result: Result, what: str) -> Result:
    return Result({f"{what}, {kind}": seconds for kind, seconds in result.seconds.items()})


def _claim(result: Result, what: str, name: str, to: str, goal: float) -> Claim:
    return Claim(
        f"{what} over {to}",
        result.ratio(name, to),
        goal,
        spread=result.ratio_range(name, to),
    )


def _note(report: Report, roads: dict[str, Road], what: str) -> None:
    """Median seconds of starting, and of each step."""
    for kind, road in roads.items():
        if road.steps_s:
            started = statistics.median(road.spent.started_s)
            told = ", ".join(
                f"{step} {statistics.median(taken):.3f}" for step, taken in road.steps_s.items()
            )
            cpu = statistics.median(road.spent.cpu_s)
            report.notes.append(
                f"{what}, {kind}: {cpu:.2f} s of processor; movers started in {started:.2f} s; "
                f"{told}"
            )
        road.forget()


if __name__ == "__main__":
    sys.exit(run_bench("several machines", arguments(__doc__, turns=5), bench))
