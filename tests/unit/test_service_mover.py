"""The control link that comes back: what is answered, joined again, lost, given up."""

from __future__ import annotations

import queue
import socket
import threading

import pytest

from standby.errors import (
    CertificateRefused,
    LinkError,
    MoverAway,
    MoverDied,
    MoverFenced,
    MoverLeft,
)
from standby.server.crew_handle import CrewHandle
from standby.server.replicating import why_ended
from standby.server.service_mover import Reconnect, ServiceMover
from standby.server.waits import waits_are_over, waits_end_when
from standby.wire.link import Link
from standby.wire.messages import Call, Reply

QUICK = Reconnect(every_s=0.01, for_s=60)


class FarMover:
    """The mover's end: keeps calls until the test answers them; links can be cut."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[Link, Call]] = queue.Queue()
        self.links: list[Link] = []
        self.is_up = True
        self.attempts = 0

    def connect(self) -> Link:
        self.attempts += 1
        if not self.is_up:
            raise LinkError("far", "connection refused")
        ours, theirs = socket.socketpair()
        far = Link(theirs, "server")
        self.links.append(far)
        threading.Thread(target=self._serve, args=(far,), daemon=True).start()
        return Link(ours, "far")

    def _serve(self, link: Link) -> None:
        try:
            while True:
                message, _ = link.receive()
                assert isinstance(message, Call)
                self.calls.put((link, message))
        except LinkError:
            link.close()

    def answer(self, result: object) -> Call:
        link, call = self.calls.get(timeout=10)
        link.send(Reply(call.id, result))
        return call

    def cut(self) -> None:
        self.links[-1].shutdown()


@pytest.fixture
def far():
    return FarMover()


@pytest.fixture
def mover(far):
    made = ServiceMover("px1", far.connect, QUICK)
    yield made
    made.close()


def test_a_call_is_answered_and_the_first_one_connects(far, mover):
    assert far.attempts == 0
    future = mover.start("ping")
    call = far.answer("pong")
    assert (call.verb, future.result(10)) == ("ping", "pong")
    assert mover.is_connected


def test_a_task_is_joined_again_after_the_link_dropped(far, mover):
    future = mover.start("send_disk", task="web1 scsi:0:0 ab")
    _, call = far.calls.get(timeout=10)
    assert call.arguments == {"task": "web1 scsi:0:0 ab"}
    far.cut()
    joined = far.answer({"root": "aa"})
    assert (joined.verb, joined.arguments) == (
        "rejoin",
        {"task": "web1 scsi:0:0 ab", "verb": "send_disk"},
    )
    assert future.result(10) == {"root": "aa"}
    assert far.attempts == 2


def test_a_call_without_a_task_fails_with_the_link(far, mover):
    future = mover.start("commit_point", path="a:b")
    far.calls.get(timeout=10)
    far.cut()
    with pytest.raises(LinkError):
        future.result(10)


def test_a_call_waits_for_a_mover_that_is_away(far, mover):
    far.is_up = False
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(mover.call("ping")), daemon=True)
    asking.start()
    while far.attempts < 2:
        pass
    assert "refused" in mover.problem
    far.is_up = True
    far.answer("pong")
    asking.join(10)
    assert answers == ["pong"]


def test_a_mover_that_stays_away_is_given_up_and_tried_again_when_asked(far):
    mover = ServiceMover("px1", far.connect, Reconnect(every_s=0, for_s=0))
    far.is_up = False
    with pytest.raises(MoverAway, match=r"^mover px1 cannot be reached: .*refused.*;") as away:
        mover.call("ping")
    assert "died" not in str(away.value)  # it may be at work behind a link that is down
    far.is_up = True
    future = mover.start("ping")
    far.answer("pong")
    assert future.result(10) == "pong"
    mover.close()


def test_tasks_of_a_mover_that_stays_away_end(far):
    mover = ServiceMover("px1", far.connect, Reconnect(every_s=0, for_s=0))
    future = mover.start("send_disk", task="t")
    far.calls.get(timeout=10)
    far.is_up = False
    far.cut()
    with pytest.raises(MoverAway):
        future.result(10)
    mover.close()


def test_close_ends_every_call(far, mover):
    future = mover.start("send_disk", task="t")
    far.calls.get(timeout=10)
    mover.close()
    with pytest.raises(MoverLeft, match=r"^mover px1 is not asked any more: "):
        future.result(10)
    with pytest.raises(MoverLeft):
        mover.call("ping")


def test_cutting_one_session_leaves_the_others(far, mover):
    one, other = CrewHandle(mover, "s1"), CrewHandle(mover, "s2")
    ended = one.start("send_disk", task="a")
    stays = other.start("send_disk", task="b")
    far.calls.get(timeout=10)
    _, kept = far.calls.get(timeout=10)
    one.cut()
    with pytest.raises(MoverLeft, match="cut off"):
        ended.result(10)
    with pytest.raises(MoverLeft, match="cut off"):
        one.call("ping")
    told = far.answer(None)
    assert (told.verb, told.arguments) == ("end_session", {"session": "s1"})
    far.links[-1].send(Reply(kept.id, 7))
    assert stays.result(10) == 7


# --- the greeting ----------------------------------------------------------------------------


@pytest.fixture
def greeted(far):
    """A mover to which the server says its generation on each link."""
    made = ServiceMover(
        "px1", far.connect, QUICK, greet=lambda ask, link: ask("join", generation=3)
    )
    yield made
    made.close()


def test_nothing_travels_before_the_greeting_is_answered(far, greeted):
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(greeted.call("ping")), daemon=True)
    asking.start()
    link, call = far.calls.get(timeout=10)
    assert (call.verb, call.arguments) == ("join", {"generation": 3})
    assert not greeted.is_connected
    assert far.calls.empty()
    link.send(Reply(call.id, {}))
    assert far.answer("pong").verb == "ping"
    asking.join(10)
    assert answers == ["pong"]


def test_crews_at_work_are_kept_and_those_cut_off_meanwhile_are_ended(far, greeted):
    works, ends, done = (CrewHandle(greeted, name) for name in ("works", "ends", "done"))
    results: list[object] = []
    asking = threading.Thread(
        target=lambda: results.append(works.call("send_disk", task="t")), daemon=True
    )
    asking.start()
    far.answer({})
    assert [far.answer({}).arguments for _ in range(3)] == [
        {"session": name} for name in ("works", "ends", "done")
    ]
    far.calls.get(timeout=10)
    done.close()
    far.is_up = False
    far.cut()
    while greeted.is_connected or not greeted.problem:
        pass
    ends.cut()
    far.is_up = True
    told = [far.answer({}) for _ in range(4)]
    assert [(call.verb, call.arguments) for call in told] == [
        ("join", {"generation": 3}),
        ("end_session", {"session": "ends"}),
        ("keep_session", {"session": "works"}),
        ("rejoin", {"task": "t", "verb": "send_disk"}),
    ]
    asking.join(10)
    assert results == [{}]


def test_the_end_of_a_crew_that_a_dead_link_swallowed_is_told_again(far, greeted):
    crew = CrewHandle(greeted, "ends")
    asking = threading.Thread(target=lambda: crew.call("ping"), daemon=True)
    asking.start()
    told = [far.answer({}) for _ in range(3)]
    asking.join(10)
    crew.cut()
    _, lost = far.calls.get(timeout=10)  # sent, and never answered
    far.cut()
    told = [far.answer({}) for _ in range(2)]
    assert lost.arguments == told[1].arguments == {"session": "ends"}
    assert [lost.verb, *(call.verb for call in told)] == ["end_session", "join", "end_session"]
    while greeted.is_connected is False:
        pass
    far.cut()
    assert far.answer({}).verb == "join"
    while greeted.is_connected is False:
        pass
    assert far.calls.empty()  # it answered: once is enough


def test_a_fenced_server_gives_up_at_once_and_says_so(far):
    def fenced(ask, link):
        raise MoverFenced("px1", 1, 2)

    mover = ServiceMover("px1", far.connect, Reconnect(every_s=60, for_s=600), greet=fenced)
    with pytest.raises(MoverFenced, match="generation 1 is fenced"):
        mover.call("ping")
    assert (far.attempts, mover.is_fenced) == (1, True)
    mover.close()


def test_a_mover_that_does_not_answer_the_greeting_is_tried_again(far):
    mover = ServiceMover("px1", far.connect, QUICK, greet=lambda ask, link: ask("join"))
    future: list[object] = []
    asking = threading.Thread(target=lambda: future.append(mover.call("ping")), daemon=True)
    asking.start()
    link, _ = far.calls.get(timeout=10)
    link.shutdown()
    assert far.answer({}).verb == "join"
    assert far.answer("pong").verb == "ping"
    asking.join(10)
    assert future == ["pong"]
    mover.close()


def test_a_mover_that_was_revoked_is_given_up_at_once(far, mover):
    ours: list[Link] = []
    connect = mover._make_link
    mover._make_link = lambda: ours.append(connect()) or ours[-1]
    task = mover.start("send_disk", task="t")
    far.calls.get(timeout=10)
    ours[0].end(CertificateRefused("px1", "ab12 is revoked"))
    with pytest.raises(CertificateRefused, match="is revoked"):
        task.result(10)
    assert far.attempts == 1
    again = mover.start("ping")  # it may have been enrolled anew
    far.answer("pong")
    assert again.result(10) == "pong"


def test_a_refused_certificate_is_a_definite_error_at_once(far):
    def refused() -> Link:
        far.attempts += 1
        raise CertificateRefused("px1", "it is revoked")

    told: list[str] = []
    mover = ServiceMover("px1", refused, Reconnect(every_s=60, for_s=3600), on_state=told.append)
    handle = CrewHandle(mover, "s1", patience_s=60)
    for attempt in (1, 2):  # each call is one attempt, for it may have a new certificate by then
        with pytest.raises(CertificateRefused, match="revoked"):
            handle.call("ping")
        assert far.attempts == attempt
    assert mover.is_given_up
    assert "revoked" in told[-1]
    assert isinstance(mover.why_away(), CertificateRefused)
    mover.close()


@pytest.mark.parametrize("patience_s", [None, 3600])
def test_cutting_a_session_ends_its_wait_for_a_connection(far, patience_s):
    mover = ServiceMover("px1", far.connect, Reconnect(every_s=60, for_s=3600))
    far.is_up = False
    handle = CrewHandle(mover, "s1", patience_s)
    found: queue.Queue[Exception] = queue.Queue()

    def ask() -> None:
        try:
            handle.call("ping")
        except MoverDied as exc:
            found.put(exc)

    threading.Thread(target=ask, daemon=True).start()
    while not mover.problem:
        pass
    handle.cut()
    assert isinstance(found.get(timeout=10), MoverDied)
    mover.close()


def test_waits_of_a_thread_end_when_told(far):
    mover = ServiceMover("px1", far.connect, Reconnect(every_s=60, for_s=3600))
    far.is_up = False
    with waits_end_when(lambda: bool(mover.problem)), waits_end_when(lambda: False):
        with pytest.raises(MoverAway, match="refused"):
            mover.call("ping")
        assert waits_are_over()
    assert not waits_are_over()
    mover.close()


def test_what_a_mover_does_not_know_any_more_is_told_with_its_loss(far, mover):
    unknown = "link to backup server: replica r:web01_replica is not open"
    mover.answers()
    handle = CrewHandle(mover, "s1/web01")
    assert why_ended(unknown, handle, True) == unknown
    future = mover.start("points", path="r:web01_replica")
    far.calls.get(timeout=10)
    far.cut()
    with pytest.raises(LinkError) as lost:
        future.result(10)
    assert why_ended(unknown, handle, True) == (
        f"mover px1 was lost ({lost.value}), and came back without the work ({unknown})"
    )
    assert why_ended("no room", handle, False) == "no room"
    refused = str(lost.value)  # it is not back
    assert why_ended(refused, handle, True) == refused
    assert CrewHandle(mover, "s2/web01").lost == ""


def test_the_end_of_a_connection_that_is_closed_here_is_no_trouble(far):
    told: list[str] = []
    mover = ServiceMover("px1", far.connect, QUICK, on_state=told.append)
    assert mover.answers()
    mover.close()
    assert told == [""]
