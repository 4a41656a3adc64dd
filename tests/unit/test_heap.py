"""What a process frees is there for what it takes next."""

from __future__ import annotations

import os
import subprocess
import sys

from standby.files.libc import libc_function

PROGRAM = """
import resource, sys, threading
import numpy as np
from standby.heap import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def work():
    for _ in range(50):
        blocks = [np.ones(4 << 20, np.uint8) for _ in range(3)]

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    kept, count = run.stdout.split()
    return kept, int(count)


def test_freed_blocks_are_taken_again() -> None:
    """600 blocks of 4 MiB, three at a time, are the pages of little more than three."""
    kept, count = faults("keep")
    if libc_function("mallopt") is None:
        assert kept == "False"
        return
    assert kept == "True"
    assert count < 4 * 3 * 1024
    assert faults("default")[1] > 2 * count
