"""The door to one Hyper-V host: a verb and a request in, a typed answer out."""

from __future__ import annotations

import base64
import weakref
from types import TracebackType
from typing import Any

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import (
    HostAnswerWrong,
    HostCallFailed,
    HostQuotaReached,
    HostShellLost,
    HostUnreachable,
)
from standby.host.hyperv import clixml
from standby.host.hyperv.answers import Answer, read_answer
from standby.host.hyperv.connections import Deadline
from standby.host.hyperv.credentials import Access, SecretReader
from standby.host.hyperv.payload import payload
from standby.host.hyperv.pool import Pool
from standby.host.hyperv.quotas import Quotas
from standby.host.hyperv.sessions import CLEANUP_S, Session
from standby.host.hyperv.verbs import Value, Verb

ATTEMPTS_MAX = 3
PAUSE_S = 0.5
"""Before the second attempt; before the third twice that."""


class Door:
    """One host's door; safe to use from many threads at once, each with a session of its own.

    `read_secret` reads what the configuration refers to; `scripts_max` bounds how many scripts run
    on the host at once, below the host's own quota. What fails is tried again where that is safe:
    before the script can have begun always, after that where the verb is repeatable. Close the door
    to leave no shell on the host; a door that is forgotten closes when it is collected, or when the
    process ends.
    """

    def __init__(
        self,
        access: Access,
        read_secret: SecretReader,
        clock: Clock = SYSTEM_CLOCK,
        *,
        scripts_max: int = 8,
        cleanup_s: float = CLEANUP_S,
    ) -> None:
        self.host = access.host
        self.access = access
        self._clock = clock
        self._pool = Pool(access, read_secret, clock, scripts_max, cleanup_s)
        self._finalizer = weakref.finalize(self, self._pool.close)

    def run(
        self, verb: Verb[Value], request: Any, deadline_s: float | None = None
    ) -> Answer[Value]:
        """What the host answers to `verb`, within `deadline_s` (the verb's own when None).

        A HostCallFailed says what went wrong with the whole. A failure for one machine of the
        request's list does not raise: it stands in the answer.
        """
        deadline = Deadline(
            self.host, verb.name, verb.deadline_s if deadline_s is None else deadline_s, self._clock
        )
        mark = new_token()
        data = payload(verb.script(), request, mark)
        attempt = 1
        while True:
            try:
                with self._pool.session(deadline) as session:
                    return self._once(session, verb, data, mark, deadline)
            except _Lost as lost:
                if attempt == ATTEMPTS_MAX or not (lost.is_safe or verb.is_repeatable):
                    raise lost.error from lost.error.__cause__
                left_s = deadline.left_s(f"trying again after: {lost.error}")
                self._clock.sleep(min(PAUSE_S * attempt, left_s))
                attempt += 1

    def _once(
        self, session: Session, verb: Verb[Value], data: bytes, mark: str, deadline: Deadline
    ) -> Answer[Value]:
        session.has_begun = False
        try:
            output = session.run(data, deadline, self._pool.quotas(session, deadline))
        except (HostUnreachable, HostShellLost, HostQuotaReached) as exc:
            if isinstance(exc, HostQuotaReached):
                self._pool.forget_quotas()
            error: HostCallFailed = exc
            if session.has_begun and not isinstance(exc, HostShellLost):
                error = HostShellLost(self.host, verb.name, str(exc))
                error.__cause__ = exc
            raise _Lost(error, is_safe=not session.has_begun) from exc
        found = clixml.records(output.stderr)
        said = clixml.first_lines(found)
        if output.exit_code and not said:
            said = (f"exit code {output.exit_code}",)
        try:
            return read_answer(
                self.host, verb, mark, output.stdout, said, clixml.texts(found, "warning")
            )
        except HostAnswerWrong as exc:
            if not output.has_gaps:
                raise
            lost = HostShellLost(self.host, verb.name, "a part of its answer went with it")
            raise _Lost(lost, is_safe=False) from exc

    def printed(self, text: str, deadline_s: float = 300.0) -> str:
        """What a script prints when it is run by itself, without prelude and request: for the
        self-test of the language. Nothing is tried again."""
        deadline = Deadline(self.host, "language", deadline_s, self._clock)
        data = base64.b64encode(text.encode("utf-8"))
        with self._pool.session(deadline) as session:
            output = session.run(data, deadline, self._pool.quotas(session, deadline))
        return output.stdout.decode("utf-8", "replace")

    def quotas(self, deadline_s: float = 60.0) -> Quotas:
        """The host's limits; the smallest known ones where this account may not read them."""
        deadline = Deadline(self.host, "reading quotas", deadline_s, self._clock)
        with self._pool.session(deadline) as session:
            return self._pool.quotas(session, deadline)

    @property
    def leftovers(self) -> int:
        """Shells that could not be deleted yet; the next call tries again."""
        return self._pool.leftovers

    def close(self) -> None:
        """Delete every idle shell on the host and end the connections; what is busy does so when it
        is done. The door can be used again."""
        self._pool.close()

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Lost(Exception):
    """A call that may be tried again: `is_safe` whatever the verb, for it had not begun."""

    def __init__(self, error: HostCallFailed, *, is_safe: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_safe = is_safe
