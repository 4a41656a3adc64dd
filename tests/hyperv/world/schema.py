"""The classes of a host: which properties and methods they have, of which types, since when.

classes.json holds what is published; `MORE` holds what every Windows host has and the published
documents of Hyper-V leave out (base classes' properties, classes of other namespaces): a script
that uses any of those names it in assumed.toml.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hyperv.dialect.values import Byte, CimInstance, Int16, Int64, UInt16, UInt32, UInt64

VIRTUALIZATION = r"root\virtualization\v2"
CIMV2 = r"root\cimv2"
CLUSTER = r"root\mscluster"

_ELEMENT = {"InstanceID": "string", "Caption": "string", "Description": "string"}
_NAMED = {**_ELEMENT, "ElementName": "string"}
_SERVICE = {
    **_NAMED,
    "SystemCreationClassName": "string",
    "SystemName": "string",
    "CreationClassName": "string",
    "Name": "string",
    "EnabledState": "uint16",
    "Started": "boolean",
}
_FEATURE = {**_NAMED}

MORE: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "CIM_ManagedElement": (VIRTUALIZATION, None, _NAMED),
    "CIM_SettingData": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_Job": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_System": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_Service": (VIRTUALIZATION, "CIM_ManagedElement", _SERVICE),
    "CIM_LogicalDevice": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_EthernetPort": (VIRTUALIZATION, "CIM_LogicalDevice", _NAMED),
    "CIM_DiskDrive": (VIRTUALIZATION, "CIM_LogicalDevice", _NAMED),
    "CIM_EnabledLogicalElement": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_View": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_ManagedSystemElement": (VIRTUALIZATION, "CIM_ManagedElement", _NAMED),
    "CIM_VirtualSystemSnapshotService": (VIRTUALIZATION, "CIM_Service", _SERVICE),
    "CIM_VirtualSystemManagementService": (VIRTUALIZATION, "CIM_Service", _SERVICE),
    "CIM_EthernetPortAllocationSettingData": (
        VIRTUALIZATION,
        "CIM_ResourceAllocationSettingData",
        _NAMED,
    ),
    "CIM_VirtualEthernetSwitchSettingData": (
        VIRTUALIZATION,
        "CIM_VirtualSystemSettingData",
        _NAMED,
    ),
    "Msvm_EthernetSwitchPortFeatureSettingData": (VIRTUALIZATION, "CIM_SettingData", _FEATURE),
    "Msvm_EthernetPortSettingDataComponent": (
        VIRTUALIZATION,
        None,
        {"GroupComponent": "CIM_ManagedElement REF", "PartComponent": "CIM_ManagedElement REF"},
    ),
    "Msvm_EmulatedEthernetPortSettingData": (
        VIRTUALIZATION,
        "CIM_EthernetPortAllocationSettingData",
        {
            **_NAMED,
            "Address": "string",
            "StaticMacAddress": "boolean",
            "VirtualSystemIdentifiers": "string[]",
            "ClusterMonitored": "boolean",
        },
    ),
    "Win32_Volume": (
        CIMV2,
        None,
        {
            "DeviceID": "string",
            "Name": "string",
            "Label": "string",
            "DriveLetter": "string",
            "FileSystem": "string",
            "Capacity": "uint64",
            "FreeSpace": "uint64",
            "BlockSize": "uint64",
            "SerialNumber": "uint32",
        },
    ),
    "Win32_OperatingSystem": (
        CIMV2,
        None,
        {
            "Caption": "string",
            "CSName": "string",
            "Version": "string",
            "BuildNumber": "string",
            "LocalDateTime": "datetime",
            "LastBootUpTime": "datetime",
            "FreePhysicalMemory": "uint64",
            "TotalVisibleMemorySize": "uint64",
            "OSLanguage": "uint32",
            "ProductType": "uint32",
        },
    ),
    "Win32_ComputerSystem": (
        CIMV2,
        None,
        {
            "Name": "string",
            "DNSHostName": "string",
            "Domain": "string",
            "PartOfDomain": "boolean",
            "NumberOfLogicalProcessors": "uint32",
            "TotalPhysicalMemory": "uint64",
        },
    ),
    "Win32_PerfFormattedData_CsvFsPerfProvider_ClusterCSVFS": (CIMV2, None, {"Name": "string"}),
    "MSCluster_Cluster": (CLUSTER, None, {"Name": "string", "ClusterFunctionalLevel": "uint32"}),
    "MSCluster_Node": (
        CLUSTER,
        None,
        {"Name": "string", "Id": "string", "State": "uint32", "NodeDrainStatus": "uint32"},
    ),
    "MSCluster_ResourceGroup": (
        CLUSTER,
        None,
        {
            "Name": "string",
            "Id": "string",
            "State": "uint32",
            "OwnerNode": "string",
            "GroupType": "uint32",
            "Priority": "uint32",
        },
    ),
    "MSCluster_Resource": (
        CLUSTER,
        None,
        {
            "Name": "string",
            "Id": "string",
            "Type": "string",
            "State": "uint32",
            "OwnerGroup": "string",
            "OwnerNode": "string",
            "PrivateProperties": "object",
        },
    ),
    "MSCluster_Property_Resource_Virtual_Machine": (CLUSTER, None, {"VmID": "string"}),
    "MSCluster_ClusterSharedVolume": (
        CLUSTER,
        None,
        {
            "Name": "string",
            "FaultState": "uint32",
            "BackupState": "uint32",
            "VolumeName": "string",
            "VolumeOffset": "uint64",
        },
    ),
    "MSCluster_DiskPartition": (
        CLUSTER,
        None,
        {
            "Path": "string",
            "VolumeGuid": "string",
            "VolumeLabel": "string",
            "FileSystem": "string",
            "TotalSize": "uint32",
            "FreeSpace": "uint32",
            "MountPoints": "string[]",
        },
    ),
}
"""Class to (namespace, base, properties); sizes of MSCluster_DiskPartition are in MiB."""

SINCE = {("Msvm_VirtualSystemSnapshotSettingData", "GuestBackupType"): 2019}
"""Properties younger than their class."""

_SERVICE_KEYS = ("SystemCreationClassName", "SystemName", "CreationClassName", "Name")
_DEVICE_KEYS = ("SystemCreationClassName", "SystemName", "CreationClassName", "DeviceID")
KEYS = {
    "CIM_ComputerSystem": ("CreationClassName", "Name"),
    "CIM_Service": _SERVICE_KEYS,
    "CIM_LogicalDevice": _DEVICE_KEYS,
    "Msvm_VirtualSystemReferencePoint": ("InstanceID", "VirtualSystemIdentifier"),
    "Win32_Volume": ("DeviceID",),
    "Win32_OperatingSystem": ("Caption",),
    "Win32_ComputerSystem": ("Name",),
    "MSCluster_Cluster": ("Name",),
    "MSCluster_Node": ("Name",),
    "MSCluster_ResourceGroup": ("Id",),
    "MSCluster_Resource": ("Id",),
    "MSCluster_ClusterSharedVolume": ("Name",),
    "MSCluster_DiskPartition": ("Path",),
}
"""Key properties by the class they come from; InstanceID elsewhere."""

_SCALARS: dict[str, type] = {
    "uint8": Byte,
    "uint16": UInt16,
    "uint32": UInt32,
    "uint64": UInt64,
    "sint16": Int16,
    "sint32": int,
    "sint64": Int64,
    "boolean": bool,
    "string": str,
}


@dataclass(frozen=True)
class Method:
    """Parameters of a method by name: type in CIM's words."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class CimClass:
    """A class as one server version has it, with all that it inherits."""

    name: str
    namespace: str
    base: str | None
    properties: Mapping[str, str]
    read_only: frozenset[str]
    methods: Mapping[str, Method]
    keys: tuple[str, ...]
    ancestry: tuple[str, ...]
    """The class and those it comes from, the nearest first."""
    folded: Mapping[str, str] = field(default_factory=dict)

    def property_named(self, name: str) -> str | None:
        """The property as the class spells it, whatever case `name` is in."""
        return self.folded.get(name.lower())

    def method_named(self, name: str) -> str | None:
        """The method as the class spells it."""
        return next((m for m in self.methods if m.lower() == name.lower()), None)

    def is_a(self, name: str) -> bool:
        """Whether it is that class or comes from it."""
        return name.lower() in (a.lower() for a in self.ancestry)


@functools.cache
def _published() -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(Path(__file__).with_name("classes.json").read_text())
    return entries


@functools.cache
def classes(version: int) -> Mapping[str, CimClass]:
    """All classes of a server of that year, by lower-case name."""
    names = [n for n, entry in _published().items() if entry["min_server"] <= version]
    names += [name for name in MORE if name not in _published()]
    return {name.lower(): _class(name, version) for name in names}


def _class(name: str, version: int) -> CimClass:
    published = _published().get(name)
    more = MORE.get(name)
    base = published["base"] if published else more[1] if more else None
    is_known = base is not None and (base in _published() or base in MORE)
    above = _class(base, version) if base and is_known else None
    properties = dict(above.properties) if above else {}
    read_only = set(above.read_only) if above else set()
    methods = dict(above.methods) if above else {}
    if published:
        for key, text in published["properties"].items():
            if SINCE.get((name, key), 0) > version:
                continue
            properties[key], is_read_only, _ = text.partition(" r")
            (read_only.add if is_read_only else read_only.discard)(key)
        for key, method in published["methods"].items():
            if method["min_server"] <= version:
                methods[key] = Method(method["in"], method["out"])
    elif more:
        properties.update(more[2])
    ancestry = (name, *(above.ancestry if above else (base,) if base else ()))
    keys = next((KEYS[a] for a in ancestry if a in KEYS), ("InstanceID",))
    keys = tuple(key for key in keys if key in properties)
    return CimClass(
        name=name,
        namespace=more[0] if more else VIRTUALIZATION,
        base=base,
        properties=properties,
        read_only=frozenset(read_only),
        methods=methods,
        keys=keys,
        ancestry=ancestry,
        folded={key.lower(): key for key in properties},
    )


class WrongTypeError(Exception):
    """A value that is not of the property's or parameter's type."""


def typed(kind: str, value: Any) -> Any:
    """`value`, a plain Python value of the model, as a script gets it."""
    if value is None:
        return None
    if kind.endswith("[]"):
        one = kind[:-2]
        return bytes(value) if one == "uint8" else [typed(one, item) for item in value]
    if kind.endswith(" REF") or kind == "object" or "_" in kind:
        return value
    if kind == "datetime":
        if not isinstance(value, datetime | timedelta):
            raise TypeError(f"{value!r} is no datetime")
        return value
    return _SCALARS[kind](value)


def checked(kind: str, value: Any) -> Any:
    """`value` of a script, if it is of that very type; WrongTypeError otherwise.

    The CIM cmdlets take the type of a method's argument from the value, not from the method.
    """
    if value is None:
        return None
    if kind.endswith("[]"):
        if kind == "uint8[]" and isinstance(value, bytes):
            return value
        if not isinstance(value, list):
            raise WrongTypeError
        return [checked(kind[:-2], item) for item in value]
    if kind.endswith(" REF"):
        if not isinstance(value, CimInstance):
            raise WrongTypeError
        return value
    if kind == "datetime":
        is_right = isinstance(value, datetime | timedelta)
    else:
        is_right = type(value) is _SCALARS.get(kind)
    if not is_right:
        raise WrongTypeError
    return value


def new_instance(
    kind: CimClass, values: Mapping[str, Any], only: Iterable[str] | None = None
) -> CimInstance:
    """An instance with all properties of its class, those not given null; KeyError for a value
    that the class has no property for.  `only` leaves the others null, as -Property does."""
    for name in values:
        if name not in kind.properties:
            raise KeyError(f"{kind.name} has no {name}")
    shown = (
        None
        if only is None
        else {name.lower() for name in only} | {key.lower() for key in kind.keys}
    )
    properties = {}
    for name, type_name in kind.properties.items():
        value = values.get(name)
        if value is not None and (shown is None or name.lower() in shown):
            value = typed(type_name, value)
        else:
            value = None
        properties[name] = value
    return _built(kind, properties, tuple(values.get(key) for key in kind.keys))


def reference(kind: CimClass, values: Mapping[str, Any]) -> CimInstance:
    """An instance that holds nothing but its key, as a method's REF parameter does."""
    return new_instance(kind, {key: values.get(key) for key in kind.keys})


def _built(kind: CimClass, properties: Mapping[str, Any], key: tuple[Any, ...]) -> CimInstance:
    text = kind.name
    if key and kind.keys:
        pairs = zip(kind.keys, key, strict=True)
        text += " (" + ", ".join(f'{name} = "{value}"' for name, value in pairs) + ")"
    return CimInstance(
        kind.name, kind.namespace, properties, key, text=text, read_only=kind.read_only
    )


def object_path(host_name: str, kind: CimClass, values: Mapping[str, Any]) -> str:
    """The WMI path of an instance, as `Parent` and `HostResource` have it."""
    pairs = []
    for key in kind.keys:
        value = str(values[key]).replace("\\", "\\\\").replace('"', '\\"')
        pairs.append(f'{key}="{value}"')
    return f"\\\\{host_name.upper()}\\{kind.namespace}:{kind.name}.{','.join(pairs)}"
