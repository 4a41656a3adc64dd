"""A VM's hardware as Hyper-V has it: all that a replica VM is made of, beyond `model.machine`.

It is kept with every restore point as the state file `hyperv.json`.
"""

from __future__ import annotations

import base64

import msgspec

STATE_FILE = "hyperv.json"
FORMAT = 1


class MemoryShape(msgspec.Struct, frozen=True):
    """In MiB; `minimum` and `maximum` count where it is dynamic."""

    startup: int
    minimum: int = 0
    maximum: int = 0
    is_dynamic: bool = False


class FirmwareShape(msgspec.Struct, frozen=True):
    """`boot` has BIOS boot codes (generation 1) or descriptions of UEFI boot sources, in order:
    type, description, device path, other location."""

    bios_guid: str = ""
    bios_serial: str = ""
    base_board_serial: str = ""
    chassis_serial: str = ""
    chassis_asset_tag: str = ""
    secure_boot: bool = False
    secure_boot_template: str = ""
    boot_codes: tuple[int, ...] = ()
    boot: tuple[tuple[int, str, str, str], ...] = ()


class ControllerShape(msgspec.Struct, frozen=True):
    """A disk controller: 'scsi' or 'ide', its number, and the ids that a replica's must have for
    the guest to take it for the same one."""

    kind: str
    number: int
    identifiers: tuple[str, ...] = ()


class AdapterShape(msgspec.Struct, frozen=True):
    """A network adapter. `mac` is 12 upper-case hex digits, '' before the first start;
    `identifiers` keep a guest's static addresses with it; `vlan_mode`: 0 none, 1 access, 2 trunk,
    3 private."""

    name: str
    switch: str = ""
    mac: str = ""
    is_static: bool = False
    is_legacy: bool = False
    is_connected: bool = False
    vlan_mode: int = 0
    vlan: int = 0
    identifiers: tuple[str, ...] = ()


class Shape(msgspec.Struct, frozen=True):
    """Everything of one VM."""

    version: str
    generation: int
    processors: int
    memory: MemoryShape
    firmware: FirmwareShape
    controllers: tuple[ControllerShape, ...] = ()
    adapters: tuple[AdapterShape, ...] = ()
    compatible_processors: bool = False
    nested_virtualization: bool = False
    has_tpm: bool = False
    is_shielded: bool = False
    heartbeat: bool = True
    guest_backup: bool = True
    start_action: int = 0
    stop_action: int = 0
    checkpoint_type: int = 0
    notes: tuple[str, ...] = ()
    format: int = FORMAT


def to_state_file(shape: Shape) -> dict[str, str]:
    """The shape as a state file: its name, and base64 of its JSON."""
    return {STATE_FILE: base64.b64encode(msgspec.json.encode(shape)).decode("ascii")}


def from_state_files(files: dict[str, str]) -> Shape | None:
    """The shape among the state files of a point, None where it was made on no Hyper-V host.
    ValueError where it is damaged or of a later format."""
    if STATE_FILE not in files:
        return None
    try:
        shape = msgspec.json.decode(base64.b64decode(files[STATE_FILE], validate=True), type=Shape)
    except msgspec.MsgspecError as exc:
        raise ValueError(f"{STATE_FILE}: {exc}") from exc
    if shape.format != FORMAT:
        raise ValueError(f"{STATE_FILE} has format {shape.format}, this standby knows {FORMAT}")
    return shape
