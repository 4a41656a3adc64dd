"""What a session did: per disk, per machine, per session. Bytes unless the name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class WanReport:
    """What a pair of WAN accelerators did for one disk: `sent` and `received` on the wire between
    them as the source's one counts, TLS apart; `wire_sent` and `wire_received` the same with TLS,
    what TCP sent again, and all headers, as an interface counts, 0 where the system does not tell;
    `direct` what the disk would have sent without them, estimated from samples; `pieces` of 4 KiB
    by how they travelled, `bytes` by what they were for, messages' frames apart; `resent` what had
    to come again; `asked` pieces were looked for in the target's cache, `found` there, `cached` are
    new in it; `cpu_s` by side; `mode` as it was used. `left` says why the disk went on directly, ''
    where it did not; the figures are then those of the attempts before, as far as their movers
    told."""

    name: str = ""
    mode: str = ""
    sent: int = 0
    received: int = 0
    wire_sent: int = 0
    wire_received: int = 0
    direct: int = 0
    pieces: dict[str, int] = field(default_factory=dict)
    resent: int = 0
    asked: int = 0
    found: int = 0
    cached: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    left: str = ""
    bytes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class DiskReport:
    """One disk task. `read` source bytes read; `skipped` allocated bytes not read (tracker, mark);
    `changed` bytes that differ from the last point, whichever session brought them; `sent` on the
    link, after packing; `written` into the point; `zeroed` made zero. `mode` is full, incremental,
    resume, seed or excluded; `reason` says why. `busy_s` maps station (source, proxy, network,
    target, verify) to seconds it was the one working; it is empty until the task has ended well,
    and the figures are what its mover told on the way then, 0 where it told nothing. `retries`
    counts how often it went on after a proxy or link failed, and `proxy` is the one that finished
    it, '' on one machine. `wan` is there where that went over WAN accelerators, `sent` is what
    these put on the wire then; or where it was to, and `wan.left` says why it did not."""

    disk_id: str
    place: str
    mode: str = ""
    reason: str = ""
    virtual_size: int = 0
    read: int = 0
    skipped: int = 0
    changed: int = 0
    sent: int = 0
    written: int = 0
    zeroed: int = 0
    resent_blocks: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    proxy: str = ""
    wan: WanReport | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the figures are those of a task that has ended well."""
        return bool(self.busy_s)


@dataclass(slots=True)
class MachineReport:
    """One VM; without a name, what kept the session from all of them. `outcome` is done, skipped,
    failed or interrupted; `steps_s` seconds by step."""

    machine: str
    machine_id: str
    replica: str = ""
    outcome: str = ""
    point: str = ""
    error: str = ""
    warnings: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    disks: list[DiskReport] = field(default_factory=list)
    steps_s: dict[str, float] = field(default_factory=dict)

    @property
    def is_cut(self) -> bool:
        """Whether it did not get to its end: figures that nobody told are not known."""
        return self.outcome not in ("done", "skipped")


@dataclass(slots=True)
class SessionReport:
    """One session of a job. `outcome` is done, warnings, failed or interrupted (stopped, or
    killed)."""

    id: str
    job: str
    started_at: str
    ended_at: str = ""
    outcome: str = ""
    machines: list[MachineReport] = field(default_factory=list)

    @property
    def bottleneck(self) -> str:
        """The station that was busiest over all disks, '' when nothing moved."""
        totals: dict[str, float] = {}
        for machine in self.machines:
            for disk in machine.disks:
                for station, seconds in disk.busy_s.items():
                    totals[station] = totals.get(station, 0.0) + seconds
        return max(totals, key=lambda name: totals[name]) if any(totals.values()) else ""
