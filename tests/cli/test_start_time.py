"""What is asked for most often starts without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "sqlalchemy", "rich", "msgspec", "zstandard", "xxhash", "ssl", "asyncio")

PROGRAM = f"""
import atexit, sys
atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from standby.cli import main
main()
"""


def imported(*arguments: str) -> set[str]:
    """The heavy libraries that the command imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("version",), ("replica", "--help")])
def test_help_and_version_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imported(*arguments) == set()


def test_a_target_alone_needs_no_database_and_no_terminal_library(target: Path) -> None:
    found = imported("replica", "list", "--target", str(target))
    assert not found & {"sqlalchemy", "rich", "ssl", "asyncio"}
