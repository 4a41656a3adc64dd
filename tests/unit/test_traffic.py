"""Traffic rules at the server: what is lent never exceeds the limit, and is shared fairly."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standby.errors import ConfigurationError
from standby.server.config import load_config
from standby.server.traffic import FLOOR_SHARE, LASTS_S, TrafficLedger, fair_shares
from standby.wire.throttle import Demand, Lease

MB = 1e6


def greedy(weight: float = 1.0, lease: int = 0) -> Demand:
    return Demand(0.0, True, weight, lease)


def test_movers_that_want_more_share_by_weight() -> None:
    shares = fair_shares(12 * MB, {"a": greedy(1), "b": greedy(2)})
    assert shares == {"a": pytest.approx(4 * MB), "b": pytest.approx(8 * MB)}


def test_who_wants_less_leaves_the_rest_to_the_others() -> None:
    demands = {"a": Demand(0.8 * MB, False, 5, 0), "b": greedy(1), "c": greedy(2)}
    shares = fair_shares(10 * MB, demands)
    assert shares["a"] == pytest.approx(1 * MB)
    assert shares["b"] == pytest.approx(3 * MB)
    assert shares["c"] == pytest.approx(6 * MB)


def test_what_nobody_wants_is_there_for_whoever_begins() -> None:
    shares = fair_shares(10 * MB, {"a": Demand(0, False, 1, 0), "b": Demand(MB, False, 1, 0)})
    assert sum(shares.values()) == pytest.approx(10 * MB)
    assert shares["a"] > 4 * MB


some_demands = st.builds(
    Demand,
    st.floats(0, 1e9),
    st.booleans(),
    st.floats(0, 100),
    st.just(0),
)


@given(st.floats(1e5, 1e10), st.dictionaries(st.text(max_size=3), some_demands, min_size=1))
def test_shares_add_up_to_the_limit(limit_bps: float, demands: dict[str, Demand]) -> None:
    shares = fair_shares(limit_bps, demands)
    assert sum(shares.values()) == pytest.approx(limit_bps)
    assert all(share >= 0 for share in shares.values())


def test_a_mover_alone_has_the_whole_limit() -> None:
    lease = TrafficLedger().lend("a", greedy(), 10 * MB, 0.0)
    assert lease == Lease(1, 10 * MB, 10 * MB * FLOOR_SHARE, LASTS_S)


def test_a_second_mover_gets_its_share_when_the_first_holds_less() -> None:
    ledger = TrafficLedger()
    first = ledger.lend("a", greedy(), 10 * MB, 0.0)
    second = ledger.lend("b", greedy(), 10 * MB, 1.0)
    assert second.rate_bps == 10 * MB * FLOOR_SHARE
    lower = ledger.lend("a", greedy(lease=first.number), 10 * MB, 3.0)
    assert lower.rate_bps == pytest.approx(5 * MB)
    # The answer may be lost on its way: the first lease counts still.
    assert ledger.lend("b", greedy(lease=second.number), 10 * MB, 4.0).rate_bps == second.rate_bps
    ledger.lend("a", greedy(lease=lower.number), 10 * MB, 6.0)
    held = ledger.lend("b", greedy(lease=second.number), 10 * MB, 7.0)
    assert held.rate_bps == pytest.approx(5 * MB)


def test_a_mover_that_is_silent_counts_with_its_floor() -> None:
    ledger = TrafficLedger()
    ledger.lend("a", greedy(), 10 * MB, 0.0)
    ledger.lend("b", greedy(), 10 * MB, 1.0)
    lent = ledger.lent_bps(2 * LASTS_S + 1)
    assert lent["a"] == 10 * MB * FLOOR_SHARE
    again = ledger.lend("b", greedy(), 10 * MB, 2 * LASTS_S + 2)
    assert again.rate_bps == 10 * MB * (1 - FLOOR_SHARE)


def test_what_a_lost_mover_wanted_goes_to_the_others_when_its_lease_has_run_out() -> None:
    """It had the links of four disks; the one that goes on has those of one."""
    ledger = TrafficLedger()
    ledger.lend("a", greedy(weight=4), 10 * MB, 0.0, is_told=True)
    number, rates = 0, {}
    for now in range(1, 25):
        lease = ledger.lend("b", greedy(lease=number), 10 * MB, float(now), is_told=True)
        number, rates[now] = lease.number, lease.rate_bps
    assert rates[LASTS_S - 1] == 10 * MB * FLOOR_SHARE  # as long as it may be sending
    assert rates[LASTS_S] == 10 * MB * (1 - FLOOR_SHARE)
    assert rates[24] == rates[LASTS_S]


def test_a_lease_that_answers_nothing_counts_until_it_is_over_wherever_it_was_under_way() -> None:
    ledger = TrafficLedger()
    ledger.lend("a", greedy(), 10 * MB, 0.0)
    assert ledger.lent_bps(2 * LASTS_S - 1)["a"] == 10 * MB
    assert ledger.lent_bps(2 * LASTS_S)["a"] == 10 * MB * FLOOR_SHARE


def test_outside_of_its_hours_a_rule_lends_without_limit() -> None:
    ledger = TrafficLedger()
    ledger.lend("a", greedy(), 10 * MB, 0.0)
    lease = ledger.lend("a", greedy(), None, 1.0, floor_bps=1e4, lasts_s=7200)
    assert lease == Lease(2, None, 1e4, 7200)
    assert ledger.lent_bps(2.0) == {"a": 1e4}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.floats(0, 2e6),
            st.booleans(),
            st.integers(1, 4),
            st.booleans(),
            st.floats(0, 2 * LASTS_S),
            st.floats(0, LASTS_S),
        ),
        max_size=60,
    )
)
def test_movers_never_send_more_than_the_limit_whatever_gets_lost_or_is_late(
    events: list[tuple[str, float, bool, int, bool, float, float]],
) -> None:
    """A lease that `arrives` late is over no later for it, whether it answers a demand or not."""
    ledger = TrafficLedger()
    limit_bps = 1 * MB
    held: dict[str, tuple[Lease, float]] = {}
    now = 0.0
    for mover, rate_bps, is_limited, weight, arrives, pause_s, way_s in events:
        now += pause_s
        number = held[mover][0].number if mover in held else 0
        if mover in held:  # it has arrived before it is told of
            held[mover] = (held[mover][0], min(held[mover][1], now + LASTS_S))
        demand = Demand(rate_bps, is_limited, weight, number)
        lease = ledger.lend(mover, demand, limit_bps, now, is_told=way_s < 1)
        if arrives:
            held[mover] = (lease, now + lease.lasts_s + (0 if lease.is_answer else way_s))
        sending = [
            found.rate_bps if now < until else found.floor_bps for found, until in held.values()
        ]
        assert sum(rate or 0.0 for rate in sending) <= limit_bps * (1 + 4 * FLOOR_SHARE)


# --- the file --------------------------------------------------------------------------------

RULE = """
[standby]
installation = "main-site"
time_zone = "Europe/Berlin"
[traffic.wan]
from = ["10.1.0.0/16", "fd00::/8"]
to = "10.2.0.7"
limit = "100 Mbit/s"
times = ["mon-fri 08:00-18:00", "sat 22:00-02:00"]
"""


def test_a_rule_is_read_with_its_hours(tmp_path: Path) -> None:
    (tmp_path / "standby.toml").write_text(RULE, encoding="utf-8")
    config = load_config(tmp_path)
    rule = config.traffic["wan"]
    assert rule.limit_bps == 12_500_000
    assert rule.spec.covers("10.1.2.3", "10.2.0.7")
    assert not rule.spec.covers("10.2.0.7", "10.1.2.3")
    berlin = ZoneInfo("Europe/Berlin")
    for text, expected in (
        ("2026-11-23T08:00", 12_500_000),
        ("2026-11-23T07:59", None),
        ("2026-11-23T18:00", None),
        ("2026-11-28T23:00", 12_500_000),
        ("2026-11-29T01:59", 12_500_000),
        ("2026-11-29T02:00", None),
    ):
        at = datetime.fromisoformat(text).replace(tzinfo=berlin)
        assert rule.limit_at(at, config.time_zone) == expected, text


def test_a_rule_without_hours_holds_always(tmp_path: Path) -> None:
    text = RULE.replace('times = ["mon-fri 08:00-18:00", "sat 22:00-02:00"]', "")
    (tmp_path / "standby.toml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path)
    at = datetime(2026, 11, 29, 3, tzinfo=ZoneInfo("UTC"))
    assert config.traffic["wan"].limit_at(at, config.time_zone) == 12_500_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"100 Mbit/s"', '"100 Mbit"', "is not a rate"),
        ('"100 Mbit/s"', '"900 kbit/s"', "too low. at least 1 Mbit/s"),
        ('limit = "100 Mbit/s"', "", "limit: is missing"),
        ('"10.2.0.7"', '"10.2.0.7/16"', "has host bits set"),
        ('"10.2.0.7"', '"px1.example"', "does not appear to be"),
        ("08:00-18:00", "8-18", "is no time of day"),
        ("times =", "time =", "unknown key. did you mean times?"),
        ('to = "10.2.0.7"\n', 'to = "10.2.0.7"\nfrm = 1\n', "frm: unknown key"),
        ('from = ["10.1.0.0/16", "fd00::/8"]\nto = "10.2.0.7"', "", "and so is to"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RULE
    (tmp_path / "standby.toml").write_text(RULE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_config(tmp_path)
    assert message in str(caught.value)
