"""What a session would do, decided purely from facts: no I/O, no clock.

`plan_disk` looks at what is at the target, in the repository and known by the tracker, picks the
cheapest trustworthy way to find the change (DESIGN, "How a change is found"), and says why. The
same decision drives the session and is shown by `job plan`; each forecast names its basis.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from standby.model.extent import Extent, blocks_touched
from standby.units import KiB, format_bytes

PIECE = 4 * KiB
"""What a change is at least."""


class Mode(enum.StrEnum):
    """What a disk task does."""

    FULL = "full"
    INCREMENTAL = "incremental"
    RESUME = "resume"
    SEED = "seed"
    NEW_CHAIN = "new chain"
    EXCLUDED = "excluded"


class Basis(enum.StrEnum):
    """How sure a forecast is."""

    EXACT = "exact"
    ESTIMATED = "estimated"
    UPPER_BOUND = "upper bound"


@dataclass(frozen=True, slots=True)
class Figure:
    """A forecast in bytes; `low` and `high` are the range of an estimate. What is to be sent is
    counted as content, before packing and without the tables that go with it."""

    value: int
    basis: Basis
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class TargetDiskFacts:
    """The disk in the replica's newest point; `point` names an older one where the newest has not
    the disk."""

    root: str
    virtual_size: int
    logical_sector_size: int
    tracker_id: str = ""
    point: str = ""


@dataclass(frozen=True, slots=True)
class PartialFacts:
    """An unfinished transfer at the target. `mark`: below it everything was scanned and sent."""

    point_id: str
    checkpoint_id: str
    logged_bytes: int = 0
    mark: int = 0


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """Everything `plan_disk` needs. `allocated` is what the source stores, 0 when not measured,
    `stored_blocks` how many blocks of `block_size` have a part of that; `tracked` are the tracker's
    ranges, None where it cannot say (`tracker_reason`), `samples` of what it calls unchanged, read
    to see whether it lies; `has_seed`: a disk file was put there for
    the first point; `mapped_from`: the folder of the VM at the target whose disk becomes the first
    point; `lost`: why an incremental, which was to be expected, cannot be; `replaces`: the id of
    the disk that was at this place in the newest point and is gone; `history` the changed
    bytes of the last incremental sessions, newest last."""

    place: str
    disk_id: str
    virtual_size: int
    logical_sector_size: int
    allocated: int
    checkpoint_id: str
    block_size: int
    target: TargetDiskFacts | None = None
    partial: PartialFacts | None = None
    repository_root: str = ""
    tracked: tuple[Extent, ...] | None = None
    tracker_reason: str = ""
    is_excluded: bool = False
    has_seed: bool = False
    mapped_from: str = ""
    lost: str = ""
    replaces: str = ""
    history: tuple[int, ...] = ()
    stored_blocks: int = 0
    samples: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What happens to one disk. `baseline`, `candidates`, `resume_mark` are the source proxy's
    (road.source_proxy); `builds_on_repository`: staged pages lie above the repository's newest
    state; `has_parent`: the new file is a child of the newest point's; `copies_chain`: it is a new
    base made from what the newest point holds; `copies_of`: from what that holds of the disk of
    this id, which it replaces; `uses_seed`: it begins with a file put there;
    `is_unforeseen`: full where an incremental was to be expected; `mapped_from`: the folder of the
    VM at the target that it is compared with. `allocated` bytes are stored at the source. `samples`
    are read before, to see whether the tracker that says the candidates can be believed."""

    place: str
    disk_id: str
    virtual_size: int
    mode: Mode
    reason: str
    baseline: str = "none"
    builds_on_repository: bool = False
    has_parent: bool = False
    candidates: tuple[Extent, ...] | None = None
    resume_mark: int = 0
    read: Figure = Figure(0, Basis.EXACT)
    send: Figure = Figure(0, Basis.EXACT)
    space: Figure = Figure(0, Basis.EXACT)
    copies_chain: bool = False
    copies_of: str = ""
    uses_seed: bool = False
    is_unforeseen: bool = False
    mapped_from: str = ""
    allocated: int = 0
    samples: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """What happens to one VM: `action` is replicate, skip or conflict."""

    machine: str
    machine_id: str
    replica: str
    action: str
    reason: str = ""
    disks: tuple[DiskPlan, ...] = ()
    warnings: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobPlan:
    """`job plan`: every VM the job's names match. `is_exact`: made with --scan."""

    job: str
    machines: tuple[MachinePlan, ...]
    free_bytes: int = 0
    is_exact: bool = False
    warnings: tuple[str, ...] = field(default_factory=tuple)


def plan_disk(facts: DiskFacts) -> DiskPlan:
    """The cheapest trustworthy way to bring this disk to its checkpoint's state."""
    if facts.is_excluded:
        return DiskPlan(
            facts.place, facts.disk_id, facts.virtual_size, Mode.EXCLUDED, "excluded by the job"
        )
    target = facts.target
    is_same_shape = target is not None and (
        (target.virtual_size, target.logical_sector_size)
        == (facts.virtual_size, facts.logical_sector_size)
    )
    in_repository = target is not None and facts.repository_root == target.root and is_same_shape
    candidates: tuple[Extent, ...] | None = None
    mark = 0
    if facts.partial is not None:
        mode, baseline = Mode.RESUME, "target"
        reason = "an interrupted transfer is continued"
        if facts.partial.checkpoint_id == facts.checkpoint_id:
            mark = facts.partial.mark
        else:
            reason += " from a newer checkpoint"
    elif target is None:
        mode, baseline, reason = _first(facts)
    elif not is_same_shape:
        mode, baseline = Mode.NEW_CHAIN, "target"
        reason = _shape_change(facts, target)
    elif not in_repository:
        mode, baseline = Mode.INCREMENTAL, "target"
        known = "has other" if facts.repository_root else "has no"
        reason = f"the repository {known} digests of the newest point; compared with the target's"
    elif facts.tracked is not None:
        mode, baseline, candidates = Mode.INCREMENTAL, "repository", facts.tracked
        reason = "the host's change tracker says what may have changed"
    else:
        mode, baseline = Mode.INCREMENTAL, "repository"
        why = facts.tracker_reason or "no change tracker"
        reason = f"compared with the repository's digests ({why})"
    if target is not None and target.point:
        reason += f"; the newest that has the disk is {target.point}"
    forecast = _forecasts(facts, mode, candidates)
    return DiskPlan(
        facts.place,
        facts.disk_id,
        facts.virtual_size,
        mode,
        reason,
        baseline,
        in_repository,
        is_same_shape,
        candidates,
        mark,
        *forecast,
        copies_chain=target is not None and not is_same_shape,
        uses_seed=target is None and facts.has_seed,
        copies_of=facts.replaces if mode is Mode.NEW_CHAIN and target is None else "",
        is_unforeseen=(mode is Mode.FULL and bool(facts.lost))
        or (mode is Mode.NEW_CHAIN and target is None),
        mapped_from=facts.mapped_from if target is None else "",
        allocated=facts.allocated,
        samples=() if candidates is None else facts.samples,
    )


def first_full_short(needed: int, free: int, *, is_counted: bool = False) -> str:
    """What there is to say of a first full of a VM that may not fit, or, `is_counted` by reading
    its disks, does not."""
    if is_counted:
        return (
            f"its first full takes {format_bytes(needed)} and {format_bytes(free)} are free: the "
            "session would refuse it"
        )
    return (
        f"its first full takes up to {format_bytes(needed)} and {format_bytes(free)} are free: the "
        "session would read its disks first, and refuse it where it does not fit without their "
        "zeros"
    )


def mapping_moves(folder: str, places: Sequence[str]) -> str:
    """What there is to say of a VM at the target that a job maps to, before its first session."""
    return (
        f"the first session moves the disks at {', '.join(places)} of the VM in {folder}, at the "
        "target, into the replica as its first restore point: that VM does not start any more"
    )


def _first(facts: DiskFacts) -> tuple[Mode, str, str]:
    """Mode, baseline and reason for a disk that the newest point does not have."""
    if facts.has_seed:
        return Mode.SEED, "target", "a seed disk is compared and updated"
    if facts.mapped_from:
        return (
            Mode.INCREMENTAL,
            "target",
            f"compared with the disk of the VM in {facts.mapped_from}, which is moved into the "
            "replica as its first restore point",
        )
    if facts.replaces:
        return (
            Mode.NEW_CHAIN,
            "target",
            "another disk is at this place now; a new chain starts from what the target holds of "
            "the one before, which older points keep",
        )
    return Mode.FULL, "none", facts.lost or "first restore point"


def _shape_change(facts: DiskFacts, target: TargetDiskFacts) -> str:
    if target.logical_sector_size != facts.logical_sector_size:
        return (
            f"sector size changed from {target.logical_sector_size} to "
            f"{facts.logical_sector_size}; a new chain starts"
        )
    verb = "grew" if facts.virtual_size > target.virtual_size else "shrank"
    return f"the disk {verb} from {target.virtual_size} to {facts.virtual_size} bytes; a new chain"


def _forecasts(
    facts: DiskFacts, mode: Mode, candidates: Sequence[Extent] | None
) -> tuple[Figure, Figure, Figure]:
    """Bytes to read, to send, and to store at the target."""
    if candidates is not None:
        ranges = (*candidates, *facts.samples)
        read = Figure(sum(extent.length for extent in ranges), Basis.EXACT)
    else:
        is_all = facts.partial is None or facts.partial.checkpoint_id != facts.checkpoint_id
        read = Figure(facts.allocated, Basis.EXACT if is_all else Basis.UPPER_BOUND)
    changed = read.value if candidates is None else sum(item.length for item in candidates)
    if mode is Mode.INCREMENTAL and facts.history:
        middle = int(statistics.median(facts.history))
        send = Figure(min(middle, changed), Basis.ESTIMATED, min(facts.history), max(facts.history))
    else:
        send = Figure(changed, Basis.UPPER_BOUND)
        if facts.partial is not None and facts.partial.checkpoint_id == facts.checkpoint_id:
            left = max(0, read.value - facts.partial.logged_bytes)
            send = Figure(left, Basis.ESTIMATED, left, read.value)
    return read, send, _space(facts, send, mode, candidates)


def _space(
    facts: DiskFacts, send: Figure, mode: Mode, candidates: Sequence[Extent] | None
) -> Figure:
    """Blocks count whole (RULES 13), those with a part of what may change: never more than the
    source stores in. An estimate lies between changes side by side and each in its own block."""
    size, all_blocks = facts.block_size, -(-facts.virtual_size // facts.block_size)
    if candidates is not None:
        blocks = blocks_touched(candidates, size)
    else:
        blocks = min(facts.stored_blocks, all_blocks)
    if mode is Mode.INCREMENTAL and send.basis is Basis.ESTIMATED:
        least, middle = (min(-(-changed // size), blocks) for changed in (send.low, send.value))
        most = min(-(-send.high // PIECE), blocks)
        return Figure(middle * size, Basis.ESTIMATED, least * size, most * size)
    if facts.target is not None and mode is Mode.NEW_CHAIN:
        blocks += -(-facts.target.virtual_size // size)
    return Figure(min(blocks, all_blocks) * size, Basis.UPPER_BOUND)
