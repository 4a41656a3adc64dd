"""`standby host …`: Hyper-V hosts and clusters of the configuration, asked themselves."""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import json_option, print_json, shortened_words
from standby.cli.serving import config_option

ERRORS_EXIT = 10
WARNINGS_EXIT = 3


@click.group()
def host() -> None:
    """Hyper-V hosts and clusters of the configuration: is all there that standby needs?

    \b
    Example:
      standby host check prod
      standby host selftest prod --language
    """


@host.command()
@click.argument("name")
@config_option
@json_option
def check(name: str, config: Path, as_json: bool) -> int:
    """Ask the host NAME, or every node of the cluster, whether it can be used: reachability, TLS,
    rights, version, clock, services, quotas, language mode, its VMs, its shares, what needs
    CredSSP, and its disks' folders as each proxy sees them. Changes nothing.

    Exit code 0: sound; 3: warnings; 10: a job would fail.

    \b
    Example: standby host check prod
    """
    from standby.clock import SYSTEM_CLOCK
    from standby.server.config import load_config
    from standby.server.host_check import check_host

    found = check_host(load_config(config), name, SYSTEM_CLOCK)
    levels = [item.level.value for node in found for item in node.findings]
    if as_json:
        print_json({"host": name, "nodes": found, "errors": levels.count("error")})
    else:
        for node in found:
            for item in node.findings:
                mark = "" if item.level.value == "ok" else f"{item.level.value.upper()}: "
                remedy = f". Do: {item.remedy}" if item.remedy else ""
                text = f"{node.address} {item.what}: {mark}{item.text}{remedy}"
                click.echo(shortened_words(text))
    return ERRORS_EXIT if "error" in levels else WARNINGS_EXIT if "warning" in levels else 0


@host.command()
@click.argument("name")
@click.option("--language", is_flag=True, help="Try the language of the scripts.")
@config_option
@json_option
def selftest(name: str, language: bool, config: Path, as_json: bool) -> int:
    """Try on the host NAME, or on the first node of the cluster, what no test without Windows can
    show. With --language: some 300 small scripts on its PowerShell, and where it prints other
    lines than documented. Changes nothing.

    Exit code 0: as expected; 3: differences, which belong into a report of the fault.

    \b
    Example: standby host selftest prod --language
    """
    if not language:
        raise click.UsageError("Say what to try: --language.")
    from standby.clock import SYSTEM_CLOCK
    from standby.host.hyperv.language import differences, snippets
    from standby.server.config import load_config
    from standby.server.host_check import opened_doors

    with opened_doors(load_config(config), name, SYSTEM_CLOCK) as doors:
        first = doors.open[0]
        found = list(differences(first))
    address = first.access.address
    if as_json:
        print_json({"host": name, "node": address, "asked": len(snippets()), "differences": found})
    else:
        for item in found:
            click.echo(f"--- {item.snippet.documented}")
            click.echo(item.snippet.script)
            click.echo(f"expected: {' | '.join(item.snippet.lines)}")
            click.echo(f"printed:  {' | '.join(item.printed)}")
        click.echo(f"{address}: {len(found)} of {len(snippets())} scripts print something else")
    return WARNINGS_EXIT if found else 0
