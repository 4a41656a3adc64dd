"""An ext4 file system inside a disk image, made and changed without root or loop mounts.

`mke2fs -d` fills it from a folder, `debugfs -w` changes it afterwards: new files get free blocks,
deleted ones leave their content behind, appended ones grow in place, rewritten blocks stay where
they are. What differs from a kernel that writes: the journal stays empty, and the allocator is
libext2fs's. `check` runs e2fsck and accepts nothing but a clean file system.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

BLOCK = 4096
PARTITION_OFFSET = 1 << 20
_UUID = "5b1f7b1e-2d1c-4a57-9d0c-0e6a3d4c9a11"
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Ext4Image:
    """A raw disk with an MBR and one ext4 partition.

    Changes are collected by `write`, `remove` and so on, and carried out together by `apply`;
    `overwrite` takes effect at once.
    """

    def __init__(self, path: Path, now_s: int) -> None:
        """`now_s` is the time its changes are stamped with."""
        self.path = path
        self.now_s = now_s
        self._script: list[str] = []

    @property
    def _device(self) -> str:
        return f"{self.path}?offset={PARTITION_OFFSET}"

    def _run(self, *command: str, text: str | None = None) -> str:
        environment = {
            **os.environ,
            "PATH": _PATH,
            "LC_ALL": "C",
            "E2FSPROGS_FAKE_TIME": str(self.now_s),
            "DEBUGFS_PAGER": "cat",
        }
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def make(self, size: int, folder: Path) -> None:
        """Create the image of `size` bytes with the content of `folder`."""
        with self.path.open("xb") as file:
            file.truncate(size)
            sectors = (size - PARTITION_OFFSET) // 512
            entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff",
                                PARTITION_OFFSET // 512, sectors)  # fmt: skip
            file.seek(440)
            file.write(b"STBY\0\0" + entry + bytes(48) + b"\x55\xaa")
        options = f"offset={PARTITION_OFFSET},hash_seed={_UUID},lazy_itable_init=1,nodiscard"
        self._run(
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-U", _UUID, "-E", options,
            "-d", str(folder), str(self.path), f"{(size - PARTITION_OFFSET) // 1024}k",
        )  # fmt: skip

    def check(self) -> None:
        """End the program unless e2fsck finds the file system clean."""
        self._run("e2fsck", "-f", "-n", self._device)

    # --- collected changes ---

    def write(self, source: Path, place: str) -> None:
        """A new file at `place` with the content of `source`."""
        self._script.append(f'write "{source}" "{place}"')

    def remove(self, place: str) -> None:
        """Delete a file; its blocks become free and keep their content."""
        self._script.append(f'rm "{place}"')

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, which nothing has."""
        self._script += [f'ln "{old}" "{new}"', f'unlink "{old}"']

    def hard_link(self, old: str, new: str, links: int) -> None:
        """Another name for a file, which has `links` names with it."""
        self._script += [f'ln "{old}" "{new}"', f'set_inode_field "{old}" links_count {links}']

    def make_folder(self, place: str) -> None:
        """A new folder; its parent exists."""
        self._script.append(f'mkdir "{place}"')

    def link(self, place: str, target: str) -> None:
        """A new symbolic link."""
        self._script.append(f'symlink "{place}" "{target}"')

    def read_at(self, place: str, time_s: int) -> None:
        """Set a file's access time."""
        self._script.append(f'set_inode_field "{place}" atime @{time_s}')

    def apply(self) -> None:
        """Carry out what was collected."""
        self._debugfs(self._script)
        self._script = []

    def _debugfs(self, commands: list[str]) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
            script.write("\n".join([f"set_current_time @{self.now_s}", *commands, ""]))
            script.flush()
            said = self._run("debugfs", "-w", "-f", script.name, self._device)
        problems = [line for line in said.splitlines() if _is_problem(line)]
        if problems:
            raise SystemExit("debugfs:\n" + "\n".join(problems[:20]))
        return said

    # --- in place ---

    def overwrite(self, place: str, blocks: Mapping[int, bytes], size: int) -> None:
        """Put 4 KiB `blocks` (by number) of an existing file where they are on the disk; blocks
        that have no place yet are allocated. `size` is the file's new length."""
        known = self._extents(place)
        missing = sorted(number for number in blocks if number not in known)
        commands = [f'bmap -a "{place}" {number}' for number in missing]
        self._debugfs([*commands, f'set_inode_field "{place}" size {size}'])
        if missing:
            known = self._extents(place)
        with self.path.open("r+b", buffering=0) as file:
            for number, data in blocks.items():
                os.pwrite(file.fileno(), data, PARTITION_OFFSET + known[number] * BLOCK)

    def content_of(self, place: str) -> bytes:
        """The whole content of a file."""
        with tempfile.NamedTemporaryFile() as copy:
            self._debugfs([f'dump "{place}" "{copy.name}"'])
            return Path(copy.name).read_bytes()

    def _extents(self, place: str) -> dict[int, int]:
        """Physical block of each logical block of the file."""
        said = self._run("debugfs", "-R", f'dump_extents -n -l "{place}"', self._device)
        found: dict[int, int] = {}
        row = r"^ *(\d+)/ *(\d+) +\d+/ *\d+ +(\d+) +- +(\d+) +(\d+) +- +(\d+)"
        for match in re.finditer(row, said, re.M):
            level, depth, first, last, physical, _ = (int(group) for group in match.groups())
            if level == depth:
                found.update((block, physical + block - first) for block in range(first, last + 1))
        return found


def _is_problem(line: str) -> bool:
    """Whether a line of debugfs's output tells of an error: it goes on after most."""
    if line.startswith(("debugfs ", "debugfs:", "Allocated inode", "Setting current time")):
        return False
    return bool(
        re.search(r"not found|exists|usage|unknown|error|no free|while |denied", line, re.I)
    )
