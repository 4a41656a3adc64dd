"""The backup server as a library: configuration in, sessions, plans and reports out.

import standby
server = standby.BackupServer("standby.toml")
report = server.start("nightly")
print(report.outcome, [machine.point for machine in report.machines])
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import MoverDied, ServerFenced, SessionStopped, StandbyError, UnknownName
from standby.host.folder import FolderHost
from standby.model.job import ReplicationJob
from standby.model.machine import Inventory, Machine
from standby.model.report import MachineReport, SessionReport
from standby.ports import Host, inventory_of
from standby.road.surveying import ReplicaStatus
from standby.server.alive import Alive
from standby.server.all_replicas import AllReplicas
from standby.server.checking import check_configuration
from standby.server.config import Config, MoverConfig, load_config
from standby.server.config_check import Finding
from standby.server.context import ProgressCallback, SessionContext
from standby.server.crew import Crew
from standby.server.crews import Crews
from standby.server.fleet import Fleet, Station
from standby.server.inventory import (
    failed_report,
    gone_from,
    gone_report,
    hidden_from,
    hidden_report,
    name_of,
    taken_by,
    wanted_of,
)
from standby.server.journey import is_too_old
from standby.server.movers import MoverPair, child_movers
from standby.server.overdue import alarm_of_known, alarm_of_session
from standby.server.plan import JobPlan, MachinePlan
from standby.server.planner import Planner
from standby.server.progress import ProgressBoard
from standby.server.remote_host import RemoteHost, impatient
from standby.server.replicas import Replicas
from standby.server.replicating import replicate
from standby.server.state_folder import StateFolder
from standby.server.stopping import StopWatcher, stop_sessions
from standby.server.store import ServerLease, Store
from standby.server.waits import waits_are_over, waits_end_when
from standby.wire.learning import learn_values
from standby.wire.link import Link

INTERRUPT_POLL_S = 0.5


class BackupServer:
    """Everything the command line does, as methods. Close it, or use it as a context manager."""

    def __init__(
        self,
        config: Config | Path | str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        hosts: dict[str, Host] | None = None,
        make_movers: Callable[[int], MoverPair] = child_movers,
        make_link: Callable[[MoverConfig], Link] | None = None,
        keeps_state: bool = True,
    ) -> None:
        """`config` is a loaded Config, a standby.toml or the folder of one. `hosts`, `make_movers`
        and `make_link` replace configured hosts, child processes and TLS connections to service
        movers, for tests. With `keeps_state` False, for who only looks (a plan, what there is), no
        state is made where there is none."""
        learn_values()
        self.config = config if isinstance(config, Config) else load_config(Path(config))
        self.clock = clock
        fleet = Fleet(self.config, clock, make_link=make_link)
        self.crews = Crews(self.config, make_movers, fleet, clock)
        self._at_work: dict[str, SessionContext] = {}
        self.progress = ProgressBoard()
        self._hosts = dict(hosts or {})
        self._state = StateFolder(self.config, keeps=keeps_state)
        self.store = Store(self._state.database, clock)
        self._lease: ServerLease | None = None
        self._store = self.store
        """What sessions write to: where this is the active server, guarded by its lease."""
        self._alive = Alive(self.store, clock)
        local = Replicas(self.config, self.store, self.host, clock)
        self.replicas = AllReplicas(
            self.config,
            local,
            self.crews.fleet,
            lambda status: self._answers(status) and local.is_source_running(status.identity),
        )

    def close(self) -> None:
        """End idle movers and close the state database."""
        self.crews.close()
        self.store.close()
        self._state.close()

    def __enter__(self) -> BackupServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one of several ----------------------------------------------------------------------

    def lead(self, lease: ServerLease | None) -> None:
        """Be the active server by that lease: sessions that begin from now on write nothing, and
        movers do nothing for them, once another server has taken over. None: as without one."""
        self._lease = lease
        self._store = self.store if lease is None else self.store.guarded(lease)
        self._alive = Alive(self._store, self.clock, lease)
        self.crews.fleet.lead((lambda: 0) if lease is None else (lambda: lease.generation))

    def abandon(self) -> None:
        """Another server is the active one: leave the movers to it, at once and for good."""
        self.crews.fleet.close()

    # --- what there is -----------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name."""
        if name not in self._hosts:
            found = self.config.hosts[name]
            self._hosts[name] = (
                RemoteHost(name, self.crews.fleet, Station(found.mover, str(found.path)))
                if found.mover
                else FolderHost(name, found.path, self._state.folder, self.clock)
            )
        return self._hosts[name]

    def _answers(self, replica: ReplicaStatus) -> bool:
        """Whether the mover beside the replica's source host answers, where there is one: a source
        that is gone is why failovers exist, and is not waited for."""
        host = self.config.hosts.get(replica.identity.source_host)
        return host is None or not host.mover or self.crews.fleet.mover(host.mover).answers()

    def jobs(self) -> list[ReplicationJob]:
        """All jobs of the configuration."""
        return list(self.config.jobs.values())

    def machines(self, job: ReplicationJob) -> list[Machine]:
        """The VMs the job takes now."""
        return list(taken_by(job, inventory_of(self.host(job.source))).machines)

    def check(self) -> list[Finding]:
        """Everything wrong with the configuration, its paths, what is there in them, and the VMs it
        takes."""
        return check_configuration(self.config, self.host)

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
        self.crews.start_movers(pairs)

    # --- sessions ----------------------------------------------------------------------------

    def start(
        self,
        job: str,
        *,
        machines: Sequence[str] | None = None,
        session: str = "",
        take_over: bool = False,
        accept_loss: bool = False,
        progress: ProgressCallback | None = None,
    ) -> SessionReport:
        """Run a session of the job: a new restore point of every VM (of `machines` only, if
        given). Raises only for what stops the whole job; per VM the report tells. `session` is its
        id, where the caller has one."""
        wanted = self.config.job(job)
        store, alive = self._store, self._alive
        with alive.one_session(wanted.name, take_over) as (is_alone, is_hung):
            report = SessionReport(
                session or f"{self.clock.now():%Y%m%dT%H%M%SZ}-{new_token(2)}",
                wanted.name,
                self.clock.now().isoformat(),
            )
            if is_alone:
                alive.end_dead_sessions(wanted.name)
            store.begin_session(report)
            context = self._context(report.id, wanted, take_over or is_hung, accept_loss, progress)
            context = replace(context, store=store, may_join=is_alone)
            ends = contextlib.ExitStack()
            try:
                ends.enter_context(self._listed(context))
                ends.enter_context(StopWatcher(store, report.id, context.cut))
                ends.enter_context(waits_end_when(context.is_cancelled.is_set))
                released = self._released(wanted, alive) if is_alone else []
                inventory = inventory_of(context.source)
                found = wanted_of(wanted, inventory, machines)
                report.machines = self._begun(wanted, found)
                store.save_session(report)
                self._replicate_all(context, found.machines, report)
                if machines is None:
                    report.machines += self._gone(wanted, inventory)
            except BaseException as exc:
                is_stopped = waits_are_over()
                self._end_early(wanted, report, exc, store, is_stopped=is_stopped)
                if is_stopped and isinstance(exc, MoverDied):  # it was waited for until then
                    raise SessionStopped(wanted.name, "") from exc
                raise
            finally:
                ends.close()
                self.crews.resources.end_session(report.id)
            if released:
                report.machines[0].warnings.append(
                    f"released what a killed session left: {', '.join(released)}"
                )
            alarm_of_session(wanted, report, store, self.replicas.newest_age_s)
            report.outcome = _outcome(report.machines)
            if context.is_cancelled.is_set() and report.outcome == "failed":
                report.outcome = "interrupted"
            report.ended_at = self.clock.now().isoformat()
            store.save_session(report)
            return report

    def _begun(self, job: ReplicationJob, found: Inventory) -> list[MachineReport]:
        """The report's VMs when the session begins: without an outcome yet, and failed already
        where their host cannot describe them."""
        known = {
            item.name: item.identity.machine_id for item in self.store.known_replicas(job.name)
        }
        return [
            *(MachineReport(item.name, item.id) for item in found.machines),
            *(
                failed_report(item, known.get(name_of(item) + job.suffix, ""))
                for item in found.problems
            ),
        ]

    def _gone(self, job: ReplicationJob, inventory: Inventory) -> list[MachineReport]:
        """Of VMs that had a session of the job and are not at the source any more, and of those
        that cannot be seen."""
        hidden = [hidden_report(*item) for item in hidden_from(job, inventory).items()]
        ids = {machine.id for machine in inventory.machines}
        if all(item.identity.machine_id in ids for item in self.store.known_replicas(job.name)):
            return hidden
        found = gone_from(job, inventory, self.replicas.all())
        return [*hidden, *(gone_report(job, item) for item in found)]

    def _replicate_all(
        self, context: SessionContext, machines: Sequence[Machine], report: SessionReport
    ) -> None:
        """Put every VM's report in the place of the one it began with, and on record as soon as it
        is there. An interrupt, or `stop` from anywhere, cuts the movers off, so that no thread is
        left that waits for one."""
        recording = threading.Lock()

        def run(place: int, machine: Machine) -> None:
            done = self._replicate(context, machine)
            with recording:
                report.machines[place] = done
                context.store.save_session(report)

        threads = context.job.max_machines
        with ThreadPoolExecutor(threads, thread_name_prefix="machine") as pool:
            tasks = [pool.submit(run, place, item) for place, item in enumerate(machines)]
            try:
                # A wait without end would not see Ctrl-C on every system.
                while (now := wait(tasks, INTERRUPT_POLL_S, FIRST_EXCEPTION)).not_done:
                    if any(task.exception() for task in now.done):
                        break
                for task in tasks:
                    task.result()
            except BaseException as exc:
                if isinstance(exc, ServerFenced):
                    self.abandon()
                context.cut()
                raise

    @contextlib.contextmanager
    def _listed(self, context: SessionContext) -> Iterator[None]:
        self._at_work[context.session] = context
        try:
            yield
        finally:
            del self._at_work[context.session]
            self.progress.forget(context.session)

    def stop_session(self, session: str) -> bool:
        """End a session of this process as `stop` does, without the state database: False when it
        is not at work. Does not wait."""
        context = self._at_work.get(session)
        if context is not None:
            context.cut()
        return context is not None

    def stop_machine(self, session: str, machine: str) -> bool:
        """End the work on one VM of a session of this process, as `stop` does for all: False when
        the session is not at work. Does not wait."""
        context = self._at_work.get(session)
        if context is None:
            return False
        context.stopped.add(machine)
        crew = context.at_work.get(machine)
        if crew is not None:
            crew.cut()
        return True

    def stop(self, job: str, *, timeout_s: float = 120) -> list[SessionReport]:
        """End the sessions of the job that run, in whatever process, and wait until they have:
        their reports, none when none ran. What was transferred is kept; JobError when one still
        runs after `timeout_s`."""
        wanted = self.config.job(job)
        lock = self._alive.lock(wanted.name)
        return stop_sessions(self.store, wanted, lock.is_taken, self.clock, timeout_s)

    def _end_early(
        self,
        job: ReplicationJob,
        report: SessionReport,
        exc: BaseException,
        store: Store,
        *,
        is_stopped: bool,
    ) -> None:
        """Record a session that could not do its work, and what that means for the job's rpo."""
        is_failure = isinstance(exc, StandbyError) and not is_stopped
        report.outcome = "failed" if is_failure else "interrupted"
        report.ended_at = self.clock.now().isoformat()
        for item in report.machines:
            item.outcome = item.outcome or "interrupted"
        if is_failure and not report.machines:
            report.machines.append(MachineReport("", "", outcome="failed", error=str(exc)))
        with contextlib.suppress(StandbyError):
            store.save_session(report)
            if is_failure and not isinstance(exc, UnknownName):
                alarm_of_known(job, report, store, self.replicas.newest_age_s)

    def _gone_on_with(self) -> set[str]:
        """The checkpoint intents of transfers that may still be gone on with."""
        found = set()
        for intent, (job, changed_at) in self.store.journey_intents().items():
            wanted = self.config.jobs.get(job)
            if wanted is not None and not is_too_old(wanted, changed_at, self.clock):
                found.add(intent)
        return found

    def _released(self, job: ReplicationJob, alive: Alive) -> list[str]:
        """Release what dead sessions left on the hosts; what, by name."""
        hosts = {name: self.host(name) for name in self.config.hosts}
        released = alive.release_dead_checkpoints(job.name, hosts, self._gone_on_with())
        return [*released, *self.host(job.source).release_leftovers()]

    def _replicate(self, context: SessionContext, machine: Machine) -> MachineReport:
        def lend(
            machine: Machine, avoid: tuple[str, ...], joins: tuple[str, str] | None
        ) -> AbstractContextManager[Crew]:
            slots, session = context.slots, context.session
            return self.crews.lent(context.job, session, machine.name, slots, avoid, joins)

        return replicate(context, machine, lend)

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
            store=self._store,
            slots=self.crews.session_slots(job),
            take_over=take_over,
            accept_loss=accept_loss,
            progress=self.progress.following(session, progress),
            clock=self.clock,
        )

    # --- plans -------------------------------------------------------------------------------

    def plan(self, job: str, *, scan: bool = False) -> JobPlan:
        """What a session would do, per VM and disk. `scan` reads the disks and makes bytes to send
        exact; nothing is changed either way."""
        wanted = self.config.job(job)
        source = impatient(self.host(wanted.source), 0)  # who asks for a plan does not wait
        planner = Planner(
            wanted,
            self.config.installation,
            source,
            self.store,
            lambda machine: self.crews.lent(
                wanted, f"plan-{new_token(4)}", machine.name, patience_s=0
            ),
        )
        inventory = inventory_of(source)
        found = taken_by(wanted, inventory)
        made = planner.plan(found.machines, scan=scan)
        unusable = (
            MachinePlan(item.folder, item.id, "", "conflict", item.problem)
            for item in found.problems
        )
        return replace(
            made,
            machines=(*made.machines, *unusable),
            warnings=(*made.warnings, *hidden_from(wanted, inventory).values()),
        )


def _outcome(machines: Sequence[MachineReport]) -> str:
    if any(item.outcome in ("failed", "interrupted") for item in machines):
        return "failed"
    if any(item.warnings or item.alarms or item.outcome == "skipped" for item in machines):
        return "warnings"
    return "done"
