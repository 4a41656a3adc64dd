"""`standby infrastructure …`: hosts, movers, repositories: what there is, and does it work?"""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import (
    json_option,
    print_json,
    print_table,
    progress_bars,
    shortened_words,
)
from standby.cli.serving import config_option, opened_backup, server_option

WARNINGS_EXIT = 3
ERRORS_EXIT = 15


@click.group()
def infrastructure() -> None:
    """Hosts, movers, proxies, repositories and WAN accelerators of the configuration.

    \b
    Example:
      standby infrastructure list
      standby infrastructure check
    """


@infrastructure.command("list")
@config_option
@server_option
@json_option
def list_parts(config: Path, as_json: bool) -> None:
    """Everything that the configuration names; connects to nothing.

    \b
    Example: standby infrastructure list
    """
    with opened_backup(config) as server:
        found = server.infrastructure()
    if as_json:
        print_json(found)
        return
    rows = [("host", item.name, item.kind, item.mover, item.path) for item in found.hosts]
    rows += [("mover", item.name, ", ".join(item.roles), "", item.address) for item in found.movers]
    rows += [
        ("proxy", item.name, f"{item.side}, {item.max_tasks} tasks", item.mover, "")
        for item in found.proxies
    ]
    rows += [("repository", item.name, "", item.mover, item.path) for item in found.repositories]
    rows += [
        ("wan", item.name, f"{item.mode}, {item.if_away} if away", item.source, f"to {item.target}")
        for item in found.wans
    ]
    print_table("", ("part", "name", "what", "mover", "~place"), rows)


@infrastructure.command()
@config_option
@server_option
@json_option
def check(config: Path, as_json: bool) -> int:
    """Try every part from whoever needs it: the server each mover, movers each other, each its
    folders. Changes nothing. Exit code 3: something wants a look; 15: something does not work.

    \b
    Example: standby infrastructure check
    """
    with opened_backup(config) as server, progress_bars(not as_json) as update:
        found = server.check_infrastructure(lambda done, total: update("check", done, total))
    levels = {item.level.value for item in found}
    if as_json:
        print_json({"checks": found})
    else:
        for item in found:
            mark = "" if item.level.value == "ok" else f"{item.level.value.upper()}: "
            hint = f". {item.hint}" if item.hint else ""
            text = f"{item.seen_from} -> {item.what}: {mark}{item.text}{hint}"
            click.echo(shortened_words(text))
    return ERRORS_EXIT if "error" in levels else WARNINGS_EXIT if "warning" in levels else 0
