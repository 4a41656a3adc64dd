"""[wan.NAME] in standby.toml: what is read and refused, the tenant key, what the checks say."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from unittest import mock

import pytest

from standby.errors import ConfigurationError
from standby.server import wan_config
from standby.server.config import load_config
from standby.server.config_check import Level, check_paths
from standby.server.config_values import Config
from standby.server.fleet import needed_roles
from standby.server.masking import SECRETS
from standby.server.wan_config import KEY_FILE_NAME, WanConfig

BASE = """
[standby]
installation = "main-site"
[movers.a]
address = "192.0.2.1:9440"
[movers.b]
address = "192.0.2.2:9440"
[hosts.prod]
kind = "folder"
path = "/srv/vms"
mover = "a"
[hosts.dr]
kind = "folder"
path = "/srv/replicas"
mover = "b"
[repositories.main]
path = "/srv/repository"
mover = "a"
[jobs.nightly]
source = "prod"
target = "dr"
machines = ["web*"]
"""
JOB = 'wan = "main"\n'
PAIR = '[wan.main]\nsource = "a"\ntarget = "b"\n'


def load(folder: Path, text: str) -> Config:
    (folder / "standby.toml").write_text(text)
    return load_config(folder)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text)
    return str(caught.value).removeprefix(f"{folder / 'standby.toml'}: ")


def test_a_pair_has_every_default_filled_in(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + JOB + PAIR)
    assert config.wans == {"main": WanConfig("main", "a", "b", "", "direct", "cache")}
    assert config.job("nightly").wan == "main"
    assert "wan" in needed_roles(config, "b")


def test_every_key_of_a_pair_is_read(tmp_path: Path) -> None:
    more = 'key = "env:TENANT"\nif_away = "wait"\nmode = "cache"\n'
    config = load(tmp_path, BASE + JOB + PAIR + more)
    assert config.wans["main"] == WanConfig("main", "a", "b", "env:TENANT", "wait", "cache")


def test_a_job_without_a_pair_needs_none(tmp_path: Path) -> None:
    config = load(tmp_path, BASE)
    assert (config.job("nightly").wan, config.wans) == ("", {})
    assert "wan" not in needed_roles(config, "a")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (JOB, "[jobs.nightly] wan: there is no pair of WAN accelerators named 'main'"),
        ('wan = "mian"\n' + PAIR, "did you mean main?"),
        (JOB + PAIR.replace('"b"', '"c"'), "[wan.main] target: there is no mover named 'c'"),
        (JOB + PAIR.replace('"b"', '"a"'), "[wan.main] target: is the source, a"),
        (JOB + PAIR.replace("target", "taget"), "taget: unknown key. did you mean target?"),
        (JOB + PAIR + "tasks = 2\n", "[wan.main] tasks: unknown key"),
        (JOB + PAIR + 'mod = "cache"\n', "did you mean mode?"),
        (JOB + PAIR + 'mode = "chache"\n', "did you mean cache?"),
        (JOB + PAIR + 'if_away = "stop"\n', "one of direct, wait"),
        (JOB + PAIR + 'key = "0123456789"\n', "a secret must not stand in this file"),
    ],
)
def test_what_cannot_be_is_refused_with_place_and_hint(
    tmp_path: Path, text: str, wanted: str
) -> None:
    assert wanted in refusal(tmp_path, BASE + text)


def test_a_job_on_one_machine_has_no_use_for_a_pair(tmp_path: Path) -> None:
    text = refusal(tmp_path, BASE.replace('mover = "b"\n', "") + JOB + PAIR)
    assert "[jobs.nightly] wan: host dr names no mover" in text


def test_plain_movers_are_given_no_key(tmp_path: Path) -> None:
    plain = BASE.replace("192.0.2.1", "127.0.0.1").replace("192.0.2.2", "127.0.0.1")
    plain = plain.replace(':9440"', ':9440"\nplain = true')
    assert "[wan.main] source: mover a is plain" in refusal(tmp_path, plain + JOB + PAIR)


# --- the key ---------------------------------------------------------------------------------


def test_a_key_is_made_once_for_all_pairs_and_nobody_else_reads_it(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + JOB + PAIR + PAIR.replace("main", "other"))
    key = config.wan_key("main")
    assert len(bytes.fromhex(key)) == 32
    assert config.wan_key("main") == config.wan_key("other") == key
    (file,) = tmp_path.glob(f"*{KEY_FILE_NAME}*")
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in SECRETS.masked(f"told {key} to nobody")
    assert key not in repr(config)


def test_of_two_processes_that_make_a_key_one_counts(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + JOB + PAIR)
    other = load(tmp_path, BASE + JOB + PAIR)
    key = ""

    def beaten(path: Path) -> bool:
        """The other process makes it between the look and the file."""
        nonlocal key
        if not key:
            key = "?"
            key = other.wan_key("main")
        return False

    with mock.patch.object(wan_config, "is_there", beaten):
        assert config.wan_key("main") == key
    assert [path.name for path in tmp_path.glob("*key*")] == [KEY_FILE_NAME]


def test_a_key_comes_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tenant.key").write_text("AB" * 32 + "\n")
    config = load(tmp_path, BASE + JOB + PAIR + 'key = "file:tenant.key"\n')
    assert config.wan_key("main") == "ab" * 32
    monkeypatch.setenv("TENANT", "cd" * 32)
    config = load(tmp_path, BASE + JOB + PAIR + 'key = "env:TENANT"\n')
    assert config.wan_key("main") == "cd" * 32
    assert list(tmp_path.glob(f"*{KEY_FILE_NAME}*")) == []


@pytest.mark.parametrize("text", ["abcd", "xy" * 32, "ab" * 33, "not a key"])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "tenant.key").write_text(text)
    config = load(tmp_path, BASE + JOB + PAIR + 'key = "file:tenant.key"\n')
    with pytest.raises(ConfigurationError) as caught:
        config.wan_key("main")
    assert "[wan.main] key: file:tenant.key holds no key of 32 bytes" in str(caught.value)
    assert text not in str(caught.value)


# --- checks ----------------------------------------------------------------------------------


def findings(config: Config) -> list[tuple[Level, str, str]]:
    found = check_paths(config)
    return [(it.level, it.where, it.problem) for it in found if it.where.startswith("[wan")]


def test_check_names_pairs_that_no_job_uses(tmp_path: Path) -> None:
    assert findings(load(tmp_path, BASE + JOB + PAIR)) == []
    found = findings(load(tmp_path, BASE + PAIR))
    assert found == [(Level.WARNING, "[wan.main]", "no job uses this pair")]


def test_check_reads_the_key_that_is_named_and_makes_none(tmp_path: Path) -> None:
    (found,) = findings(load(tmp_path, BASE + JOB + PAIR + 'key = "file:missing.key"\n'))
    assert found[:2] == (Level.ERROR, "[wan.main] key")
    findings(load(tmp_path, BASE + JOB + PAIR))
    assert list(tmp_path.glob(f"*{KEY_FILE_NAME}*")) == []


def test_check_wants_one_key_for_servers_that_share_a_database(tmp_path: Path) -> None:
    text = BASE.replace(
        "[movers.a]", 'state_database = "postgresql://user@host/standby"\n[movers.a]'
    )
    (found,) = findings(load(tmp_path, text + JOB + PAIR))
    assert found[:2] == (Level.WARNING, "[wan.main] key")
