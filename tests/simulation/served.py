"""`standby server` as a process over the movers of `installed`, and a look at its state."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.processes import wait_until
from net.nursery import Piped
from simulation.installed import Installation
from standby.model.report import MachineReport, SessionReport
from standby.model.session import SESSION_ENDS, Reason, SessionRun, SessionState
from standby.server.config import load_config
from standby.server.store import Store


class Served(Installation):
    """An installation, and a look at its state."""

    api = ""
    """Where the server that became active last answers."""

    def __init__(self, folder: Path, state: str = "", more: str = "") -> None:
        super().__init__(folder, more)
        if state:
            text = self.config.read_text()
            head = "[standby]\n"
            self.config.write_text(text.replace(head, f'{head}state_database = "{state}"\n', 1))

    @contextmanager
    def store(self) -> Iterator[Store]:
        with Store(load_config(self.config).state_place()) as store:
            yield store

    def queue(self) -> str:
        """A session for the server to run; its id."""
        self.states.append(self.content("vm1"))
        with self.store() as store:
            run = store.queue.enqueue("job", Reason.MANUAL, asked_by="test")
        assert run is not None
        return run.id

    @contextmanager
    def server(self, state: str = "active", **environment: str) -> Iterator[Piped]:
        """A server that is active, or stands by."""
        assert self.nursery is not None
        arguments = ("server", "run", "--config", self.config, "--json")
        process = self.nursery.piped(
            [*arguments, "--listen", "127.0.0.1:0"], environment, tuned=self.tuned
        )
        try:
            line = process.stdout.readline()
            assert line, process.communicate()
            told = json.loads(line)
            assert told["state"] == state
            self.api = told["api"]
            yield process
        finally:
            process.close()

    def expire_lease(self) -> None:
        """As after its 15 seconds."""
        with self.store() as store, store._database.writing(wakes=True) as connection:
            connection.exec_driver_sql("UPDATE server_lease SET expires_at = 0")

    def run_of(self, session: str) -> SessionRun:
        """The session as it stands now."""
        with self.store() as store:
            return store.queue.session(session)

    def wait_for(self, session: str, *states: SessionState) -> SessionRun:
        """The session once it is in one of the states."""
        wait_until(lambda: self.run_of(session).state in states, f"the session is {states}")
        return self.run_of(session)

    def ended(self, session: str) -> tuple[SessionRun, SessionReport]:
        """The session once it has ended, and its last report."""
        run = self.wait_for(session, *SESSION_ENDS)
        with self.store() as store:
            return run, store.sessions("job")[0]

    def sent(self) -> int:
        """How many transfers the source's proxies began."""
        lines = [line for name in ("src", "px") for line in self.log(name).splitlines()]
        return sum("task begun" in line and "send_disk" in line for line in lines)


def finish(process: Piped) -> None:
    """SIGTERM, and a clean end."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def check_done(run: SessionRun, report: SessionReport) -> MachineReport:
    """The session's only VM, which was done."""
    assert run.state in (SessionState.DONE, SessionState.WARNINGS), run
    (machine,) = report.machines
    assert machine.outcome == "done", machine
    return machine
