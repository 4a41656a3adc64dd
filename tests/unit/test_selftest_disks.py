"""What the self-test of a host does with disk files by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.disk.chain import open_chain
from standby.errors import ConfigurationError
from standby.host.hyperv.selftest_boot import DISK_SIZE, SECTOR
from standby.host.hyperv.selftest_vm import first_sectors
from standby.server.selftest_disks import LocalDisks


def test_a_merge_of_the_self_test_reads_the_same_at_the_top(tmp_path: Path) -> None:
    disks = LocalDisks({"D:\\": str(tmp_path)}, "here")
    base, old, new, top = (f"D:\\{name}.vhdx" for name in ("base", "old", "new", "top"))
    disks.make(base, DISK_SIZE, first_sectors())
    for path, parent, at in ((old, base, 4), (new, old, 5), (top, new, 6)):
        disks.child(path, parent, {at * SECTOR: bytes([at]) * SECTOR})
    before = disks.content(top)
    disks.merge(base, old, new)
    assert disks.content(top) == before
    assert not (tmp_path / "old.vhdx").exists()
    with open_chain(tmp_path / "new.vhdx") as disk:
        assert disk.info.locator["absolute_win32_path"] == base
        assert "parent_linkage2" not in disk.info.locator


def test_a_path_that_no_map_holds_is_refused(tmp_path: Path) -> None:
    disks = LocalDisks({"D:\\Selftest": str(tmp_path)}, "here")
    with pytest.raises(ConfigurationError, match="no path of this machine"):
        disks.content("E:\\disk.vhdx")
