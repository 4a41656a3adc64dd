"""Follows a script's text and finds what it uses of the host.

Nothing runs: a variable is all that is ever assigned to it, both branches are taken, a function is
followed anew wherever it is called, with what is given to it there. The text is followed until
nothing new comes up; only the last time counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hyperv.dialect import syntax as s
from hyperv.dialect.syntax import Node, children, walk
from hyperv.uses.catalog import Catalog
from hyperv.uses.kinds import (
    NOTHING,
    Code,
    Instance,
    Kinds,
    Null,
    Object,
    Plain,
    Record,
    Type,
    constants,
    plain,
    single,
)
from hyperv.uses.members import Members
from hyperv.uses.notes import Notes

CASTS = {
    "byte": "uint8",
    "int": "sint32",
    "int16": "sint16",
    "int32": "sint32",
    "int64": "sint64",
    "long": "sint64",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "double": "real64",
    "bool": "boolean",
    "switch": "boolean",
    "string": "string",
    "datetime": "datetime",
    "timespan": "timespan",
    "guid": "guid",
}
_EQUALITY = frozenset(
    ["-eq", "-ne", "-in", "-notin", "-contains", "-notcontains", "-like", "-notlike"]
)
_OWN_VARIABLES = {
    "erroractionpreference": "string",
    "progresspreference": "string",
    "lastexitcode": "sint32",
}


class Scope:
    """Variables and functions; one that is not here is the caller's."""

    def __init__(self, above: Scope | None = None) -> None:
        self.above = above
        self.values: dict[str, Kinds] = {}
        self.functions: dict[str, tuple[s.Function, str]] = {}

    def get(self, name: str) -> Kinds | None:
        """What a variable may be, None where nobody assigned it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.above
        return None

    def function(self, name: str) -> tuple[s.Function, str] | None:
        """A function and the file that it stands in."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.functions:
                return scope.functions[name]
            scope = scope.above
        return None


class Walker(Notes):
    """Follows one payload: the prelude, then a script."""

    def __init__(self, catalog: Catalog) -> None:
        from hyperv.uses.commands import Commands

        super().__init__(catalog)
        self.reached: set[tuple[str, int]] = set()
        """Nodes that were followed: the file and the node's id."""
        self.commands = Commands(self)
        self.members = Members(self)
        self._records: dict[tuple[int, ...], Record] = {}
        self._mentions: dict[str, set[str]] = {}
        self._conditions: dict[int, frozenset[str]] = {}
        self._calls: list[int] = []
        self._sites: list[int] = []

    # --- a whole payload ---------------------------------------------------------------------

    def follow(
        self,
        parts: list[tuple[str, s.Block]],
        run: Callable[[Walker, Scope], Kinds],
        *more: s.Block,
    ) -> Kinds:
        """Follow `parts` (files and their scripts) from the top, then `run`, which follows `more`;
        what that gives."""
        size = -1
        answer = NOTHING
        for block in (*(block for _, block in parts), *more):
            self._note_mentions(block)
        scope = Scope()
        while True:
            self.findings.clear()
            for file, block in parts:
                self.file = file
                self.block(block, scope)
            answer = answer | run(self, scope)
            grown = len(answer) + sum(record.size() for record in self._records.values())
            grown += sum(len(values) for values in scope.values.values())
            if grown == size:
                return answer
            size = grown

    def _note_mentions(self, block: s.Block) -> None:
        """For guards: the texts that what is assigned to a variable mentions, through others."""
        assigned = [
            (node.target.name.lower(), node.value)
            for node in walk(block)
            if isinstance(node, s.Assign) and isinstance(node.target, s.Var)
        ]
        grown = -1
        while grown != (grown := sum(len(words) for words in self._mentions.values())):
            for name, value in assigned:
                self._mentions.setdefault(name, set()).update(self._words(value))

    def _words(self, node: Node) -> set[str]:
        words = self._texts(node)
        for each in walk(node):
            if isinstance(each, s.Var):
                words |= self._mentions.get(each.name.lower(), set())
        return words

    def _texts(self, node: Node) -> set[str]:
        return {
            each.value.lower()
            for each in walk(node)
            if isinstance(each, s.Const) and isinstance(each.value, str)
        }

    # --- blocks ------------------------------------------------------------------------------

    def block(self, block: s.Block, scope: Scope) -> Kinds:
        """What a block gives, in a scope that has its parameters already."""
        return self.node(block.body, scope)

    def call(
        self,
        site: Node,
        code: Code,
        scope: Scope,
        named: dict[str, Kinds],
        rest: list[Kinds],
    ) -> Kinds:
        """What a function or a block gives for these arguments, called at `site`."""
        block, file = code.block, code.file
        if self._calls.count(id(block)) > 1:
            return NOTHING
        inner = Scope(scope)
        left = list(rest)
        for parameter in block.parameters:
            name = parameter.name.lower()
            if name in named:
                inner.values[name] = named[name]
            elif left:
                inner.values[name] = left.pop(0)
            else:
                inner.values[name] = frozenset({Null()})
        before, self.file = self.file, file
        self._calls.append(id(block))
        self._sites.append(id(site))
        given = self.block(block, inner)
        self._calls.pop()
        self._sites.pop()
        self.file = before
        return given

    # --- nodes -------------------------------------------------------------------------------

    def node(self, node: Any, scope: Scope) -> Kinds:
        """What a node gives."""
        self.reached.add((self.file, id(node)))
        return getattr(self, f"_{type(node).__name__.lower()}")(node, scope)  # type: ignore[no-any-return]

    def _statements(self, node: s.Statements, scope: Scope) -> Kinds:
        found = NOTHING
        for each in node.body:
            found |= self.node(each, scope)
        return found

    def _pipeline(self, node: s.Pipeline, scope: Scope) -> Kinds:
        given = self.node(node.elements[0], scope)
        for each in node.elements[1:]:
            assert isinstance(each, s.Command)
            self.reached.add((self.file, id(each)))
            given = self.commands.call(each, scope, given)
        return given

    def _command(self, node: s.Command, scope: Scope) -> Kinds:
        return self.commands.call(node, scope, None)

    def _assign(self, node: s.Assign, scope: Scope) -> Kinds:
        values = self.node(node.value, scope)
        target = node.target.value if isinstance(node.target, s.Cast) else node.target
        if isinstance(node.target, s.Cast):
            values = self.cast(node.target.type, values)
        if isinstance(target, s.Var):
            name = target.name.lower()
            if node.operator != "=":
                values |= scope.get(name) or NOTHING
            scope.values[name] = scope.values.get(name, NOTHING) | values
        elif isinstance(target, s.Index):
            keys = self.node(target.index, scope)
            for owner in self.node(target.target, scope):
                if isinstance(owner, Record):
                    self.put(owner, keys, values)
        elif isinstance(target, s.Member):
            self.reached.add((self.file, id(target)))
            for owner in self.node(target.target, scope):
                if isinstance(owner, Record):
                    self.put(owner, plain("string", target.name), values)
                elif isinstance(owner, Instance):
                    self.commands.write(node, owner.class_name, target.name, values)
                elif isinstance(owner, Object):
                    self.commands.read(node, owner, target.name)
                elif not isinstance(owner, Null):
                    self.find(node, f"it is not clear what {target.name} is assigned to")
        return NOTHING

    def put(self, record: Record, keys: Kinds, values: Kinds) -> None:
        """Values under keys, where these are written down; else under any."""
        names = constants(keys)
        if names and all(isinstance(k, Plain) and k.const is not None for k in keys):
            words = frozenset[str]().union(*self.guards)
            for name in names:
                record.add(str(name), values)
                key = record.key(str(name))
                record.guards[key] = record.guards.get(key, words) & words
        else:
            record.star |= values

    def _if(self, node: s.If, scope: Scope) -> Kinds:
        found = NOTHING
        for condition, body in node.branches:
            self.node(condition, scope)
            words = self._conditions.get(id(condition))
            if words is None:
                words = self._conditions[id(condition)] = frozenset(self._words(condition))
            self.guards.append(words)
            found |= self.node(body, scope)
            self.guards.pop()
        if node.otherwise is not None:
            found |= self.node(node.otherwise, scope)
        return found

    def _loop(self, node: s.Loop, scope: Scope) -> Kinds:
        found = NOTHING
        for _ in range(2):  # what the end assigns is there at the beginning
            self.node(node.condition, scope)
            found |= self.node(node.body, scope)
        return found

    def _foreach(self, node: s.ForEach, scope: Scope) -> Kinds:
        name = node.variable.name.lower()
        values = single(self.node(node.values, scope)) - {Null()}
        scope.values[name] = scope.values.get(name, NOTHING) | values
        return self.node(node.body, scope) | self.node(node.body, scope)

    def _try(self, node: s.Try, scope: Scope) -> Kinds:
        found = self.node(node.body, scope)
        before = scope.values.get("_")
        scope.values["_"] = frozenset({Object("ErrorRecord")})
        for names, body in node.catches:
            for name in names:
                self.type_use(node, name)
            found |= self.node(body, scope)
        if before is None:
            del scope.values["_"]
        else:
            scope.values["_"] = before
        return found | (self.node(node.final, scope) if node.final is not None else NOTHING)

    def _function(self, node: s.Function, scope: Scope) -> Kinds:
        scope.functions[node.name.lower()] = (node, self.file)
        return NOTHING

    def _flow(self, node: s.Flow, scope: Scope) -> Kinds:
        given = self.node(node.value, scope) if node.value is not None else NOTHING
        return given if node.kind == "return" else NOTHING

    # --- values ------------------------------------------------------------------------------

    def _const(self, node: s.Const, scope: Scope) -> Kinds:
        if isinstance(node.value, str):
            return plain("string", node.value)
        if isinstance(node.value, float):
            return plain("real64")
        is_long = type(node.value).__name__ == "Int64"
        return plain("sint64" if is_long else "sint32", int(node.value))

    def _expand(self, node: s.Expand, scope: Scope) -> Kinds:
        for part in node.parts:
            if isinstance(part, Node):
                self.node(part, scope)
        return plain("string")

    def _var(self, node: s.Var, scope: Scope) -> Kinds:
        name = node.name.lower()
        if name in ("true", "false"):
            return plain("boolean", name == "true")
        if name == "null":
            return frozenset({Null()})
        if node.scope == "env":
            return plain("string")
        if name == "error":
            return frozenset({Object("ErrorRecord")})
        if name in _OWN_VARIABLES:
            return plain(_OWN_VARIABLES[name])
        found = scope.get("_" if name == "psitem" else name)
        if found is None:
            self.find(node, f"nothing is assigned to ${node.name} before")
        return found or NOTHING

    def type_use(self, node: Node, name: str) -> None:
        """A .NET type by its name."""
        plain_name = name.removeprefix("System.")
        if plain_name.lower() in CASTS or plain_name.lower() in ("hashtable", "pscustomobject"):
            return  # the language's own
        self.use(node, "type", plain_name, self.catalog.supposed("type", plain_name))

    def _typename(self, node: s.TypeName, scope: Scope) -> Kinds:
        self.type_use(node, node.name)
        return frozenset({Type(node.name.removeprefix("System."))})

    def _cast(self, node: s.Cast, scope: Scope) -> Kinds:
        values = self.node(node.value, scope)
        if node.type.lower().removeprefix("system.") in ("void",):
            return NOTHING
        return self.cast(node.type, values)

    def cast(self, type_name: str, values: Kinds) -> Kinds:
        """The values as a cast makes them; an array's or an object's stay."""
        type_ = CASTS.get(type_name.lower().removeprefix("system."))
        if type_ is None:
            return values
        return frozenset(
            Plain(type_, v.const if type_ != "boolean" else None, v.origin)
            if isinstance(v, Plain)
            else Plain(type_)
            for v in values
        )

    def _unary(self, node: s.Unary, scope: Scope) -> Kinds:
        values = self.node(node.value, scope)
        if node.operator in ("-not", "!"):
            return plain("boolean")
        return plain("sint32", -constants(values)[0]) if constants(values) else plain("number")

    def _binary(self, node: s.Binary, scope: Scope) -> Kinds:
        left, right = self.node(node.left, scope), self.node(node.right, scope)
        if node.operator in _EQUALITY:
            self.compared(node, left, right)
            self.compared(node, right, left)
        if node.operator == "-join":
            return plain("string")
        if node.operator not in ("+", "-", "*", "/", "%", "-band", "-bor", "-bxor"):
            return plain("boolean")
        both = left | right
        if node.operator == "+" and not all(isinstance(v, Plain) for v in both):
            return both
        is_text = any(isinstance(v, Plain) and v.type == "string" for v in left)
        return plain("string") if is_text else plain("number")

    def _step(self, node: s.Step, scope: Scope) -> Kinds:
        self.node(node.target, scope)
        return NOTHING

    def _comma(self, node: s.Comma, scope: Scope) -> Kinds:
        found = NOTHING
        for each in node.items:
            found |= self.node(each, scope)
        return found

    def _collect(self, node: s.Collect, scope: Scope) -> Kinds:
        return single(self.node(node.body, scope))

    def _paren(self, node: s.Paren, scope: Scope) -> Kinds:
        return self.node(node.value, scope)

    def _block(self, node: s.Block, scope: Scope) -> Kinds:
        return frozenset({Code(node, self.file)})

    def record(self, node: Node) -> Record:
        """The record that is made at a place of the text, for one way that leads there."""
        key = (id(node), *self._sites)
        return self._records.setdefault(key, Record(self.place(node)))

    @contextmanager
    def guarded(self, record: Record, name: str) -> Iterator[None]:
        """Within the guards under which a record's key was set."""
        self.guards.append(record.guards.get(name, frozenset()))
        yield
        self.guards.pop()

    def _hashliteral(self, node: s.HashLiteral, scope: Scope) -> Kinds:
        record = self.record(node)
        for key, value in node.entries:
            keys = self.node(key, scope)
            self.put(record, keys, self.node(value, scope))
        return frozenset({record})

    def _index(self, node: s.Index, scope: Scope) -> Kinds:
        keys = self.node(node.index, scope)
        found = NOTHING
        for value in self.node(node.target, scope):
            if isinstance(value, Record):
                names = [value.key(str(k)) for k in constants(keys)]
                if names and all(names):
                    for name in names:
                        found |= value.fields[name]
                elif all(isinstance(k, Plain) and k.type in ("sint32", "number") for k in keys):
                    found |= {value}  # an element of an array of them
                else:
                    found |= value.star
                    for values in value.fields.values():
                        found |= values
            elif not isinstance(value, Null):
                found |= single(frozenset({value}))
        return found

    # --- members -----------------------------------------------------------------------------

    def _member(self, node: s.Member, scope: Scope) -> Kinds:
        found = NOTHING
        targets = self.node(node.target, scope)
        if not targets and not isinstance(node.target, s.Var):
            return NOTHING
        for value in targets:
            found |= self.members.property_(node, value, node.name)
        return found

    def _invoke(self, node: s.Invoke, scope: Scope) -> Kinds:
        given = [self.node(each, scope) for each in node.arguments]
        return self.members.invoked(node, self.node(node.target, scope), given)


def unreached(walkers: list[Walker], file: str, block: s.Block) -> list[str]:
    """Places of a file that no walker came to."""
    reached = {number for walker in walkers for name, number in walker.reached if name == file}
    waiting: list[Node] = [block.body]
    found = []
    while waiting:
        node = waiting.pop()
        is_step = isinstance(node, s.Command | s.Invoke | s.Member | s.Cast | s.HashLiteral)
        if is_step and id(node) not in reached:
            found.append(f"{file}:{node.line}: nothing comes here, so what it uses is not known")
            continue
        waiting += children(node)
    return found
