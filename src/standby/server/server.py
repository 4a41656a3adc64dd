"""The backup server as a library: configuration in, sessions, plans and reports out.

import standby
server = standby.BackupServer("standby.toml")
report = server.start("nightly")
print(report.outcome, [machine.point for machine in report.machines])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import JobBusy, JobError, StandbyError, UnknownName
from standby.files import ByteLock, free_bytes, make_folder_durably
from standby.host.folder import FolderHost, create_replica_machine, update_replica_machine
from standby.model.job import ReplicationJob
from standby.model.machine import Machine
from standby.model.replica import ReplicaIdentity
from standby.model.report import MachineReport, SessionReport
from standby.ports import Host
from standby.repository import Repository
from standby.road.points import TargetState, match_disks
from standby.server import facts
from standby.server.config import Config, load_config
from standby.server.config_check import Finding, check_paths, replica_conflicts, selects
from standby.server.driver import MachineDriver, ProgressCallback, SessionContext
from standby.server.movers import MoverPair, child_movers
from standby.server.plan import Basis, DiskPlan, Figure, JobPlan, MachinePlan, Mode
from standby.server.replicas import Replicas
from standby.server.store import Store


class BackupServer:
    """Everything the command line does, as methods. Close it, or use it as a context manager."""

    def __init__(
        self,
        config: Config | Path | str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        hosts: dict[str, Host] | None = None,
        make_movers: Callable[[int], MoverPair] = child_movers,
    ) -> None:
        """`config` is a loaded Config, a standby.toml or the folder of one. `hosts` and
        `make_movers` replace configured hosts and child processes, for tests."""
        self.config = config if isinstance(config, Config) else load_config(Path(config))
        self.clock = clock
        self._make_movers = make_movers
        self._hosts = dict(hosts or {})
        self._movers: list[MoverPair] = []
        make_folder_durably(self.config.state_database.parent)
        self.store = Store(self.config.state_database)
        self.replicas = Replicas(self.config, self.store, self.host, clock)

    def close(self) -> None:
        """End idle movers and close the state database."""
        for pair in self._movers:
            pair.close()
        self._movers.clear()
        self.store.close()

    def __enter__(self) -> BackupServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what there is -----------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name."""
        if name not in self._hosts:
            found = self.config.hosts[name]
            state = self.config.state_database.parent
            self._hosts[name] = FolderHost(name, found.path, state, self.clock)
        return self._hosts[name]

    def _root(self, host: str) -> Path:
        found = self.config.hosts.get(host)
        return found.path if found is not None else Path("/")

    def jobs(self) -> list[ReplicationJob]:
        """All jobs of the configuration."""
        return list(self.config.jobs.values())

    def machines(self, job: ReplicationJob) -> list[Machine]:
        """The VMs the job takes now."""
        return [item for item in self.host(job.source).machines() if selects(job, item.name)]

    def check(self) -> list[Finding]:
        """Everything wrong with the configuration, its paths, and VMs that two jobs claim."""
        findings = list(check_paths(self.config))
        inventory: dict[str, Sequence[Machine]] = {}
        for name in sorted({job.source for job in self.jobs()}):
            with contextlib.suppress(StandbyError):  # check_paths has said so
                inventory[name] = self.host(name).machines()
        targets = {name: host.path for name, host in self.config.hosts.items()}
        findings.extend(replica_conflicts(self.jobs(), inventory, targets))
        return findings

    def sessions(self, job: str | None = None, limit: int = 50) -> list[SessionReport]:
        """Past sessions, newest first."""
        return self.store.sessions(job, limit)

    def report(self, session: str) -> SessionReport:
        """One session by id."""
        return self.store.session(session)

    def acknowledge(self, job: str) -> int:
        """Acknowledge the open alarms of the job; how many there were."""
        return len(self.store.acknowledge(job=self.config.job(job).name))

    # --- movers ------------------------------------------------------------------------------

    def start_movers(self, pairs: int = 1) -> None:
        """Have movers running before a session asks for them."""
        while len(self._movers) < pairs:
            pair = self._make_movers(self.config.limits.max_tasks)
            pair.source.call("ping")
            pair.target.call("ping")
            self._movers.append(pair)

    @contextlib.contextmanager
    def _lent_movers(self) -> Iterator[MoverPair]:
        """A running pair for one VM; a pair that met an error is not used again."""
        try:
            pair = self._movers.pop()
        except IndexError:
            pair = self._make_movers(self.config.limits.max_tasks)
        is_sound = False
        try:
            yield pair
            is_sound = not pair.is_broken
        finally:
            if is_sound:
                self._movers.append(pair)
            else:
                pair.close()

    # --- sessions ----------------------------------------------------------------------------

    def start(
        self,
        job: str,
        *,
        machines: Sequence[str] | None = None,
        take_over: bool = False,
        accept_loss: bool = False,
        progress: ProgressCallback | None = None,
    ) -> SessionReport:
        """Run a session of the job: a new restore point of every VM (of `machines` only, if
        given). Raises only for what stops the whole job; per VM the report tells."""
        wanted = self.config.job(job)
        with self._one_session(wanted):
            report = SessionReport(
                f"{self.clock.now():%Y%m%dT%H%M%SZ}-{new_token(2)}",
                wanted.name,
                self.clock.now().isoformat(),
            )
            source = self.host(wanted.source)
            released = [*self._released_intents(wanted), *source.release_leftovers()]
            self.store.begin_session(report)
            found = self.machines(wanted)
            if machines is not None:
                found = [item for item in found if item.name in machines]
            if not found:
                report.outcome = "failed"
                report.ended_at = self.clock.now().isoformat()
                self.store.save_session(report)
                raise JobError(
                    wanted.name,
                    f"no VM on host {wanted.source} matches {', '.join(wanted.machines)}",
                    "See `standby job plan` and the job's `machines`",
                )
            context = self._context(report.id, wanted, take_over, accept_loss, progress)
            with ThreadPoolExecutor(wanted.max_machines, thread_name_prefix="machine") as pool:
                report.machines = list(pool.map(lambda item: self._replicate(context, item), found))
            if released:
                report.machines[0].warnings.append(
                    f"released what a killed session left: {', '.join(released)}"
                )
            self._check_rpo(wanted, report)
            report.outcome = _outcome(report.machines)
            report.ended_at = self.clock.now().isoformat()
            self.store.save_session(report)
            return report

    def _released_intents(self, job: ReplicationJob) -> list[str]:
        """Release the checkpoints of killed sessions of this job (RULES 10): while we hold the
        job's lock, none of its intents is alive. What was released, by checkpoint id."""
        released = []
        for intent in self.store.open_intents(job.source):
            with contextlib.suppress(UnknownName):
                if self.store.session(intent.session).job != job.name:
                    continue
            if intent.checkpoint is not None:
                self.host(job.source).release_checkpoint(intent.checkpoint)
                released.append(f"checkpoint {intent.checkpoint.id[:12]}")
            self.store.checkpoint_released(intent.id)
        for report in self.store.unfinished_sessions():
            if report.job == job.name:
                report.outcome = "interrupted"
                report.ended_at = self.clock.now().isoformat()
                self.store.save_session(report)
        return released

    def _replicate(self, context: SessionContext, machine: Machine) -> MachineReport:
        started = self.clock.monotonic()
        with self._lent_movers() as pair:
            driver = MachineDriver(context, machine, pair)
            driver.report.steps_s["start movers"] = self.clock.monotonic() - started
            report = driver.run()
            pair.is_broken = driver.is_broken
            return report

    def _context(
        self,
        session: str,
        job: ReplicationJob,
        take_over: bool,
        accept_loss: bool,
        progress: ProgressCallback | None,
    ) -> SessionContext:
        return SessionContext(
            session=session,
            installation=self.config.installation,
            job=job,
            source=self.host(job.source),
            source_root=self._root(job.source),
            target_root=self._root(job.target),
            repository=self.config.repositories[job.repository],
            store=self.store,
            take_over=take_over,
            accept_loss=accept_loss,
            progress=progress,
            clock=self.clock,
            after_commit=_keep_replica_machine,
        )

    @contextlib.contextmanager
    def _one_session(self, job: ReplicationJob) -> Iterator[None]:
        """One session per job at a time, across processes; ends with the process."""
        folder = self.config.state_database.parent
        lock = ByteLock(folder / f".{self.config.state_database.name}.{job.name}.lock")
        if not lock.acquire():
            raise JobBusy(job.name, "a session is running already", "Wait for it to end")
        try:
            yield
        finally:
            lock.release()

    def _check_rpo(self, job: ReplicationJob, report: SessionReport) -> None:
        """A replica whose newest point is older than the job allows is an alarm, whatever the
        reason."""
        if not job.rpo_s:
            return
        for machine in report.machines:
            if machine.outcome == "done":
                continue
            age = self.replicas.newest_age_s(job, machine.machine_id)
            if age is None or age > job.rpo_s:
                text = "has no restore point" if age is None else f"is {age:.0f} s old"
                machine.alarms.append(
                    f"the newest restore point of {machine.machine} {text}; rpo is {job.rpo_s} s"
                )

    # --- plans -------------------------------------------------------------------------------

    def plan(self, job: str, *, scan: bool = False) -> JobPlan:
        """What a session would do, per VM and disk. `scan` reads the disks and makes bytes to send
        exact; nothing is changed either way."""
        wanted = self.config.job(job)
        repository: Repository | None = None
        with contextlib.suppress(StandbyError):
            repository = Repository(self.config.repositories[wanted.repository], create=False)
        try:
            with self._lent_movers() as pair:
                plans = tuple(
                    self._plan_machine(wanted, machine, repository, pair, scan)
                    for machine in self.machines(wanted)
                )
        finally:
            if repository is not None:
                repository.close()
        root = self._root(wanted.target)
        free = free_bytes(root) if root.is_dir() else 0
        return JobPlan(wanted.name, plans, free, scan)

    def _plan_machine(
        self,
        job: ReplicationJob,
        machine: Machine,
        repository: Repository | None,
        pair: MoverPair,
        scan: bool,
    ) -> MachinePlan:
        identity = ReplicaIdentity(self.config.installation, job.source, machine.id, job.name)
        key = facts.repository_key(identity)
        source = self.host(job.source)
        replica = ""
        try:
            found = pair.target.call(
                "find_replica",
                root=str(self._root(job.target)),
                identity=msgspec.to_builtins(identity),
                wanted=machine.name + job.suffix,
            )
            replica = Path(found["path"]).name
            held = pair.target.call("inspect_replica", path=found["path"])
            state = msgspec.convert(held, TargetState) if held is not None else None
            reason = self.replicas.refusal(identity, state)
            if reason:
                return MachinePlan(machine.name, machine.id, replica, "skip", reason)
            checkpoint = source.take_checkpoint(machine, f"plan-{new_token(4)}")
            try:
                known = state.known_disks if state is not None else ()
                plans = facts.disk_plans(
                    job,
                    machine,
                    checkpoint,
                    match_disks(replica, known, machine.disks),
                    state,
                    repository,
                    key,
                    source,
                    self._root(job.source),
                    pair.source,
                    self.store.changed_history(identity),
                )
                disks = {disk.place: disk for disk in checkpoint.disks}
                if scan:
                    plans = {
                        place: self._scanned(plan, disks[place].files, job, key, pair)
                        for place, plan in plans.items()
                    }
            finally:
                source.release_checkpoint(checkpoint)
        except StandbyError as exc:
            return MachinePlan(machine.name, machine.id, replica, "conflict", str(exc))
        return MachinePlan(
            machine.name, machine.id, replica, "replicate", disks=tuple(plans.values())
        )

    def _scanned(
        self,
        plan: DiskPlan,
        files: Sequence[str],
        job: ReplicationJob,
        key: str,
        pair: MoverPair,
    ) -> DiskPlan:
        """The plan with exact figures where the baseline is on this side."""
        if plan.mode is Mode.EXCLUDED or plan.baseline == "target":
            return plan
        found = pair.source.call(
            "scan_disk",
            task=f"scan {plan.place} {new_token(4)}",
            connection=0,
            disk={"root": str(self._root(job.source)), "files": list(files)},
            repository=str(self.config.repositories[job.repository]),
            replica=key,
            disk_id=plan.disk_id,
            session="",
            point_id="",
            checkpoint_id="",
            baseline=plan.baseline,
            builds_on_repository=plan.builds_on_repository,
            candidates=None
            if plan.candidates is None
            else [(extent.offset, extent.length) for extent in plan.candidates],
            resume_mark=0,
            compression="none",
            virtual_size=plan.virtual_size,
        )
        sent = found["changed"] - found["zeroed"]
        return replace(
            plan, read=Figure(found["read"], Basis.EXACT), send=Figure(sent, Basis.EXACT)
        )


def _keep_replica_machine(folder: Path, machine: Machine, ready: dict[str, str]) -> None:
    """Make or update the replica VM on a folder target, attached to its ready layers."""
    if not ready:
        return
    if (folder / "vm.toml").exists():
        update_replica_machine(folder, machine, ready)
    else:
        create_replica_machine(folder, machine, ready)


def _outcome(machines: Sequence[MachineReport]) -> str:
    if any(item.outcome in ("failed", "interrupted") for item in machines):
        return "failed"
    if any(item.warnings or item.alarms or item.outcome == "skipped" for item in machines):
        return "warnings"
    return "done"
