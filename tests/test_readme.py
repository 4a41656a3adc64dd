"""What README says, held against the program: a newcomer types it as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import standby
from standby.cli import cli
from standby.host.folder import vm_toml
from standby.server.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(*languages: str) -> list[str]:
    """The code blocks of these languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
    return [text for language, text in found if language in languages]


def marked(name: str) -> str:
    """The code block behind <!-- name -->, as .ci/run takes it."""
    found = re.search(rf"^<!-- {name} -->\n+```\w*\n(.*?)^```", README, re.M | re.S)
    return found[1] if found else ""


def shell_commands() -> list[str]:
    """Every line of a shell block, continued lines joined, comments and prompts left out."""
    lines = []
    for block in blocks("", "sh", "bash", "console", "shell"):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            for command in re.split(r"&&|\||;", re.sub(r"^\$ ", "", line)):
                lines.append(command.strip())
    return lines


STANDBY_COMMANDS = sorted({line for line in shell_commands() if line.startswith("standby ")})


@pytest.mark.parametrize("name", ["install", "test"])
def test_opens_with_the_command_to(name: str) -> None:
    """CI runs both as they stand."""
    command = marked(name)
    assert "pip install" in command
    assert README.index(command) < 3000
    mark = f"readme_command {name}"
    assert mark in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_names_commands_of_the_program() -> None:
    assert STANDBY_COMMANDS


@pytest.mark.parametrize("line", STANDBY_COMMANDS)
def test_the_program_has_the_command(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "…"]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        known = command.get_command(click.Context(command), name)
        assert known is not None, f"{line}: there is no {name}"
        command = known
    options = {
        name
        for parameter in command.params
        for name in [*parameter.opts, *parameter.secondary_opts]
    }
    for word in words:
        if word.startswith("--") and word != "--help":
            assert word.partition("=")[0] in options, line


def test_its_configurations_are_valid(tmp_path: Path) -> None:
    whole = [text for text in blocks("toml") if "[hosts." in text]
    machines = [text for text in blocks("toml") if "[[disks]]" in text]
    path = tmp_path / "standby.toml"
    for text in whole:
        path.write_text(text, encoding="utf-8")
        assert load_config(path).jobs
    for text in machines:
        path.write_text(text, encoding="utf-8")
        assert vm_toml.load(path, "vm").machine.disks
    assert whole
    assert machines


def test_its_scripts_call_methods_that_exist() -> None:
    for text in blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "server":
                assert hasattr(standby.BackupServer, node.attr), text


def test_files_it_names_exist() -> None:
    named = re.findall(r"`((?:src|ext|tests|bench|\.ci)/[\w./-]+)`", README)
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    missing = [path for path in [*named, *linked] if not (ROOT / path).exists()]
    assert not missing
