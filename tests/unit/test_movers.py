"""Child movers that do not start leave nothing behind."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from open_ends import open_ends
from standby.server import movers


@pytest.mark.parametrize("failing", ["source", "target"])
def test_a_child_that_does_not_start_leaves_no_process_and_nothing_open(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        if failing == "source" or started:
            raise OSError("no more processes")
        started.append(real(["true"], **given))
        return started[-1]

    real = subprocess.Popen
    monkeypatch.setattr(movers.subprocess, "Popen", start)
    before = open_ends()
    with pytest.raises(OSError, match="no more processes"):
        movers.child_movers()
    assert open_ends() <= before
    assert all(process.returncode == 0 for process in started)
