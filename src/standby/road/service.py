"""The service mover: `standby mover run` on any machine, driven by backup servers that come and go.

Control connections are taken only from peers that speak as `server`, data connections only from
movers that present a task's ticket. A call that names a `task` goes on when its connection is
lost, and can be rejoined; what a server opened and left is closed clean after `orphan_timeout`, or
at once for a newer session that asks for it.

Verbs, with their arguments. P is a place "ROOT:relative/path", CONNECTION a spec as in
`connections`, (task) makes a call a task. Any call may carry `crew`, the text by which
`end_session` finds it where `session` would mean others' work too.

 every mover
  ping()                                        its name
  describe()                                    {name, version, roles, roots {id: folder}, platform,
                                                protect, orphan_timeout_s, tasks}
  join(generation)                              as describe(); says which generation of server this
                                                is: older ones are MoverFenced from then on. 0 is a
                                                command line's: it fences nobody, nobody fences it
  tasks()                                       [{task, verb, session, is_running}]
  rejoin(task, verb="")                         the task's result, when it has ended; its replica is
                                                this connection's from now on
  keep_session(session)                         the same for all tasks and replicas of a session (or
                                                crew): to be said when a server is back, or they are
                                                closed after orphan_timeout
  cancel(task)                                  end the task; what it acknowledged stays
  forget_task(task)                             drop its result
  end_session(session)                          end that session's (or crew's) tasks, close its
                                                replicas
  leave()                                       the same for all that came over this connection
  progress()                                    {task: [done, total]}
  probe(name, address, role, own_role)          seconds that it took to reach that mover
  probe_place(path P, writes=False)             {problem, free_bytes}
  probe_clock()                                 its time
  traffic_rules(rules, leases), traffic_demands()
                                                see road.traffic
  certificate_request(), install_certificate(certificate), install_revocations(revocations)
                                                see wire.renewing

 role source
  measure_disk(disk {root P, files})            {virtual_size, allocated}
  send_disk(task, connection CONNECTION, disk, repository P or CONNECTION or "", replica, disk_id,
    session, point_id, checkpoint_id, baseline, builds_on_repository, candidates, resume_mark,
    compression, virtual_size, threads=2, weight=1)
                                                (task) {root, read, changed, zeroed, sent, resent,
                                                busy_s}
  scan_disk(the same)                           (task) the same, nothing sent or staged

 role target
  find_replica(root P, identity, wanted)        {path P, exists}
  inspect_replica(path P)                       TargetState or None
  mapped_disks(root P, folder)                  [controller place]
  free_bytes(path P)                            bytes
  open_replica(root P, identity, wanted, session, take_over, must_exist, expected)
                                                {path P, state TargetState, warnings}
  register_disks(path P, disks)                 None
  map_machine(path P, folder)                   {state, warnings}
  begin_disk(path P, disk_id, point, checkpoint, virtual_size, logical_sector_size,
    physical_sector_size, page83, has_parent, copy, seed, seed_name)
                                                {point, acknowledged, mark}; again after a link
                                                dropped: goes on with what is there
  receive_disk(path P, disk_id, task, connection CONNECTION, verify_writes)
                                                (task) {root, written, zeroed, resent_blocks,
                                                busy_s}
  tell_disk(path P, disk_id, virtual_size, connection CONNECTION, task, seed_name, mapped_from,
    place)                                      (task) {}
  commit_point(path P, point, taken_at, consistency, session, machine, disks, state_files,
    changed_bytes)                              None
  points(path P), older_trackers(path P), renew_ready(path P), retire_points(path P, keep),
  close_replica(path P)                         as on one machine
  keep_replica_machine(path P, machine, ready)  None; hosts answer it too
  replica_list(root P)                          {replicas [ReplicaStatus], unreadable {folder: why}}
  replica_show(root P, name)                    ReplicaStatus
  replica_plan(root P, name, action, source_running=False, options={})      VerbPlan
  replica_failover(root P, name, point=None, adopt=False, source_running=False,
    source_may_run=False, power_on=False)       FailoverResult
  replica_undo_failover(root P, name, drop_writes=False, host="target")     ReplicaRecord
  replica_permanent_failover(root P, name)      ReplicaRecord
  replica_power(root P, name, on, force=False)  "off" | "running" | ...
  replica_verify(task, root P, name, point=None, threads=2)                 (task) [PointVerdict]
  replica_repair(task, root P, name, verdicts)  (task) [RepairReport]

 role repository (each with repository P)
  repository_states(replica, create=False)      {disk: {point_id, root hex, virtual_size, sequence}}
  repository_points(replica), repository_replicas(), repository_staged(replica)
  repository_commit(replica, point_id, disks {disk: root hex})
  repository_discard(replica, disk=None), repository_drop_points(replica, keep)
  repository_forget(replica), repository_heal(replica, problem), repository_verify(task="")
  repository_index(replica, disk, point_id=None, first=0)    {count, numbers bytes, nodes bytes}
  repository_leaves(replica, disk, pages, point_id=None)     bytes
  serve_leaves(task, connection CONNECTION, replica, disk_id, session, point_id, virtual_size,
    builds_on_repository, stages=True)          (task) {pages}

 role host (each with root P and host, what messages call it)
  host_machines(replicas=False), host_power_state(machine), host_start(machine),
  host_stop(machine, force=False, timeout_s=60), host_take_checkpoint(machine, intent_id),
  host_confirm_checkpoint(checkpoint), host_release_checkpoint(checkpoint),
  host_release_intent(intent_id), host_release_leftovers(), host_state_files(machine),
  host_changes_since(machine, place, tracker_id, checkpoint)  {ranges [(offset, length)], reason},
  host_forget_tracker(machine, tracker_ids)
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

import standby.files as files
from standby import __version__
from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import (
    LinkError,
    MoverFenced,
    PeerBusy,
    ProtocolError,
    StandbyError,
    error_to_wire,
)
from standby.road.connections import Peer, ServiceConnections
from standby.road.event_log import EventLog
from standby.road.host_verbs import HostVerbs
from standby.road.mover import Verbs
from standby.road.owners import Owner, working_for
from standby.road.places import RootPlaces
from standby.road.probing import ProbeVerbs
from standby.road.replica_verbs import ReplicaVerbs
from standby.road.repository_verbs import RepositoryVerbs
from standby.road.service_config import ServiceConfig
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.road.tasks import Tasks
from standby.road.traffic import TrafficVerbs
from standby.wire import plain
from standby.wire.link import Link
from standby.wire.messages import Attach, Call, Failed, Reply
from standby.wire.pacing import pace
from standby.wire.throttle import Throttles

if TYPE_CHECKING:
    from standby.wire import tls

CONTROL_MAX = 16
CALLS_MAX = 256
FIRST_MESSAGE_S = 15.0
ENDING_TIMEOUT_S = 30.0
LOOK_S = 30.0
"""How often at least what servers left behind is looked at."""
GENERATION_FILE = "server-generation.json"


class SpeakingPeer(Peer, Protocol):
    """A peer, and the role among its own that it speaks in (wire.identity.Peer)."""

    @property
    def role(self) -> str: ...


class ServiceMover:
    """One service mover. `on_link` gets every connection its listener admitted."""

    def __init__(
        self,
        config: ServiceConfig,
        connect: Callable[[str, str, str, str, float], Link],
        *,
        clock: Clock = SYSTEM_CLOCK,
        log: EventLog | None = None,
        connections: ServiceConnections | None = None,
        more: Sequence[Verbs] = (),
    ) -> None:
        """`connect(address, name, role, own role, timeout_s)` makes links to other movers; `more`
        are verbs of every mover, whatever its roles."""
        self.config = config
        self.connections = connections or ServiceConnections(config.name, connect, clock)
        self._clock = clock
        self._log = log or EventLog(None)
        files.make_folder_durably(config.state)
        self._places = RootPlaces(config.roots)
        probes = ProbeVerbs(connect, self._places, clock)
        self.throttles = Throttles(clock)
        self.connections.throttles = self.throttles
        more = [TrafficVerbs(self.throttles), *more]
        self._roles = [*_roles(config, self.connections, self._places, clock), probes, *more]
        self._tasks = Tasks(clock)
        self._changed = threading.Condition()
        self._sessions: dict[Link, Owner] = {}
        self._gone: dict[str, float] = {}
        self._data: set[Link] = set()
        self._calls = 0
        self._is_closed = False
        self._generation = _read_generation(config.state)
        self._own: dict[str, Callable[..., Any]] = {
            "ping": lambda owner: config.name,
            "describe": self._describe,
            "join": self._join,
            "tasks": self._told_tasks,
            "cancel": self._cancel,
            "forget_task": lambda owner, task: self._tasks.forget(task),
            "end_session": self._end_session,
            "keep_session": self._keep_session,
            "leave": self._leave,
            "progress": self._progress,
        }
        self._keeper = threading.Thread(target=self._look_round, name="orphans", daemon=True)
        self._keeper.start()

    # --- connections -------------------------------------------------------------------------

    def on_link(self, link: Link, peer: SpeakingPeer) -> None:
        """Serve a connection: a server's until it ends, a mover's until its task has it."""
        if peer.role == "server":
            self._serve(link, peer)
        else:
            self._attach(link, peer)

    def _attach(self, link: Link, peer: SpeakingPeer) -> None:
        deadline = threading.Timer(FIRST_MESSAGE_S, link.shutdown)
        deadline.daemon = True
        deadline.start()
        try:
            message, _ = link.receive()
            deadline.cancel()
            if not isinstance(message, Attach):
                raise ProtocolError(peer.name, f"began with {type(message).__name__}, not Attach")
            self.connections.offer(link, message, peer)
        except StandbyError as exc:
            deadline.cancel()
            self._log.say("data connection refused", peer=peer.name, error=str(exc))
            with contextlib.suppress(LinkError):
                link.send(Failed(0, error_to_wire(exc, self.config.name)))
            link.close()

    def _serve(self, link: Link, peer: SpeakingPeer) -> None:
        owner = Owner(peer.name, lambda: not self._is_connected(peer.name))
        with self._changed:
            is_full = self._is_closed or len(self._sessions) >= CONTROL_MAX
            if not is_full:
                self._sessions[link] = owner
                self._gone.pop(owner.name, None)
        if is_full:
            busy = PeerBusy(self.config.name, f"{CONTROL_MAX} servers are connected already")
            with contextlib.suppress(LinkError):
                link.send(Failed(0, error_to_wire(busy)))
            link.close()
            return
        pace(link, self.throttles, is_control=True)
        self._log.say("server connected", server=owner.name)
        try:
            while True:
                message, _ = link.receive()
                if not isinstance(message, Call):
                    raise ProtocolError(owner.name, f"expected a Call, got {message}")
                self._begin(link, owner, message)
        except LinkError as exc:
            self._log.say("server gone", server=owner.name, why=str(exc))
        finally:
            with self._changed:
                owner.gone_at = self._clock.monotonic()
                del self._sessions[link]
                if all(other.name != owner.name for other in self._sessions.values()):
                    self._gone[owner.name] = owner.gone_at
                self._changed.notify_all()
            link.close()

    def _is_connected(self, server: str) -> bool:
        with self._changed:
            return any(owner.name == server for owner in self._sessions.values())

    # --- calls -------------------------------------------------------------------------------

    def _begin(self, link: Link, owner: Owner, call: Call) -> None:
        def answer(result: Any, error: BaseException | None) -> None:
            with contextlib.suppress(LinkError):  # gone: it asks again, or never
                if error is None:
                    try:
                        link.send(Reply(call.id, result))
                        return
                    except (ProtocolError, TypeError) as exc:  # too large: nothing was sent
                        error = exc
                link.send(Failed(call.id, error_to_wire(error, self.config.name)))

        with self._changed:
            is_busy = self._is_closed or self._calls >= CALLS_MAX
            if not is_busy:
                self._calls += 1
        if is_busy:
            answer(None, PeerBusy(self.config.name, f"{CALLS_MAX} calls are under way"))
            return
        threading.Thread(
            target=self._answer, args=(owner, call, answer), name=call.verb, daemon=True
        ).start()

    def _answer(
        self,
        owner: Owner,
        call: Call,
        answer: Callable[[Any, BaseException | None], None],
    ) -> None:
        arguments = dict(call.arguments)
        crew = str(arguments.pop("crew", ""))
        name = str(arguments.get("task", ""))
        try:
            self._check_generation(owner, call.verb)
            if call.verb == "rejoin":
                self._adopt(owner, lambda session, tasks: name in tasks)
                self._tasks.rejoin(name, str(arguments.get("verb", "")), owner, answer)
            elif name and call.verb not in self._own:
                self._run_task(owner, call.verb, name, crew, arguments, answer)
            else:
                answer(self._run(owner, call.verb, arguments), None)
        except Exception as exc:  # every failure of a verb is the caller's to see
            self._note(exc, verb=call.verb)
            answer(None, exc)
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _run_task(
        self,
        owner: Owner,
        verb: str,
        name: str,
        crew: str,
        arguments: dict[str, Any],
        answer: Callable[[Any, BaseException | None], None],
    ) -> None:
        session = crew or str(arguments.get("session", ""))
        task = self._tasks.begin(verb, name, session, owner, answer)
        if task is None:
            return
        self._log.say("task begun", task=name, verb=verb, session=session, server=owner.name)
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._run(owner, verb, arguments)
        except Exception as exc:
            error = exc
            self._note(exc, task=name, verb=verb, session=session)
        else:
            self._log.say("task ended", task=name, verb=verb, session=session)
        self._tasks.end(task, result, error)

    def _run(self, owner: Owner, verb: str, arguments: dict[str, Any]) -> Any:
        own = self._own.get(verb)
        if own is not None:
            try:
                return own(owner, **arguments)
            except TypeError as exc:
                if exc.__traceback__ and exc.__traceback__.tb_next:
                    raise
                raise ProtocolError(owner.name, f"{verb}: {exc}") from exc
        with working_for(owner):
            for role in self._roles:
                result = role.call(verb, arguments)
                if result is not NotImplemented:
                    return result
        raise ProtocolError(
            owner.name,
            f"mover {self.config.name} knows no {verb!r}; its roles are "
            f"{', '.join(self.config.roles)}",
        )

    def _note(self, exc: Exception, **facts: str) -> None:
        self._log.say("failed", error=type(exc).__name__, text=str(exc), **facts)
        if not isinstance(exc, StandbyError):
            self._log.trace()

    # --- verbs of its own --------------------------------------------------------------------

    def _check_generation(self, owner: Owner, verb: str) -> None:
        if verb in ("join", "ping", "describe") or owner.is_guest:
            return
        if owner.generation < self._generation:
            raise MoverFenced(self.config.name, owner.generation, self._generation)

    def _join(self, owner: Owner, generation: int) -> dict[str, Any]:
        with self._changed:
            if 0 < generation < self._generation:
                raise MoverFenced(self.config.name, generation, self._generation)
            if generation > self._generation:
                data = msgspec.json.encode({"generation": generation})
                files.write_durably(self.config.state / GENERATION_FILE, data)
                self._generation = generation
            owner.generation, owner.is_guest = generation, not generation
            fenced = [  # those that have not said theirs yet are not known to be older
                link for link, other in self._sessions.items() if 0 < other.generation < generation
            ]
        for link in fenced:
            link.shutdown()
        return self._describe(owner)

    def _describe(self, owner: Owner) -> dict[str, Any]:
        config = self.config
        return {
            "name": config.name,
            "version": __version__,
            "roles": list(config.roles),
            "roots": {name: str(path) for name, path in self._places.roots.items()},
            "platform": sys.platform,
            "protect": msgspec.to_builtins(config.protect),
            "orphan_timeout_s": config.orphan_timeout_s,
            "tasks": self._told_tasks(owner),
        }

    def _told_tasks(self, owner: Owner) -> list[dict[str, Any]]:
        return [
            {
                "task": task.name,
                "verb": task.verb,
                "session": task.session,
                "is_running": task.is_running,
            }
            for task in self._tasks
        ]

    def _progress(self, owner: Owner) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for role in self._roles:
            told = role.call("progress", {})
            if told is not NotImplemented:
                found |= told
        return found

    def _cancel(self, owner: Owner, task: str) -> None:
        self.connections.cancel(task)
        for role in self._roles:
            if isinstance(role, ReplicaVerbs):
                role.cancel(task)

    def _end_session(self, owner: Owner, session: str) -> list[str]:
        if not session:
            raise ProtocolError(owner.name, "end_session: which session?")
        return self._ended(lambda theirs, name: name == session)

    def _keep_session(self, owner: Owner, session: str) -> None:
        for task in self._tasks:
            if session and task.session == session:
                task.owner = owner
        self._adopt(owner, lambda theirs, tasks: bool(session) and theirs == session)

    def _adopt(self, owner: Owner, is_meant: Callable[[str, Collection[str]], bool]) -> None:
        for role in self._roles:
            if isinstance(role, TargetVerbs):
                role.replicas.adopt(owner, is_meant)

    def _leave(self, owner: Owner) -> list[str]:
        return self._ended(lambda theirs, name: theirs is owner)

    def _ended(self, is_meant: Callable[[Owner, str], bool]) -> list[str]:
        """End the tasks and close what is open for whose (owner, session) that is true."""
        for task in self._tasks:
            if task.is_running and is_meant(task.owner, task.session):
                self._cancel(task.owner, task.name)
        closed = []
        for role in self._roles:
            if isinstance(role, TargetVerbs):
                closed += role.replicas.close_where(is_meant)
            elif isinstance(role, HostVerbs):
                closed += role.close_where(is_meant)
        for what in closed:
            self._log.say("closed", what=what)
        return closed

    # --- what servers left behind ------------------------------------------------------------

    def _look_round(self) -> None:
        with self._changed:
            while not self._is_closed:
                self._changed.wait(min(LOOK_S, self.config.orphan_timeout_s))
                if self._is_closed:
                    return
                with _released(self._changed):
                    try:
                        self.close_orphans()
                    except Exception as exc:  # looked at again
                        self._note(exc, what="orphans")

    def close_orphans(self) -> list[str]:
        """Close what was left `orphan_timeout` ago: by servers that are away and have no task here
        any more, and replicas that a server which is back did not come back to. What, by name.
        Drops old results."""
        now = self._clock.monotonic()
        oldest = now - self.config.orphan_timeout_s
        self._tasks.expire(oldest)
        with self._changed:
            since = dict(self._gone)
        for task in self._tasks:
            if task.owner.name in since:
                ended = now if task.ended_at is None else task.ended_at
                since[task.owner.name] = max(since[task.owner.name], ended)
        lost = {name for name, at in since.items() if at <= oldest}
        closed = []
        if lost:
            closed += self._ended(lambda owner, session: owner.is_gone and owner.name in lost)
        for role in self._roles:
            if isinstance(role, TargetVerbs):
                closed += role.replicas.close_where(
                    lambda owner, session: (
                        owner.gone_at is not None
                        and owner.name not in since
                        and owner.gone_at <= oldest
                    ),
                    only_idle=True,
                )
        return closed

    def close(self) -> None:
        """End everything: connections, tasks (their files closed clean), what is open."""
        with self._changed:
            self._is_closed = True
            links = list(self._sessions)
            self._changed.notify_all()
        for link in links:
            link.shutdown()
        for task in self._tasks:
            if task.is_running:
                self._cancel(task.owner, task.name)
        self.connections.close()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._calls, ENDING_TIMEOUT_S):
                self._log.say("calls hang", calls=str(self._calls))
        with contextlib.ExitStack() as stack:
            for role in self._roles:
                stack.callback(role.close)
        self._keeper.join(timeout=10)
        self._log.say("mover ended", name=self.config.name)


@contextlib.contextmanager
def _released(lock: threading.Condition) -> Any:
    """Without the lock inside the block."""
    lock.release()
    try:
        yield
    finally:
        lock.acquire()


def _roles(
    config: ServiceConfig, connections: ServiceConnections, places: RootPlaces, clock: Clock
) -> Sequence[Verbs]:
    made: list[Verbs] = []
    if "source" in config.roles:
        made.append(SourceVerbs(connections, places=places))
    if "target" in config.roles:
        target = TargetVerbs(connections, clock, places=places, protect=config.protect)
        made.append(target)
        made.append(
            ReplicaVerbs(
                places=places,
                protect=config.protect,
                clock=clock,
                give_way=target.replicas.give_way,
            )
        )
    if "repository" in config.roles:
        made.append(RepositoryVerbs(connections, places=places))
    if "host" in config.roles:
        made.append(HostVerbs(places=places, state_folder=config.state, clock=clock))
    return made


def _read_generation(state: Path) -> int:
    path = state / GENERATION_FILE
    if not path.exists():
        return 0
    with files.File(path) as file:
        try:
            return int(msgspec.json.decode(file.read(0, file.size))["generation"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(str(path), f"cannot be read: {exc}") from exc


def run_service(
    config: ServiceConfig, log: EventLog, wait: Callable[[str], None], clock: Clock = SYSTEM_CLOCK
) -> None:
    """Serve over TLS, or plainly on loopback, until `wait(address)` returns or raises; then end
    clean. This process opens nothing outside of the mover's roots, its state and its identity from
    now on."""
    from standby import killpoints

    killpoints.be_called(config.name)
    files.make_folder_durably(config.state)
    wire = _PlainWire(config) if config.plain else _TlsWire(config, clock)
    files.confine([*config.roots.values(), config.state, config.identity])
    mover = ServiceMover(config, wire.connect, clock=clock, log=log, more=wire.verbs)
    try:
        listener = wire.listener(mover, log)
        try:
            log.say("mover listens", name=config.name, address=listener.address)
            wait(listener.address)
        finally:
            listener.close()
    finally:
        mover.close()


class _TlsWire:
    """How a mover meets the others: certificates of the installation's authority."""

    def __init__(self, config: ServiceConfig, clock: Clock) -> None:
        from standby.wire.identity import IdentityFolder
        from standby.wire.renewing import CertificateVerbs

        self._config = config
        self._identity = IdentityFolder(config.identity, clock)
        self.verbs: Sequence[Verbs] = [CertificateVerbs(self._identity)]

    def connect(self, address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        """A link to the mover of that name and role."""
        from standby.wire import tls

        return tls.connect(address, self._identity, name, role, timeout_s, role=own_role)

    def listener(self, mover: ServiceMover, log: EventLog) -> tls.Listener:
        """Hands its links to `mover`."""
        from standby.wire import tls

        return tls.Listener(
            self._config.listen, self._identity, mover.on_link, on_refusal=_told(log)
        )


class _PlainWire:
    """The same between processes of one machine, by a secret."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._secret = plain.Secret(config.identity)
        self._secret.make()
        self.verbs: Sequence[Verbs] = []

    def connect(self, address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        """A link to the mover of that name and role."""
        return plain.connect(
            address, self._secret, self._config.name, own_role, name, role, timeout_s
        )

    def listener(self, mover: ServiceMover, log: EventLog) -> plain.PlainListener:
        """Hands its links to `mover`."""
        config = self._config
        return plain.PlainListener(
            config.listen,
            self._secret,
            config.name,
            config.roles,
            mover.on_link,
            on_refusal=_told(log),
        )


def _told(log: EventLog) -> Callable[[str, StandbyError], None]:
    return lambda peer, error: log.say("refused", peer=peer, error=str(error))
