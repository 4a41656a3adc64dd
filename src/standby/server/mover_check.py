"""Of the infrastructure check: the server's connection to each mover, and what it says of itself.

A connection of the check's own: one that is away is not waited for as sessions do.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import standby
from standby.clock import Clock
from standby.errors import (
    CertificateError,
    CertificateRefused,
    LinkError,
    LinkTimeout,
    RefusedByPeer,
    StandbyError,
    VersionMismatch,
    error_from_wire,
)
from standby.host.seen_paths import mapped_path
from standby.server.config import Config, MoverConfig
from standby.server.fleet import Fleet, needed_roles
from standby.wire.link import Link
from standby.wire.messages import Call, Failed, Reply

SERVER = "server"
"""Who sees what the server itself tries."""

SKEW_MAX_S = 30.0
"""Tickets of a task allow for 60 s; more than half of that wants to be looked at."""
DAYS_MIN = 14
"""Certificates renew themselves well before this is left of them."""
ANSWER_S = 30.0


class Level(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: `what` was tried, seen from `seen_from`; `text` what was found, `hint` what to do
    about it."""

    level: Level
    seen_from: str
    what: str
    text: str
    hint: str = ""


class Movers:
    """A control connection to each mover, for the checks alone."""

    def __init__(self, fleet: Fleet, config: Config, clock: Clock) -> None:
        self._fleet = fleet
        self._config = config
        self._clock = clock
        self._links: dict[str, _Asking] = {}
        self.described: dict[str, dict[str, Any]] = {}

    def connected(self, mover: MoverConfig) -> list[Check]:
        """Connect to the mover, and what it says of itself."""
        what = f"mover {mover.name}"
        try:
            link = self._fleet.new_link(mover.name)
        except StandbyError as exc:
            return [Check(Level.ERROR, SERVER, what, str(exc), _advice(exc, mover))]
        self._links[mover.name] = asking = _Asking(link, mover.name)
        try:
            told = asking.call("join", generation=0)  # a guest: fences nobody, is fenced by nobody
            before = self._clock.now()
            theirs = asking.call("probe_clock")
            after = self._clock.now()
        except StandbyError as exc:
            return [Check(Level.ERROR, SERVER, what, str(exc), _advice(exc, mover))]
        self.described[mover.name] = told
        return [
            Check(Level.OK, SERVER, what, f"connected at {mover.address}"),
            *self._judged(mover.name, what, told),
            _clock_check(what, datetime.fromisoformat(theirs), before, after),
            *self._certificate(asking, what),
        ]

    def _judged(self, name: str, what: str, told: dict[str, Any]) -> Iterator[Check]:
        if told["version"] == standby.__version__:
            yield Check(Level.OK, SERVER, f"{what} release", told["version"])
        else:
            text = f"{told['version']}; this server is {standby.__version__}"
            hint = "Bring both to the same release"
            yield Check(Level.WARNING, SERVER, f"{what} release", text, hint)
        missing = [role for role in needed_roles(self._config, name) if role not in told["roles"]]
        roles = ", ".join(told["roles"])
        if missing and _is_used(self._config, name):
            text = f"{roles}; standby.toml needs {', '.join(missing)} of it"
            hint = f"Add them to roles in {name}'s mover.toml, with a certificate for them"
            yield Check(Level.ERROR, SERVER, f"{what} roles", text, hint)
        else:
            yield Check(Level.OK, SERVER, f"{what} roles", roles)
        if any(wan.target == name for wan in self._config.wans.values()) and not told.get("cache"):
            text = "it keeps no global cache, so nothing is found again"
            hint = f'Write cache = "PATH" into [wan] of {name}\'s mover.toml'
            yield Check(Level.WARNING, SERVER, f"{what} cache", text, hint)
        if not told["roots"] and told["roles"] != ["wan"]:
            hint = f"Add [roots] to {name}'s mover.toml"
            yield Check(Level.WARNING, SERVER, f"{what} roots", "it may open no folder", hint)
        kept = [f"{key} = {value}" for key, value in sorted(told["protect"].items()) if value]
        if "target" in told["roles"]:
            text = ", ".join(kept) if kept else "the target has no rules of its own"
            yield Check(Level.OK, SERVER, f"{what} rules", text)

    def _certificate(self, asking: _Asking, what: str) -> list[Check]:
        try:
            told = asking.call("certificate_request")
        except StandbyError:
            return []  # one without TLS has none
        ends = datetime.fromisoformat(told["not_after"])
        days = (ends - self._clock.now()).days
        text = f"{days} days left, until {ends.astimezone(UTC):%Y-%m-%d}"
        if days >= DAYS_MIN:
            return [Check(Level.OK, SERVER, f"{what} certificate", text)]
        hint = "It should have renewed itself: is `standby server` connected, and the clock right?"
        return [Check(Level.WARNING, SERVER, f"{what} certificate", text, hint)]

    def call(self, mover: str, verb: str, **arguments: Any) -> Any:
        """Ask a mover that was connected; LinkError for one that was not."""
        asking = self._links.get(mover)
        if asking is None or mover not in self.described:
            raise LinkError(mover, "is not connected: see above")
        return asking.call(verb, **arguments)

    def place(self, mover: str, path: str) -> str | None:
        """The path in the mover's words, None where it lies below none of its roots."""
        roots = self.described[mover]["roots"]
        return mapped_path(path, {folder: f"{name}:" for name, folder in roots.items()})

    def close(self) -> None:
        """End the connections."""
        for asking in self._links.values():
            asking.close()


class _Asking:
    """One question at a time over a control link, each answered in time or never."""

    def __init__(self, link: Link, mover: str) -> None:
        self._link = link
        self._mover = mover
        self._lock = threading.Lock()
        self._number = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"ask {mover}")

    def call(self, verb: str, **arguments: Any) -> Any:
        """The verb's result, or its error; LinkTimeout after ANSWER_S."""
        with self._lock:
            future = self._pool.submit(self._answer, verb, arguments)
            try:
                return future.result(ANSWER_S)
            except FutureTimeout:
                self._link.shutdown()
                problem = f"no answer to {verb} within {ANSWER_S:.0f} s"
                raise LinkTimeout(self._mover, problem) from None

    def _answer(self, verb: str, arguments: dict[str, Any]) -> Any:
        self._number += 1
        self._link.send(Call(self._number, verb, arguments))
        while True:
            message, _ = self._link.receive()
            if isinstance(message, Failed) and message.id in (0, self._number):
                raise error_from_wire(message.error)
            if isinstance(message, Reply) and message.id == self._number:
                return message.result

    def close(self) -> None:
        """End the connection."""
        self._link.shutdown()
        self._pool.shutdown(wait=True)
        self._link.close()


def _clock_check(what: str, theirs: datetime, before: datetime, after: datetime) -> Check:
    """How far the mover's clock is from ours: its time lies between ours before and after."""
    ahead_s = (theirs - after).total_seconds()
    behind_s = (before - theirs).total_seconds()
    skew_s = max(ahead_s, behind_s, 0.0)
    which = "ahead" if ahead_s > behind_s else "behind"
    if skew_s < SKEW_MAX_S:
        return Check(Level.OK, SERVER, f"{what} clock", "as the server's")
    hint = "Have both take their time from the same source (NTP)"
    return Check(Level.ERROR, SERVER, f"{what} clock", f"{skew_s:.0f} s {which}", hint)


def _is_used(config: Config, mover: str) -> bool:
    tables = (config.proxies, config.hosts, config.stores)
    is_relay = any(mover in (wan.source, wan.target) for wan in config.wans.values())
    return is_relay or any(item.mover == mover for table in tables for item in table.values())


def _advice(error: StandbyError, mover: MoverConfig) -> str:
    """What to do about a mover that cannot be connected to."""
    if isinstance(error, CertificateError):
        return "Run `standby ca init` on the server's machine, or correct [server] identity"
    if isinstance(error, CertificateRefused):
        return f"Is another mover at {mover.address}? Else enrol {mover.name} again"
    if isinstance(error, RefusedByPeer):
        return f"Is the server of the same installation as {mover.name}, and not revoked?"
    if isinstance(error, VersionMismatch):
        return "Bring both machines to the same release"
    return f"Does `standby mover run` run there, and does the firewall let {mover.address} through?"
