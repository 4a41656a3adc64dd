"""`standby host …`: Hyper-V hosts and clusters of the configuration, asked themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.output import json_option, print_json, shortened_words
from standby.cli.serving import config_option

if TYPE_CHECKING:
    from standby.host.hyperv.selftest import Report

ERRORS_EXIT = 10
WARNINGS_EXIT = 3


@click.group()
def host() -> None:
    """Hyper-V hosts and clusters of the configuration: is all there that standby needs?

    \b
    Example:
      standby host check prod
      standby host selftest prod --folder 'D:\\Standby-selftest'
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
@click.option("--folder", metavar="PATH", help="A folder of the host for the test's own VMs.")
@click.option("--language", is_flag=True, help="Try the language of the scripts alone.")
@config_option
@json_option
def selftest(name: str, folder: str | None, language: bool, config: Path, as_json: bool) -> int:
    """Try on the host NAME, or on the first node of the cluster, what no test without Windows can
    show. In the folder it makes two small VMs of its own, off every network, takes recovery
    snapshots of one, converts them, asks what changed, attaches, merges and starts disks, and
    removes everything again; your own VMs are not touched. Where a proxy on this machine sees the
    folder, what the host says is compared with the bytes. The report has no address, account or
    password in it: send it along. What a killed test left goes with the next one in that folder.

    With --language: some 300 small scripts on its PowerShell, and where it prints other lines than
    documented; changes nothing.

    Exit code 0: as expected; 3: differences, which belong into a report of the fault.

    \b
    Example:
      standby host selftest prod --folder 'D:\\Standby-selftest'
      standby host selftest prod --language
    """
    if language == (folder is not None):
        raise click.UsageError("Say what to try: --folder 'D:\\Standby-selftest', or --language.")
    from standby.clock import SYSTEM_CLOCK
    from standby.server.config import load_config

    if folder is None:
        return _language(name, config, as_json)
    from standby.server.host_selftest import selftest_host

    def say(text: str) -> None:
        click.echo(f"{text} …", err=True)

    report = selftest_host(load_config(config), name, folder, SYSTEM_CLOCK, say)
    if as_json:
        print_json(report)
    else:
        for line in report_lines(report):
            click.echo(line)
    return WARNINGS_EXIT if report.differs else 0


def _language(name: str, config: Path, as_json: bool) -> int:
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


def report_lines(report: Report) -> Iterator[str]:
    """The self-test's report, for people: the steps, then every line of assumed.toml by what came
    of it."""
    from standby import __version__
    from standby.host.hyperv.selftest_walk import Mark

    yield f"standby {__version__}, self-test of {report.host}"
    for step in report.steps:
        counts = Counter(item.mark.value for item in step.findings)
        told = (
            ", ".join(f"{count} {mark}" for mark, count in counts.items()) or "nothing to look at"
        )
        yield f"{step.mark.value.upper():14} {step.name}: {step.settles} ({told})"
        for item in step.findings:
            if item.mark is Mark.DIFFERS:
                yield f"    DIFFERS  {item.what}: expected {item.expected}, came {item.came}"
            elif item.mark is not Mark.OK:
                yield f"    {item.mark.value}: {item.what}: {item.came}"
    for mark in (Mark.DIFFERS, Mark.MISSED, Mark.OK):
        lines = [line for line in report.assumed if line.mark is mark]
        yield f"assumed, step {mark.value}: {len(lines)}"
        for line in lines:
            yield f"    {line.step}: {line.name}"
