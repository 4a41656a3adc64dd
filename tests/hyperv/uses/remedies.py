"""The commands that texts of the project tell a user to run on a host: they exist as well."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files

_VERBS = (
    "Add|Clear|Close|Connect|Convert|Copy|Disable|Disconnect|Dismount|Enable|Get|Grant|Import|"
    "Install|Merge|Mount|Move|New|Optimize|Remove|Rename|Repair|Resize|Restart|Restore|Resume|"
    "Revoke|Save|Set|Start|Stop|Suspend|Test|Uninstall|Update"
)
_COMMAND = re.compile(rf"\b((?:{_VERBS})-[A-Z][A-Za-z]+)\b([^|;,()`\n]*)")
_PARAMETER = re.compile(r"(?<= )-([A-Z][A-Za-z]+)\b")

MORE = ("errors/hosts.py", "server/host_check.py")
"""Beside the modules of host/hyperv."""


def told_commands(name: str, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(place, cmdlet, parameters) of each command in a module's texts, docstrings left out."""
    if not _COMMAND.search(text):
        return
    nodes = list(ast.walk(ast.parse(text)))
    documents = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for n in nodes if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in nodes:
        if id(node) in documents or id(node) in inside:
            continue
        for cmdlet, rest in _COMMAND.findall(_plain(node)):
            yield f"{name}:{node.lineno}", cmdlet, _PARAMETER.findall(rest)  # type: ignore[attr-defined]


def _plain(node: ast.AST) -> str:
    """A text, with an X for what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_plain(part) or "X" for part in node.values)
    return ""


def texts(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of the package's modules and of those of MORE."""
    for name in sorted(modules):
        yield f"{name}.py", files("standby.host.hyperv").joinpath(f"{name}.py").read_text("utf-8")
    for path in MORE:
        yield path, files("standby").joinpath(path).read_text("utf-8")
