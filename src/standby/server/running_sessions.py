"""The sessions that run in this process: begun, recorded, stopped, ended."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from standby.clock import Clock, new_token
from standby.errors import MoverDied, ServerFenced, SessionStopped, StandbyError, UnknownName
from standby.model.job import ReplicationJob
from standby.model.machine import Inventory, Machine
from standby.model.report import MachineReport, SessionReport
from standby.ports import Host, inventory_of, node_of
from standby.server.alive import Alive
from standby.server.all_replicas import AllReplicas
from standby.server.config import Config
from standby.server.config_check import refused_machines
from standby.server.context import ProgressCallback, SessionContext
from standby.server.crew import Crew
from standby.server.crews import Crews
from standby.server.growth_watch import GrowthWatch
from standby.server.inventory import (
    failed_report,
    gone_from,
    gone_report,
    hidden_from,
    hidden_report,
    name_of,
    wanted_of,
)
from standby.server.journey import is_too_old
from standby.server.overdue import alarm_of_known, alarm_of_session
from standby.server.progress import ProgressBoard
from standby.server.remote_host import impatient
from standby.server.replicating import replicate
from standby.server.stopping import StopWatcher, stop_sessions
from standby.server.store import ServerLease, Store
from standby.server.waits import waits_are_over, waits_end_when

INTERRUPT_POLL_S = 0.5


class RunningSessions:
    """Those of one backup server. Thread-safe."""

    def __init__(
        self,
        config: Config,
        crews: Crews,
        store: Store,
        host: Callable[[str], Host],
        replicas: AllReplicas,
        clock: Clock,
    ) -> None:
        self._config = config
        self._crews = crews
        self._base = store
        self._store = store
        """What sessions write to: where this is the active server, guarded by its lease."""
        self._host = host
        self._replicas = replicas
        self._clock = clock
        self._alive = Alive(store, clock)
        self._at_work: dict[str, SessionContext] = {}
        self._growth: dict[str, GrowthWatch] = {}
        self._watching = threading.Lock()
        self.progress = ProgressBoard()

    def lead(self, lease: ServerLease | None) -> None:
        """See BackupServer."""
        self._store = self._base if lease is None else self._base.guarded(lease)
        self._alive = Alive(self._store, self._clock, lease)

    def start(
        self,
        wanted: ReplicationJob,
        *,
        machines: Sequence[str] | None,
        session: str,
        take_over: bool,
        accept_loss: bool,
        progress: ProgressCallback | None,
    ) -> SessionReport:
        """See BackupServer."""
        if machines is not None and not session:  # what the daemon begins is on record already
            self.check_names(wanted, machines)
        store, alive = self._store, self._alive
        with alive.one_session(wanted.name, take_over) as (is_alone, is_hung):
            report = SessionReport(
                session or f"{self._clock.now():%Y%m%dT%H%M%SZ}-{new_token(2)}",
                wanted.name,
                self._clock.now().isoformat(),
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
                self._crews.check_roles(wanted)
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
                self._crews.resources.end_session(report.id)
            if released:
                report.machines[0].warnings.append(
                    f"released what a killed session left: {', '.join(released)}"
                )
            alarm_of_session(wanted, report, store, self._replicas.newest_age_s)
            report.outcome = _outcome(report.machines)
            if context.is_cancelled.is_set() and report.outcome == "failed":
                report.outcome = "interrupted"
            report.ended_at = self._clock.now().isoformat()
            store.save_session(report)
            return report

    def check_names(self, job: ReplicationJob, machines: Sequence[str]) -> None:
        """UnknownName for a VM that the job does not take, before there is a session to record.
        What else keeps the source from answering, the session itself tells."""
        try:
            wanted_of(job, inventory_of(impatient(self._host(job.source), 0)), machines)
        except UnknownName:
            raise
        except StandbyError:
            return

    def _begun(self, job: ReplicationJob, found: Inventory) -> list[MachineReport]:
        """The report's VMs when the session begins: without an outcome yet, and failed already
        where their host cannot describe them."""
        known = {
            item.name: item.identity.machine_id for item in self._base.known_replicas(job.name)
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
        if all(item.identity.machine_id in ids for item in self._base.known_replicas(job.name)):
            return hidden
        found = gone_from(job, inventory, self._replicas.all())
        return [*hidden, *(gone_report(job, item) for item in found)]

    def _replicate_all(
        self, context: SessionContext, machines: Sequence[Machine], report: SessionReport
    ) -> None:
        """Put every VM's report in the place of the one it began with, and on record as soon as it
        is there. An interrupt, or `stop` from anywhere, cuts the movers off, so that no thread is
        left that waits for one."""
        recording = threading.Lock()
        refused = refused_machines(self._config, context.job, machines)

        def run(place: int, machine: Machine) -> None:
            if machine.id in refused:
                error = refused[machine.id]
                done = MachineReport(machine.name, machine.id, outcome="failed", error=error)
            else:
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
                    self._crews.fleet.close()
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
        """See BackupServer."""
        context = self._at_work.get(session)
        if context is not None:
            context.cut()
        return context is not None

    def stop_machine(self, session: str, machine: str) -> bool:
        """See BackupServer."""
        context = self._at_work.get(session)
        if context is None:
            return False
        context.stopped.add(machine)
        crew = context.at_work.get(machine)
        if crew is not None:
            crew.cut()
        return True

    def stop(self, wanted: ReplicationJob, timeout_s: float) -> list[SessionReport]:
        """See BackupServer."""
        lock = self._alive.lock(wanted.name)
        return stop_sessions(self._base, wanted, lock.is_taken, self._clock, timeout_s)

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
        report.ended_at = self._clock.now().isoformat()
        for item in report.machines:
            item.outcome = item.outcome or "interrupted"
        if is_failure and not report.machines:
            report.machines.append(MachineReport("", "", outcome="failed", error=str(exc)))
        with contextlib.suppress(StandbyError):
            store.save_session(report)
            if is_failure and not isinstance(exc, UnknownName):
                alarm_of_known(job, report, store, self._replicas.newest_age_s)

    def _gone_on_with(self) -> set[str]:
        """The checkpoint intents of transfers that may still be gone on with."""
        found = set()
        for intent, (job, changed_at) in self._base.journey_intents().items():
            wanted = self._config.jobs.get(job)
            if wanted is not None and not is_too_old(wanted, changed_at, self._clock):
                found.add(intent)
        return found

    def _released(self, job: ReplicationJob, alive: Alive) -> list[str]:
        """Release what dead sessions left on the hosts; what, by name."""
        hosts = {name: self._host(name) for name in self._config.hosts}
        released = alive.release_dead_checkpoints(job.name, hosts, self._gone_on_with())
        return [*released, *self._host(job.source).release_leftovers()]

    def _replicate(self, context: SessionContext, machine: Machine) -> MachineReport:
        def lend(
            machine: Machine, avoid: tuple[str, ...], joins: tuple[str, str] | None
        ) -> AbstractContextManager[Crew]:
            slots, session = context.slots, context.session
            node = partial(node_of, context.source, machine.id)
            return self._crews.lent(
                context.job, session, machine.name, slots, avoid, joins, node=node
            )

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
            installation=self._config.installation,
            job=job,
            source=self._host(job.source),
            store=self._store,
            slots=self._crews.session_slots(job),
            take_over=take_over,
            accept_loss=accept_loss,
            progress=self.progress.following(session, progress),
            clock=self._clock,
            growth=self._growth_of(job.source),
        )

    def _growth_of(self, host: str) -> GrowthWatch:
        """The one watch over the host's checkpoints, for all jobs."""
        with self._watching:
            if host not in self._growth:
                known = self._config.hosts.get(host)
                hyperv = known.hyperv if known is not None else None
                min_free = hyperv.min_free if hyperv is not None else 0
                self._growth[host] = GrowthWatch(self._host(host), self._clock, min_free)
            return self._growth[host]


def _outcome(machines: Sequence[MachineReport]) -> str:
    if any(item.outcome in ("failed", "interrupted") for item in machines):
        return "failed"
    if any(item.warnings or item.alarms or item.outcome == "skipped" for item in machines):
        return "warnings"
    return "done"
