"""Names inside a target folder: replicas, points, and the files that are not finished yet.

Only `*.partial.*`, `*.extents` and `*.pending.json` of an older generation may ever be discarded
(RULES 4), so every such name carries its generation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from standby.clock import Clock, new_token

RECORD = "replica.json"
LOCK = ".lock"
HOLDER = ".holder.json"
POINTS = "points"
COPY_SUFFIX = ".copy"
"""`points/<id>.copy`: the bytes of a commit record once more (record_copies)."""
BASE = "base.vhdx"
READY = "ready.vhdx"
TRACKING_SUFFIXES = (".rct", ".mrt")
"""What Hyper-V keeps beside a disk file that it tracked: of a replaced one, it means nothing."""
SEEDS = ("seed.vhdx", "seed.raw", "seed.img")
NVRAM = "nvram.fd"
"""What a folder host calls a VM's UEFI variables where vm.toml has no other name."""

_POINT_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4}")
_PARTIAL = re.compile(
    r"(?P<point>[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4})\.(?P<generation>[0-9]{1,18})"
    r"\.(?P<kind>partial\.vhdx|partial\.digests|extents|pending\.json)"
)
_READY_CANDIDATE = re.compile(r"ready\.(?P<generation>[0-9]{1,18})\.partial\.vhdx")
_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<generation>[0-9]{1,18}))?\.[0-9a-f]{8}\.new")
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)]
)
_NAME_LENGTH_MAX = 80


@dataclass(frozen=True, slots=True)
class PartialName:
    """A name of the form `<point>.<generation>.<kind>`, taken apart."""

    point: str
    generation: int
    kind: str


def partial_name(name: str) -> PartialName | None:
    """`name` taken apart when it belongs to a transfer or commit under way, else None."""
    match = _PARTIAL.fullmatch(name)
    if match is None:
        return None
    return PartialName(match["point"], int(match["generation"]), match["kind"])


def ready_candidate(generation: int) -> str:
    """The name under which generation `generation` prepares a ready layer."""
    return f"ready.{generation}.partial.vhdx"


def ready_candidate_generation(name: str) -> int | None:
    """Whose candidate for a ready layer `name` is, None when it is none."""
    match = _READY_CANDIDATE.fullmatch(name)
    return int(match["generation"]) if match else None


def temporary_name(name: str, generation: int) -> str:
    """A new name beside `name` for content on its way into it."""
    return f".{name}.{generation}.{new_token(4)}.new"


def temporary_generation(name: str) -> int | None:
    """Whose unfinished write `name` is, None when it is none.

    What `write_durably` and DigestWriter write beside their target is named without a generation:
    the target's own counts where it has one, else 0, any writer that holds the lease.
    """
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return None
    if match["generation"]:
        return int(match["generation"])
    partial = partial_name(match["name"])
    return partial.generation if partial else 0


def is_seed(name: str) -> bool:
    """Whether `name`, relative to a replica's folder, is that of a disk's seed (RULES 16)."""
    return name.rpartition("/")[2] in SEEDS


def is_point_id(text: str) -> bool:
    """Whether `text` has the form of a point id."""
    return _POINT_ID.fullmatch(text) is not None


def new_point_id(clock: Clock, after: str = "") -> str:
    """An id that sorts by time and behind `after`, the newest point's id, even where the wall
    clock went back."""
    now = clock.now().astimezone(UTC).replace(microsecond=0)
    if after:
        newest = datetime.strptime(after[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        now = max(now, newest + timedelta(seconds=1))
    return f"{now:%Y%m%dT%H%M%SZ}-{new_token(2)}"


def folder_name(machine_name: str, existing: Iterable[str], id8: str) -> str:
    """The folder for a replica called `machine_name`: `[A-Za-z0-9._-]` only, no name Windows
    reserves, different from all `existing` ignoring case, else with `id8` (8 digits of the VM's
    id) behind it (RULES 1)."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", machine_name)[:_NAME_LENGTH_MAX].strip(".")
    id8 = re.sub(r"[^A-Za-z0-9_-]", "_", id8)  # a server says it
    stem = cleaned.partition(".")[0].lower()
    taken = {name.lower() for name in existing}
    if not re.search(r"[A-Za-z0-9]", cleaned) or stem in _RESERVED:
        cleaned = f"vm-{id8}"
    if cleaned.lower() in taken:
        cleaned = f"{cleaned}-{id8}"
    return cleaned
