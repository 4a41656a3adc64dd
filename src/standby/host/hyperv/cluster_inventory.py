"""Inventories of a cluster's nodes put together: no VM twice, whatever moved meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from standby.host.hyperv.files import folded
from standby.host.hyperv.machines import LIVE, owner_of
from standby.host.hyperv.rows import HostRows
from standby.host.seen_paths import parsed_place


@dataclass(frozen=True, slots=True)
class Merged:
    """`rows`: what each node said, by its name; `whole`: all of it, each VM once; `homes`: the node
    of each VM, by id; `torn`: VMs that came or went while their nodes were read, and are in none of
    it; `problems`: VMs that were left out, for people."""

    rows: Mapping[str, HostRows]
    whole: HostRows
    homes: Mapping[str, str]
    torn: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def merged(rows: Mapping[str, HostRows]) -> Merged:
    """The nodes' rows in one, in the order they were read: a VM that was seen on two nodes moved
    from the one to the other, and is where it was seen last."""
    homes: dict[str, str] = {}
    seen: set[str] = set()
    for name, said in rows.items():
        homes |= dict.fromkeys(_machines(said), name)
        seen |= {owner_of(f"Microsoft:{row.name}") for row in said.computers}
        seen |= {owner_of(f"Microsoft:{found}") for found in said.still}
    torn = frozenset(seen - set(homes) - {""})
    problems: list[str] = []
    claimed: dict[str, str] = {}
    parts: list[HostRows] = []
    for name, said in rows.items():
        mine = {key for key, home in homes.items() if home == name}
        part = _only(said, mine)
        for key in sorted(_clashing(part, name, claimed)):
            title = next(row.element_name for row in part.computers if row.name.lower() == key)
            problems.append(
                f"VM {title} on node {name} is left out: a disk file of it, on the node's own "
                "storage, has the same path as one of a VM on another node"
            )
            mine.discard(key)
            del homes[key]
        part = _only(part, mine)
        claimed |= {
            folded(row.file): name for row in part.storage if row.file and is_local(row.file)
        }
        parts.append(part)
    joined = {
        column: [row for part in parts for row in getattr(part, column)]
        for column in HostRows.__struct_fields__
    }
    return Merged(dict(rows), HostRows(**joined), homes, torn, tuple(problems))


def _machines(rows: HostRows) -> list[str]:
    """The VMs that were on the node all the while."""
    before = {row.name.lower() for row in rows.computers}
    after = {name.lower() for name in rows.still}
    live = (
        row.virtual_system_identifier.lower()
        for row in rows.settings
        if row.virtual_system_type == LIVE
    )
    return [key for key in live if key in before and key in after]


def is_local(path: str) -> bool:
    """Whether two nodes may mean different files by the path: on a drive of theirs."""
    place = parsed_place(path)
    if place is None or place.anchor.startswith("\\\\"):
        return False
    return place.folded[:1] != ("clusterstorage",)


def _clashing(rows: HostRows, node: str, claimed: Mapping[str, str]) -> set[str]:
    """The VMs of the node that have a file whose path another node's file has."""
    owners = _owners(rows)
    return {
        owners.get(owner_of(row.instance_id), owner_of(row.instance_id))
        for row in rows.storage
        if row.file and is_local(row.file) and claimed.get(folded(row.file), node) != node
    }


def _owners(rows: HostRows) -> dict[str, str]:
    """{VM or snapshot id: VM id}"""
    return {
        owner_of(row.instance_id): row.virtual_system_identifier.lower() for row in rows.settings
    }


def _only(rows: HostRows, machines: set[str]) -> HostRows:
    """The rows of these VMs, their snapshots, and of the host itself."""
    kept = machines | {key for key, machine in _owners(rows).items() if machine in machines}

    def is_kept(owner: str) -> bool:
        return not owner or owner in kept

    columns = {}
    for column in HostRows.__struct_fields__:
        found = getattr(rows, column)
        if column == "computers":
            columns[column] = [r for r in found if is_kept(owner_of(f"Microsoft:{r.name}"))]
        elif column in ("switches", "still"):
            columns[column] = found
        else:
            columns[column] = [row for row in found if is_kept(owner_of(row.instance_id))]
    return HostRows(**columns)
