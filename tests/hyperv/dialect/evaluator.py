"""Statements and expressions executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hyperv.dialect import dotnet, members, operators, scopes
from hyperv.dialect.commands import Commands
from hyperv.dialect.conversion import (
    NOTHING,
    DialectError,
    Whole,
    cast,
    custom_object,
    to_bool,
    to_text,
)
from hyperv.dialect.errors import is_caught, record, thrown
from hyperv.dialect.scopes import Scope
from hyperv.dialect.signals import Break, Continue, Exit, Out, Return
from hyperv.dialect.syntax import (
    Assign,
    Binary,
    Block,
    Cast,
    Collect,
    Comma,
    Command,
    Const,
    Expand,
    Flow,
    ForEach,
    Function,
    HashLiteral,
    If,
    Index,
    Invoke,
    Loop,
    Member,
    Node,
    Paren,
    Pipeline,
    Statements,
    Step,
    Try,
    TypeName,
    Unary,
    Var,
)
from hyperv.dialect.values import Byte, Hashtable, ScriptBlock
from hyperv.dialect.world import PSError


def enumerate_to(value: Any, out: Out) -> None:
    """Write a value as a statement does: an array element by element, one level."""
    if value is NOTHING:
        return
    if isinstance(value, list):
        for each in list(value):
            out(each)
    elif isinstance(value, bytes):
        for byte in value:
            out(Byte(byte))
    else:
        out(value)


def collected(found: list[Any]) -> Any:
    """What was written, as one value: nothing, the only object, or an array."""
    if not found:
        return NOTHING
    if len(found) == 1:
        return _whole(found[0])
    return [_whole(each) for each in found]


def _whole(value: Any) -> Any:
    return Whole(value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """A value where $null and no value are one."""
    return None if value is NOTHING else value


class Evaluator(Commands):
    """Runs parsed scripts of one process."""

    # --- statements --------------------------------------------------------------------------

    def run(self, statements: Statements, scope: Scope, out: Out) -> None:
        """Each statement in turn; an error that ends only its statement lets the next one run."""
        for statement in statements.body:
            self.line = statement.line
            try:
                self.statement(statement, scope, out)
            except PSError as error:
                self.settle(error, scope)

    def statement(self, node: Node, scope: Scope, out: Out) -> None:
        """One statement; what it emits goes to `out`."""
        self._statements[type(node)](self, node, scope, out)

    def _pipeline(self, node: Pipeline, scope: Scope, out: Out) -> None:
        if len(node.elements) == 1 and not isinstance(node.elements[0], Command):
            only = node.elements[0]
            if isinstance(only, Step):
                self._step(only, scope)
            else:
                enumerate_to(self.value(only, scope), out)
            return
        self.pipe(node.elements, scope, out)

    def _step(self, node: Step, scope: Scope) -> None:
        value = plain(self.value(node.target, scope))
        self._set(node.target, operators.add(value or 0, node.by), scope)

    def _assign(self, node: Assign, scope: Scope, out: Out) -> None:
        value = self.result(node.value, scope)
        target = node.target
        if node.operator != "=":
            now = plain(self.value(target, scope))
            value = operators.binary(node.operator[0], now, plain(value))
        if isinstance(target, Cast):
            assert isinstance(target.value, Var)
            scope.types[target.value.name.lower()] = target.type
            target = target.value
        self._set(target, value, scope)

    def _set(self, target: Node, value: Any, scope: Scope) -> None:
        match target:
            case Var():
                scopes.place(scope, target).set(target.name.lower(), value)
            case Member(is_static=True, target=TypeName() as type_):
                found = dotnet.find(type_.name, self.types, self.world.types)
                dotnet.set_static(found, self._name(target.name, scope), plain(value), self)
            case Member():
                name = self._name(target.name, scope)
                members.put(plain(self.value(target.target, scope)), name, plain(value))
            case Index():
                at = plain(self.value(target.index, scope))
                members.put_index(self.value(target.target, scope), at, plain(value))
            case _:
                raise DialectError(f"line {target.line}: an assignment to {type(target).__name__}")

    def _if(self, node: If, scope: Scope, out: Out) -> None:
        for condition, body in node.branches:
            if to_bool(self.result(condition, scope)):
                self.run(body, scope, out)
                return
        if node.otherwise is not None:
            self.run(node.otherwise, scope, out)

    def _loop(self, node: Loop, scope: Scope, out: Out) -> None:
        while to_bool(self.result(node.condition, scope)):
            try:
                self.run(node.body, scope, out)
            except Break:
                return
            except Continue:
                continue

    def _foreach(self, node: ForEach, scope: Scope, out: Out) -> None:
        values = self.result(node.values, scope)
        if values is None or values is NOTHING:
            return
        every: list[Any] = []
        enumerate_to(values, every.append)
        for value in every:
            scope.set(node.variable.name.lower(), value)
            try:
                self.run(node.body, scope, out)
            except Break:
                return
            except Continue:
                continue

    def _try(self, node: Try, scope: Scope, out: Out) -> None:
        self.tries += 1
        is_inside = True
        try:
            try:
                self.run(node.body, scope, out)
            except PSError as error:
                self.tries -= 1
                is_inside = False
                self._catch(node, error, scope, out)
        finally:
            if is_inside:
                self.tries -= 1
            if node.final is not None:
                self.run(node.final, scope, out)

    def _catch(self, node: Try, error: PSError, scope: Scope, out: Out) -> None:
        found = record(error, self.line)
        self.remember(error)
        for types, body in node.catches:
            if not is_caught(found, types):
                continue
            before = scope.values.get("_", NOTHING)
            scope.values["_"] = found
            self.caught.append(error)
            try:
                self.run(body, scope, out)
            finally:
                self.caught.pop()
                if before is NOTHING:
                    scope.values.pop("_", None)
                else:
                    scope.values["_"] = before
            return
        raise error

    def _function(self, node: Function, scope: Scope, out: Out) -> None:
        scope.functions[node.name.lower()] = node

    def _flow(self, node: Flow, scope: Scope, out: Out) -> None:
        match node.kind:
            case "break":
                raise Break
            case "continue":
                raise Continue
            case "return":
                if node.value is not None:
                    self.statement(node.value, scope, out)
                raise Return
            case "exit":
                code = 0 if node.value is None else self.result(node.value, scope)
                raise Exit(int(operators.to_number(plain(code))))
            case _:
                if node.value is None and self.caught:
                    raise self.caught[-1]
                value = None if node.value is None else self.result(node.value, scope)
                raise thrown(plain(value))

    _statements: ClassVar[dict[type, Callable[[Any, Any, Scope, Out], None]]] = {
        Pipeline: _pipeline,
        Assign: _assign,
        If: _if,
        Loop: _loop,
        ForEach: _foreach,
        Try: _try,
        Function: _function,
        Flow: _flow,
    }

    # --- expressions -------------------------------------------------------------------------

    def result(self, node: Node, scope: Scope) -> Any:
        """A statement as a value: an expression as it is, else what was emitted."""
        if isinstance(node, Pipeline) and len(node.elements) == 1:
            only = node.elements[0]
            if not isinstance(only, Command | Step):
                return self.value(only, scope)
        found: list[Any] = []
        self.statement(node, scope, found.append)
        return collected(found)

    def value(self, node: Node, scope: Scope) -> Any:
        """An expression's value."""
        return self._expressions[type(node)](self, node, scope)

    def _name(self, name: Any, scope: Scope) -> str:
        return name if isinstance(name, str) else to_text(self.value(name, scope))

    def _const(self, node: Const, scope: Scope) -> Any:
        return node.value

    def _expand(self, node: Expand, scope: Scope) -> str:
        return "".join(
            part if isinstance(part, str) else to_text(self.value(part, scope))
            for part in node.parts
        )

    def _var(self, node: Var, scope: Scope) -> Any:
        return scopes.read(scope, node, self.session.host_name, strict=self.strict >= 1)

    def _type(self, node: TypeName, scope: Scope) -> TypeName:
        return node

    def _cast(self, node: Cast, scope: Scope) -> Any:
        name = node.type.lower()
        if name in ("ordered", "pscustomobject") and isinstance(node.value, HashLiteral):
            made = self._hash(node.value, scope, is_ordered=True)
            return made if name == "ordered" else custom_object(made)
        value = self.value(node.value, scope)
        return NOTHING if name == "void" else cast(node.type, value)

    def _member(self, node: Member, scope: Scope) -> Any:
        if node.is_static:
            if not isinstance(node.target, TypeName):
                raise DialectError(f"line {node.line}: '::' behind what is no type")
            found = dotnet.find(node.target.name, self.types, self.world.types)
            return dotnet.static(found, self._name(node.name, scope), self)
        target = self.value(node.target, scope)
        return members.get(target, self._name(node.name, scope), strict=self.strict >= 2)

    def _invoke(self, node: Invoke, scope: Scope) -> Any:
        name = self._name(node.name, scope)
        if node.is_static:
            if not isinstance(node.target, TypeName):
                raise DialectError(f"line {node.line}: '::' behind what is no type")
            found = dotnet.find(node.target.name, self.types, self.world.types)
            method = dotnet.static_method(found, name)
            return members.invoke(method, name, [self.value(a, scope) for a in node.arguments])
        target = self.value(node.target, scope)
        return members.call(target, name, [self.value(a, scope) for a in node.arguments])

    def _index(self, node: Index, scope: Scope) -> Any:
        target = self.value(node.target, scope)
        at = plain(self.value(node.index, scope))
        return members.index(target, at, strict_bounds=self.strict >= 3)

    def _unary(self, node: Unary, scope: Scope) -> Any:
        return operators.unary(node.operator, self.value(node.value, scope))

    def _binary(self, node: Binary, scope: Scope) -> Any:
        left = self.value(node.left, scope)
        if node.operator == "-and":
            return to_bool(left) and to_bool(self.value(node.right, scope))
        if node.operator == "-or":
            return to_bool(left) or to_bool(self.value(node.right, scope))
        return operators.binary(node.operator, left, self.value(node.right, scope))

    def _comma(self, node: Comma, scope: Scope) -> list[Any]:
        return [plain(self.value(each, scope)) for each in node.items]

    def _collect(self, node: Collect, scope: Scope) -> Any:
        found: list[Any] = []
        self.run(node.body, scope, found.append)
        return [_whole(each) for each in found] if node.is_array else collected(found)

    def _paren(self, node: Paren, scope: Scope) -> Any:
        return self.result(node.value, scope)

    def _hash(self, node: HashLiteral, scope: Scope, *, is_ordered: bool = False) -> Hashtable:
        made = Hashtable(is_ordered=is_ordered)
        for key, value in node.entries:
            made[plain(self.value(key, scope))] = self.result(value, scope)
        return made

    def _block(self, node: Block, scope: Scope) -> ScriptBlock:
        return ScriptBlock(node, scope, node.text)

    _expressions: ClassVar[dict[type, Callable[[Any, Any, Scope], Any]]] = {
        Const: _const,
        Expand: _expand,
        Var: _var,
        TypeName: _type,
        Cast: _cast,
        Member: _member,
        Invoke: _invoke,
        Index: _index,
        Unary: _unary,
        Binary: _binary,
        Comma: _comma,
        Collect: _collect,
        Paren: _paren,
        HashLiteral: _hash,
        Block: _block,
    }
