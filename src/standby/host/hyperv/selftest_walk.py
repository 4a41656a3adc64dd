"""What the steps of the self-test share: where they are, what they found, what they may touch.

A finding is one of four: as expected, different, told (a fact that nothing published says, which
belongs into the report), not looked at. A step that raises has found a difference; what it had to
look at after that, nobody looked at.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from standby.clock import Clock
from standby.errors import HostError
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.cluster_target import ClusterTarget
from standby.host.hyperv.door import Door
from standby.host.hyperv.files import DiskFile, read_files
from standby.host.hyperv.gathering import Gathering
from standby.host.hyperv.inventory import read_inventory
from standby.host.hyperv.machines import OFF, REPLICA_NOTE, RUNNING, HostMachine
from standby.host.hyperv.states import Watch
from standby.host.hyperv.target import HyperVTarget
from standby.host.hyperv.target_rows import CHANGE_STATE

PREFIX = "standby-selftest-"
"""What folders and VMs of self-tests begin with; 8 characters follow."""
BOOT_S = 15.0
"""How long the guest of a test has to write: its firmware needs some seconds before."""


class Mark(enum.StrEnum):
    """What came of one look."""

    OK = "ok"
    DIFFERS = "differs"
    TOLD = "told"
    MISSED = "not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: what it was about, what was expected ('' where nothing was) and what came."""

    mark: Mark
    what: str
    expected: str = ""
    came: str = ""


class NotLookedAt(Exception):
    """The step cannot be done here, for that reason."""


class SeenDisks(Protocol):
    """Disk files of the host's folder as a proxy sees them, by the host's own paths; written and
    read by standby's own code, with no help of the host."""

    seen_by: str
    """The proxy, and where it sees the folder."""

    def is_folder(self, path: str) -> bool:
        """Whether the folder is there."""

    def make(self, path: str, size: int, sectors: Mapping[int, bytes]) -> str:
        """A dynamic disk with these bytes at these offsets; its page-83 id, lower case."""

    def child(self, path: str, parent: str, sectors: Mapping[int, bytes]) -> None:
        """A differencing disk over `parent` with these bytes of its own."""

    def write(self, path: str, sectors: Mapping[int, bytes]) -> None:
        """Put these bytes into a disk that is there."""

    def merge(self, base: str, child: str, above: str) -> None:
        """Put `child` into `base`, which `above` then stands on (RULES 15); `child` goes."""

    def rename(self, path: str, over: str) -> None:
        """One file over another, at once."""

    def content(self, path: str) -> bytes:
        """All that a disk shows, with its chain."""


@dataclass(slots=True)
class Walk:
    """One self-test under way. `folder` is the user's, as the host has it; everything of the test
    is in `home` below it. `records` is a local folder for checkpoints' records."""

    host: str
    door: Door
    folder: str
    token: str
    clock: Clock
    records: Path
    disks: SeenDisks | None = None
    missing_disks: str = ""
    """Why `disks` is None."""
    cluster: ClusterDoor | None = None
    """To all nodes, where `host` is a cluster; `door` is one node's."""
    say: Callable[[str], None] = field(default=lambda text: None)
    findings: list[Finding] = field(default_factory=list)
    """Of the step that runs."""
    untried: set[str] = field(default_factory=set)
    """Names of assumed.toml, or what names there begin with, that this walk did not come by."""
    machine_id: str = ""
    """The VM with the guest that writes, once it is made."""
    disk: str = ""
    """Its disk."""

    @property
    def name(self) -> str:
        """What the test's folder and VMs are called."""
        return f"{PREFIX}{self.token}"

    @property
    def home(self) -> str:
        """The folder that the test made."""
        return f"{self.folder}\\{self.name}"

    @property
    def target(self) -> HyperVTarget:
        """The host as one that keeps replica VMs."""
        return HyperVTarget(self.host, self.door, self.clock)

    @property
    def keeper(self) -> HyperVTarget:
        """The host with all nodes, where it is a cluster: what a test left may be on any."""
        if self.cluster is not None:
            return ClusterTarget(self.host, self.cluster, self.clock)
        return self.target

    @property
    def watch(self) -> Watch:
        """Looks at VMs."""
        return Watch(Gathering(self.door, self.host), self.host, self.clock, poll_s=1.0)

    def key(self, number: int) -> str:
        """The identity that a VM of the test has in its note."""
        return f"selftest/{self.name}/{number}"

    # --- findings ----------------------------------------------------------------------------

    def check(self, what: str, expected: object, came: object) -> bool:
        """As expected where both are equal; a tuple is as good as a list."""
        is_equal = _plain(expected) == _plain(came)
        mark = Mark.OK if is_equal else Mark.DIFFERS
        self.findings.append(Finding(mark, what, _shown(expected), _shown(came)))
        return is_equal

    def tell(self, what: str, came: object) -> None:
        """A fact for the report."""
        self.findings.append(Finding(Mark.TOLD, what, "", _shown(came)))

    def miss(self, what: str, why: str) -> None:
        """Not looked at."""
        self.findings.append(Finding(Mark.MISSED, what, "", why))

    def needed_disks(self, what: str) -> SeenDisks | None:
        """The disk files, or None, which is then said."""
        if self.disks is None:
            self.miss(what, self.missing_disks)
        return self.disks

    # --- the host ----------------------------------------------------------------------------

    def machine(self) -> HostMachine:
        """The VM with the guest, as the host has it now."""
        if not self.machine_id:
            raise NotLookedAt("it needs the test's VM, which was not made")
        found = read_inventory(self.door).machine(self.machine_id)
        if found is None:
            raise HostError(self.host, "the test's VM is not on the host any more")
        return found

    def described(self, path: str) -> tuple[DiskFile, ...]:
        """A disk file and its parents as the host describes them; HostError where it does not."""
        try:
            return read_files(self.door, [path]).chain(path)
        except ValueError as exc:
            raise HostError(self.host, f"{path} is not described: {exc}") from exc

    def start(self, machine: str) -> None:
        """Turn the VM on."""
        self.target.change(CHANGE_STATE, machine, {"wanted": RUNNING})

    def turn_off(self, machine: str) -> None:
        """Turn the VM off, with no word to its guest."""
        self.target.change(CHANGE_STATE, machine, {"wanted": OFF})

    def enabled_state(self, machine: str) -> int:
        """How the VM is, 0 where it is gone."""
        state = self.watch.state(machine)
        return state.enabled[0] if state.enabled else 0


def is_of_a_test(note: str) -> bool:
    """Whether a VM's note says that a self-test made it."""
    return note.startswith(f"{REPLICA_NOTE}selftest/{PREFIX}")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
