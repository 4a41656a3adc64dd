"""The command line: thin over `standby.BackupServer` and `standby.disk`.

Results go to stdout, everything else to stderr. `--json` prints one JSON document, also for an
error. Exit codes: 0 done, 1 unexpected (a traceback), 2 usage, 3 finished with warnings or alarms
(or disks differ, or no server is active), 10 and up one per error family (`standby.errors`), 130
cancelled.

Modules here import what they need inside their commands, so that `standby --help` and
`standby version` start as fast as Python does.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

import standby
from standby.cli import (
    authority,
    demo,
    disk,
    hints,
    host,
    infrastructure,
    job_requests,
    jobs,
    mover,
    replicas,
    server,
    setup,
    support,
    tokens,
    wan,
)
from standby.cli.output import print_error, shortened_words, show_error, told_of_cancel
from standby.errors import StandbyError

UNEXPECTED_EXIT = 1
CANCELLED_EXIT = 130


class Root(click.Group):
    """Turns whatever a command raises into an exit code, and into JSON where that was asked for."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run `args` (None: the process's own) and exit."""
        given = args[0] if args else extra.pop("args", None)
        arguments = list(sys.argv[1:] if given is None else given)
        extra |= {"prog_name": "standby", "standalone_mode": False}
        sys.exit(self._run(arguments, extra))

    def _run(self, arguments: list[str], extra: dict[str, Any]) -> int:
        as_json = "--json" in arguments
        hints.remember(arguments)
        try:
            result: Any = super().main(arguments, **extra)
            return result if isinstance(result, int) else 0
        except click.ClickException as exc:
            shown = io.StringIO()
            exc.show(shown)
            click.echo(shortened_words(shown.getvalue()), nl=False, err=True)
            if as_json:
                name, message = type(exc).__name__, exc.format_message()
                print_error(name, message, {}, "never", exc.exit_code)
            return exc.exit_code
        except (click.Abort, KeyboardInterrupt) as exc:
            told = told_of_cancel(exc)
            click.echo(told, err=True)
            if as_json:
                print_error("Cancelled", told, {}, "later", CANCELLED_EXIT)
            return CANCELLED_EXIT
        except StandbyError as exc:
            show_error(exc, as_json)
            return exc.exit_code
        except Exception as exc:
            if as_json:
                name = type(exc).__name__
                print_error(name, f"unexpected: {exc}", {}, "never", UNEXPECTED_EXIT)
            raise


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `standby demo`, then `standby init`. Every command has --help with an "
    "example, and --json where it is no group.",
)
@click.version_option(standby.__version__, message="standby %(version)s")
def cli() -> None:
    """Ready-to-start replicas of virtual machines.

    \b
    Example:
      standby init                            write a commented standby.toml
      standby check                           is everything in it as it should be?
      standby job plan nightly                what would a session do?
      standby job start nightly               a new restore point of every VM
      standby replica failover web01_replica  start working from the replica
    """


for command in (
    *setup.COMMANDS,
    authority.ca,
    demo.demo,
    jobs.job,
    replicas.replica,
    infrastructure.infrastructure,
    host.host,
    server.server,
    tokens.token,
    mover.mover,
    disk.disk,
    wan.wan,
    support.support,
):
    cli.add_command(command)
for asking in job_requests.COMMANDS:
    jobs.job.add_command(asking)
mover.mover.add_command(authority.enroll)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry of the process: run the command line and exit with its code.

    SIGTERM ends a command like Ctrl-C does: children are ended, temporary files removed, what was
    transferred is kept.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a VM's name may be more than the locale can say
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError, OSError):
            signal.signal(signal.SIGTERM, _cancel)
    cli.main(None if arguments is None else list(arguments))


def _cancel(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
