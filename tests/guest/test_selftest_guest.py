"""The self-test's own guest, on a machine: 128 bytes that count and write."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import judging
from standby.host.hyperv.selftest_boot import DISK_SIZE, SECTOR, count_of, missing_copies
from standby.host.hyperv.selftest_vm import first_sectors
from standby.server.selftest_disks import LocalDisks

DEADLINE_S = 120
WRITES = 3


def test_the_boot_sector_counts_and_writes_where_it_should(tmp_path: Path) -> None:
    judging.require_tool("qemu-system-x86_64")
    disks = LocalDisks({"D:\\": str(tmp_path)}, "here")
    disks.make(r"D:\disk.vhdx", DISK_SIZE, first_sectors())
    content = disks.content(r"D:\disk.vhdx")
    raw = tmp_path / "disk.raw"
    raw.write_bytes(content)
    command = ["qemu-system-x86_64", "-display", "none", "-m", "64", "-net", "none"]
    with subprocess.Popen([*command, "-drive", f"file={raw},format=raw,if=ide"]) as machine:
        until = time.monotonic() + DEADLINE_S
        while count_of(_head(raw)) <= WRITES and time.monotonic() < until:
            time.sleep(0.1)
        machine.terminate()
    written = raw.read_bytes()
    count = count_of(written)
    assert count > WRITES
    assert missing_copies(written, 1) in ([], [count])
    assert missing_copies(content, 1) == []
    assert missing_copies(b"\0" * SECTOR + written[SECTOR : 2 * SECTOR] + bytes(DISK_SIZE), 1)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2 * SECTOR)
