"""The service mover: `standby mover run` on any machine, driven by backup servers that come and go.

Control connections are taken only from peers that speak as `server`, data connections only from
movers that present a task's ticket. A call that names a `task` goes on when its connection is
lost, and can be rejoined; what a server opened and left is closed clean after `orphan_timeout`, or
at once for a newer session that asks for it.

VERBS.md lists the verbs of all roles.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
from standby.road.owners import Owner, working_for
from standby.road.places import RootPlaces
from standby.road.probing import ProbeVerbs
from standby.road.server_generation import ServerGeneration
from standby.road.service_config import ServiceConfig
from standby.road.service_roles import ServiceRoles
from standby.road.tasks import Tasks
from standby.road.traffic import TrafficVerbs
from standby.road.verbs import Verbs
from standby.wire.learning import learn_values
from standby.wire.link import Link
from standby.wire.messages import Attach, Call, Failed, Reply, Stand
from standby.wire.pacing import pace
from standby.wire.throttle import Throttles

CONTROL_MAX = 16
CALLS_MAX = 256
FIRST_MESSAGE_S = 15.0
ENDING_TIMEOUT_S = 30.0
LOOK_S = 30.0
"""How often at least what servers left behind is looked at."""


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
        learn_values()
        self.config = config
        self.connections = connections or ServiceConnections(config.name, connect, clock)
        self._clock = clock
        self._log = log or EventLog(None)
        files.make_folder_durably(config.state)
        self._places = RootPlaces(config.roots)
        probes = ProbeVerbs(connect, self._places, clock)
        self.throttles = Throttles(clock)
        self.connections.throttles = self.throttles
        more = [probes, TrafficVerbs(self.throttles), *more]
        self._roles = ServiceRoles(config, self.connections, self._places, clock, more)
        self._tasks = Tasks(clock)
        self._changed = threading.Condition()
        self._sessions: dict[Link, Owner] = {}
        self._gone: dict[str, float] = {}
        self._data: set[Link] = set()
        self._calls = 0
        self._is_closed = False
        self._generation = ServerGeneration(config.state)
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
            "progress": lambda owner: self._roles.progress(),
        }
        self._keeper = threading.Thread(target=self._look_round, name="orphans", daemon=True)
        self._keeper.start()

    # --- connections -------------------------------------------------------------------------

    def on_link(self, link: Link, peer: SpeakingPeer) -> None:
        """Serve a connection: a server's until it ends, a mover's until its task has it, one that
        is to stand until it ends."""
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
            if isinstance(message, Stand):
                self.connections.stand(link, message, peer)
                return
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
        thread = threading.Thread(
            target=self._answer, args=(owner, call, answer), name=call.verb, daemon=True
        )
        try:
            thread.start()
        except RuntimeError as exc:  # no more threads
            self._call_ended()
            answer(None, PeerBusy(self.config.name, f"no thread for the call: {exc}"))

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
                self._roles.adopt(owner, lambda session, tasks: name in tasks)
                self._tasks.rejoin(name, str(arguments.get("verb", "")), owner, answer)
            elif name and call.verb not in self._own:
                self._run_task(owner, call.verb, name, crew, arguments, answer)
            else:
                answer(self._run(owner, call.verb, arguments), None)
        except Exception as exc:  # every failure of a verb is the caller's to see
            self._note(exc, verb=call.verb)
            answer(None, exc)
        finally:
            self._call_ended()

    def _call_ended(self) -> None:
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
            result = self._roles.call(verb, arguments)
        if result is NotImplemented:
            raise ProtocolError(
                owner.name,
                f"mover {self.config.name} knows no {verb!r}; its roles are "
                f"{', '.join(self.config.roles)}",
            )
        return result

    def _note(self, exc: Exception, **facts: str) -> None:
        self._log.say("failed", error=type(exc).__name__, text=str(exc), **facts)
        if not isinstance(exc, StandbyError):
            self._log.trace()

    # --- verbs of its own --------------------------------------------------------------------

    def _check_generation(self, owner: Owner, verb: str) -> None:
        if verb in ("join", "ping", "describe") or owner.is_guest:
            return
        if owner.generation < self._generation.current:
            raise MoverFenced(self.config.name, owner.generation, self._generation.current)

    def _join(self, owner: Owner, generation: int) -> dict[str, Any]:
        with self._changed:
            if 0 < generation < self._generation.current:
                raise MoverFenced(self.config.name, generation, self._generation.current)
            self._generation.raise_to(generation)
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
            "cache": str(config.wan.cache) if config.wan and config.wan.cache else "",
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

    def _cancel(self, owner: Owner, task: str) -> None:
        self.connections.cancel(task)
        self._roles.cancel(task)

    def _end_session(self, owner: Owner, session: str) -> list[str]:
        if not session:
            raise ProtocolError(owner.name, "end_session: which session?")
        return self._ended(lambda theirs, name: name == session)

    def _keep_session(self, owner: Owner, session: str) -> None:
        for task in self._tasks:
            if session and task.session == session:
                task.owner = owner
        self._roles.adopt(owner, lambda theirs, tasks: bool(session) and theirs == session)

    def _leave(self, owner: Owner) -> list[str]:
        return self._ended(lambda theirs, name: theirs is owner)

    def _ended(self, is_meant: Callable[[Owner, str], bool]) -> list[str]:
        """End the tasks and close what is open for whose (owner, session) that is true."""
        for task in self._tasks:
            if task.is_running and is_meant(task.owner, task.session):
                self._cancel(task.owner, task.name)
        return self._said_closed(self._roles.close_where(is_meant))

    def _said_closed(self, closed: list[str]) -> list[str]:
        for what in closed:
            self._log.say("closed", what=what)
        return closed

    # --- what servers left behind ------------------------------------------------------------

    def _look_round(self) -> None:
        while not self._is_closed_within(min(LOOK_S, self.config.orphan_timeout_s)):
            try:
                self.close_orphans()
            except Exception as exc:  # looked at again
                self._note(exc, what="orphans")

    def _is_closed_within(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._is_closed, timeout_s)

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
            closed = self._ended(lambda owner, session: owner.is_gone and owner.name in lost)
        left = self._roles.close_idle_replicas(
            lambda owner, session: (
                owner.gone_at is not None and owner.name not in since and owner.gone_at <= oldest
            )
        )
        return closed + self._said_closed(left)

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
        self._roles.close()
        self._keeper.join(timeout=10)
        self._log.say("mover ended", name=self.config.name)
