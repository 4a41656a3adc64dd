"""What `standby replica …` tells people, as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from standby.cli.output import size

if TYPE_CHECKING:
    from standby.road.repairing import RepairReport
    from standby.road.surveying import ReplicaStatus
    from standby.road.verb_plans import VerbPlan
    from standby.road.verifying import DiskVerdict, PointVerdict


POWER = {
    "running": "its VM runs",
    "paused": "its VM is paused",
    "off": "its VM is off",
    "unknown": "does its VM run?",
}
"""What people are told of the power states."""


_OTHER_SIZE = re.compile(r"(\d+) bytes where (\d+) were left$")
"""How a verdict ends for a file that has only another size than was recorded."""


def age(seconds: float | None) -> str:
    """How long ago; None: nothing ever was."""
    if seconds is None:
        return "never"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def going_on(item: ReplicaStatus) -> str:
    """What goes on with a replica: whether its VM runs is asked of one that failed over. One
    without a point is what a first session left that failed, or was refused for want of room."""
    if item.is_processing:
        return "a session runs"
    if item.state.value == "new" and not item.points:
        return "no restore point yet: no session has ended well; the next one goes on here"
    is_known_on = item.power.value in ("running", "paused")
    return POWER[item.power.value] if is_known_on or item.failover_point else ""


def names_of(found: Sequence[ReplicaStatus]) -> list[str]:
    """What each of the replicas is to be called so that no other one is meant."""
    count = Counter(item.name for item in found)
    return [f"{item.target}:{item.name}" if count[item.name] > 1 else item.name for item in found]


def none_shown(unreadable: Mapping[str, str]) -> str:
    """What a list without replicas says: where not everything could be looked at, nobody knows."""
    hidden = []
    for place, problem in unreadable.items():
        host, is_away, _ = place.partition(": ")
        if not problem.startswith("no such folder"):
            hidden.append(f"{host} cannot be reached" if is_away else f"{place} cannot be read")
    return f"not known: {', '.join(hidden)}" if hidden else "no replicas"


def way_out(
    found: ReplicaStatus, verdicts: list[PointVerdict], asked: str = "", *, has_tried: bool
) -> str:
    """What helps now, for the replica that was `asked` for so. A repair writes pieces anew; files
    that cannot be read, or are not the ones that were committed, are beyond it."""
    name = asked if asked.endswith(f":{found.name}") else found.name
    can_be_tried = not has_tried and any(
        item.has_copy
        or any(
            _only_grew(disk) if disk.problem else bool(disk.damaged) or not disk.digests_ok
            for disk in item.disks
        )
        for item in verdicts
    )
    if can_be_tried and found.state == "failover":
        return f"`standby replica verify {name} --repair` can be tried after an undo"
    if can_be_tried:
        return f"try `standby replica verify {name} --repair`"
    ways = []
    sound = [item.point_id for item in verdicts if item.is_intact]
    if sound:
        ways.append(f"`standby replica failover {name} --point {sound[-1]}` (an undamaged point)")
    ways.append(
        "for replication to go on move its folder out of the target's folder and "
        f"`standby job start {found.identity.job} --accept-loss` (a new full)"
    )
    after = "after an undo or a permanent failover " if found.state == "failover" else ""
    return f"a repair cannot mend it: {after}{', or '.join(ways)}"


def _only_grew(disk: DiskVerdict) -> bool:
    """Whether nothing is wrong with the disk's files but that one is longer: what a repair leaves
    that was killed, and the next one sees to."""
    sizes = _OTHER_SIZE.search(disk.problem)
    return sizes is not None and int(sizes[1]) > int(sizes[2])


def show_verdict(verdict: PointVerdict) -> None:
    """A point: ok or what is damaged, the first 20 places of a disk."""
    only_digests = "its digests are damaged, its data is intact"
    state = "ok" if verdict.is_ok else only_digests if verdict.is_intact else "DAMAGED"
    click.echo(f"{verdict.point_id}: {state}")
    if verdict.record_problem:
        click.echo(f"  {verdict.record_problem}")
    for disk in verdict.disks:
        if disk.digests_problem:
            click.echo(f"  {disk.disk_id}: {disk.digests_problem}")
        if disk.problem:
            click.echo(f"  {disk.disk_id}: {disk.problem}")
        for extent in disk.damaged[:20]:
            click.echo(f"  {disk.disk_id}: {size(extent.length)} at {extent.offset:#x}")
        if len(disk.damaged) > 20:
            click.echo(f"  {disk.disk_id}: and {len(disk.damaged) - 20} more ranges")


def show_repair(done: RepairReport) -> None:
    """What of a point was repaired, and what could not be."""
    healed = f"repaired {size(done.healed_bytes)}" if done.healed_bytes else "not repaired"
    for disk_id, mended in done.digests.items():
        click.echo(f"digests of {disk_id} computed again from the disk: {', '.join(mended)}")
    if done.is_record_restored:
        click.echo(
            f"{done.point_id}: its commit record was written again from its copy; every disk of it "
            "was read and is what that says"
        )
    if done.healed_bytes or not done.is_complete:
        click.echo(f"{done.point_id}: {healed}")
    if done.record_problem:
        click.echo(f"  its commit record: {done.record_problem}")
    for disk_id, extents in done.missing.items():
        total = sum(extent.length for extent in extents)
        click.echo(f"  {disk_id}: {size(total)} are nowhere to be had")
    for disk_id, problem in done.problems.items():
        click.echo(f"  {disk_id}: {problem}")


def show_leftovers(plan: VerbPlan) -> None:
    """What stays behind, where something does."""
    if plan.leftovers:
        click.echo("what remains:")
    for text in plan.leftovers:
        click.echo(f"  {text}")
