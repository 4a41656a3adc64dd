"""The checkpoint of a VM that is off (RULES 11): reflink clones, or identities and a lock.

Clones are in `<VM folder>/.standby-checkpoint-<owner>-<intent>/`, with `clones.json` saying what
they were when made; the VM may start again at once. Without reflinks the originals are read,
`.standby.lock` keeps our own power-on away, and everything else is noticed by `confirm`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from standby import clock, files
from standby.errors import (
    ConfigurationError,
    DiskError,
    DiskIO,
    HostError,
    MachineRunning,
    SourceChanged,
)
from standby.files import ByteLock
from standby.host.folder import inventory, locks
from standby.host.folder.inventory import DiskFile
from standby.model.machine import Checkpoint, CheckpointDisk, Machine

CLONE_PREFIX = ".standby-checkpoint-"
_MANIFEST = "clones.json"
_INTENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What must not change in a file while its content must not. The change time is in, because a
    tool can set the modification time back."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    file_write_guid: str
    data_write_guid: str


_WORDS = {
    "device": "device",
    "inode": "inode: another file was put in its place",
    "size": "size",
    "modified_ns": "modification time",
    "changed_ns": "change time",
    "file_write_guid": "file-write GUID",
    "data_write_guid": "data-write GUID",
}


def identity_of(layer: DiskFile) -> FileIdentity:
    """The identity of a chain's file now."""
    status = _status(layer.path)
    return FileIdentity(
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
        file_write_guid=layer.file_write_guid,
        data_write_guid=layer.data_write_guid,
    )


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as exc:
        raise DiskIO(str(path), "stat", 0, 0, exc.strerror or str(exc)) from exc


@dataclass(slots=True)
class Held:
    """What the process that took a checkpoint keeps of it: the lock, and each file's identity
    (of the clones where there are clones), by absolute path."""

    lock: ByteLock
    identities: dict[Path, FileIdentity]


OWNER_FILE = "checkpoint-owner"
"""What the state folder calls the installation's clone folders by."""
NOBODY = "00000000"
"""The owner of clone folders whose host has no state folder."""


def owner_token(state_folder: Path | None) -> str:
    """8 hex digits that tell this installation's clone folders from another's."""
    if state_folder is None:
        return NOBODY
    path = state_folder / OWNER_FILE
    files.make_folder_durably(state_folder)
    if not files.is_there(path):
        own = path.with_name(f".{path.name}.{clock.new_token(4)}.new")
        files.write_durably(own, clock.new_token(4).encode())
        if not files.rename_to_new(own, path):
            own.unlink(missing_ok=True)
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(str(path), f"cannot be read: {exc}") from exc
    if not re.fullmatch(r"[0-9a-f]{8}", text):
        raise ConfigurationError(str(path), f"holds {text[:40]!r}, not 8 hex digits")
    return text


def take(
    root: Path, machine: Machine, intent_id: str, *, host: str, owner: str, taken_at: str
) -> tuple[Checkpoint, Held]:
    """Fix the disks of `machine`, which is off and whose power lock the caller holds.

    Raises MachineRunning when someone has a file open for writing, SourceChanged when a file
    changes while it is cloned, and the disk's own error where a chain is not whole.
    """
    if not _INTENT.fullmatch(intent_id):
        intent_id = hashlib.sha256(intent_id.encode()).hexdigest()[:32]
    folder = inventory.plain_path(root, machine.folder)
    chains = [inventory.disk_chain(folder, disk.file) for disk in machine.disks]
    layers = {layer.path: layer for chain in chains for layer in chain}
    for path in layers:
        writer = locks.writer(path)
        if writer:
            raise MachineRunning(host, machine.name, writer)
    identities = {path: identity_of(layer) for path, layer in layers.items()}
    name = f"{CLONE_PREFIX}{owner}-{intent_id}"
    clones = _clone(folder, name, list(layers), host)
    kind = "identity" if clones is None else "clone"
    if clones is None:
        lock = locks.checkpoint_lock(folder)
        if lock is None:
            raise HostError(host, f"VM {machine.name} has 63 checkpoints", "Let sessions end first")
    else:
        lock = clones.lock
    try:
        _refuse_changes(machine, identities)
        names = {} if clones is None else clones.names
        disks = tuple(
            CheckpointDisk(
                place=disk.place,
                files=tuple(
                    names.get(layer.path, layer.path).relative_to(root).as_posix()
                    for layer in chain
                ),
                identity=_digest([identities[layer.path] for layer in chain]),
                virtual_size=chain[0].virtual_size,
                logical_sector_size=chain[0].logical_sector_size,
                physical_sector_size=chain[0].physical_sector_size,
                page83=chain[0].page83,
            )
            for disk, chain in zip(machine.disks, chains, strict=True)
        )
        if clones is not None:
            identities = _manifest(folder / name, names.values())
    except BaseException:
        if clones is not None:
            _remove_clones(folder / name)
        lock.release()
        raise
    checkpoint = Checkpoint(
        id=_digest([(machine.id, [(disk.place, disk.identity) for disk in disks])]),
        machine_id=machine.id,
        kind=kind,
        taken_at=taken_at,
        consistency="offline",
        disks=disks,
    )
    return checkpoint, Held(lock, identities)


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:32]


# --- clones ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Clones:
    lock: ByteLock
    names: dict[Path, Path]


def _clone(folder: Path, name: str, paths: list[Path], host: str) -> _Clones | None:
    """Clones of all `paths` in `<folder>/<name>`; None, and nothing left, where the file system
    cannot, or there is nothing to clone."""
    if not paths:
        return None
    lock = locks.clone_lock(folder, name)
    if not lock.acquire():
        raise HostError(host, f"checkpoint folder {folder / name} is in use by another process")
    try:
        _remove_clones(folder / name)
        files.make_folder_plainly(folder / name)  # a sync for nothing where nothing is cloned
        names = {}
        for number, path in enumerate(paths):
            target = folder / name / f"{number}-{path.name}"
            if not files.clone(path, target):
                _remove_clones(folder / name)
                lock.release()
                return None
            names[path] = target
        files.sync_folder(folder / name)
        files.sync_folder(folder)
    except BaseException:
        _remove_clones(folder / name)
        lock.release()
        raise
    return _Clones(lock, names)


def _manifest(clones: Path, paths: Iterable[Path]) -> dict[Path, FileIdentity]:
    identities = {path: identity_of(inventory.read_disk_file(path)) for path in paths}
    data = {path.name: identity for path, identity in identities.items()}
    files.write_durably(clones / _MANIFEST, msgspec.json.encode(data))
    return identities


def _remove_clones(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def clone_folder(root: Path, checkpoint: Checkpoint) -> Path | None:
    """The clone folder of a checkpoint of kind 'clone', None for another."""
    if checkpoint.kind != "clone":
        return None
    for disk in checkpoint.disks:
        for file in disk.files:
            folder = inventory.plain_path(root, file).parent
            if folder.name.startswith(CLONE_PREFIX):
                return folder
    return None


def leftovers(folder: Path, owner: str) -> list[str]:
    """Names of the clone folders of `owner`, and of nobody, in a VM's folder, whoever holds
    them."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    ours = tuple(f"{CLONE_PREFIX}{name}-" for name in (owner, NOBODY))
    return sorted(path.name for path in entries if path.name.startswith(ours))


def release_leftover(folder: Path, name: str) -> bool:
    """Remove a clone folder whose owner is dead; False when its owner lives."""
    lock = locks.clone_lock(folder, name)
    if not lock.acquire():
        return False
    with lock:
        _remove_clones(folder / name)
    return True


def release(root: Path, checkpoint: Checkpoint, held: Held | None) -> None:
    """Give the checkpoint up; repeating it is harmless. Clones of a live other process stay."""
    folder = clone_folder(root, checkpoint)
    if held is not None:
        if folder is not None:
            _remove_clones(folder)
        held.lock.release()
    elif folder is not None and files.is_there(folder):
        release_leftover(folder.parent, folder.name)


# --- looking again ---------------------------------------------------------------------------


def confirm(root: Path, machine: Machine, checkpoint: Checkpoint, held: Held | None) -> None:
    """Raise SourceChanged, naming the file and what of it, when a file under the checkpoint is
    not what it was (the original by identity, the clone where there are clones)."""
    if held is not None:
        _refuse_changes(machine, held.identities)
    elif checkpoint.kind == "clone":
        _refuse_changes(machine, _read_manifest(root, machine, checkpoint))
    for disk in checkpoint.disks:
        if checkpoint.kind == "clone":
            continue
        chain = []
        for file in disk.files:
            path = root / file
            writer = locks.writer(path)
            if writer:
                raise SourceChanged(machine.name, str(path), writer)
            chain.append(_read_again(machine, path))
        if _digest([identity_of(layer) for layer in chain]) != disk.identity:
            raise SourceChanged(
                machine.name, str(root / disk.files[0]), "identity of a file of the chain"
            )


def _read_manifest(
    root: Path, machine: Machine, checkpoint: Checkpoint
) -> dict[Path, FileIdentity]:
    folder = clone_folder(root, checkpoint)
    path = (folder or root) / _MANIFEST
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, FileIdentity])
    except (OSError, msgspec.MsgspecError) as exc:
        raise SourceChanged(machine.name, str(path), f"the clones are gone: {exc}") from exc
    return {path.parent / name: identity for name, identity in data.items()}


def _refuse_changes(machine: Machine, identities: dict[Path, FileIdentity]) -> None:
    for path, before in identities.items():
        now = identity_of(_read_again(machine, path))
        for field in fields(FileIdentity):
            old, new = getattr(before, field.name), getattr(now, field.name)
            if old != new:
                raise SourceChanged(
                    machine.name, str(path), f"{_WORDS[field.name]}: {old} became {new}"
                )


def _read_again(machine: Machine, path: Path) -> DiskFile:
    try:
        return inventory.read_disk_file(path)
    except DiskError as exc:
        raise SourceChanged(machine.name, str(path), f"no longer readable: {exc}") from exc
