"""The self-test of the language, against the tests' interpreter and against one that lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import HeldClock
from hyperv.installation import SimulatedHost
from hyperv.world import World
from standby.host.hyperv.language import Snippet, differences, snippets


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    world = World(HeldClock(), tmp_path)
    world.add_host("hv1")
    with SimulatedHost(world, "hv1") as made:
        yield made


def test_all_snippets_print_here_what_they_should_in_few_processes(host: SimulatedHost) -> None:
    with host.door() as door:
        assert list(differences(door)) == []
    assert len(snippets()) >= 312
    assert host.scripts <= 12


def test_a_host_that_prints_something_else_is_told(host: SimulatedHost) -> None:
    wrong = Snippet("'a', 'b'", ("a b",), "about_Arrays")
    with host.door() as door:
        (found,) = differences(door, [Snippet("1 + 2", ("3",), "about_Arithmetic"), wrong])
    assert found.snippet is wrong
    assert found.printed == ("a", "b")
    assert host.scripts == 2


def test_a_snippet_that_ends_its_process_takes_no_other_with_it(host: SimulatedHost) -> None:
    ends = Snippet("'a'\nexit 3\n'b'", ("a",), "about_Language_Keywords")
    after = Snippet("'c'", ("d",), "")
    with host.door() as door:
        (found,) = differences(door, [Snippet("''", ("",), ""), ends, after])
    assert (found.snippet, found.printed) == (after, ("c",))
    assert host.scripts == 4


def test_a_snippet_that_prints_nothing(host: SimulatedHost) -> None:
    with host.door() as door:
        assert list(differences(door, [Snippet("$null = 1", (), "")])) == []
