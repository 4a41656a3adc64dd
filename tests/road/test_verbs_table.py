"""VERBS.md lists every verb of a mover with the arguments that it takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import standby.road
from road.plain import Machine
from standby.road.beginning import BeginDisk
from standby.road.point_facts import PointFacts
from standby.road.source_host import SendDisk

TABLE = Path(standby.road.__file__).with_name("VERBS.md")
IMPLIED = {"repository", "root", "host"}
"""Named once, in the heading of a role."""


def listed(text: str) -> dict[str, set[str]]:
    """{verb: names of its arguments} in the code blocks of the table."""
    found = {}
    for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        for match in re.finditer(r"(?:^|, |,\n)([a-z_]+)\(", block, re.MULTILINE):
            depth, names, word = 1, set(), ""
            for letter in block[match.end() :]:
                depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
                if not depth or (depth == 1 and letter == ","):
                    names |= set(re.findall(r"^\s*([a-z0-9_]+)", word))
                    word = ""
                    if not depth:
                        break
                else:
                    word += letter
            found[match.group(1)] = names
    return found


def taken(function: Callable[..., Any]) -> set[str] | None:
    """Names of the arguments a verb's function takes; None where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(item.kind is item.VAR_KEYWORD for item in parameters):
        return None
    return {item.name for item in parameters} - {"owner"}


def test_the_table_lists_every_verb_with_its_arguments(tmp_path: Path) -> None:
    table = listed(TABLE.read_text(encoding="utf-8"))
    machine = Machine("m", tmp_path, ("source", "target", "repository", "host", "wan"))
    try:
        verbs: dict[str, Callable[..., Any]] = dict(machine.mover._own)
        for role in machine.mover._roles:
            verbs |= getattr(role, "_verbs", {})
    finally:
        machine.close()
    others = {"rejoin", "traffic_rules", "traffic_demands"}
    others |= {"certificate_request", "install_certificate", "install_revocations"}
    assert set(table) == set(verbs) | others
    assert table["send_disk"] == set(SendDisk.__struct_fields__)
    assert table["begin_disk"] == set(BeginDisk.__struct_fields__)
    assert table["commit_point"] == set(PointFacts.__struct_fields__)
    for verb, function in verbs.items():
        arguments = taken(function)
        if arguments is not None:
            assert table[verb] - IMPLIED == arguments - IMPLIED, verb


def test_what_is_not_listed_is_noticed() -> None:
    assert listed('```text\none(a P, b {c, d}), two()\nthree(e="",\n  f)   result(x)\n```') == {
        "one": {"a", "b"},
        "two": set(),
        "three": {"e", "f"},
    }
