"""Two sites with a line between them, made of network namespaces: hosts with addresses of their
own, links that can be cut, lines with delay, rate and loss, bytes as the kernel counts them.

    with Network(wan=Line(delay_s=0.02, rate_bps=12_500_000)) as network:
        source, target = network["source"], network["target"]
        target.popen([sys.executable, "-m", "standby", "mover", "run", ...])
        source.run(["ping", "-c", "1", target.address])
        network.wan.down()
        source.link.counters().sent_bytes

The source site has `source`, `px1`, `px2` and `repository`, the target site `target` and `server`;
each site is a bridge, the line joins the two. Needs root. A line with delay, rate or loss is netem
where the kernel has it, else a process that carries frames between two TAP devices (`tap_line`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import judging

SITES: Mapping[str, Sequence[str]] = {
    "a": ("source", "px1", "px2", "repository"),
    "b": ("target", "server"),
}
NETWORKS = {"a": "10.77.1.0/24", "b": "10.77.2.0/24"}
"""The addresses of each site, for rules; one link-layer network carries both."""

HEADERS = 66
"""Of Ethernet, IPv4 and TCP with its time stamps, in front of what a frame carries."""
SEGMENT = 1448
"""What a TCP segment carries at most."""

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Line:
    """One direction's delay and loss (share of frames), and the rate in bytes per second; None:
    as fast as the machine."""

    delay_s: float = 0.0
    rate_bps: int | None = None
    loss: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it does nothing to what it carries."""
        return not self.delay_s and self.rate_bps is None and not self.loss

    @property
    def is_rate_only(self) -> bool:
        """Whether it does nothing but keep to its rate."""
        return not self.delay_s and self.rate_bps is not None and not self.loss


@dataclass(frozen=True, slots=True)
class Counters:
    """What an interface has carried."""

    sent_bytes: int
    received_bytes: int
    sent_packets: int
    received_packets: int


def _ip(*words: str | int) -> str:
    command = ["ip", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _ip_batch(lines: Sequence[str], space: str = "") -> None:
    """Several commands of `ip` in one process, in a namespace where one is named; one that fails
    does not keep the others from being tried."""
    command = ["ip", *(("-n", space) if space else ()), "-force", "-batch", "-"]
    text = "\n".join(lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def obstacle() -> str:
    """Why no network can be made here; '' when it can."""
    if sys.platform != "linux":
        return "Linux (network namespaces)"
    if os.geteuid() != 0:
        return "root (network namespaces)"
    name = f"sbprobe{os.getpid():x}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except OSError as exc:
        return f"the right to make network namespaces ({exc})"
    return ""


def require_network() -> None:
    """Skip the test where no network can be made; in CI, fail it."""
    problem = obstacle()
    if problem:
        judging.missing(problem)


def has_netem() -> bool:
    """Whether the kernel delays packets itself."""
    return _has_discipline("netem", "delay", "1ms")


def has_tbf() -> bool:
    """Whether the kernel keeps to a rate itself."""
    return _has_discipline("tbf", "rate", "1mbit", "burst", "64k", "latency", "1ms")


@functools.cache
def _has_discipline(*words: str) -> bool:
    name = f"sbprobe{os.getpid():x}"
    _ip("netns", "add", name)
    try:
        probe = ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root", *words]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    finally:
        _ip("netns", "del", name)


def enter(space: str) -> None:
    """Have the calling thread live in the namespace at that path; sockets keep theirs."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(space) as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {space}")


@contextlib.contextmanager
def within(space: str) -> Iterator[None]:
    """The calling thread lives in the namespace of that name until the block ends."""
    home = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    with open(home) as kept:
        enter(f"/run/netns/{space}")
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{kept.fileno()}")


def read_there(space: str, name: str) -> str:
    """What /proc/net/`name` says in the namespace of that name; at once, without a process."""
    with within(space):
        return Path(f"/proc/thread-self/net/{name}").read_text()


def tcp_counters(space: str) -> dict[str, int]:
    """What TCP has counted there, by the kernel's names."""
    lines = read_there(space, "snmp").splitlines()
    names, values = [line.split()[1:] for line in lines if line.startswith("Tcp:")]
    return dict(zip(names, map(int, values), strict=True))


class Link:
    """A host's cable: `down` cuts it, `up` restores it."""

    def __init__(self, space: str, device: str) -> None:
        self._space = space
        self._device = device

    def down(self) -> None:
        """From now on nothing passes, and nobody is told."""
        _ip("-n", self._space, "link", "set", self._device, "down")

    def up(self) -> None:
        """It carries again."""
        _ip("-n", self._space, "link", "set", self._device, "up")


class HostLink(Link):
    """A host's cable, with its interface's counters."""

    def __init__(self, space: str, device: str, host: str) -> None:
        super().__init__(space, device)
        self._host = host

    def counters(self) -> Counters:
        """Bytes with Ethernet headers, without preamble and check sum."""
        for line in read_there(self._host, "dev").splitlines():
            name, _, values = line.partition(":")
            if name.strip() == "eth0":
                numbers = [int(value) for value in values.split()]
                return Counters(numbers[8], numbers[0], numbers[9], numbers[1])
        raise OSError(f"{self._host} has no eth0")

    def payload_bytes(self) -> int:
        """What TCP has sent, about, each byte once. Headers do not count: the smaller the parts in
        which a process sends, or gets to send on a busy machine, the more of them there are. Nor
        does what TCP sent again because a queue was full or an answer late."""
        counters = self.counters()
        again = tcp_counters(self._host)["RetransSegs"]
        return counters.sent_bytes - HEADERS * counters.sent_packets - SEGMENT * again


class Host:
    """A machine of the network: a network of its own, the files and processes of this one."""

    def __init__(self, name: str, space: str, address: str, link: HostLink) -> None:
        self.name = name
        self.space = space
        self.address = address
        self.link = link
        self._processes: list[subprocess.Popen[Any]] = []

    def run(self, command: Sequence[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end; another exit code than 0 raises with what it said."""
        words = ["ip", "netns", "exec", self.space, *map(str, command)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60} | more
        done: subprocess.CompletedProcess[str] = subprocess.run(words, check=False, **options)
        if done.returncode:
            raise OSError(f"{self.name}: {command} ended with {done.returncode}: {done.stderr}")
        return done

    def popen(self, command: Sequence[str | Path], **more: Any) -> subprocess.Popen[Any]:
        """Start a process there. It ends with the network, if not before."""
        words = ["ip", "netns", "exec", self.space, *map(str, command)]
        process = subprocess.Popen(words, **more)
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is on this host until the block ends: sockets that it makes stay
        there, other threads do not follow."""
        with within(self.space):
            yield

    def listen(self) -> socket.socket:
        """A listening TCP socket on a free port of this host."""
        with self.inside():
            return socket.create_server((self.address, 0))

    def connect(self, listener: socket.socket, timeout_s: float | None = 10) -> socket.socket:
        """A TCP connection from this host to that listener."""
        with self.inside():
            return socket.create_connection(listener.getsockname()[:2], timeout_s)

    def end(self) -> None:
        """Kill what runs there."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=30)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for number in _ip("netns", "pids", self.space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


class Network:
    """The whole of it, gone at the end of the block with every process in it."""

    def __init__(
        self,
        wan: Line | None = None,
        *,
        offload: bool = False,
        sites: Mapping[str, Sequence[str]] = SITES,
    ) -> None:
        """`offload`: interfaces take segments of 64 KiB, faster, and count one header for each;
        without it they count what a wire would carry. `sites`: the hosts of `a` and `b`."""
        self._line = wan or Line()
        self._sites = sites
        self._offload = offload
        self._prefix = f"sb{os.getpid():x}.{next(_numbers)}-"
        self._spaces: list[str] = []
        self._carrier: subprocess.Popen[bytes] | None = None
        self.hosts: dict[str, Host] = {}
        self.wan = Link(self._prefix + "a", "wan")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and remove all namespaces."""
        for host in self.hosts.values():
            with contextlib.suppress(OSError):
                host.end()
        if self._carrier is not None:
            self._carrier.kill()
            self._carrier.wait(timeout=30)
        if self._spaces:
            with contextlib.suppress(OSError):
                _ip_batch([f"netns del {space}" for space in reversed(self._spaces)])
        self._spaces.clear()

    # --- building ----------------------------------------------------------------------------

    def _build(self) -> None:
        self._add_spaces(name for site, hosts in self._sites.items() for name in (site, *hosts))
        for site, names in self._sites.items():
            bridge = self._prefix + site
            lines = [
                "link set lo up",
                "link add br0 type bridge forward_delay 0",
                "link set br0 up",
            ]
            for number, name in enumerate(names, 1):
                port = f"port{number}"
                peer = f"type veth peer eth0 netns {self._prefix}{name}"
                lines += [f"link add {port} {peer}", f"link set {port} master br0 up"]
            _ip_batch(lines, bridge)
            for number, name in enumerate(names, 1):
                self._set_up_host(site, bridge, number, name)
        self._join(self._prefix + "a", self._prefix + "b")

    def _add_spaces(self, names: Iterable[str]) -> None:
        self._spaces = [self._prefix + name for name in names]  # some, when it fails halfway
        _ip_batch([f"netns add {space}" for space in self._spaces])

    def _set_up_host(self, site: str, bridge: str, number: int, name: str) -> None:
        space = self._prefix + name
        address = f"{NETWORKS[site].rpartition('.')[0]}.{number}"
        segments = "" if self._offload else "gso_max_segs 1"
        lines = [
            "link set lo up",
            f"link set eth0 {segments} up",
            f"address add {address}/16 dev eth0",
        ]
        _ip_batch(lines, space)
        link = HostLink(bridge, f"port{number}", space)
        self.hosts[name] = Host(name, space, address, link)

    def _join(self, near: str, far: str) -> None:
        """The line between the sites' bridges."""
        line = self._line
        if line.is_plain or has_netem() or (line.is_rate_only and has_tbf()):
            _ip("-n", near, "link", "add", "wan", "type", "veth", "peer", "wan", "netns", far)
            for space in () if line.is_plain else (near, far):
                self._shape(space)
        else:
            command = [sys.executable, str(Path(__file__).with_name("tap_line.py")), near, far]
            numbers = [line.delay_s, line.rate_bps or 0, line.loss]
            self._carrier = subprocess.Popen([*command, *map(str, numbers)], stdout=subprocess.PIPE)
            assert self._carrier.stdout is not None
            with self._carrier.stdout as ready:
                if ready.readline() != b"ready\n":
                    raise OSError("the line's process did not start")
        for space in (near, far):
            _ip("-n", space, "link", "set", "wan", "master", "br0", "up")

    def _shape(self, space: str) -> None:
        line = self._line
        if has_netem():
            words = ["netem", "delay", f"{line.delay_s * 1e6:.0f}us", "limit", "20000"]
            if line.rate_bps:
                words += ["rate", f"{line.rate_bps * 8}bit"]
            if line.loss:
                words += ["loss", f"{line.loss:%}"]
        else:
            rate = f"{(line.rate_bps or 0) * 8}bit"
            words = ["tbf", "rate", rate, "burst", "256k", "latency", "50ms"]
        _ip("netns", "exec", space, "tc", "qdisc", "add", "dev", "wan", "root", *words)
