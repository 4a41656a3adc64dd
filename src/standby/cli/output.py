"""How results are shown: JSON or text on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from standby.errors import StandbyError, error_to_wire
from standby.units import format_bytes

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be done, change nothing."
)

_json_errors = False


def print_json(value: Any) -> None:
    """`value` (dataclasses, structs, builtin types) as one indented JSON document."""
    data = msgspec.json.encode(msgspec.to_builtins(value, order="deterministic"))
    click.echo(msgspec.json.format(data, indent=2).decode())


def shown_error(error: StandbyError) -> None:
    """The error on stderr; as JSON too where the command was asked for JSON."""
    if "--json" in sys.argv:
        print_json({"error": error_to_wire(error), "message": str(error)})
    click.echo(f"error: {error}", err=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns whose name begins with '>' are right-aligned."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False).print(table)


def confirmed(question: str, yes: bool) -> None:
    """Ask, unless `yes`; anything but y ends the command with exit code 130."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    click.echo(f"warning: {text}", err=True)


def size(count: int) -> str:
    """Bytes for a table."""
    return format_bytes(count)


@contextlib.contextmanager
def progress_bars(is_wanted: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (label, done, total) that keeps one bar per label on stderr, on terminals only."""
    if not is_wanted or not sys.stderr.isatty():
        yield lambda label, done, total: None
        return
    bars: dict[str, TaskID] = {}
    lock = threading.Lock()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as shown:

        def update(label: str, done: int, total: int) -> None:
            with lock:
                if label not in bars:
                    bars[label] = shown.add_task(label, total=total)
                shown.update(bars[label], completed=done, total=total)

        yield update
