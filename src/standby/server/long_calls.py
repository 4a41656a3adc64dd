"""Verbs that read for long, asked of a mover as tasks: with progress, and cancelled by whoever does
not wait for them any more."""

from __future__ import annotations

import contextlib
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from standby.clock import new_token
from standby.errors import StandbyError
from standby.ports import Progress
from standby.server.service_mover import ServiceMover

PROGRESS_S = 0.25


def long_call(mover: ServiceMover, verb: str, progress: Progress | None, **arguments: Any) -> Any:
    """The result of `verb`, as a task that outlives a dropped connection."""
    task = f"{verb} {new_token(8)}"
    future = mover.start(verb, task=task, **arguments)
    try:
        while progress is not None:
            done, _ = wait([future], PROGRESS_S, FIRST_COMPLETED)
            if done:
                break
            position = None
            with contextlib.suppress(StandbyError):
                position = mover.call("progress").get(task)
            if position:
                progress(int(position[0]), int(position[1]))
        return future.result()
    except BaseException:
        if not future.done():  # who asked does not want it any more
            mover.tell("cancel", task=task)
        raise
