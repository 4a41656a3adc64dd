"""Killing our own code at any change it makes to the file system, without a process to kill.

Every change is counted: creating, writing, resizing, punching, renaming, removing. At the chosen
one `Crash` is raised instead, and from then on at every other, so that clean-up code on the way
out cannot change anything either: the files are as a SIGKILL would have left them. `torn` lets the
fatal write happen in part. With `power_seed` the machine loses power too: of the writes that no
sync covered, some are lost, in any combination.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from standby import killpoints
from standby.files import ByteLock, File, durability

SECTOR = 512


class Crash(BaseException):
    """The end of the simulated process."""


class Crasher:
    """Counts changes and ends the simulated process at one of them."""

    def __init__(self, at: int | None, *, torn: bool = False, power_seed: int | None = None):
        self.count = 0
        self.at = at
        self.torn = torn
        self.power_seed = power_seed
        self.is_dead = False
        self.held: list[File | ByteLock] = []
        self.unsynced: dict[str, list[tuple[int, bytes, bytes, int]]] = {}

    def change(self) -> bool:
        """Called before a change: True when it is the fatal one and may be torn."""
        if self.is_dead:
            raise Crash
        self.count += 1
        if self.at is not None and self.count >= self.at:
            self.is_dead = True
            if not self.torn:
                raise Crash
            return True
        return False

    def remember(self, file: File, offset: int, new: bytes) -> None:
        """Keep what a write replaces until a sync makes the write stable."""
        if self.power_seed is None:
            return
        size = file.size
        length = max(0, min(len(new), size - offset))
        old = file.read(offset, length) if length else b""
        self.unsynced.setdefault(str(file.path), []).append((offset, old, new, size))

    def end(self) -> None:
        """What the system does for a dead process: close its files, drop its locks."""
        for item in self.held:
            if isinstance(item, File):
                item.close()
            else:
                item.release()
        self.lose_power()

    def lose_power(self) -> None:
        """Take away some of what was not synced: any subset, as a device may reorder."""
        if self.power_seed is None:
            return
        choice = random.Random(self.power_seed * 1_000_003 + self.count)
        for name, writes in self.unsynced.items():
            path = Path(name)
            if not path.exists():
                continue
            with path.open("r+b") as file:
                for offset, old, _, size in reversed(writes):
                    file.seek(offset)
                    file.write(old)
                    file.truncate(size)
                for offset, _, new, _ in writes:
                    if choice.random() < 0.5:
                        file.seek(offset)
                        file.write(new)


@contextmanager
def crashing(
    patch: pytest.MonkeyPatch,
    at: int | None = None,
    *,
    torn: bool = False,
    power_seed: int | None = None,
    kill_point: tuple[str, int] | None = None,
) -> Iterator[Crasher]:
    """Run the block as a process that dies at change `at`, or when `kill_point` (name, time) is
    reached; the Crash is swallowed. Without either it only counts."""
    crasher = Crasher(at, torn=torn, power_seed=power_seed)
    times = 0

    def reached(name: str) -> None:
        nonlocal times
        if crasher.is_dead:
            raise Crash
        if kill_point is not None and name == kill_point[0]:
            times += 1
            if times == kill_point[1]:
                crasher.is_dead = True
                raise Crash

    with patch.context() as context:
        _wrap(context, crasher)
        killpoints.install(reached)
        try:
            yield crasher
        except Crash:
            pass
        finally:
            killpoints.install(None)
    if crasher.is_dead:
        crasher.end()


def _wrap(patch: pytest.MonkeyPatch, crasher: Crasher) -> None:
    plain_init, plain_write = File.__init__, File.write
    plain_acquire = ByteLock.acquire
    plain_resize, plain_punch, plain_sync = File.resize, File.punch, File.sync

    def init(self: File, path: Path, *, writable: bool = False, create: bool = False) -> None:
        if create:
            crasher.change()
        plain_init(self, path, writable=writable, create=create)
        crasher.held.append(self)

    def write(self: File, data: object, offset: int) -> None:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        is_fatal = crasher.change()
        if is_fatal:
            view = view[: len(view) // 2 // SECTOR * SECTOR]
        crasher.remember(self, offset, bytes(view))
        plain_write(self, view, offset)
        if is_fatal:
            raise Crash

    def copy_from(self: File, source: File, place: int, length: int, offset: int) -> int:
        write(self, source.read(place, length), offset)
        return length

    def resize(self: File, size: int) -> None:
        if crasher.change():
            raise Crash
        plain_resize(self, size)

    def punch(self: File, offset: int, length: int) -> bool:
        if crasher.change():
            raise Crash
        crasher.unsynced.pop(str(self.path), None)  # a punch waits for what came before it
        return plain_punch(self, offset, length)

    def sync(self: File) -> None:
        if crasher.is_dead:
            raise Crash
        plain_sync(self)
        crasher.unsynced.pop(str(self.path), None)

    def acquire(self: ByteLock) -> bool:
        crasher.held.append(self)
        return plain_acquire(self)

    patch.setattr(ByteLock, "acquire", acquire)
    patch.setattr(File, "__init__", init)
    patch.setattr(File, "write", write)
    patch.setattr(File, "copy_from", copy_from)
    patch.setattr(File, "resize", resize)
    patch.setattr(File, "punch", punch)
    patch.setattr(File, "sync", sync)
    patch.setattr(durability, "os", _CountedCalls(crasher))


class _CountedCalls:
    """The module `os` as `files.durability` sees it: what changes names is a change."""

    def __init__(self, crasher: Crasher) -> None:
        self._crasher = crasher

    def __getattr__(self, name: str) -> Any:
        plain = getattr(os, name)
        if name not in ("replace", "unlink", "link", "mkdir"):
            return plain

        def call(path: str, *arguments: object, **options: object) -> object:
            if self._crasher.change():
                raise Crash
            moved = self._crasher.unsynced.pop(path, None) if name != "link" else None
            if name == "replace" and moved:
                self._crasher.unsynced[str(arguments[0])] = moved
            return plain(path, *arguments, **options)

        return call
