"""The project's scripts, followed one by one as they are sent: the bootstrap, the prelude, the
script; and the verbs that read their answers."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import standby.host.hyperv
from hyperv.dialect import syntax as s
from hyperv.dialect.check import examine
from hyperv.uses.catalog import Assumed, Catalog, read_assumed
from hyperv.uses.kinds import Code, Kinds, Request, plain
from hyperv.uses.notes import Use
from hyperv.uses.reading import Answers, python_uses
from hyperv.uses.remedies import texts, told_commands
from hyperv.uses.walker import Scope, Walker, unreached
from standby.host.hyperv.payload import BOOTSTRAP
from standby.host.hyperv.verbs import Verb, script_text

PACKAGE = files("standby.host.hyperv")


def assumed_text() -> str:
    """assumed.toml."""
    return PACKAGE.joinpath("assumed.toml").read_text(encoding="utf-8")


def assumed() -> list[Assumed]:
    """The lines of assumed.toml."""
    return read_assumed(assumed_text())[0]


def script_names() -> list[str]:
    """The scripts of the package, but for the prelude."""
    names = [p.name[:-4] for p in PACKAGE.joinpath("scripts").iterdir() if p.name.endswith(".ps1")]
    return sorted(set(names) - {"prelude"})


@cache
def loaded_modules() -> dict[str, Any]:
    """The package's modules by their short names."""
    return {
        each.name: importlib.import_module(f"standby.host.hyperv.{each.name}")
        for each in pkgutil.iter_modules(standby.host.hyperv.__path__)
    }


@cache
def verbs() -> dict[str, Verb[Any]]:
    """Every verb of the package's modules, by its name."""
    values = [value for module in loaded_modules().values() for value in vars(module).values()]
    return {value.name: value for value in values if isinstance(value, Verb)}


@cache
def _parsed(name: str, text: str, functions: tuple[str, ...] = ()) -> s.Block:
    findings, block = examine(text, name, functions)
    assert block is not None, findings
    assert not findings
    return block


@cache
def _prelude() -> tuple[s.Block, tuple[str, ...]]:
    block = _parsed("prelude", script_text("prelude"))
    return block, tuple(n.name for n in s.walk(block) if isinstance(n, s.Function))


def examined(name: str, text: str) -> s.Block:
    """A script's parsed form; it is in the dialect."""
    return _parsed(name, text, _prelude()[1])


@dataclass(slots=True)
class Followed:
    """What following scripts brought: their uses, what is wrong, what each script answers."""

    uses: dict[tuple[str, str], Use] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    answers: dict[str, Kinds] = field(default_factory=dict)


def follow_one(catalog: Catalog, name: str, text: str) -> tuple[Walker, Kinds]:
    """A script behind the prelude, as the payload puts them together."""
    prelude, _ = _prelude()
    code = Code(examined(name, text), name)
    walker = Walker(catalog)

    def run(walker: Walker, scope: Scope) -> Kinds:
        answer, file = scope.functions["answer"]
        given = {
            "verb": frozenset({code}),
            "text": plain("string"),
            "mark": plain("string"),
        }
        walker.call(answer, Code(answer.block, file), scope, given, [])
        return walker.call(code.block, code, scope, {}, [frozenset({Request()})])

    return walker, walker.follow([("prelude", prelude)], run, code.block)


def follow_bootstrap(catalog: Catalog) -> Walker:
    """The text on powershell.exe's command line."""
    walker = Walker(catalog)
    walker.follow([("bootstrap", _parsed("bootstrap", BOOTSTRAP))], lambda *_: frozenset())
    return walker


def follow_all(catalog: Catalog) -> Followed:
    """Every script of the package."""
    found = Followed()
    walkers = [follow_bootstrap(catalog)]
    prelude, _ = _prelude()
    texts = {name: script_text(name) for name in script_names()}
    texts |= {verb.name: verb.text for verb in verbs().values() if verb.text}
    for name, text in texts.items():
        walker, found.answers[name] = follow_one(catalog, name, text)
        found.findings += unreached([walker], name, examined(name, text))
        walkers.append(walker)
    found.findings += unreached(walkers, "prelude", prelude)
    for walker in walkers:
        found.findings += sorted(walker.findings)
        for key, use in walker.uses.items():
            found.uses.setdefault(key, Use(use.kind, use.name, use.source)).places |= use.places
    return found


def follow_project(catalog: Catalog) -> Followed:
    """Every script, and what Python reads of their answers. What stands in `findings` is wrong."""
    found = follow_all(catalog)
    answers = Answers()
    for name, answer in found.answers.items():
        if name in verbs():
            answers.compare(verbs()[name], answer)
        else:
            found.findings.append(f"{name}: no verb runs this script")
    found.findings += answers.end()
    uses, findings = python_uses(catalog, answers.read, loaded_modules())
    found.uses |= uses
    found.findings += findings
    _remedies(catalog, found)
    for line in catalog.assumed:
        if line.kind == "format":
            found.findings += format_problem(catalog, line)
    found.findings = sorted(set(found.findings))
    return found


def _remedies(catalog: Catalog, found: Followed) -> None:
    """The commands that messages tell a user to run."""
    for name, text in texts(loaded_modules()):
        for place, cmdlet, parameters in told_commands(name, text):
            known = catalog.cmdlet(cmdlet)
            asked = [("cmdlet", cmdlet, known)]
            if known is not None:
                asked += [
                    ("parameter", f"{cmdlet} -{each}", catalog.parameter(cmdlet, each))
                    for each in parameters
                ]
            for kind, label, told in asked:
                if told is None:
                    found.findings.append(
                        f"{place}: the {kind} {label} is neither published nor in assumed.toml"
                    )
                else:
                    key = (kind, label.lower())
                    found.uses.setdefault(key, Use(kind, label, told.source)).places.add(place)


def format_problem(catalog: Catalog, line: Assumed) -> list[str]:
    """How texts are made up: the code that relies on it stands where the line says."""
    module, _, text = line.where.partition(": ")
    path = PACKAGE.joinpath(module)
    if not path.is_file() or text not in path.read_text(encoding="utf-8"):
        return [f"{line.name}: {line.where} is not there"]
    catalog.line("format", line.name)
    return []


def unused(catalog: Catalog) -> list[str]:
    """The lines of assumed.toml that nothing needed."""
    return [
        f"{line.kind} {line.name}: nothing uses it"
        for line in catalog.assumed
        if (line.kind, line.name) not in catalog.used
    ]


def listed(found: Followed) -> list[str]:
    """All uses: kind, name, where it is known from, where it is used."""
    return [
        f"{use.kind:10} {use.name:70} {use.source:50} {' '.join(sorted(use.places))}"
        for _, use in sorted(found.uses.items())
    ]
