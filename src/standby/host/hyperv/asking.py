"""What the source side needs of the door: one script run, its steps typed."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from standby.host.hyperv.answers import Answer
from standby.host.hyperv.verbs import Verb

Value = TypeVar("Value")


class Asking(Protocol):
    """`door.Door`, or what stands in for it in a test."""

    def run(self, verb: Verb[Value], request: Any) -> Answer[Value]:
        """Run the verb's script once."""

    def close(self) -> None:
        """Leave no shell on the host. The door can be used again."""
