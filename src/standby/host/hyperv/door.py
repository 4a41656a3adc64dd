"""The door to one Hyper-V host: a verb and a request in, a typed answer out."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from standby.clock import SYSTEM_CLOCK, Clock
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.credentials import Access, SecretReader
from standby.host.hyperv.verbs import Value, Verb


class Door:
    """One host's door; safe to use from many threads at once.

    `read_secret` reads what the configuration refers to; `shells_max` bounds how many scripts run
    on the host at once, below the host's own quota.
    """

    def __init__(
        self,
        access: Access,
        read_secret: SecretReader,
        clock: Clock = SYSTEM_CLOCK,
        *,
        shells_max: int = 8,
    ) -> None:
        self.host = access.host
        raise NotImplementedError

    def run(
        self, verb: Verb[Value], request: Any, deadline_s: float | None = None
    ) -> Answer[Value]:
        """What the host answers to `verb`, within `deadline_s` (the verb's own when None).

        A HostCallFailed says what went wrong. A failure for one machine of the request's list does
        not raise: it stands in the answer.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Delete every shell on the host and end the connections. The door can be used again."""

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
