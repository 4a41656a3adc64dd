"""What tests of whole sessions share: a site with one VM, edits of it, looks at plans."""

from __future__ import annotations

from simulation.site import Site
from standby.disk import vhdx
from standby.errors import DiskIO


def made(tmp_path, restore_points=7, more=""):
    site = Site(tmp_path / "site", restore_points, more)
    site.add_machine()
    site.fill()
    return site


def disks_of(report, machine=0):
    return {disk.place: disk for disk in report.machines[machine].disks}


def vm_toml(site, machine="vm1"):
    return site.folder / "source" / machine / "vm.toml"


def edit(path, *changes):
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def drop_disk(site, number, machine="vm1"):
    """Take the disk's table out of vm.toml."""
    path = vm_toml(site, machine)
    parts = path.read_text().split("[[disks]]")
    path.write_text("[[disks]]".join(part for part in parts if f"disk{number}.vhdx" not in part))


def planned(plan, machine=0):
    return {disk.place: disk for disk in plan.machines[machine].disks}


def check_as_planned(plan, report):
    for place, disk in disks_of(report).items():
        expected = planned(plan)[place]
        assert (disk.mode, disk.reason) == (expected.mode.value, expected.reason)
        assert disk.disk_id == expected.disk_id
        assert disk.read == expected.read.value


def grown(site, size, number=0):
    disk = vhdx.open_vhdx(site.disk(number), writable=True)
    disk.grow(size)
    disk.close()


def failing():
    raise DiskIO("somewhere", "write", 0, 0, "as asked for")
