"""A real guest on a folder host: boots from a differencing chain, survives its disk server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest.conftest import QUICK
from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk, vhdx
from standby.errors import MachineRunning
from standby.host.folder import Boot, FolderHost, new_machine, power, processes
from standby.model.machine import Machine, PowerState
from standby.units import MiB

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MARKER_OFFSET = 1 * MiB
RECORDS_OFFSET = 2 * MiB
RECORD = 4096
BOOT_S = 120.0


class Guest:
    """A VM of 128 MiB with a child on a base as its disk, and ways to watch it."""

    def __init__(self, root: Path, image: tuple[Path, Path]) -> None:
        self.folder = root / "guest"
        self.folder.mkdir(parents=True)
        for path in image:
            shutil.copyfile(path, self.folder / path.name)
        self.host = FolderHost("lab", root, accelerator="tcg")
        self.root = root
        self.machine: Machine | None = None

    def make(self, mode: str) -> Machine:
        vhdx.create(self.folder / "base.vhdx", 64 * MiB).close()
        with open_disk(self.folder / "base.vhdx", writable=True) as base:
            base.write(MARKER_OFFSET, b"written to the base".ljust(RECORD, b"\0"))
        vhdx.create_child(self.folder / "child.vhdx", self.folder / "base.vhdx").close()
        self.machine = new_machine(
            self.root,
            "guest",
            {"scsi:0:0": Path("child.vhdx")},
            memory_bytes=256 * MiB,
            boot=Boot("vmlinuz", "initrd", f"{QUICK} {mode}"),
        )
        return self.machine

    def serial(self) -> str:
        path = self.folder / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = BOOT_S) -> None:
        deadline = SYSTEM_CLOCK.monotonic() + timeout_s
        while not condition():
            assert SYSTEM_CLOCK.monotonic() < deadline, f"no {what}; the guest said {self.serial()}"
            SYSTEM_CLOCK.sleep(0.05)

    def wait_until_off(self) -> None:
        assert self.machine is not None
        machine = self.machine
        self.wait(lambda: self.host.power_state(machine) is PowerState.OFF, "power-off")


@pytest.fixture
def guest(tmp_path: Path, guest_image: tuple[Path, Path], runtime: Path) -> Iterator[Guest]:
    """A guest to be made; whatever still runs of it is ended."""
    made = Guest(tmp_path / "vms", guest_image)
    yield made
    if made.machine is not None:
        made.host.stop(made.machine, force=True, timeout_s=0)


def test_a_guest_boots_from_a_differencing_chain_and_reads_its_marker(guest: Guest) -> None:
    machine = guest.make("standby.mode=marker")
    with open_disk(guest.folder / "child.vhdx", writable=True) as child:
        child.write(MARKER_OFFSET + RECORD, b"not the marker" + bytes(498))
    guest.host.start(machine)
    guest.wait_until_off()
    assert "MARKER: written to the base" in guest.serial()
    with open_disk(guest.folder / "child.vhdx", writable=True) as child:
        child.write(MARKER_OFFSET, b"written to the child".ljust(RECORD, b"\0"))
    guest.host.start(machine)
    guest.wait_until_off()
    assert "MARKER: written to the child" in guest.serial()
    guest.host.confirm_checkpoint(guest.host.take_checkpoint(machine, "intent"))


def test_a_running_guest_has_no_checkpoint_and_shuts_down_when_asked(guest: Guest) -> None:
    machine = guest.make("standby.mode=wait")
    guest.host.start(machine)
    guest.wait(lambda: "WAITING" in guest.serial(), "waiting guest")
    with pytest.raises(MachineRunning):
        guest.host.take_checkpoint(machine, "intent")
    guest.host.stop(machine, timeout_s=60)
    assert guest.host.power_state(machine) is PowerState.OFF
    assert guest.host.disk_server(machine) == (0, "")


def test_a_guest_goes_on_writing_when_its_killed_disk_server_is_started_again(
    guest: Guest,
) -> None:
    records = 60
    machine = guest.make(f"standby.mode=write standby.records={records}")
    guest.host.start(machine)
    qemu_pid = power.read_record(guest.folder, "lab").qemu_pid
    for number in (10, 30):
        guest.wait(lambda n=number: f"WROTE {n}\n" in guest.serial().replace("\r", ""), "record")  # type: ignore[misc]
        pid, start = guest.host.disk_server(machine)
        os.kill(pid, 9)
        assert processes.wait_for_end(pid, start, SYSTEM_CLOCK, timeout_s=30)
        guest.host.start(machine)
        assert power.read_record(guest.folder, "lab").qemu_pid == qemu_pid
    guest.wait_until_off()
    said = guest.serial()
    assert "DONE" in said
    assert "FAILED" not in said
    with open_disk(guest.folder / "child.vhdx") as disk:
        for number in range(records):
            data = bytearray(RECORD)
            disk.read_into(RECORDS_OFFSET + number * RECORD, data)
            assert data.rstrip(b"\0") == f"record {number}\n".encode()
