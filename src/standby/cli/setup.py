"""`standby init`, `check`, `version`: before the first job."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import click
from click.core import ParameterSource

import standby
from standby.cli.output import json_option, print_json, print_table
from standby.cli.serving import config_option

ERRORS_EXIT = 10
WARNINGS_EXIT = 3


def _installation() -> str:
    """This computer's name, as far as an installation may be named so."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).lstrip("._-")
    return name[:64] or "main"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option(
    "--installation", default=_installation, show_default="this computer's name", help="Its name."
)
@click.option("--source", default="vms", show_default=True, help="The folder with your VMs.")
@click.option("--target", default="replicas", show_default=True, help="The folder for replicas.")
@click.option("--repository", default="repository", show_default=True, help="Where digests go.")
@click.option("--force", is_flag=True, help="Replace a standby.toml that is there.")
@json_option
def init(
    folder: Path,
    installation: str,
    source: str,
    target: str,
    repository: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write a commented standby.toml to FOLDER (default: here).

    \b
    Example: standby init /etc/standby --source /srv/vms --target /mnt/dr/replicas
    """
    from standby.errors import ConfigurationError
    from standby.files import is_taken, make_folder_durably, write_durably
    from standby.server.config import NAME
    from standby.server.template import config_template

    if not NAME.fullmatch(installation):
        raise click.BadParameter(
            f"{installation!r}: letters, digits, '.', '_' and '-', at most 64",
            param_hint="--installation",
        )
    path = folder / "standby.toml"
    if is_taken(path) and not force:
        raise ConfigurationError(
            str(path), "is there already", "Use --force to replace it, or name another folder"
        )
    make_folder_durably(folder.absolute())
    write_durably(path, config_template(installation, source, target, repository).encode())
    where = f" --config {path}" if folder != Path() else ""
    given = click.get_current_context().get_parameter_source
    asked = [given(name) is ParameterSource.COMMANDLINE for name in ("source", "target")]
    what = "look through" if all(asked) else "edit the paths in"
    steps = [f"{what} {path}", f"standby check{where}"]
    if as_json:
        print_json({"path": path, "installation": installation, "next": steps})
    else:
        click.echo(f"wrote {path}\nnext: {steps[0]}, then run `{steps[1]}`")


@click.command()
@config_option
@json_option
def check(config: Path, as_json: bool) -> int:
    """Validate standby.toml, every path in it, the VMs and their disks; changes nothing and says
    what to do next.

    Exit code 0: sound; 3: warnings; 10: a job would fail.

    \b
    Example: standby check --config /etc/standby/standby.toml
    """
    from standby.server.checking import checked_alone
    from standby.server.config import FILE_NAME, load_config

    loaded = load_config(config)
    findings = checked_alone(loaded)  # no server: that would make a state database
    file = config / FILE_NAME if config.is_dir() else config
    jobs = list(loaded.jobs)
    errors = [item for item in findings if item.level.value == "error"]
    step = _next_step(config, file, [item.mend for item in errors], jobs)
    if as_json:
        print_json({"findings": findings, "errors": len(errors), "next": step})
    else:
        if findings:
            rows = [(item.level.value, item.where, item.problem, item.hint) for item in findings]
            print_table("", ("level", "~where", "~problem", "~what to do"), rows)
        else:
            click.echo(f"{file}: everything is as it should be")
        click.echo(f"next: {step}")
    if errors:
        return ERRORS_EXIT
    return WARNINGS_EXIT if findings else 0


def _next_step(config: Path, file: Path, at_fault: list[str], jobs: list[str]) -> str:
    """`config` as it was given, `file` is the configuration itself; `at_fault`: what each error is
    to be mended in, '' for the configuration."""
    where = "" if config == Path("standby.toml") else f" --config {config}"
    if at_fault:
        edited = [f"edit {file}"] if "" in at_fault else []
        others = list(dict.fromkeys(item for item in at_fault if item))
        more = [f"{len(others) - 3} more"] if len(others) > 3 else []
        mended = [f"mend {', '.join([*others[:3], *more])} as said above"] if others else []
        return f"{' and '.join(edited + mended)}, then run `standby check{where}` again"
    if not jobs:
        return f"add a table [jobs.NAME] to {file}"
    return f"`standby job plan {jobs[0]}{where}` says what a session would do"


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
        facts["kernels_available"] = ", ".join(comparing.available_variants())
        facts["python"] = platform.python_version()
        facts["platform"] = platform.platform()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' ')} {value}")


COMMANDS = (init, check, version)
