"""Routes of replicas: look, plan, act."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Path
from starlette.responses import Response

from standby.model.replica import ReplicaRecord
from standby.road.failing_over import FailoverResult
from standby.road.surveying import ReplicaStatus
from standby.road.verb_plans import VerbPlan
from standby.road.verifying import PointVerdict
from standby.server.api import models
from standby.server.api.answers import Told
from standby.server.api.context import Admin, Context, Operator, Viewer, called
from standby.server.api.operations import Progress

router = APIRouter()

ReplicaName = Annotated[models.Name, Path(examples=["web01_replica"])]

OPTIONS: dict[models.Verb, tuple[str, ...]] = {
    models.Verb.FAILOVER: ("point", "adopt", "source_may_run", "power_on"),
    models.Verb.UNDO_FAILOVER: ("drop_writes",),
    models.Verb.PERMANENT_FAILOVER: (),
}


@router.get("/replicas", response_model=models.Replicas)
def list_replicas(context: Context, caller: Viewer) -> Response:
    """Every replica as its target has it; targets that are away are among `unreadable`."""
    replicas = context.server.replicas
    return Told({"replicas": replicas.all(), "unreadable": replicas.unreadable()})


@router.get("/replicas/{replica}", response_model=ReplicaStatus)
def show_replica(replica: ReplicaName, context: Context, caller: Viewer) -> Response:
    """Points, state and findings of one replica."""
    return Told(context.server.replicas.show(replica))


@router.post("/replicas/{replica}/plan", response_model=VerbPlan)
def plan_verb(
    replica: ReplicaName,
    context: Context,
    caller: Viewer,
    asked: Annotated[models.PlanVerb, Body()],
) -> Response:
    """What a verb would do: its dry run. Raises what the verb would."""
    options = {name: getattr(asked, name) for name in OPTIONS[asked.action]}
    return Told(context.server.replicas.plan(asked.action.value, replica, **options))


@router.post("/replicas/{replica}/failover", response_model=FailoverResult)
def failover(
    replica: ReplicaName,
    context: Context,
    caller: Operator,
    how: Annotated[models.Failover, Body(default_factory=models.Failover)],
) -> Response:
    """Work from the replica from now on."""
    done = context.server.replicas.failover(
        replica,
        point=how.point,
        adopt=how.adopt,
        source_may_run=how.source_may_run,
        power_on=how.power_on,
    )
    return Told(done)


@router.post("/replicas/{replica}/undo-failover", response_model=ReplicaRecord)
def undo_failover(
    replica: ReplicaName,
    context: Context,
    caller: Operator,
    how: Annotated[models.UndoFailover, Body(default_factory=models.UndoFailover)],
) -> Response:
    """Drop what the replica wrote since its failover; replication goes on."""
    return Told(context.server.replicas.undo_failover(replica, drop_writes=how.drop_writes))


@router.post("/replicas/{replica}/permanent-failover", response_model=ReplicaRecord)
def permanent_failover(replica: ReplicaName, context: Context, caller: Admin) -> Response:
    """Make the failed-over replica a VM of its own; it is not replicated to any more."""
    return Told(context.server.replicas.permanent_failover(replica))


@router.post("/replicas/{replica}/power", response_model=models.Powered)
def power(
    replica: ReplicaName, context: Context, caller: Operator, how: Annotated[models.Power, Body()]
) -> Response:
    """Start or stop the VM of a failed-over replica."""
    state = context.server.replicas.power(replica, on=how.on, force=how.force)
    return Told({"replica": replica, "power": state})


@router.post("/replicas/{replica}/verify", response_model=models.Operation, status_code=202)
def verify(
    replica: ReplicaName,
    context: Context,
    caller: Operator,
    how: Annotated[models.Verify, Body(default_factory=models.Verify)],
) -> Response:
    """Read every byte and compare it with its digests, as an operation."""
    replicas = context.server.replicas
    replicas.show(replica)  # what is not there is said at once

    def work(progress: Progress) -> dict[str, Any]:
        found = replicas.verify(
            replica, point=how.point, progress=lambda done, total: progress("verify", done, total)
        )
        return {"points": found, "is_ok": all(item.is_ok for item in found)}

    return Told(context.operations.begin("verify", replica, called(caller), work).told(), 202)


@router.post("/replicas/{replica}/repair", response_model=models.Operation, status_code=202)
def repair(
    replica: ReplicaName,
    context: Context,
    caller: Admin,
    how: Annotated[models.Repair, Body(default_factory=models.Repair)],
) -> Response:
    """Write damaged pieces anew where they can be had, as an operation."""
    replicas = context.server.replicas
    replicas.show(replica)
    found: list[PointVerdict] | None = None
    if how.verify is not None:
        points = context.operations.result(how.verify, "verify", replica)["points"]
        found = msgspec.convert(points, list[PointVerdict])

    def work(progress: Progress) -> dict[str, Any]:
        verdicts = found
        if verdicts is None:
            verdicts = replicas.verify(
                replica,
                point=how.point,
                progress=lambda done, total: progress("verify", done, total),
            )
        progress.go_through()
        is_ok = all(item.is_ok for item in verdicts)
        return {"repairs": [] if is_ok else replicas.repair(replica, verdicts)}

    return Told(context.operations.begin("repair", replica, called(caller), work).told(), 202)
