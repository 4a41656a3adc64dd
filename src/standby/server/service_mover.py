"""The backup server's end of a service mover: a control link that comes back.

A service mover goes on with its tasks while no server is connected (RULES 18). So a link that
drops is made again, every `every_s` for up to `for_s`, and what ran meanwhile is joined again by
its task id; only a call that was answered by nobody fails, with LinkError, and is its caller's to
repeat. `crew_handle` has it as one VM's session uses it.

Before anything else travels on a new link the two sides greet: the server says who it is (`greet`),
that the crews at work are still there, and which ones ended while it was away.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import (
    CertificateRefused,
    Fenced,
    LinkError,
    MoverAway,
    MoverLeft,
    StandbyError,
    error_from_wire,
)
from standby.server.greeting import Greet, greeted
from standby.server.waits import LOOK_S, end_of_waits
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply

if TYPE_CHECKING:
    from standby.wire.identity import Peer

PING_S = 20.0
SILENCE_S = 60.0
"""A mover answers a ping in a thread of its own, whatever else it does: one from which nothing came
for so long hangs, though its system still keeps the connection alive."""

CLOSE_S = 2.0
"""How long the end of a connection is waited for: one that is being made ends by itself."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How long a mover that does not answer is waited for."""

    every_s: float = 15
    for_s: float = 30 * 60
    silence_s: float | None = None
    """The longest silence of a mover that is connected; None: SILENCE_S."""


def silence_limit_s(silence_s: float | None) -> float:
    """The silence after which a mover is taken to hang."""
    return SILENCE_S if silence_s is None else silence_s


@dataclass(slots=True)
class _Pending:
    """A call that is not answered yet; `task` is the id by which it can be joined again."""

    future: Future[Any]
    verb: str
    task: str


class ServiceMover:
    """One service mover, connected when first asked. Thread-safe.

    `make_link` connects once and raises LinkError where it cannot; it is called from a thread of
    this object, never by two at once.
    """

    def __init__(
        self,
        name: str,
        make_link: Callable[[], Link],
        reconnect: Reconnect = Reconnect(),
        clock: Clock = SYSTEM_CLOCK,
        on_state: Callable[[str], None] | None = None,
        greet: Greet | None = None,
    ) -> None:
        """`on_state` is told whenever the link is made (''), or lost or not to be had (why). What
        `greet` raises ends the link; Fenced ends the attempts too, and so does a certificate that
        is refused: waiting makes no other one."""
        self.name = name
        self._greet = greet
        self._on_state = on_state or (lambda problem: None)
        self._make_link = make_link
        self._reconnect = reconnect
        self._clock = clock
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._problem = ""
        self._fenced: Fenced | CertificateRefused | None = None
        self._crews: Counter[str] = Counter()
        self._ended_crews: set[str] = set()
        self._lost_at = clock.monotonic()
        self._is_closed = False
        self.is_given_up = False
        """Whether it did not answer for as long as it is waited for, and has not since."""
        self.losses = 0
        """How often a link that stood was lost."""
        self.last_loss = ""
        """Why, the last time."""
        self._next_id = 1
        self._calls: dict[int, _Pending] = {}
        self._keeper: threading.Thread | None = None

    # --- calls -------------------------------------------------------------------------------

    def start(self, verb: str, /, **arguments: Any) -> Future[Any]:
        """Ask for `verb`, waiting for a connection; the future ends with its result or error.

        Raises MoverAway when the mover could not be reached within the time for that. An argument
        `task` names work that outlives the connection: its future waits for the mover to be back.
        """
        future: Future[Any] = Future()
        task = str(arguments.get("task", ""))
        whose = str(arguments.get("verb", "")) if verb == "rejoin" else verb
        link, number = self._entered(_Pending(future, whose, task))
        try:
            link.send(Call(number, verb, arguments))
        except LinkError:
            link.shutdown()  # the keeper notices, fails what is pending and connects again
        except BaseException:
            with self._changed:
                self._calls.pop(number, None)
            raise
        return future

    def call(self, verb: str, /, **arguments: Any) -> Any:
        """Ask for `verb` and wait for its result."""
        return self.start(verb, **arguments).result()

    def start_now(self, verb: str, /, **arguments: Any) -> Future[Any] | None:
        """As `start`, where the link stands; None where it does not."""
        future: Future[Any] = Future()
        with self._changed:
            link, number = self._link, self._numbered()
            if link is None:
                return None
            self._calls[number] = _Pending(future, verb, "")
        with contextlib.suppress(LinkError):  # who receives notices
            link.send(Call(number, verb, arguments))
        return future

    def tell(self, verb: str, /, **arguments: Any) -> bool:
        """Ask for `verb` where the link stands, and wait for nothing; whether it does."""
        with self._changed:
            link, number = self._link, self._numbered()
        if link is None:
            return False
        try:
            link.send(Call(number, verb, arguments))
        except LinkError:
            return False  # who receives notices
        return True

    def keep_crew(self, crew: str) -> None:
        """The crew is at work until it is dropped: its replicas stay open for it."""
        with self._changed:
            self._crews[crew] += 1

    def drop_crew(self, crew: str) -> None:
        """Another one of `keep_crew` less."""
        with self._changed:
            self._crews[crew] -= 1
            self._crews += Counter()  # those that are left

    def end_crew(self, crew: str) -> None:
        """Have the mover end the crew's tasks and close its replicas, now or when it is back: it is
        told on every new link until it answered, as a link may be dead for a while unnoticed."""
        with self._changed:
            self._ended_crews.add(crew)
        told = self.start_now("end_session", session=crew)
        if told is not None:
            told.add_done_callback(partial(self._crew_ended, crew))

    def _crew_ended(self, crew: str, told: Future[Any]) -> None:
        if told.exception() is None:
            with self._changed:
                self._ended_crews.discard(crew)

    @property
    def remote(self) -> Peer | None:
        """Who the certificate of the link that stands names."""
        link = self._link
        return link.remote if link is not None else None

    @property
    def is_connected(self) -> bool:
        """Whether the control link stands now."""
        return self._link is not None

    @property
    def problem(self) -> str:
        """Why the last attempt to connect failed, '' when none did."""
        return self._problem

    def answers(self) -> bool:
        """Whether the link stands, after a first attempt to make it."""
        with self._changed:
            self._keep()
            self._wait(lambda: bool(self._problem))
            return self._link is not None

    def wait_connected(self, timeout_s: float) -> bool:
        """Whether the link stands, at the latest after `timeout_s`."""
        with self._changed:
            self._keep()
            self._wait(lambda: False, timeout_s)
            return self._link is not None

    @property
    def is_fenced(self) -> bool:
        """Whether it refused this server, for a newer one drives it."""
        return isinstance(self._fenced, Fenced)

    def why_away(self) -> StandbyError:
        """The error of one that is not to be had: that of its certificate, where that is why."""
        return self._fenced or MoverAway(self.name, self._problem or "it did not answer in time")

    def is_there(self, patience_s: float | None) -> bool:
        """Whether it is worth asking: the link stands at the latest after `patience_s`; 0: as long
        as a first attempt takes; None: as long as it is tried to reach it, which is not waited for
        here."""
        if patience_s is None:
            return True
        return self.wait_connected(patience_s) if patience_s else self.answers()

    def _entered(self, pending: _Pending) -> tuple[Link, int]:
        with self._changed:
            self._keep()
            self._wait(lambda: False)
            if self._link is None:
                raise self._death()
            number = self._numbered()
            self._calls[number] = pending
            return self._link, number

    def _wait(self, is_enough: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Until the link stands, or it is not to be had, or `is_enough`, or waits of this thread
        are to end, or for `timeout_s`; under the lock."""
        is_over = end_of_waits()
        clock = SYSTEM_CLOCK  # it is a thread that waits, whatever the time is
        until = None if timeout_s is None else clock.monotonic() + timeout_s
        while not (self._link is not None or self._has_given_up() or is_enough() or is_over()):
            left_s = LOOK_S if until is None else min(LOOK_S, until - clock.monotonic())
            if left_s <= 0:
                return
            self._changed.wait(left_s)

    def _numbered(self) -> int:
        """The next call's number; under the lock."""
        self._next_id += 1
        return self._next_id

    def _has_given_up(self) -> bool:
        return self._is_closed or self._keeper is None

    def _death(self) -> StandbyError:
        if self._fenced is not None:
            return self._fenced
        if self._is_closed:
            return MoverLeft(self.name, "its connection was closed")
        return MoverAway(self.name, self._problem or "it did not answer in time")

    # --- the connection ----------------------------------------------------------------------

    def _keep(self) -> None:
        """Have a thread that connects and receives; under the lock."""
        if self._keeper is None and not self._is_closed:
            self._lost_at = self._clock.monotonic()
            self._keeper = threading.Thread(
                target=self._kept, name=f"{self.name} control", daemon=True
            )
            self._keeper.start()
            threading.Thread(
                target=self._ping, args=(self._keeper,), name=f"{self.name} ping", daemon=True
            ).start()

    def _ping(self, keeper: threading.Thread) -> None:
        """Have the mover say something now and then, as long as that keeper is at work."""
        every_s = min(PING_S, silence_limit_s(self._reconnect.silence_s) / 3)
        while True:
            with self._changed:
                if self._changed.wait_for(
                    lambda: self._is_closed or self._keeper is not keeper, every_s
                ):
                    return
            self.tell("ping")

    def _kept(self) -> None:
        try:
            while not self._is_closed:
                link = self._connected()
                if link is None:
                    break
                try:
                    self._receive(link)
                except LinkError as exc:
                    self._lost(link, exc)
                    if isinstance(exc, CertificateRefused):  # it was revoked: others go on
                        self._fenced = exc
                        break
        finally:  # also for a bug: nobody may wait for ever
            with self._changed:
                self._keeper = None
                self.is_given_up = not self._is_closed
                calls, self._calls = list(self._calls.values()), {}
                self._changed.notify_all()
            for pending in calls:
                pending.future.set_exception(self._death())
            if self.is_given_up:
                self._on_state(self._problem or "it does not answer")

    def _connected(self) -> Link | None:
        """A new link, with everything that runs joined again; None when it is time to give up."""
        while not self._is_closed:
            try:
                link = self._made_link()
            except StandbyError as exc:
                with self._changed:
                    self._problem = str(exc)
                    self._changed.notify_all()
                self._fenced = exc if isinstance(exc, Fenced | CertificateRefused) else None
                self._on_state(self._problem)
                if self._fenced is not None:
                    return None
            else:
                self._problem = ""
                self._fenced = None
                self.is_given_up = False
                with self._changed:
                    if self._is_closed:
                        link.close()
                        return None
                    running = [(n, call) for n, call in self._calls.items() if call.task]
                    self._link = link
                    self._changed.notify_all()
                self._on_state("")
                with contextlib.suppress(LinkError):  # then `_receive` fails at once
                    for number, pending in running:
                        again = {"task": pending.task, "verb": pending.verb}
                        link.send(Call(number, "rejoin", again))
                return link
            waited = self._clock.monotonic() - self._lost_at
            if waited >= self._reconnect.for_s:
                return None
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, self._reconnect.every_s)
        return None

    def _made_link(self) -> Link:
        """A link on which both sides know where they are."""
        link = self._make_link()
        if self._greet is None:
            return link
        silence_s = silence_limit_s(self._reconnect.silence_s)
        ended = greeted(link, self.name, self._greet, self._known_crews, silence_s)
        with self._changed:
            self._ended_crews.difference_update(ended)
        return link

    def _known_crews(self) -> tuple[list[str], list[str]]:
        """Those at work, and those whose end the mover was not told."""
        with self._changed:
            return list(self._crews), list(self._ended_crews)

    def _receive(self, link: Link) -> None:
        while True:
            message, _ = link.receive()
            if isinstance(message, Reply | Failed):
                with self._changed:
                    pending = self._calls.pop(message.id, None)
                if pending is None:
                    continue
                if isinstance(message, Reply):
                    pending.future.set_result(message.result)
                else:
                    pending.future.set_exception(error_from_wire(message.error))

    def _lost(self, link: Link, error: LinkError) -> None:
        """Calls that nothing can join again fail now; tasks stay."""
        with self._changed:
            self._link = None
            self._problem = str(error)
            self._lost_at = self._clock.monotonic()
            lost = {number: call for number, call in self._calls.items() if not call.task}
            for number in lost:
                del self._calls[number]
            self.losses += 1
            self.last_loss = str(error)
            is_closed = self._is_closed
        link.close()
        if not is_closed:  # else it is we who ended it
            self._on_state(str(error))
        for pending in lost.values():
            pending.future.set_exception(error)

    def close(self) -> None:
        """End the connection and every call; the mover goes on with its tasks."""
        with self._changed:
            self._is_closed = True
            link, keeper = self._link, self._keeper
            self._changed.notify_all()
        if link is not None:
            link.shutdown()
        if keeper is not None:
            keeper.join(timeout=CLOSE_S)
