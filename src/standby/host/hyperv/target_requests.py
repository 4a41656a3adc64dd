"""What the scripts that change replica VMs are asked, part by part; None for one that has nothing
to do at a VM. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from standby.host.hyperv.shape import AdapterShape
from standby.host.hyperv.target_plan import STOPS, Change, Wanted, wanted_mac
from standby.units import MiB


def hardware_request(wanted: Wanted, change: Change) -> dict[str, Any] | None:
    """For set_hardware.ps1, None where it has nothing to do."""
    if not change.hardware:
        return None
    shape, memory, firmware = wanted.shape, wanted.shape.memory, wanted.shape.firmware
    return {
        "generation": shape.generation,
        "processors": shape.processors,
        "compatible": shape.compatible_processors,
        "nested": shape.nested_virtualization,
        "dynamic": memory.is_dynamic,
        "startup": memory.startup * MiB,
        "minimum": memory.minimum * MiB,
        "maximum": memory.maximum * MiB,
        "stop": STOPS.get(shape.stop_action, "ShutDown"),
        "bios_guid": firmware.bios_guid,
        "bios_serial": firmware.bios_serial,
        "base_board_serial": firmware.base_board_serial,
        "chassis_serial": firmware.chassis_serial,
        "chassis_asset_tag": firmware.chassis_asset_tag,
        "secure_boot": firmware.secure_boot,
        "secure_boot_template": firmware.secure_boot_template,
        "boot_codes": list(firmware.boot_codes) if shape.generation == 1 else [],
    }


def drives_request(
    places: Sequence[str], files: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """For set_drives.ps1: the places get `files`, or are emptied."""
    if not places:
        return None
    disks = []
    for place in places:
        kind, number, location = place.split(":")
        disks.append(
            {
                "type": kind.upper(),
                "number": int(number),
                "location": int(location),
                "file": (files or {}).get(place, ""),
            }
        )
    return {"disks": disks}


def controllers_request(change: Change) -> dict[str, Any] | None:
    """For set_controllers.ps1."""
    if not change.remove_controllers and not change.add_controllers:
        return None
    return {
        "remove": list(change.remove_controllers),
        "add": [{"identifiers": list(item.identifiers)} for item in change.add_controllers],
    }


def new_adapters_request(wanted: Wanted, change: Change) -> dict[str, Any] | None:
    """For add_adapters.ps1."""
    if not change.remove_adapters and not change.add_adapters:
        return None
    return {
        "remove": list(change.remove_adapters),
        "add": [_new_adapter(item, wanted) for item in change.add_adapters],
    }


def _new_adapter(adapter: AdapterShape, wanted: Wanted) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "legacy": adapter.is_legacy,
        "identifiers": list(adapter.identifiers),
        "mac": wanted_mac(adapter, wanted.rules),
    }


def set_adapters_request(change: Change) -> dict[str, Any] | None:
    """For set_adapters.ps1."""
    if not change.adapters:
        return None
    return {
        "adapters": [
            {
                "instance": item.instance,
                "name": item.name,
                "rename": item.rename,
                "mac": item.mac,
                "switch": item.switch,
                "vlan": item.vlan,
            }
            for item in change.adapters
        ]
    }


def sources_request(entries: Sequence[tuple[int, str, str, str]]) -> dict[str, Any] | None:
    """For add_boot.ps1."""
    if not entries:
        return None
    names = ("type", "description", "path", "location")
    return {"sources": [dict(zip(names, entry, strict=True)) for entry in entries]}
