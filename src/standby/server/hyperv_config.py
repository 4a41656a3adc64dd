"""What standby.toml says of a Hyper-V host: how it is reached, and how its checkpoints are made.

    [hosts.prod]
    kind = "hyperv"
    address = "hv01.example"
    credentials = { username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }
    checkpoints = { consistency = "application", fall_back = true, copy = true }
    audit_every = "30d"      # `checkpoints` also has min_free = "10 GiB"
    max_tasks = 4

A cluster has kind = "hyperv-cluster", its own name as address, and, where its nodes are addressed
otherwise than by their names in its domain, nodes = ["hv1.lab.example", …].

A proxy must see its disks: `paths` of a [proxies.NAME], which may be this machine's own movers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from standby.host.hyperv.credentials import Access, parse_access, parse_cluster
from standby.strict_toml import Table
from standby.units import GiB

CONSISTENCIES = ("application", "crash")
AUDIT_EVERY_S = 30 * 24 * 60 * 60
DAY_S = 24 * 60 * 60
MIN_FREE = 10 * GiB


@dataclass(frozen=True, slots=True)
class HyperVConfig:
    """A Hyper-V host: `accesses` has one for a standalone host; for a cluster that of its name, and
    those of nodes that are addressed otherwise than by their name in its domain. Checkpoints are
    application-consistent where `is_application`, else, or with `fall_back` where a guest cannot
    hold still, crash-consistent; `is_copy` leaves the guests' logs whole. Every `audit_every` a
    tracked disk is read whole; a checkpoint is released where fewer than `min_free` bytes are left
    beside the files its VM writes to. `replicas` is the folder of replicas as the host sees it, ''
    for one that is a source only."""

    accesses: tuple[Access, ...]
    is_application: bool = True
    fall_back: bool = True
    is_copy: bool = True
    audit_every: timedelta = timedelta(seconds=AUDIT_EVERY_S)
    is_cluster: bool = False
    min_free: int = MIN_FREE
    replicas: str = ""

    @property
    def shown(self) -> str:
        """The addresses, for people."""
        return ", ".join(access.address for access in self.accesses)


def parse_hyperv(name: str, table: Table, *, is_cluster: bool = False) -> HyperVConfig:
    """The host `name` by its table; the caller says which keys are left over."""
    accesses = parse_cluster(name, table) if is_cluster else (parse_access(name, table),)
    wanted = table.table("checkpoints")
    consistency = wanted.text("consistency", "application", choices=CONSISTENCIES)
    is_application = consistency == "application"
    if wanted.has("fall_back") and not is_application:
        raise wanted.error(
            "fall_back",
            'has no meaning with consistency = "crash"',
            'leave it out, or write consistency = "application"',
        )
    found = HyperVConfig(
        accesses,
        is_application,
        wanted.boolean("fall_back", True),
        wanted.boolean("copy", True),
        timedelta(seconds=table.duration_s("audit_every", AUDIT_EVERY_S, minimum=DAY_S)),
        is_cluster,
        wanted.size("min_free", MIN_FREE),
        table.text("replicas", ""),
    )
    wanted.done()
    return found


__all__ = ["HyperVConfig", "parse_hyperv"]
