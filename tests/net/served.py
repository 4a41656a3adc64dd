"""`standby server` on the backup server's machine of `sites`, and a look at its state."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cli.processes import wait_until
from net.nursery import Child, Nursery
from net.sites import Sites
from standby.model.report import MachineReport
from standby.model.session import SESSION_ENDS, Reason, SessionRun, SessionState
from standby.server.config import load_config
from standby.server.store import Store


class ServedSites(Sites):
    """Both sites, whose job a daemon runs."""

    api = ""
    """Where the daemon that was started last answers."""

    def __init__(self, folder: Path, nursery: Nursery, *, state: str = "", **more: Any) -> None:
        """`state` is the state database's URL, '' for the usual file."""
        super().__init__(folder, nursery, **more)
        if state:
            text = self.config.read_text()
            head = "[standby]\n"
            self.config.write_text(text.replace(head, f'{head}state_database = "{state}"\n', 1))

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        with Store(load_config(self.config).state_place()) as store:
            yield store

    @contextlib.contextmanager
    def daemon(self, state: str = "active", **environment: str) -> Iterator[Child]:
        """A daemon that is active, or stands by; killed if the test has not ended it."""
        child = self.spawn("server", "run", "--json", "--listen", "127.0.0.1:0", **environment)
        try:
            wait_until(partial(_has_told, child, state), f"a server is {state}")
            self.api = json.loads(child.said().splitlines()[-1])["api"]
            yield child
        finally:
            child.send_signal(signal.SIGCONT)
            child.kill()

    def expire_lease(self) -> None:
        """As after the 15 seconds for which the active server did not renew it."""
        with self.store() as store, store._database.writing(wakes=True) as connection:
            connection.exec_driver_sql("UPDATE server_lease SET expires_at = 0")

    def wait_active(self, child: Child) -> None:
        """The daemon that stood by is active."""
        wait_until(partial(_has_told, child, "active"), "the other server is active")

    def queue(self) -> str:
        """A session for the daemon to run, as its schedule would order it; its id."""
        self.states.append(self.content("vm1"))
        with self.store() as store:
            run = store.queue.enqueue("job", Reason.MANUAL, asked_by="test")
        assert run is not None
        return run.id

    def ask(self) -> Child:
        """A session that is ordered through the API: the command that waits for its report."""
        if not (self.folder / "token").exists():
            made = self.command("token", "add", "test", "--role", "operator")
            assert made.returncode == 0, made.stderr
            (self.folder / "token").write_text(made.stdout)
        self.states.append(self.content("vm1"))
        return self.spawn(
            "job", "start", "job", "--json",
            STANDBY_SERVER=self.api, STANDBY_TOKEN=f"file:{self.folder}/token",
        )  # fmt: skip

    def run_of(self, session: str) -> SessionRun:
        """The session as it stands now."""
        with self.store() as store:
            return store.queue.session(session)

    def done(self, session: str) -> MachineReport:
        """The report of the session's VM, once it has ended and brought a point."""
        wait_until(lambda: self.run_of(session).state in SESSION_ENDS, "the session has ended")
        run = self.run_of(session)
        assert run.state in (SessionState.DONE, SessionState.WARNINGS), run
        with self.store() as store:
            (machine,) = store.sessions("job")[0].machines
        assert machine.outcome == "done", machine
        self.remember_point(machine.replica, machine.point, machine.machine)
        return machine

    def transfers(self) -> int:
        """How many transfers the source's proxies began."""
        lines = [line for name in ("px1", "px2") for line in self.logs(name).splitlines()]
        return sum("task begun" in line and "send_disk" in line for line in lines)


def finish(child: Child) -> None:
    """SIGTERM, and a clean end of the daemon."""
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 0, child.log()
    assert "Traceback" not in child.log(), child.log()


def _has_told(child: Child, state: str) -> bool:
    assert child.poll() is None, child.log()
    lines = child.said().splitlines()
    return bool(lines) and json.loads(lines[-1])["state"] == state
