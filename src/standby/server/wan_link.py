"""The pair of WAN accelerators that one disk's transfer goes over, as its session drives them.

Both are relays between the proxies and decide nothing: what was read, and what is there, is said by
the disk's sender and receiver as without them. So what an accelerator tells at the end is for the
report only, and one that does not tell costs that alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from standby.errors import (
    CertificateRefused,
    ConfigurationError,
    LinkError,
    MoverDied,
    MoverFault,
    ProtocolError,
    RefusedByPeer,
    StandbyError,
    TicketRefused,
)
from standby.model.report import WanReport
from standby.server.crew import Handle

DEFINITE = (
    ProtocolError,
    CertificateRefused,
    RefusedByPeer,
    TicketRefused,
    ConfigurationError,
    MoverFault,
)
"""What another attempt over the same pair would end with again."""

TRIES_MAX = 2
SHORT_S = 60.0
"""So many attempts in a row that broke off within that time: the pair does not work, though both of
its movers answer. A line that drops now and then is tried again through the pair."""

FAILED_TELLING_S = 2.0
"""How long a disk whose attempt failed waits to know what that did: one end of it may hang."""

TELLING_S = 20.0
"""How long the accelerators of a disk that is done are waited for: longer than until a mover is
called again whose control link dropped (`server.service_mover.Reconnect.every_s`)."""

MOVER_MODES = {"auto": "auto", "cache": "digest", "full": "full"}
"""What movers call the modes of a pair."""


@dataclass(frozen=True, slots=True)
class WanPair:
    """What one disk's task needs to know of its accelerators. `at_source` and `at_target` are the
    connections of the two, as arguments of their verbs. `is_optional`: the disk may go directly
    where they fail. The key is for those two calls alone."""

    name: str
    source: Handle
    target: Handle
    is_optional: bool
    mode: str = ""
    at_source: Mapping[str, Any] = field(default_factory=dict, repr=False)
    at_target: Mapping[str, Any] = field(default_factory=dict, repr=False)
    key: str = field(default="", repr=False)


class WanLink:
    """The two ends that a pair adds to one attempt at a disk."""

    def __init__(self, pair: WanPair) -> None:
        self.pair = pair
        self._sending: Future[Any] | None = None
        self._receiving: Future[Any] | None = None

    def start(self, send: Mapping[str, Any], path: str) -> None:
        """Have both relay the task that `send`, the arguments of its `send_disk`, describes; the
        target's receiver was started. `path` is what that one calls the replica's folder. Raises
        what keeps one of them from being asked."""
        pair = self.pair
        names = ("task", "session", "replica", "disk_id", "virtual_size")
        task = {name: send[name] for name in names} | {"key": pair.key}
        self._receiving = pair.target.start("wan_receive", **task, **pair.at_target, path=path)
        self._sending = pair.source.start(
            "wan_send",
            **task,
            **pair.at_source,
            mode=MOVER_MODES[pair.mode],
            weight=send["weight"],
        )

    def rejoin(self, task: str) -> None:
        """Go on with what another process began; an accelerator that cannot be asked does not
        matter to that."""
        with contextlib.suppress(StandbyError):
            self._receiving = self.pair.target.start("rejoin", task=task, verb="wan_receive")
        with contextlib.suppress(StandbyError):
            self._sending = self.pair.source.start("rejoin", task=task, verb="wan_send")

    @property
    def ends(self) -> dict[Future[Any], Handle]:
        """The calls under way, and who answers them."""
        found = ((self._sending, self.pair.source), (self._receiving, self.pair.target))
        return {future: handle for future, handle in found if future is not None}

    def cancel(self, task: str) -> None:
        """The attempt failed: who still relays for it is to end."""
        for future, handle in self.ends.items():
            if not future.done():
                with contextlib.suppress(StandbyError):
                    handle.start_now("cancel", task=task)

    def told_of_failure(self, task: str) -> WanReport:
        """What the two did for a disk before that attempt failed, as far as they say so soon."""
        asked = [
            handle.start_now("wan_told", disk=task)
            for handle in (self.pair.source, self.pair.target)
        ]
        found = [future for future in asked if future is not None]
        wait(found, FAILED_TELLING_S)
        told: dict[str, Any] = {}
        for future in found:
            told |= {side: it for side, it in (_result(future) or {}).items() if it is not None}
        return self._report(told.get("sent") or {}, told.get("received") or {})

    def told(self) -> tuple[WanReport, list[str]]:
        """What the two did for a disk that is done, as far as they say so in time, and what they
        warn of. One whose control link dropped is waited for as well: after a server was cut off,
        its proxies may be back first."""
        wait(self.ends, TELLING_S)
        sent, received = _result(self._sending), _result(self._receiving)
        warnings = [str(text) for text in (*_texts(sent), *_texts(received))]
        silent = [
            handle.name
            for result, handle in ((sent, self.pair.source), (received, self.pair.target))
            if result is None
        ]
        if silent:
            warnings.append(f"WAN accelerator {' and '.join(silent)} did not tell what it did")
        return self._report(sent or {}, received or {}), warnings

    def _report(self, sent: Mapping[str, Any], received: Mapping[str, Any]) -> WanReport:
        return WanReport(
            name=self.pair.name,
            mode=str(sent.get("mode", "")),
            sent=int(sent.get("sent", 0)),
            received=int(sent.get("received", 0)),
            wire_sent=int(sent.get("wire_sent", 0)),
            wire_received=int(sent.get("wire_received", 0)),
            direct=int(sent.get("direct", 0)),
            pieces={str(kind): int(n) for kind, n in sent.get("pieces", {}).items()},
            bytes={str(kind): int(n) for kind, n in sent.get("bytes", {}).items()},
            resent=int(sent.get("resent", 0)),
            asked=int(received.get("asked", 0)),
            found=int(received.get("found", 0)),
            cached=int(received.get("cached", 0)),
            cpu_s={
                "source": float(sent.get("cpu_s", 0)),
                "target": float(received.get("cpu_s", 0)),
            },
        )

    # --- when it fails -----------------------------------------------------------------------

    def why_left(self, error: StandbyError, tries: WanTries) -> str:
        """Why the disk goes on directly after `error`, '' where it is to be tried as any other."""
        failures = [error, *(end.exception() for end in self.ends if end.done())]
        definite = [failure for failure in failures if isinstance(failure, DEFINITE)]
        if not self.pair.is_optional:
            return ""
        if not isinstance(error, (LinkError, MoverDied, *DEFINITE)) and not definite:
            return ""  # one of the proxies' own
        for handle in (self.pair.source, self.pair.target):
            if not handle.is_connected:
                return f"mover {handle.name} does not answer ({error})"
        if definite:
            return str(definite[0])
        if tries.short >= TRIES_MAX:
            return f"{tries.short} attempts in a row broke off ({error})"
        return ""


@dataclass(slots=True)
class WanTries:
    """How often in a row a disk's transfer over its pair broke off soon."""

    short: int = 0

    def ended(self, after_s: float) -> None:
        """An attempt broke off so long after it began."""
        self.short = self.short + 1 if after_s < SHORT_S else 0


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in dict.fromkeys((*one, *other))}


def added(one: WanReport, other: WanReport) -> WanReport:
    """What two attempts did together."""
    sides = dict.fromkeys((*one.cpu_s, *other.cpu_s))
    return WanReport(
        name=other.name,
        mode=other.mode or one.mode,
        sent=one.sent + other.sent,
        received=one.received + other.received,
        wire_sent=one.wire_sent + other.wire_sent,
        wire_received=one.wire_received + other.wire_received,
        direct=one.direct + other.direct,
        pieces=_added(one.pieces, other.pieces),
        bytes=_added(one.bytes, other.bytes),
        resent=one.resent + other.resent,
        asked=one.asked + other.asked,
        found=one.found + other.found,
        cached=one.cached + other.cached,
        cpu_s={side: one.cpu_s.get(side, 0.0) + other.cpu_s.get(side, 0.0) for side in sides},
    )


def _result(future: Future[Any] | None) -> dict[str, Any] | None:
    if future is None or not future.done() or future.exception() is not None:
        return None
    result = future.result()
    return result if isinstance(result, dict) else {}


def _texts(result: Mapping[str, Any] | None) -> list[Any]:
    return list((result or {}).get("warnings", ()))
