"""Whether a text is in the dialect: both published grammars are lenient, so this is what closes it.

The parser's own complaints and kinds of nodes that are not listed come from `reading`; here are
what stands between the brackets and what the parsed script may not do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from string import ascii_letters, digits
from typing import Any

from hyperv.dialect.conversion import CASTS, SHORT_NAMES
from hyperv.dialect.core import CORE
from hyperv.dialect.operators import ASSIGNMENTS, BINARY, UNARY
from hyperv.dialect.reading import Reader
from hyperv.dialect.syntax import (
    Argument,
    Assign,
    Binary,
    Block,
    Cast,
    Collect,
    Comma,
    Command,
    Const,
    Expand,
    Finding,
    Flow,
    ForEach,
    Function,
    HashLiteral,
    Invoke,
    Loop,
    Member,
    Node,
    Paren,
    Pipeline,
    Statements,
    Step,
    TypeName,
    Unary,
    Var,
    children,
    walk,
)

FORBIDDEN = frozenset(
    {"invoke-expression", "add-type", "new-object", "invoke-command", "import-module"}
)
"""Commands that would lead out of the dialect; so does every one whose noun is Job."""

AUTOMATIC = frozenset(
    {"?", "$", "^", "input", "matches", "this", "host", "pid", "home", "profile", "event", "sender"}
    | {"psboundparameters", "myinvocation", "args", "executioncontext", "stacktrace", "switch"}
)
"""Variables that PowerShell sets by itself and the dialect does without."""

_SETS_ITSELF = AUTOMATIC | {"_", "psitem", "error", "true", "false", "lastexitcode"}
_WORD = frozenset(ascii_letters + digits + "_")
_GROUPS = {
    **dict.fromkeys(("-and", "-or"), "logical"),
    **dict.fromkeys(("-band", "-bor", "-bxor"), "bits"),
    **dict.fromkeys("+-", "sum"),
    **dict.fromkeys("*/%", "product"),
}
_NESTED = frozenset(
    {
        ("logical", "comparison"),
        ("comparison", "sum"),
        ("comparison", "product"),
        ("sum", "product"),
        ("sum", "sum"),
        ("product", "product"),
    }
)


def parse(text: str) -> Block:
    """A script without findings, parsed."""
    script = Reader(text).script()
    assert script is not None
    return script


def examine(
    text: str, name: str, functions: Iterable[str] = ()
) -> tuple[list[Finding], Block | None]:
    """What a script holds that is not in the dialect, in the order of its lines; the script.

    `functions` are those that stand before it, in the prelude.
    """
    found = _signs(text) + _brackets(text)
    script = None
    if not found:
        reader = Reader(text)
        script = reader.script()
        found = list(reader.findings)
        if script is not None:
            known = {each.lower() for each in functions}
            known |= {n.name.lower() for n in walk(script) if isinstance(n, Function)}
            found += _Rules(known).all(script)
    return sorted({Finding(f.line, f.rule, f.text, name) for f in found}), script


def check(text: str, name: str, functions: Iterable[str] = ()) -> list[Finding]:
    """The findings of `examine`."""
    return examine(text, name, functions)[0]


# --- the text -----------------------------------------------------------------------------------


def _signs(text: str) -> list[Finding]:
    """PowerShell takes typographic quotes and dashes for plain ones: no sign beyond ASCII."""
    return [
        Finding(number, "sign", f"{sign!r} is not ASCII")
        for number, line in enumerate(text.split("\n"), 1)
        for sign in line
        if not (" " <= sign <= "~" or sign in "\t\r")
    ]


_PAIRS = {")": "(", "]": "[", "}": "{"}


def _brackets(text: str) -> list[Finding]:
    """Brackets and quotes, counted without the grammar."""
    found: list[Finding] = []
    open_: list[tuple[str, int]] = []
    line, at = 1, 0
    while at < len(text):
        one = text[at]
        inside = open_[-1][0] if open_ else ""
        if one == "\n":
            line += 1
        elif one == "`" and inside != "'":
            at += 1
            line += text[at : at + 1] == "\n"
        elif inside == "'":
            if one == "'":
                open_.pop()
        elif inside == '"':
            if text[at : at + 2] == "$(":
                at += 1
                open_.append(("(", line))
            elif one == '"':
                open_.pop()
        elif text[at : at + 2] in ("@'", '@"'):
            found.append(Finding(line, "node", "a here-string"))
            return found
        elif one in "'\"":
            open_.append((one, line))
        elif text[at : at + 2] == "<#":
            end = text.find("#>", at)
            if end < 0:
                found.append(Finding(line, "bracket", "<# without its end"))
                return found
            line += text.count("\n", at, end)
            at = end + 1
        elif one == "#" and (at == 0 or text[at - 1] not in _WORD):
            end = text.find("\n", at)
            at = (len(text) if end < 0 else end) - 1
        elif one in "([{":
            open_.append((one, line))
        elif one in _PAIRS:
            if inside != _PAIRS[one]:
                found.append(Finding(line, "bracket", f"{one} without its beginning"))
                return found
            open_.pop()
        at += 1
    return found + [Finding(at_line, "bracket", f"{one} without its end") for one, at_line in open_]


# --- the parsed script --------------------------------------------------------------------------


def _is_null(node: Node) -> bool:
    return isinstance(node, Var) and node.name.lower() == "null"


def _is_text(node: Node) -> bool:
    return isinstance(node, Expand) or (isinstance(node, Const) and node.quote != "")


def _is_plain(name: str) -> bool:
    return bool(name) and name[0] not in digits and set(name) <= _WORD


def _is_verb_noun(name: str) -> bool:
    verb, dash, noun = name.partition("-")
    return bool(dash) and verb.isalpha() and verb.istitle() and _is_plain(noun)


class _Rules:
    """Every rule by the kind of node that it looks at."""

    def __init__(self, functions: set[str]) -> None:
        self._functions = functions
        self._found: list[Finding] = []
        self._rules: dict[type, Callable[[Any], None]] = {
            Command: self._command,
            Binary: self._binary,
            Unary: self._unary,
            Expand: self._expand,
            Var: self._variable,
            Assign: self._assign,
            Cast: self._cast,
            Member: self._member,
            Invoke: self._member,
            HashLiteral: self._hash,
            Pipeline: self._pipeline,
            Paren: self._paren,
            Block: self._block,
            ForEach: self._foreach,
            Collect: self._collect,
            Comma: self._comma,
        }

    def all(self, script: Block) -> list[Finding]:
        """The findings of a whole script."""
        for node in walk(script):
            rule = self._rules.get(type(node))
            if rule is not None:
                rule(node)
        self._places(script, is_statement=True)
        self._leaving(script.body, in_loop=False)
        return self._found

    def _find(self, node: Node, rule: str, text: str) -> None:
        self._found.append(Finding(node.line, rule, text))

    # commands

    def _command(self, node: Command) -> None:
        if not isinstance(node.name, str):
            for argument in node.arguments:
                self._words(argument)
            return
        name = node.name.lower()
        is_own = name in self._functions
        is_program = name.endswith(".exe")
        if name in FORBIDDEN or name.endswith("-job"):
            self._find(node, "command", f"{node.name} is not in the dialect")
        elif not (is_own or is_program or name in CORE or _is_verb_noun(node.name)):
            self._find(node, "alias", f"{node.name} is no command by its full name")
        if node.operator and not is_program:
            self._find(node, "command", f"{node.operator} before a command's name")
        for argument in node.arguments:
            self._words(argument)
            is_block = name in ("foreach-object", "where-object") and isinstance(
                argument.value, Block
            )
            may_be_nameless = is_own or is_program or (is_block and len(node.arguments) == 1)
            if argument.name is None and not argument.is_splat and not may_be_nameless:
                self._find(argument, "positional", f"a nameless argument of {node.name}")
        names = [a.name.lower() for a in node.arguments if a.name is not None]
        if len(set(names)) < len(names):
            self._find(node, "positional", f"a parameter of {node.name} twice")
        if name == "convertto-json" and not {"compress", "depth", "inputobject"} <= set(names):
            self._find(node, "json", "ConvertTo-Json takes -InputObject, -Depth and -Compress")

    def _words(self, argument: Argument) -> None:
        value = argument.value
        for each in value.items if isinstance(value, Comma) else [value]:
            is_word = isinstance(each, Const) and isinstance(each.value, str) and not each.quote
            if is_word and (argument.name is None or not _is_plain(each.value)):
                self._find(argument, "unquoted", f"the word {each.value} without quotes")

    def _pipeline(self, node: Pipeline) -> None:
        for each in node.elements[1:]:
            if not isinstance(each, Command):
                self._find(each, "pipeline", "a value in the middle of a pipeline")
            elif not isinstance(each.name, str) or each.name.lower() in self._functions:
                self._find(each, "pipeline", "a function or a block takes no pipeline")

    # expressions

    def _binary(self, node: Binary) -> None:
        if node.operator not in BINARY:
            self._find(node, "operator", f"{node.operator} is not in the dialect")
            return
        group = _GROUPS.get(node.operator, "comparison")
        if group == "comparison" and _is_null(node.right):
            self._find(node, "null", f"{node.operator} with $null on the right")
        if node.operator == "+" and (_is_text(node.left) or _is_text(node.right)):
            self._find(node, "mixed", "a text is put together in quotes, not by +")
        for side in (node.left, node.right):
            if isinstance(side, Comma):
                self._find(node, "precedence", f"',' beside {node.operator} without brackets")
            is_sign = isinstance(side, Unary) and side.operator != "-"
            if is_sign and group != "logical":
                self._find(node, "precedence", f"{side.operator} beside {node.operator}")
            if isinstance(side, Binary):
                inner = _GROUPS.get(side.operator, "comparison")
                is_same = side.operator == node.operator and inner in ("logical", "bits")
                if not is_same and (group, inner) not in _NESTED:
                    self._find(
                        node,
                        "precedence",
                        f"{side.operator} beside {node.operator} without brackets",
                    )
        if node.operator in ("-is", "-isnot"):
            if not isinstance(node.right, TypeName):
                self._find(node, "type", f"{node.operator} without a type")
            elif node.right.name.lower() not in SHORT_NAMES and "." not in node.right.name:
                self._find(node, "type", f"[{node.right.name}]")
        pattern = node.right.value if isinstance(node.right, Const) else ""
        is_pattern = node.operator in ("-like", "-notlike") and isinstance(pattern, str)
        if is_pattern and ("[" in pattern or "`" in pattern):
            self._find(node, "operator", f"the pattern {pattern}")

    def _unary(self, node: Unary) -> None:
        if node.operator not in UNARY:
            self._find(node, "operator", f"{node.operator} before a value")

    def _expand(self, node: Expand) -> None:
        for part, behind in zip(node.parts, node.parts[1:], strict=False):
            if not (isinstance(part, Var) and isinstance(behind, str)):
                continue
            if behind[0] == "[" or (behind[0] == "." and behind[1:2].isalpha()):
                self._find(node, "string", f"${part.name}{behind[:8]} expands the variable alone")

    def _variable(self, node: Var) -> None:
        if node.scope not in ("", "script", "env"):
            self._find(node, "scope", f"${node.scope}:{node.name}")
        if node.scope == "env" and node.name.lower() != "computername":
            self._find(node, "scope", f"$env:{node.name}")
        if not node.scope and node.name.lower() in AUTOMATIC:
            self._find(node, "automatic", f"${node.name} is set by PowerShell itself")

    def _sets(self, node: Node, name: str) -> None:
        if name.lower() in _SETS_ITSELF:
            self._find(node, "automatic", f"${name} is set by PowerShell itself")

    def _assign(self, node: Assign) -> None:
        if node.operator not in ASSIGNMENTS:
            self._find(node, "operator", f"{node.operator} is not in the dialect")
        target = node.target.value if isinstance(node.target, Cast) else node.target
        if isinstance(target, Var):
            self._sets(target, target.name)
            if target.scope == "env":
                self._find(target, "scope", "an assignment to $env:")
        elif type(target).__name__ not in ("Member", "Index") or isinstance(node.target, Cast):
            self._find(node, "assignment", "an assignment to what is no place")

    def _cast(self, node: Cast) -> None:
        name = node.type.lower().removeprefix("system.")
        if name not in CASTS:
            self._find(node, "type", f"a cast to [{node.type}]")
        elif name == "ordered" and not isinstance(node.value, HashLiteral):
            self._find(node, "type", "[ordered] before what is no @{...}")

    def _member(self, node: Member | Invoke) -> None:
        if not isinstance(node.name, str):
            self._find(node, "member", "a member's name is written down")
        if node.is_static != isinstance(node.target, TypeName):
            self._find(node, "member", "'::' stands behind a type, and only there")

    def _hash(self, node: HashLiteral) -> None:
        keys = [key.value for key, _ in node.entries if isinstance(key, Const)]
        folded = [key.lower() if isinstance(key, str) else key for key in keys]
        for key in {key for key in folded if folded.count(key) > 1}:
            self._find(node, "hash", f"the key {key} twice")

    def _collect(self, node: Collect) -> None:
        if node.is_array and len(node.body.body) > 1:
            self._find(node, "array", "several statements in @(...)")

    def _comma(self, node: Comma) -> None:
        for each in node.items:
            if isinstance(each, Cast | Comma | Unary):
                self._find(node, "precedence", "a cast or an operator beside ',' without brackets")

    def _paren(self, node: Paren) -> None:
        if isinstance(node.value, Assign):
            self._find(node, "assignment", "an assignment as a value")

    def _block(self, node: Block) -> None:
        for parameter in node.parameters:
            self._sets(parameter, parameter.name)

    def _foreach(self, node: ForEach) -> None:
        self._sets(node, node.variable.name)

    # places

    def _places(self, node: Node, *, is_statement: bool) -> None:
        """++ and assignments are statements of their own."""
        if isinstance(node, Step) and not is_statement:
            self._find(node, "assignment", "++ or -- as a value")
        if isinstance(node, Assign) and not is_statement:
            self._find(node, "assignment", "an assignment as a value")
        for child in children(node):
            inside = isinstance(node, Statements) or (
                is_statement and isinstance(node, Pipeline) and len(node.elements) == 1
            )
            self._places(child, is_statement=inside)

    def _leaving(self, node: Node, *, in_loop: bool) -> None:
        """A break outside every loop ends whoever called."""
        if isinstance(node, Flow) and node.kind in ("break", "continue"):
            if not in_loop:
                self._find(node, "loop", f"{node.kind} outside a loop of its own block")
            if node.value is not None:
                self._find(node, "loop", f"{node.kind} with a label")
        for child in children(node):
            is_body = isinstance(node, Loop | ForEach) and child is node.body
            inside = False if isinstance(child, Block) else (in_loop or is_body)
            self._leaving(child, in_loop=inside)
