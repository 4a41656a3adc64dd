"""Operations of the API: how one ended is known after its server ended too; one is cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.conftest import ServedSite, serving
from cli.conftest import small_site
from cli.processes import wait_until
from standby.clock import SYSTEM_CLOCK
from standby.errors import OperationCancelled, SessionStopped, StandbyError, error_from_wire
from standby.model.replica import ReplicaState
from standby.server.all_replicas import RemoteShelf
from standby.server.api import operations
from standby.server.api.infrastructure import wait_for_end
from standby.server.api.operations import Operations, Progress
from standby.server.fleet import Station
from standby.server.logs import Log
from standby.server.store import Store
from standby.server.store.operations import KEPT


class Held:
    """Work that says how far it is until it is told to go on."""

    def __init__(self, *, through: bool = False) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self._through = through

    def __call__(self, progress: Progress) -> dict[str, str]:
        if self._through:
            progress.go_through()
        self.begun.set()
        while not self.may_end.wait(0.01):
            progress("read", 1, 2)
        return {"found": "it"}


@pytest.fixture
def held() -> Iterator[Callable[..., Held]]:
    made: list[Held] = []

    def make(**how: bool) -> Held:
        made.append(Held(**how))
        return made[-1]

    yield make
    for item in made:
        item.may_end.set()


@contextmanager
def opened(store: Store) -> Iterator[Operations]:
    found = Operations(SYSTEM_CLOCK, Log(), store.operations)
    try:
        yield found
    finally:
        found.close()


def ended(of: Operations, id: str) -> dict[str, Any]:
    wait_until(lambda: of.told(id)["state"] != "running", "the operation ended")
    return of.told(id)


def test_how_an_operation_ended_is_known_after_a_restart(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    site.run()
    with serving(site) as first:
        done = first.ended(first.post("/replicas/vm1_replica/verify", {}, expect=202))
        lost = first.ended(first.post("/jobs/job/stop", {}, expect=202))
        assert (done["state"], lost["state"]) == ("done", "done")
    with serving(site, "second-") as second:
        assert second.get(f"/operations/{done['id']}") == done
        assert second.get("/operations")["operations"] == [lost, done]
        # What it found is of use to the next server too.
        asked = {"verify": done["id"]}
        repaired = second.post("/replicas/vm1_replica/repair", asked, expect=202)
        assert second.ended(repaired)["result"] == {"repairs": []}
        second.get("/operations/op-unknown", expect=404)


def test_an_operation_whose_server_ended_says_so(
    served: ServedSite, held: Callable[..., Held]
) -> None:
    with opened(served.server.store) as first:
        work = held()
        operation = first.begin("verify", "vm1_replica", "token x", work)
        assert work.begun.wait(30)
        other = served.get(f"/operations/{operation.id}")
        assert (other["state"], other["ended_at"]) == ("running", "")
    found = served.get(f"/operations/{operation.id}?wait_s=5")
    assert (found["state"], found["error"]["error"]) == ("failed", "OperationLost")
    assert "its server ended meanwhile" in found["error"]["message"]
    assert found["ended_at"]


def test_an_operation_of_a_killed_server_has_failed_once_nobody_speaks_of_it(
    served: ServedSite,
) -> None:
    store = served.server.store
    store.operations.begin("api killed", "op-1", "verify", "vm1_replica", "token x")
    assert served.get("/operations/op-1")["state"] == "running"
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE api_operations SET seen_at = seen_at - 31")
    found = served.get("/operations/op-1")
    assert (found["state"], found["error"]["error"]) == ("failed", "OperationLost")
    error = error_from_wire({"error": found["error"]["error"], **found["error"]["fields"]})
    assert str(error) == found["error"]["message"]


def test_an_operation_is_cancelled(served: ServedSite, held: Callable[..., Held]) -> None:
    work = held()
    operation = served.api.context.operations.begin("verify", "vm1_replica", "token x", work)
    assert work.begun.wait(30)
    path = f"/operations/{operation.id}/cancel"
    served.post(path, role="viewer", expect=403)
    served.post(path, role="operator", expect=202)
    found = served.ended({"id": operation.id})
    assert (found["state"], found["error"]["error"]) == ("cancelled", "OperationCancelled")
    assert served.post(path, expect=202) == found  # again: it stays as it is
    served.post("/operations/op-unknown/cancel", expect=404)


def test_an_operation_that_changes_something_ends_by_itself(
    served: ServedSite, held: Callable[..., Held]
) -> None:
    work = held(through=True)
    operation = served.api.context.operations.begin("repair", "vm1_replica", "token x", work)
    assert work.begun.wait(30)
    refused = served.post(f"/operations/{operation.id}/cancel", expect=409)
    assert refused["error"] == "IllegalOperation"
    work.may_end.set()
    assert served.ended({"id": operation.id})["result"] == {"found": "it"}


def test_an_operation_of_another_server_is_cancelled(
    state_place: Path | str, held: Callable[..., Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "BEAT_S", 0.05)
    with Store(state_place) as one, Store(state_place) as two:
        with opened(one) as first, opened(two) as second:
            work = held()
            operation = first.begin("verify", "vm1_replica", "token x", work)
            assert work.begun.wait(30)
            step = {"label": "read", "done": 1, "total": 2}
            wait_until(lambda: second.told(operation.id)["progress"] == [step], "it was told")
            assert second.cancel(operation.id)["state"] == "running"
            assert ended(second, operation.id)["state"] == "cancelled"
            assert first.told(operation.id)["state"] == "cancelled"


def test_old_operations_are_forgotten(state_place: Path | str) -> None:
    with Store(state_place) as store:
        book = store.operations
        book.begin("other", "going", "verify", "x", "y")
        for number in range(KEPT + 5):
            book.begin("me", f"op-{number:04}", "verify", "x", "y")
            book.end(f"op-{number:04}", "done", "null")
        found = {item.id for item in book.all(2 * KEPT)}
        assert {"going", f"op-{KEPT + 4:04}"} <= found
        assert KEPT <= len(found) <= KEPT + 2


@pytest.mark.parametrize("error", [OperationCancelled, SessionStopped])
def test_a_verification_that_is_cancelled_takes_nothing_for_damaged(
    replicated: ServedSite, error: type[StandbyError]
) -> None:
    def progress(done: int, total: int) -> None:
        raise error("verify", "vm1_replica")

    replicas = replicated.server.replicas
    with pytest.raises(error):
        replicas.verify("vm1_replica", progress=progress)
    assert replicas.show("vm1_replica").state is ReplicaState.READY


class FarMover:
    """A mover that reads for ever, and what it is told."""

    name = "dr1"

    def __init__(self) -> None:
        self.task = ""
        self.told: list[tuple[str, str]] = []

    def answers(self) -> bool:
        return True

    def start(self, verb: str, /, *, task: str, **arguments: Any) -> Future[Any]:
        self.task = task
        return Future()

    def call(self, verb: str, /, **arguments: Any) -> Any:
        return {self.task: [1, 2]}

    def tell(self, verb: str, /, *, task: str) -> bool:
        self.told.append((verb, task))
        return True


class OneMover:
    def __init__(self) -> None:
        self.far = FarMover()

    def mover(self, name: str) -> FarMover:
        return self.far

    def place(self, station: Station) -> str:
        return "target:"


def test_the_mover_of_a_cancelled_verification_is_told() -> None:
    fleet = OneMover()
    shelf = RemoteShelf("target", Station("dr1", "/srv/replicas"), fleet)  # type: ignore[arg-type]

    def progress(done: int, total: int) -> None:
        assert (done, total) == (1, 2)
        raise OperationCancelled("verify", "vm1_replica")

    with pytest.raises(OperationCancelled):
        shelf.long_call("verify", progress, name="vm1_replica")
    assert fleet.far.told == [("cancel", fleet.far.task)]


@pytest.mark.parametrize("wait_s", [5.0, 0.001])
def test_who_waits_for_what_fails_leaves_no_error_to_the_event_loop(
    caplog: pytest.LogCaptureFixture, wait_s: float
) -> None:
    """Python 3.11 may fail elsewhere when such an error is collected and logged."""
    future: Future[None] = Future()

    async def wait() -> None:
        waiting = asyncio.create_task(wait_for_end(future, wait_s))
        if wait_s < 1:
            await waiting
        else:
            await asyncio.sleep(0)
        future.set_exception(OperationCancelled("verify", "vm1_replica"))
        await waiting
        await asyncio.sleep(0.01)  # what the future's end calls in the loop

    asyncio.run(wait())
    gc.collect()
    assert caplog.records == []
