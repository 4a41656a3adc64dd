"""What a start needs, and what a guest does afterwards: heartbeat, data exchange, shutdown."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from hyperv.world import errors
from hyperv.world.errors import WorkFailed, text_of
from hyperv.world.machines import OFF, RUNNING, Machine
from hyperv.world.storage import SharingViolation, entry
from standby.disk import vhdx
from standby.disk.vhdx.opening import LOCK_BYTE
from standby.errors import StandbyError
from standby.files import is_byte_locked

if TYPE_CHECKING:
    from hyperv.world.world import World

FAILED = 32768
NOT_READY, LOCKED, IN_PROGRESS = 32780, 32781, 32782
"""What InitiateShutdown returns."""


class FileRefused(Exception):
    """A disk file that cannot be used; `code` is the HRESULT."""

    def __init__(self, path: Path, code: int) -> None:
        super().__init__(f"{path.name}: {text_of(code)}")
        self.path = path
        self.code = code


# --- chains ---------------------------------------------------------------------------------------


def learned_chain(world: World, host: str, leaf: Path) -> list[Path]:
    """A file and all below it, as the parent locators in the files say: the relative path first,
    then the one that the host calls it by.  The world keeps it."""
    storage = world.storage
    chain = [leaf]
    while True:
        path = chain[-1]
        if path in storage.oddities:
            return chain
        if not path.is_file():
            raise FileRefused(path, errors.FILE_NOT_FOUND)
        try:
            info = vhdx.read_info(path)
        except StandbyError as exc:
            raise FileRefused(path, errors.CORRUPT_DISK) from exc
        if not info.has_parent:
            storage.parents.pop(path, None)
            return chain
        parent = _parent(world, host, path, info.locator)
        if parent is None or parent in chain:
            raise FileRefused(path, errors.PARENT_NOT_FOUND)
        identity = str(vhdx.read_info(parent).data_write_guid).strip("{}").lower()
        if identity != info.locator["parent_linkage"].strip("{}").lower():
            raise FileRefused(path, errors.PARENT_MISMATCH)
        storage.parents[path] = parent
        chain.append(parent)


def _parent(world: World, host: str, child: Path, locator: dict[str, str]) -> Path | None:
    relative = locator.get("relative_path")
    if relative:
        place = child.parent
        for part in PureWindowsPath(relative).parts:
            place = place.parent if part == ".." else place if part == "." else entry(place, part)
        if place.is_file():
            return place
    absolute = locator.get("absolute_win32_path")
    found = world.storage.path(host, absolute) if absolute else None
    return found if found is not None and found.is_file() else None


# --- the start ------------------------------------------------------------------------------------


def check_start(world: World, machine: Machine) -> None:
    """WorkFailed with what Hyper-V would say, where the VM cannot start."""
    host = world.hosts[machine.host]
    if machine.version not in host.supported:
        _refuse(machine, f"The configuration version {machine.version} is not supported.")
    running = [m for m in world.on_host(host.name) if m.runs and m is not machine]
    taken = sum(m.memory for m in running if m.started_at is not None)
    if machine.memory > host.memory_free - taken:
        _refuse(machine, f"Unable to allocate memory: {text_of(errors.NO_RESOURCES)}")
    for adapter in machine.adapters:
        if adapter.switch and adapter.switch not in host.switches:
            _refuse(machine, f"The Ethernet switch '{adapter.switch}' could not be found.")
        macs = {a.mac.upper() for m in running for a in m.adapters if a.mac}
        if adapter.is_static and adapter.mac.upper() in macs:
            _refuse(machine, f"The static MAC address {adapter.mac} is in use by another VM.")
    for drive in machine.disks():
        if drive.path is None or drive.is_shared:
            continue
        try:
            check_files(world, machine, drive.path)
        except (FileRefused, SharingViolation) as exc:
            _refuse(machine, f"'{drive.place}' Failed to Power on with Error: {exc}")
    for adapter in machine.adapters:
        if not adapter.is_static and not adapter.mac.strip("0"):
            adapter.mac = f"00155D{world.next_mac():06X}"


def check_files(world: World, machine: Machine, leaf: Path) -> None:
    """Whether the worker process of a VM can open a chain now."""
    storage = world.storage
    if machine.is_made:
        chain = learned_chain(world, machine.host, leaf)
    else:
        chain = storage.chain(leaf)
    for path in chain:
        if not path.is_file():
            raise FileRefused(path, errors.FILE_NOT_FOUND)
        if storage.attributes.get(path):
            raise FileRefused(path, errors.NOT_A_PLAIN_FILE)
        if machine.is_made and not storage.may_write(path, machine.sid):
            raise FileRefused(path, errors.FILE_DENIED)
        is_leaf = path == leaf
        for handle in storage.handles:
            if handle.path != path or handle.owner == machine.owner:
                continue
            if is_leaf or handle.writes or "read" not in handle.shares:
                raise SharingViolation(path)
        if path not in storage.locks and is_byte_locked(path, LOCK_BYTE):
            raise SharingViolation(path)


def _refuse(machine: Machine, why: str) -> None:
    raise WorkFailed(
        FAILED, f"'{machine.name}' failed to start. (Virtual machine ID {machine.id}) {why}"
    )


# --- the guest ------------------------------------------------------------------------------------


def is_up(world: World, machine: Machine) -> bool:
    """Whether the guest came up since the VM was started."""
    if machine.state != RUNNING or not machine.guest.has_integration:
        return False
    after = machine.guest.boots_after_s
    if machine.started_at is None:
        return True
    return after is not None and world.clock.monotonic() >= machine.started_at + after


def contact(world: World, machine: Machine) -> tuple[int, ...]:
    """OperationalStatus of the integration components: 12 is no contact."""
    return machine.heartbeat if is_up(world, machine) else (12,)


def guest_items(world: World, machine: Machine) -> list[str]:
    """What the guest tells of itself, once it is up."""
    if not is_up(world, machine):
        return []
    told = {
        "FullyQualifiedDomainName": machine.guest.name,
        "OSName": machine.os_name,
        "NetworkAddressIPv4": machine.guest.address,
    }
    return [
        '<INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem">'
        f'<PROPERTY NAME="Data" TYPE="string"><VALUE>{escape(value)}</VALUE></PROPERTY>'
        f'<PROPERTY NAME="Name" TYPE="string"><VALUE>{name}</VALUE></PROPERTY>'
        '<PROPERTY NAME="Source" TYPE="uint16"><VALUE>2</VALUE></PROPERTY></INSTANCE>'
        for name, value in told.items()
    ]


def shut_down(world: World, machine: Machine, *, force: bool) -> int:
    """The guest is asked to end: what InitiateShutdown returns."""
    if machine.stopping:
        return IN_PROGRESS
    if not is_up(world, machine) or machine.integration.get("Shutdown", 2) != 2:
        return NOT_READY
    if machine.guest.is_locked and not force:
        return LOCKED
    machine.stopping = True
    started = machine.started_at

    def end() -> None:
        if machine.state == RUNNING and machine.started_at == started:
            world.turn_off(machine, OFF)
            machine.stopping = False

    if machine.guest.stops_after_s is not None:
        world.later(machine.guest.stops_after_s, end)
    return 0
