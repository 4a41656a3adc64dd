"""The guest of these tests: built once by bench/guest_image.py, kept where
STANDBY_GUEST_FOLDER says (default: a folder of this user in the temp folder)."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import judging

_BUILDER = Path(__file__).resolve().parents[2] / "bench" / "guest_image.py"
_FOLDER = Path(
    os.environ.get("STANDBY_GUEST_FOLDER")
    or Path(tempfile.gettempdir()) / f"standby-guest-{getattr(os, 'getuid', int)()}"
)

QUICK = (
    "console=ttyS0 quiet panic=-1 cryptomgr.notests nokaslr mitigations=off nr_cpus=1 "
    "tsc=reliable no_timer_check"
)
"""The kernel's command line: without tests of itself and what an emulator needs no care for, which
is a quarter of its way to the first process."""


@pytest.fixture(scope="session")
def guest_image() -> tuple[Path, Path]:
    """(kernel, initramfs) of a Debian kernel with busybox; skips where it cannot be built."""
    judging.require_tool("qemu-system-x86_64")
    spec = importlib.util.spec_from_file_location("guest_image", _BUILDER)
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    try:
        kernel, initrd = builder.build(_FOLDER)
    except (SystemExit, OSError) as exc:
        judging.missing(f"the guest image ({exc})")
    return kernel, initrd


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short private folder for the sockets of this test's VMs."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)
