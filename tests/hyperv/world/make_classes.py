"""Makes classes.json: what the model of hosts takes from the published facts.

    python tests/hyperv/world/make_classes.py FACTS/hyperv-wmi.json

Kept of each class: its base, the properties with their types (a read-only one has a blank and `r`
behind its type), the methods' parameters, and the first server version that has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CLASSES = Path(__file__).with_name("classes.json")

WANTED = [
    "CIM_ComputerSystem",
    "CIM_ConcreteJob",
    "CIM_Error",
    "CIM_ResourceAllocationSettingData",
    "CIM_StorageAllocationSettingData",
    "CIM_VirtualSystemSettingData",
    "Msvm_AffectedJobElement",
    "Msvm_BootSourceComponent",
    "Msvm_BootSourceSettingData",
    "Msvm_ComputerSystem",
    "Msvm_ConcreteJob",
    "Msvm_DiskDrive",
    "Msvm_Error",
    "Msvm_EthernetPortAllocationSettingData",
    "Msvm_EthernetSwitchPortVlanSettingData",
    "Msvm_GuestNetworkAdapterConfiguration",
    "Msvm_HeartbeatComponent",
    "Msvm_HeartbeatComponentSettingData",
    "Msvm_ImageManagementService",
    "Msvm_KvpExchangeComponent",
    "Msvm_KvpExchangeComponentSettingData",
    "Msvm_LastAppliedSnapshot",
    "Msvm_MemorySettingData",
    "Msvm_MostCurrentSnapshotInBranch",
    "Msvm_ParentChildSettingData",
    "Msvm_PlannedComputerSystem",
    "Msvm_ProcessorSettingData",
    "Msvm_ReferencePointOfVirtualSystem",
    "Msvm_ReplicationRelationship",
    "Msvm_ResourceAllocationSettingData",
    "Msvm_SecurityElement",
    "Msvm_SecuritySettingData",
    "Msvm_SettingsDefineState",
    "Msvm_ShutdownComponent",
    "Msvm_ShutdownComponentSettingData",
    "Msvm_SnapshotOfVirtualSystem",
    "Msvm_StorageAllocationSettingData",
    "Msvm_StorageJob",
    "Msvm_SummaryInformation",
    "Msvm_SummaryInformationBase",
    "Msvm_SyntheticEthernetPort",
    "Msvm_SyntheticEthernetPortSettingData",
    "Msvm_SystemDevice",
    "Msvm_TimeSyncComponentSettingData",
    "Msvm_VHDSetInformation",
    "Msvm_VirtualEthernetSwitch",
    "Msvm_VirtualEthernetSwitchSettingData",
    "Msvm_VirtualHardDiskSettingData",
    "Msvm_VirtualHardDiskState",
    "Msvm_VirtualSystemManagementService",
    "Msvm_VirtualSystemManagementServiceSettingData",
    "Msvm_VirtualSystemReferencePoint",
    "Msvm_VirtualSystemReferencePointService",
    "Msvm_VirtualSystemReferencePointSettingData",
    "Msvm_VirtualSystemSettingData",
    "Msvm_VirtualSystemSettingDataComponent",
    "Msvm_VirtualSystemSnapshotService",
    "Msvm_VirtualSystemSnapshotSettingData",
    "Msvm_VssComponent",
    "Msvm_VssComponentSettingData",
]

_MISSPELT = {"unit16": "uint16", "unit16[]": "uint16[]"}


def cim_type(text: str) -> str:
    """A type as CIM spells it: the documents have `UINT16[]`, `DateTime` and `unit16` too."""
    if text.endswith((" REF", " REF[]")) or "_" in text:
        return text
    return _MISSPELT.get(text.lower(), text.lower())


def excerpt(facts: dict[str, Any]) -> dict[str, Any]:
    """The classes that the model has, shortened."""
    return {name: _shortened(facts[name]) for name in WANTED}


def _shortened(fact: dict[str, Any]) -> dict[str, Any]:
    methods = {}
    for name, method in fact["methods"].items():
        parameters = method["parameters"]
        methods[name] = {
            "in": {p["name"]: cim_type(p["type"]) for p in parameters if "in" in p["direction"]},
            "out": {p["name"]: cim_type(p["type"]) for p in parameters if "out" in p["direction"]},
            "min_server": _year(method["min_server"]),
        }
    return {
        "base": fact["base"],
        "min_server": _year(fact["min_server"]),
        "properties": {
            name: cim_type(p["type"]) + (" r" if p.get("access") == "read-only" else "")
            for name, p in fact["properties"].items()
        },
        "methods": methods,
    }


def _year(text: str | None) -> int:
    digits = "".join(c for c in (text or "") if c.isdigit())[:4]
    return int(digits) if digits else 2012


def rendered(classes: dict[str, Any]) -> str:
    """The file's text: one line for each class."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in classes.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    CLASSES.write_text(rendered(excerpt(json.loads(Path(sys.argv[1]).read_text()))))
