"""Calling a mover's verb: what is refused as not its own arguments, and what is a bug of ours."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from standby.errors import ProtocolError
from standby.model.extent import Extent
from standby.road.verbs import answered, called


def _sum(first: int, second: int = 0) -> int:
    return first + second


VERBS: dict[str, Any] = {
    "sum": _sum,
    "typed": lambda given: msgspec.convert(given, int),
    "extent": lambda: Extent(0, 4096),
    "raw": lambda: b"\0\1",
}


def test_a_verb_of_another_role_is_not_implemented() -> None:
    assert called(VERBS, "commit", {}) is NotImplemented
    assert answered(VERBS, "commit", {}) is NotImplemented


def test_results_are_in_builtins_or_as_they_are() -> None:
    assert answered(VERBS, "sum", {"first": 1, "second": 2}) == 3
    assert answered(VERBS, "extent", {}) == msgspec.to_builtins(Extent(0, 4096))
    assert called(VERBS, "raw", {}) == b"\0\1"


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("sum", {}), ("sum", {"first": 1, "third": 3}), ("typed", {"given": "one"})],
)
def test_arguments_that_are_not_its_own_are_refused(verb: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=verb):
        answered(VERBS, verb, arguments)


def test_a_type_error_within_is_not_blamed_on_the_caller() -> None:
    with pytest.raises(TypeError):
        answered(VERBS, "sum", {"first": 1, "second": "2"})
