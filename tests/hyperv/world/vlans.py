"""Msvm_VirtualSystemManagementService, features of switch ports: VLANs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperv.world.building import INVALID, answer, embedded
from hyperv.world.errors import ReturnCode
from hyperv.world.machines import Adapter
from hyperv.world.rows_base import Row

if TYPE_CHECKING:
    from hyperv.world.methods import Methods

Outputs = dict[str, Any]


def add_features(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> Outputs:
    """AddFeatureSettings: VLANs."""
    adapter = arguments.get("AffectedConfiguration")
    if not isinstance(adapter, Adapter) or adapter.mode:
        raise ReturnCode(INVALID)
    texts = arguments.get("FeatureSettings") or []
    wanted = [embedded(methods, t, "Msvm_EthernetSwitchPortVlanSettingData")[1] for t in texts]

    def work() -> Outputs:
        for values in wanted:
            set_vlan(adapter, values)
        found = methods.rows.of("Msvm_EthernetSwitchPortVlanSettingData")
        return {"ResultingFeatureSettings": [r for r in found if r.of is adapter]}

    return answer(methods, "AddFeatureSettings", None, arguments, work)


def modify_features(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> Outputs:
    """ModifyFeatureSettings: VLANs."""
    texts = arguments.get("FeatureSettings") or []
    wanted = [embedded(methods, t, "Msvm_EthernetSwitchPortVlanSettingData")[1] for t in texts]
    rows = {
        str(r.values["InstanceID"]).lower(): r
        for r in methods.rows.of("Msvm_EthernetSwitchPortVlanSettingData")
        if r.of is not None
    }
    found = [rows.get((values.get("InstanceID") or "").lower()) for values in wanted]
    if None in found:
        raise ReturnCode(INVALID)

    def work() -> Outputs:
        for values, part in zip(wanted, found, strict=True):
            assert part is not None
            set_vlan(part.of, values)
        return {"ResultingFeatureSettings": found}

    return answer(methods, "ModifyFeatureSettings", None, arguments, work)


def remove_features(methods: Methods, row: Row, arguments: Mapping[str, Any]) -> Outputs:
    """RemoveFeatureSettings: VLANs."""

    def work() -> Outputs:
        for part in arguments.get("FeatureSettings") or []:
            part.of.mode = 0
        return {}

    return answer(methods, "RemoveFeatureSettings", None, arguments, work)


def set_vlan(adapter: Adapter, values: Mapping[str, Any]) -> None:
    """1 access, 2 trunk, 3 private."""
    mode, vlan = values.get("OperationMode"), values.get("AccessVlanId") or 0
    if mode not in (1, 2) or (mode == 1 and not 1 <= vlan <= 4094):
        raise ReturnCode(INVALID)
    adapter.mode, adapter.vlan = int(mode), int(vlan)
    adapter.native_vlan = int(values.get("NativeVlanId") or 0)
    adapter.trunk = tuple(int(each) for each in values.get("TrunkVlanIdArray") or ())
