"""What is known: the published facts (or the excerpt of them that is kept) and assumed.toml."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperv.world.make_classes import cim_type

EXCERPT = Path(__file__).resolve().parents[1] / "facts.json"
OLDEST = 2016
"""The oldest server that standby works with."""

KINDS = {
    *("cmdlet", "parameter", "output", "class", "property", "method", "argument", "value"),
    *("set", "type", "member", "program", "later", "format"),
}
_FIELDS = {"name": str, "kind": str, "why": str, "source": str, "selftest": str}
_MORE = {"gives": str, "min_server": int, "where": str}


@dataclass(frozen=True, slots=True)
class Assumed:
    """One line of assumed.toml."""

    name: str
    kind: str
    why: str
    source: str
    selftest: str
    gives: str = "any"
    min_server: int = OLDEST
    where: str = ""


def read_assumed(text: str) -> tuple[list[Assumed], list[str]]:
    """The lines of assumed.toml, and what is wrong with their form."""
    data = tomllib.loads(text)
    wrong: list[str] = []
    steps = data.pop("selftest", {})
    lines: list[Assumed] = []
    for entry in data.pop("assumed", []):
        name = entry.get("name", "?")
        for key, value in entry.items():
            kind = _FIELDS.get(key) or _MORE.get(key)
            if kind is None:
                wrong.append(f"{name}: nothing is called {key}")
            elif not isinstance(value, kind) or not value:
                wrong.append(f"{name}: {key} is empty, or no {kind.__name__}")
        missing = sorted(set(_FIELDS) - set(entry))
        if missing:
            wrong.append(f"{name}: {', '.join(missing)} is missing")
            continue
        if entry["kind"] not in KINDS:
            wrong.append(f"{name}: no kind is called {entry['kind']}")
        if entry["selftest"] not in steps:
            wrong.append(f"{name}: no step of the self-test is called {entry['selftest']}")
        if (entry["kind"] == "later") != ("min_server" in entry):
            wrong.append(f"{name}: min_server stands with the kind later, and only there")
        if entry["kind"] == "format" and "where" not in entry:
            wrong.append(f"{name}: a format has where, the module and the text that rely on it")
        lines.append(Assumed(**{k: v for k, v in entry.items() if k in _FIELDS | _MORE}))
    keys = [(line.kind, line.name.lower()) for line in lines]
    wrong += [
        f"{name}: twice as {kind}"
        for kind, name in sorted(set(keys))
        if keys.count((kind, name)) > 1
    ]
    unused = set(steps) - {line.selftest for line in lines}
    wrong += [f"the step {name} of the self-test settles no line" for name in sorted(unused)]
    wrong += [f"nothing is called {key}" for key in data]
    return lines, wrong


@dataclass(frozen=True, slots=True)
class Known:
    """A fact: where it stands, what it says, since which server."""

    name: str
    source: str
    fact: Mapping[str, Any]
    since: int = OLDEST


class Catalog:
    """Looks up facts without regard to case, and remembers which were asked for.

    `cmdlets` and `classes` have the form of the published files, modules left out.
    """

    def __init__(
        self,
        cmdlets: Mapping[str, Any],
        classes: Mapping[str, Any],
        assumed: list[Assumed],
    ) -> None:
        self.cmdlets, self.classes = cmdlets, classes
        self._cmdlets = {name.lower(): name for name in cmdlets}
        self._classes = {name.lower(): name for name in classes}
        self._assumed = {(line.kind, line.name.lower()): line for line in assumed}
        self.assumed = assumed
        self.used: set[tuple[str, str]] = set()
        """Lines of assumed.toml that something needed: (kind, name)."""
        self.touched: set[tuple[str, ...]] = set()
        """Facts that something needed: ("cmdlet", name), ("property", class, name), …"""

    @classmethod
    def of_excerpt(cls, assumed: list[Assumed]) -> Catalog:
        """With the excerpt that is kept beside the tests."""
        kept = json.loads(EXCERPT.read_text())
        return cls(kept["cmdlets"], kept["classes"], assumed)

    def line(self, kind: str, name: str) -> Assumed | None:
        """A line of assumed.toml, from now on a used one."""
        found = self._assumed.get((kind, name.lower()))
        if found is not None:
            self.used.add((kind, found.name))
        return found

    def supposed(self, kind: str, name: str, shown: str = "") -> Known | None:
        """What a line of assumed.toml says, None where there is no such line."""
        line = self.line(kind, name)
        if line is None:
            return None
        told = {"type": line.gives, "parameters": []}
        return Known(shown or line.name, f"assumed.toml ({line.source})", told)

    def _since(self, name: str, since: int) -> int:
        later = self.line("later", name)
        return later.min_server if later else since

    # cmdlets

    def cmdlet(self, name: str) -> Known | None:
        """A command by its name."""
        found = self._cmdlets.get(name.lower())
        if found is not None:
            self.touched.add(("cmdlet", found))
            fact = self.cmdlets[found]
            return Known(found, "hyperv-cmdlets.json", fact, _oldest(fact.get("server_versions")))
        return self.supposed("cmdlet", name)

    def parameter(self, cmdlet: str, name: str) -> Known | None:
        """A command's parameter by its full name."""
        command = self._cmdlets.get(cmdlet.lower(), cmdlet)
        parameters = self.cmdlets.get(command, {}).get("parameters", {})
        for each, fact in parameters.items():
            if each.lower() == name.lower():
                self.touched.add(("parameter", command, each))
                since = self._since(f"{command} -{each}", _oldest(fact.get("server_versions")))
                return Known(each, "hyperv-cmdlets.json", fact, since)
        return self.supposed("parameter", f"{cmdlet} -{name}", name)

    def outputs(self, cmdlet: str) -> list[str]:
        """The short names of the types that a command emits; assumed.toml goes first."""
        line = self.line("output", cmdlet)
        if line:
            return line.gives.split(" or ")
        known = self.cmdlets.get(self._cmdlets.get(cmdlet.lower(), ""), {})
        found = [short(name) for name in known.get("outputs", ())]
        return [name for name in found if name != "CimInstance" or len(found) == 1]

    # classes

    def chain(self, name: str) -> list[str]:
        """A class and its bases, as far as they are published."""
        found = []
        while name and name.lower() in self._classes:
            name = self._classes[name.lower()]
            self.touched.add(("class", name))
            found.append(name)
            name = self.classes[name]["base"] or ""
        return found

    def class_(self, name: str) -> Known | None:
        """A CIM class."""
        chain = self.chain(name)
        if chain:
            fact = self.classes[chain[0]]
            return Known(
                chain[0], f"hyperv-wmi.json ({fact['doc']})", fact, _year(fact["min_server"])
            )
        return self.supposed("class", name)

    def property_(self, class_name: str, name: str) -> Known | None:
        """A property of a CIM class, of its bases, or of an object's type."""
        for owner in self.chain(class_name):
            for each, fact in self.classes[owner]["properties"].items():
                if each.lower() == name.lower():
                    self.touched.add(("property", owner, each))
                    doc = self.classes[owner]["doc"]
                    since = self._since(f"{owner}.{each}", OLDEST)
                    told = {**fact, "type": cim_type(fact["type"])}
                    return Known(f"{owner}.{each}", f"hyperv-wmi.json ({doc})", told, since)
        return self.supposed("property", f"{class_name}.{name}")

    def method(self, class_name: str, name: str) -> Known | None:
        """A method of a CIM class or of its bases."""
        for owner in self.chain(class_name):
            for each, fact in self.classes[owner]["methods"].items():
                if each.lower() == name.lower():
                    self.touched.add(("method", owner, each))
                    since = self._since(f"{owner}.{each}", _year(fact["min_server"]))
                    typed = [{**p, "type": cim_type(p["type"])} for p in fact["parameters"]]
                    fact = {**fact, "parameters": typed}
                    return Known(f"{owner}.{each}", f"hyperv-wmi.json ({fact['doc']})", fact, since)
        return self.supposed("method", f"{class_name}.{name}")

    def documented(self, origin: str) -> Mapping[str, str] | None:
        """The documented values of a property, a method's return or a method's parameter."""
        owner, _, name = origin.partition(".")
        if name.endswith("()"):
            known = self.method(owner, name[:-2])
            return known.fact.get("return_codes") if known else None
        if " " in name:
            method, _, parameter = name.partition(" ")
            known = self.method(owner, method)
            facts = known.fact["parameters"] if known else []
            return next((p.get("values") for p in facts if p["name"] == parameter), None)
        known = self.property_(owner, name)
        return known.fact.get("values") if known else None

    def value(
        self, name: str, documented: Mapping[str, str] | list[str] | None, value: Any
    ) -> Known | None:
        """A value of what has documented ones, or in assumed.toml (`Class.Property = 1`)."""
        if documented and _among(documented, value):
            return Known(name, "among the documented values", {})
        return self.supposed("value", f"{name} = {value}")


def _among(documented: Mapping[str, str] | list[str], value: Any) -> bool:
    if isinstance(value, str) or isinstance(documented, list):
        return str(value).lower() in {each.lower() for each in documented}
    for each, meaning in documented.items():
        first, _, last = each.partition("..")
        if "reserved" in meaning.lower() and "vendor" not in meaning.lower():
            continue
        if first.isdecimal() and int(first) <= value <= int(last or first):
            return True
    return False


def _oldest(versions: list[str] | None) -> int:
    return min((int(each) for each in versions), default=OLDEST) if versions else OLDEST


def _year(text: str | None) -> int:
    digits = "".join(c for c in (text or "") if c.isdigit())[:4]
    return int(digits) if digits else OLDEST


def short(type_name: str) -> str:
    """The last part of a type's name: `VirtualMachine`, `MSFT_Volume`."""
    return type_name.replace("/", ".").rpartition(".")[2].removesuffix("[]")
