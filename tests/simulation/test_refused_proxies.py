"""Movers whose certificate is refused, and sessions that are stopped while they wait for one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import wait_until
from simulation.several import SeveralSite
from simulation.test_movers_away import in_time
from standby.errors import CertificateRefused, LinkError, SessionStopped, StandbyError
from standby.model.session import Reason, RequestKind, SessionState
from standby.server.config import MoverConfig
from standby.server.daemon import Daemon
from standby.wire.link import Link


class RefusingSite(SeveralSite):
    """A site of which some movers' certificates are revoked, and some are away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.revoked: set[str] = set()
        self.away: set[str] = set()
        self.attempts = 0
        text = self.config.read_text()
        text = text.replace('reconnect_for = "10s"', 'reconnect_for = "1h"')
        self.config.write_text(text)

    def link(self, mover: MoverConfig) -> Link:
        if mover.name in self.revoked:
            self.attempts += 1
            raise CertificateRefused(mover.name, "it is revoked")
        if mover.name in self.away:
            self.attempts += 1
            raise LinkError(mover.name, "connection refused")
        return super().link(mover)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RefusingSite]:
    made = RefusingSite(tmp_path / "site")
    made.add_machine()
    made.fill()
    yield made
    made.close()


def test_a_revoked_proxy_is_left_out_of_a_session(site: RefusingSite) -> None:
    site.revoked = {"px1"}
    told: list[tuple[str, str]] = []
    with site.server() as server:
        server.crews.on_mover = lambda mover, problem: told.append((mover, problem))
        report = in_time(lambda: server.start("job"))
    (machine,) = report.machines
    assert machine.outcome == "done", machine.error
    assert {disk.proxy for disk in machine.disks} == {"px2"}
    (text,) = [text for text in machine.warnings if "px1" in text]
    assert "left out" in text
    assert "revoked" in text
    (problem,) = [problem for mover, problem in told if mover == "px1"]
    assert "revoked" in problem


def test_a_job_of_which_all_proxies_are_revoked_fails_with_the_reason(site: RefusingSite) -> None:
    site.revoked = {"px1", "px2"}
    (machine,) = in_time(site.run).machines
    assert machine.outcome in ("failed", "interrupted")
    assert "revoked" in machine.error


def test_where_no_proxy_sees_the_source_each_vm_fails_and_names_them_with_the_reasons(
    site: RefusingSite,
) -> None:
    seen = f'{{ source = {{ "{site.folder}/source" = '
    text = site.config.read_text()
    assert text.count(seen) == 2
    site.config.write_text(text.replace(seen, f'{{ source = {{ "{site.folder}/other" = '))
    report = in_time(site.run)
    assert report.outcome == "failed"
    (machine,) = report.machines
    assert machine.outcome == "failed"
    assert machine.error.startswith(f"VM {machine.machine}: no source proxy can take its disks (")
    for name in ("px1", "px2"):
        why = f"{name}: none of its paths for host source leads to {site.folder}/source"
        assert why in machine.error
    assert "dr1: a proxy of the target side only" in machine.error


def test_a_host_whose_mover_is_revoked_fails_the_session_with_the_reason(
    site: RefusingSite,
) -> None:
    site.revoked = {"hv1"}
    found = in_time(site.run)
    assert isinstance(found, CertificateRefused)
    assert "host source" in str(found)


@pytest.mark.parametrize("away", [{"hv1"}, {"px1", "px2"}, {"dr1", "dr2"}, {"repo"}])
def test_stop_ends_a_wait_for_a_connection(site: RefusingSite, away: set[str]) -> None:
    site.away = away
    found: list[object] = []
    with site.server() as server:

        def run() -> None:
            try:
                found.append(server.start("job"))
            except StandbyError as exc:
                found.append(exc)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        wait_until(lambda: site.attempts >= len(away), "the movers are missed")
        (report,) = in_time(lambda: server.stop("job"))
        assert report.outcome == "interrupted"
        thread.join(60)
        assert isinstance(found[0], SessionStopped) or found == [report]


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (RequestKind.STOP, SessionState.STOPPED),
        (RequestKind.PAUSE, SessionState.PAUSED),
        (None, SessionState.QUEUED),
    ],
)
def test_the_server_ends_a_session_that_waits_for_its_host(
    site: RefusingSite, kind: RequestKind | None, state: SessionState
) -> None:
    site.away = {"hv1"}
    with site.server() as server:
        daemon = Daemon(server)
        thread = threading.Thread(target=daemon.run, daemon=True)
        thread.start()
        queue = server.store.queue
        run = queue.enqueue("job", Reason.MANUAL)
        assert run is not None
        daemon.wake()
        wait_until(lambda: site.attempts > 0, "its host is missed")
        if kind is not None:
            queue.ask(run.id, kind, by="test")
            daemon.wake()
            wait_until(lambda: queue.session(run.id).state is state, "it ended")
        daemon.stop()
        thread.join(60)
        assert not thread.is_alive()
        assert queue.session(run.id).state is state
