"""The demo's VM: two disks of real content, and what a day does to them.

`files` holds a tar archive of this Python's standard library, `data` an SQLite database of what is
in it. Both are real bytes that compress, repeat and change the way files and databases do; no
file system is made, since that would need tools the demo must not ask for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from standby import comparing
from standby.disk import open_disk
from standby.units import MiB

PIECE = 4096
FILES_SIZE = 64 * MiB
DATABASE_SIZE = 32 * MiB
WINDOW = 4 * MiB


def library_files(limit: int = 24 * MiB) -> list[tuple[str, bytes]]:
    """(name, content) of source files of the standard library, in order of name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, bytes]] = []
    total = 0
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or not path.is_file():
            continue
        content = path.read_bytes()
        total += len(content)
        if total > limit:
            break
        found.append((path.relative_to(root).as_posix(), content))
    return found


def archive(files: list[tuple[str, bytes]], notes: list[str]) -> bytes:
    """A tar archive of the files with a log of `notes` behind them, padded to whole pieces."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in [*files, ("log.txt", "\n".join(notes).encode())]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    data = buffer.getvalue()
    return data + bytes(-len(data) % PIECE)


class Database:
    """The database disk's content: a file under the demo's folder."""

    def __init__(self, path: Path, files: list[tuple[str, bytes]]) -> None:
        self.path = path
        with self._changing() as connection:
            connection.execute("CREATE TABLE line (id INTEGER PRIMARY KEY, file TEXT, text TEXT)")
            rows = (
                (name, line)
                for name, content in files
                for line in content.decode("utf-8", "replace").splitlines()[:400]
            )
            connection.executemany("INSERT INTO line (file, text) VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; the demo's folder need not survive a power cut."""
        connection = sqlite3.connect(self.path)
        try:
            connection.execute("PRAGMA synchronous = OFF")
            with connection:
                yield connection
        finally:
            connection.close()

    def spend_a_day(self, day: int) -> None:
        """Some rows change here and there, some are added."""
        with self._changing() as connection:
            connection.execute(
                "UPDATE line SET text = text || ' -- day ' || ? WHERE id % 997 = ?", (day, day)
            )
            connection.executemany(
                "INSERT INTO line (file, text) VALUES (?, ?)",
                ((f"day{day}.log", f"entry {number}") for number in range(2000)),
            )

    def content(self) -> bytes:
        """The file's bytes, padded to whole pieces."""
        data = self.path.read_bytes()
        return data + bytes(-len(data) % PIECE)


def write_content(path: Path, content: bytes) -> int:
    """Bring the disk at `path` to `content` followed by zeros, writing what differs, as a guest
    would; bytes written."""
    disk = open_disk(path, writable=True)
    try:
        held = bytearray(len(content))
        disk.read_into(0, held)
        written = 0
        for first, stop in comparing.differing_extents(held, content).tolist():
            part = content[first * PIECE : stop * PIECE]
            disk.write(first * PIECE, part)
            written += len(part)
        return written
    finally:
        disk.close()


def content_digest(path: Path, parents: tuple[Path, ...] = ()) -> str:
    """SHA-256 of every byte the guest would see on the disk at `path`, as hex."""
    disk = open_disk(path, parents=parents or None)
    try:
        found = hashlib.sha256()
        window = memoryview(bytearray(WINDOW))
        for offset in range(0, disk.virtual_size, WINDOW):
            part = window[: min(WINDOW, disk.virtual_size - offset)]
            disk.read_into(offset, part)
            found.update(part)
        return found.hexdigest()
    finally:
        disk.close()
