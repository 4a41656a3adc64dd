"""Task slots under any order of events: limits hold, nothing is lost, nobody waits in vain."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from clocks import HeldClock
from standby.errors import NoProxy, SessionStopped
from standby.server.resources import Capacities, Resources, TaskRequest, Ticket
from standby.server.turns import BOUNCES_MAX
from standby.server.waiting import AGE_STEP_S, Slots

PROXIES = ("px1", "px2", "px3")
HOSTS = ("prod", "dr")
REPOSITORIES = ("main", "other")

limits = st.integers(1, 3)
some_capacities = st.builds(
    Capacities,
    server=st.one_of(st.none(), st.integers(1, 6)),
    proxies=st.dictionaries(st.sampled_from(PROXIES), limits),
    hosts=st.dictionaries(st.sampled_from(HOSTS), limits),
    repositories=st.dictionaries(st.sampled_from(REPOSITORIES), limits),
)
some_proxies = st.one_of(
    st.none(), st.lists(st.sampled_from(PROXIES), min_size=1, unique=True).map(tuple)
)
some_requests = st.builds(
    TaskRequest,
    job=st.sampled_from(("a", "b", "c", "d")),
    session=st.sampled_from(("one", "two")),
    machine=st.just("vm"),
    place=st.just("scsi:0:0"),
    source_host=st.sampled_from(("", *HOSTS)),
    target_host=st.sampled_from(("", *HOSTS)),
    repository=st.sampled_from(("", *REPOSITORIES)),
    source_proxies=some_proxies,
    target_proxies=some_proxies,
    priority=st.integers(-2, 2),
    weight=st.integers(1, 3),
    job_max_tasks=st.integers(0, 3),
    session_max_tasks=st.integers(0, 3),
    size_bytes=st.integers(0, 10),
)


class SlotsMachine(RuleBasedStateMachine):
    """Requests, ends and changes in any order, and what must hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HeldClock()
        self.resources = Resources(self.clock)
        self.tickets: list[Ticket] = []
        self.told: Counter[Ticket] = Counter()
        self.ceilings: dict[Slots, float] = {}

    @initialize(capacities=some_capacities)
    def begin(self, capacities: Capacities) -> None:
        self.resources.configure(capacities)

    def all_slots(self) -> list[Slots]:
        found = self.resources
        return [
            found._server,
            *found._hosts.values(),
            *found._repositories.values(),
            *found._proxies.values(),
            *found._sessions.values(),
            *(job.slots for job in found._jobs.values()),
        ]

    def held(self) -> list[Ticket]:
        return [item for item in self.tickets if item.grant is not None]

    def waiting(self) -> list[Ticket]:
        return [item for item in self.tickets if item.is_waiting]

    def lowered(self) -> None:
        """Tasks that run stay when a limit falls below them."""
        for slots in self.all_slots():
            self.ceilings[slots] = max(self.ceilings.get(slots, 0), slots.used)

    @rule(request=some_requests)
    def ask(self, request: TaskRequest) -> None:
        self.lowered()  # a request says what its job and session may have
        self.tickets.append(self.resources.request(request, lambda item: self.told.update([item])))

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def end_task(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.held()))
        ticket.cancel()
        self.tickets.remove(ticket)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting()))
        ticket.cancel()
        assert isinstance(ticket.error, SessionStopped)

    @rule(session=st.sampled_from(("one", "two")))
    def end_session(self, session: str) -> None:
        ended = [item for item in self.tickets if item.request.session == session]
        self.resources.end_session(session)
        self.tickets = [item for item in self.tickets if item not in ended]

    @rule(capacities=some_capacities)
    def change(self, capacities: Capacities) -> None:
        self.lowered()
        self.resources.configure(capacities)

    @rule(name=st.sampled_from(PROXIES), state=st.sampled_from(("up", "paused", "down")))
    def report(self, name: str, state: str) -> None:
        if state == "up":
            self.resources.proxy_up(name)
        elif state == "paused":
            self.resources.proxy_paused(name, "connecting")
        else:
            self.resources.proxy_down(name, "no answer")

    @rule(duration_s=st.floats(0, 2 * AGE_STEP_S))
    def wait(self, duration_s: float) -> None:
        self.clock.sleep(duration_s)

    @invariant()
    def slots_in_use_are_those_of_running_tasks(self) -> None:
        used: Counter[Slots] = Counter()
        for ticket in self.held():
            assert ticket.grant is not None
            assert ticket.grant._held is not None
            used.update(ticket.grant._held)
        for slots in self.all_slots():
            assert slots.used == used.pop(slots, 0)
        assert not used
        assert self.resources.running == len(self.held())
        assert self.resources.waiting == len(self.waiting())

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        for slots in self.all_slots():
            if slots.limit is not None:
                ceiling = max(slots.limit, self.ceilings.get(slots, 0))
                assert slots.used <= ceiling
                self.ceilings[slots] = min(ceiling, max(slots.limit, slots.used))

    @invariant()
    def nobody_waits_who_could_begin(self) -> None:
        elder = self.resources._elder
        for ticket in self.waiting():
            flow = ticket._flow
            assert flow is not None
            if flow.may_go:
                assert flow.lane.obstacle(is_elder=flow.lane is elder)
            for _, proxies in flow.lane.sides():
                assert not all(item.is_gone for item in proxies)

    @invariant()
    def slots_are_kept_for_one_lane_only(self) -> None:
        resources = self.resources
        assert (resources._elder is None) == (not resources._kept)
        for slots in self.all_slots():
            assert slots.reserved == (slots in resources._kept)

    @invariant()
    def whoever_ended_was_told_once(self) -> None:
        assert all(count == 1 for count in self.told.values())
        for ticket in self.tickets:
            assert self.told[ticket] == (0 if ticket.is_waiting else 1)

    def teardown(self) -> None:
        for name in PROXIES:
            self.resources.proxy_up(name)
        self.resources.configure(Capacities(server=1, proxies=dict.fromkeys(PROXIES, 1)))
        while held := self.held():
            for ticket in held:
                ticket.cancel()
                self.tickets.remove(ticket)
        assert not self.waiting()
        for ticket in self.tickets:
            assert isinstance(ticket.error, NoProxy | SessionStopped)
        found = self.resources
        assert [found._jobs, found._sessions, found._lanes, found._grants] == [{}, {}, {}, {}]
        assert not any(slots.used or slots.bytes or slots.reserved for slots in self.all_slots())


def test_slots_under_any_order_of_events() -> None:
    run_state_machine_as_test(
        SlotsMachine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
    )


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    slots=st.integers(1, 4),
    choices=st.lists(st.integers(0, 100), min_size=60, max_size=60),
)
def test_backlogged_jobs_get_shares_by_weight(
    weights: list[int], slots: int, choices: list[int]
) -> None:
    """However long tasks take: no job is more than a turn ahead of another."""
    resources = Resources(HeldClock())
    resources.configure(Capacities(server=slots))
    running: list[Ticket] = []
    blockers = [
        resources.request(TaskRequest(f"blocker{number}", "s", "vm", str(number)))
        for number in range(slots)
    ]
    for number, weight in enumerate(weights):
        for disk in range(100):
            request = TaskRequest(f"job{number}", "s", "vm", str(disk), weight=weight)
            resources.request(request, running.append)
    for blocker in blockers:
        blocker.cancel()
    served: Counter[str] = Counter()
    counted = 0
    for choice in choices:
        for ticket in running[counted:]:
            served[ticket.request.job] += 1
        counted = len(running)
        turns = [served[f"job{number}"] / weight for number, weight in enumerate(weights)]
        assert max(turns) - min(turns) <= 1
        live: list[Any] = [ticket for ticket in running if ticket.grant._held is not None]
        live[choice % len(live)].cancel()


@settings(max_examples=40, deadline=None)
@given(
    others=st.integers(2, 4),
    orders=st.lists(st.permutations(range(4)), min_size=3 * BOUNCES_MAX, max_size=3 * BOUNCES_MAX),
)
def test_a_task_that_needs_many_scarce_things_has_its_turn(
    others: int, orders: list[list[int]]
) -> None:
    """Tasks that need one of the things each come without end and end in any order."""
    resources = Resources(HeldClock())
    resources.configure(Capacities(proxies={"px1": 1, "px2": 1}, hosts={"prod": 1, "dr": 1}))
    kinds: list[dict[str, Any]] = [
        {"source_proxies": ("px1",)},
        {"target_proxies": ("px2",)},
        {"source_host": "prod"},
        {"target_host": "dr"},
    ][:others]
    count = 0

    def ask(kind: dict[str, Any]) -> Ticket:
        nonlocal count
        count += 1
        return resources.request(TaskRequest(f"job{count}", "s", "vm", "disk", **kind))

    running = [ask(kind) for kind in kinds]
    following = [ask(kind) for kind in kinds]
    everything = {key: value for kind in kinds for key, value in kind.items()}
    wanted = resources.request(TaskRequest("wanted", "s", "vm", "all", **everything))
    for index in (index for order in orders for index in order if index < others):
        running[index].cancel()
        if not wanted.is_waiting:
            return
        if following[index].grant is not None:  # else kept for the one that needs everything
            running[index], following[index] = following[index], ask(kinds[index])
    raise AssertionError("passed over for ever")
