"""Threads that convert to the same class for the first time do not end the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
import msgspec
import standby.server.server, standby.road.service
from standby.wire.learning import learn_values
sys.setswitchinterval(1e-6)
learn_values()
from standby.model.machine import Checkpoint
from standby.model.report import MachineReport
from standby.road.points import TargetState
from standby.road.replica import ReplicaRecord
for kind in (TargetState, Checkpoint, MachineReport, ReplicaRecord):
    assert "__msgspec_cache__" in vars(kind), kind
"""

RACE = """
import sys, threading, types
from dataclasses import make_dataclass
import msgspec
from standby.wire.learning import learn_values
sys.setswitchinterval(1e-6)
made = sys.modules["standby.made"] = types.ModuleType("standby.made")
for number in range(300):
    inner = [make_dataclass(f"I{n}", [(f"f{k}", int) for k in range(6)]) for n in range(4)]
    kind = make_dataclass("T", [(f"a{n}", list[inner[n]]) for n in range(4)])
    kind.__module__ = "standby.made"
    made.T = kind
    learn_values()
    together = threading.Barrier(3)
    def go():
        together.wait()
        msgspec.convert({f"a{n}": [] for n in range(4)}, kind)
    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("program", [PROGRAM, RACE], ids=["ours", "raced"])
def test_values_are_learnt_before_threads_need_them(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
