"""Calls about single VMs go to the host together; its measure of snapshots and merges holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from standby.errors import HostDeadline, ScriptFailed
from standby.host.hyperv.answers import Answer, Step
from standby.host.hyperv.gathering import AT_ONCE_MAX, Gathering
from standby.host.hyperv.pacing import rounds, startable, volume_of
from standby.host.hyperv.rows import CREATE, MACHINES, STATE
from standby.host.hyperv.verbs import Verb


class HeldDoor:
    """A door whose first script lasts until `others` calls wait behind it."""

    def __init__(self, others: int, answer: Callable[[dict[str, Any]], Step[Any]]) -> None:
        self.gathering = Gathering(self)
        self.requests: list[Any] = []
        self._others = others
        self._answer = answer

    def run(self, verb: Verb[Any], request: Any) -> Answer[Any]:
        self.requests.append(request)
        if len(self.requests) == 1 and self._others:
            turn = self.gathering._turn
            with turn:
                assert turn.wait_for(
                    lambda: (
                        sum(len(it.waiting) for it in self.gathering._lanes.values())
                        == self._others
                    ),
                    30,
                )
        items = request.get("machines", [{"id": "host"}])
        return Answer("hv1", verb.name, tuple(self._answer(one) for one in items))

    def close(self) -> None:
        """Nothing is open."""


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` gave or raised for each number, all of them at once."""

    def one(number: int) -> Any:
        try:
            return work(number)
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def request(number: int, **more: Any) -> dict[str, Any]:
    return {"machines": [{"id": f"vm{number}", **more}]}


def test_what_waits_behind_a_script_is_the_next_one() -> None:
    door = HeldDoor(19, lambda one: Step(one["id"], one["id"]))
    got = together(20, lambda number: door.gathering.run(CREATE, request(number)))
    for number, answer in enumerate(got):
        assert [step.id for step in answer.steps] == [f"vm{number}"]
        assert answer.value(f"vm{number}") == f"vm{number}"
    counts = [len(it["machines"]) for it in door.requests]
    assert counts == [1, AT_ONCE_MAX, 9]


def test_looks_that_wait_share_one() -> None:
    door = HeldDoor(4, lambda one: Step("host", len(door.requests)))
    got = together(5, lambda number: door.gathering.run(MACHINES, {}).value("host"))
    assert sorted(got) == [1, 2, 2, 2, 2]


def test_two_different_questions_about_one_vm_go_one_after_the_other() -> None:
    door = HeldDoor(3, lambda one: Step(one["id"], one["job"]))
    got = together(
        4, lambda number: door.gathering.run(STATE, request(0, job=f"j{number}")).value("vm0")
    )
    assert sorted(got) == ["j0", "j1", "j2", "j3"]
    assert [len(it["machines"]) for it in door.requests] == [1, 1, 1, 1]


def test_one_vms_failure_is_its_own() -> None:
    def answer(one: dict[str, Any]) -> Step[Any]:
        if one["id"] == "vm2":
            return Step("vm2", None, ScriptFailed("hv1", "state", "vm2", "no", "", 0, "", 0))
        return Step(one["id"], 1)

    door = HeldDoor(3, answer)
    got = together(
        4, lambda number: door.gathering.run(STATE, request(number)).value(f"vm{number}")
    )
    assert [item for item in got if item != 1] == [got[2]]
    assert isinstance(got[2], ScriptFailed)


def test_a_script_that_fails_as_a_whole_fails_for_all_and_the_next_goes_on() -> None:
    failures = [HostDeadline("hv1", "state", 1, "waiting")]

    def answer(one: dict[str, Any]) -> Step[Any]:
        if len(door.requests) == 2 and failures:
            raise failures[0]
        return Step(one["id"], 1)

    door = HeldDoor(2, answer)
    got = together(
        3, lambda number: door.gathering.run(STATE, request(number)).value(f"vm{number}")
    )
    assert sorted(map(str, got)) == sorted(["1", str(failures[0]), str(failures[0])])
    failures.clear()
    assert door.gathering.run(STATE, request(7)).value("vm7") == 1


def test_what_fails_for_all_is_an_error_of_each() -> None:
    def answer(one: dict[str, Any]) -> Step[Any]:
        if len(door.requests) > 1:
            raise HostDeadline("hv1", "create_snapshots", 1, "waiting")
        return Step(one["id"], 1)

    door = HeldDoor(3, answer)
    got = together(4, lambda number: door.gathering.run(CREATE, request(number)))
    failed = [error for error in got if isinstance(error, HostDeadline)]
    assert len(failed) == 3
    assert len({id(error) for error in failed}) == 3
    assert len({str(error) for error in failed}) == 1


def test_a_script_goes_in_rounds_of_four_and_two_on_a_volume() -> None:
    door = HeldDoor(0, lambda one: Step(one["id"], 1))
    one_volume = {"machines": [{"id": f"vm{n}", "volumes": ["d:"]} for n in range(5)]}
    door.gathering.run(CREATE, one_volume)
    (sent,) = door.requests
    assert sent["rounds"] == [0, 1, 2]
    assert [one["round"] for one in sent["machines"]] == [0, 0, 1, 1, 2]
    assert not any("volumes" in one for one in sent["machines"])


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        (["a"] * 5, [0, 0, 1, 1, 2]),
        (["a", "b", "c"] * 3, [0, 0, 0, 0, 1, 1, 1, 1, 2]),
        (["a", "a", "a", "b", "b", "b"], [0, 0, 1, 0, 0, 1]),
        (["ab", "a", "b", "ab", "c"], [0, 0, 0, 1, 0]),
        ([], []),
    ],
)
def test_rounds(volumes: list[str], expected: list[int]) -> None:
    assert rounds([frozenset(names) for names in volumes]) == expected


def test_who_waits_keeps_its_turn_on_its_volumes() -> None:
    under_way = [frozenset("a"), frozenset("a")]
    assert startable(under_way, [frozenset("ab"), frozenset("b"), frozenset("c")]) == [2]


@pytest.mark.parametrize(
    ("path", "volume"),
    [
        (r"D:\vm\a.vhdx", "d:"),
        (r"C:\ClusterStorage\Volume1\a.vhdx", r"c:\clusterstorage\volume1"),
        (r"\\Files\VMs\web\a.vhdx", r"\\files\vms"),
    ],
)
def test_volumes(path: str, volume: str) -> None:
    assert volume_of(path) == volume


def test_a_call_that_ends_leaves_the_door_open() -> None:
    class Ended(BaseException):
        pass

    def answer(one: dict[str, Any]) -> Step[Any]:
        if one["id"] == "vm0":
            raise Ended
        return Step(one["id"], 1)

    door = HeldDoor(0, answer)
    with pytest.raises(Ended):
        door.gathering.run(STATE, request(0))
    found: list[Any] = []
    other = threading.Thread(
        target=lambda: found.append(door.gathering.run(STATE, request(1)).value("vm1"))
    )
    other.start()
    other.join(30)
    assert found == [1]
