"""`standby support bundle`: everything is in it, but no secret."""

from __future__ import annotations

import json
import os
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run
from simulation.several import SeveralSite
from simulation.site import Site
from standby.errors import LinkError
from standby.server.config import MoverConfig
from standby.server.server import BackupServer
from standby.server.support import masked_configuration, write_bundle
from standby.wire.link import Link

SECRETS = {
    "HOOK_TOKEN": "tok-planted-in-environment",
    "HOOK_URL": "https://hooks.example.org/planted-in-url?key=planted-in-query",
}
MORE = """
[webhooks.ops]
url = "env:HOOK_URL"
headers = { Authorization = "env:HOOK_TOKEN", X-Key = "file:key.txt" }
[webhooks.chat]  # the old password was planted-in-comment
url = "https://chat.example.org/planted-in-path"
"""


def contents(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        return {name: bundle.read(name).decode() for name in bundle.namelist()}


@pytest.fixture
def planted(replicated: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with two sessions, and secrets wherever they might be."""
    site = replicated
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (site.folder / "key.txt").write_text("planted-in-file\n")
    with site.config.open("a") as config:
        config.write(MORE)
    log = "it said tok-planted-in-environment; password=planted-in-log Bearer planted-in-bearer\n"
    (site.folder / "standby-server.log").write_text(log)
    (site.folder / "standby-server.log.1").write_text("older: planted-in-file\n")
    with site.server() as server:
        server.store.raise_alarm("webhook", "", "ops", f"{SECRETS['HOOK_URL']} is gone")
    return site


def test_all_parts_are_there_and_no_secret_in_any(planted: Site, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "case.zip"
    ended = run("support", "bundle", "--config", planted.config, "--output", output, "--json")
    assert ended.json == {"file": str(output), "problems": {}}
    parts = contents(output)
    assert set(parts) == {
        "about.json", "configuration.json", "status.json", "jobs.json", "findings.json",
        "sessions.json", "queue.json", "requests.json", "alarms.json", "checkpoints.json",
        "known_replicas.json", "replicas.json", "webhooks.json", "movers.json", "problems.json",
        "logs/standby-server.log", "logs/standby-server.log.1",
    }  # fmt: skip
    for name, text in parts.items():
        assert "planted" not in text, name
    assert len(json.loads(parts["sessions.json"])) == 2
    assert json.loads(parts["replicas.json"])["replicas"]
    assert json.loads(parts["about.json"])["packages"]["msgspec"]
    assert "*** is gone" in parts["alarms.json"]
    assert "it said ***; password=***" in parts["logs/standby-server.log"]
    if sys.platform != "win32":
        assert output.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_not_replaced(planted: Site, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "case.zip"
    output.write_text("mine")
    ended = run("support", "bundle", "--config", planted.config, "--output", output, expect=10)
    assert "is there already" in ended.err
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("standby.toml", "[standby]\ninstallation = 3\n[x]\npassword='planted'", "server"),
        ("standby.toml", "not = toml = planted", "configuration"),
        ("standby-state.sqlite", "no database at all, but long enough to be looked at", "server"),
    ],
)
def test_what_is_broken_is_named_and_the_rest_is_there(
    planted: Site, run: Run, tmp_path: Path, name: str, text: str, part: str
) -> None:
    for path in planted.folder.glob(f"{name}*"):
        path.unlink()
    (planted.folder / name).write_text(text)
    output = tmp_path / "case.zip"
    ended = run("support", "bundle", "--config", planted.config, "--output", output, expect=3)
    assert f"warning: {part}: " in ended.err
    parts = contents(output)
    assert part in json.loads(parts["problems.json"])
    assert {"about.json", "logs/standby-server.log"} <= set(parts)
    assert "planted" not in "".join(parts[found] for found in parts if found.endswith(".json"))


def test_the_configuration_keeps_what_is_no_secret() -> None:
    text = """
    [standby]
    installation = "main"
    state_database = "postgresql://me:planted@db.example/standby?password=planted"
    [hosts.hv]
    credentials = { username = "planted", password = "env:PLANTED" }
    [server]
    api_token = "planted"
    listen = "127.0.0.1:9443"
    [jobs.nightly]
    machines = ["web*"]
    restore_points = 7
    """
    found: Any = masked_configuration(text)
    assert "planted" not in str(found).lower()
    assert found["standby"]["state_database"] == "postgresql://db.example/***"
    assert found["hosts"]["hv"]["credentials"] == {"username": "***", "password": "***"}
    assert found["server"] == {"api_token": "***", "listen": "127.0.0.1:9443"}
    assert found["jobs"]["nightly"] == {"machines": ["web*"], "restore_points": 7}


def test_the_default_name_is_here_and_tells_the_time(
    site: Site, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("support", "bundle", "--config", site.config)
    (path,) = tmp_path.glob("standby-support-*Z.zip")
    assert ended.out == f"wrote {os.fspath(path.name)}\n"


def test_movers_that_cannot_be_reached_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.server.support.MOVER_TIMEOUT_S", 2.0)
    monkeypatch.setattr("standby.server.support.CLOSE_S", 0.1)
    site, ended = SeveralSite(tmp_path / "site"), threading.Event()

    def link(mover: MoverConfig) -> Link:
        if mover.name in ("hv1", "dr1"):  # packets go nowhere
            ended.wait(120)
            raise LinkError(mover.name, "no route to host")
        return site.link(mover)

    def server(config: Path) -> BackupServer:
        return BackupServer(config, clock=site.clock, make_link=link)

    try:
        path, problems = write_bundle(site.config, tmp_path / "case.zip", open_server=server)
        assert not ended.is_set()
    finally:
        ended.set()
        site.close()
    assert set(problems) == {"movers/dr1", "movers/hv1"}
    parts = contents(path)
    assert json.loads(parts["problems.json"]) == problems
    movers = json.loads(parts["movers.json"])
    assert (movers["px1"], movers["hv1"]) == ("answers", "no answer within 2 s")
    assert {"findings.json", "replicas.json", "sessions.json"} <= set(parts)


def test_a_part_that_never_ends_is_left_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("standby.server.support.DEADLINE_S", 2.0)
    monkeypatch.setattr(BackupServer, "check", lambda self, **asked: ended.wait(120))
    try:
        path, problems = write_bundle(site.config, tmp_path / "case.zip")
    finally:
        ended.set()
    assert "not collected within" in problems["findings"]
    assert {"about.json", "status.json", "problems.json"} <= set(contents(path))


def test_a_bundle_without_a_configuration_says_so_in_words(tmp_path: Path) -> None:
    _, problems = write_bundle(tmp_path / "standby.toml", tmp_path / "case.zip")
    assert problems["configuration"] == f"{tmp_path / 'standby.toml'}: No such file or directory"
    assert "Error" not in str(problems)
