"""A script's text read by the pinned grammar into `syntax`; what is not known is a finding.

Every node of the tree is taken by name: one of a kind that is not in `KINDS`, an error of the
parser's, a token that it put in by itself and bytes that it stepped over are findings.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import Any

import tree_sitter
import tree_sitter_pwsh

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
    If,
    Index,
    Invoke,
    Loop,
    Member,
    Node,
    Parameter,
    Paren,
    Pipeline,
    Statements,
    Step,
    Try,
    TypeName,
    Unary,
    Var,
)
from hyperv.dialect.values import Int64

_KINDS = """
additive_expression argument_expression argument_expression_list argument_list array_expression
array_literal_expression assignment_expression assignment_operator assignment_value
bareword_argument_list bitwise_expression cast_expression catch_clause catch_clauses
catch_type_list command command_argument_sep command_elements command_invocation_operator
command_name command_name_expr command_parameter comment comparison_expression
comparison_operator decimal_integer_literal element_access else_clause elseif_clause
elseif_clauses empty_statement expandable_string_literal expression_with_unary_operator
finally_clause flow_control_statement foreach_statement function_name
function_parameter_declaration function_statement generic_token hash_entry hash_literal_body
hash_literal_expression if_statement integer_literal invocation_expression key_expression
left_assignment_expression logical_expression member_access member_name
multiplicative_expression param_block parameter_list parenthesized_expression path_command_name
pipeline pipeline_chain post_increment_expression program real_literal script_block
script_block_body script_block_expression script_parameter simple_name statement_block
statement_list string_literal sub_expression try_statement type_identifier type_literal
type_name type_spec unary_expression variable verbatim_string_characters while_condition
while_statement
"""
KINDS = frozenset(_KINDS.split())
"""The kinds of the grammar's nodes that are in the dialect."""

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "`": "`", '"': '"', "$": "$", "0": "\0"}
_SIZES = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}


@cache
def _parser() -> tree_sitter.Parser:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_pwsh.language()))


class _Refused(Exception):
    pass


class Reader:
    """Reads one text; `findings` has what it could not take."""

    def __init__(self, text: str) -> None:
        self.findings: list[Finding] = []
        self._bytes = text.encode()
        self.root = _parser().parse(self._bytes).root_node
        self._close(self.root)

    def script(self) -> Block | None:
        """The whole, None where there are findings."""
        if self.findings:
            return None
        parts = self._named(self.root)
        block = self._block(self.root, parts)
        return None if self.findings else block

    # --- the tree itself -------------------------------------------------------------------

    def _close(self, root: Any) -> None:
        """Look at every node; between two leaves stands nothing but white space."""
        end = 0
        waiting: list[tuple[Any, bool]] = [(root, False)]
        while waiting:
            node, in_text = waiting.pop()
            if isinstance(node, int):  # the end of a text in quotes
                end = node
                continue
            if node.is_error or node.is_missing:
                what = self._text(node).strip()[:40] or node.type
                self._find(node, "syntax", f"the parser stumbles at {what!r}")
                continue
            if node.is_named and node.type not in KINDS:
                self._find(node, "node", f"{node.type} is not in the dialect")
                continue
            if node.type in ("expandable_string_literal", "verbatim_string_characters"):
                if not in_text:
                    self._gap(end, node.start_byte, node)
                waiting.append((node.end_byte, False))
                waiting += [(c, True) for c in reversed(node.children) if c.is_named]
                continue
            if not node.child_count:
                if not in_text:
                    self._gap(end, node.start_byte, node)
                end = max(end, node.end_byte)
            waiting += [(c, in_text) for c in reversed(node.children)]

    def _gap(self, start: int, end: int, node: Any) -> None:
        skipped = self._bytes[start:end].decode().replace("`\r\n", "").replace("`\n", "").strip()
        if skipped == "," and node.parent.type == "bareword_argument_list":
            return  # the grammar has no node for it
        if skipped:
            self._find(node, "syntax", f"the parser steps over {skipped[:40]!r}")

    def _text(self, node: Any) -> str:
        return self._bytes[node.start_byte : node.end_byte].decode()

    def _find(self, node: Any, rule: str, text: str) -> None:
        self.findings.append(Finding(node.start_point.row + 1, rule, text))

    def _refuse(self, node: Any, text: str, rule: str = "node") -> Node:
        self._find(node, rule, text)
        return Const(node.start_point.row + 1, None)

    @staticmethod
    def _named(node: Any) -> list[Any]:
        return [c for c in node.children if c.is_named and c.type != "comment"]

    @staticmethod
    def _tokens(node: Any) -> list[str]:
        return [c.type for c in node.children if not c.is_named]

    def _of(self, node: Any, kind: str) -> list[Any]:
        return [c for c in node.children if c.type == kind]

    # --- blocks and statements -------------------------------------------------------------

    def _block(self, node: Any, parts: list[Any]) -> Block:
        parameters: list[Parameter] = []
        statements = Statements(node.start_point.row + 1, [])
        has_parameters = False
        for part in parts:
            if part.type == "param_block":
                has_parameters = True
                parameters += self._parameters(part)
            elif part.type == "statement_list":
                statements = self._statements(part)
            elif part.type in ("script_block", "script_block_body"):
                inner = self._block(part, self._named(part))
                if has_parameters and inner.has_parameters:
                    self._find(part, "parameters", "two lists of parameters")
                has_parameters = has_parameters or inner.has_parameters
                parameters += inner.parameters
                statements = inner.body
            else:
                self._refuse(part, f"{part.type} in a block")
        text = self._text(node)
        if node.type == "script_block_expression":
            text = text[1:-1]
        return Block(node.start_point.row + 1, parameters, statements, text, has_parameters)

    def _parameters(self, node: Any) -> list[Parameter]:
        found = []
        for parameter in [p for each in self._of(node, "parameter_list") for p in each.children]:
            if parameter.type == "script_parameter":
                name = self._text(self._named(parameter)[0])[1:]
                found.append(Parameter(parameter.start_point.row + 1, name))
        return found

    def _statements(self, node: Any) -> Statements:
        body = [self._statement(c) for c in self._named(node) if c.type != "empty_statement"]
        return Statements(node.start_point.row + 1, body)

    def _braces(self, node: Any) -> Statements:
        for each in self._of(node, "statement_list"):
            return self._statements(each)
        return Statements(node.start_point.row + 1, [])

    def _statement(self, node: Any) -> Node:
        line = node.start_point.row + 1
        parts = self._named(node)
        match node.type:
            case "pipeline":
                if len(parts) != 1:
                    return self._refuse(node, "two pipelines in one")
                return self._statement(parts[0])
            case "assignment_value" | "while_condition":
                return self._statement(parts[0])
            case "pipeline_chain":
                return Pipeline(line, [self._element(c) for c in parts])
            case "assignment_expression":
                target, operator, value = parts
                if value.type == "assignment_expression":
                    self._refuse(value, "one assignment at a time")
                return Assign(
                    line,
                    self._expression(self._named(target)[0]),
                    self._text(operator),
                    self._statement(value),
                )
            case "if_statement":
                return self._if(node)
            case "while_statement":
                return Loop(line, self._statement(parts[0]), self._braces(parts[1]))
            case "foreach_statement":
                variable = self._expression(parts[0])
                assert isinstance(variable, Var)
                return ForEach(line, variable, self._statement(parts[1]), self._braces(parts[2]))
            case "try_statement":
                return self._try(node)
            case "function_statement":
                return self._function(node)
            case "flow_control_statement":
                value = self._statement(parts[0]) if parts else None
                return Flow(line, self._tokens(node)[0].lower(), value)
        return self._refuse(node, f"{node.type} as a statement")

    def _if(self, node: Any) -> If:
        parts = self._named(node)
        branches = [(self._statement(parts[0]), self._braces(parts[1]))]
        otherwise = None
        for part in parts[2:]:
            if part.type == "elseif_clauses":
                for clause in self._named(part):
                    condition, block = self._named(clause)
                    branches.append((self._statement(condition), self._braces(block)))
            else:
                otherwise = self._braces(self._named(part)[0])
        return If(node.start_point.row + 1, branches, otherwise)

    def _try(self, node: Any) -> Try:
        body, *rest = self._named(node)
        catches = []
        final = None
        for part in rest:
            if part.type == "finally_clause":
                final = self._braces(self._named(part)[0])
                continue
            for clause in self._named(part):
                *types, block = self._named(clause)
                names = [self._type(t) for each in types for t in self._named(each)]
                catches.append((names, self._braces(block)))
        return Try(node.start_point.row + 1, self._braces(body), catches, final)

    def _function(self, node: Any) -> Node:
        if self._tokens(node)[0].lower() != "function":
            return self._refuse(node, "a filter")
        name, *parts = self._named(node)
        declared = [p for p in parts if p.type == "function_parameter_declaration"]
        block = self._block(node, [p for p in parts if p not in declared])
        if declared and block.has_parameters:
            self._refuse(node, "two lists of parameters", "parameters")
        for each in declared:
            block.parameters += self._parameters(each)
        return Function(node.start_point.row + 1, self._text(name), block)

    # --- commands --------------------------------------------------------------------------

    def _element(self, node: Any) -> Node:
        return self._command(node) if node.type == "command" else self._expression(node)

    def _command(self, node: Any) -> Node:
        operator = ""
        name: Any = ""
        arguments: list[Argument] = []
        for part in self._named(node):
            if part.type == "command_invocation_operator":
                operator = self._text(part)
            elif part.type == "command_name":
                name = self._text(part)
            elif part.type == "command_name_expr":
                inner = self._named(part)[0]
                if inner.type == "path_command_name":
                    named = self._named(inner)
                    if len(named) != 1 or self._text(named[0]) != self._text(inner):
                        return self._refuse(inner, "the name of a command is built")
                    inner = named[0]
                name = (
                    self._text(inner) if inner.type == "command_name" else self._expression(inner)
                )
            else:
                arguments = self._arguments(part)
        return Command(node.start_point.row + 1, name, operator, arguments)

    def _arguments(self, node: Any) -> list[Argument]:
        found: list[Argument] = []
        waiting: Argument | None = None
        for part in self._named(node):
            line = part.start_point.row + 1
            if part.type == "command_argument_sep":
                if self._text(part) == ":" and waiting is None:
                    self._refuse(part, "':' behind no parameter")
                continue
            if part.type == "command_parameter":
                waiting = Argument(line, self._text(part)[1:].rstrip(":"), None)
                found.append(waiting)
                continue
            is_splat = self._text(part)[:1] == "@" and self._text(part)[1:2] not in ("(", "{")
            value = (
                Const(line, self._text(part))
                if part.type == "generic_token"
                else self._expression(part)
            )
            if waiting is not None and not is_splat:
                waiting.value = value
            else:
                found.append(Argument(line, None, value, is_splat))
            waiting = None
        return found

    # --- expressions -----------------------------------------------------------------------

    def _expression(self, node: Any) -> Node:
        line = node.start_point.row + 1
        parts = self._named(node)
        match node.type:
            case "unary_expression" | "argument_expression" | "key_expression" | "string_literal":
                return self._expression(parts[0])
            case "integer_literal":
                return self._integer(parts[0])
            case "real_literal":
                text = self._text(node)
                if text.replace(".", "").isdecimal():
                    return Const(line, float(text))
                return self._refuse(node, text, "number")
            case "bareword_argument_list":
                return Comma(line, [self._expression(c) for c in parts])
            case "variable":
                return self._variable(node)
            case "verbatim_string_characters":
                return Const(line, self._text(node)[1:-1].replace("''", "'"), "'")
            case "expandable_string_literal":
                return self._expandable(node)
            case "simple_name" | "generic_token":
                return Const(line, self._text(node))
            case "type_literal":
                return TypeName(line, self._type(node))
            case "cast_expression":
                return Cast(line, self._type(parts[0]), self._expression(parts[1]))
            case "expression_with_unary_operator":
                tokens = self._tokens(node)
                if not tokens:
                    return self._expression(parts[0])
                return Unary(line, tokens[0].lower(), self._expression(parts[0]))
            case (
                "additive_expression"
                | "multiplicative_expression"
                | "bitwise_expression"
                | "logical_expression"
            ):
                operator = self._tokens(node)[0].lower()
                return Binary(line, operator, *(self._expression(c) for c in parts))
            case "comparison_expression":
                left, operator, right = parts
                return Binary(
                    line,
                    self._text(operator).lower(),
                    self._expression(left),
                    self._expression(right),
                )
            case "array_literal_expression":
                return Comma(line, [self._expression(c) for c in parts])
            case "parenthesized_expression":
                return Paren(line, self._statement(parts[0]))
            case "array_expression" | "sub_expression":
                return Collect(line, self._braces(node), node.type == "array_expression")
            case "script_block_expression":
                return self._block(node, parts)
            case "hash_literal_expression":
                return self._hash(node)
            case "member_access":
                is_static = "::" in self._tokens(node)
                return Member(line, self._expression(parts[0]), self._member(parts[1]), is_static)
            case "invocation_expression":
                arguments = [
                    self._expression(c)
                    for each in parts[2:]
                    for inner in self._named(each)
                    for c in self._named(inner)
                ]
                is_static = "::" in self._tokens(node)
                target, name = self._expression(parts[0]), self._member(parts[1])
                return Invoke(line, target, name, arguments, is_static)
            case "element_access":
                return Index(line, self._expression(parts[0]), self._expression(parts[1]))
            case "post_increment_expression":
                by = 1 if "++" in self._tokens(node) else -1
                return Step(line, self._expression(parts[0]), by)
        return self._refuse(node, f"{node.type} as a value")

    def _integer(self, node: Any) -> Node:
        text = self._text(node).lower()
        size = next((s for s in _SIZES if text.endswith(s)), "")
        digits = text.removesuffix(size) if size else text
        is_long = digits.endswith("l")
        line = node.start_point.row + 1
        digits = digits.rstrip("l")
        if not digits.isdecimal():
            return self._refuse(node, text, "number")
        value = int(digits) * _SIZES.get(size, 1)
        if value >= 1 << 63:
            return Const(line, Decimal(value))
        return Const(line, Int64(value) if is_long or value >= 1 << 31 else value)

    def _variable(self, node: Any) -> Node:
        text = self._text(node)[1:]
        scope, colon, name = text.rpartition(":")
        return Var(node.start_point.row + 1, name if colon else text, scope.lower())

    def _type(self, node: Any) -> str:
        return "".join(self._text(node).split())[1:-1]

    def _member(self, node: Any) -> Any:
        inner = self._named(node)[0]
        if inner.type == "simple_name":
            return self._text(inner)
        return self._expression(inner)

    def _expandable(self, node: Any) -> Node:
        line = node.start_point.row + 1
        parts: list[Any] = []
        at = node.start_byte + 1
        for child in [*self._named(node), None]:
            until = child.start_byte if child is not None else node.end_byte - 1
            literal = self._unescape(self._bytes[at:until].decode(), node)
            if literal:
                parts.append(literal)
            if child is not None:
                parts.append(self._expression(child))
                at = child.end_byte
        if not any(isinstance(part, Node) for part in parts):
            return Const(line, "".join(parts), '"')
        return Expand(line, parts)

    def _unescape(self, text: str, node: Any) -> str:
        out = []
        at = 0
        while at < len(text):
            one = text[at]
            if one == "`":
                at += 1
                if text[at : at + 1] not in ESCAPES:
                    self._refuse(node, f"the escape `{text[at : at + 1]}", "string")
                out.append(ESCAPES.get(text[at : at + 1], ""))
            elif one == '"':
                at += 1
                out.append('"')
            else:
                out.append(one)
            at += 1
        return "".join(out)

    def _hash(self, node: Any) -> HashLiteral:
        entries = []
        for body in self._named(node):
            for entry in self._named(body):
                key, value = self._named(entry)
                entries.append((self._expression(self._named(key)[0]), self._statement(value)))
        return HashLiteral(node.start_point.row + 1, entries)
