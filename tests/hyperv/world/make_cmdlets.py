"""Makes cmdlets.json: the parameters of the cmdlets that the model of hosts has.

python tests/hyperv/world/make_cmdlets.py FACTS/hyperv-cmdlets.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CMDLETS = Path(__file__).with_name("cmdlets.json")

WANTED = [
    "Get-CimInstance",
    "Get-CimClass",
    "New-CimInstance",
    "Get-CimAssociatedInstance",
    "Invoke-CimMethod",
    "Get-Volume",
    "Get-SmbOpenFile",
    "Close-SmbOpenFile",
    "Get-SmbShare",
    "Get-SmbShareAccess",
    "Get-Cluster",
    "Get-ClusterNode",
    "Get-ClusterGroup",
    "Get-ClusterResource",
    "Get-ClusterSharedVolume",
    "Get-ClusterSharedVolumeState",
    "Add-ClusterVirtualMachineRole",
    "Move-ClusterVirtualMachineRole",
    "Start-ClusterGroup",
    "Stop-ClusterGroup",
    "Set-ClusterParameter",
    "Remove-ClusterGroup",
    "Update-ClusterVirtualMachineConfiguration",
    "Get-VM",
    "New-VM",
    "Set-VM",
    "Start-VM",
    "Stop-VM",
    "Remove-VM",
    "Get-VMHost",
    "Get-VMHostSupportedVersion",
    "Set-VMProcessor",
    "Set-VMMemory",
    "Set-VMFirmware",
    "Add-VMScsiController",
    "Get-VMHardDiskDrive",
    "Add-VMHardDiskDrive",
    "Set-VMHardDiskDrive",
    "Remove-VMHardDiskDrive",
    "Get-VMNetworkAdapter",
    "Add-VMNetworkAdapter",
    "Set-VMNetworkAdapter",
    "Rename-VMNetworkAdapter",
    "Remove-VMNetworkAdapter",
    "Connect-VMNetworkAdapter",
    "Disconnect-VMNetworkAdapter",
    "Set-VMNetworkAdapterVlan",
    "New-VHD",
]


def excerpt(facts: dict[str, Any]) -> dict[str, Any]:
    """Of each wanted cmdlet: its parameters (type, and whether a switch; an enum's values) and
    parameter sets."""
    result = {}
    for module, cmdlets in facts.items():
        for name in WANTED:
            if name not in cmdlets:
                continue
            fact = cmdlets[name]
            result[name] = {
                "module": module,
                "parameters": {
                    key: "switch" if value["switch"] else value["type"]
                    for key, value in fact["parameters"].items()
                },
                "pipeline": {
                    key: value.get("pipeline_by", "")
                    for key, value in fact["parameters"].items()
                    if value["pipeline"]
                },
                "sets": {
                    key: [value["mandatory"], value["optional"]]
                    for key, value in fact["parameter_sets"].items()
                },
            }
            values = {
                key: value["values"]
                for key, value in fact["parameters"].items()
                if value.get("values")
            }
            if values:
                result[name]["values"] = values
    missing = set(WANTED) - set(result)
    if missing:
        raise SystemExit(f"not among the facts: {', '.join(sorted(missing))}")
    return result


def rendered(cmdlets: dict[str, Any]) -> str:
    """The file's text: one line for each cmdlet."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in cmdlets.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    CMDLETS.write_text(rendered(excerpt(json.loads(Path(sys.argv[1]).read_text()))))
