"""The installation of `sites` with a WAN accelerator at each site: wa at the source; wb, which
keeps the cache, at the target; wa2 is a second one at the source."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from cli.processes import wait_until
from net.nursery import Nursery
from net.served import ServedSites
from net.sites import HOSTS, ROLES, Sites
from standby.disk import open_disk
from standby.units import MiB

PAIR = """\
wan = "main"
[wan.main]
source = "wa"
target = "wb"
"""
TWO_PAIRS = f"""\
exclude_machines = ["vm2"]
{PAIR}
[wan.other]
source = "wa2"
target = "wb"
[jobs.second]
source = "source"
target = "target"
machines = ["vm2"]
compression = "none"
wan = "other"
"""
CACHE = ['size = "256 MiB"', 'memory = "8 MiB"', "keep_free = 0", 'window = "1 MiB"']


class WanSites(Sites):
    """Both sites and their accelerators."""

    hosts: ClassVar[Mapping[str, Sequence[str]]] = {
        "a": (*HOSTS["a"], "wa", "wa2"),
        "b": (*HOSTS["b"], "wb"),
    }
    roles: ClassVar[Mapping[str, Sequence[str]]] = ROLES | {
        "wa": ("wan",),
        "wa2": ("wan",),
        "wb": ("wan",),
    }

    def __init__(self, folder: Path, nursery: Nursery, *, job: str = PAIR, **more: Any) -> None:
        self.cache = folder / "cache"
        """The folder of the target's cache."""
        super().__init__(folder, nursery, job=job, **more)

    def tables_of(self, name: str) -> list[str]:
        """See Sites."""
        if name not in ("wa", "wa2", "wb"):
            return []
        return ["[wan]", *([f'cache = "{self.cache}"'] if name == "wb" else []), *CACHE]

    def held_by(self, mover: str) -> list[str]:
        """See Sites; a cache stays open while its mover runs, and connections between accelerators
        stand."""
        names = ("wa", "wa2", "wb")
        hosts = [self.address(name).rpartition(":")[0] for name in names]
        others = {f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}" for host in hosts}

        def may_stay(item: str) -> bool:
            if not item.startswith("tcp "):
                return item.startswith(f"{self.cache}/")
            return mover in names and item.split()[2].partition(":")[0] in others

        return [item for item in super().held_by(mover) if not may_stay(item)]

    def copy_machine(self, source: str, name: str, size: int = 32 * MiB) -> None:
        """A VM with the content of another one's disk."""
        self.add_machine(name, (size,))
        data = bytearray(size)
        with closing(open_disk(self.disk(0, source))) as disk:
            disk.read_into(0, data)
        with closing(open_disk(self.disk(0, name), writable=True)) as disk:
            disk.write(0, data)

    def until_passed(self, size: int = 8 * MiB) -> None:
        """Wait until the source's accelerator has sent so much in this session."""
        sent = self.network["wa"].link.counters().sent_bytes
        wait_until(
            lambda: self.network["wa"].link.counters().sent_bytes - sent >= size, "data passed"
        )

    def wan(self, *arguments: str) -> Any:
        """What `standby wan …` says, as JSON."""
        done = self.command("wan", *arguments, "--json")
        assert done.returncode in (0, 3), done.stdout + done.stderr
        return json.loads(done.stdout)


class ServedWanSites(WanSites, ServedSites):
    """The same, whose job a daemon runs."""
