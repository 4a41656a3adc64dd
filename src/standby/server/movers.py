"""The backup server's handles on movers: start them as children, call their verbs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import standby
from standby.errors import LinkError, MoverDied, error_from_wire
from standby.units import MiB
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply
from standby.wire.shared_memory import SharedRing

SLOTS = 3
SLOT_SIZE = 16 * MiB
"""Slots per connection: one filling, one being written, one between them. A batch costs both sides
some 0.5 ms whatever its size (threads woken, tables checked), so a first session of a 2 GB disk
took 2.2 s with slots of 4 MiB, 2.7 s with 1 MiB and 1.6 s with 16 MiB; 48 MiB per disk that is
under way is what that costs, and a fourth slot gained nothing."""


class MoverHandle:
    """One mover: `call` a verb and wait. Thread-safe."""

    def __init__(
        self,
        name: str,
        link: Link,
        process: subprocess.Popen[bytes] | None,
        serving: threading.Thread | None = None,
    ) -> None:
        self.name = name
        self._serving = serving
        self.process = process
        self._link = link
        self._calls: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._next_id = 1
        self._dead = False
        self._thread = threading.Thread(target=self._receive, name=f"{name} replies", daemon=True)
        self._thread.start()

    def start(self, verb: str, /, **arguments: Any) -> Future[Any]:
        """Ask for `verb`; the future ends with its result, its error, or MoverDied."""
        future: Future[Any] = Future()
        with self._lock:
            if self._dead:
                raise self._death()
            number = self._next_id
            self._next_id += 1
            self._calls[number] = future
        try:
            self._link.send(Call(number, verb, arguments))
        except LinkError:
            with self._lock:
                self._calls.pop(number, None)
            raise self._death() from None
        return future

    def start_now(self, verb: str, /, **arguments: Any) -> Future[Any] | None:
        """As `start`; None where the mover is gone."""
        return None if self._dead else self.start(verb, **arguments)

    def call(self, verb: str, /, **arguments: Any) -> Any:
        """Ask for `verb` and wait for its result."""
        return self.start(verb, **arguments).result()

    def _receive(self) -> None:
        try:
            while True:
                message, _ = self._link.receive()
                if isinstance(message, Reply | Failed):
                    with self._lock:
                        future = self._calls.pop(message.id, None)
                    if future is None:
                        continue
                    if isinstance(message, Reply):
                        future.set_result(message.result)
                    else:
                        future.set_exception(error_from_wire(message.error))
        except LinkError:
            with self._lock:
                self._dead = True
                calls = list(self._calls.values())
                self._calls.clear()
            death = self._death() if calls else None
            for future in calls:
                future.set_exception(death)

    def _death(self) -> MoverDied:
        status = "its control link ended"
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(timeout=5)
                status = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        return MoverDied(self.name, status)

    @property
    def is_connected(self) -> bool:
        """Whether the mover can be asked now."""
        return not self._dead

    def cut(self) -> None:
        """End every call, now and from now on, with MoverDied, whatever the mover is doing or hangs
        in; it closes its files and ends as soon as it can. `close` is still to be called."""
        self._link.shutdown()

    def close(self) -> None:
        """End the mover in good order: it closes its files and exits."""
        self._link.shutdown()
        self._thread.join(timeout=10)
        self._link.close()
        if self._serving is not None:
            self._serving.join(timeout=30)
        if self.process is not None:
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class MoverPair:
    """A source and a target mover with `connections` data connections between them.

    `connection()` lends the number of a free one; a task uses it alone. A pair in which a task
    failed is `is_broken`: its connections may hold half a conversation, and it is not used again.
    """

    def __init__(self, source: MoverHandle, target: MoverHandle, connections: int) -> None:
        self.source = source
        self.target = target
        self.is_broken = False
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(connections):
            self._free.put(number)

    @contextlib.contextmanager
    def connection(self) -> Iterator[int]:
        """The number of a data connection, ours until the block ends."""
        number = self._free.get()
        try:
            yield number
        finally:
            self._free.put(number)

    def cut(self) -> None:
        """End every call of both movers (`MoverHandle.cut`); the pair is not used again."""
        self.is_broken = True
        self.source.cut()
        self.target.cut()

    def close(self) -> None:
        """End both movers."""
        self.source.cut()
        self.target.cut()
        self.source.close()
        self.target.close()

    def __enter__(self) -> MoverPair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def child_movers(connections: int = 2) -> MoverPair:
    """Start a source and a target mover as child processes of this one."""
    rings = [SharedRing.create(SLOTS, SLOT_SIZE) for _ in range(connections)]
    try:
        source, target = _started(connections, rings)
    finally:
        for handle in rings:
            SharedRing.close_handle(handle)
    return MoverPair(source, target, connections)


def _child_environment() -> dict[str, str]:
    environment = dict(os.environ)
    package_root = str(Path(standby.__file__).parent.parent)
    known = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = package_root + (os.pathsep + known if known else "")
    # One thread per stream is ours to choose; numpy's thread pools only cost start-up time.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


def _started(connections: int, rings: list[str]) -> tuple[MoverHandle, MoverHandle]:
    """Both children, each with its end of every connection: inherited descriptors on POSIX,
    sockets shared with the child's process id (over its standard input) on Windows."""
    with contextlib.ExitStack() as on_failure:
        data = [_pair(on_failure) for _ in range(connections)]
        handles = []
        for side, role in enumerate(("source", "target")):
            name = f"{role} mover"
            ours, theirs = _pair(on_failure)
            ends = [theirs, *(pair[side] for pair in data)]
            process = _child(name, role, ends, rings)
            for end in ends:
                end.close()
            handles.append(MoverHandle(name, Link(ours, name), process))
            on_failure.callback(handles[-1].close)
        on_failure.pop_all()
    return handles[0], handles[1]


def _pair(on_failure: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    return on_failure.enter_context(one), on_failure.enter_context(other)


def _child(
    name: str, role: str, ends: list[socket.socket], rings: list[str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "standby.road.mover"]
    environment = _child_environment()
    fixed: dict[str, Any] = {"name": name, "role": role, "rings": rings}
    fixed |= {"slots": SLOTS, "slot_size": SLOT_SIZE}
    if sys.platform == "win32":
        process = subprocess.Popen([*command, "-"], stdin=subprocess.PIPE, env=environment)
        shared = [base64.b64encode(end.share(process.pid)).decode() for end in ends]
        assert process.stdin is not None
        process.stdin.write(json.dumps(fixed | {"sockets": shared}).encode() + b"\n")
        process.stdin.close()
        return process
    else:
        numbers = [end.fileno() for end in ends]
        return subprocess.Popen(
            [*command, json.dumps(fixed | {"sockets": numbers})],
            stdin=subprocess.DEVNULL,
            pass_fds=(*numbers, *(int(handle) for handle in rings)),
            env=environment,
        )
