"""The two sites with a WAN accelerator each, in this process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import numpy as np

from simulation.several import HOMES, ROLES, CuttableMachine, SeveralSite
from standby.errors import LinkError
from standby.road.service_config import WanConfig
from standby.road.wan_room import disk_bytes
from standby.road.wan_verbs import WanVerbs
from standby.units import MiB
from standby.wan.limits import Limits

MORE = """\
wan = "main"
[wan.main]
source = "wa"
target = "wb"
"""


class WanSite(SeveralSite):
    """The two sites with an accelerator each; the server finds no way to those in `away`."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = ROLES | {"wa": ("wan",), "wb": ("wan",)}
    caches = "wb"
    disks_at_once = 16

    def __init__(self, folder: Path, more: str = MORE) -> None:
        self.away: set[str] = set()
        self.asked_away = threading.Event()
        super().__init__(folder, more=more)

    def make_mover(self, name: str) -> CuttableMachine:
        home = self.folder / HOMES.get(name, "target")
        wan = None
        if "wan" in self.roles[name]:
            limits = Limits(limit_bytes=512 * MiB, index_bytes=8 * MiB, keep_free_bytes=0)
            cache = self.folder / "cache" if name == self.caches else None
            room = self.disks_at_once * disk_bytes(WINDOW_LOG)
            wan = WanConfig(cache, limits, WINDOW_LOG, disks_bytes=room)
        return CuttableMachine(name, home, self.roles[name], accept_timeout_s=20, wan=wan)

    def link(self, mover):
        if mover.name in self.away:
            self.asked_away.set()
            raise LinkError(mover.name, "no route to host")
        return super().link(mover)

    def twin(self, name: str) -> None:
        """A VM with the first one's content."""
        self.random = np.random.default_rng(7)
        self.add_machine(name, sizes=SIZES)
        self.write(0, DATA, machine=name)

    def verbs(self, name: str) -> WanVerbs:
        """Those of an accelerator."""
        (role,) = (role for role in self.machines[name].mover._roles if isinstance(role, WanVerbs))
        return role

    def wire_bytes(self) -> int:
        """What the source's accelerator has put on its links so far."""
        return sum(link.sent_bytes for link in self.machines["wa"].made)


WINDOW_LOG = 20
SIZES = (32 * MiB,)
DATA = 24 * MiB
