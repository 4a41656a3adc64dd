"""The command line: thin over `standby.BackupServer` and `standby.disk`.

Results go to stdout, everything else to stderr. `--json` prints one JSON document. Exit codes:
0 done, 1 unexpected, 2 usage, 3 finished with warnings or alarms, 10 and up one per error family
(`standby.errors`), 130 cancelled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from standby.cli import demo, disk, jobs, replicas, setup
from standby.cli.output import shown_error
from standby.errors import StandbyError

WARNINGS_EXIT = 3
CANCELLED_EXIT = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `standby demo`, then `standby init`.",
)
def cli() -> None:
    """Ready-to-start replicas of virtual machines.

    \b
    standby init                    write a commented standby.toml
    standby check                   is everything in it as it should be?
    standby job plan nightly        what would a session do?
    standby job start nightly       bring a new restore point of every VM to the target
    standby replica failover web01  start working from the replica
    """


for command in (*setup.COMMANDS, demo.demo, jobs.job, replicas.replica, disk.disk):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns (console script: exits with) the exit code."""
    try:
        result = cli.main(args=arguments, prog_name="standby", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("cancelled", err=True)
        sys.exit(CANCELLED_EXIT)
    except StandbyError as exc:
        shown_error(exc)
        sys.exit(exc.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
