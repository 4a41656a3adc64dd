"""A base and its child for tests of merging."""

from __future__ import annotations

from pathlib import Path

from standby.disk import vhdx
from standby.testing.disks import random_bytes
from standby.units import MiB


def small_pair(folder: Path) -> tuple[Path, Path]:
    """A pair whose merge takes few steps: data in place, new blocks, zeros, scattered sectors."""
    base = vhdx.create(folder / "base.vhdx", 5 * MiB, block_size=MiB)
    base.write(0, random_bytes(2 * MiB, 1))
    base.close()
    child = vhdx.create_child(folder / "child.vhdx", base.path, block_size=MiB)
    child.write(512, random_bytes(1024, 2))
    child.write(MiB // 2, random_bytes(512, 3))
    child.zero(MiB, MiB)
    child.write(2 * MiB, random_bytes(MiB, 4))
    child.write(4 * MiB + 8192, random_bytes(4096, 5))
    child.close()
    return base.path, child.path
