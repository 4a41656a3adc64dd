"""The state database: what is recorded is there again, across processes and restarts."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from clocks import StepClock
from standby.errors import StateDatabaseError, UnknownName
from standby.model.machine import Checkpoint, CheckpointDisk
from standby.model.replica import ReplicaIdentity
from standby.model.report import DiskReport, MachineReport, SessionReport
from standby.server.store import CHANGED_SHARE, Store
from standby.server.store.opening import database_url

GIB = 1 << 30
WEB = ReplicaIdentity("main-site", "production", "id-web", "nightly")


@pytest.fixture
def store(state_place: Path | str) -> Iterator[Store]:
    with Store(state_place, StepClock(timedelta(minutes=1))) as store:
        yield store


def session(
    number: int, *machines: MachineReport, job: str = "nightly", outcome: str = "done"
) -> SessionReport:
    started = f"2026-01-{number:02}T22:00:00+00:00"
    ended = f"2026-01-{number:02}T22:10:00+00:00" if outcome else ""
    return SessionReport(f"s{number:02}", job, started, ended, outcome, list(machines))


def machine(changed: int, mode: str = "incremental", **values: str) -> MachineReport:
    disk = DiskReport("d0", "scsi:0:0", mode, virtual_size=10 * GIB, changed=changed)
    disk.busy_s["source"] = 1.5
    return MachineReport(
        **{  # type: ignore[arg-type]
            "machine": "web",
            "machine_id": "id-web",
            "replica": "web_replica",
            "outcome": "done",
            "warnings": ["one"],
            "disks": [disk],
            **values,
        }
    )


def test_a_session_reads_back_as_it_was_saved(store: Store) -> None:
    report = session(1, machine(5), machine(7, machine="db", machine_id="id-db"))
    store.save_session(report)
    assert store.session("s01") == report
    report.machines.pop()
    report.outcome = "warnings"
    store.save_session(report)
    assert store.session("s01") == report


def test_sessions_come_newest_first_by_job_and_limited(store: Store) -> None:
    for number in (2, 1, 3):
        store.save_session(session(number))
    store.save_session(session(4, job="weekly"))
    assert [r.id for r in store.sessions()] == ["s04", "s03", "s02", "s01"]
    assert [r.id for r in store.sessions("nightly", 2)] == ["s03", "s02"]
    with pytest.raises(UnknownName, match="no session named 's09'; known: s04, s03, s02, s01"):
        store.session("s09")


def test_a_session_without_an_end_is_unfinished(store: Store) -> None:
    store.begin_session(session(1, outcome=""))
    store.begin_session(session(2, outcome=""))
    store.save_session(session(2))
    assert [r.id for r in store.unfinished_sessions()] == ["s01"]


def test_changed_shares_come_newest_last_without_what_had_no_earlier_point(store: Store) -> None:
    store.save_session(session(1, machine(10 * GIB, "full")))
    store.save_session(session(2, machine(GIB)))
    store.save_session(session(3, machine(5 * GIB, outcome="failed")))
    store.save_session(session(4, machine(2 * GIB)))
    store.save_session(session(5, machine(9 * GIB, replica="other_replica")))
    store.save_session(session(6, machine(3 * GIB)))
    assert store.changed_share_history("web_replica") == [0.1, 0.2, 0.3]
    assert store.changed_share_history("web_replica", 2) == [0.2, 0.3]
    assert store.changed_share_history("unknown") == []


def test_figures_of_a_vm_at_work_stay_until_it_has_an_outcome(store: Store) -> None:
    at_work = machine(0, outcome="")
    bare = MachineReport("web", "id-web")
    store.begin_session(session(1, bare, machine(7, machine_id="id-db"), outcome=""))
    store.save_figures("s01", at_work)
    store.save_figures("s01", machine(99, machine_id="id-db"))  # that one has its outcome
    store.save_session(session(1, bare, machine(7, machine_id="id-db"), outcome=""))
    assert store.session("s01").machines == [at_work, machine(7, machine_id="id-db")]
    store.save_session(session(1, machine(5), machine(7, machine_id="id-db")))
    assert store.session("s01").machines[0] == machine(5)


def test_changed_bytes_per_disk_are_those_of_incremental_tasks(store: Store) -> None:
    store.save_session(session(1, machine(10, "full")))
    store.save_session(session(2, machine(20)))
    store.save_session(session(3, machine(30)))
    store.save_session(session(4, machine(40), job="weekly"))
    assert store.changed_history(WEB) == {"d0": (20, 30)}
    assert store.changed_history(WEB, 1) == {"d0": (30,)}


def test_an_intent_is_open_until_its_checkpoint_is_released(store: Store) -> None:
    checkpoint = Checkpoint(
        "c1",
        "id-web",
        "clone",
        "2026-01-01T00:00:00+00:00",
        "offline",
        (CheckpointDisk("scsi:0:0", ("web/os.vhdx",), "1-2-3", GIB),),
    )
    first = store.record_intent("production", "id-web", "s01", "2026-01-01T22:00:00+00:00")
    second = store.record_intent("other", "id-db", "s01", "2026-01-01T22:00:01+00:00")
    assert [(i.id, i.state, i.checkpoint) for i in store.open_intents()] == [
        (first, "intent", None),
        (second, "intent", None),
    ]
    store.checkpoint_made(first, checkpoint)
    (made,) = store.open_intents("production")
    assert (made.state, made.checkpoint, made.session) == ("made", checkpoint, "s01")
    store.checkpoint_released(first)
    store.checkpoint_released(first)
    assert store.open_intents("production") == []
    with pytest.raises(UnknownName, match="no checkpoint intent named 'x'"):
        store.checkpoint_released("x")


def test_a_replica_is_remembered_under_its_whole_identity(store: Store) -> None:
    assert store.known_replica(WEB) is None
    store.remember_replica(WEB, "web_replica", "/dr/web_replica", "ready", "p1", 1)
    store.remember_replica(WEB, "web_replica", "/dr/web_replica", "failover", "p2", 2)
    other = ReplicaIdentity("main-site", "production", "id-web", "weekly")
    store.remember_replica(other, "web_copy", "/dr/web_copy", "ready", "p9", 9)
    known = store.known_replica(WEB)
    assert known is not None
    assert (known.identity, known.points, known.newest_point) == (WEB, 2, "p2")
    assert (known.state, known.path) == ("failover", "/dr/web_replica")
    assert known.seen_at == "2026-01-01T00:02:00+00:00"
    assert [k.name for k in store.known_replicas()] == ["web_copy", "web_replica"]
    assert [k.name for k in store.known_replicas("weekly")] == ["web_copy"]


def test_an_alarm_raised_again_is_renewed_until_it_is_acknowledged(store: Store) -> None:
    first = store.raise_alarm("rpo", "nightly", "web", "25 h old")
    again = store.raise_alarm("rpo", "nightly", "web", "26 h old")
    assert (again.id, again.text, again.raised_at) == (first.id, "26 h old", first.raised_at)
    assert again.last_at > first.last_at
    other = store.raise_alarm("rpo", "nightly", "db", "25 h old")
    assert [a.id for a in store.alarms()] == [other.id, first.id]
    (closed,) = store.acknowledge(job="nightly", machine="web")
    assert closed.acknowledged_at
    assert store.acknowledge(first.id) == []
    assert [a.machine for a in store.alarms()] == ["db"]
    assert len(store.alarms(open_only=False)) == 2
    new = store.raise_alarm("rpo", "nightly", "web", "30 h old")
    assert new.id != first.id
    assert store.alarms(job="weekly") == []


def test_a_changed_share_alarm_holds_retention_until_acknowledged(store: Store) -> None:
    store.save_session(session(1, machine(1)))
    store.raise_alarm("rpo", "nightly", "web", "old")
    store.raise_alarm(CHANGED_SHARE, "weekly", "web", "80 %")
    assert not store.holds_retention(WEB)
    store.raise_alarm(CHANGED_SHARE, "nightly", "web", "80 %")
    assert store.holds_retention(WEB)
    store.acknowledge(job="nightly")
    assert not store.holds_retention(WEB)


def test_what_is_recorded_is_there_after_a_restart(state_place: Path | str) -> None:
    with Store(state_place) as store:
        store.save_session(session(1, machine(1)))
        intent = store.record_intent("production", "id-web", "s01", "2026-01-01T22:00:00+00:00")
    url = f"sqlite:///{state_place}" if isinstance(state_place, Path) else state_place
    with Store(url) as store:
        assert store.session("s01") == session(1, machine(1))
        assert [i.id for i in store.open_intents()] == [intent]


PROCESS = """
import sys
from pathlib import Path
from standby.model.report import SessionReport
from standby.server.store import Store
with Store(sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])) as store:
    for number in range(20):
        name = f"{sys.argv[2]}-{number:02}"
        store.begin_session(SessionReport(name, "j", "2026-01-01T00:00:00+00:00"))
        store.raise_alarm("rpo", "j", "web", name)
"""


def test_several_processes_write_at_once(state_place: Path | str) -> None:
    # The tables are made by whichever comes first.
    children = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(state_place), str(number)])
        for number in range(3)
    ]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    with Store(state_place) as store:
        assert len(store.sessions(limit=100)) == 60
        assert len(store.alarms()) == 1


def test_sqlite_writes_ahead_and_waits(tmp_path: Path) -> None:
    with Store(tmp_path / "state.sqlite") as store, store._database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 60000,
        "foreign_keys": 1,
    }


def test_a_file_without_a_log_is_opened_while_another_is_about_to_write(tmp_path: Path) -> None:
    # SQLite refuses to give it one there without waiting.
    place = tmp_path / "state.sqlite"
    with contextlib.closing(
        sqlite3.connect(place, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        later = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        later.start()
        with Store(place) as store:
            assert store.sessions() == []
        later.join()


def test_a_failed_write_leaves_nothing_behind(store: Store) -> None:
    bad = session(1, machine(1))
    bad.machines.append(machine(1, replica=None))  # type: ignore[arg-type]
    with pytest.raises(StateDatabaseError, match=r"(?i)not.null constraint"):
        store.save_session(bad)
    assert store.sessions() == []


def test_another_programs_database_is_refused_and_left_alone(state_place: Path | str) -> None:
    engine = sa.create_engine(database_url(state_place))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    with pytest.raises(
        StateDatabaseError, match=r"another program's database\. Choose another file"
    ):
        Store(state_place)
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["t"]
    engine.dispose()


def test_a_newer_schema_is_refused_with_both_versions(state_place: Path | str) -> None:
    with Store(state_place) as store, store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 7")
    with pytest.raises(StateDatabaseError, match="has schema 7, this release knows 4"):
        Store(state_place)


def test_a_damaged_file_is_refused_with_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"rubbish " * 1000)
    with pytest.raises(StateDatabaseError, match=r"not a database.*replicas are not"):
        Store(path)
