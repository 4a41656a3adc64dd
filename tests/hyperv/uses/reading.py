"""What Python reads of the answers: the fields of verbs' values beside what the scripts choose, the
properties of embedded instances, and the values that rows are compared with."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import msgspec

from hyperv.uses.catalog import Catalog
from hyperv.uses.kinds import Kinds, Null, Plain, Record, Request, single
from hyperv.uses.notes import Use
from standby.host.hyperv.verbs import Verb

_FITS: dict[type, frozenset[str]] = {
    msgspec.inspect.StrType: frozenset({"string", "guid"}),
    msgspec.inspect.BoolType: frozenset({"boolean"}),
    msgspec.inspect.FloatType: frozenset({"real32", "real64", "number"}),
}
_EVERYWHERE = frozenset({"name", "id", "path"})
"""Attributes that things of every kind have, and no property with values of its own."""
_WHOLE = ("uint", "sint", "number")


class Answers:
    """Compares the answers of scripts with the types that read them.

    `read` maps a row's attribute in Python to the properties that it holds (`Class.Property`).
    """

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.read: dict[str, set[str]] = {}
        self._optional: dict[tuple[str, str], bool] = {}

    def compare(self, verb: Verb[Any], answer: Kinds) -> None:
        """One verb with what its script emits: steps with an id, and a value or an error."""
        values: set[Any] = set()
        for step in answer:
            if isinstance(step, Record) and step.key("id") and step.key("value"):
                values |= step.fields["value"]
            elif not (isinstance(step, Record) and step.key("id") and step.key("error")):
                self.findings.append(f"{verb.name}: emits what is no step")
        if not values:
            self.findings.append(f"{verb.name}: no step has a value")
        self._fit(verb.name, msgspec.inspect.type_info(verb.value), frozenset(values))

    def end(self) -> list[str]:
        """The findings, with the fields that no script chooses."""
        never = sorted(key for key, is_chosen in self._optional.items() if not is_chosen)
        return self.findings + [
            f"{owner}.{name} is read, and chosen nowhere" for owner, name in never
        ]

    def _fit(self, where: str, told: Any, values: Kinds) -> None:
        match told:
            case msgspec.inspect.UnionType():
                kinds = [t for t in told.types if not isinstance(t, msgspec.inspect.NoneType)]
                for each in kinds:
                    self._fit(where, each, values)
                return
            case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
                self._fit(where, told.item_type, single(values))
                return
            case msgspec.inspect.DictType():
                for value in values:
                    if isinstance(value, Record):
                        for inner in (*value.fields.values(), value.star):
                            self._fit(where, told.value_type, inner)
                return
            case msgspec.inspect.StructType():
                for value in values:
                    self._struct(where, told, value)
                return
        for value in values:
            if isinstance(value, Null | Request) or isinstance(told, msgspec.inspect.AnyType):
                continue
            if not isinstance(value, Plain):
                self.findings.append(f"{where}: a {type(value).__name__} is no plain value")
            elif value.is_array:
                self.findings.append(f"{where}: {value.type}[] is read as {_name(told)}")
            elif not _is_read_as(told, value.type):
                self.findings.append(f"{where}: {value.type} is read as {_name(told)}")

    def _struct(self, where: str, told: Any, value: Any) -> None:
        if isinstance(value, Null):
            return
        if not isinstance(value, Record):
            self.findings.append(f"{where}: no {told.cls.__name__} but a {type(value).__name__}")
            return
        known = {each.encode_name for each in told.fields}
        for key in sorted(set(value.fields) - known):
            self.findings.append(
                f"{value.place}: {key} is chosen, and {told.cls.__name__} has none"
            )
        for each in told.fields:
            key = (told.cls.__name__, each.encode_name)
            self._optional[key] = self._optional.get(key, False) or each.encode_name in value.fields
            if each.encode_name in value.fields:
                inner = value.fields[each.encode_name]
                origins = {v.origin for v in inner if isinstance(v, Plain) and v.origin}
                self.read.setdefault(each.name, set()).update(origins)
                self._fit(f"{where}.{each.encode_name}", each.type, inner)
            elif each.required:
                self.findings.append(f"{value.place}: {'.'.join(key)} is needed, and not chosen")


def _is_read_as(told: Any, type_name: str) -> bool:
    if type_name == "any":
        return True
    if isinstance(told, msgspec.inspect.IntType):
        return type_name.startswith(_WHOLE)
    if isinstance(told, msgspec.inspect.CustomType | msgspec.inspect.DateTimeType):
        return type_name in ("datetime", "string")
    return type_name in _FITS.get(type(told), frozenset())


def _name(told: Any) -> str:
    return type(told).__name__.removesuffix("Type").lower()


# --- Python's text ------------------------------------------------------------------------------


class Module:
    """One module's text: what it reads of embedded instances, what it compares rows with."""

    def __init__(
        self, name: str, text: str, constants: dict[str, Any], *, has_rows: bool = True
    ) -> None:
        self.name = name
        self.has_rows = has_rows
        self._text = text
        is_asked = has_rows or "parse_instance" in text
        self._nodes = list(ast.walk(ast.parse(text))) if is_asked else []
        self._constants = constants

    def embedded(self) -> Iterable[tuple[int, str, str]]:
        """(line, class, property): in a function that parses instances of a class, each name that
        `text`, `number`, `values` or `arrays` is asked for."""
        for function in self._nodes if "parse_instance" in self._text else ():
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
            classes = [
                argument.value
                for call in calls
                if isinstance(call.func, ast.Name) and call.func.id == "parse_instance"
                for argument in call.args[1:]
                if isinstance(argument, ast.Constant)
            ]
            for call in calls if classes else ():
                is_asked = isinstance(call.func, ast.Attribute) and call.func.attr in (
                    "text",
                    "number",
                )
                if is_asked and isinstance(call.args[0], ast.Constant):
                    for class_name in classes:
                        yield call.lineno, class_name, call.args[0].value

    def compared(self, attributes: Iterable[str]) -> Iterable[tuple[int, str, Any]]:
        """(line, attribute, value): each constant that an attribute of such a name is compared
        with."""
        wanted = set(attributes) - _EVERYWHERE
        for node in self._nodes:
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            names = [_attribute(side) for side in sides]
            if not all(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops):
                continue
            for name in names:
                if name in wanted:
                    for side in sides:
                        for value in self._values(side):
                            yield node.lineno, name, value

    def _values(self, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.Constant):
            return [] if node.value is None or isinstance(node.value, bool) else [node.value]
        if isinstance(node, ast.Tuple | ast.Set | ast.List):
            return [value for each in node.elts for value in self._values(each)]
        if isinstance(node, ast.Name) and node.id in self._constants:
            value = self._constants[node.id]
            return list(value) if isinstance(value, tuple | frozenset | set) else [value]
        return []


def _attribute(node: ast.expr) -> str:
    """The last attribute in `row.a`, `(row.a or "")`, `row.a or 0`, `(row.a or "").lower()`; a
    variable of two words counts as the attribute of that name."""
    match node:
        case ast.Attribute():
            return node.attr
        case ast.Name() if "_" in node.id:  # `enabled_state`, handed on
            return node.id
        case ast.BoolOp():
            return _attribute(node.values[0])
        case ast.Call(func=ast.Attribute() as function):
            return _attribute(function.value)
    return ""


def modules(loaded: dict[str, Any]) -> Iterable[Module]:
    """Those of the package; `loaded` are the imported ones by their short names."""
    for name, module in sorted(loaded.items()):
        text = files("standby.host.hyperv").joinpath(f"{name}.py").read_text(encoding="utf-8")
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, str | int | tuple | frozenset) and not isinstance(value, bool)
        }
        yield Module(name, text, plain, has_rows=any(map(_is_row, vars(module).values())))


def _is_row(value: Any) -> bool:
    """Whether a module that has this knows rows of answers: their types, or a verb."""
    return isinstance(value, Verb) or (
        isinstance(value, type) and issubclass(value, msgspec.Struct)
    )


def python_uses(
    catalog: Catalog, read: dict[str, set[str]], loaded: dict[str, Any]
) -> tuple[dict[tuple[str, str], Use], list[str]]:
    """Uses of Python's own: properties of embedded instances, values of rows' fields."""
    uses: dict[tuple[str, str], Use] = {}
    findings: list[str] = []

    def note(place: str, kind: str, name: str, known: Any) -> None:
        if known is None:
            findings.append(f"{place}: the {kind} {name} is neither published nor in assumed.toml")
        else:
            key = (kind, name.lower())
            uses.setdefault(key, Use(kind, name, known.source)).places.add(place)

    for module in modules(loaded):
        for line, class_name, name in module.embedded():
            place = f"{module.name}.py:{line}"
            note(place, "class", class_name, catalog.class_(class_name))
            label = f"{class_name}.{name}"
            note(place, "property", label, catalog.property_(class_name, name))
        for line, attribute, value in module.compared(read if module.has_rows else ()):
            place = f"{module.name}.py:{line}"
            note_value(catalog, read[attribute], value, place, note)
    return uses, findings


def note_value(catalog: Catalog, origins: set[str], value: Any, place: str, note: Any) -> None:
    """Tell `note` of a value that a row's attribute is compared with: rows of several classes have
    an attribute of that name, and it is a value of one of them."""
    fitting = [o for o in sorted(origins) if _is_of(catalog, o, value)]
    told = [(origin, catalog.documented(origin)) for origin in fitting]
    if not told or (value in (0, "") and not any(values for _, values in told)):
        return
    known = [(o, found) for o, values in told if (found := catalog.value(o, values, value))]
    origin, found = known[0] if known else (fitting[0], None)
    note(place, "value", f"{origin} = {value}", found)


def _is_of(catalog: Catalog, origin: str, value: Any) -> bool:
    owner, _, name = origin.partition(".")
    known = catalog.property_(owner, name) if " " not in name and "()" not in name else None
    is_text = known is not None and known.fact["type"] in ("string", "string[]", "any")
    return known is None or is_text == isinstance(value, str)
