"""`standby disk serve`: any restore point's disk for NBD clients of this machine."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from standby.cli.output import json_option, size

LOOK_S = 0.5
"""On Windows a wait without end does not see Ctrl-C."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="Unix socket, in a folder only you can enter; default a new one. On Windows a free "
    "TCP port is taken instead.",
)
@click.option("--name", default="disk", show_default=True, help="Export name.")
@click.option(
    "--overlay",
    is_flag=True,
    help="Writable: writes go to a file in the temporary folder and are thrown away at the end.",
)
@click.option(
    "--parents-in",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder that a parent's path may lead into, beside the disk's own; may be repeated.",
)
@json_option
def serve(
    path: Path,
    socket_path: Path | None,
    name: str,
    overlay: bool,
    folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Serve the disk PATH (any restore point's file) over NBD, read-only, until interrupted.

    Prints how to connect once clients can; with --json that is one line.

    \b
    Example: standby disk serve replicas/web01_replica/disk0/20261122T220000Z-9c1d.vhdx
    """
    from standby.disk import open_disk
    from standby.disk.overlay import OverlayDisk
    from standby.disk.serve.server import NbdServer
    from standby.ports import VirtualDisk

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stopped_by_signals())
        if socket_path is None:
            folder = Path(tempfile.mkdtemp(prefix="standby-nbd-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            socket_path = folder / "disk.sock"
        disk: VirtualDisk = open_disk(path, folders=folders)
        stack.callback(disk.close)
        if overlay:
            disk = OverlayDisk(disk, Path(tempfile.gettempdir()))
            stack.callback(disk.close)
        server = stack.enter_context(NbdServer({name: disk}, socket_path, writable=overlay))
        uri = server.uri(name)
        _say(path, uri, socket_path, disk.virtual_size, overlay, as_json)
        while not stop.wait(LOOK_S):
            pass
    if not as_json:
        click.echo("ended", err=True)


def _say(
    path: Path, uri: str, socket_path: Path, virtual_size: int, overlay: bool, as_json: bool
) -> None:
    if as_json:
        import msgspec

        ready = {
            "ready": True,
            "path": str(path),
            "uri": uri,
            "socket": str(socket_path) if uri.startswith("nbd+unix") else None,
            "virtual_size": virtual_size,
            "writable": overlay,
        }
        click.echo(msgspec.json.encode(ready).decode())
        return
    how = "writable, writes are thrown away at the end" if overlay else "read-only"
    click.echo(
        f"{path}: {size(virtual_size)}, {how}, at\n"
        f"  {uri}\n"
        "Connect, for example, with one of\n"
        f"  nbdinfo '{uri}'\n"
        f"  nbdcopy '{uri}' copy.raw\n"
        f"  qemu-img convert -O qcow2 '{uri}' copy.qcow2\n"
        "Ctrl-C ends it."
    )


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set: here they are the ordinary end, exit code 0."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
