"""`standby init`, `check`, `version`: before the first job."""

from __future__ import annotations

import platform
from pathlib import Path

import click

import standby
from standby.cli.output import json_option, print_json, print_table
from standby.cli.serving import config_option, opened_server
from standby.errors import ConfigurationError
from standby.files import write_durably


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@click.option("--installation", default=platform.node() or "main", show_default="this computer")
@click.option("--force", is_flag=True, help="Replace a standby.toml that is there.")
def init(folder: Path, installation: str, force: bool) -> None:
    """Write a commented standby.toml to FOLDER (default: here).

    \b
    Example: standby init /etc/standby
    """
    from standby.server.template import config_template

    path = folder / "standby.toml"
    if path.exists() and not force:
        raise ConfigurationError(str(path), "is there already", "Use --force to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(path, config_template(installation).encode())
    click.echo(f"wrote {path}; edit its two paths, then run `standby check`")


@click.command()
@config_option
@json_option
def check(config: Path, as_json: bool) -> int:
    """Validate standby.toml and every path in it.

    \b
    Example: standby check --config /etc/standby/standby.toml
    """
    with opened_server(config) as server:
        findings = server.check()
    if as_json:
        print_json({"findings": findings})
    elif not findings:
        click.echo(f"{config}: everything is as it should be")
    else:
        rows = [(item.level.value, item.where, item.problem, item.hint) for item in findings]
        print_table("", ("level", "where", "problem", "what to do"), rows)
    if any(item.level.value == "error" for item in findings):
        return 10
    return 3 if findings else 0


@click.command()
@click.option("--verbose", is_flag=True, help="Also kernels, Python and platform.")
@json_option
def version(verbose: bool, as_json: bool) -> None:
    """The version; with --verbose which kernel variant this CPU uses.

    \b
    Example: standby version --verbose
    """
    facts = {"standby": standby.__version__}
    if verbose or as_json:
        from standby import comparing

        facts["kernel"] = comparing.kernel_variant()
        facts["kernels available"] = ", ".join(comparing.available_variants())
        facts["python"] = platform.python_version()
        facts["platform"] = platform.platform()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name} {value}")


COMMANDS = (init, check, version)
