"""`job plan`: asks everybody what they have, and shows what `plan_disk` makes of it.

The facts and the decision are the very ones of a session; nothing is changed but that checkpoints
are taken and released again, which leaves the empty `.standby.lock` in a VM's folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import msgspec

from standby.clock import new_token
from standby.disk.vhdx import default_block_size
from standby.errors import (
    ConfigurationError,
    IllegalTransition,
    LinkError,
    MoverDied,
    NoProxy,
    RepositoryBusy,
    RepositoryError,
    StandbyError,
)
from standby.model.job import ReplicationJob
from standby.model.machine import CheckpointDisk, Machine
from standby.model.replica import Action, ReplicaIdentity, legal_actions, legal_commands
from standby.ports import Host
from standby.road.points import TargetState, match_disks
from standby.server import facts
from standby.server.crew import Crew, DiskTask, RepositoryView, replica_name
from standby.server.overdue import names_of, overdue
from standby.server.plan import (
    Basis,
    DiskPlan,
    Figure,
    JobPlan,
    MachinePlan,
    Mode,
    first_full_short,
    mapping_moves,
)
from standby.server.retention import held_text
from standby.server.store import Store
from standby.server.task_ends import both
from standby.units import format_bytes


class Planner:
    """Plans one job."""

    def __init__(
        self,
        job: ReplicationJob,
        installation: str,
        source: Host,
        store: Store,
        lend: Callable[[Machine], AbstractContextManager[Crew]],
        write_problem: Callable[[str], str] = lambda path: "",
    ) -> None:
        """`write_problem` says why a replica's folder, as the target calls it, cannot be written,
        '' where it can."""
        self._write_problem = write_problem
        self._job = job
        self._installation = installation
        self._source = source
        self._store = store
        self._lend = lend

    def plan(self, machines: Sequence[Machine], *, scan: bool) -> JobPlan:
        """What a session would do with each of `machines`."""
        self._free = 0
        plans = tuple(self._machine(machine, scan) for machine in machines)
        return JobPlan(self._job.name, plans, self._free, scan, _shortage(plans, self._free))

    def _machine(self, machine: Machine, scan: bool) -> MachinePlan:
        try:
            made, damage = self._tried(machine, scan)
        except NoProxy as exc:
            reason = str(replace(exc, machine=exc.machine or machine.name))
            return MachinePlan(machine.name, machine.id, "", "conflict", reason)
        if damage is not None and made is None:
            made, _ = self._tried(machine, scan, has_repository=False)
        assert made is not None
        if damage is None or made.action != "replicate":
            return made
        text = (
            f"{damage}; a session drops what is damaged there, compares with the target's digests "
            "instead and raises an alarm"
        )
        return replace(made, alarms=(*made.alarms, text))

    def _tried(
        self, machine: Machine, scan: bool, *, has_repository: bool = True
    ) -> tuple[MachinePlan | None, RepositoryError | None]:
        """The plan, and the damage of the repository; no plan where that is met in mid-work: a
        session goes on without what it has of the replica, and so does a plan."""
        with self._lend(machine) as crew, contextlib.ExitStack() as stack:
            repository: RepositoryView | None = None
            away: tuple[str, ...] = ()
            damage: RepositoryError | None = None
            try:
                if has_repository:
                    repository = crew.open_repository(create=False)
                    stack.callback(repository.close)
            except (LinkError, MoverDied) as exc:
                away = (f"repository: {exc}",)
            except StandbyError as exc:
                damage = _damage(exc)
                if damage is None and not _is_missing(exc):
                    return MachinePlan(machine.name, machine.id, "", "conflict", str(exc)), None
            try:
                made = self._planned(machine, crew, repository, scan)
                return replace(made, warnings=(*made.warnings, *away)), damage
            except StandbyError as exc:
                crew.is_broken = True
                if has_repository and _damage(exc) is not None:
                    return None, _damage(exc)
                return MachinePlan(machine.name, machine.id, "", "conflict", str(exc)), damage

    def _planned(
        self, machine: Machine, crew: Crew, repository: RepositoryView | None, scan: bool
    ) -> MachinePlan:
        identity = ReplicaIdentity(
            self._installation, self._source.name, machine.id, self._job.name
        )
        found = crew.target.call(
            "find_replica",
            root=crew.target_root,
            identity=msgspec.to_builtins(identity),
            wanted=machine.name + self._job.suffix,
        )
        path = found["path"]
        replica = replica_name(path)
        self._free = int(crew.target.call("free_bytes", path=path))
        held = crew.target.call("inspect_replica", path=path)
        state = msgspec.convert(held, TargetState) if held is not None else None
        reason = self._refusal(replica, identity, state, repository)
        if reason:
            return MachinePlan(machine.name, machine.id, replica, "skip", reason)
        if reason := self._write_problem(path):
            return MachinePlan(machine.name, machine.id, replica, "conflict", reason)
        if repository is not None:
            with contextlib.suppress(RepositoryBusy):
                repository.states(facts.repository_key(identity))  # damage is told, not passed over
        disks, told = self._disks(machine, identity, state, path, crew, repository, scan)
        files = {disk.place: disk.file_name for disk in machine.disks}
        seeds = {disk.disk_id: files.get(disk.place, "") for disk in disks if disk.uses_seed}
        if seeds and (reason := crew.target.call("missing_seed", path=path, seeds=seeds)):
            return MachinePlan(machine.name, machine.id, replica, "conflict", reason, disks=disks)
        alarms = tuple(
            f"disk {disk.place}: full: {disk.reason}" for disk in disks if disk.is_unforeseen
        )
        first = sum(disk.space.value for disk in disks if disk.mode is Mode.FULL)
        short = first_full_short(first, self._free, is_counted=scan)
        warnings = told if first <= self._free else (*told, short)
        if mapped := [disk.place for disk in disks if disk.mapped_from]:
            moves = mapping_moves(self._job.map[machine.name], mapped)
            warnings = (*warnings, moves)
        if self._store.holds_retention(identity):
            warnings = (*warnings, held_text(self._job.name))
        return MachinePlan(
            machine.name,
            machine.id,
            replica,
            "replicate",
            disks=disks,
            warnings=warnings,
            alarms=alarms,
        )

    def _refusal(
        self,
        replica: str,
        identity: ReplicaIdentity,
        state: TargetState | None,
        repository: RepositoryView | None,
    ) -> str:
        """Why a session would leave this replica alone, '' when it would not."""
        if state is not None and Action.SESSION not in legal_actions(state.state):
            legal = legal_commands(state.state, replica, self._job.name)
            refused = IllegalTransition(replica, str(state.state), Action.SESSION.value, legal)
            return refused.message()
        if state is not None and state.damaged:
            return state.damaged
        known = self._store.known_replica(identity)
        key = facts.repository_key(identity)
        lost = ""
        if known is not None and known.points and state is None:
            lost = "the replica is not there"
        elif known is not None and known.points > (len(state.points) if state is not None else 0):
            lost = f"the target holds fewer restore points than the {known.points} known"
        elif repository is not None:
            newest = state.newest if state is not None else ""
            lost = facts.points_lost(known, repository, key, newest)
        return f"{lost}; see --accept-loss of `standby job start`" if lost else ""

    def _disks(
        self,
        machine: Machine,
        identity: ReplicaIdentity,
        state: TargetState | None,
        path: str,
        crew: Crew,
        repository: RepositoryView | None,
        scan: bool,
    ) -> tuple[tuple[DiskPlan, ...], tuple[str, ...]]:
        """The disks' plans, and what the host says of the checkpoint."""
        key = facts.repository_key(identity)
        mapped: list[str] = []
        folder = self._job.map.get(machine.name, "")
        if folder and (state is None or not state.newest):
            mapped = crew.target.call("mapped_disks", root=crew.target_root, folder=folder)
            if not {disk.place for disk in machine.disks}.intersection(mapped):
                problem = f"the VM in {folder} has no disk at a place where {machine.name} has one"
                raise ConfigurationError(f"[jobs.{self._job.name}.map]", problem)
        matches = match_disks(
            replica_name(path), state.known_disks if state is not None else (), machine.disks
        )
        checkpoint = self._source.take_checkpoint(machine, f"plan-{new_token(4)}")
        try:
            plans = facts.disk_plans(
                self._job,
                machine,
                checkpoint,
                matches,
                state,
                repository,
                key,
                self._source,
                crew,
                self._store.changed_history(identity),
                mapped_places=mapped,
                distrust=self._store.tracker_distrust(self._job.name, machine.name),
            )
            if scan:
                disks = {disk.place: disk for disk in checkpoint.disks}
                names = {disk.place: disk.file_name for disk in machine.disks}
                plans = {
                    place: self._scanned(
                        plan, machine.name, disks[place], names.get(place, ""), path, key, crew
                    )
                    for place, plan in plans.items()
                }
                self._source.confirm_checkpoint(checkpoint)
        finally:
            self._source.release_checkpoint(checkpoint)
        return tuple(plans.values()), checkpoint.warnings

    # --- scanning ----------------------------------------------------------------------------

    def _scanned(
        self,
        plan: DiskPlan,
        machine: str,
        disk: CheckpointDisk,
        seed_name: str,
        path: str,
        key: str,
        crew: Crew,
    ) -> DiskPlan:
        """The plan with exact figures: the disk read and compared, as the session would."""
        if plan.mode is Mode.EXCLUDED:
            return plan
        task = f"scan {plan.place} {new_token(4)}"
        wanted = DiskTask(task, "", plan.place, plan.disk_id, disk.files, key)
        with crew.disk_link(wanted) as link:
            arguments: dict[str, Any] = {
                "task": task,
                "connection": link.at_source,
                "disk": link.disk,
                "repository": link.repository,
                "replica": key,
                "disk_id": plan.disk_id,
                "session": "",
                "point_id": "",
                "checkpoint_id": disk.identity,
                "baseline": plan.baseline,
                "builds_on_repository": plan.builds_on_repository,
                "candidates": None
                if plan.candidates is None
                else [(extent.offset, extent.length) for extent in plan.candidates],
                "resume_mark": 0,
                "compression": "none",
                "virtual_size": plan.virtual_size,
                "expected": link.expected(machine, disk),
            }
            if plan.builds_on_repository and plan.baseline != "target":
                link.serve_leaves(arguments, stages=False)
            if plan.baseline != "target":
                found = link.source.call("scan_disk", **arguments)
            else:
                telling = crew.target.start(
                    "tell_disk",
                    path=path,
                    disk_id=plan.disk_id,
                    virtual_size=plan.virtual_size,
                    connection=link.at_target,
                    task=task,
                    seed_name=seed_name if plan.uses_seed else "",
                    mapped_from=plan.mapped_from,
                    place=plan.place,
                    copy_of=plan.copies_of,
                )
                found, _ = both(link.source.start("scan_disk", **arguments), telling)
        sent = found["changed"] - found["zeroed"]
        return replace(
            plan,
            read=Figure(found["read"], Basis.EXACT),
            send=Figure(sent, Basis.EXACT),
            space=_space_of(plan, found["zeroed"], found["blocks"]),
        )


def with_overdue(
    job: ReplicationJob,
    plans: Iterable[MachinePlan],
    store: Store,
    ages: Mapping[str, float | None],
) -> tuple[MachinePlan, ...]:
    """The plans, each with the alarm that the VM's replica is older than the job's rpo allows, by
    the replicas' ages and the VMs' ids. VMs that say that they have one id have one replica, which
    is told once, by its own VM's name."""
    made = list(plans)
    sharing: dict[str, list[int]] = {}
    for place, item in enumerate(made):
        if item.machine_id:
            sharing.setdefault(item.machine_id, []).append(place)
    known = names_of(job, store) if job.rpo_s else {}
    for machine_id, places in sharing.items() if job.rpo_s else ():
        age_s = ages.get(machine_id)
        if age_s is None:  # before the first point only the session says so
            continue
        name, place = made[places[0]].machine, places[0]
        if len(places) > 1:
            name = known.get(machine_id, name)
            place = next((at for at in places if made[at].machine == name), place)
        if text := overdue(job, name, age_s):
            made[place] = replace(made[place], alarms=(*made[place].alarms, text))
    return tuple(made)


def _is_missing(error: StandbyError) -> bool:
    """Whether there is no repository yet: a session makes it."""
    return isinstance(error, RepositoryError) and "does not exist" in error.problem


def _damage(error: StandbyError) -> RepositoryError | None:
    """The error, where it is of damage in the repository: a session drops what is damaged."""
    if isinstance(error, RepositoryError) and "damaged" in error.problem:
        return error
    return None


def _space_of(plan: DiskPlan, zeroed: int, blocks: int) -> Figure:
    """What the target has to store for changes in so many blocks of a layer: these, where it begins
    empty, and at most these where something is zeroed (whole blocks of zeros take no room). What is
    there already may hold some of them; a new chain is begun with a copy, which only the forecast
    counts."""
    needed = blocks * default_block_size(plan.virtual_size)
    if plan.mode in (Mode.FULL, Mode.INCREMENTAL):
        return Figure(needed, Basis.UPPER_BOUND if zeroed else Basis.EXACT)
    forecast = plan.space.high if plan.space.basis is Basis.ESTIMATED else plan.space.value
    value = forecast if plan.mode is Mode.NEW_CHAIN else min(needed, forecast)
    return Figure(value, Basis.UPPER_BOUND)


def _shortage(plans: Sequence[MachinePlan], free: int) -> tuple[str, ...]:
    """What the plan has to say of the target's space: nothing while the forecast fits."""
    figures = [disk.space for item in plans if item.action == "replicate" for disk in item.disks]
    needed = sum(figure.value for figure in figures)
    if needed <= free:
        return ()
    is_bound = any(figure.basis is Basis.UPPER_BOUND and figure.value for figure in figures)
    return (
        f"{'up to' if is_bound else 'about'} {format_bytes(needed)} are needed at the target, "
        f"{format_bytes(free)} are free; make room, or the session stops where the space ends",
    )
