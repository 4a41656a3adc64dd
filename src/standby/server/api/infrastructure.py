"""Routes of what there is (hosts, movers, slots), of operations, and of the server itself."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import standby
from standby.server.api import models
from standby.server.api.answers import Told
from standby.server.api.context import Bearer, Context, Operator, Viewer, called
from standby.server.api.jobs import LOOK_S, Wait
from standby.server.api.metrics import CONTENT_TYPE, Metrics
from standby.server.api.operations import Progress
from standby.server.infrastructure import Infrastructure, infrastructure_of
from standby.server.infrastructure_check import Check, checked
from standby.server.serve import ServerStatus, server_status

router = APIRouter()
open_router = APIRouter()
"""What needs no token."""

OperationId = Annotated[models.Name, Path(examples=["op-0123456789abcdef"])]


@router.get("/server", response_model=ServerStatus)
def show_server(context: Context, caller: Viewer) -> Response:
    """Which server is active, the sessions without an end, what runs next, webhook deliveries."""
    return Told(server_status(context.server))


@router.get("/infrastructure", response_model=Infrastructure)
def show_infrastructure(context: Context, caller: Viewer) -> Response:
    """Hosts, movers with the state of their connections, proxies, repositories, pairs of WAN
    accelerators, slots in use."""
    config, crews = context.server.config, context.server.crews
    return Told(infrastructure_of(config, crews.fleet, crews.resources.usage()))


@router.post("/infrastructure/check", response_model=models.Operation, status_code=202)
def check_infrastructure(context: Context, caller: Operator) -> Response:
    """Try every part from whoever needs it, as an operation; changes nothing."""
    server = context.server

    def work(progress: Progress) -> list[Check]:
        fleet = server.crews.fleet
        return checked(
            fleet, server.config, server.clock, lambda done, total: progress("check", done, total)
        )

    return Told(context.operations.begin("check", "", called(caller), work).told(), 202)


@router.get("/operations", response_model=models.Operations)
def list_operations(
    context: Context, caller: Viewer, limit: Annotated[int, Query(ge=1, le=300)] = 50
) -> Response:
    """Operations of all servers on the state database, newest first."""
    return Told({"operations": context.operations.all(limit)})


async def wait_for_end(future: Future[Any], wait_s: float) -> None:
    """Wait until the future is done, at most so long; its error is not asked for here."""
    waiting = asyncio.wrap_future(future)
    # Or the event loop logs an error that nobody asked for, whenever it is collected.
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.wait([waiting], timeout=wait_s)


@router.get("/operations/{operation}", response_model=models.Operation)
async def show_operation(
    operation: OperationId, context: Context, caller: Viewer, wait_s: Wait = 0.0
) -> Response:
    """How far an operation is, and its result when it has ended."""
    found = context.operations.here(operation)
    if found is not None:
        if wait_s > 0:
            await wait_for_end(found.future, wait_s)
        return Told(found.told())
    clock = context.server.clock
    deadline = clock.monotonic() + wait_s
    while True:  # another server's, or one of before a restart
        told = await run_in_threadpool(context.operations.told, operation)
        left_s = deadline - clock.monotonic()
        if told["state"] != "running" or left_s <= 0:
            return Told(told)
        await asyncio.sleep(min(LOOK_S, left_s))


@router.post("/operations/{operation}/cancel", response_model=models.Operation, status_code=202)
def cancel_operation(operation: OperationId, context: Context, caller: Operator) -> Response:
    """Have an operation end as soon as it can; one that has ended stays as it is. What has begun to
    change something ends by itself."""
    return Told(context.operations.cancel(operation), 202)


@router.get("/caller", response_model=models.Caller)
def caller(token: Viewer) -> Response:
    """Whose token this is, and what it may."""
    return Told({"name": token.name, "role": token.role, "expires_at": token.expires_at})


@open_router.get(
    "/metrics",
    response_class=Response,
    responses={
        **{status: {"model": models.Error} for status in (401, 413, 429, 503)},
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
def metrics(request: Request, credentials: Bearer) -> Response:
    """Everything for Prometheus; needs a token unless [server] metrics_open is true."""
    found: Metrics = request.app.state.metrics
    return Response(found.text(), headers={"Content-Type": CONTENT_TYPE})


@open_router.get(
    "/healthz",
    response_model=models.Health,
    responses={503: {"model": models.Health, "description": "The database is away"}},
)
def health(context: Context) -> Response:
    """Whether the server is well and runs sessions; needs no token."""
    lease = context.lease()
    is_reachable = lease != "unknown"
    told = {
        "status": "ok" if is_reachable else "database unreachable",
        "version": standby.__version__,
        "server": "active" if lease == "here" else "standby",
        "lease": lease,
        "database": is_reachable,
    }
    return Told(told, 200 if is_reachable else 503)
