"""How the API answers: JSON by the same rules as the command line's --json, errors of one shape."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from standby import errors
from standby.errors import StandbyError, error_to_wire
from standby.model.replica import COMMANDS, Action, ReplicaState, legal_actions
from standby.server.masking import SECRETS
from standby.strict_toml import nearest

STATUS: tuple[tuple[type[StandbyError], int], ...] = (
    (errors.UnknownName, 404),
    (errors.NoSuchPoint, 404),
    (errors.IllegalTransition, 409),
    (errors.IllegalRequest, 409),
    (errors.IllegalOperation, 409),
    (errors.IllegalStep, 409),
    (errors.MachineRunning, 409),
    (errors.MoverFenced, 503),
    (errors.ReplicaError, 409),
    (errors.DiskBusy, 409),
    (errors.JobError, 409),
    (errors.ConfigurationError, 422),
    (errors.StateDatabaseUnreachable, 503),
    (errors.ServerFenced, 503),
    (errors.ResourcesBusy, 503),
    (errors.NoProxy, 503),
    (errors.HostError, 502),
    (errors.LinkError, 502),
    (errors.MoverDied, 502),
    (errors.DiskFull, 507),
)
"""The status of an error: that of the first class here that it is of, else 500."""

NAMES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "RequestTooLarge",
    422: "RequestInvalid",
    429: "TooManyFailures",
    503: "Unavailable",
}
"""What the API calls refusals of its own, which are of no class of the error tree."""


class Told(Response):
    """`value` (dataclasses, structs, builtin types) as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The document's bytes."""
        return msgspec.json.encode(content, enc_hook=str)


def status_of(error: StandbyError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_body(error: StandbyError) -> dict[str, Any]:
    """An error of the tree as the API tells it: everything that it takes to make it again."""
    fields = error_to_wire(error)
    name = fields.pop("error")
    body: dict[str, Any] = {
        "error": name,
        "message": str(error),
        "hint": _hint(error),
        "fields": fields,
        "retry": error.retry.value,
        "exit_code": error.exit_code,
    }
    legal = _legal(error)
    if legal is not None:
        body["legal_actions"] = legal
    return body


def _hint(error: StandbyError) -> str:
    if isinstance(error, errors.UnknownName):
        return nearest(error.name, error.known) or f"known: {', '.join(error.known) or 'none'}"
    return str(getattr(error, "hint", ""))


_NAMES = {Action.SESSION: "start", Action.REPAIR: "repair"}
"""Where the API's verb is called otherwise than the action."""


def _legal(error: StandbyError) -> list[str] | None:
    if isinstance(error, errors.IllegalTransition):
        legal = legal_actions(ReplicaState(error.state))
        return [_NAMES.get(action, str(action)) for action in legal if action in COMMANDS]
    if isinstance(error, errors.IllegalRequest | errors.IllegalStep):
        return list(error.legal)
    return None


def refusal(
    status: int, message: str, hint: str = "", headers: dict[str, str] | None = None
) -> Told:
    """A refusal by the API itself."""
    body: dict[str, Any] = {
        "error": NAMES.get(status, "HTTPError"),
        "message": message,
        "hint": hint,
        "fields": {},
        "retry": "later" if status in (408, 429, 503) else "never",
        "exit_code": 2 if status in (400, 405, 413, 422) else 15,
    }
    return Told(body, status, headers)


def handle_errors(app: FastAPI) -> None:
    """Have every error of the application told in this form."""

    def of_the_tree(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, StandbyError)
        return Told(error_body(exc), status_of(exc))

    def invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        problems = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in exc.errors()
        ]
        return refusal(422, "; ".join(problems), "See /api/v1/openapi.json")

    def of_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        headers = dict(exc.headers) if exc.headers else None
        return refusal(exc.status_code, str(exc.detail), headers=headers)

    def unexpected(request: Request, exc: Exception) -> Response:
        text = SECRETS.masked(f"unexpected {type(exc).__name__}: {exc}")
        body = {"error": type(exc).__name__, "message": text, "hint": "See the server's log"}
        return Told({**body, "fields": {}, "retry": "never", "exit_code": 1}, 500)

    app.add_exception_handler(StandbyError, of_the_tree)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, unexpected)
