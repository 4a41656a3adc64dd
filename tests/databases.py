"""A private PostgreSQL for the tests, and state databases in it.

The cluster lives in a temporary folder, listens on a Unix socket only, never syncs (but for a
bench), and ends with the test session. PostgreSQL refuses to run as root: then it runs as its own
user, or nobody.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import judging

KINDS = ("sqlite", "postgresql")

_PATIENCE_S = 60
_MEMORY = Path("/dev/shm")
_MEMORY_FREE_MIN = 1 << 30


def _has_room(folder: Path) -> bool:
    """A container's memory folder may hold less than a cluster takes."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return False
    return shutil.disk_usage(folder).free >= _MEMORY_FREE_MIN


def _programs() -> Path:
    """The folder of PostgreSQL's programs; without it the test is left out, in CI it fails."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not folders:
        judging.missing("PostgreSQL (initdb)")
    return folders[-1].parent


def _user() -> dict[str, Any]:
    """How a program is started that refuses root."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return {}
    import pwd

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known.get("nobody")
    if entry is None:
        judging.missing("a user other than root for PostgreSQL")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Cluster:
    """A running PostgreSQL. The socket's folder is its own, so its port may be the usual one."""

    def __init__(self, folder: Path, *, is_durable: bool = False) -> None:
        """Make one in an empty `folder` and start it. Unless `is_durable` it never syncs."""
        judging.require_module("psycopg")
        programs = _programs()
        self._numbers = itertools.count()
        self._folder = folder
        self._user = _user()
        self._is_durable = is_durable
        if self._user:
            os.chown(folder, self._user["user"], self._user["group"])
        subprocess.run(
            [
                *(str(programs / "initdb"), "-D", str(folder / "data"), "-U", "standby"),
                *("-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8"),
            ],
            check=True,
            capture_output=True,
            timeout=_PATIENCE_S,
            cwd=folder,
            **self._user,
        )
        self._programs = programs
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._folder),
            "max_connections": "60",
        }
        if not self._is_durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
            settings |= {"shared_buffers": "16MB"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._programs / "postgres"), "-D", str(self._folder / "data")),
                    *itertools.chain(*(("-c", f"{k}={v}") for k, v in settings.items())),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                start_new_session=True,
                **self._user,
            )
        ask = [str(self._programs / "pg_isready"), "-q", "-h", str(self._folder), "-t", "60"]
        while subprocess.run(ask, check=False, timeout=_PATIENCE_S).returncode:
            assert self._process.poll() is None, (self._folder / "log").read_text()

    def stop(self) -> None:
        """End it at once: connections are cut."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_PATIENCE_S)

    def url(self, database: str) -> str:
        """How `standby` finds the database."""
        return f"postgresql://standby@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self._plain("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)

    def _plain(self, database: str) -> str:
        return f"host={self._folder} user=standby dbname={database}"


@contextlib.contextmanager
def running_cluster(*, is_durable: bool = False) -> Iterator[Cluster]:
    """A cluster until the block ends: in memory, or on the disk of temporary files where what it
    commits is to be durable."""
    parent = None if is_durable or not _has_room(_MEMORY) else _MEMORY
    folder = Path(tempfile.mkdtemp(prefix="standby-pg-", dir=parent))
    try:
        cluster = Cluster(folder, is_durable=is_durable)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
