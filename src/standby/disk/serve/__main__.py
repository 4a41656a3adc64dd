"""`python -m standby.disk.serve --socket PATH [--writable] NAME=DISK …`: disks over NBD until
SIGTERM.

Prints one line of JSON once clients can connect, nothing after it:
    {"ready": true, "pid": 4711, "socket": PATH, "exports": {NAME: URI, …}}
SIGTERM or SIGINT: requests under way are finished, disks flushed and closed clean, exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from standby.disk import open_disk
from standby.disk.overlay import OverlayDisk
from standby.disk.serve.ending import serve_process
from standby.disk.serve.server import NbdServer
from standby.errors import ConfigurationError
from standby.ports import VirtualDisk


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m standby.disk.serve")
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket")
    parser.add_argument("--writable", action="store_true", help="let clients write to the disks")
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="FOLDER",
        help="let clients write, but to a temporary file in FOLDER that ends with the server",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        action="append",
        default=[],
        help="another folder in which parents of a differencing disk may lie",
    )
    parser.add_argument("disks", nargs="+", metavar="NAME=DISK")
    arguments = parser.parse_args(argv)
    if arguments.writable and arguments.overlay:
        parser.error("--writable and --overlay exclude each other")
    return arguments


def _disk_paths(pairs: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigurationError(pair, "is not NAME=DISK")
        if name in paths:
            raise ConfigurationError(pair, f"a second disk named {name!r}")
        paths[name] = Path(path)
    return paths


def run(argv: Sequence[str], wait: Callable[[], object]) -> None:
    """Serve until `wait` returns."""
    arguments = _arguments(argv)
    with contextlib.ExitStack() as stack:
        disks: dict[str, VirtualDisk] = {}
        for name, path in _disk_paths(arguments.disks).items():
            disk: VirtualDisk = open_disk(
                path, writable=arguments.writable, folders=arguments.folder
            )
            stack.callback(disk.close)
            if arguments.overlay:
                disk = OverlayDisk(disk, arguments.overlay)
                stack.callback(disk.close)
            disks[name] = disk
        writable = arguments.writable or arguments.overlay is not None
        server = stack.enter_context(NbdServer(disks, arguments.socket, writable=writable))
        ready = {
            "ready": True,
            "pid": os.getpid(),
            "socket": str(arguments.socket),
            "exports": {name: server.uri(name) for name in disks},
        }
        with contextlib.suppress(OSError):  # nobody reads it
            print(json.dumps(ready), flush=True)
        wait()


def main(argv: Sequence[str] | None = None) -> int:
    """The process entry; the exit code."""
    return serve_process("nbd server", run, argv)


if __name__ == "__main__":
    sys.exit(main())
