"""A real API over a small real site, on a free port of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import run as run
from cli.conftest import small_site
from cli.conftest import with_thread_movers as with_thread_movers
from simulation.site import Site
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.server.api.serving import Api, opened_api
from standby.server.api.tokens import new_api_token
from standby.server.daemon import Daemon
from standby.server.movers import MoverPair
from standby.server.server import BackupServer
from standby.testing.movers import thread_movers

ROLES = ("viewer", "operator", "admin")


@dataclass(frozen=True)
class Answer:
    """What a call brought."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The document."""
        return json.loads(self.body)


class ServedSite:
    """A site, its backup server and its API; a loop that runs sessions where it was started."""

    def __init__(self, site: Site, server: BackupServer, api: Api, tokens: dict[str, str]) -> None:
        self.site = site
        self.server = server
        self.api = api
        self.tokens = tokens

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str = "admin",
        token: str | None = None,
        expect: int | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """One request; `role` '' sends no token."""
        parts = urllib.parse.urlsplit(self.api.address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        if token is not None or role:
            headers["Authorization"] = f"Bearer {token if token is not None else self.tokens[role]}"
        data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
        try:
            connection.request(method, path, data, headers)
            found = connection.getresponse()
            answer = Answer(found.status, dict(found.headers.items()), found.read())
        finally:
            connection.close()
        if expect is not None:
            assert answer.status == expect, answer.body
        return answer

    def get(self, path: str, **more: Any) -> Any:
        """The document at a path below /api/v1."""
        return self.call("GET", f"/api/v1{path}", **({"expect": 200} | more)).json

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        """What a POST below /api/v1 tells."""
        return self.call("POST", f"/api/v1{path}", body, **more).json

    def ended(self, operation: Any) -> Any:
        """The operation when it has ended."""
        found = self.get(f"/operations/{operation['id']}?wait_s=60")
        assert found["state"] != "running"
        return found

    @contextlib.contextmanager
    def looped(self) -> Iterator[Daemon]:
        """Sessions run inside of the block."""
        ready = threading.Event()
        loop = Daemon(self.server, on_ready=lambda is_active: ready.set())
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            assert ready.wait(30)
            self.api.context.server_id = loop.id
            yield loop
        finally:
            loop.stop()
            thread.join()
            self.api.context.server_id = ""


def movers(connections: int) -> MoverPair:
    """Movers as threads of this process."""
    return thread_movers(connections, SourceVerbs, TargetVerbs)


@contextlib.contextmanager
def serving(site: Site, whose: str = "") -> Iterator[ServedSite]:
    """The API over a site; `whose` begins its tokens' names, which are good once."""
    with BackupServer(site.config, make_movers=movers) as server:
        tokens = {
            role: new_api_token(server.store, server.clock, whose + role, role, by="test")[1]
            for role in ROLES
        }
        with opened_api(server, listen="127.0.0.1:0") as api:
            yield ServedSite(site, server, api, tokens)


Served = Callable[[], ServedSite]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedSite]:
    """The API over a site without any session yet."""
    with serving(small_site(tmp_path / "site")) as found:
        yield found


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[ServedSite]:
    """The API over a site with two sessions behind it."""
    site = small_site(tmp_path / "site")
    site.run()
    site.write(1 << 20, 64 * 1024)
    site.run()
    with serving(site) as found:
        yield found
