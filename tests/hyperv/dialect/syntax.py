"""The parsed form of a script, free of the grammar: what is checked and what is executed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any


@dataclass(slots=True)
class Node:
    line: int


@dataclass(slots=True)
class Const(Node):
    """A number or a text without anything to expand; `quote` is how it was written, '' for none."""

    value: Any
    quote: str = ""


@dataclass(slots=True)
class Expand(Node):
    """A text in double quotes: pieces of text, variables and `$(…)`."""

    parts: list[Any]


@dataclass(slots=True)
class Var(Node):
    name: str
    scope: str = ""


@dataclass(slots=True)
class TypeName(Node):
    name: str


@dataclass(slots=True)
class Cast(Node):
    type: str
    value: Node


@dataclass(slots=True)
class Member(Node):
    target: Node
    name: Any
    is_static: bool


@dataclass(slots=True)
class Invoke(Node):
    target: Node
    name: Any
    arguments: list[Node]
    is_static: bool


@dataclass(slots=True)
class Index(Node):
    target: Node
    index: Node


@dataclass(slots=True)
class Unary(Node):
    operator: str
    value: Node


@dataclass(slots=True)
class Binary(Node):
    operator: str
    left: Node
    right: Node


@dataclass(slots=True)
class Step(Node):
    """`$name++` or `$name--`, a statement."""

    target: Node
    by: int


@dataclass(slots=True)
class Comma(Node):
    items: list[Node]


@dataclass(slots=True)
class Statements(Node):
    body: list[Node]


@dataclass(slots=True)
class Collect(Node):
    """`@(…)`, or `$(…)` where not `is_array`."""

    body: Statements
    is_array: bool


@dataclass(slots=True)
class Paren(Node):
    value: Node


@dataclass(slots=True)
class HashLiteral(Node):
    entries: list[tuple[Node, Node]]


@dataclass(slots=True)
class Parameter(Node):
    name: str


@dataclass(slots=True)
class Block(Node):
    """`{…}`, a function's body or a whole script."""

    parameters: list[Parameter]
    body: Statements
    text: str
    has_parameters: bool = False


@dataclass(slots=True)
class Argument(Node):
    """`-Name value`, `-Name:value`, `-Name` alone (value None), a value alone (name None)."""

    name: str | None
    value: Node | None
    is_splat: bool = False


@dataclass(slots=True)
class Command(Node):
    """`operator` is '', '&' or '.'; `name` a text, or an expression behind an operator."""

    name: Any
    operator: str
    arguments: list[Argument]


@dataclass(slots=True)
class Pipeline(Node):
    elements: list[Node]


@dataclass(slots=True)
class Assign(Node):
    target: Node
    operator: str
    value: Node


@dataclass(slots=True)
class If(Node):
    branches: list[tuple[Node, Statements]]
    otherwise: Statements | None


@dataclass(slots=True)
class Loop(Node):
    """`while`."""

    condition: Node
    body: Statements


@dataclass(slots=True)
class ForEach(Node):
    variable: Var
    values: Node
    body: Statements


@dataclass(slots=True)
class Try(Node):
    body: Statements
    catches: list[tuple[list[str], Statements]]
    final: Statements | None


@dataclass(slots=True)
class Function(Node):
    name: str
    block: Block


@dataclass(slots=True)
class Flow(Node):
    """`return`, `throw`, `exit`, `break`, `continue`."""

    kind: str
    value: Node | None


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What a script may not hold: where, by which rule, and what stands there."""

    line: int
    rule: str
    text: str
    script: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.script}:{self.line}: {self.rule}: {self.text}"


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.name != "line")


def children(node: Any) -> list[Node]:
    """The nodes right below one."""
    found: list[Node] = []
    waiting = [getattr(node, name) for name in _names(type(node))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, list | tuple):
            waiting += value
    return found[::-1]


def walk(node: Node) -> list[Node]:
    """A node and all below it, parents first."""
    found = []
    waiting = [node]
    while waiting:
        found.append(waiting.pop())
        waiting += reversed(children(found[-1]))
    return found
