"""Who may touch a VM's disks now: our own lock file, and the locks that writers hold on images.

`<VM folder>/.standby.lock` (bytes are locked, the file stays empty):

    byte 0          whoever starts, stops or looks at the VM's processes, for that long only
    bytes 1 … 63    one per checkpoint by identity, held while the checkpoint stands:
                    our power-on refuses, other checkpoints do not
    bytes 4096 …    one per clone folder, by its name: held while its owner lives

QEMU's image locks (block/file-posix.c, and docs/system/images.rst): a process that uses
permission n holds a shared lock on byte 100+n, one that forbids others n on byte 200+n.
Permissions: 0 consistent read, 1 write, 2 write unchanged, 3 resize.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from standby.disk.vhdx.opening import LOCK_BYTE
from standby.files import ByteLock, is_byte_locked, is_range_locked

LOCK_FILE = ".standby.lock"
_POWER_BYTE = 0
_CHECKPOINT_BYTES = range(1, 64)
_CLONE_BYTES = (4096, 1 << 30)
_QEMU_WRITES = (101, 3)
"""First byte and count: write, write unchanged, resize."""


def power_lock(folder: Path) -> ByteLock:
    """The lock for starting, stopping and looking at the VM's processes."""
    return ByteLock(folder / LOCK_FILE, _POWER_BYTE)


def is_power_locked(folder: Path) -> bool:
    """Whether another process starts or stops the VM now."""
    return is_byte_locked(folder / LOCK_FILE, _POWER_BYTE)


def checkpoint_lock(folder: Path) -> ByteLock | None:
    """A held lock that keeps our power-on away; None when 63 checkpoints stand already."""
    for byte in _CHECKPOINT_BYTES:
        lock = ByteLock(folder / LOCK_FILE, byte)
        if lock.acquire():
            return lock
    return None


def has_checkpoint(folder: Path) -> bool:
    """Whether any live process holds a checkpoint by identity of the VM."""
    return any(is_byte_locked(folder / LOCK_FILE, byte) for byte in _CHECKPOINT_BYTES)


def clone_lock(folder: Path, name: str) -> ByteLock:
    """The lock of the owner of the clone folder `name`."""
    low, high = _CLONE_BYTES
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return ByteLock(folder / LOCK_FILE, low + number % (high - low))


def qemu_writer(path: Path) -> bool:
    """Whether a QEMU process (qemu-nbd, qemu-img and others too) has `path` open for writing.

    Always False where there are no such locks (Windows), or where the process was told not to
    lock (`file.locking=off`).
    """
    start, length = _QEMU_WRITES
    return is_range_locked(path, start, length)


def own_writer(path: Path) -> bool:
    """Whether a process of ours (a disk server, a mover, a command) has the VHDX file `path` open
    for writing. Always False on Windows, where the open itself fails then."""
    return is_range_locked(path, LOCK_BYTE, 1)


def writer(path: Path) -> str:
    """Who has `path` open for writing, as words for a message; '' when nobody that locks."""
    if qemu_writer(path):
        return f"a QEMU process has {path.name} open for writing"
    if own_writer(path):
        return f"a disk server or another process of ours has {path.name} open for writing"
    return ""
