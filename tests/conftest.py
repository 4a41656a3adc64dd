"""Fixtures of every test: folders in memory, sample images, a fixed environment."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import databases
import judging
from net.nursery import Nursery

# A process that a test spawns finds the test's module by its name, which counts from the root;
# `python -m pytest` puts the root there by itself, `pytest` does not.
sys.path.append(str(Path(__file__).resolve().parent.parent))

# A run in the background (`… &` in a script) ignores Ctrl-C, and so would every process it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start hundreds of processes: where none may keep what it compiled, each takes twice as long
# to begin.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_MEMORY = Path("/dev/shm")
_MEMORY_FREE_MIN = 2 << 30


def _memory_folder() -> Path | None:
    """The folder of a file system in memory with room for the tests, if there is one."""
    chosen = os.environ.get("STANDBY_TEST_FOLDER")
    if chosen:
        return Path(chosen)
    if not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK):
        return None
    return _MEMORY if shutil.disk_usage(_MEMORY).free >= _MEMORY_FREE_MIN else None


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh folder of this test, in memory where the machine has that, gone after the test.

    It replaces pytest's own, which keeps three runs: disk images would fill the memory. Syncs cost
    nothing there; a test that is about a real file system takes `disk_path`. The environment's
    STANDBY_TEST_FOLDER names another place.
    """
    yield from _fresh_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As `tmp_path`, of this module."""
    yield from _fresh_folder(tmp_path_factory)


def _fresh_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    parent = _memory_folder()
    if parent is None:
        folder = tmp_path_factory.mktemp("test")
    else:
        folder = Path(tempfile.mkdtemp(prefix="standby-test-", dir=parent))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """A fresh folder of this test in the ordinary temp folder, gone after the test."""
    folder = Path(tempfile.mkdtemp(prefix="standby-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of packed sample images; without it the test is skipped, in CI it fails."""
    return judging.samples_folder()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a user has in the environment changes what a test sees."""
    for name in list(os.environ):
        if name.startswith("STANDBY_") and name not in _KEPT:
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


_KEPT = frozenset({"STANDBY_KERNEL", "STANDBY_REFERENCE", "STANDBY_SAMPLES", "STANDBY_TEST_FOLDER"})


@pytest.fixture(scope="session")
def postgresql() -> Iterator[databases.Cluster]:
    """A private PostgreSQL; without one the test is left out, in CI it fails."""
    with databases.running_cluster() as cluster:
        yield cluster


@pytest.fixture(params=databases.KINDS)
def state_place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty state database: a SQLite file, and once more in PostgreSQL."""
    if request.param == "sqlite":
        return tmp_path / "state.sqlite"
    cluster: databases.Cluster = request.getfixturevalue("postgresql")
    return cluster.new_database()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where processes of the command line start in hundredths of a second; on Linux."""
    with Nursery() as made:
        yield made
