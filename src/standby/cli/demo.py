"""`standby demo`: the whole road in under a minute, on disks of real content."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.output import json_option, print_json, print_table, size

if TYPE_CHECKING:
    from standby.cli.demo_run import Demo

WORDS = """
The first session copied what the disks hold; holes were not read, zeros not sent. The next two
read the disks, compared them with the digests in the repository, and sent only the 4 KiB pieces
that had changed (with a few bytes around them). Each point is one native VHDX file per disk.
Failing over to a point copied nothing, and undoing it dropped only what had been written since."""


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's folder and say where it is.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where; default a temporary one.")
@json_option
def demo(keep: bool, folder: Path | None, as_json: bool) -> None:
    """Replicate a VM, change it, replicate again, fail over, undo; under a minute, no root.

    Takes about 200 MiB in the temporary folder (TMPDIR), and removes them.

    \b
    Example: standby demo --keep
    """
    from standby.files import is_folder, is_there, listed, make_folder_durably

    if folder is not None and is_there(folder) and (not is_folder(folder) or listed(folder)):
        raise click.UsageError(f"{folder} is not an empty folder")
    place = folder or Path(tempfile.mkdtemp(prefix="standby-demo-"))
    say: Callable[[str], None] = lambda text: click.echo(text, err=as_json)  # noqa: E731
    is_done = False
    try:
        from standby.cli.demo_run import Demo

        make_folder_durably(place.absolute())
        shown = Demo(place, say)
        shown.run()
        is_done = True
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
        elif not is_done:
            click.echo(f"kept in {place}", err=True)
    _show(shown, place if keep else None, as_json)


def _show(shown: Demo, kept: Path | None, as_json: bool) -> None:
    if as_json:
        print_json({"sessions": shown.sessions, "steps": shown.steps, "kept": kept})
        return
    rows = [
        (
            item.session,
            item.point,
            size(item.read),
            size(item.sent),
            size(item.written),
            f"{item.seconds:.2f} s",
        )
        for item in shown.sessions
    ]
    click.echo("")
    print_table("", ("session", "restore point", ">read", ">sent", ">written", ">time"), rows)
    click.echo(WORDS)
    if kept is not None:
        click.echo(f"\nkept in {kept}; see `standby replica list --target {kept / 'recovery'}`")
