"""How a state database is named and reached; one session per job; the API's tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clocks import StepClock
from standby.errors import (
    ConfigurationError,
    JobBusy,
    Retry,
    StateDatabaseError,
    StateDatabaseUnreachable,
    UnknownName,
)
from standby.server.alive import Alive
from standby.server.config import load_config
from standby.server.references import read_reference
from standby.server.store import Store

CONFIG = """\
[standby]
installation = "test"
state_database = "{place}"
"""


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def store(state_place: Path | str, clock: StepClock) -> Iterator[Store]:
    with Store(state_place, clock) as store:
        yield store


# --- names -------------------------------------------------------------------------------------


def place_of(folder: Path, text: str) -> Path | str:
    (folder / "standby.toml").write_text(CONFIG.format(place=text))
    return load_config(folder).state_place()


def test_a_database_is_a_file_a_url_or_a_reference_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "postgresql://me:pw@db/standby"
    monkeypatch.setenv("PG_URL", f"{secret}\n")
    (tmp_path / "url").write_text(f"{secret}\n")
    assert place_of(tmp_path, "state/x.sqlite") == tmp_path / "state" / "x.sqlite"
    assert place_of(tmp_path, "postgresql://me@db/standby") == "postgresql://me@db/standby"
    assert place_of(tmp_path, "env:PG_URL") == secret
    assert place_of(tmp_path, "file:url") == secret
    assert place_of(tmp_path, f"file:{tmp_path / 'url'}") == secret


def test_a_reference_to_nothing_is_named_without_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PG_URL", raising=False)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for reference, problem in (
        ("env:PG_URL", "the environment has no PG_URL"),
        ("file:nothing", "nothing: No such file"),
        ("file:empty", "empty is empty"),
        ("file:binary", "is not UTF-8 text"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            read_reference(reference, "here", tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:topsecret@/x?host=/nowhere",
        "postgresql://me@/x?host=/nowhere&password=topsecret",
    ],
)
def test_a_database_that_does_not_answer_is_tried_later_and_no_secret_is_shown(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StateDatabaseUnreachable, match=r"x on .*/nowhere") as caught:
        Store(url)
    assert caught.value.retry is Retry.LATER
    assert "topsecret" not in repr(caught.value) + str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:topsecret@x:port/y", "mysql://me:topsecret@x/y", "sqlite://", "nonsense"],
)
def test_a_url_of_nothing_we_know_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Store(url)
    assert "topsecret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_driver_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StateDatabaseError, match=r"pip install '\.\[postgresql\]'"):
        Store("postgresql://me@db/standby")


# --- one session per job -----------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from standby.server.store import Store
place = sys.argv[1]
store = Store(place if "://" in place else Path(place))
lock = store.job_lock("nightly")
assert lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_job_is_locked_as_long_as_the_process_that_runs_it_lives(
    store: Store, state_place: Path | str, clock: StepClock
) -> None:
    alive = Alive(store, clock)
    with alive.one_session("nightly", take_over=False):
        assert alive.lock("nightly").is_taken()
        with pytest.raises(JobBusy), alive.one_session("nightly", take_over=False):
            pass
        with alive.one_session("weekly", take_over=False) as (is_alone, _):
            assert is_alone
        with alive.one_session("nightly", take_over=True) as (is_alone, _):
            assert not is_alone
    lock = alive.lock("nightly")
    assert not lock.is_taken()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state_place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert lock.is_taken()
    assert not lock.acquire()
    child.kill()
    child.communicate(timeout=30)
    while not lock.acquire():  # PostgreSQL needs a moment to see it
        pass
    lock.release()
    lock.release()


# --- tokens ------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_hash_until_it_ends_or_is_revoked(
    store: Store, clock: StepClock
) -> None:
    end = clock.at + timedelta(hours=1)
    token = store.tokens.add("ci", "operator", "hash1", expires_at=end, by="ann")
    store.tokens.add("admin", "admin", "hash2")
    assert (token.role, token.created_by, token.last_used_at) == ("operator", "ann", "")
    assert store.tokens.find("other") is None
    found = store.tokens.find("hash1")
    assert found is not None
    assert found.name == "ci"
    (admin, used) = store.tokens.list()
    assert (admin.name, admin.last_used_at, used.name) == ("admin", "", "ci")
    first_use = used.last_used_at
    assert first_use
    store.tokens.find("hash1")  # at once: not written again
    assert store.tokens.list()[1].last_used_at == first_use
    clock.at += timedelta(minutes=2)
    store.tokens.find("hash1")
    assert store.tokens.list()[1].last_used_at > first_use
    clock.at = end
    assert store.tokens.find("hash1") is None
    revoked = store.tokens.revoke("admin")
    assert store.tokens.revoke("admin") == revoked
    assert store.tokens.find("hash2") is None


def test_a_name_is_used_once_and_a_role_must_exist(store: Store) -> None:
    store.tokens.add("ci", "viewer", "hash1")
    store.tokens.revoke("ci")
    with pytest.raises(ConfigurationError, match="a token of that name exists"):
        store.tokens.add("ci", "viewer", "hash2")
    with pytest.raises(ConfigurationError, match="no role 'root'"):
        store.tokens.add("x", "root", "hash3")
    with pytest.raises(UnknownName, match="no token named 'x'; known: ci"):
        store.tokens.revoke("x")
    assert [token.hash for token in store.tokens.list()] == ["hash1"]
