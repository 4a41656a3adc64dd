"""What all routes of one server share, and how they get at it."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from standby.errors import StandbyError
from standby.server.api.operations import Operations
from standby.server.api.tokens import may
from standby.server.logs import Log
from standby.server.server import BackupServer
from standby.server.store.tables import ApiToken
from standby.server.store.wakeups import Wakeups


class Bell:
    """Wakes what waits in the event loop when something changed in the state database."""

    def __init__(self, server: BackupServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._wakeups: Wakeups | None = None
        self._is_closed = False

    async def wait(self, timeout_s: float) -> None:
        """Return when something changed, or after `timeout_s`."""
        self._begin()
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.add(entry)
        try:
            await asyncio.wait_for(entry[1].wait(), timeout_s)
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(entry)

    def _begin(self) -> None:
        with self._lock:
            if self._wakeups is not None or self._is_closed:
                return
            self._wakeups = wakeups = self._server.store.wakeups()
        threading.Thread(target=self._listen, args=(wakeups,), name="api bell", daemon=True).start()

    def _listen(self, wakeups: Wakeups) -> None:
        while not self._is_closed:
            wakeups.wait(None)
            with self._lock:
                waiting = list(self._waiting)
            for loop, event in waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End the listening."""
        with self._lock:
            self._is_closed = True
            wakeups = self._wakeups
        if wakeups is not None:
            wakeups.close()


class ApiContext:
    """The backup server behind the API, and what the API adds. `server_id` is the id by which the
    loop of this process holds the lease, '' where there is none."""

    def __init__(self, server: BackupServer, log: Log | None = None) -> None:
        self.server = server
        self.log = log or Log()
        self.server_id = ""
        self.operations = Operations(server.clock, self.log, server.store.operations)
        self.bell = Bell(server)

    def lease(self) -> str:
        """Who holds the lease: 'here', 'elsewhere', 'free', or 'unknown' without the database."""
        try:
            holder = self.server.store.lease("look").holder()
        except StandbyError:
            return "unknown"
        if holder is None or holder.expires_in_s <= 0:
            return "free"
        return "here" if holder.server == self.server_id else "elsewhere"

    def close(self) -> None:
        """End what the API began."""
        self.operations.close()
        self.bell.close()


def _context(request: Request) -> ApiContext:
    context: ApiContext = request.app.state.context
    return context


Bearer = Annotated[Any, Security(HTTPBearer(auto_error=False))]
"""Says in OpenAPI that a token is needed; the door asks for it."""


class Needs:
    """A dependency: the caller's token, which the door found, has a role that includes `role`."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __call__(self, request: Request, credentials: Bearer) -> ApiToken:
        """The token; HTTP 403 where its role does not do."""
        token: ApiToken = request.scope["standby.token"]
        if not may(token.role, self.role):
            raise HTTPException(
                403,
                f"token {token.name} has the role {token.role}; this needs the role {self.role}",
            )
        return token


Context = Annotated[ApiContext, Depends(_context)]
Viewer = Annotated[ApiToken, Depends(Needs("viewer"))]
Operator = Annotated[ApiToken, Depends(Needs("operator"))]
Admin = Annotated[ApiToken, Depends(Needs("admin"))]


def called(token: ApiToken) -> str:
    """What the records say of who asked."""
    return f"token {token.name}"
