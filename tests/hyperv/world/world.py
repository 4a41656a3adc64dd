"""The world: hosts, their storage and VMs, time, and everything a test does to them."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperv.world.errors import NodeDown, WorkFailed
from hyperv.world.machines import (
    OFF,
    RECOVERY,
    RUNNING,
    SAVED,
    USER,
    VERSIONS,
    Adapter,
    Checkpoint,
    Controller,
    Drive,
    Host,
    Job,
    Machine,
    new_id,
)
from hyperv.world.storage import Handle, Oddity, SharingViolation, Storage, Volume
from hyperv.world.tracking import Tracker
from standby.clock import Clock
from standby.units import MiB

JOB_KEPT_S = 300.0
"""How long a job that is over can be asked about."""


@dataclass
class Fault:
    """Something that goes wrong with a method's call, `times` times.

    `code`: what it returns at once.  `job`: (JobState, ErrorCode, ErrorDescription) of the job it
    starts, whose work is done all the same where `works`.  `seconds`: how long the job takes.
    `vm` and `host` narrow it down.
    """

    method: str
    vm: str = ""
    host: str = ""
    code: int | None = None
    job: tuple[int, int, str] | None = None
    works: bool = False
    seconds: float | None = None
    times: int = 1


@dataclass(frozen=True)
class DiskSpec:
    """A disk of a VM that is made; `kind` is vhdx, vhd, vhds, physical or dvd."""

    size: int = 16 * MiB
    place: str = ""
    kind: str = "vhdx"
    file: str = ""
    sector: int = 512
    is_fixed: bool = False
    is_shared: bool = False
    path: Path | None = None
    """A file that is there already."""


@dataclass
class World:
    """All hosts.  Whoever acts on it holds `lock`."""

    clock: Clock
    root: Path
    hosts: dict[str, Host] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    """By id."""
    storage: Storage = field(default_factory=Storage)
    jobs: dict[str, Job] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    hooks: list[Callable[[str, str, Mapping[str, Any]], None]] = field(default_factory=list)
    """Called with (host, command or Class.Method, arguments) before each call is carried out."""
    fates: list[Callable[[str], None]] = field(default_factory=list)
    """Called with a host's name when it died, or is back."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(host, command or Class.Method) of all calls so far."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    # --- making --------------------------------------------------------------------------------

    def add_host(self, name: str, version: int = 2022, **more: Any) -> Host:
        """A host with a local folder of its own, seen as C:\\Hyper-V."""
        host = Host(name, version, **more)
        self.hosts[name] = host
        folder = self.root / name
        folder.mkdir(parents=True)
        self.storage.volumes.append(Volume(host.default_folder, folder, {name}))
        return host

    def add_cluster(
        self, name: str, nodes: Iterable[str], version: int = 2022, volumes: int = 1
    ) -> list[Host]:
        """Hosts that share C:\\ClusterStorage\\Volume1 and so on."""
        hosts = [self.add_host(node, version, cluster=name) for node in nodes]
        for number in range(1, volumes + 1):
            folder = self.root / f"{name}-volume{number}"
            folder.mkdir(parents=True)
            self.storage.volumes.append(
                Volume(
                    f"C:\\ClusterStorage\\Volume{number}",
                    folder,
                    {host.name for host in hosts},
                    owner=hosts[0].name,
                    file_system="CSVFS",
                )
            )
        return hosts

    def add_machine(
        self,
        name: str,
        host: str,
        disks: Iterable[DiskSpec | int] = (16 * MiB,),
        *,
        volume: str = "",
        adapters: Iterable[Adapter] | None = None,
        **more: Any,
    ) -> Machine:
        """A VM with disks of zeros (sizes in bytes, or how they are to be), running."""
        node = self.hosts[host]
        on = volume or (r"C:\ClusterStorage\Volume1" if node.cluster else node.default_folder)
        top = self.storage.path(host, on)
        assert top is not None, f"{host} has no {on}"
        folder = top / name
        folder.mkdir()
        more.setdefault("version", VERSIONS[node.version])
        machine = Machine(name, host, folder, created=self.clock.now(), **more)
        machine.is_clustered = bool(node.cluster)
        machine.adapters = list(
            [Adapter(mac=f"00155D{len(self.machines):06X}", switch="External")]
            if adapters is None
            else adapters
        )
        if machine.generation == 1:
            machine.controllers = [Controller.ide(0), Controller.ide(1)]
            machine.secure_boot = False
        machine.controllers.append(Controller("SCSI", 0))
        for number, spec in enumerate(disks):
            self.add_disk(machine, DiskSpec(spec) if isinstance(spec, int) else spec, number)
        self.machines[machine.id] = machine
        if machine.runs:
            self._open_disks(machine)
        return machine

    def add_disk(self, machine: Machine, spec: DiskSpec, number: int | None = None) -> Drive:
        """One more disk of a VM, at the place that `spec` says or the next free one."""
        count = len(machine.drives) if number is None else number
        default = f"ide:0:{count}" if machine.generation == 1 and count < 2 else f"scsi:0:{count}"
        kind, controller_number, location = (spec.place or default).split(":")
        controller = self._controller(machine, kind.upper(), int(controller_number))
        drive = Drive(controller, int(location))
        if spec.kind in ("physical", "dvd"):
            drive.kind = spec.kind
            drive.disk_number = count + 1
        else:
            suffix = spec.kind
            path = spec.path or machine.folder / (spec.file or f"{machine.name}-{count}.{suffix}")
            if spec.kind == "vhdx":
                if spec.path is None:
                    self.storage.make_disk(path, spec.size, sector=spec.sector, fixed=spec.is_fixed)
            else:
                path.write_bytes(b"conectix" if spec.kind == "vhd" else b"vhds")
                format_number = {"vhd": 2, "vhds": 4}[spec.kind]
                self.storage.oddities[path] = Oddity(3, format_number, spec.size, new_id())
            drive.path = path
            drive.is_shared = spec.is_shared
            drive.tracker = Tracker(spec.size)
        machine.drives.append(drive)
        return drive

    def _controller(self, machine: Machine, kind: str, number: int) -> Controller:
        for controller in machine.controllers:
            if controller.kind == kind and controller.number == number:
                return controller
        assert kind == "SCSI", f"no {kind} controller {number}"
        for new in range(sum(c.kind == "SCSI" for c in machine.controllers), number + 1):
            machine.controllers.append(Controller("SCSI", new))
        return machine.controllers[-1]

    # --- what a test asks ----------------------------------------------------------------------

    def machine(self, name: str) -> Machine:
        """The VM of that name."""
        return next(machine for machine in self.machines.values() if machine.name == name)

    def on_host(self, host: str) -> list[Machine]:
        """The VMs that are there now."""
        return [machine for machine in self.machines.values() if machine.host == host]

    def depth(self, machine: Machine, disk: int = 0) -> int:
        """Files in the chain of a disk."""
        path = machine.disks()[disk].path
        assert path is not None
        return len(self.storage.chain(path))

    def content(self, path: Path) -> bytes:
        """All that a disk file shows, with its chain."""
        with self.storage.opened(path) as disk:
            buffer = bytearray(disk.virtual_size)
            disk.read_into(0, buffer)
        return bytes(buffer)

    # --- the guest -----------------------------------------------------------------------------

    def write(self, machine: Machine, offset: int, data: bytes, disk: int = 0) -> None:
        """The guest writes: into the leaf of the chain, seen by the tracker."""
        with self.lock:
            self.settle()
            assert machine.state == RUNNING, f"{machine.name} does not run"
            drive = machine.disks()[disk]
            assert drive.path is not None
            with (
                self.storage.unlocked(drive.path),
                self.storage.opened(drive.path, writable=True) as leaf,
            ):
                leaf.write(offset, data)
            drive.tracker.record(offset, len(data))

    def open_for_reading(
        self,
        path: Path,
        *,
        owner: str = "reader",
        shares: Iterable[str] = ("read", "write", "delete"),
        client: str = "",
    ) -> Handle:
        """As a reader on a host or through SMB has a file; SharingViolation where a VM or another
        reader forbids it."""
        with self.lock:
            self.settle()
            return self.storage.open(path, owner, shares=shares, client=client)

    # --- power and moves -----------------------------------------------------------------------

    def start(self, machine: Machine) -> None:
        """Power on, WorkFailed where that cannot be; merges that stopped are taken up again."""
        from hyperv.world.power import check_start

        check_start(self, machine)
        machine.state = RUNNING
        machine.stopping = False
        machine.started_at = self.clock.monotonic()
        self._open_disks(machine)
        self.merge_left(machine)

    def turn_off(self, machine: Machine, state: int = OFF) -> None:
        """Power off, or save."""
        machine.state = state
        if state in (OFF, SAVED):
            self.storage.close_all(machine.owner)

    def _open_disks(self, machine: Machine) -> None:
        """The worker process opens each chain: the leaf for itself, what is below for reading.  Who
        has a file open already and shares everything keeps it; others find it taken from now on."""
        self.storage.close_all(machine.owner)
        for drive in machine.disks():
            if drive.path is None or drive.is_shared:
                continue
            chain = self.storage.chain(drive.path)
            self.storage.hold(chain[0], machine.owner, writes=True, shares=())
            if machine.started_at is not None and chain[0].exists():
                self.storage.lock(chain[0])
            for parent in chain[1:]:
                self.storage.hold(parent, machine.owner, shares=("read",))

    def reopen(self, machine: Machine) -> None:
        """The chain has changed below a VM."""
        if machine.runs:
            self._open_disks(machine)

    def move(self, machine: Machine, host: str) -> None:
        """Live migration within a cluster: the files stay."""
        machine.host = host

    def kill(self, host: str, *, jobs_are_done: bool = False, takes_over: bool = True) -> None:
        """The node dies.  Its clustered VMs start on the first other node, if one `takes_over`; its
        jobs end where they were, or had just done their work."""
        node = self.hosts[host]
        for job in [job for job in self.jobs.values() if job.host == host]:
            if jobs_are_done and not job.is_over:
                self._finish(job)
            del self.jobs[job.id]
        node.is_up, node.node_state = False, 1
        for tell in self.fates:
            tell(host)
        others = [h for h in self.hosts.values() if h.cluster == node.cluster and h.is_up]
        for machine in self.on_host(host):
            machine.activity = None
            if takes_over and machine.is_clustered and node.cluster and others:
                machine.host = others[0].name
                self.merge_left(machine)

    def revive(self, host: str) -> None:
        """The node is back."""
        self.hosts[host].is_up, self.hosts[host].node_state = True, 0
        for tell in self.fates:
            tell(host)

    # --- time ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everything that is due by now happens."""
        with self.lock:
            while self._events and self._events[0][0] <= self.clock.monotonic():
                heapq.heappop(self._events)[2]()
            now = self.clock.monotonic()
            for job in list(self.jobs.values()):
                if job.forgotten_at is not None and job.forgotten_at <= now:
                    del self.jobs[job.id]

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """`action` happens that much later."""
        due = self.clock.monotonic() + seconds
        heapq.heappush(self._events, (due, next(self._order), action))

    def start_job(
        self,
        host: str,
        kind: int,
        caption: str,
        work: Callable[[], list[Any]],
        *,
        seconds: float,
        vm: Machine | None = None,
        class_name: str = "Msvm_ConcreteJob",
        fault: Fault | None = None,
        activity: int | None = None,
    ) -> Job:
        """A job whose `work` is done when its time is over and says what it affected."""
        if fault is not None and fault.seconds is not None:
            seconds = fault.seconds
        due = self.clock.monotonic() + seconds
        job = Job(host, kind, caption, due, self.clock.now(), class_name, vm)
        self.jobs[job.id] = job
        if vm is not None:
            vm.activity = activity
            job.affected.append(vm)
        self._work[job.id] = (work, fault)
        self.later(seconds, lambda: self._finish(job))
        return job

    def next_mac(self) -> int:
        """The last half of a dynamic MAC address."""
        return 0xA00000 + next(self._order)

    _work: dict[str, tuple[Callable[[], list[Any]], Fault | None]] = field(default_factory=dict)

    def _finish(self, job: Job) -> None:
        if job.is_over or job.id not in self.jobs:
            return
        work, fault = self._work.pop(job.id)
        if job.vm is not None:
            job.vm.activity = None
        state, code, text = 7, 0, ""
        if fault is not None and fault.job is not None:
            state, code, text = fault.job
        if fault is None or fault.job is None or fault.works or state in (7, 32768):
            try:
                job.affected += work()
            except WorkFailed as exc:
                state, code, text = 10, exc.code, exc.description
        job.state, job.error_code, job.error_description = state, code, text
        job.forgotten_at = self.clock.monotonic() + JOB_KEPT_S

    # --- merges behind a release ---------------------------------------------------------------

    def merge_later(self, machine: Machine, frozen: Path) -> None:
        """The file above `frozen` on a VM's chain is merged into it, in a while."""
        machine.activity = 32772
        self.later(machine.faults.seconds.get("merge", 5.0), lambda: self._merge(machine, frozen))

    def merge_left(self, machine: Machine) -> None:
        """Merges that stopped are tried again: every file above one that nothing keeps."""
        for drive in machine.disks():
            if drive.path is None:
                continue
            for path in self.storage.chain(drive.path)[1:]:
                if not self.is_kept(path) and path in self._left:
                    self._left.discard(path)
                    self.merge_later(machine, path)

    _left: set[Path] = field(default_factory=set)

    def is_kept(self, path: Path) -> bool:
        """Whether a checkpoint of any VM needs the file as it is."""
        return any(
            path in checkpoint.disks.values()
            for machine in self.machines.values()
            for checkpoint in machine.checkpoints
        )

    def _merge(self, machine: Machine, frozen: Path) -> None:
        if machine.activity == 32772:
            machine.activity = None
        if self.is_kept(frozen) or not self.hosts[machine.host].is_up:
            self._left.add(frozen)
            return
        children = self.storage.children(frozen)
        if len(children) != 1:
            return
        try:
            if machine.faults.merge_fails:
                raise WorkFailed(32768, machine.faults.merge_fails)
            self.storage.merge(children[0])
        except (SharingViolation, WorkFailed):
            self._left.add(frozen)
            return
        for drive in machine.disks():
            if drive.path == children[0]:
                drive.path = frozen
        for checkpoint in machine.checkpoints:
            for place, path in checkpoint.disks.items():
                if path == children[0]:
                    checkpoint.disks[place] = frozen
        self.reopen(machine)

    # --- who calls -----------------------------------------------------------------------------

    def arrive(self, host: str, what: str, arguments: Mapping[str, Any]) -> None:
        """A call comes in on a host; NodeDown when nobody is there to answer."""
        self.settle()
        self.calls.append((host, what))
        for hook in list(self.hooks):
            hook(host, what, arguments)
        self.settle()
        if not self.hosts[host].is_up:
            raise NodeDown(host)

    def take_fault(self, method: str, host: str, vm: Machine | None) -> Fault | None:
        """The next fault that this call meets, if any."""
        for fault in self.faults:
            if fault.method.lower() != method.lower() or fault.times <= 0:
                continue
            if fault.host not in ("", host) or (
                fault.vm and (vm is None or fault.vm not in (vm.name, vm.id))
            ):
                continue
            fault.times -= 1
            return fault
        return None

    # --- checkpoints of users ------------------------------------------------------------------

    def user_checkpoint(self, machine: Machine, name: str) -> Checkpoint:
        """Someone takes a checkpoint by hand."""
        from hyperv.world.snapshots import make_checkpoint

        with self.lock:
            return make_checkpoint(self, machine, name, USER, 2)

    def recovery_snapshot(self, machine: Machine, name: str = "") -> Checkpoint:
        """Another product takes a recovery snapshot."""
        from hyperv.world.snapshots import make_checkpoint

        with self.lock:
            return make_checkpoint(self, machine, name or machine.name, RECOVERY, 2)
