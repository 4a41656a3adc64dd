"""The application: routes, their errors, and the door before them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

import standby
from standby.server.api import infrastructure, jobs, models, replicas
from standby.server.api.answers import handle_errors
from standby.server.api.context import ApiContext
from standby.server.api.door import Door
from standby.server.api.metrics import Metrics
from standby.server.logs import Log
from standby.server.server import BackupServer

PREFIX = "/api/v1"

DESCRIPTION = """\
The backup server's verbs, the same as the command line's. A token (`standby token add`) goes into
`Authorization: Bearer TOKEN`; roles are viewer (look), operator (run and fail over) and admin.
What takes long is an operation: GET /api/v1/operations/{id} has its progress and its result.
Times are ISO 8601 in UTC, sizes are bytes.
"""

_ERRORS = {
    400: "The body is no JSON text",
    401: "No token, or not a good one",
    403: "The token's role does not do",
    404: "There is no such thing",
    408: "The request took too long to arrive",
    409: "The state forbids it: `legal_actions` are possible",
    413: "The request is too large",
    422: "The request or the configuration says something that cannot be",
    429: "Too many wrong tokens from this address",
    500: "Unexpected, or damage that was found",
    502: "A host or mover failed",
    503: "The state database, or what the request needs, is busy or away",
    507: "The target is full",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": models.Error, "description": text} for status, text in _ERRORS.items()
}


def make_app(context: ApiContext) -> FastAPI:
    """The application without its door: for its OpenAPI document."""
    app = FastAPI(
        title="standby",
        version=standby.__version__,
        description=DESCRIPTION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.metrics = Metrics(context)
    handle_errors(app)
    for tag, router in (
        ("jobs and sessions", jobs.router),
        ("replicas", replicas.router),
        ("infrastructure", infrastructure.router),
    ):
        app.include_router(router, prefix=PREFIX, tags=[tag], responses=RESPONSES)
    app.include_router(infrastructure.open_router)
    return app


def make_api(server: BackupServer, log: Log | None = None) -> tuple[Door, ApiContext]:
    """The application as the network sees it, over a backup server; close the context."""
    context = ApiContext(server, log)
    return Door(make_app(context), context), context
