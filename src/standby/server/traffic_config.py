"""The [traffic.NAME] tables of standby.toml.

    [traffic.wan]
    from = ["10.1.0.0/16"]
    to = ["10.2.0.0/16"]
    limit = "100 Mbit/s"
    times = "mon-fri 08:00-18:00"     # or a list; without it always

A rule limits what all movers and the server together send from addresses of `from` to addresses of
`to`, as interfaces count it, headers included. It holds in one direction: another one with `from`
and `to` exchanged limits failback. What several rules cover obeys all of them. Times are those of
[standby] time_zone.

    [jobs.important]
    weight = 3                        # of the others' 1; of what there is when not all have enough

Data of jobs shares the limit by weight, disk by disk. Control never waits: data waits the longer
for it. A mover that lost the server for 15 s sends at half a percent of the limit until it is back
(`traffic.FLOOR_SHARE`), also when it was outside of the rule's hours and they have begun.

A backup server lends the limit among all movers of the configuration. Where several processes do
(`job start` without a `server` beside a daemon), each mover obeys the lowest rate that it was lent:
the limit holds for all of them together, as far as each process reaches the movers that send: two
that have no mover in common do not know of each other, and lend the limit once each. Where their
files differ, movers keep to the rules of both (`wire.throttle`), and the session that came later
warns of those that are not its own.
"""

from __future__ import annotations

import ipaddress

from standby.server.schedule import Window
from standby.server.schedule_config import parse_window
from standby.server.traffic import TrafficRule
from standby.strict_toml import Table
from standby.units import format_rate, parse_rate

LIMIT_MIN_BPS = 125_000
"""1 Mbit/s: below that, a link shared by some tasks is slower than what counts as stalled."""


def parse_traffic(name: str, table: Table) -> TrafficRule:
    """One table; ConfigurationError for the first thing that is wrong."""
    rule = TrafficRule(
        name,
        _limit(table),
        _networks(table, "from"),
        _networks(table, "to"),
        _windows(table),
    )
    if not rule.sources and not rule.targets:
        raise table.error(
            "from", "is missing, and so is to", 'write for example to = ["10.2.0.0/16"]'
        )
    table.done()
    return rule


def _limit(table: Table) -> int:
    text = table.text("limit")
    try:
        limit_bps = parse_rate(text)
    except ValueError as exc:
        raise table.error("limit", str(exc)) from None
    if limit_bps < LIMIT_MIN_BPS:
        raise table.error("limit", f"{text} is too low", f"at least {format_rate(LIMIT_MIN_BPS)}")
    return limit_bps


def _networks(table: Table, key: str) -> tuple[str, ...]:
    if not table.has(key):
        return ()
    networks = table.text_or_texts(key)
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError as exc:
            hint = "an address, or a network such as 10.2.0.0/16 without host bits"
            raise table.error(key, str(exc), hint) from None
    return networks


def _windows(table: Table) -> tuple[Window, ...]:
    windows = []
    for text in table.text_or_texts("times") if table.has("times") else ():
        try:
            windows.append(parse_window(text))
        except ValueError as exc:
            raise table.error("times", str(exc)) from None
    return tuple(windows)
