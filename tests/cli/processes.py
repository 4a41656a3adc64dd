"""The command line as a process of its own, for what only processes show."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60


@contextmanager
def started(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`standby arguments` in a process group of its own; killed if the test has not ended it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "standby", *map(str, arguments)],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in children(process.pid):
                os.kill(pid, 9)
            process.kill()
        process.communicate()


def children(parent: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        state, ppid = text.rpartition(")")[2].split()[:2]
        if int(ppid) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def state_of(pid: int) -> str:
    """The letter of the process's state, '' when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Return once `is_so()`; for what another process does, which tells nobody."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)
