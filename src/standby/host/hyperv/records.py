"""What this installation remembers of its checkpoints on Hyper-V hosts, durably (RULES 10).

A recovery snapshot carries no name of ours. So before one is made, its intent is written: the VM
and what snapshots and reference points it had. What appears later and is the only one of its kind
is ours; whatever else is there belongs to someone else and is never touched.

    <folder>/<intent>.json     one record per checkpoint, rewritten at each phase
    <folder>/distrusted        disks whose change tracker lied
    <folder>/records.lock      a byte per intent, locked by the process that is at it
"""

from __future__ import annotations

import contextlib
import re
import zlib
from pathlib import Path

import msgspec

from standby.errors import HostError
from standby.files import ByteLock, listed, make_folder_durably, remove_durably, write_durably

FORMAT = 1
_LIES_FILE = "distrusted"
_INTENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

INTENT, MADE, READ, CONVERTING, RELEASED = "intent", "made", "read", "converting", "released"
"""Phases: nothing may be there yet; the snapshot is known; all was read; the conversion was begun;
the snapshot is gone, a reference point of ours is there (`point`)."""


class RecordedDisk(msgspec.Struct, frozen=True):
    """A disk under the checkpoint. `storage` is the InstanceID of the VM's medium, `chain` the
    frozen files newest first, `folded`."""

    place: str
    storage: str
    disk_id: str
    size: int
    chain: tuple[str, ...]


class Record(msgspec.Struct, frozen=True):
    """One checkpoint. `known` and `points` are the InstanceIDs of the recovery snapshots and
    reference points that were there before; `trackers` what was released, by controller place;
    `audited` when all of a disk was last read, by place."""

    intent: str
    machine_id: str
    machine: str
    recorded_at: str
    known: tuple[str, ...]
    points: tuple[str, ...] = ()
    phase: str = INTENT
    snapshot: str = ""
    applied: tuple[str, ...] = ()
    disks: tuple[RecordedDisk, ...] = ()
    audited: dict[str, str] = {}
    trackers: dict[str, str] = {}
    point: str = ""
    format: int = FORMAT


class _Lies(msgspec.Struct, frozen=True):
    """Disks whose change tracker was found to lie: why, by disk id."""

    disks: dict[str, str] = {}
    format: int = FORMAT


class Records:
    """The records of one host; without a folder they last as long as the object. Thread-safe: each
    record is one file, replaced whole."""

    def __init__(self, host: str, folder: Path | None = None) -> None:
        self._host = host
        self._folder = folder
        self._kept: dict[str, Record] = {}
        self._locks: dict[str, ByteLock] = {}
        self._lies: dict[str, str] = {}

    def _path(self, intent: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{intent}.json"

    def save(self, record: Record) -> Record:
        """Keep the record; durable when this returns."""
        if not _INTENT.fullmatch(record.intent):
            raise HostError(self._host, f"{record.intent!r} is no name of an intent")
        if self._folder is None:
            self._kept[record.intent] = record
        else:
            make_folder_durably(self._folder)
            write_durably(self._path(record.intent), msgspec.json.encode(record))
        return record

    def drop(self, intent: str) -> None:
        """Forget the record, if there is one."""
        if self._folder is None:
            self._kept.pop(intent, None)
        else:
            remove_durably(self._path(intent))
        self.let_go(intent)

    def all(self) -> list[Record]:
        """Every record, oldest first. HostError names one that cannot be read: what it was about
        may still be on the host."""
        if self._folder is None:
            found = list(self._kept.values())
        else:
            names: list[str] = []
            with contextlib.suppress(FileNotFoundError):
                names = [path.name for path in listed(self._folder)]
            found = [self._read(name[:-5]) for name in names if name.endswith(".json")]
        return sorted(found, key=lambda record: (record.recorded_at, record.intent))

    def _read(self, intent: str) -> Record:
        path = self._path(intent)
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except msgspec.MsgspecError as exc:
            raise HostError(
                self._host,
                f"the record of a checkpoint, {path}, is damaged ({exc})",
                "Look for a recovery snapshot that standby left "
                "(Get-VM | Get-VMSnapshot -SnapshotType Recovery), then remove the file",
            ) from exc
        if record.format != FORMAT:
            raise HostError(self._host, f"{path} has format {record.format}, not {FORMAT}")
        return record

    def of_snapshot(self, snapshot: str) -> Record | None:
        """The record of that snapshot, None when there is none."""
        return next((item for item in self.all() if item.snapshot == snapshot), None)

    def of_machine(self, identity: str) -> list[Record]:
        """The VM's records, oldest first."""
        return [item for item in self.all() if item.machine_id == identity]

    # --- trackers that lied ------------------------------------------------------------------

    def lies(self) -> dict[str, str]:
        """Why the tracker of a disk is not used any more, by the disk's id."""
        if self._folder is None:
            return dict(self._lies)
        try:
            text = (self._folder / _LIES_FILE).read_bytes()
        except FileNotFoundError:
            return {}
        try:
            return msgspec.json.decode(text, type=_Lies).disks
        except msgspec.MsgspecError as exc:
            path = self._folder / _LIES_FILE
            hint = "remove the file to have every disk's change tracking used again"
            raise HostError(self._host, f"{path} is damaged ({exc})", hint) from exc

    def keep_lies(self, disks: dict[str, str]) -> None:
        """Replace them; durable when this returns."""
        self._lies = dict(disks)
        if self._folder is not None:
            make_folder_durably(self._folder)
            write_durably(self._folder / _LIES_FILE, msgspec.json.encode(_Lies(disks)))

    # --- who is at one -----------------------------------------------------------------------

    def take(self, intent: str) -> bool:
        """Whether this process is at the record from now on: no other one is."""
        if self._folder is None or intent in self._locks:
            return True
        make_folder_durably(self._folder)
        byte = zlib.crc32(intent.encode()) & 0x7FFFFFFF
        lock = ByteLock(self._folder / "records.lock", byte)
        if not lock.acquire():
            return False
        self._locks[intent] = lock
        return True

    def is_at(self, intent: str) -> bool:
        """Whether this very object is at the record."""
        return intent in self._locks

    def let_go(self, intent: str) -> None:
        """Another process may be at it."""
        lock = self._locks.pop(intent, None)
        if lock is not None:
            lock.release()
