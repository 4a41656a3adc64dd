"""Replicas that a mover holds for a server: who gets them when that server is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

import pytest

from standby.errors import ReplicaBusy
from standby.model.replica import ReplicaIdentity
from standby.road import open_replicas
from standby.road.connections import ServiceConnections
from standby.road.open_replicas import OpenReplicas
from standby.road.owners import Owner, working_for
from standby.road.replica import ReplicaFolder

WAIT_S = 30


@pytest.fixture
def folder(tmp_path: Path) -> ReplicaFolder:
    made = ReplicaFolder(tmp_path / "vm1_replica")
    made.create(ReplicaIdentity("site", "prod", "6f1f0a52", "job"), "vm1_replica")
    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


class Site:
    """A mover's open replicas, with openings that last as long as a test says."""

    def __init__(self, folder: ReplicaFolder, pool: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.pool = pool
        self.replicas = OpenReplicas(ServiceConnections("dr", lambda *_: None))  # type: ignore[arg-type, return-value]

    def open(self, owner: Owner, session: str) -> tuple[threading.Event, threading.Event, Future]:
        """Begun, to be ended, and the result: what the new writer is called."""
        begun, end = threading.Event(), threading.Event()

        def work() -> str:
            with (
                working_for(owner),
                self.replicas.opening("vm1", self.folder, session, False) as lease,
            ):
                begun.set()
                assert end.wait(WAIT_S)
                self.replicas.add("vm1", self.folder, lease)
                return lease.session

        return begun, end, self.pool.submit(work)


@pytest.fixture
def site(folder: ReplicaFolder, pool: ThreadPoolExecutor) -> Iterator[Site]:
    made = Site(folder, pool)
    yield made
    made.replicas.close("vm1")


def test_an_opening_that_a_killed_server_left_is_waited_for(site: Site) -> None:
    lost, again = Owner("server"), Owner("server")
    begun, end, first = site.open(lost, "one")
    assert begun.wait(WAIT_S)
    lost.gone_at = 1.0
    _, end_of_second, second = site.open(again, "two")
    end_of_second.set()
    with pytest.raises(NotYet):
        second.result(0.3)  # more than a lease that is held is asked for
    end.set()
    assert (first.result(WAIT_S), second.result(WAIT_S)) == ("one", "two")
    held = site.replicas.held("vm1")
    assert held is not None
    assert held.owner is again


def test_a_server_may_be_gone_a_moment_before_the_mover_knows(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_replicas, "NOTICING_S", WAIT_S)
    lost = Owner("server")
    _, end, first = site.open(lost, "one")
    end.set()
    assert first.result(WAIT_S) == "one"
    _, end, second = site.open(Owner("server"), "two")
    end.set()
    with pytest.raises(NotYet):
        second.result(0.3)
    lost.gone_at = 1.0
    assert second.result(WAIT_S) == "two"


def test_a_session_that_lives_keeps_its_replica(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_replicas, "NOTICING_S", 0.1)
    _, end, first = site.open(Owner("server"), "one")
    end.set()
    assert first.result(WAIT_S) == "one"
    _, end, second = site.open(Owner("server"), "two")
    end.set()
    with pytest.raises(ReplicaBusy, match="session one"):
        second.result(WAIT_S)


def test_a_replica_whose_session_ends_while_it_is_opened_does_not_stay_open(site: Site) -> None:
    begun, end, first = site.open(Owner("server"), "one")
    assert begun.wait(WAIT_S)
    site.replicas.close_where(lambda owner, session: session == "one")
    end.set()
    with pytest.raises(ReplicaBusy, match="one, which was ended"):
        first.result(WAIT_S)
    assert site.replicas.held("vm1") is None
    _, end, second = site.open(Owner("server"), "two")
    end.set()
    assert second.result(WAIT_S) == "two"


def test_a_replica_whose_task_hangs_at_its_end_is_given_back_with_the_task(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_replicas, "ENDING_TIMEOUT_S", 0.1)
    _, end, first = site.open(Owner("server"), "one")
    end.set()
    assert first.result(WAIT_S) == "one"
    with site.replicas.receiving("vm1", "task"):
        site.replicas.close_where(lambda owner, session: session == "one")
        assert site.replicas.held("vm1") is not None
    assert site.replicas.held("vm1") is None
    _, end, second = site.open(Owner("server"), "two")
    end.set()
    assert second.result(WAIT_S) == "two"
