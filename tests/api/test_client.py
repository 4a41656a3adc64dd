"""`--server`: the command line by the API says what it says by itself."""

from __future__ import annotations

import re

import pytest

from api.conftest import ServedSite
from cli.conftest import Ended, Run
from simulation.site import Site
from standby.client import RemoteServer
from standby.errors import LinkError
from standby.host.folder import new_machine
from standby.model.report import SessionReport
from standby.units import MiB

SAME = [
    ("job", "list"),
    ("job", "list", "--json"),
    ("job", "plan", "job"),
    ("job", "plan", "job", "--scan"),
    ("job", "start", "job", "--dry-run", "--machine", "vm1"),
    ("job", "start", "job", "--dry-run", "--machine", "vm9"),
    ("job", "sessions"),
    ("job", "sessions", "job", "--limit", "1", "--json"),
    ("job", "sessions", "nightly"),
    ("job", "report"),
    ("job", "report", "--json"),
    ("job", "report", "20200101T000000Z-0000"),
    ("job", "next", "job"),
    ("job", "next", "nightly"),
    ("job", "alarms", "--json"),
    ("job", "acknowledge", "job", "--json"),
    ("job", "acknowledge", "nightly", "--json"),
    ("job", "pause", "job", "--json"),
    ("job", "stop", "job"),
    ("server", "status"),
    ("server", "status", "--json"),
    ("replica", "list"),
    ("replica", "show", "vm1"),
    ("replica", "show", "vm2_replica", "--json"),
    ("replica", "verify", "vm1_replica", "--json"),
    ("replica", "verify", "vm1_replica", "--point", "20200101T000000Z-0000"),
    ("replica", "failover", "vm1_replica", "--dry-run"),
    ("replica", "undo-failover", "vm1_replica", "--dry-run"),
    ("replica", "undo-failover", "vm1_replica", "--yes", "--json"),
    ("replica", "permanent-failover", "vm1_replica", "--yes"),
    ("replica", "power", "on", "vm1_replica"),
]


@pytest.fixture
def remote(run: Run, replicated: ServedSite, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line by the API, as admin."""

    def runs(*arguments: object, expect: int | None = 0) -> Ended:
        with monkeypatch.context() as patch:
            patch.setenv("STANDBY_TOKEN", replicated.tokens["admin"])
            return run(*arguments, "--server", replicated.api.address, expect=expect)

    return runs


def plain(text: str) -> str:
    """Without what changes from one second to the next, and how commands in it were asked."""
    text = re.sub(r" --(config|server) [^ `\n]+", "", text)
    return re.sub(r'(free at the target: |"free_bytes": |"newest_age_s": ).*', r"\1", text)


def test_every_command_says_the_same_by_the_api(
    run: Run, remote: Run, replicated: ServedSite, with_thread_movers: None
) -> None:
    replicated.server.store.raise_alarm("rpo", "other", "vm1", "too old")
    for arguments in SAME:
        here = run(*arguments, "--config", replicated.site.config, expect=None)
        there = remote(*arguments, expect=None)
        assert there.code == here.code, (arguments, there.err)
        assert plain(there.out) == plain(here.out), arguments
        assert plain(there.err) == plain(here.err), arguments


def test_the_status_of_an_active_server_is_the_same_by_the_api(
    run: Run, remote: Run, replicated: ServedSite
) -> None:
    with replicated.looped() as loop:
        here = run("server", "status", "--config", replicated.site.config)
        assert here.out.startswith(f"active: {loop.id}\n")
        assert remote("server", "status").out == here.out
        there = remote("server", "status", "--json").json
        assert there["active"]["server"] == loop.id


def test_a_session_that_the_command_line_runs_by_itself_is_running_by_the_api_too(
    run: Run, remote: Run, replicated: ServedSite
) -> None:
    store = replicated.server.store
    store.begin_session(SessionReport("29990101T000000Z-cafe", "job", "2999-01-01T00:00:00+00:00"))
    lock = store.job_lock("job")
    assert lock.acquire()
    for state in ("running", "unfinished"):
        for arguments in (("job", "sessions"), ("job", "report")):
            here = run(*arguments, "--config", replicated.site.config)
            assert state in here.out
            assert remote(*arguments).out == here.out
        lock.release()


def test_start_waits_for_the_session_and_shows_its_report(
    remote: Run, replicated: ServedSite
) -> None:
    replicated.site.write(2 * MiB, 64 * 1024)
    with replicated.looped():
        started = remote("job", "start", "job")
        assert "vm1: done, restore point " in started.out
        assert remote("job", "report").out == started.out
        new_machine(replicated.site.folder / "source", "vm2", disks={"scsi:0:0": 4 * MiB})
        done = remote("job", "start", "job", "--machine", "vm2", "--json").json
        assert [item["machine"] for item in done["machines"]] == ["vm2"]
        assert "known: vm1, vm2" in remote("job", "start", "job", "--machine", "x", expect=10).err


def test_start_of_a_machine_that_fails_ends_as_without_a_server(
    remote: Run, replicated: ServedSite
) -> None:
    replicated.site.disk().write_bytes(b"\0" * MiB)
    with replicated.looped():
        ended = remote("job", "start", "job", expect=16)
    assert "vm1: failed" in ended.out
    assert "the server tries it again at " in ended.err


def test_start_without_an_active_server_is_refused_and_queue_leaves_it(
    remote: Run, replicated: ServedSite
) -> None:
    assert "--queue" in remote("job", "start", "job", expect=16).err
    queued = remote("job", "start", "job", "--queue", "--json").json
    assert queued["state"] == "queued"
    assert "queued" in {item["state"] for item in replicated.get("/queue")["sessions"]}


def test_failover_and_undo_by_the_api(remote: Run, replicated: ServedSite) -> None:
    failed_over = remote("replica", "failover", "vm1_replica", "--yes")
    assert "vm1_replica: failed over to " in failed_over.out
    assert "failover" in remote("replica", "list").out
    assert "ready again" in remote("replica", "undo-failover", "vm1_replica", "--yes").out


def test_damage_is_found_and_healed_by_the_api(remote: Run, replicated: ServedSite) -> None:
    damage(replicated.site)
    assert "is damaged" in remote("replica", "verify", "vm1_replica", expect=13).err
    healed = remote("replica", "verify", "vm1_replica", "--repair", "--json").json
    assert healed["is_ok"]
    assert healed["repairs"]


def damage(site: Site) -> None:
    """Flip bits where the first disk's data lies, keeping size and structure."""
    path = site.folder / "target" / "vm1_replica" / "disk0" / "base.vhdx"
    content = bytearray(path.read_bytes())
    place = len(content) - (1 << 20) - 4096
    content[place : place + 64] = bytes(byte ^ 0xFF for byte in content[place : place + 64])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("url", "token", "code", "word"),
    [
        ("http://127.0.0.1:1", "x", 15, "refused"),
        ("http://backup.example:9443", "x", 10, "clear"),
        ("ftp://127.0.0.1", "x", 10, "URL"),
        ("http://127.0.0.1:99999", "x", 10, "Port"),
        ("", "standby-wrong", 15, "wrong"),
        ("", "", 10, "STANDBY_TOKEN"),
        ("", "file:nowhere", 10, "nowhere"),
        ("", "a\nb", 10, "character"),
    ],
)
def test_what_cannot_be_asked_is_said(
    run: Run,
    served: ServedSite,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    token: str,
    code: int,
    word: str,
) -> None:
    monkeypatch.setenv("STANDBY_SERVER", url or served.api.address)
    if token:
        monkeypatch.setenv("STANDBY_TOKEN", token)
    ended = run("job", "list", expect=code)
    assert word in ended.err
    assert not token or token == "x" or token not in ended.err or token.startswith("file:")


def test_a_server_that_ends_while_its_session_is_waited_for(
    remote: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = RemoteServer._exchanged

    def exchanged(self: RemoteServer, method: str, path: str, body: object) -> tuple[int, bytes]:
        if path.startswith("/api/v1/sessions/"):
            raise LinkError(self.url, "Remote end closed connection without response")
        if path == "/healthz":
            return 200, b'{"lease": "held"}'
        return asked(self, method, path, body)

    monkeypatch.setattr(RemoteServer, "_exchanged", exchanged)
    ended = remote("job", "start", "job", expect=15)
    text = " ".join(ended.err.split())
    assert "Remote end closed connection" in text
    assert "when the server is back" in text
    assert re.search(r"`standby job sessions --server http\S+`", text)
