"""What every request passes before the application sees it: token, size, time, audit.

In this order: the path that needs no token (/healthz), the token (bounded failures per address),
the body (bounded in bytes and seconds), the application. Each changing call is one line in the log:
who, from where, what, with which result.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from standby.clock import Clock
from standby.errors import StandbyError
from standby.server.api.answers import Told, error_body, refusal, status_of
from standby.server.api.context import ApiContext
from standby.server.api.tokens import found_token, token_hash
from standby.server.store.tables import ApiToken

OPEN_PATHS = frozenset({"/healthz"})
METRICS_PATH = "/metrics"
BODY_MAX = 256 * 1024
BODY_TIMEOUT_S = 15.0
TOKEN_LENGTH_MAX = 256
FAILURES_MAX = 20
FAILURES_S = 60.0
"""An address with so many wrong tokens within so many seconds is not listened to until they have
passed, but with a token that was right before."""
ADDRESSES_MAX = 4096
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TEXT_MAX = 300


class Failures:
    """Wrong tokens by address. Thread-safe; bounded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._good: OrderedDict[str, None] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """For how long the address is not listened to, 0 where it is."""
        now = self._clock.monotonic()
        with self._lock:
            times = self._times.get(address)
            if times is None:
                return 0.0
            while times and now - times[0] >= FAILURES_S:
                times.popleft()
            return FAILURES_S - (now - times[0]) if len(times) >= FAILURES_MAX else 0.0

    def failed(self, address: str) -> None:
        """A wrong token came from there."""
        with self._lock:
            times = self._times.setdefault(address, deque(maxlen=FAILURES_MAX))
            times.append(self._clock.monotonic())
            self._times.move_to_end(address)
            while len(self._times) > ADDRESSES_MAX:
                self._times.popitem(last=False)

    def is_good(self, hash: str) -> bool:
        """Whether that token was right before."""
        with self._lock:
            return hash in self._good

    def succeeded(self, hash: str) -> None:
        """That token is right."""
        with self._lock:
            self._good[hash] = None
            self._good.move_to_end(hash)
            while len(self._good) > ADDRESSES_MAX:
                self._good.popitem(last=False)


class Door:
    """The application as the network sees it."""

    def __init__(self, app: ASGIApp, context: ApiContext) -> None:
        self._app = app
        self._context = context
        self._failures = Failures(context.server.clock)
        self._metrics_open = context.server.config.server.metrics_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's beginning and end."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: there is none
            await send({"type": "websocket.close", "code": 1000})
            return
        answer = _Answer(send)
        try:
            refused = await self._let_in(scope, receive)
            if isinstance(refused, Told):
                await refused(scope, receive, answer)
            else:
                await self._app(scope, _replayed(refused, receive), answer)
        except Exception as exc:
            text = f"{scope['method']} {scope['path']}: unexpected {type(exc).__name__}: {exc}"
            self._context.log.error(text, error=exc)
            if not answer.status:
                body = {"error": type(exc).__name__, "message": "unexpected", "hint": "See the log"}
                told = Told({**body, "fields": {}, "retry": "never", "exit_code": 1}, 500)
                await told(scope, receive, answer)
        finally:
            self._audit(scope, answer.status)

    async def _let_in(self, scope: Scope, receive: Receive) -> bytes | Told:
        """The request's body, or the refusal."""
        path = scope["path"]
        if path not in OPEN_PATHS and not (path == METRICS_PATH and self._metrics_open):
            found = await run_in_threadpool(self._token, scope)
            if isinstance(found, Told):
                return found
            scope["standby.token"] = found
        try:
            body = await asyncio.wait_for(_body(scope, receive), BODY_TIMEOUT_S)
        except TimeoutError:
            return refusal(408, f"the request took longer than {BODY_TIMEOUT_S:.0f} s to arrive")
        if body is None:
            return refusal(413, f"the request is larger than {BODY_MAX} bytes")
        scope["standby.body"] = body
        return body

    def _token(self, scope: Scope) -> ApiToken | Told:
        """Whose request it is, or the refusal."""
        address = _address(scope)
        kind, _, text = _header(scope, b"authorization").partition(" ")
        text = text.strip()
        challenge = {"WWW-Authenticate": "Bearer"}
        if kind.lower() != "bearer" or not text:
            return refusal(
                401,
                "a token is needed: `Authorization: Bearer TOKEN`",
                "`standby token add` makes one, on the server's machine",
                challenge,
            )
        hash = token_hash(text[: TOKEN_LENGTH_MAX + 1])
        wait_s = self._failures.wait_s(address)
        if wait_s > 0 and not self._failures.is_good(hash):
            after = {"Retry-After": str(int(wait_s) + 1)}
            return refusal(429, f"too many wrong tokens from {address}", "Wait", after)
        try:
            token = found_token(self._context.server.store, text[: TOKEN_LENGTH_MAX + 1])
        except StandbyError as exc:
            return Told(error_body(exc), status_of(exc))
        if token is None:
            self._failures.failed(address)
            self._context.log.warning(f"api: a wrong, ended or revoked token from {address}")
            return refusal(
                401,
                "the token is wrong, has ended or is revoked",
                "`standby token list` shows those there are, on the server's machine",
                challenge,
            )
        self._failures.succeeded(hash)
        return token

    def _audit(self, scope: Scope, status: int) -> None:
        if scope["method"] in SAFE_METHODS:
            return
        token: ApiToken | None = scope.get("standby.token")
        who = f"token {token.name} ({token.role})" if token is not None else "nobody known"
        body = scope.get("standby.body", b"")[:TEXT_MAX].decode("utf-8", "replace")
        what = f"{scope['method']} {scope['path'][:TEXT_MAX]}" + (f" {body}" if body else "")
        text = f"api: {who} at {_address(scope)}: {what}: {status}"
        self._context.log.write("info" if status < 400 else "warning", text, {})


class _Answer:
    """`send`, and the status that went through it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            message["headers"] = [
                *message.get("headers", []),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "?"


def _header(scope: Scope, wanted: bytes) -> str:
    found = [value for name, value in scope["headers"] if name == wanted]
    return str(found[0].decode("latin-1")) if len(found) == 1 else ""


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; None where it is too large."""
    length = _header(scope, b"content-length")
    if length.isdigit() and int(length) > BODY_MAX:
        return None
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)  # gone: the application finds out
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body at once, then what happens to the connection."""
    told: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return told.pop() if told else await receive()

    return next_message
