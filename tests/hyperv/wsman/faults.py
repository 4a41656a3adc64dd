"""The faults a WinRM service can show, each armed for the next messages of one kind."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

ACTIONS = ("Setup", "Create", "Command", "Send", "Receive", "Signal", "Delete", "Get")

KINDS = (
    "unauthorized",  # HTTP 401
    "hang",  # no answer, until the server ends or `let_go`
    "drop",  # the connection ends before the message is acted on
    "drop-answer",  # it is acted on, and the connection ends amid the answer
    "timed-out",  # fault 2150858793
    "no-shell",  # fault 2150858843, and the shell is gone indeed
    "quota",  # subcode QuotaLimit
    "denied",  # Code 5, subcode AccessDenied
    "other",  # any other fault
    "unavailable",  # HTTP 503 without a body
    "forbidden",  # HTTP 403 without a body
    "garbled",  # HTTP 200 with a body that is not XML
    "unproven",  # signed in, without the token that proves the host
    "redirected",  # HTTP 302 to another host
    "compressed",  # a body that unpacks to a thousand times its size
    "endless",  # a body that does not end
    "trickle",  # one that does not end either, byte by byte
)


@dataclass
class Faults:
    """Which messages fail, and how the output of commands is cut."""

    split_bytes: int = 0
    """Bytes of each stream in one Receive answer, 0 for all there is; cuts characters too."""
    late_done: bool = False
    """Output comes with CommandState Running; Done and the exit code alone, in a last answer."""
    _armed: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _let_go: threading.Event = field(default_factory=threading.Event)

    def arm(self, action: str, kind: str, times: int = 1) -> None:
        """The next `times` messages of `action` fail by `kind`."""
        assert action in ACTIONS, action
        assert kind in KINDS, kind
        with self._lock:
            self._armed += [(action, kind)] * times

    def take(self, action: str) -> str:
        """The kind of fault for this message, '' for none; it is used up."""
        with self._lock:
            for item in self._armed:
                if item[0] == action:
                    self._armed.remove(item)
                    return item[1]
        return ""

    @property
    def left(self) -> int:
        """Faults armed and not yet shown."""
        with self._lock:
            return len(self._armed)

    def let_go(self) -> None:
        """End every hang, now and later."""
        self._let_go.set()

    def is_over(self, pause_s: float) -> bool:
        """Whether `let_go` was called, after that pause."""
        return self._let_go.wait(pause_s)

    def hang(self) -> None:
        """Return when `let_go` was called."""
        self._let_go.wait(60)
