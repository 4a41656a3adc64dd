"""The JSON records of a replica: an envelope with format and checksum around a dataclass, and the
one way a writer puts such a file into place (FORMAT.md).

A write goes: temporary file, sync, *then* the check of the generation, then the rename. Whoever
takes over raises the generation first and removes older temporaries afterwards. So a writer that
was stopped anywhere either sees the new generation or finds its temporary gone: it can never put
an old record over a newer one, however late it wakes.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from standby import killpoints
from standby.disk import vhdx
from standby.errors import DiskIO, StandbyError
from standby.files import File, rename_durably
from standby.model.replica import LayerFile
from standby.road.naming import temporary_name

T = TypeVar("T")

RECORD_SIZE_MAX = 16 << 20
_DRIVE = re.compile(r"[A-Za-z]:")
_NO_PARTS = frozenset({"", ".", ".."})
"""Parts that no path in a record has: empty ones begin with, end in, or double a slash."""


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every record file holds: `crc32` is over the bytes of `record` as they stand."""

    standby: str
    format: int
    crc32: str
    record: msgspec.Raw


class RecordDamaged(ValueError):
    """The file is not a sound record; the text says what is wrong. Callers name the object."""


def encoded_record(kind: str, version: int, record: object) -> bytes:
    """The file's bytes: indented JSON for people, with its checksum."""
    body = msgspec.json.format(msgspec.json.encode(record, order="deterministic"), indent=2)
    head = f'{{"standby": "{kind}", "format": {version}, "crc32": "{zlib.crc32(body):08x}",'
    return head.encode() + b'\n"record": ' + body + b"}\n"


def decoded_record(data: bytes, kind: str, version: int, wanted: type[T]) -> T:
    """The record in `data`; raises RecordDamaged."""
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RecordDamaged(f"not a record: {exc}") from exc
    if envelope.standby != kind:
        raise RecordDamaged(f"a record of kind {envelope.standby!r} where {kind!r} belongs")
    if envelope.format != version:
        raise RecordDamaged(
            f"format {envelope.format} where this release knows {version}; use a newer release"
        )
    found = f"{zlib.crc32(bytes(envelope.record)):08x}"
    if found != envelope.crc32:
        raise RecordDamaged(f"checksum {found} where {envelope.crc32} was written")
    try:
        return msgspec.json.decode(envelope.record, type=wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RecordDamaged(f"malformed: {exc}") from exc


def read_record(path: Path, kind: str, version: int, wanted: type[T]) -> T:
    """The record in the file at `path`; raises RecordDamaged, or DiskIO when it cannot be read."""
    with File(path) as file:
        if file.size > RECORD_SIZE_MAX:
            raise RecordDamaged(f"{file.size} bytes, too large for a record")
        return decoded_record(file.read(0, file.size), kind, version, wanted)


def replace_checked(path: Path, data: bytes, generation: int, check: Callable[[], Any]) -> None:
    """Put `data` durably into `path` on behalf of `generation`; `check` raises when that may not
    write any more, and is called when nothing but the rename is left to do."""
    temporary = path.with_name(temporary_name(path.name, generation))
    try:
        with File(temporary, create=True) as file:
            file.write(data, 0)
            file.sync()
        check()
        killpoints.reach("lease checked")
        try:
            rename_durably(temporary, path)
        except DiskIO:
            check()  # whoever took over removed the temporary: that is Fenced, not an I/O error
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


# --- files named by records ------------------------------------------------------------------


def inner_path(root: Path, file: str) -> Path:
    """The path of `file`, as a record names it, below `root`; raises RecordDamaged unless it is
    relative, with forward slashes, and stays inside."""
    parts = file.split("/")
    if "\\" in file or "\0" in file or _DRIVE.match(file) or not _NO_PARTS.isdisjoint(parts):
        raise RecordDamaged(f"the file name {file!r} does not stay in the replica's folder")
    return root.joinpath(*parts)


def layer_facts(root: Path, file: str, path: Path | None = None) -> LayerFile:
    """What is recorded of the closed disk file at `path` (default: where `file` says) under the
    name `file`."""
    at = path or inner_path(root, file)
    info = vhdx.read_info(at)
    return LayerFile(file, at.stat().st_size, info.data_write_guid)


def layer_evidence(root: Path, layer: LayerFile, also: frozenset[str] = frozenset()) -> str:
    """How the file differs from what was recorded of it, '' when it does not. `also` are further
    data-write GUIDs that are fine (a merge under way), and then any size is."""
    path = inner_path(root, layer.file)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "the file is missing"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    if size != layer.size and not also:
        return f"{size} bytes where {layer.size} were left"
    try:
        guid = vhdx.read_info(path).data_write_guid
    except StandbyError as exc:
        return f"cannot be read: {exc}"
    if guid != layer.data_write_guid and guid not in also:
        return f"data-write GUID {guid} where {layer.data_write_guid} was left"
    return ""
