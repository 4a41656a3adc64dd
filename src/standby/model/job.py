"""What a user asks for: one job of standby.toml, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass, field

GiB = 1 << 30


@dataclass(frozen=True, slots=True)
class ReplicationJob:
    """A replication job.

    `machines` are names with shell wildcards; `exclude_disks` are 'VM:place' with wildcards.
    `seed` maps a VM name to True where disk files put into the replica's folder are to be used;
    `map` a VM name to the folder of an existing VM at the target. `rpo_s` 0 means no alarm.
    `compression` is none, fast or high; 'auto' means none between processes of one machine.
    `proxies` and `target_proxies` name those that may work for the job, () any. A higher `priority`
    goes first; among jobs of one priority, tasks begin and bandwidth is shared by `weight`.
    `wan` names the pair of WAN accelerators that disks go over, '' none.
    `networks` maps virtual switches of the source to those of a Hyper-V target; `without_vtpm`
    makes replica VMs without the virtual TPM that their source has.
    """

    name: str
    source: str
    target: str
    repository: str
    machines: tuple[str, ...]
    exclude_machines: tuple[str, ...] = ()
    exclude_disks: tuple[str, ...] = ()
    restore_points: int = 7
    suffix: str = "_replica"
    compression: str = "auto"
    verify_writes: str = "cache"
    rpo_s: int = 0
    max_tasks: int = 2
    max_machines: int = 2
    checkpoint_max_age_s: int = 12 * 3600
    checkpoint_max_growth: int = 0
    seed: dict[str, bool] = field(default_factory=dict)
    map: dict[str, str] = field(default_factory=dict)
    proxies: tuple[str, ...] = ()
    target_proxies: tuple[str, ...] = ()
    priority: int = 0
    weight: int = 1
    wan: str = ""
    networks: dict[str, str] = field(default_factory=dict)
    without_vtpm: bool = False
