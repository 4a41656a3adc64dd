"""Commands: pipelines, functions and blocks, the world's commands, errors and their actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperv.dialect import core
from hyperv.dialect.conversion import NOTHING, DialectError, to_text
from hyperv.dialect.errors import StderrRecord, error_lines, record, wrapped
from hyperv.dialect.scopes import Scope
from hyperv.dialect.signals import Enough, Out, Return
from hyperv.dialect.syntax import Block, Command, Node, Statements
from hyperv.dialect.values import Hashtable, ScriptBlock
from hyperv.dialect.world import Call, Cmdlet, DotNetType, PSError, Session, World

COMMON = {"erroraction": "erroractionpreference", "warningaction": "warningpreference"}
"""The common parameters of the dialect, and the variables that stand for them elsewhere."""

ACTIONS = frozenset({"stop", "continue", "silentlycontinue", "ignore"})


class Bound:
    """The arguments of one command."""

    def __init__(self) -> None:
        self.named = Hashtable()
        self.positional: list[Any] = []
        self.actions: dict[str, str] = {}


class Commands:
    """What runs commands; `Evaluator` adds statements and expressions."""

    world: World
    cmdlets: Mapping[str, Cmdlet]
    session: Session
    types: Mapping[str, DotNetType]
    is_utf8: bool
    line: int
    tries: int
    strict: int
    caught: list[PSError]
    errors: list[Any]
    source: list[str]
    stderr: list[StderrRecord]
    is_well: bool

    def run(self, statements: Statements, scope: Scope, out: Out) -> None:
        raise NotImplementedError

    def value(self, node: Node, scope: Scope) -> Any:
        raise NotImplementedError

    # --- pipelines ---------------------------------------------------------------------------

    def pipe(self, elements: list[Node], scope: Scope, out: Out) -> None:
        """A pipeline: each object goes all the way before the next one begins."""
        stages: list[core.Stage] = []
        into = out
        for node in reversed(elements):
            is_first = node is elements[0]
            if isinstance(node, Command):
                stage = self._stage(node, scope, into, is_first)
            elif is_first:
                stage = _Values(self, node, scope, into)
            else:
                raise DialectError(f"line {node.line}: a value in the middle of a pipeline")
            stages.insert(0, stage)
            into = stage.process
        try:
            stages[0].start()
        except Enough as enough:
            if enough.stage not in stages:
                raise
            stages = stages[stages.index(enough.stage) :]
        for stage in stages:
            try:
                stage.end()
            except Enough as enough:
                if enough.stage not in stages:
                    raise

    def _stage(self, node: Command, scope: Scope, out: Out, is_first: bool) -> core.Stage:
        if not isinstance(node.name, str):
            return self._block_stage(node, scope, out, is_first)
        function = scope.function(node.name)
        bound = self._bind(node, scope)
        if function is not None:
            if not is_first:
                raise DialectError(f"line {node.line}: the function {node.name} in a pipeline")
            return _Script(self, function.block, bound, Scope(scope), out)
        name = node.name.lower()
        if name in core.CORE:
            core.check(node.name, bound.named, bound.positional)
            return core.CORE[name](self, bound.named, bound.positional, scope, out, is_first)
        if name in self.cmdlets:
            is_native = name.endswith(".exe")
            if bound.positional and not is_native:
                raise DialectError(f"line {node.line}: {node.name} with a nameless argument")
            if is_native:
                bound.named["arguments"] = [to_text(each) for each in bound.positional]
            cmdlet = self.cmdlets[name]
            return _Foreign(self, node.name, cmdlet, bound, scope, out, is_first)
        raise PSError(
            f"The term '{node.name}' is not recognized as the name of a cmdlet, function, script "
            "file, or operable program. Check the spelling of the name, or if a path was "
            "included, verify that the path is correct and try again.",
            "ObjectNotFound",
            "CommandNotFoundException",
            exception_type="System.Management.Automation.CommandNotFoundException",
            is_terminating=True,
            target=node.name,
        )

    def _block_stage(self, node: Command, scope: Scope, out: Out, is_first: bool) -> core.Stage:
        block = self.value(node.name, scope)
        if not isinstance(block, ScriptBlock) or not is_first:
            raise DialectError(f"line {node.line}: {node.operator} of what is no block")
        inner = Scope(scope) if node.operator == "&" else scope
        return _Script(self, block.body, self._bind(node, scope), inner, out)

    def _bind(self, node: Command, scope: Scope) -> Bound:
        bound = Bound()
        for argument in node.arguments:
            given = True if argument.value is None else self.value(argument.value, scope)
            given = None if given is NOTHING else given
            if argument.is_splat:
                if not isinstance(given, Hashtable):
                    raise DialectError(f"line {node.line}: a splat of what is no hashtable")
                for key, each in given.items():
                    self._bind_named(bound, to_text(key), each)
            elif argument.name is None:
                bound.positional.append(given)
            else:
                self._bind_named(bound, argument.name, given)
        return bound

    def _bind_named(self, bound: Bound, name: str, value: Any) -> None:
        if name.lower() in COMMON:
            action = to_text(value).lower()
            if action not in ACTIONS:
                raise DialectError(f"-{name} {action}")
            bound.actions[name.lower()] = action
        elif name in bound.named:
            raise PSError(
                f"Cannot bind parameter because parameter '{name}' is specified more than once.",
                "InvalidArgument",
                "ParameterAlreadyBound",
                exception_type="System.Management.Automation.ParameterBindingException",
                is_terminating=True,
            )
        else:
            bound.named[name] = value

    # --- functions and blocks ----------------------------------------------------------------

    def call(self, block: Block, bound: Bound, scope: Scope, out: Out) -> None:
        """Run a block in `scope` with its parameters set there."""
        named = Hashtable(bound.named.items())
        waiting = list(bound.positional)
        for parameter in block.parameters:
            key = parameter.name.lower()
            if parameter.name in named:
                scope.set(key, named.pop(parameter.name))
            else:
                scope.set(key, waiting.pop(0) if waiting else None)
        if named or waiting:
            left = [f"-{key}" for key in named] or waiting
            raise DialectError(f"line {block.line}: arguments that no parameter takes: {left}")
        try:
            self.run(block.body, scope, out)
        except Return:
            return

    def invoke(self, block: ScriptBlock, scope: Scope, out: Out, item: Any) -> None:
        """Run a block of ForEach-Object or Where-Object in the caller's own scope, with $_ set."""
        before = scope.values.get("_", NOTHING)
        scope.values["_"] = item
        try:
            self.run(block.body.body, scope, out)
        except Return:
            pass
        finally:
            if before is NOTHING:
                scope.values.pop("_", None)
            else:
                scope.values["_"] = before

    # --- errors ------------------------------------------------------------------------------

    def action(self, scope: Scope, preference: str = "erroractionpreference") -> str:
        """What an error or a warning does where the command says nothing."""
        return to_text(scope.look(preference) or "Continue").lower()

    def settle(self, error: PSError, scope: Scope) -> None:
        """An error that ended its statement: it goes on up, or is written and the next one runs."""
        action = self.action(scope)
        if self.tries or action == "stop" or getattr(error, "ends_script", False):
            record(error, self.line)
            raise error
        self.report(error, action)

    def report(self, error: PSError, action: str) -> None:
        """Write an error that does not end anything."""
        found = record(error, self.line)
        self.is_well = False
        if action == "ignore":
            return
        self.remember(error)
        if action == "continue":
            self.stderr += error_lines(found, self.source)

    def remember(self, error: PSError) -> None:
        """Put it into $Error, once."""
        found = record(error, self.line)
        if found not in self.errors:
            self.errors.insert(0, found)

    def write_error(self, error: PSError, action: str) -> None:
        """A command's error that need not end it."""
        if action == "stop":
            error.ends_script = True  # type: ignore[attr-defined]
            record(error, self.line)
            raise error
        self.report(error, action)

    def warn(self, text: str, action: str) -> None:
        """A warning."""
        if action == "continue":
            self.stderr += [StderrRecord("Warning", each) for each in wrapped(text)]
        elif action == "stop":
            raise DialectError("-WarningAction Stop")


class _Values(core.Stage):
    """An expression at the start of a pipeline."""

    def __init__(self, host: Commands, node: Node, scope: Scope, out: Out) -> None:
        self._host, self._node, self._scope, self._out = host, node, scope, out

    def start(self) -> None:
        value = self._host.value(self._node, self._scope)
        if value is NOTHING:
            return
        if isinstance(value, list):
            for each in list(value):
                self._out(each)
        else:
            self._out(value)


class _Script(core.Stage):
    """A function or a block."""

    def __init__(self, host: Commands, block: Block, bound: Bound, scope: Scope, out: Out) -> None:
        self._host, self._block, self._bound = host, block, bound
        self._scope, self._out = scope, out

    def start(self) -> None:
        for name, action in self._bound.actions.items():
            self._scope.set(COMMON[name], action)
        self._host.call(self._block, self._bound, self._scope, self._out)


class _Foreign(core.Stage):
    """A command of the world: called once, with all that came."""

    def __init__(
        self,
        host: Commands,
        name: str,
        cmdlet: Cmdlet,
        bound: Bound,
        scope: Scope,
        out: Out,
        is_first: bool,
    ) -> None:
        self._host, self._name, self._cmdlet = host, name, cmdlet
        self._bound, self._scope, self._out = bound, scope, out
        self._inputs: list[Any] | None = None if is_first else []

    def process(self, value: Any) -> None:
        assert self._inputs is not None
        self._inputs.append(value)

    def start(self) -> None:
        self.end()

    def end(self) -> None:
        if self._host is None:
            return
        host, self._host = self._host, None  # type: ignore[assignment]
        actions = {
            each: self._bound.actions.get(each) or host.action(self._scope, COMMON[each])
            for each in COMMON
        }
        call = Call(
            self._name,
            self._bound.named,
            self._inputs,
            host.session,
            lambda text: host.warn(text, actions["warningaction"]),
            lambda error: host.write_error(error, actions["erroraction"]),
        )
        try:
            for each in self._cmdlet(call):
                self._out(each)
        except PSError as error:
            if error.is_terminating or hasattr(error, "record"):
                raise
            host.write_error(error, actions["erroraction"])
        if self._name.lower().endswith(".exe"):
            self._scope.top.values["lastexitcode"] = call.exit_code
