"""A real guest started from a replica, at each of three restore points."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guest.conftest import QUICK
from simulation.site import Site
from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk
from standby.host.folder import Boot, vm_toml
from standby.model.machine import PowerState
from standby.server.replicas import Replicas
from standby.units import MiB

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MARKER_OFFSET = 1 * MiB
BOOT_S = 120.0


def test_a_guest_boots_from_the_replica_at_each_of_three_points(
    tmp_path: Path, guest_image: tuple[Path, Path], runtime: Path
) -> None:
    site = Site(tmp_path / "site")
    site.add_machine(sizes=(64 * MiB,))
    points = {}
    for day in ("first", "second", "third"):
        with open_disk(site.disk(), writable=True) as disk:
            disk.write(MARKER_OFFSET, f"the {day} day".encode().ljust(4096, b"\0"))
        report = site.run()
        assert report.outcome == "done", report
        points[report.machines[0].point] = f"MARKER: the {day} day"
    folder = site.replica().path
    for path in guest_image:
        shutil.copyfile(path, folder / path.name)
    loaded = vm_toml.load(folder / "vm.toml", folder.name)
    boot = Boot("vmlinuz", "initrd", f"{QUICK} standby.mode=marker")
    (folder / "vm.toml").write_text(vm_toml.render(loaded.machine, boot))

    # Nothing but the target folder is asked from here on: the source site is gone.
    shutil.rmtree(site.folder / "source")
    replicas = Replicas.of_folder(site.folder / "target")
    name = folder.name
    for point, marker in points.items():
        replicas.failover(name, point=point)
        assert replicas.power(name, on=True) is PowerState.RUNNING
        deadline = SYSTEM_CLOCK.monotonic() + BOOT_S
        while marker not in (folder / "serial.log").read_text(errors="replace"):
            assert SYSTEM_CLOCK.monotonic() < deadline, (folder / "serial.log").read_text()
            SYSTEM_CLOCK.sleep(0.1)
        replicas.power(name, on=False, force=True)
        replicas.undo_failover(name)
    for verdict in replicas.verify(name):
        assert verdict.is_ok
