"""Task slots: taken together, given out in turn, never lost."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from clocks import HeldClock
from standby.errors import NoProxy, ResourcesBusy, SessionStopped
from standby.server.resources import Capacities, Resources, TaskRequest, Ticket
from standby.server.turns import BOUNCES_MAX
from standby.server.waiting import AGE_STEP_S


def task(job: str, place: str = "scsi:0:0", **more: Any) -> TaskRequest:
    return TaskRequest(job, more.pop("session", f"session of {job}"), "vm", place, **more)


def given(resources: Resources, *requests: TaskRequest) -> list[Ticket]:
    return [resources.request(request) for request in requests]


def order_of(resources: Resources, tickets: list[Ticket]) -> list[str]:
    """The jobs in the order in which they get a slot, one running at a time."""
    found = []
    running = [ticket for ticket in tickets if ticket.grant is not None]
    waiting = [ticket for ticket in tickets if ticket.is_waiting]
    while running:
        (ticket,) = running
        found.append(ticket.request.job)
        ticket.cancel()
        running = [other for other in waiting if other.grant is not None]
        waiting = [other for other in waiting if other.is_waiting]
    assert not waiting
    return found


# --- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacities", "request_of"),
    [
        (Capacities(server=2), lambda number: task(f"job{number}")),
        (Capacities(hosts={"prod": 2}), lambda n: task(f"job{n}", source_host="prod")),
        (Capacities(hosts={"dr": 2}), lambda n: task(f"job{n}", target_host="dr")),
        (Capacities(repositories={"main": 2}), lambda n: task(f"job{n}", repository="main")),
        (Capacities(proxies={"px1": 2}), lambda n: task(f"job{n}", source_proxies=("px1",))),
        (Capacities(proxies={"px1": 2}), lambda n: task(f"job{n}", target_proxies=("px1",))),
        (Capacities(), lambda n: task("job", f"scsi:0:{n}", job_max_tasks=2)),
        (Capacities(), lambda n: task("job", f"scsi:0:{n}", session_max_tasks=2)),
    ],
    ids=["server", "source", "target", "repository", "as source", "as target", "job", "session"],
)
def test_every_kind_of_limit_holds_the_third_task_back(
    capacities: Capacities, request_of: Any
) -> None:
    resources = Resources()
    resources.configure(capacities)
    tickets = given(resources, *(request_of(number) for number in range(4)))
    assert [ticket.is_waiting for ticket in tickets] == [False, False, True, True]
    tickets[1].cancel()
    assert [ticket.is_waiting for ticket in tickets[2:]] == [False, True]
    for ticket in tickets:
        ticket.cancel()
    assert (resources.waiting, resources.running) == (0, 0)


def test_a_waiting_task_holds_nothing() -> None:
    resources = Resources()
    resources.configure(Capacities(hosts={"dr": 1}, proxies={"px1": 1}))
    (blocker,) = given(resources, task("a", target_host="dr"))
    (waiting,) = given(resources, task("b", target_host="dr", source_proxies=("px1",)))
    (other,) = given(resources, task("c", source_proxies=("px1",)))
    assert waiting.is_waiting
    assert other.grant is not None
    blocker.cancel()
    assert waiting.is_waiting
    other.cancel()
    assert waiting.grant is not None


def test_a_host_that_is_source_and_target_counts_once_per_task() -> None:
    resources = Resources()
    resources.configure(Capacities(hosts={"prod": 1}))
    (ticket,) = given(resources, task("a", source_host="prod", target_host="prod"))
    assert ticket.grant is not None


def test_a_proxy_that_does_both_sides_takes_one_slot_for_a_task() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"px1": 1}))
    both = {"source_proxies": ("px1",), "target_proxies": ("px1",)}
    first, second = given(resources, task("a", **both), task("b", **both))
    assert first.grant is not None
    assert second.is_waiting
    first.cancel()
    assert second.grant is not None


# --- which proxy -----------------------------------------------------------------------------


def test_the_least_busy_proxy_takes_the_task() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"large": 4, "small": 2}))
    names = ("small", "large")
    tickets = given(
        resources, *(task("a", str(number), source_proxies=names) for number in range(6))
    )
    chosen = [ticket.grant.source_proxy for ticket in tickets if ticket.grant]
    # 0/4 0/2 by name; then 1/4 0/2; 1/4 1/2; 2/4 1/2 by name; 3/4 1/2; 3/4 2/2
    assert chosen == ["large", "small", "large", "large", "small", "large"]


def test_of_equally_busy_proxies_the_one_with_fewer_bytes_under_way_takes_the_task() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"px1": 2, "px2": 2}))
    names = ("px1", "px2")
    first, second, third = given(
        resources,
        task("a", "0", source_proxies=names, size_bytes=100),
        task("a", "1", source_proxies=names, size_bytes=10),
        task("a", "2", source_proxies=names),
    )
    assert first.grant is not None
    assert second.grant is not None
    assert third.grant is not None
    assert (first.grant.source_proxy, second.grant.source_proxy) == ("px1", "px2")
    assert third.grant.source_proxy == "px2"


def test_the_target_side_prefers_a_proxy_that_does_not_do_the_source_side() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"px1": 2, "px2": 2}))
    names = ("px1", "px2")
    (ticket,) = given(resources, task("a", source_proxies=names, target_proxies=names))
    assert ticket.grant is not None
    assert (ticket.grant.source_proxy, ticket.grant.target_proxy) == ("px1", "px2")


# --- proxies that come and go ----------------------------------------------------------------


def test_a_proxy_that_is_down_is_passed_over() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"px1": 2, "px2": 2}))
    resources.proxy_down("px1", "no answer")
    (ticket,) = given(resources, task("a", source_proxies=("px1", "px2")))
    assert ticket.grant is not None
    assert ticket.grant.source_proxy == "px2"


def test_who_waits_for_nothing_but_dead_proxies_is_told_why() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"px1": 1, "px2": 1}))
    names = ("px1", "px2", "px9")
    running = given(resources, *(task("a", str(number), source_proxies=names) for number in (0, 1)))
    refused = (("source", "px3", "cannot see D:\\vm"), ("target", "px4", "another side"))
    waiting = resources.request(task("b", "scsi:0:7", source_proxies=names, refused=refused))
    resources.proxy_down("px1", "connection refused")
    assert waiting.is_waiting
    resources.proxy_down("px2", "certificate revoked")
    with pytest.raises(NoProxy) as caught:
        waiting.wait()
    assert caught.value.side == "source"
    assert caught.value.reasons == (
        "px1: connection refused",
        "px2: certificate revoked",
        "px3: cannot see D:\\vm",
        "px9: not in the configuration",
    )
    assert "scsi:0:7" in str(caught.value)
    for ticket in running:
        ticket.cancel()
    assert resources.running == 0


def test_a_task_without_any_eligible_proxy_never_waits() -> None:
    resources = Resources()
    with pytest.raises(NoProxy, match="none is configured"):
        resources.request(task("a", target_proxies=())).wait()
    assert resources.waiting == 0


def test_a_paused_proxy_is_waited_for() -> None:
    resources = Resources()
    resources.configure(Capacities(proxies={"px1": 1}))
    resources.proxy_paused("px1", "connecting")
    (ticket,) = given(resources, task("a", source_proxies=("px1",)))
    assert ticket.is_waiting
    resources.proxy_up("px1")
    assert ticket.grant is not None


def test_limits_and_proxies_change_while_tasks_run() -> None:
    resources = Resources()
    resources.configure(Capacities(server=3, proxies={"px1": 3}))
    tickets = given(
        resources, *(task("a", str(n), source_proxies=("px1", "px2")) for n in range(6))
    )
    assert resources.running == 3
    resources.configure(Capacities(server=1, proxies={"px1": 1}))
    tickets[0].cancel()
    tickets[1].cancel()
    assert resources.running == 1
    resources.configure(Capacities(server=4, proxies={"px2": 2}))
    assert resources.running == 3
    assert [ticket.grant.source_proxy for ticket in tickets[3:5] if ticket.grant] == ["px2", "px2"]
    resources.configure(Capacities())
    with pytest.raises(NoProxy):
        tickets[5].wait()


# --- the order -------------------------------------------------------------------------------


def test_jobs_of_one_priority_take_turns() -> None:
    resources = Resources(HeldClock())
    resources.configure(Capacities(server=1))
    tickets = given(
        resources,
        task("x"),
        *(task("a", str(number)) for number in range(3)),
        *(task("b", str(number)) for number in range(2)),
        task("c"),
    )
    assert "".join(order_of(resources, tickets)) == "xabcaba"


def test_jobs_take_turns_across_different_needs() -> None:
    resources = Resources(HeldClock())
    resources.configure(Capacities(server=1))
    tickets = given(
        resources,
        task("x"),
        *(task("a", str(number), repository=f"main{number % 2}") for number in range(3)),
        *(task("b", str(number), repository="other") for number in range(3)),
    )
    assert order_of(resources, tickets) == ["x", "a", "b", "a", "b", "a", "b"]


def test_a_weight_is_the_number_of_tasks_in_a_turn() -> None:
    resources = Resources(HeldClock())
    resources.configure(Capacities(server=1))
    tickets = given(
        resources,
        task("x"),
        *(task("a", str(number), weight=2) for number in range(6)),
        *(task("b", str(number)) for number in range(3)),
    )
    assert "".join(order_of(resources, tickets)) == "xaabaabaab"


def test_a_higher_priority_goes_first() -> None:
    resources = Resources(HeldClock())
    resources.configure(Capacities(server=1))
    tickets = given(resources, task("x"), task("low"), task("high", priority=1))
    assert order_of(resources, tickets) == ["x", "high", "low"]


def test_a_low_priority_has_its_turn_after_the_ageing_time() -> None:
    clock = HeldClock()
    resources = Resources(clock)
    resources.configure(Capacities(server=1))
    (running,) = given(resources, task("high", "0", priority=2))
    (low,) = given(resources, task("low"))
    waited = 0
    while low.is_waiting:
        clock.sleep(30)
        waited += 30
        (newer,) = given(resources, task(f"high{waited}", priority=2))
        running.cancel()
        running = newer
        assert waited <= 2 * AGE_STEP_S + 60
    assert waited > 2 * AGE_STEP_S - 60


def test_a_raised_priority_counts_for_what_waits_already() -> None:
    resources = Resources(HeldClock())
    resources.configure(Capacities(server=1))
    tickets = given(resources, task("x"), task("a"), task("b", "0"), task("b", "1", priority=3))
    assert order_of(resources, tickets) == ["x", "b", "b", "a"]


def test_a_task_that_needs_two_scarce_things_is_not_passed_over_for_ever() -> None:
    resources = Resources(HeldClock())
    resources.configure(Capacities(hosts={"dr": 1}, repositories={"main": 1}))
    (on_host,) = given(resources, task("a", target_host="dr"))
    (on_repository,) = given(resources, task("b", repository="main"))
    (both,) = given(resources, task("c", target_host="dr", repository="main"))
    rounds = 0
    while both.is_waiting:
        following = given(resources, task("a", target_host="dr"), task("b", repository="main"))
        on_host.cancel()
        on_repository.cancel()
        on_host, on_repository = following
        rounds += 1
        assert rounds <= 2 * BOUNCES_MAX
    both.cancel()
    assert on_host.grant is not None
    assert on_repository.grant is not None


# --- ends ------------------------------------------------------------------------------------


def test_a_released_grant_is_released_once() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1))
    first, second, third = given(resources, task("a"), task("b"), task("c"))
    assert first.grant is not None
    for _ in range(3):
        first.grant.release()
        first.cancel()
    assert second.grant is not None
    assert third.is_waiting


def test_slots_come_back_when_the_block_raises() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1))
    with pytest.raises(ZeroDivisionError), resources.taken(task("a")):
        raise ZeroDivisionError
    with resources.taken(task("a")) as grant:
        assert resources.running == 1
        assert grant.waited_s >= 0
    assert resources.running == 0


def test_a_timeout_gives_the_place_in_the_queue_up() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1))
    with resources.taken(task("a")):
        with pytest.raises(ResourcesBusy, match=r"0\.01 s"), resources.taken(task("b"), 0.01):
            raise AssertionError
        assert resources.waiting == 0


def test_cancelling_one_vm_of_a_session_leaves_the_others_waiting() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1))
    given(resources, task("a", session="one"))
    first, second = given(
        resources,
        replace(task("a", "1", session="one"), machine="vm1"),
        replace(task("a", "2", session="one"), machine="vm2"),
    )
    assert resources.cancel_session("one", "vm1") == 1
    assert (first.is_waiting, second.is_waiting) == (False, True)


def test_cancelling_a_session_wakes_what_waits_for_it() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1))
    (running,) = given(resources, task("a", session="one"))
    waiting = given(resources, task("a", "1", session="one"), task("a", "2", session="two"))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            waiting[0].wait()
        except SessionStopped as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    assert resources.cancel_session("one") == 1
    thread.join()
    assert len(errors) == 1
    assert waiting[1].is_waiting
    assert resources.end_session("one") == 1
    assert running.grant is not None
    assert waiting[1].grant is not None


def test_callbacks_run_one_after_another_however_long_the_chain() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1))
    ended = []

    def done(ticket: Ticket) -> None:
        ended.append(ticket.request.place)
        assert ticket.grant is not None
        ticket.grant.release()

    blocker = resources.request(task("a"))
    for number in range(3000):
        resources.request(task("a", str(number)), done)
    blocker.cancel()
    assert ended == [str(number) for number in range(3000)]


def test_nothing_is_left_of_jobs_that_ended() -> None:
    resources = Resources()
    resources.configure(Capacities(server=1, proxies={"px1": 2, "px2": 2}))
    resources.proxy_paused("px2", "connecting")
    for number in range(2000):
        names = ("px1", "px2")
        tickets = given(
            resources, *(task(f"job{number}", str(n), source_proxies=names) for n in (0, 1))
        )
        for ticket in tickets:
            ticket.cancel()
    left = [resources._jobs, resources._sessions, resources._lanes, resources._grants]
    assert left == [{}, {}, {}, {}]
    entries = [len(slots.parked._entries) for slots in resources._proxies.values()]
    assert max([*entries, len(resources._ready.parked._entries)]) < 200


def test_usage_tells_who_uses_what_and_who_waits() -> None:
    clock = HeldClock()
    resources = Resources(clock)
    resources.configure(Capacities(server=2, proxies={"px1": 1, "px2": 1}, hosts={"dr": 9}))
    resources.proxy_paused("px2", "connecting")
    wanted = {"source_proxies": ("px1", "px2"), "target_host": "dr", "size_bytes": 7}
    given(resources, task("a", "0", **wanted), task("a", "1", **wanted))
    clock.sleep(5)
    given(resources, task("b", priority=1, weight=2, **wanted))
    usage = resources.usage()
    assert [(use.kind, use.name, use.used, use.limit, use.waiting) for use in usage.slots] == [
        ("host", "dr", 1, 9, 2),
        ("proxy", "px1", 1, 1, 2),
        ("proxy", "px2", 0, 1, 2),
        ("server", "", 1, 2, 2),
    ]
    assert [use.problem for use in usage.slots] == ["", "", "connecting", ""]
    assert usage.slots[1].bytes_in_flight == 7
    assert [(job.name, job.running, job.waiting) for job in usage.jobs] == [
        ("a", 1, 1),
        ("b", 0, 1),
    ]
    assert [job.longest_wait_s for job in usage.jobs] == [5, 0]
    assert (usage.running, usage.waiting, usage.granted, usage.waited_s) == (1, 2, 1, 0)


# --- cost and threads ------------------------------------------------------------------------


def test_a_release_costs_the_same_however_many_jobs_wait() -> None:
    resources = Resources(HeldClock())
    proxies = {f"px{number}": 2 for number in range(4)}
    resources.configure(Capacities(server=6, proxies=proxies, hosts={"dr": 5}))
    running: list[Ticket] = []
    for job in range(1000):
        for disk in range(10):
            resources.request(
                task(
                    f"job{job}",
                    str(disk),
                    target_host="dr",
                    source_proxies=tuple(proxies)[job % 3 : job % 3 + 2],
                    job_max_tasks=2,
                ),
                running.append,
            )
    assert resources.waiting + resources.running == 10_000
    resources.attempts = 0
    served: Counter[str] = Counter()
    for ended in range(4000):
        ticket = running[ended]
        served[ticket.request.job] += 1
        ticket.cancel()
    assert resources.attempts < 3 * 4000
    waited_from_the_start = [served[f"job{job}"] for job in range(10, 1000)]
    assert max(waited_from_the_start) - min(waited_from_the_start) <= 1
    for number in range(1000):
        resources.end_session(f"session of job{number}")
    assert (resources.waiting, resources.running) == (0, 0)


def test_many_threads_never_exceed_a_limit_and_all_get_their_turn() -> None:
    resources = Resources()
    limits = {"px1": 2, "px2": 1, "px3": 3}
    resources.configure(Capacities(server=5, proxies=limits, hosts={"dr": 4}))
    lock = threading.Lock()
    now: Counter[str] = Counter()
    peaks: Counter[str] = Counter()
    names = tuple(limits)

    def work(number: int) -> None:
        for turn in range(40):
            sources = (names[number % 3], names[(number + turn) % 3])
            request = task(
                f"job{number % 7}", target_host="dr", source_proxies=sources, job_max_tasks=2
            )
            with resources.taken(request) as grant:
                held = ("server", grant.source_proxy, request.job)
                with lock:
                    for name in held:
                        now[name] += 1
                        peaks[name] = max(peaks[name], now[name])
                with lock:
                    for name in held:
                        now[name] -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resources.granted == 24 * 40
    assert (resources.waiting, resources.running) == (0, 0)
    for name, limit in {**limits, "server": 5, **{f"job{n}": 2 for n in range(7)}}.items():
        assert peaks[name] <= limit
