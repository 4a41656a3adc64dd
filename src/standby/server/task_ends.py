"""Waiting for the ends of one disk's transfer: the movers that send and receive it, and the WAN
accelerators between them where there are any.

The transfer is done when its sender and its receiver say so. Any end that fails ends it: the others
see their connections close, and have some time to keep what they have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from standby.errors import LinkError, MoverDied, ProtocolError, StandbyError
from standby.server.crew import Handle
from standby.server.hanging import TaskWatch

GRACE_S = 20.0
LOOK_S = 0.25
CANCEL_TURN = 3
"""After a second of the grace."""


def one_end_failed(
    task: str,
    ends: Mapping[Future[Any], Handle],
    watch: TaskWatch | None = None,
    enough: Collection[Future[Any]] = (),
) -> None:
    """Wait for all ends of the task, or for those that are `enough`; but once one has failed no
    longer than GRACE_S for the others, and not at all for those that cannot be reached: raises the
    failure then, unless all that are `enough` ended well. Ends that do not end by themselves soon,
    for they wait for a connection that nobody makes, are told to. An end that hangs, by what
    `watch` says, has failed."""
    enough = set(enough or ends)
    pending = set(ends)
    look_s = None if watch is None else watch.look_s
    while True:
        done, pending = wait(pending, look_s, FIRST_COMPLETED)
        if _failures(done) or not pending & enough:
            break
        hung = watch.look() if watch is not None and not done else None
        if hung is not None:
            raise _given_up(task, ends, hung)
    failed = _failures(ends)
    for turn in range(int(GRACE_S / LOOK_S)) if failed else ():
        there = {end for end in pending if ends[end].is_connected}
        if not there:
            break
        pending -= wait(there, LOOK_S).done
        if turn == CANCEL_TURN:
            for end in there & pending:
                with contextlib.suppress(StandbyError):
                    ends[end].start("cancel", task=task)
    if pending & enough:
        raise most_telling(_failures(ends))


def _failures(ends: Collection[Future[Any]]) -> list[BaseException]:
    return [error for end in ends if end.done() and (error := end.exception()) is not None]


def _given_up(task: str, ends: Mapping[Future[Any], Handle], hung: MoverDied) -> MoverDied:
    """Have the ends that are well close the task's connections, so that what hangs fails too when
    it wakes up; the error."""
    well = {end: handle for end, handle in ends.items() if handle.name != hung.mover}
    for handle in well.values():
        with contextlib.suppress(StandbyError):
            handle.start_now("cancel", task=task)
    wait(well, GRACE_S)
    return hung


def both(sending: Future[Any], receiving: Future[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of sender and receiver, or the error that explains."""
    wait([sending, receiving])
    failures = _failures([receiving, sending])
    if failures:
        raise most_telling(failures)
    return sending.result(), receiving.result()


def most_telling(failures: list[BaseException]) -> BaseException:
    """A broken link is what one end sees of the other's error, or death."""

    def rank(error: BaseException) -> int:
        if isinstance(error, MoverDied):
            return 1
        return 2 if isinstance(error, LinkError) and not isinstance(error, ProtocolError) else 0

    return min(failures, key=rank)
