"""Traffic rules on a mover: how fast the links of a process may send, shared fairly among them.

A *rule* limits what travels from some addresses to others, over all movers together. The backup
server lends each mover a rate for it (`server.traffic`), so that all rates add up to the limit; two
servers, which do not know of each other, both lend all of it. A `Throttle` holds the process to the
lowest of the rates that it was lent, so the sum holds whoever lends. Every link that the rule
covers is a `Flow` of it with a weight. A link asks its `Pace` before each write, some tens of KiB
at a time, so that the rate is smooth.

Servers may have different rules: one reads an older file than the other, or another one. Then every
rule of each of them holds, also for what the others have sent: who answers for a line must be able
to rely on the limit. So none undoes another's rule by having none; what ends a rule is its own
server, which no longer tells of it, or which is gone, its leases over, while another is there.

What is counted is what an interface counts: payload, TLS records, TCP, IP and Ethernet headers.
What the peer sends back (acknowledgements) and what is sent again are not known here.

Control links are counted and never wait (RULES 18): data waits the longer for it.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from standby.clock import SYSTEM_CLOCK, Clock
from standby.units import KiB
from standby.wire.fair_queue import LENDERS_MAX, Demand, Flow, Lease, Throttle

__all__ = ["Demand", "Flow", "Lease", "Pace", "RuleSpec", "Throttle", "Throttles", "wire_bytes"]

TLS_RECORD = 16 * KiB
TLS_OVERHEAD = 22
"""Bytes that a TLS 1.3 record adds: 5 header, 1 content type, 16 tag (RFC 8446, 5.2)."""

PACKET_HEADERS = {socket.AF_INET: 14 + 20 + 32, socket.AF_INET6: 14 + 40 + 32}
"""Ethernet, IP, TCP with timestamps; the MSS that the kernel tells is without the latter."""

MSS_USUAL = 1448


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule as movers know it: networks in CIDR form, () for any address."""

    name: str
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def covers(self, source: str, target: str) -> bool:
        """Whether what `source` sends to `target` falls under it."""
        return _is_in(source, self.sources) and _is_in(target, self.targets)


def _order(rule: RuleSpec) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return rule.name, rule.sources, rule.targets


def _is_in(address: str, networks: Sequence[str]) -> bool:
    if not networks:
        return True
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in ipaddress.ip_network(item, strict=False) for item in networks)


def wire_bytes(count: int, mss: int, headers: int, is_tls: bool) -> int:
    """What an interface counts for `count` bytes written at once to a TCP connection."""
    if is_tls:
        count += -(-count // TLS_RECORD) * TLS_OVERHEAD
    return count + -(-count // mss) * headers


class Pace:
    """What one link asks before it writes. Made by `Throttles.pace`; rules may come and go."""

    def __init__(
        self,
        throttles: Throttles,
        ends: tuple[str, str],
        weight: float,
        *,
        is_control: bool = False,
        is_tls: bool = True,
        mss: int = MSS_USUAL,
        headers: int = PACKET_HEADERS[socket.AF_INET],
    ) -> None:
        self._throttles = throttles
        self._ends = ends
        self._weight = 0.0 if is_control else weight  # it asks for no share
        self._is_control = is_control
        self._is_tls = is_tls
        self._mss = mss
        self._headers = headers
        self._generation = -1
        self._flows: tuple[Flow, ...] = ()

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may be written now, at least one; waits until they may."""
        if self._generation != self._throttles.generation:
            self._bind()
        if not self._flows:
            return wanted
        pieces = [piece for flow in self._flows if (piece := flow.throttle.piece_bytes())]
        if self._is_control or not pieces:
            for flow in self._flows:
                flow.charge(self._counted(wanted))
            return wanted
        # Whole TLS records and packets where possible: what is left over costs headers of its own.
        count = min(wanted, *pieces)
        for flow in self._flows:
            flow.take(self._counted(count))
        return count

    def close(self) -> None:
        """The link is gone."""
        for flow in self._flows:
            flow.close()
        self._flows = ()
        self._generation = self._throttles.generation

    def _counted(self, count: int) -> int:
        return wire_bytes(count, self._mss, self._headers, self._is_tls)

    def _bind(self) -> None:
        self.close()
        self._flows = tuple(
            throttle.flow(self._weight) for throttle in self._throttles.covering(*self._ends)
        )


@dataclass(frozen=True, slots=True)
class _Lender:
    """A server: its rules by name, and whether its connection stands."""

    rules: dict[str, RuleSpec]
    is_there: Callable[[], bool]


class Throttles:
    """All rules of this process. Thread-safe."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: dict[RuleSpec, Throttle] = {}
        self._lenders: dict[str, _Lender] = {}
        """By their names, who told last at the end. Replaced, never changed: read without lock."""
        self.generation = 0
        """Grows when rules come or go; links then look again which of them cover them."""

    def configure(
        self,
        rules: Iterable[RuleSpec],
        lender: str = "",
        is_there: Callable[[], bool] = lambda: True,
    ) -> list[str]:
        """These are the lender's rules from now on; the names of those that hold because of others.
        A new rule has no limit until its first lease. Lenders that are not there, with no lease
        that is not over, are forgotten."""
        told = {rule.name: rule for rule in rules}
        with self._lock:
            others = {
                name: other
                for name, other in self._lenders.items()
                if name != lender and (other.is_there() or self._is_lending(name, other))
            }
            kept = dict(list(others.items())[1 - LENDERS_MAX :])
            self._lenders = {**kept, lender: _Lender(told, is_there)}
            wanted = {rule for item in self._lenders.values() for rule in item.rules.values()}
            if wanted != self._rules.keys():
                self._rules = {
                    rule: self._rules.get(rule) or self._made(rule)
                    for rule in sorted(wanted, key=_order)
                }
                self.generation += 1
        return sorted({rule.name for rule in wanted - set(told.values())})

    def _made(self, rule: RuleSpec) -> Throttle:
        def is_over() -> bool:
            """Whether somebody is there who does not know the rule: it is not asked for where no
            lease counts."""
            lenders = self._lenders.values()
            return any(item.is_there() and rule not in item.rules.values() for item in lenders)

        return Throttle(self._clock, is_over)

    def _is_lending(self, name: str, lender: _Lender) -> bool:
        return any(self._rules[rule].is_lent_by(name) for rule in lender.rules.values())

    def lend(self, name: str, lease: Lease, lender: str = "") -> None:
        """A lease for the lender's rule of that name; one for a rule that is gone is dropped."""
        with self._lock:
            found = self._lenders.get(lender)
            rule = found.rules.get(name) if found is not None else None
            throttle = self._rules[rule] if rule is not None else None
        if throttle is not None:
            throttle.lend(lease, lender)

    def demands(self, lender: str = "") -> dict[str, Demand]:
        """What to tell that lender, by rule of its."""
        with self._lock:
            found = self._lenders.get(lender)
            rules = found.rules.items() if found is not None else ()
            throttles = {name: self._rules[rule] for name, rule in rules}
        return {name: throttle.demand(lender) for name, throttle in throttles.items()}

    def covering(self, source: str, target: str) -> list[Throttle]:
        """The throttles of all rules for what `source` sends to `target`, in order of name, so
        that flows wait for them in one order."""
        with self._lock:
            rules = list(self._rules.items())
        return [throttle for rule, throttle in rules if rule.covers(source, target)]

    def pace(
        self,
        connection: socket.socket,
        *,
        weight: float = 1.0,
        is_control: bool = False,
        is_tls: bool = True,
    ) -> Pace | None:
        """What the link over this connection asks; None where it is no TCP connection."""
        headers = PACKET_HEADERS.get(connection.family)
        if headers is None:
            return None
        mss = MSS_USUAL
        number = getattr(socket, "TCP_MAXSEG", None)
        if number is not None:
            mss = connection.getsockopt(socket.IPPROTO_TCP, number) or MSS_USUAL
        return Pace(
            self,
            (str(connection.getsockname()[0]), str(connection.getpeername()[0])),
            weight,
            is_control=is_control,
            is_tls=is_tls,
            mss=mss,
            headers=headers,
        )
