"""`python -m standby.host.folder.disk_server`: the disks of one running VM over NBD.

    --socket PATH --kept PREFIX --folder FOLDER NAME=DISK …

like `standby.disk.serve --writable`, with writes that a kill does not undo (keeping.py): those of
the disk NAME are kept in PREFIX.NAME. Ends clean on SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from standby.disk import open_disk
from standby.disk.serve.ending import serve_process
from standby.disk.serve.server import NbdServer
from standby.host.folder.keeping import KeptDisk
from standby.ports import VirtualDisk


def run(argv: Sequence[str], wait: Callable[[], object]) -> None:
    """Serve until `wait` returns."""
    parser = argparse.ArgumentParser(prog="python -m standby.host.folder.disk_server")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True, metavar="PREFIX")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("disks", nargs="*", metavar="NAME=DISK")
    arguments = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        disks: dict[str, VirtualDisk] = {}
        for pair in arguments.disks:
            name, _, path = pair.partition("=")
            disk = open_disk(Path(path), writable=True, folders=[arguments.folder])
            stack.callback(disk.close)
            kept = KeptDisk(disk, arguments.kept.with_name(f"{arguments.kept.name}.{name}"))
            stack.callback(kept.close)
            if kept.repeated:
                print(f"{path}: {kept.repeated} writes of a killed disk server done again")
            disks[name] = kept
        stack.enter_context(NbdServer(disks, arguments.socket, writable=True))
        print("ready", flush=True)
        wait()


def main() -> int:
    """The process entry; the exit code."""
    return serve_process("disk server", run)


if __name__ == "__main__":
    sys.exit(main())
