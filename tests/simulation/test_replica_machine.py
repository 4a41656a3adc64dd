"""The replica VM is the VM of the point it failed over to, disks and hardware."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from simulation.site import Site, content_digest
from standby.disk import vhdx
from standby.host.folder import vm_toml
from standby.server.driver import MachineDriver
from standby.server.replicas import Replicas
from standby.units import MiB


def described(site: Site) -> dict[str, str]:
    """Place → file, as the replica's vm.toml has it."""
    folder = site.replica().path
    machine = vm_toml.load(folder / "vm.toml", folder.name).machine
    return {disk.place: disk.file for disk in machine.disks}


def test_failover_to_an_older_point_attaches_the_disks_that_point_has(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    site.add_machine(sizes=(8 * MiB,))
    site.write(0, MiB)
    old = content_digest(site.disk())
    first = site.run().machines[0].point
    toml = site.disk().parent / "vm.toml"
    # Another disk takes the place: other identities, other content.
    text = toml.read_text()
    loaded = vm_toml.load(toml, "vm1").machine
    toml.write_text(text.replace(loaded.disks[0].host_id, "another-disk"))
    site.disk().unlink()
    vhdx.create(site.disk(), 8 * MiB).close()
    site.write(0, 2 * MiB)
    new = content_digest(site.disk())
    assert site.run().outcome in ("done", "warnings")
    assert described(site) == {"scsi:0:0": "disk1/ready.vhdx"}

    replicas = Replicas.of_folder(site.folder / "target")
    folder = site.replica().path
    replicas.failover("vm1_replica", point=first)
    assert described(site) == {"scsi:0:0": "disk0/ready.vhdx"}
    assert content_digest(folder / "disk0/ready.vhdx") == old
    replicas.undo_failover("vm1_replica")
    assert described(site) == {"scsi:0:0": "disk1/ready.vhdx"}
    assert content_digest(folder / "disk1/ready.vhdx") == new


def test_uefi_variables_are_those_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "site")
    site.add_machine(sizes=(8 * MiB,))
    nvram = site.disk().parent / "nvram.fd"
    nvram.write_bytes(b"at the checkpoint")
    release = MachineDriver._release

    def released(driver: MachineDriver) -> dict[str, str]:
        trackers = release(driver)
        nvram.write_bytes(b"started again")
        return trackers

    monkeypatch.setattr(MachineDriver, "_release", released)
    site.run()
    replica = site.replica()
    (point,) = replica.points()
    assert base64.b64decode(point.state_files["nvram.fd"]) == b"at the checkpoint"
    assert (replica.path / "nvram.fd").read_bytes() == b"at the checkpoint"
