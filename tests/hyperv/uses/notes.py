"""What following a script brings: its uses, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hyperv.dialect.syntax import Node
from hyperv.uses.catalog import OLDEST, Catalog, Known
from hyperv.uses.kinds import Kinds, Plain, constants


@dataclass(slots=True)
class Use:
    """One thing of the host that scripts use: where it is known from, and the places."""

    kind: str
    name: str
    source: str
    places: set[str] = field(default_factory=set)


class Notes:
    """`uses` has what a script uses, `findings` what is nowhere known or cannot be told, with the
    places. `guards` are the words of the conditions around the place that is followed."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.uses: dict[tuple[str, str], Use] = {}
        self.findings: set[str] = set()
        self.file = ""
        self.guards: list[frozenset[str]] = []

    def place(self, node: Node) -> str:
        """Where a node stands."""
        return f"{self.file}:{node.line}"

    def find(self, node: Node, text: str) -> None:
        """Something wrong."""
        self.findings.add(f"{self.place(node)}: {text}")

    def use(self, node: Node, kind: str, name: str, known: Known | None, word: str = "") -> bool:
        """A use, or the finding that it is nowhere known, or that it needs a guard: an `if` around
        it whose condition comes from asking for it by name."""
        if known is None:
            self.find(node, f"the {kind} {name} is neither published nor in assumed.toml")
            return False
        key = (kind, name.lower())
        self.uses.setdefault(key, Use(kind, name, known.source)).places.add(self.place(node))
        guard = (word or name).lower()
        if known.since > OLDEST and not any(guard in words for words in self.guards):
            self.find(
                node,
                f"the {kind} {name} is there since Server {known.since}: ask for it by its name, "
                "and use it inside that if",
            )
        return True

    def compared(self, node: Node, values: Kinds, others: Kinds) -> None:
        """Constants that stand beside a property, a return code or a parameter are its values."""
        for value in values:
            if not isinstance(value, Plain) or not value.origin:
                continue
            for const in constants(others):
                self.value(node, value.origin, const)

    def value(self, node: Node, origin: str, const: Any) -> None:
        """One value of a property (`Class.Name`), a return code (`Class.Method()`) or a parameter
        (`Class.Method Name`)."""
        if isinstance(const, bool):
            return
        if origin.startswith("names of "):
            class_name = origin.removeprefix("names of ")
            known = self.catalog.property_(class_name, const)
            if known is None:
                self.find(
                    node,
                    f"the property {class_name}.{const} is neither published nor in assumed.toml",
                )
            return
        documented = self.catalog.documented(origin)
        is_text = isinstance(const, str)
        if not documented and not (is_text and const) and const in (0, ""):
            return  # of what has no documented values, nothing is no value of its own
        known = self.catalog.value(origin, documented, const)
        self.use(node, "value", f"{origin} = {const}", known)
