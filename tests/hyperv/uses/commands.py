"""What a script's commands use, and what they give: cmdlets, our own functions, programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyperv.dialect import syntax as s
from hyperv.dialect.syntax import Node
from hyperv.uses.catalog import Known
from hyperv.uses.kinds import (
    NOTHING,
    Code,
    Instance,
    Kinds,
    Null,
    Object,
    Plain,
    Record,
    Request,
    Result,
    Schema,
    constants,
    plain,
    single,
)

if TYPE_CHECKING:
    from hyperv.uses.walker import Scope, Walker

_COMMON = frozenset({"erroraction", "warningaction", "verbose", "debug"})
"""about_CommonParameters; the facts leave them out, as they say."""
_FIRST = {"foreach-object": "Process", "where-object": "FilterScript"}
_REPLACED = frozenset({"string", "any"})
_NUMBERS = ("uint", "sint", "real")


class Commands:
    """The commands of one walker."""

    def __init__(self, walker: Walker) -> None:
        self._w = walker
        self._special = {
            "foreach-object": self._for_each,
            "where-object": self._where,
            "select-object": self._select,
            "sort-object": self._sort,
            "write-output": lambda node, given, inputs: given.get("inputobject", inputs or NOTHING),
            "convertfrom-json": lambda *_: frozenset({Request()}),
            "convertto-json": lambda *_: plain("string"),
            "get-date": lambda *_: plain("datetime"),
            "get-ciminstance": self._get_instance,
            "get-cimassociatedinstance": self._associated,
            "get-cimclass": self._get_class,
            "new-ciminstance": self._new_instance,
            "invoke-cimmethod": self._invoke_method,
        }

    # --- any command -------------------------------------------------------------------------

    def call(self, node: s.Command, scope: Scope, inputs: Kinds | None) -> Kinds:
        """What a command gives."""
        self._scope = scope
        if not isinstance(node.name, str):
            found = NOTHING
            blocks = self._w.node(node.name, scope)
            named, rest = self._arguments(node, scope)
            for each in blocks:
                if isinstance(each, Code):
                    found |= self._w.call(node, each, scope, named, rest)
                elif isinstance(each, Object) and each.type == "ScriptBlock":
                    continue  # the payload itself, which is followed on its own
                elif not isinstance(each, Null):
                    self._w.find(node, "it is not clear what is called here")
            return found
        own = scope.function(node.name.lower())
        if own is not None:
            function, file = own
            named, rest = self._arguments(node, scope)
            return self._w.call(node, Code(function.block, file), scope, named, rest)
        if node.name.lower().endswith(".exe"):
            return self._program(node, scope)
        return self._cmdlet(node, scope, inputs)

    def _arguments(self, node: s.Command, scope: Scope) -> tuple[dict[str, Kinds], list[Kinds]]:
        named, rest = {}, []
        for argument in node.arguments:
            value = (
                plain("boolean", True)
                if argument.value is None
                else self._w.node(argument.value, scope)
            )
            if argument.is_splat:
                for record in value:
                    if isinstance(record, Record):
                        named |= {key.lower(): v for key, v in record.fields.items()}
            elif argument.name is None:
                rest.append(value)
            else:
                named[argument.name.lower()] = value
        return named, rest

    def _program(self, node: s.Command, scope: Scope) -> Kinds:
        words = [node.name]
        for argument in node.arguments:
            if argument.value is not None:
                values = self._w.node(argument.value, scope)
                switches = [c for c in constants(values) if str(c).startswith(("/", "-"))]
                words += [f"{node.name} {switch}" for switch in switches]
            if argument.name is not None:
                words.append(f"{node.name} -{argument.name}")
        for word in words:
            self._w.use(node, "program", word, self._w.catalog.supposed("program", word))
        return plain("string")

    def _cmdlet(self, node: s.Command, scope: Scope, inputs: Kinds | None) -> Kinds:
        known = self._w.catalog.cmdlet(node.name)
        if not self._w.use(node, "cmdlet", node.name, known):
            return NOTHING
        assert known is not None
        named, rest = self._arguments(node, scope)
        if rest and known.name.lower() in _FIRST:
            named[_FIRST[known.name.lower()].lower()] = rest[0]
        elif rest:
            self._w.find(node, f"a nameless argument of {known.name}")
        given = set()
        for name, values in named.items():
            if name in _COMMON:
                continue
            parameter = self._w.catalog.parameter(known.name, _written(node, name))
            label = parameter.name if parameter else _written(node, name)
            if not self._w.use(node, "parameter", f"{known.name} -{label}", parameter):
                continue
            assert parameter is not None
            given.add(parameter.name)
            documented = parameter.fact.get("values")
            for const in constants(values) if documented else ():
                label = f"{known.name} -{parameter.name}"
                value = self._w.catalog.value(label, documented, const)
                self._w.use(node, "value", f"{label} = {const}", value)
        self._one_set_fits(node, known, given, inputs is not None)
        special = self._special.get(known.name.lower())
        if special is not None:
            return special(node, named, inputs)
        found = NOTHING
        for name in self._w.catalog.outputs(known.name):
            found |= self._w.members.given("string" if name == "String" else name)
        return found

    def _one_set_fits(self, node: Node, known: Known, given: set[str], is_piped: bool) -> None:
        sets = known.fact.get("parameter_sets", {})
        if not sets:
            return
        facts = known.fact["parameters"]
        piped = (
            {name for name, fact in facts.items() if fact.get("pipeline")} if is_piped else set()
        )
        fits = [
            (set(one["mandatory"]) - given, set(one["mandatory"]) - given - piped)
            for one in sets.values()
            if given <= {*one["mandatory"], *one["optional"]}
        ]
        # What is piped fills one parameter.
        if any(not left and len(missing) <= 1 for missing, left in fits):
            return
        if fits:
            missing = min((sorted(missing) for missing, _ in fits), key=len)
            self._w.find(node, f"{known.name} lacks -{', -'.join(missing)}")
        else:
            names = ", ".join(f"-{name}" for name in sorted(given))
            self._w.find(node, f"no parameter set of {known.name} has {names} together")

    # --- the language's own ------------------------------------------------------------------

    def _each(self, blocks: Kinds, values: Kinds) -> Kinds:
        scope = self._scope
        before = scope.values.get("_")
        scope.values["_"] = single(values)
        found = NOTHING
        for code in blocks:
            if isinstance(code, Code):
                found |= single(self._w.block(code.block, scope))
        self._scope = scope
        if before is None:
            del scope.values["_"]
        else:
            scope.values["_"] = before
        return found

    def _for_each(self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None) -> Kinds:
        values = given.get("inputobject", inputs or NOTHING)
        return self._each(given.get("process", NOTHING), values - {Null()})

    def _where(self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None) -> Kinds:
        values = given.get("inputobject", inputs or NOTHING)
        self._each(given.get("filterscript", NOTHING), values - {Null()})
        return values

    def _select(self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None) -> Kinds:
        values = given.get("inputobject", inputs or NOTHING) - {Null()}
        if "expandproperty" in given:
            return self._properties(node, values, given["expandproperty"])
        if "property" not in given:
            return values
        record = self._w.record(node)
        names = constants(given["property"])
        if len(names) < len(given["property"]):
            self._w.find(node, "which properties are chosen is not written down")
        for name in names:
            record.add(name, self._properties(node, values, plain("string", name)))
        return frozenset({record})

    def _properties(self, node: s.Command, values: Kinds, names: Kinds) -> Kinds:
        found = NOTHING
        for name in constants(names):
            for value in values:
                found |= self._w.members.property_(node, value, str(name))
        return found

    def _sort(self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None) -> Kinds:
        values = given.get("inputobject", inputs or NOTHING) - {Null()}
        self._each(given.get("property", NOTHING), values)
        self._properties(node, values, given.get("property", NOTHING))
        return values

    # --- CIM ---------------------------------------------------------------------------------

    def _class(self, node: s.Command, names: Kinds, what: str) -> list[str]:
        found = []
        for name in constants(names):
            known = self._w.catalog.class_(name)
            if self._w.use(node, "class", name, known) and known is not None:
                found.append(known.name)
        if not constants(names):
            self._w.find(node, f"{what} is not written down")
        return found

    def _get_instance(
        self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None
    ) -> Kinds:
        if "classname" not in given:
            return frozenset(
                v for v in given.get("inputobject", inputs or NOTHING) if isinstance(v, Instance)
            )
        found = self._class(node, given["classname"], "the class")
        for class_name in found:
            names = {str(name) for name in constants(given.get("property", NOTHING))}
            names |= self._filtered(node, "filter")
            for name in sorted(names):
                self.read(node, Instance(class_name), name)
        return frozenset(Instance(name) for name in found)

    def _filtered(self, node: s.Command, parameter: str) -> set[str]:
        """The names of properties in a filter: words before an operator, outside quotes."""
        for argument in node.arguments:
            if (argument.name or "").lower() != parameter:
                continue
            value = argument.value
            parts: list[Any] = (
                value.parts if isinstance(value, s.Expand) else [getattr(value, "value", "")]
            )
            text = "".join(part if isinstance(part, str) else "_" for part in parts)
            bare = "".join(text.split("'")[::2]).replace("=", " = ")
            words = [w for w in bare.replace("(", " ").replace(")", " ").split() if w[0].isalpha()]
            return {w for w in words if w.upper() not in ("AND", "OR", "NOT", "LIKE", "IS", "NULL")}
        return set()

    def _associated(self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None) -> Kinds:
        for name in constants(given.get("association", NOTHING)):
            self._w.use(node, "class", name, self._w.catalog.class_(name))
        owners = given.get("inputobject", inputs or NOTHING) - {Null()}
        if not all(isinstance(owner, Instance) for owner in owners):
            self._w.find(node, "it is not clear of which instance these are the associated ones")
        found = self._class(node, given.get("resultclassname", NOTHING), "-ResultClassName")
        return frozenset(Instance(name) for name in found)

    def _get_class(self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None) -> Kinds:
        found = self._class(node, given.get("classname", NOTHING), "the class")
        return frozenset(Schema(name) for name in found)

    def _new_instance(
        self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None
    ) -> Kinds:
        names = [v.class_name for v in given.get("cimclass", NOTHING) if isinstance(v, Schema)]
        if "classname" in given:
            names += self._class(node, given["classname"], "the class")
        for record in given.get("property", NOTHING):
            if isinstance(record, Record):
                for key, values in record.fields.items():
                    with self._w.guarded(record, key):
                        for name in names:
                            self.write(node, name, key, values)
        return frozenset(Instance(name) for name in names)

    def _invoke_method(
        self, node: s.Command, given: dict[str, Kinds], inputs: Kinds | None
    ) -> Kinds:
        owners = [v for v in given.get("inputobject", inputs or NOTHING) if isinstance(v, Instance)]
        names = [v.class_name for v in owners]
        if "classname" in given:
            names += self._class(node, given["classname"], "the class")
        if not names:
            self._w.find(node, "it is not clear of what this is a method")
        found = set()
        for class_name in names:
            for method in constants(given.get("methodname", NOTHING)):
                known = self._w.catalog.method(class_name, method)
                if self._w.use(node, "method", f"{class_name}.{method}", known, method):
                    assert known is not None
                    self._method_arguments(node, known, given.get("arguments", NOTHING))
                    found.add(Result(class_name, method))
        return frozenset(found)

    def _method_arguments(self, node: s.Command, known: Known, given: Kinds) -> None:
        parameters = {
            p["name"].lower(): p
            for p in known.fact["parameters"]
            if "in" in p["direction"].split("/")
        }
        for record in given:
            if not isinstance(record, Record):
                continue
            for key, values in record.fields.items():
                fact = parameters.get(key.lower())
                name = fact["name"] if fact else key
                with self._w.guarded(record, key):
                    self._argument(node, f"{known.name} {name}", known, fact, values)

    def _argument(
        self,
        node: s.Command,
        label: str,
        method: Known,
        fact: Mapping[str, Any] | None,
        values: Kinds,
    ) -> None:
        known = (
            Known(label, method.source, fact)
            if fact
            else self._w.catalog.supposed("argument", label)
        )
        if not self._w.use(node, "argument", label, known):
            return
        assert known is not None
        self._typed(node, label, known.fact["type"], values)
        for const in constants(values) if fact and fact.get("values") else ():
            self._w.value(node, label, const)

    # --- properties and values ---------------------------------------------------------------

    def has(self, value: Instance | Result, name: str) -> bool:
        """Whether it has a property of that name."""
        if isinstance(value, Instance):
            return self._w.catalog.property_(value.class_name, name) is not None
        return any(p["name"].lower() == name.lower() for p in self._parameters(value))

    def _parameters(self, value: Result) -> list[Mapping[str, Any]]:
        known = self._w.catalog.method(value.class_name, value.method)
        return list(known.fact["parameters"]) if known else []

    def read(self, node: Node, value: Instance | Result | Object, name: str) -> Kinds:
        """A property that is read."""
        if isinstance(value, Result):
            return self._answered(node, value, name)
        owner = value.class_name if isinstance(value, Instance) else value.type
        known = self._w.catalog.property_(owner, name)
        if not self._w.use(node, "property", f"{owner}.{name}", known, name):
            return NOTHING
        assert known is not None
        return self._typed_as(known.fact["type"], f"{owner}.{known.name.rpartition('.')[2]}")

    def _answered(self, node: Node, value: Result, name: str) -> Kinds:
        label = f"{value.class_name}.{value.method}"
        if name.lower() == "returnvalue":
            return plain("uint32", None, f"{label}()")
        for fact in self._parameters(value):
            if fact["name"].lower() == name.lower() and "out" in fact["direction"].split("/"):
                known = self._w.catalog.method(value.class_name, value.method)
                assert known is not None
                told = Known(fact["name"], known.source, fact)
                self._w.use(node, "argument", f"{label} {fact['name']}", told)
                return self._typed_as(fact["type"], f"{label} {fact['name']}")
        self._w.use(node, "argument", f"{label} {name}", None)
        return NOTHING

    def _typed_as(self, type_name: str, origin: str) -> Kinds:
        name = type_name.removesuffix("[]").strip()
        if name.endswith(" REF"):
            name = name.removesuffix(" REF")
            line = self._w.catalog.line("output", name)
            return self._w.members.given(line.gives if line else f"class {name}")
        found = self._w.members.given(name, origin)
        if not type_name.endswith("[]"):
            return found
        return frozenset(replace(v, is_array=True) if isinstance(v, Plain) else v for v in found)

    def write(self, node: Node, class_name: str, name: str, values: Kinds) -> None:
        """A property that is set, in an instance of the script's own."""
        known = self._w.catalog.property_(class_name, name)
        if not self._w.use(node, "property", f"{class_name}.{name}", known, name):
            return
        assert known is not None
        origin = f"{class_name}.{known.name.rpartition('.')[2]}"
        if known.fact.get("access") == "read-only":
            self._w.use(node, "set", origin, self._w.catalog.supposed("set", origin), name)
        self._typed(node, origin, known.fact["type"], values)
        if self._w.catalog.documented(origin):
            for const in constants(values):
                self._w.value(node, origin, const)

    def _typed(self, node: Node, label: str, wanted: str, values: Kinds) -> None:
        """A value for CIM has exactly the type that CIM has: PowerShell casts nothing by itself."""
        name = wanted.removesuffix("[]").strip()
        for value in values:
            if isinstance(value, Null):
                continue
            if name.endswith(" REF"):
                target = name.removesuffix(" REF")
                is_fit = isinstance(value, Instance) and self._is_a(value.class_name, target)
                if not is_fit:
                    self._w.find(node, f"{label} takes a {target}")
                continue
            told = value.type if isinstance(value, Plain) else "any"
            if told == "any" and isinstance(value, Instance | Record | Result):
                told = type(value).__name__.lower()
            is_number = name.rstrip("0123456789") in _NUMBERS
            if told == name or name == "any" or (not is_number and told in ("any", "string")):
                if not is_number and name in ("boolean", "datetime") and told == "string":
                    self._w.find(node, f"{label} takes a {name}, not a string")
                continue
            self._w.find(node, f"{label} takes a {name}, not a {told}: cast it")

    def _is_a(self, class_name: str, target: str) -> bool:
        """Whether an instance of a class may be one of `target`; a base that is not published
        cannot be told from another."""
        classes = self._w.catalog.classes
        chain = self._w.catalog.chain(class_name)
        if target not in classes or class_name in self._w.catalog.chain(target):
            return True
        return target in [*chain, *(classes[name]["base"] for name in chain)]


def _written(node: s.Command, name: str) -> str:
    """A parameter's name as the script has it."""
    return next((a.name for a in node.arguments if a.name and a.name.lower() == name), name)
