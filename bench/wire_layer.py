"""Figure 6: what the wire layer costs.

    python bench/wire_layer.py [--small] [--json] [--turns N] [--in FOLDER]

Memory to memory between two processes over loopback TCP, incompressible data. Ours is the road's
own traffic: batches with their tables as frames over a `Link` (with TLS: through `connect` and
`Listener`, deadlines on), each cut apart and its leaves computed and compared with those sent. The
others are bare pumps: `sendall` and `recv_into` of 1 MiB on a socket, or on an `ssl.SSLSocket`,
TLS 1.3 with the same certificates and cipher. The folder is used for certificates only.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from standby import comparing, digesting
from standby.digesting import PIECE
from standby.road.batches import parsed_batch
from standby.road.read_ahead import ReadAhead
from standby.units import GiB, MiB
from standby.wire import authority, tls
from standby.wire.accepting import address_text
from standby.wire.identity import IdentityFolder
from standby.wire.link import BETWEEN_MACHINES, Link
from standby.wire.messages import Batch, Finish, Finished, Message
from timing import Claim, Contender, Report, Timed, arguments, in_turns, run_bench

BATCH = 8 * MiB
"""Data of one batch."""

DISTINCT = 4
"""Batches with content of their own, sent in turns: more than the processor's caches hold."""

PUMP = MiB
"""Bytes a call of the bare pumps: more gained nothing."""

KINDS = ("bare socket", "bare ssl socket", "standby plain", "standby TLS")
Said = tuple[str, Any]


def content() -> list[tuple[np.ndarray, np.ndarray, memoryview]]:
    """Batches as the source proxy sends them: rows, leaves, data."""
    chance = np.random.default_rng(6)
    made = []
    for number in range(DISTINCT):
        data = chance.bytes(BATCH)
        rows = np.array([[number * BATCH, BATCH, 1]], np.int64)
        made.append((rows, digesting.leaves(data), memoryview(data)))
    return made


def batch_of(leaves: np.ndarray) -> Batch:
    """The message in front of a batch."""
    return Batch(1, len(leaves), BATCH)


# --- the receiving process -------------------------------------------------------------------


def receive_all(control: Connection, folder: Path) -> None:
    """Entry of the receiving process: serves one transfer per request until told to end."""
    identity = IdentityFolder(folder / "target")
    while True:
        kind, total = control.recv()
        if kind == "end":
            return
        if kind == "standby TLS":
            _receive_listening(control, identity, total)
            continue
        with socket.create_server(("127.0.0.1", 0)) as server:
            control.send(address_text(server.getsockname()))
            connection, _ = server.accept()
        if kind == "bare ssl socket":
            context = identity.context(is_server=True)
            connection = context.wrap_socket(connection, server_side=True)
        if kind == "standby plain":
            with Link(connection, "source", BETWEEN_MACHINES) as link:
                take_batches(link, total)
        else:
            with connection:
                pump_in(connection, total)


def _receive_listening(control: Connection, identity: IdentityFolder, total: int) -> None:
    done = threading.Event()

    def take(link: Link, _: tls.Peer) -> None:
        with link:
            take_batches(link, total)
        done.set()

    with tls.Listener("127.0.0.1:0", identity, take) as listener:
        control.send(listener.address)
        done.wait()


def pump_in(connection: socket.socket, total: int) -> None:
    """The bare receiver."""
    buffer = bytearray(PUMP)
    done = 0
    while done < total:
        count = connection.recv_into(buffer)
        if not count:
            raise SystemExit("the pump's connection ended early")
        done += count
    connection.sendall(b"!")


def take_batches(link: Link, total: int) -> None:
    """Our receiver, as the target proxy's: every batch is cut apart and every leaf checked while
    the next one comes in."""
    with contextlib.closing(ReadAhead(link)) as ahead:
        done = _taken(ahead, link.peer)
    if done != total:
        raise SystemExit(f"{done} bytes came, {total} were sent")
    link.send(Finished(done, 0))


def _taken(ahead: ReadAhead, peer: str) -> int:
    done = 0
    while True:
        message, payload = ahead.receive()
        if isinstance(message, Finish):
            return done
        if not isinstance(message, Batch):
            raise SystemExit(f"unexpected {message}")
        batch = parsed_batch(message, payload, None, 64 * GiB, peer)
        if not np.array_equal(digesting.leaves(batch.data), batch.leaves):
            raise SystemExit("the data is not what was sent")
        done += len(batch.data)


# --- the sending process ---------------------------------------------------------------------


class Sender:
    """Sends `total` bytes as any of KINDS; seconds from the connected socket to the receiver's
    word that it has all."""

    def __init__(self, control: Connection, folder: Path, total: int) -> None:
        self.control = control
        self.identity = IdentityFolder(folder / "source")
        self.total = total
        self.batches = content()

    def run(self, kind: str) -> Timed:
        """One transfer."""
        self.control.send((kind, self.total))
        address = self.control.recv()
        if kind == "standby TLS":
            link = tls.connect(address, self.identity, "target", "target")
            return self._batches(link)
        host, _, port = address.rpartition(":")
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == "standby plain":
            return self._batches(Link(connection, "target", BETWEEN_MACHINES))
        if kind == "bare ssl socket":
            connection = self.identity.context(is_server=False).wrap_socket(connection)
        return self._pump(connection)

    def _pump(self, connection: socket.socket) -> Timed:
        with connection:
            begun = time.perf_counter()
            for number in range(self.total // BATCH):
                data = self.batches[number % DISTINCT][2]
                for start in range(0, BATCH, PUMP):
                    connection.sendall(data[start : start + PUMP])
            answer = connection.recv(1)
            return Timed(time.perf_counter() - begun, answer == b"!")

    def _batches(self, link: Link) -> Timed:
        with link:
            begun = time.perf_counter()
            for number in range(self.total // BATCH):
                rows, leaves, data = self.batches[number % DISTINCT]
                link.send(batch_of(leaves), rows, leaves, data)
            link.send(Finish())
            answer: Message = link.receive()[0]
            return Timed(time.perf_counter() - begun, answer == Finished(self.total, 0))


def must_be_true(value: bool) -> None:
    """Every byte arrived."""
    if not value:
        raise SystemExit("the receiver did not take everything")


def make_identities(folder: Path) -> None:
    """An authority and both ends' certificates."""
    made = authority.Authority.create(folder / "authority", "bench")
    for name in ("source", "target"):
        identity = IdentityFolder(folder / name)
        certificate = made.issue(identity.request(), name, [name])
        identity.install(certificate, made.certificate, made.revocations())


@contextlib.contextmanager
def sending(folder: Path, total: int) -> Iterator[Sender]:
    """A sender of `total` bytes and a process that receives; `folder` holds their certificates."""
    make_identities(folder)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    receiver = context.Process(target=receive_all, args=(theirs, folder), daemon=True)
    receiver.start()
    theirs.close()
    yield Sender(ours, folder, total)
    ours.send(("end", 0))
    receiver.join()


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure; `folder` holds the certificates."""
    total = 512 * MiB if options.small else 2 * GiB
    with sending(folder, total) as sender:

        def runner(kind: str) -> Callable[[], Timed]:
            return lambda: sender.run(kind)

        contenders = [Contender(kind, runner(kind), check=must_be_true) for kind in KINDS]
        result = in_turns(contenders, options.turns)
    report.times(result, total, "bare socket")
    report.claims = [
        _claim(result, "TLS", "standby TLS", "bare ssl socket", 0.8),
        _claim(result, "plain", "standby plain", "bare socket", 0.6),
    ]
    report.facts |= {"openssl": ssl.OPENSSL_VERSION, "leaf kernel": comparing.kernel_variant()}
    report.notes.append(f"batches of {BATCH // MiB} MiB with {BATCH // PIECE} leaves each")


def _claim(result: Any, what: str, name: str, to: str, goal: float) -> Claim:
    low, high = result.ratio_range(to, name)
    return Claim(
        f"{what}: speed over that of a {to} pump",
        result.ratio(to, name),
        goal,
        is_at_most=False,
        spread=(low, high),
    )


if __name__ == "__main__":
    sys.exit(run_bench("wire layer", arguments(__doc__, turns=5), bench))
