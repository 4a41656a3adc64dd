"""The global cache killed at every change it makes to its files, with power lost too, and by a real
SIGKILL: what is found afterwards is right, and what was flushed is found."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crashing import crashing
from standby.units import MiB
from standby.wan.cache import GlobalCache
from wan_caches import KEY, check_never_wrong, names_of, noise, open_cache

LIMIT = 4 * MiB
BATCH = 100
BATCHES = 14
FLUSHED = (3, 6, 9, 12)
"""Batches after which the cache is flushed."""


def batch(number: int) -> np.ndarray:
    return noise(BATCH, number)


def opened(folder: Path) -> GlobalCache:
    return open_cache(folder, LIMIT, MiB, new_table=None)


def work(folder: Path, done: list[int]) -> None:
    """Fill a cache past its limit, with what is hit and with a clear of nothing; `done` gets the
    batches that were flushed."""
    cache = opened(folder)
    part = cache.namespace(KEY)
    for number in range(BATCHES):
        part.add(batch(number))
        part.read(part.lookup(names_of(batch(max(0, number - 3))[:20], KEY)))
        if number in FLUSHED:
            cache.flush()
            done.append(number)
    cache.close()
    done.append(BATCHES - 1)


def check_after(folder: Path, done: list[int]) -> None:
    """What is there is right; what was flushed last is there, unless it was evicted since."""
    with opened(folder) as cache:
        part = cache.namespace(KEY)
        found = [check_never_wrong(part, batch(number)) for number in range(BATCHES)]
        if done:
            assert found[done[-1]] == BATCH
        assert cache.verify().is_ok
        assert sum(path.stat().st_size for path in folder.glob("*.segment")) <= LIMIT
        part.add(batch(BATCHES))
        assert check_never_wrong(part, batch(BATCHES)) == BATCH


def changes_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    (tmp_path / "counted").mkdir()
    with crashing(monkeypatch) as crasher:
        work(tmp_path / "counted", [])
    return crasher.count


@pytest.mark.parametrize(
    ("torn", "power"), [(False, False), (True, False), (True, True)], ids=["kill", "torn", "power"]
)
def test_a_kill_at_any_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool, power: bool
) -> None:
    total = changes_of(tmp_path, monkeypatch)
    assert total > 30
    for at in range(1 + power, total + 1, 3 if torn else 1):
        folder = tmp_path / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        done: list[int] = []
        with crashing(monkeypatch, at, torn=torn, power_seed=at if power else None) as crasher:
            work(folder, done)
        assert crasher.is_dead
        check_after(folder, done)


@pytest.mark.parametrize("name", ["cache: appended", "cache: footer written", "cache: removing"])
def test_a_kill_between_writing_and_knowing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for time in (1, 2, 4):
        done: list[int] = []
        folder = tmp_path / str(time)
        with crashing(monkeypatch, kill_point=(name, time)):
            work(folder, done)
        check_after(folder, done)


def test_a_process_that_is_killed_for_real(tmp_path: Path) -> None:
    for time in (2, 5, 9):
        folder = tmp_path / str(time)
        program = (
            "import sys; from pathlib import Path\n"
            "from test_wan_cache_kills import work\n"
            f"work(Path({str(folder)!r}), [])\n"
        )
        tests = Path(__file__).parent
        child = subprocess.run(
            [sys.executable, "-c", program],
            env={
                "PYTHONPATH": f"{tests}:{tests.parent}",
                "STANDBY_KILL_POINT": f"cache: appended:{time}",
            },
            check=False,
        )
        assert child.returncode == -signal.SIGKILL
        check_after(folder, [])
