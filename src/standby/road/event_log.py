"""What a service mover says of itself: one line per event, for people or as JSON."""

from __future__ import annotations

import json
import threading
import traceback
from typing import TextIO

from standby.clock import SYSTEM_CLOCK, Clock


class EventLog:
    """Lines on a stream (None: nowhere). Thread-safe; each line is written whole."""

    def __init__(
        self, stream: TextIO | None, *, as_json: bool = False, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._stream = stream
        self._as_json = as_json
        self._clock = clock
        self._lock = threading.Lock()

    def say(self, event: str, **facts: str) -> None:
        """One event with its facts: `task`, `session`, `server`, `peer` …"""
        if self._stream is None:
            return
        at = self._clock.now().isoformat(timespec="milliseconds")
        if self._as_json:
            line = json.dumps({"at": at, "event": event} | facts)
        else:
            told = "".join(f" {key}={_plain(value)}" for key, value in facts.items() if value)
            line = f"{at} {event}{told}"
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def trace(self) -> None:
        """The traceback of the exception that is handled now: a bug's."""
        self.say("traceback", text=traceback.format_exc())


def _plain(value: str) -> str:
    """Quoted where it would read as several facts, or begin a line of its own."""
    return value if value.isprintable() and " " not in value else json.dumps(value)
