"""The tables of session and task states: what is legal, and that nothing is a dead end."""

from __future__ import annotations

import pytest

from standby.model.session import (
    RUN_BY_A_SERVER,
    SESSION_ENDS,
    SESSION_STEPS,
    TASK_ENDS,
    TASK_STEPS,
    Reason,
    SessionRun,
    SessionState,
    TaskRun,
    TaskState,
    next_session_states,
    next_task_states,
    nothing_to_retry,
    session_states_before,
    task_states_before,
)

S, T = SessionState, TaskState


def test_every_step_is_listed_once_and_leads_elsewhere() -> None:
    for steps in (SESSION_STEPS, TASK_STEPS):
        pairs = [(step.state, step.result) for step in steps]
        assert len(set(pairs)) == len(pairs)
        assert all(state is not result for state, result in pairs)
        assert all(step.when for step in steps)


@pytest.mark.parametrize(
    ("ends", "states", "after"),
    [(SESSION_ENDS, list(S), next_session_states), (TASK_ENDS, list(T), next_task_states)],
)
def test_every_state_can_be_reached_and_leads_to_an_end(ends, states, after) -> None:
    reached, new = set(), {states[0].__class__("queued")}
    while new:
        reached |= new
        new = {result for state in new for result in after(state)} - reached
    assert reached == set(states)
    for state in set(states) - ends:
        seen, new = set(), {state}
        while new:
            seen |= new
            new = {result for item in new for result in after(item)} - seen
        assert seen & ends, state


def test_an_end_is_left_only_for_the_queue_and_done_never() -> None:
    for state in SESSION_ENDS:
        assert set(next_session_states(state)) <= {S.QUEUED}
    for task in TASK_ENDS:
        assert set(next_task_states(task)) <= {T.QUEUED}
    assert next_session_states(S.DONE) == ()
    assert next_task_states(T.DONE) == ()


def test_only_what_waits_becomes_running() -> None:
    assert session_states_before(S.RUNNING) == (S.QUEUED,)
    assert task_states_before(T.RUNNING) == (T.QUEUED, T.WAITING)
    assert {S.RUNNING, S.STOPPING} == RUN_BY_A_SERVER


@pytest.mark.parametrize(
    ("state", "tasks", "machine", "why"),
    [
        (S.DONE, [T.DONE, T.DONE], "", "nothing failed: all its VMs are done"),
        (S.WARNINGS, [T.DONE, T.DONE], "", "nothing failed"),
        (S.RUNNING, [T.DONE, T.RUNNING], "", "nothing failed"),
        (S.RUNNING, [], "", "nothing failed yet: it has not begun with VMs"),
        (S.FAILED, [T.DONE, T.FAILED], "vm0", "nothing failed: VM vm0 is done"),
        (S.FAILED, [T.DONE, T.FAILED], "vm7", "nothing failed: VM vm7 is not in it"),
        (S.FAILED, [T.DONE, T.FAILED], "vm1", ""),
        (S.FAILED, [T.DONE, T.FAILED], "", ""),
        (S.RUNNING, [T.RUNNING, T.WAITING], "", ""),
        (S.WARNINGS, [T.DONE, T.SKIPPED], "", ""),
        (S.FAILED, [], "", ""),
    ],
)
def test_only_what_was_not_done_is_tried_again(
    state: SessionState, tasks: list[TaskState], machine: str, why: str
) -> None:
    run = SessionRun("s1", "job", state, Reason.MANUAL)
    found = [
        TaskRun(f"t{number}", "s1", number, f"vm{number}", "id", task)
        for number, task in enumerate(tasks)
    ]
    assert nothing_to_retry(run, found, machine) == why
