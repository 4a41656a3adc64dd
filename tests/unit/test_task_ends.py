"""Who is waited for when one end of a disk's transfer fails, and when accelerators are left."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from standby.errors import (
    DiskIO,
    LinkError,
    MoverAway,
    MoverFault,
    RefusedByPeer,
    StandbyError,
    TicketRefused,
)
from standby.server import task_ends, wan_link
from standby.server.task_ends import both, one_end_failed
from standby.server.wan_link import WanLink, WanPair, WanTries


class Mover:
    """A mover that notes what it is asked; `ends` what a word to it ends, `answer` what it says."""

    def __init__(self, name: str, *, is_connected: bool = True) -> None:
        self.name = name
        self.is_connected = is_connected
        self.asked: list[str] = []
        self.ends: Future[Any] | None = None
        self.answer: Future[Any] | None = None

    def start(self, verb: str, /, **arguments: Any) -> Future[Any]:
        self.asked.append(verb)
        if verb == "cancel" and self.ends is not None and not self.ends.done():
            self.ends.set_exception(LinkError(self.name, "ended"))
        return self.answer or Future()

    start_now = call = start


def failed(error: StandbyError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def ended(result: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result or {})
    return future


def test_an_end_that_waits_in_vain_is_told_to_end_when_another_one_failed() -> None:
    source, target = Mover("source"), Mover("target")
    receiving: Future[Any] = Future()
    target.ends = receiving
    sending = failed(LinkError("target", "closed"))
    one_end_failed("task", {sending: source, receiving: target})
    assert target.asked == ["cancel"]
    with pytest.raises(LinkError):
        both(sending, receiving)


def test_an_end_that_is_away_is_not_waited_for() -> None:
    ends = {
        failed(LinkError("b", "closed")): Mover("source"),
        Future(): Mover("target", is_connected=False),
    }
    with pytest.raises(LinkError, match="closed"):
        one_end_failed("task", ends)


def test_where_an_accelerator_is_away_the_receiver_is_still_waited_for() -> None:
    receiver, relay = Mover("target"), Mover("relay", is_connected=False)
    receiving: Future[Any] = Future()
    receiver.ends = receiving
    sending = failed(LinkError("relay", "closed"))
    ends: dict[Future[Any], Any] = {sending: Mover("source"), receiving: receiver, Future(): relay}
    one_end_failed("task", ends, None, (sending, receiving))
    assert receiving.done()
    assert relay.asked == []


def test_what_sender_and_receiver_did_is_enough() -> None:
    sending, receiving = ended(), ended()
    ends: dict[Future[Any], Any] = {sending: Mover("source"), receiving: Mover("target")}
    one_end_failed("task", {**ends, Future(): Mover("relay")}, None, (sending, receiving))
    gone = failed(LinkError("b", "closed"))
    one_end_failed("task", {**ends, gone: Mover("relay")}, None, (sending, receiving))
    assert both(sending, receiving) == ({}, {})


def test_an_accelerator_that_cannot_begin_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_ends, "GRACE_S", 5.0)
    source, target = Mover("source"), Mover("target")
    sending: Future[Any] = Future()
    receiving: Future[Any] = Future()
    source.ends, target.ends = sending, receiving
    refused = failed(TicketRefused("source", "task", "it is none"))
    ends: dict[Future[Any], Any] = {sending: source, receiving: target, refused: Mover("relay")}
    one_end_failed("task", ends, None, (sending, receiving))
    assert source.asked == target.asked == ["cancel"]


# --- when the pair is left ---------------------------------------------------------------------


def link(*results: Future[Any], is_optional: bool = True, is_connected: bool = True) -> WanLink:
    pair = WanPair("main", Mover("wa"), Mover("wb", is_connected=is_connected), is_optional)
    made = WanLink(pair)
    made._sending, made._receiving = results if results else (Future(), Future())
    return made


LOST = LinkError("wa", "the other side closed the connection")


def test_a_connection_that_drops_is_tried_again_over_the_pair_but_not_for_ever() -> None:
    tries = WanTries()
    tries.ended(5)
    assert link().why_left(LOST, tries) == ""
    tries.ended(5)
    assert "2 attempts in a row broke off" in link().why_left(LOST, tries)
    tries.ended(3600)  # it had worked for an hour
    assert link().why_left(LOST, tries) == ""


def test_a_pair_of_which_one_is_away_is_left_at_once() -> None:
    why = link(is_connected=False).why_left(LOST, WanTries())
    assert why.startswith("mover wb does not answer")


@pytest.mark.parametrize(
    "error",
    [
        MoverFault("wb", "KeyError: 1"),
        RefusedByPeer("wb", "another installation"),
        TicketRefused("wb", "task", "it has expired"),
    ],
)
def test_what_would_come_again_leaves_the_pair_at_once(error: StandbyError) -> None:
    assert link(Future(), failed(error)).why_left(LOST, WanTries()) == str(error)
    assert link().why_left(error, WanTries()) == str(error)


def test_what_a_proxy_met_is_not_the_pairs() -> None:
    error = DiskIO("disk", "read", 0, 4096, "I/O error")
    assert link(failed(error), failed(error)).why_left(error, WanTries()) == ""
    assert link(is_connected=False).why_left(error, WanTries()) == ""


def test_a_pair_that_is_to_be_waited_for_is_never_left() -> None:
    tries = WanTries(short=9)
    for error in (LOST, MoverAway("wb", "no answer"), MoverFault("wb", "bug")):
        assert link(is_optional=False, is_connected=False).why_left(error, tries) == ""


# --- what it tells -----------------------------------------------------------------------------


def test_what_both_accelerators_tell_is_the_report() -> None:
    sent = {"sent": 10, "received": 2, "direct": 90, "pieces": {"raw": 3}, "resent": 1}
    received = {"asked": 3, "found": 1, "cached": 2, "cpu_s": 0.25, "warnings": ["no room"]}
    told, warnings = link(ended(sent | {"cpu_s": 0.5, "mode": "digest"}), ended(received)).told()
    assert (told.name, told.mode, told.sent, told.received, told.direct) == (
        "main",
        "digest",
        10,
        2,
        90,
    )
    assert (told.pieces, told.resent) == ({"raw": 3}, 1)
    assert (told.asked, told.found, told.cached) == (3, 1, 2)
    assert told.cpu_s == {"source": 0.5, "target": 0.25}
    assert warnings == ["no room"]


def test_an_accelerator_that_does_not_tell_costs_its_figures_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wan_link, "TELLING_S", 0.01)
    made = link(ended({"sent": 10}), Future(), is_connected=False)
    told, warnings = made.told()
    assert (told.sent, told.cached) == (10, 0)
    assert warnings == ["WAN accelerator wb did not tell what it did"]


@pytest.mark.parametrize("away", ["wa", "wb"])
def test_an_accelerator_that_is_back_after_the_proxies_still_tells(away: str) -> None:
    late: Future[Any] = Future()
    results = {"wa": {"sent": 5}, "wb": {"found": 3}}
    ends = {name: late if name == away else ended(results[name]) for name in results}
    movers = []
    for name, end in ends.items():
        mover = Mover(name, is_connected=name != away)
        mover.answer = end
        movers.append(mover)
    made = WanLink(WanPair("main", movers[0], movers[1], is_optional=True))
    made.rejoin("task")
    back = threading.Timer(0.05, late.set_result, [results[away]])
    back.start()
    told, warnings = made.told()
    back.join()
    assert (told.sent, told.found, warnings) == (5, 3, [])


def test_the_report_for_people_names_bytes_pieces_and_processor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from standby.cli.jobs import show_report
    from standby.model.report import DiskReport, MachineReport, SessionReport, WanReport

    wan = WanReport(
        "main",
        "digest",
        518144,
        2048,
        direct=80 << 20,
        pieces={"asked": 9, "raw": 2},
        cpu_s={"source": 0.5},
    )
    disks = [DiskReport("d0", "scsi:0:0", "full", wan=wan), DiskReport("d1", "scsi:0:1", "full")]
    show_report(SessionReport("s1", "job", "", machines=[MachineReport("vm", "id", disks=disks)]))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "WAN" in line]
    assert line == (
        "scsi:0:0 over WAN accelerators main: 506.0 KiB sent and 2.0 KiB received, directly about "
        "80.0 MiB; pieces of 4 KiB: 9 in the cache, 2 as they are; processor: 0.5 s source"
    )
