"""Lends the crew of one VM's session: child movers of this machine, or service movers of others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, NoProxy
from standby.model.job import ReplicationJob
from standby.road.replica_machines import ReplicaMachines
from standby.server.config import Config
from standby.server.context import TaskSlots
from standby.server.crew import Crew, LocalCrew, SourceFiles
from standby.server.fleet import Fleet
from standby.server.movers import MoverPair
from standby.server.proxies import all_proxies, capacities, eligible_proxies, paths_hint
from standby.server.resources import Resources
from standby.server.service_crew import ServiceCrew


def uses_services(config: Config, job: ReplicationJob) -> bool:
    """Whether the job runs over service movers: its hosts and its repository name movers. Raises
    ConfigurationError where only some of them do."""
    movers = {
        f"[hosts.{name}]": config.hosts[name].mover
        for name in (job.source, job.target)
        if config.hosts[name].is_folder  # others are not there by any mover
    }
    movers[f"[repositories.{job.repository}]"] = config.stores[job.repository].mover
    missing = [table for table, mover in movers.items() if not mover]
    if len(missing) in (0, len(movers)):
        return not missing
    raise ConfigurationError(
        f"[jobs.{job.name}]",
        f"{', '.join(missing)} names no mover, the job's other hosts or its repository do",
        "Run `standby mover run` on this machine too and name it there",
    )


class Crews:
    """The movers of one backup server. Thread-safe."""

    def __init__(
        self,
        config: Config,
        make_movers: Callable[[int], MoverPair],
        fleet: Fleet,
        clock: Clock = SYSTEM_CLOCK,
        machines: Callable[[str], ReplicaMachines | None] = lambda host: None,
    ) -> None:
        """`machines` gives the replica VMs of a host, by its name, None for a folder host."""
        self._machines = machines
        self._config = config
        self._clock = clock
        self._make_movers = make_movers
        self._idle: list[MoverPair] = []
        self._server_slots = threading.Semaphore(config.limits.max_tasks)
        self.fleet = fleet
        self.resources = Resources(clock)
        self.resources.configure(capacities(config))
        self._proxies = all_proxies(config)
        fleet.on_state = self._tell_resources
        self.on_mover: Callable[[str, str], None] = lambda mover, problem: None
        """Told of a mover that cannot be reached why, once, and '' when it is back."""
        self._problems: dict[str, str] = {}

    def _tell_resources(self, mover: str, problem: str) -> None:
        """A proxy whose mover is away gets no task while another can do it; it is not waited for
        once the mover was given up."""
        if self._problems.get(mover, "") != problem:
            self._problems[mover] = problem
            self.on_mover(mover, problem)
        is_given_up = self.fleet.has_given_up(mover)
        for name, proxy in self._proxies.items():
            if proxy.mover != mover:
                continue
            if not problem:
                self.resources.proxy_up(name)
            elif is_given_up:
                self.resources.proxy_down(name, problem)
            else:
                self.resources.proxy_paused(name, problem)

    def check_roles(self, job: ReplicationJob) -> None:
        """ConfigurationError where no mover that the job has for it may read its source or write
        its target."""
        if job.source in self._config.hosts and uses_services(self._config, job):
            self.fleet.check_roles(job)

    def session_slots(self, job: ReplicationJob) -> TaskSlots:
        """The slots of one session, for disks between child movers."""
        return TaskSlots(job.max_tasks, self._server_slots)

    def start_movers(self, pairs: int = 1) -> None:
        """Have child movers running before a session asks for them."""
        while len(self._idle) < pairs:
            pair = self._make_movers(self._config.limits.max_tasks)
            pair.source.call("ping")
            pair.target.call("ping")
            self._idle.append(pair)

    @contextlib.contextmanager
    def lent(
        self,
        job: ReplicationJob,
        session: str,
        machine: str,
        slots: TaskSlots | None = None,
        avoid: Collection[str] = (),
        joins: tuple[str, str] | None = None,
        *,
        patience_s: float | None = None,
        node: Callable[[], str] = str,
    ) -> Iterator[Crew]:
        """The crew of one VM. `avoid` are target proxies to choose only where there is no other;
        `joins` is the (name, target proxy) of a crew whose tasks are gone on with; `patience_s` is
        how long service movers that are away are waited for (`ServiceMover.is_there`); `node` where
        the VM is, on a cluster."""
        config = self._config
        if job.source in config.hosts and uses_services(config, job):
            self.fleet.try_again()
            crew = ServiceCrew(
                config,
                self.fleet,
                self.resources,
                job,
                session,
                machine,
                avoid=avoid,
                joins=joins,
                patience_s=patience_s,
                node=node,
                clock=self._clock,
            )
            writing = self.fleet.writer(crew.target_proxy)
            with contextlib.closing(crew), writing, self.fleet.traffic.session():
                yield crew
            return
        with self._lent_pair() as pair:
            roots = [config.host_path(name) for name in (job.source, job.target)]
            repository = config.repositories[job.repository]
            maps = partial(self._seen_here, job, node)
            hyperv = config.hosts[job.target].hyperv if job.target in config.hosts else None
            yield LocalCrew(
                pair,
                roots[0],
                roots[1],
                repository,
                slots,
                maps,
                machine,
                hyperv.replicas if hyperv is not None else "",
                self._machines(job.target),
            )

    def _seen_here(
        self, job: ReplicationJob, node: Callable[[], str], disk: Sequence[str]
    ) -> SourceFiles | None:
        """A disk of the job's source by whole paths on this machine, as the proxies without a mover
        say; None where they lie below the source host's folder. NoProxy where nobody sees them."""
        host = self._config.hosts.get(job.source)
        if host is None or host.is_folder:
            return None
        files = [host.file(name) for name in disk]
        found = eligible_proxies(self._config, job, "source", files, node=node())
        reasons = dict(found.refused)
        for name, item in found.eligible.items():
            if not item.proxy.mover:
                return {"root": "", "files": list(item.paths)}
            reasons[name] = (
                f"it sees them through mover {item.proxy.mover}, and the job's target and "
                "repository are on this machine"
            )
        if not reasons and disk:
            reasons["no proxy"] = paths_hint(host.name, host.file(disk[0]))
        raise NoProxy("", "", "source", tuple(f"{key}: {why}" for key, why in reasons.items()))

    @contextlib.contextmanager
    def _lent_pair(self) -> Iterator[MoverPair]:
        """A running pair; one that met an error is not used again."""
        try:
            pair = self._idle.pop()
        except IndexError:
            pair = self._make_movers(self._config.limits.max_tasks)
        is_sound = False
        try:
            yield pair
            is_sound = not pair.is_broken
        finally:
            if is_sound:
                self._idle.append(pair)
            else:
                pair.close()

    def close(self) -> None:
        """End idle child movers, and the connections to service movers."""
        for pair in self._idle:
            pair.close()
        self._idle.clear()
        self.fleet.close()
