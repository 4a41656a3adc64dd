"""How results are shown: JSON or text on stdout, progress, questions and errors on stderr.

Nothing here imports rich or msgspec until it is needed: `standby --help` must not wait for them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from standby.cli.hints import with_options
from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import StandbyError, error_to_wire
from standby.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import TaskID

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be done, change nothing."
)

COLUMN_MIN = 12
"""A column that may be wrapped is not made narrower than this."""
CELL_MAX = 200
"""A name or id of a table that is longer is shortened: nobody types it."""
WORD_MAX = 300
"""The same for what has no space in a message. Longer than any path but the strangest."""

PROGRESS_LINE_S = 30.0
"""Where no terminal is, what takes shorter says nothing on its way."""

_LONG_WORD = re.compile(rf"\S{{{WORD_MAX + 1},}}")


def shortened(text: str, length_max: int) -> str:
    """The text, with an ellipsis for its middle where it is longer."""
    if len(text) <= length_max:
        return text
    tail = length_max // 4
    return f"{text[: length_max - tail - 1]}…{text[-tail:]}"


def shortened_words(text: str) -> str:
    """A message in which no word is longer than WORD_MAX."""
    return _LONG_WORD.sub(lambda found: shortened(found[0], WORD_MAX), text)


# --- results ---------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """`value` (dataclasses, structs, paths, builtin types) as one indented JSON document."""
    import msgspec

    data = msgspec.to_builtins(value, order="deterministic", enc_hook=str)
    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, one line per row when it goes to a file or a pipe.

    A column whose name begins with '>' is right-aligned. One that begins with '~' is wrapped where
    the terminal is too narrow; no other column is cut or wrapped, so that ids can be copied, but
    for names of more than CELL_MAX characters.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if title:
        click.echo(title)
    for line in table_lines(columns, rows, width):
        click.echo(line)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The table's lines; `width` 0 means no limit."""
    heads = [column.lstrip(">~") for column in columns]
    shown = [
        [
            shortened_words(cell) if column.startswith("~") else shortened(cell, CELL_MAX)
            for column, cell in zip(columns, row, strict=True)
        ]
        for row in rows
    ]
    table = [heads, *shown] if any(heads) else shown
    widths = [max([len(row[index]) for row in table], default=0) for index in range(len(columns))]
    excess = sum(widths) + 2 * (len(widths) - 1) - width if width else 0
    for index, column in enumerate(columns):
        if excess > 0 and column.startswith("~"):
            narrower = max(min(widths[index], COLUMN_MIN), widths[index] - excess)
            excess -= widths[index] - narrower
            widths[index] = narrower
    lines = []
    for row in table:
        cells = [
            textwrap.wrap(cell, space) if column.startswith("~") and len(cell) > space else [cell]
            for cell, space, column in zip(row, widths, columns, strict=True)
        ]
        for number in range(max(map(len, cells), default=0)):
            parts = []
            for cell, space, column in zip(cells, widths, columns, strict=True):
                text = cell[number] if number < len(cell) else ""
                parts.append(text.rjust(space) if column.startswith(">") else text.ljust(space))
            lines.append("  ".join(parts).rstrip())
    return lines


def size(count: int) -> str:
    """Bytes for a table."""
    return format_bytes(count)


# --- errors ----------------------------------------------------------------------------------


def warn(text: str) -> None:
    """A warning on stderr."""
    click.echo(f"warning: {with_options(shortened_words(text))}", err=True)


def show_error(error: StandbyError, as_json: bool) -> None:
    """The error's sentence on stderr; where JSON was asked for, its class and fields on stdout."""
    click.echo(f"error: {with_options(shortened_words(str(error)))}", err=True)
    if as_json:
        values = error_to_wire(error)
        name = values.pop("error")
        print_error(name, str(error), values, error.retry.value, error.exit_code)


def print_error(
    name: str, message: str, values: dict[str, Any], retry: str, exit_code: int
) -> None:
    """The JSON document of a failure: the same keys whatever failed."""
    print_json(
        {
            "error": {
                "class": name,
                "message": message,
                "fields": values,
                "retry": retry,
                "exit_code": exit_code,
            }
        }
    )


# --- questions -------------------------------------------------------------------------------


def can_ask() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirmed(plan: Sequence[str], question: str, *, yes: bool, as_json: bool = False) -> None:
    """Show the plan and ask, unless `yes`; anything but y ends the command with exit code 130.
    Where nobody can answer, the command is refused instead of waiting for ever."""
    if not yes and not can_ask():
        raise click.UsageError(
            f"{question} Nobody can be asked here (no terminal): repeat with --yes, or look first "
            "with --dry-run."
        )
    if not (yes and as_json):
        for line in plan:
            click.echo(line, err=True)
    if not yes:
        click.confirm(question, abort=True, err=True)


@contextlib.contextmanager
def if_cancelled(text: str) -> Iterator[None]:
    """What the command says, in one line, where Ctrl-C (or SIGTERM) ends it in this block: what is
    left behind, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as exc:
        if exc.args:
            raise
        raise KeyboardInterrupt(text) from exc


def told_of_cancel(exc: BaseException) -> str:
    """The line of a command that was cancelled, from what ended it."""
    cause = exc if isinstance(exc, KeyboardInterrupt) else exc.__cause__
    text = cause.args[0] if isinstance(cause, KeyboardInterrupt) and cause.args else ""
    return f"cancelled: {with_options(text)}" if text else "cancelled"


# --- progress --------------------------------------------------------------------------------


@contextlib.contextmanager
def progress_bars(
    is_wanted: bool, clock: Clock = SYSTEM_CLOCK
) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (label, done, total) that keeps one bar per label on stderr; where that is no
    terminal, it writes a line per label there every PROGRESS_LINE_S."""
    if not is_wanted:
        yield lambda label, done, total: None
        return
    if not sys.stderr.isatty():
        yield _progress_lines(clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    bars: dict[str, TaskID] = {}
    lock = threading.Lock()
    with Progress(
        TextColumn("{task.description}", markup=False),
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


def _progress_lines(clock: Clock) -> Callable[[str, int, int], None]:
    began = clock.monotonic()
    told: dict[str, float] = {}
    lock = threading.Lock()

    def update(label: str, done: int, total: int) -> None:
        now = clock.monotonic()
        with lock:
            if now - told.get(label, began) < PROGRESS_LINE_S:
                return
            told[label] = now
        share = f" ({100 * done // total} %)" if total else ""
        click.echo(f"{label}: {format_bytes(done)} of {format_bytes(total)}{share}", err=True)

    return update
