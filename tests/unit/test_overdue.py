"""Which replicas are owed a restore point."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from standby.model.job import ReplicationJob
from standby.model.machine import Inventory, Machine, MachineProblem
from standby.server.overdue import is_left_out

JOB = ReplicationJob("nightly", "prod", "dr", "main", ("web*",), ("web09",), rpo_s=60)


def replica(machine: str, machine_id: str = "id") -> Any:
    return SimpleNamespace(
        machine=machine, identity=SimpleNamespace(machine_id=machine_id, job="nightly")
    )


@pytest.mark.parametrize(
    ("machines", "problems", "replicas", "are_all_seen", "expected"),
    [
        ([Machine("id", "web01", "web01")], (), [], True, False),
        ([Machine("id", "web09", "web09")], (), [replica("web09")], True, True),
        ([Machine("id", "db01", "db01")], (), [replica("web01")], True, True),
        ([], (MachineProblem("web01", "no toml"),), [], True, False),
        ([], (), [replica("web01")], True, False),
        ([], (), [replica("web09")], True, True),
        ([], (), [replica("web01", "other")], True, True),
        ([], (), [], False, False),
    ],
    ids=[
        "it is taken",
        "it is excluded",
        "it is renamed to what no pattern matches",
        "it may be one that cannot be described",
        "it is gone and its replica is not",
        "it is gone, and excluded",
        "it and its replica are gone",
        "it is gone, and the target is not seen",
    ],
)
def test_who_is_owed_a_point(machines, problems, replicas, are_all_seen, expected) -> None:
    inventory = Inventory(tuple(machines), problems)
    assert is_left_out(JOB, "id", inventory, replicas, are_all_seen=are_all_seen) is expected
