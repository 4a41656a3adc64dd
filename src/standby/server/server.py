"""The backup server as a library: configuration in, sessions, plans and reports out.

import standby
server = standby.BackupServer("standby.toml")
report = server.start("nightly")
print(report.outcome, [machine.point for machine in report.machines])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import StandbyError
from standby.host.folder import FolderHost
from standby.model.job import ReplicationJob
from standby.model.machine import Machine
from standby.model.report import SessionReport
from standby.ports import Host, inventory_of, node_of
from standby.road.replica_machines import ReplicaMachines
from standby.road.surveying import ReplicaStatus
from standby.server.all_replicas import AllReplicas
from standby.server.check_targets import target_of, write_hint
from standby.server.checking import check_configuration
from standby.server.config import Config, HostConfig, MoverConfig, load_config
from standby.server.config_check import Finding, refused_machines
from standby.server.context import ProgressCallback
from standby.server.crews import Crews
from standby.server.fleet import Fleet, Station
from standby.server.inventory import (
    hidden_from,
    taken_by,
    warnings_of,
)
from standby.server.movers import MoverPair, child_movers
from standby.server.overdue import is_left_out
from standby.server.plan import JobPlan, MachinePlan
from standby.server.planner import Planner, with_overdue
from standby.server.remote_host import RemoteHost, impatient
from standby.server.replica_hosts import machines_at
from standby.server.replicas import Replicas
from standby.server.running_sessions import RunningSessions
from standby.server.state_folder import StateFolder
from standby.server.store import ServerLease, Store
from standby.wire.learning import learn_values
from standby.wire.link import Link


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
        self._replica_machines: dict[str, ReplicaMachines | None] = {}
        self.crews = Crews(self.config, make_movers, fleet, clock, self.replica_machines)
        self._hosts = dict(hosts or {})
        self._doors = contextlib.ExitStack()
        """What hosts that were made here are to be left by."""
        self._state = StateFolder(self.config, keeps=keeps_state)
        self.store = Store(self._state.database, clock)
        local = Replicas(self.config, self.store, self.host, clock, machines=self.replica_machines)
        self.replicas = AllReplicas(
            self.config,
            local,
            self.crews.fleet,
            lambda status: self._answers(status) and local.is_source_running(status.identity),
        )
        self._running = RunningSessions(
            self.config, self.crews, self.store, self.host, self.replicas, clock
        )
        self.progress = self._running.progress

    def close(self) -> None:
        """End idle movers, leave no shell on hosts and close the state database."""
        self.crews.close()
        self._doors.close()
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
        self._running.lead(lease)
        self.crews.fleet.lead((lambda: 0) if lease is None else (lambda: lease.generation))

    def abandon(self) -> None:
        """Another server is the active one: leave the movers to it, at once and for good."""
        self.crews.fleet.close()

    # --- what there is -----------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name."""
        if name not in self._hosts:
            self._hosts[name] = self._made_host(self.config.hosts[name])
        return self._hosts[name]

    def _made_host(self, found: HostConfig) -> Host:
        if found.hyperv is not None:
            from standby.server.hyperv_hosts import hyperv_source  # heavy

            source = hyperv_source(self.config, found, self.clock)
            self._doors.callback(source.close)
            return source
        if found.mover:
            station = Station(found.mover, str(found.path))
            return RemoteHost(found.name, self.crews.fleet, station)
        return FolderHost(found.name, found.path, self._state.folder, self.clock)

    def replica_machines(self, name: str) -> ReplicaMachines | None:
        """The replica VMs of the host of that name, None for a folder host."""
        if name not in self._replica_machines:
            self._replica_machines[name] = machines_at(self.config, name, self.host, self.clock)
        return self._replica_machines[name]

    def _answers(self, replica: ReplicaStatus) -> bool:
        """Whether the mover beside the replica's source host answers, where there is one: a source
        that is gone is why failovers exist, and is not waited for."""
        host = self.config.hosts.get(replica.identity.source_host)
        return host is None or not host.mover or self.crews.fleet.mover(host.mover).answers()

    def jobs(self) -> list[ReplicationJob]:
        """All jobs of the configuration."""
        return list(self.config.jobs.values())

    def check_names(self, job: ReplicationJob, machines: Sequence[str]) -> None:
        """UnknownName for a VM that the job does not take; nothing where its source does not
        answer."""
        self._running.check_names(job, machines)

    def machines(self, job: ReplicationJob) -> list[Machine]:
        """The VMs the job takes now."""
        return list(taken_by(job, inventory_of(self.host(job.source))).machines)

    def left_out(self, job: ReplicationJob, machine_ids: Collection[str]) -> set[str]:
        """Those of the ids of VMs to whose replicas the job owes no new point: it takes the VM no
        more, or VM and replica are gone. None where nobody can say."""
        try:
            inventory = inventory_of(impatient(self.host(job.source), 0))
        except StandbyError:
            return set()
        is_whole = {item.id for item in inventory.machines}.issuperset(machine_ids)
        seen = [] if is_whole else self.replicas.all()
        are_all_seen = is_whole or not self.replicas.unreadable()
        return {
            machine_id
            for machine_id in machine_ids
            if is_left_out(job, machine_id, inventory, seen, are_all_seen=are_all_seen)
        }

    def check(self, *, asks_movers: bool = True) -> list[Finding]:
        """Everything wrong with the configuration, its paths, what is there in them, the movers
        that jobs need, and the VMs it takes."""
        fleet = self.crews.fleet if asks_movers else None
        return check_configuration(self.config, self.host, fleet)

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
        return self._running.start(
            self.config.job(job),
            machines=machines,
            session=session,
            take_over=take_over,
            accept_loss=accept_loss,
            progress=progress,
        )

    def stop_session(self, session: str) -> bool:
        """End a session of this process as `stop` does, without the state database: False when it
        is not at work. Does not wait."""
        return self._running.stop_session(session)

    def stop_machine(self, session: str, machine: str) -> bool:
        """End the work on one VM of a session of this process, as `stop` does for all: False when
        the session is not at work. Does not wait."""
        return self._running.stop_machine(session, machine)

    def stop(self, job: str, *, timeout_s: float = 120) -> list[SessionReport]:
        """End the sessions of the job that run, in whatever process, and wait until they have:
        their reports, none when none ran. What was transferred is kept; JobError when one still
        runs after `timeout_s`."""
        return self._running.stop(self.config.job(job), timeout_s)

    # --- plans -------------------------------------------------------------------------------

    def _ages(self, job: ReplicationJob) -> dict[str, float | None]:
        """How old the newest point of each of the job's replicas is, by its VM's id; nothing is
        asked for a job without an rpo."""
        return {
            item.identity.machine_id: item.newest_age_s
            for item in (self.replicas.all() if job.rpo_s else ())
            if (item.identity.source_host, item.identity.job) == (job.source, job.name)
        }

    def _write_problem(self, job: ReplicationJob, path: str) -> str:
        """Why the replica's folder at the job's target cannot be written, '' where it can."""
        target = target_of(self.config, job, impatient(self.host(job.target), 0))
        problem = target.write_problem(path)
        if not problem:
            return ""
        return f"{target.shown(path)} {problem}; {write_hint(target, problem, path)}"

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
                wanted,
                f"plan-{new_token(4)}",
                machine.name,
                patience_s=0,
                node=partial(node_of, source, machine.id),
            ),
            lambda path: self._write_problem(wanted, path),
        )
        inventory = inventory_of(source)
        self.crews.check_roles(wanted)
        found = taken_by(wanted, inventory)
        refused = refused_machines(self.config, wanted, found.machines)
        sound = [item for item in found.machines if item.id not in refused]
        made = planner.plan(sound, scan=scan)
        unusable = (
            MachinePlan(item.folder, item.id, "", "conflict", item.problem)
            for item in found.problems
        )
        claimed = (
            MachinePlan(item.name, item.id, "", "conflict", refused[item.id])
            for item in found.machines
            if item.id in refused
        )
        plans = (*made.machines, *claimed, *unusable)
        return replace(
            made,
            machines=with_overdue(wanted, plans, self.store, self._ages(wanted)),
            warnings=(
                *made.warnings,
                *warnings_of(wanted, inventory),
                *hidden_from(wanted, inventory).values(),
            ),
        )
