"""What the two WAN stations of a disk task have in common: two links, and how they end.

A relay stands between `near`, towards the source, and `far`, towards the target. What fails is told
to the neighbours, which get the time to read it: who sends to a closed socket may lose what came
before the end. Then both links end.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from standby.clock import SYSTEM_CLOCK
from standby.errors import LinkError, ProtocolError, StandbyError, error_from_wire, error_to_wire
from standby.road.read_ahead import Frame, ReadAhead
from standby.wire.link import Link
from standby.wire.messages import Failed
from standby.wire.standing import Turn

READING_S = 10.0
"""How long a neighbour has to read why, and to end its side."""

NAME = "WAN accelerator"


class Relay(ABC):
    """One station. `run` returns when the target has finished, and raises what ended it else."""

    tells_far = True
    """Whether `far` understands `Failed`."""

    def __init__(self, task: str, near: Link, far: Link) -> None:
        self._task = task
        self._near = near
        self._far = far
        self._changed = threading.Condition()
        self._errors: list[BaseException] = []
        self._is_finished = False
        self._timers: list[threading.Timer] = []
        self._threads: list[threading.Thread] = []
        self.cpu_s = 0.0
        """Of this station's own threads."""

    # --- what a station does -----------------------------------------------------------------

    @abstractmethod
    def take_near(self, frame: Frame) -> None:
        """A message from the source's side; its payload stays until the next one."""

    @abstractmethod
    def take_far(self, frame: Frame) -> None:
        """A message from the target's side."""

    @abstractmethod
    def before_failing(self, ended: Link) -> None:
        """That link ended, or its peer said that it failed: what came before may still be used."""

    # --- running -----------------------------------------------------------------------------

    def begin(self, work: Callable[[], None], name: str) -> None:
        """Run `work` in a thread of the station; what it raises ends the station."""

        def run() -> None:
            with self._counted():
                try:
                    work()
                except BaseException as exc:
                    self.fail(exc)

        thread = threading.Thread(target=run, name=f"{self._task} {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def relay(self) -> None:
        """Take what comes from either side until both ended."""
        self.begin(self._take_all_far, "from the target")
        try:
            with self._counted(), contextlib.closing(ReadAhead(self._near)) as ahead:
                self._take_all(ahead, self._near, self.take_near)
        finally:
            for thread in self._threads:
                thread.join()
            for timer in self._timers:
                timer.cancel()
            self._near.shutdown()
            self._far.shutdown()
        if self._errors:
            raise worst(self._errors)

    def _take_all_far(self) -> None:
        self._take_all(self._far, self._far, self.take_far)

    def _take_all(
        self, incoming: Link | ReadAhead, link: Link, take: Callable[[Frame], None]
    ) -> None:
        """Until the link ends; after a failure what comes is only read."""
        while True:
            try:
                frame = incoming.receive()
            except BaseException as exc:
                self.before_failing(link)
                self.fail(exc)
                return
            if self.has_ended:
                continue
            try:
                if isinstance(frame[0], Failed):
                    self.before_failing(link)
                    self.fail(error_from_wire(frame[0].error), told_by=link)
                else:
                    take(frame)
            except BaseException as exc:
                self.fail(exc)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        began = SYSTEM_CLOCK.thread_cpu_s()
        try:
            yield
        finally:
            with self._changed:
                self.cpu_s += SYSTEM_CLOCK.thread_cpu_s() - began

    # --- the end -----------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether nothing is to be done any more."""
        return self._is_finished or bool(self._errors)

    def finish(self, frame: Frame) -> None:
        """Pass the target's last word on; what ends afterwards is no failure."""
        with self._changed:
            self._is_finished = True
        try:
            self._near.send(frame[0], frame[1])
        except BaseException:
            self._is_finished = False
            raise
        self._end_within(READING_S)
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: BaseException, told_by: Link | None = None) -> None:
        """Remember why, and tell both sides, but for the one that said so itself."""
        with self._changed:
            if self._is_finished:
                return
            is_first = not self._errors
            self._errors.append(error)
            self._changed.notify_all()
        if not is_first:
            return
        self._end_within(READING_S)
        for link in (self._far, self._near):
            if link is told_by or (link is self._far and not self.tells_far):
                link.shutdown()
            else:
                tell(link, error)

    def leave(self, link: Link) -> None:
        """Nothing more will be said on the link: it stands on, or ends."""
        if isinstance(link, Turn):
            with contextlib.suppress(LinkError):  # whoever receives learns that it is gone
                link.say_over()
        else:
            link.shutdown()

    def _end_within(self, seconds: float) -> None:
        for link in (self._near, self._far):
            timer = threading.Timer(seconds, link.shutdown)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def unexpected(self, frame: Frame, link: Link) -> ProtocolError:
        """What to raise for a message that has no business here."""
        return ProtocolError(link.peer, f"unexpected {type(frame[0]).__name__}")


def worst(errors: list[BaseException]) -> BaseException:
    """The one to report: a broken link is what is seen of somebody else's trouble."""
    return min(errors, key=lambda error: type(error) is LinkError)


def tell(link: Link, error: BaseException) -> None:
    """Send `error`; a link that has ended needs no telling."""
    with contextlib.suppress(StandbyError):
        link.send(Failed(0, error_to_wire(error, NAME)))


@contextlib.contextmanager
def telling(link: Link) -> Iterator[None]:
    """What fails in the block, before a relay has the link, is told to it."""
    try:
        yield
    except BaseException as exc:
        timer = threading.Timer(READING_S, link.shutdown)
        timer.daemon = True
        timer.start()
        tell(link, exc)
        with contextlib.suppress(StandbyError):
            while True:
                link.receive()
        timer.cancel()
        raise
