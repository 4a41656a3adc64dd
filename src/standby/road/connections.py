"""How a task gets its data connection: inherited, accepted by ticket, or made with one.

A child mover was given its connections when it was started: a spec is the number of one. Between
service movers each task has a connection of its own. The backup server gives both ends the same
`Ticket`; the source end connects and presents it, the target end waits for exactly that one. A
ticket admits once, until it expires, one mover, for one disk of one replica (RULES 19).

    spec {"number": 0}                                        either end of a child mover
    spec {"accept": ticket}                                   the end that waits
    spec {"connect": {"name", "address"}, "ticket": ticket}   the end that connects

Between two WAN accelerators connections stand: a task takes a turn on one, and its ticket does not
travel, but a handle that proves it (`wire.standing`).
"""

from __future__ import annotations

import contextlib
import hmac
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import LinkError, PeerBusy, ProtocolError, TicketRefused, error_from_wire
from standby.road.sharing import shared_ring
from standby.road.wan_standing import IdleLinks
from standby.wire.link import Link
from standby.wire.messages import Attach, Attached, Begin, Failed, Message, Stand
from standby.wire.pacing import pace
from standby.wire.shared_memory import SharedRing
from standby.wire.standing import Standing, Turn, standing, stood
from standby.wire.throttle import Throttles

TO_TARGET = "to_target"
TO_REPOSITORY = "to_repository"
TO_WAN = "to_wan"
BETWEEN_WANS = "between_wans"
FROM_WAN = "from_wan"
ROLES = {
    TO_TARGET: ("source", "target"),
    TO_REPOSITORY: ("source", "repository"),
    TO_WAN: ("source", "wan"),
    BETWEEN_WANS: ("wan", "wan"),
    FROM_WAN: ("wan", "target"),
}
"""Per direction the role of the mover that connects, and of the one that waits. With WAN
accelerators a disk goes over the last three, one behind the other, instead of the first."""

CONNECT_TIMEOUT_S = 30.0
ACCEPT_TIMEOUT_S = 60.0
"""How long the waiting end waits: the other one is told by the same server at the same time."""
PARK_S = 15.0
"""How long a connection may be ahead of the server's word to the mover it came to."""
CANCELLED_S = 60.0
"""How long a task that was ended is remembered: its own thread may come here after the word that
ended it, and would wait for a connection that nobody makes."""
SKEW_S = 60
"""How far two machines' clocks may be apart without a fresh ticket counting as expired."""
WAITING_MAX = 256
PARKED_MAX = 64
STANDING_MAX = 64
"""Links that others have standing here: some pairs, each with as many disks at once as it has room
for."""

Spec = int | dict[str, Any]


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server gives both ends of a task. `replica` is the replica's identity as text,
    `generation` that of its writer (0: none is needed), `source` and `target` the movers' names,
    `expires_at` ISO 8601 in UTC."""

    secret: str
    task: str
    replica: str
    disk: str
    generation: int
    direction: str
    source: str
    target: str
    expires_at: str


def new_ticket(
    task: str,
    replica: str,
    disk: str,
    generation: int,
    direction: str,
    source: str,
    target: str,
    *,
    valid_s: float = 600,
    clock: Clock = SYSTEM_CLOCK,
) -> Ticket:
    """A ticket that nobody can guess, for the server to give to both ends."""
    expires_at = (clock.now() + timedelta(seconds=valid_s)).isoformat()
    return Ticket(
        new_token(16), task, replica, disk, generation, direction, source, target, expires_at
    )


@dataclass(frozen=True, slots=True)
class Errand:
    """What an end wants a connection for, as far as it knows: a ticket must be for exactly that.
    '' and None stand for what this end does not know. `weight` is its share under traffic rules;
    with `or_wan` a way through WAN accelerators will do in place of `direction`."""

    task: str
    direction: str
    disk: str
    replica: str = ""
    generation: int | None = None
    weight: float = 1.0
    or_wan: str = ""

    @property
    def directions(self) -> tuple[str, ...]:
        """Those that a ticket for it may have."""
        return (self.direction, self.or_wan) if self.or_wan else (self.direction,)


class Connection(NamedTuple):
    """A data link, and the shared memory beside it where both ends are on one machine."""

    link: Link
    ring: SharedRing | None


class Connections(Protocol):
    """Where the verbs of a mover get the data connection of a task."""

    def take(self, spec: Spec, errand: Errand) -> contextlib.AbstractContextManager[Connection]:
        """The connection, for the task alone until the block ends; an exception in the block ends
        the connection, so that the other end does not wait for ever."""

    def abandon(self, spec: Spec) -> None:
        """The task that was to take the connection failed before: whoever waits at the other end
        of it need not."""

    def cancel(self, task: str) -> None:
        """End the connections of `task`, also one that is only waited for."""


class Peer(Protocol):
    """Who is at the other end, as its certificate says (wire.tls.Peer)."""

    @property
    def name(self) -> str: ...
    @property
    def roles(self) -> Sequence[str]: ...


# --- one machine -----------------------------------------------------------------------------


class InheritedConnections:
    """The connections that a child mover was started with; a spec is the number of one."""

    def __init__(self, links: Sequence[Link], rings: Sequence[SharedRing | None]) -> None:
        self._links = links
        self._rings = rings
        self._taken: dict[str, Link] = {}

    @contextlib.contextmanager
    def take(self, spec: Spec, errand: Errand) -> Iterator[Connection]:
        """See Connections; the link stays open for the next task."""
        number = self._number(spec)
        link = self._links[number]
        self._taken[errand.task] = link
        try:
            yield Connection(link, self._rings[number])
        except BaseException:
            link.shutdown()
            raise
        finally:
            self._taken.pop(errand.task, None)

    def _number(self, spec: Spec) -> int:
        number = spec.get("number") if isinstance(spec, dict) else spec
        if not isinstance(number, int) or not 0 <= number < len(self._links):
            raise ProtocolError("backup server", f"there is no data connection {spec}")
        return number

    def abandon(self, spec: Spec) -> None:
        """See Connections."""
        with contextlib.suppress(ProtocolError):
            self._links[self._number(spec)].shutdown()

    def cancel(self, task: str) -> None:
        """See Connections."""
        link = self._taken.get(task)
        if link is not None:
            link.shutdown()


# --- several machines ------------------------------------------------------------------------


@dataclass(slots=True)
class _Waiting:
    ticket: Ticket
    link: Link | None = None
    is_cancelled: bool = False


class ServiceConnections:
    """The data connections of a service mover; `offer` takes what its listener got.

    `connect(address, name, role, own_role, timeout_s)` makes a link to the mover of exactly that
    name and role.
    Nothing here waits without end, and nothing grows without limit.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[str, str, str, str, float], Link],
        clock: Clock = SYSTEM_CLOCK,
        *,
        accept_timeout_s: float | None = None,
        park_s: float | None = None,
    ) -> None:
        """The two times are ACCEPT_TIMEOUT_S and PARK_S where none are given."""
        self.name = name
        self.throttles: Throttles | None = None
        """The traffic rules that all connections are under, None: none."""
        self._connect = connect
        self._clock = clock
        self._accept_timeout_s = ACCEPT_TIMEOUT_S if accept_timeout_s is None else accept_timeout_s
        self._park_s = PARK_S if park_s is None else park_s
        self._changed = threading.Condition()
        self._waiting: dict[str, _Waiting] = {}
        self._used: dict[str, Ticket] = {}
        self._cancelled: dict[str, float] = {}
        self._links: dict[str, set[Link]] = {}
        self._idle = IdleLinks(clock)
        self._stands: set[Link] = set()
        """Those that others made."""
        self._parked = 0
        self._is_closed = False

    # --- a task's end ------------------------------------------------------------------------

    @contextlib.contextmanager
    def take(self, spec: Spec, errand: Errand) -> Iterator[Connection]:
        """See Connections; the link is closed behind the task."""
        link, direction = self._taken(spec, errand)
        if self.throttles is not None:
            pace(link, self.throttles, weight=errand.weight)
        with self._changed:
            self._links.setdefault(errand.task, set()).add(link)
            if self._is_closed or errand.task in self._cancelled:
                link.shutdown()
        try:
            ring = None
            if direction == TO_TARGET:
                ring = shared_ring(link, is_source=isinstance(spec, dict) and "connect" in spec)
            yield Connection(link, ring)
        except BaseException:
            link.shutdown()
            raise
        finally:
            self._forget(errand.task, link)
            link.close()

    def _forget(self, task: str, link: Link) -> None:
        with self._changed:
            links = self._links.get(task, set())
            links.discard(link)
            if not links:
                self._links.pop(task, None)

    def _taken(self, spec: Spec, errand: Errand) -> tuple[Link, str]:
        """The link, and the direction that its ticket has."""
        if not isinstance(spec, dict):
            raise ProtocolError("backup server", f"a service mover has no connection {spec}")
        try:
            if "accept" in spec:
                ticket = msgspec.convert(spec["accept"], Ticket)
                return self._accepted(ticket, errand), ticket.direction
            where = spec["connect"]
            ticket = msgspec.convert(spec["ticket"], Ticket)
            link = self._connected(str(where["name"]), str(where["address"]), ticket, errand)
            return link, ticket.direction
        except (KeyError, TypeError, msgspec.ValidationError) as exc:
            raise ProtocolError(
                "backup server", f"no connection can be made of this: {exc}"
            ) from exc

    def _accepted(self, ticket: Ticket, errand: Errand) -> Link:
        self._check(ticket, errand, self.name, ticket.source)
        with self._changed:
            waiting = _Waiting(ticket, is_cancelled=ticket.task in self._cancelled)
            if ticket.secret in self._used or ticket.secret in self._waiting:
                raise TicketRefused(ticket.source, ticket.task, "it was used before")
            if len(self._waiting) >= WAITING_MAX:
                raise LinkError(ticket.source, f"{WAITING_MAX} tasks wait for connections already")
            self._waiting[ticket.secret] = waiting
            self._changed.notify_all()
            try:
                self._changed.wait_for(
                    lambda: waiting.link is not None or waiting.is_cancelled or self._is_closed,
                    self._accept_timeout_s,
                )
            finally:
                del self._waiting[ticket.secret]
                self._use_up(ticket)
        if waiting.link is None:
            why = "the task was ended" if waiting.is_cancelled or self._is_closed else "it did not"
            raise LinkError(ticket.source, f"waited for it to connect for {ticket.task}: {why}")
        return waiting.link

    def _connected(self, name: str, address: str, ticket: Ticket, errand: Errand) -> Link:
        self._check(ticket, errand, ticket.target, self.name)
        if name != ticket.target:
            raise TicketRefused(name, ticket.task, f"it is one for mover {ticket.target}")
        if ticket.direction == BETWEEN_WANS:
            return self._begun(name, address, ticket)
        own_role, role = ROLES[ticket.direction]
        link = self._connect(address, name, role, own_role, CONNECT_TIMEOUT_S)
        with self._in_time(ticket.task, link):
            _admitted(link, Attach(ticket.task, ticket_text(ticket)))
        return link

    @contextlib.contextmanager
    def _in_time(self, task: str, link: Link) -> Iterator[None]:
        """What is said first on the link: soon, or it ends; also by `cancel`."""
        with self._changed:
            self._links.setdefault(task, set()).add(link)
        deadline = threading.Timer(CONNECT_TIMEOUT_S + PARK_S, link.shutdown)
        deadline.daemon = True
        deadline.start()
        try:
            yield
        except BaseException:
            self._forget(task, link)
            link.close()
            raise
        finally:
            deadline.cancel()

    def _begun(self, name: str, address: str, ticket: Ticket) -> Link:
        """A turn for the ticket on a link that stands, or on a new one that will."""
        broken: LinkError | None = None
        while True:
            end = self._idle.take(name, address) if broken is None else None
            is_new = end is None
            if end is None:
                end = self._stood(name, address, ticket.task)
            turn = end.next_turn(self._idle.giver_back(name, address, end))
            handle = Begin(end.handle(ticket.secret, ticket_text(ticket)))
            try:
                with self._in_time(ticket.task, turn):
                    _admitted(turn, handle)
            except TicketRefused as exc:
                if broken is not None:  # the link had ended behind the other side's word
                    raise broken from exc
                raise
            except LinkError as exc:
                if is_new or isinstance(exc, ProtocolError) or self._is_over(ticket.task):
                    raise
                broken = exc  # it ended while nobody looked: that is no fault of the task
            else:
                return turn

    def _stood(self, name: str, address: str, task: str) -> Standing:
        own_role, role = ROLES[BETWEEN_WANS]
        link = self._connect(address, name, role, own_role, CONNECT_TIMEOUT_S)
        with self._in_time(task, link):
            end = stood(link, self.name, name)
        self._forget(task, link)
        return end

    def _is_over(self, task: str) -> bool:
        with self._changed:
            return self._is_closed or task in self._cancelled

    def _check(self, ticket: Ticket, errand: Errand, waits: str, connects: str) -> None:
        """Raise unless the ticket is for this errand, this mover and this hour."""
        if (
            (ticket.task, ticket.disk) != (errand.task, errand.disk)
            or ticket.direction not in errand.directions
            or ticket.direction not in ROLES
        ):
            raise TicketRefused(
                ticket.source,
                errand.task,
                f"it is one for task {ticket.task}, disk {ticket.disk}, {ticket.direction}",
            )
        if errand.replica and ticket.replica != errand.replica:
            raise TicketRefused(ticket.source, errand.task, f"it is one for {ticket.replica}")
        if errand.generation is not None and ticket.generation != errand.generation:
            raise TicketRefused(
                ticket.source,
                errand.task,
                f"it is one for generation {ticket.generation}, the writer's is "
                f"{errand.generation}",
            )
        if (ticket.target, ticket.source) != (waits, connects):
            raise TicketRefused(
                ticket.source,
                errand.task,
                f"it is one from {ticket.source} to {ticket.target}, this is {self.name}",
            )
        if self._has_expired(ticket):
            now = self._clock.now().isoformat(timespec="seconds")
            raise TicketRefused(
                ticket.source, errand.task, f"it expired at {ticket.expires_at}, it is {now} here"
            )

    def _has_expired(self, ticket: Ticket) -> bool:
        return self._clock.now() > expiry(ticket) + timedelta(seconds=SKEW_S)

    def _use_up(self, ticket: Ticket) -> None:
        known = self._used.items()
        self._used = {secret: used for secret, used in known if not self._has_expired(used)}
        self._used[ticket.secret] = ticket

    # --- what the listener got ---------------------------------------------------------------

    def offer(self, link: Link, attach: Attach, peer: Peer) -> None:
        """Hand a connection that said `attach` to the task that waits for its ticket, at once or
        within some seconds; else raise TicketRefused. The link is the task's then."""
        try:
            ticket = msgspec.json.decode(attach.ticket, type=Ticket)
            expired = self._has_expired(ticket)
        except (msgspec.DecodeError, ProtocolError, UnicodeEncodeError) as exc:
            raise TicketRefused(peer.name, attach.task, "it is none") from exc
        roles = ROLES.get(ticket.direction, ("",))
        if ticket.source != peer.name or roles[0] not in peer.roles:
            raise TicketRefused(peer.name, attach.task, "it was given to another mover")
        if expired or ticket.task != attach.task:
            raise TicketRefused(peer.name, attach.task, "it has expired or is for another task")
        with self._changed:
            self._wait_parked(
                lambda: (
                    self._is_closed or ticket.secret in self._waiting or ticket.secret in self._used
                ),
                peer,
                attach.task,
            )
            waiting = self._waiting.get(ticket.secret)
            if waiting is None or waiting.link is not None:
                raise TicketRefused(peer.name, attach.task, "nobody waits for it here")
            expected = ticket_text(waiting.ticket).encode()
            if not hmac.compare_digest(expected, ticket_text(ticket).encode()):
                raise TicketRefused(peer.name, attach.task, "it differs from the server's")
            link.send(Attached())
            waiting.link = link
            self._changed.notify_all()

    def stand(self, link: Link, stand: Stand, peer: Peer) -> None:
        """Serve a connection that said `stand`, turn by turn, until it ends. Raises TicketRefused
        for a handle of no ticket that anybody waits for, ProtocolError, PeerBusy."""
        connects, _ = ROLES[BETWEEN_WANS]
        if connects not in peer.roles:
            raise ProtocolError(peer.name, f"is none of role {connects}, whose links may stand")
        with self._changed:
            if self._is_closed or len(self._stands) >= STANDING_MAX:
                raise PeerBusy(self.name, f"{STANDING_MAX} links stand here already")
            self._stands.add(link)
        try:
            end = standing(link, stand, self.name, peer.name)
            while not end.has_expired(self._clock.now()):
                try:
                    message, _ = link.receive()
                except ProtocolError:
                    raise
                except LinkError:
                    break
                if not isinstance(message, Begin):
                    raise ProtocolError(peer.name, f"expected Begin, got {type(message).__name__}")
                if not self._served_turn(end, message.handle, peer):
                    break
        finally:
            with self._changed:
                self._stands.discard(link)
        link.close()

    def _served_turn(self, end: Standing, handle: bytes, peer: Peer) -> bool:
        """Hand the next turn to the task that waits for the ticket of that handle, and wait until
        it has ended; whether the link stands on."""
        ended, is_whole = threading.Event(), [False]

        def on_end(whole: bool) -> None:
            is_whole[0] = whole
            ended.set()

        turn = end.next_turn(on_end)
        self._offer_turn(turn, lambda it: end.handle(it.secret, ticket_text(it)), handle, peer)
        ended.wait()
        return is_whole[0]

    def _offer_turn(
        self, turn: Turn, handle_of: Callable[[Ticket], bytes], handle: bytes, peer: Peer
    ) -> None:
        looked_at: set[str] = set()
        found: list[Ticket] = []

        def look() -> bool:
            known = [*(waiting.ticket for waiting in self._waiting.values()), *self._used.values()]
            for ticket in known:
                if ticket.secret in looked_at:
                    continue
                looked_at.add(ticket.secret)
                if ticket.direction != BETWEEN_WANS or ticket.source != peer.name:
                    continue
                if hmac.compare_digest(handle_of(ticket), handle):
                    found.append(ticket)
            return self._is_closed or bool(found)

        with self._changed:
            self._wait_parked(look, peer, "")
            waiting = self._waiting.get(found[0].secret) if found else None
            if waiting is None or waiting.link is not None:
                raise TicketRefused(peer.name, "", "nobody waits for it here")
            if self._has_expired(waiting.ticket):
                raise TicketRefused(peer.name, waiting.ticket.task, "it has expired")
            turn.send(Attached())
            waiting.link = turn
            self._changed.notify_all()

    def _wait_parked(self, is_there: Callable[[], bool], peer: Peer, task: str) -> None:
        """Wait for the server's word to this mover; the caller has the lock."""
        if self._parked >= PARKED_MAX:
            raise TicketRefused(peer.name, task, "too many connections wait here")
        self._parked += 1
        try:
            self._changed.wait_for(is_there, self._park_s)
        finally:
            self._parked -= 1

    # --- ending ------------------------------------------------------------------------------

    def abandon(self, spec: Spec) -> None:
        """See Connections: nobody waits for the ticket, which the other end learns by itself."""

    def cancel(self, task: str) -> None:
        """See Connections; a task that was asked for and has not come this far yet ends too when it
        does, and who connects for it is refused."""
        with self._changed:
            now = self._clock.monotonic()
            recent = self._cancelled.items()
            self._cancelled = {name: at for name, at in recent if now - at < CANCELLED_S}
            self._cancelled[task] = now
            for waiting in self._waiting.values():
                if waiting.ticket.task == task:
                    waiting.is_cancelled = True
            for link in self._links.get(task, ()):
                link.shutdown()
            self._changed.notify_all()

    def close(self) -> None:
        """End every connection, now and from now on."""
        with self._changed:
            self._is_closed = True
            for links in (*self._links.values(), self._stands):
                for link in links:
                    link.shutdown()
            self._changed.notify_all()
        self._idle.close()


def _admitted(link: Link, word: Message) -> None:
    """Say what admits the link to its task, and hear that it does."""
    link.send(word)
    message, _ = link.receive()
    if isinstance(message, Failed):
        raise error_from_wire(message.error)
    if not isinstance(message, Attached):
        raise ProtocolError(link.peer, f"expected Attached, got {type(message).__name__}")


def ticket_text(ticket: Ticket) -> str:
    """The ticket as it travels in `Attach`."""
    return msgspec.json.encode(ticket).decode()


def expiry(ticket: Ticket) -> datetime:
    """When the ticket ends; ProtocolError where it does not say so."""
    try:
        instant = datetime.fromisoformat(ticket.expires_at)
    except ValueError as exc:
        raise ProtocolError("backup server", f"a ticket expires at {ticket.expires_at!r}") from exc
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
