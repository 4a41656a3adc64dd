"""Every command explains itself, and what it says in examples is true of the program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from standby.cli import cli

DOCUMENTED = {
    "init",
    "check",
    "demo",
    "version",
    "job list",
    "job plan",
    "job start",
    "job stop",
    "job sessions",
    "job report",
    "job acknowledge",
    "job alarms",
    "job next",
    "job pause",
    "job resume",
    "job retry",
    "server run",
    "server status",
    "infrastructure list",
    "infrastructure check",
    "host check",
    "host selftest",
    "token add",
    "token list",
    "token revoke",
    "support bundle",
    "replica list",
    "replica show",
    "replica verify",
    "replica failover",
    "replica undo-failover",
    "replica permanent-failover",
    "replica power",
    "disk info",
    "disk check",
    "disk compare",
    "disk convert",
    "disk merge",
    "disk serve",
    "wan status",
    "wan verify",
    "wan clear",
    "wan populate",
    "ca init",
    "ca token",
    "ca list",
    "ca revoke",
    "ca renew",
    "ca serve",
    "mover enroll",
    "mover run",
}
CHANGING = {
    "job start",
    "replica failover",
    "replica undo-failover",
    "replica permanent-failover",
    "disk convert",
    "disk merge",
    "wan verify",
    "wan clear",
    "wan populate",
    "ca revoke",
}
ASKING = {
    "replica failover",
    "replica undo-failover",
    "replica permanent-failover",
    "disk merge",
    "wan clear",
    "ca revoke",
}


def commands(group: click.Group = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    for word, command in sorted(group.commands.items()):
        path = f"{name} {word}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, path)
        else:
            yield path, command


COMMANDS = dict(commands())


def options(command: click.Command) -> set[str]:
    return {name for item in command.params for name in (*item.opts, *item.secondary_opts)}


def test_the_commands_are_the_documented_ones() -> None:
    assert set(COMMANDS) == DOCUMENTED


@pytest.mark.parametrize("name", ["", "job", "replica", "disk", "wan", "ca", "mover", *COMMANDS])
def test_help_has_an_example(run, name: str) -> None:
    text = run(*name.split(), "--help").out
    assert "Example" in text
    found = re.findall(r"^\s*(?:Example: )?(standby .*)$", text, re.M)
    assert found
    for line in found:
        check_example(re.split(r"  +", line)[0])


def check_example(line: str) -> None:
    """The words name a command, and every option is one of its own."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    for word in words:
        if word.startswith("--"):
            assert word in options(command), line


@pytest.mark.parametrize("name", COMMANDS)
def test_json_can_be_asked_for(name: str) -> None:
    assert "--json" in options(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_changes_something_has_a_dry_run_and_what_is_dangerous_asks(name: str) -> None:
    assert ("--dry-run" in options(COMMANDS[name])) == (name in CHANGING)
    assert ("--yes" in options(COMMANDS[name])) == (name in ASKING)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    for item in COMMANDS[name].params:
        if isinstance(item, click.Option):
            assert item.help, item.name
