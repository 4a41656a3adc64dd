"""What has to change at a replica VM: adapters and controllers by the ids guests know them by."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from standby.host.hyperv.shape import (
    AdapterShape,
    ControllerShape,
    FirmwareShape,
    MemoryShape,
    Shape,
)
from standby.host.hyperv.target import sid_of
from standby.host.hyperv.target_plan import (
    Adapter,
    Attached,
    Change,
    Found,
    TargetRules,
    Wanted,
    boot_order,
    change_of,
    fitting_version,
    missing_boot,
    noted,
    shape_from,
    warnings_of,
)
from standby.model.machine import Machine, MachineDisk, NetworkAdapter

FIRST, SECOND = "{11111111-0000-0000-0000-000000000001}", "{11111111-0000-0000-0000-000000000002}"
READY = r"D:\Replicas\web\d1\ready.vhdx"
NIC = AdapterShape(
    "LAN", "Blue", "00155D010203", is_connected=True, vlan_mode=1, vlan=7, identifiers=(FIRST,)
)
SHAPE = Shape(
    "9.0",
    2,
    2,
    MemoryShape(2048),
    FirmwareShape(bios_guid="{B}", secure_boot=True, secure_boot_template="T"),
    controllers=(ControllerShape("scsi", 0, (SECOND,)),),
    adapters=(NIC,),
    start_action=4,
    stop_action=4,
    checkpoint_type=3,
)


def wanted(shape: Shape = SHAPE, rules: TargetRules | None = None) -> Wanted:
    files = {"scsi:0:0": READY}
    return Wanted("lab/hv1/1/job", "web", r"D:\Replicas\web", shape, files, rules or TargetRules())


def as_wanted(rules: TargetRules | None = None) -> Found:
    """The replica VM as `keep` leaves it."""
    mac = "" if rules and rules.same_side else NIC.mac
    nic = msgspec.structs.replace(NIC, is_static=bool(mac), mac=mac)
    shape = msgspec.structs.replace(SHAPE, adapters=(nic,), start_action=2, checkpoint_type=2)
    return Found(
        "1",
        "web",
        wanted().note,
        3,
        (2,),
        shape,
        (Attached("scsi:0:0", READY.upper()),),
        (Adapter("Microsoft:1\\A", nic),),
        (("Microsoft:1\\C", (SECOND.lower(),)),),
        (),
        (),
    )


def test_a_vm_that_is_as_wanted_needs_nothing() -> None:
    assert change_of(wanted(), as_wanted(), ["Blue"]) == Change()
    assert change_of(wanted(), as_wanted(), ["Blue"]).is_nothing


def test_a_bare_vm_needs_everything() -> None:
    bare = replace(as_wanted(), shape=msgspec.structs.replace(SHAPE, adapters=()))
    bare = replace(bare, disks=(), adapters=(), scsi=())
    change = change_of(wanted(), bare, ["Blue"])
    assert change.hardware
    assert change.add_controllers == SHAPE.controllers
    assert change.add_adapters == (NIC,)
    assert change.attach == (Attached("scsi:0:0", READY),)
    assert change.empty == ()


def test_an_adapter_is_found_by_its_id_whatever_its_name() -> None:
    renamed = msgspec.structs.replace(SHAPE, adapters=(msgspec.structs.replace(NIC, name="WAN"),))
    (change,) = change_of(wanted(renamed), as_wanted(), ["Blue"]).adapters
    assert (change.instance, change.name, change.rename) == ("Microsoft:1\\A", "WAN", True)


def test_a_switch_that_is_missing_disconnects_and_is_said() -> None:
    (change,) = change_of(wanted(), as_wanted(), ["Red"]).adapters
    assert change.switch == ""
    assert "no virtual switch 'Blue' (these: Red)" in warnings_of(wanted(), ["Red"])[0]
    mapped = wanted(rules=TargetRules(networks={"Blue": "Red"}))
    assert change_of(mapped, as_wanted(), ["Red"]).adapters[0].switch == "Red"
    assert warnings_of(mapped, ["Red"]) == []


def test_one_side_has_a_new_mac_and_says_that_the_bios_guid_is_the_same() -> None:
    rules = TargetRules(same_side=True)
    assert change_of(wanted(rules=rules), as_wanted(rules), ["Blue"]).is_nothing
    assert change_of(wanted(rules=rules), as_wanted(), ["Blue"]).adapters[0].mac == ""
    assert "BIOS GUID" in warnings_of(wanted(rules=rules), ["Blue"])[0]


def test_controllers_from_the_first_wrong_one_on_are_made_anew_with_their_disks() -> None:
    found = replace(as_wanted(), scsi=(("Microsoft:1\\C", (FIRST,)),))
    change = change_of(wanted(), found, ["Blue"])
    assert change.remove_controllers == ("Microsoft:1\\C",)
    assert change.add_controllers == SHAPE.controllers
    assert change.empty == ("scsi:0:0",)
    assert change.attach == (Attached("scsi:0:0", READY),)


def test_a_disk_that_the_source_has_not_goes() -> None:
    extra = Attached("scsi:0:5", r"D:\x.vhdx")
    found = replace(as_wanted(), disks=(*as_wanted().disks, extra))
    change = change_of(wanted(), found, ["Blue"])
    assert change.empty == ("scsi:0:5",)
    assert change.attach == ()


def test_automatic_start_and_checkpoints_are_off_whatever_the_source_has() -> None:
    shape = msgspec.structs.replace(as_wanted().shape, start_action=4)
    assert change_of(wanted(), replace(as_wanted(), shape=shape), ["Blue"]).hardware


def test_the_version_is_the_sources_or_the_nearest_that_the_host_runs() -> None:
    assert fitting_version("9.0", ["8.0", "9.0", "10.0"]) == "9.0"
    assert fitting_version("12.0", ["8.0", "9.0", "10.0"]) == "10.0"
    assert fitting_version("5.0", ["8.0", "10.0"]) == "8.0"
    assert fitting_version("", ["8.0"]) == ""


def test_boot_entries_are_put_in_the_sources_order_and_missing_loaders_added() -> None:
    disk, net = (1, "SCSI", r"\Scsi(0,0)", ""), (2, "Net", r"\MAC(1)", "")
    loader = (3, "debian", r"\HD(1)\shimx64.efi", "")
    source = msgspec.structs.replace(SHAPE, firmware=FirmwareShape(boot=(loader, disk, net)))
    here = msgspec.structs.replace(SHAPE, firmware=FirmwareShape(boot=(net, disk)))
    assert missing_boot(source, here) == (loader,)
    paths = tuple(f'\\\\H\\root:Msvm_B.InstanceID="{n}"' for n in "nd")
    found = replace(as_wanted(), shape=here, boot=paths)
    assert boot_order(source, found) == (paths[1], paths[0])
    assert boot_order(here, found) == ()


def test_a_note_of_ours_is_its_first_line() -> None:
    assert noted(["standby-replica:a/b\r\nmine"]) == "standby-replica:a/b"
    assert noted(["mine", ""]) == ""
    assert noted(None) == ""


def test_a_vm_of_a_folder_host_has_a_shape_too() -> None:
    machine = Machine(
        "1",
        "web",
        "web",
        1,
        1 << 30,
        2,
        (MachineDisk("ide:0:0", "a.vhdx"), MachineDisk("scsi:1:0", "b.vhdx")),
        (NetworkAdapter("", "Blue", "00155d010203", 7),),
    )
    shape = shape_from(machine)
    assert shape.memory.startup == 1024
    assert shape.controllers == (ControllerShape("ide", 0), ControllerShape("scsi", 1))
    (adapter,) = shape.adapters
    assert (adapter.mac, adapter.vlan_mode, adapter.vlan) == ("00155D010203", 1, 7)


def test_the_sid_of_a_vm_is_its_guid_in_four_numbers() -> None:
    assert sid_of("00000001-0002-0003-0405-060708090a0b") == (
        "S-1-5-83-1-1-196610-117835012-185207048"
    )
