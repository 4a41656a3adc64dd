"""How commands fail: a sentence, a document, an exit code; never a question nobody can answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from standby import errors
from standby.cli import cli, output

ERROR_KEYS = {"class", "message", "fields", "retry", "exit_code"}


def test_an_error_is_a_sentence_on_stderr(run, site) -> None:
    ended = run("job", "plan", "nope", "--config", site.config, expect=10)
    assert ended.out == ""
    assert ended.err == "error: no job named 'nope'; known: job\n"


def test_a_disk_that_differs_as_a_whole_blames_no_block() -> None:
    told = errors.error_from_wire(errors.error_to_wire(errors.VerifyFailed("web", "disk0")))
    assert str(told) == (
        "replica web: disk disk0: it is not what the source sent, by its digest root. Check the "
        "target's storage; no restore point was made"
    )
    assert "the block at offset 0x1000 read back wrong twice" in str(
        errors.VerifyFailed("web", "disk0", 4096)
    )


def test_a_full_disk_says_where_how_much_and_what_next() -> None:
    told = str(errors.DiskFull("/dr/web_replica/disk0/base.vhdx", 4 << 20, 1 << 20))
    assert told == (
        "/dr/web_replica/disk0/base.vhdx: no space left: at least 4.0 MiB needed, 1.0 MiB free. "
        "Make room on that file system, then repeat: a job's session goes on from what was received"
    )
    assert "no space left: 0 B free. Make" in str(errors.DiskFull("/dr", 0, 0))
    quota = str(errors.DiskFull("/dr", 4096, 1 << 30))
    assert "1.0 GiB free but not for this user (a quota, or what is kept for root)" in quota


def test_an_error_is_a_document_where_json_was_asked_for(run, site) -> None:
    ended = run("job", "plan", "nope", "--config", site.config, "--json", expect=10)
    assert ended.json == {
        "error": {
            "class": "UnknownName",
            "message": "no job named 'nope'; known: job",
            "fields": {"kind": "job", "name": "nope", "known": ["job"]},
            "retry": "never",
            "exit_code": 10,
        }
    }
    assert ended.err.startswith("error: no job")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("job", "plan"), "Missing argument 'NAME'"),
        (("nope",), "No such command 'nope'"),
        (("job", "start", "nightly", "--nope"), "No such option"),
        (("disk", "info", "missing.vhdx"), "File 'missing.vhdx' does not exist"),
    ],
)
def test_usage_errors_end_with_2(run, arguments: tuple[str, ...], text: str) -> None:
    assert text in run(*arguments, expect=2).err
    document = run(*arguments, "--json", expect=2).json
    assert set(document["error"]) == ERROR_KEYS
    assert document["error"]["exit_code"] == 2


@pytest.mark.parametrize("name", ["job list", "replica list", "check"])
def test_a_missing_configuration_says_how_to_make_one(run, tmp_path: Path, name: str) -> None:
    ended = run(*name.split(), "--config", tmp_path / "standby.toml", expect=10)
    assert str(tmp_path / "standby.toml") in ended.err
    assert "no such file" in ended.err
    assert "standby init" in ended.err


def test_check_makes_nothing_where_the_file_is_wrong(run, tmp_path: Path) -> None:
    path = tmp_path / "standby.toml"
    path.write_text("[standby]\ninstallation = 1\n")
    run("check", "--config", path, expect=10)
    assert list(tmp_path.iterdir()) == [path]


def test_an_unexpected_error_is_a_traceback_and_1() -> None:
    program = "from standby.cli import cli, main\ncli.add_command(cli.commands['version'], 'x')\n"
    program += "cli.commands['x'].callback = lambda **_: 1 / 0\nmain(['x', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert '"class": "ZeroDivisionError"' in done.stdout


def families() -> list[type[errors.StandbyError]]:
    found: list[type[errors.StandbyError]] = []
    todo = list(errors.StandbyError.__subclasses__())
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo.extend(kind.__subclasses__())
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", families())
def test_every_error_ends_with_its_family(
    run, monkeypatch: pytest.MonkeyPatch, kind: type[errors.StandbyError]
) -> None:
    from dataclasses import fields

    values = {"int": 1, "int | None": 1, "float": 1.0, "str": "text", "tuple[str, ...]": ("a",)}
    values["bool"] = True
    error = kind(**{field.name: values[str(field.type)] for field in fields(kind)})

    @click.command()
    @output.json_option
    def failing(as_json: bool) -> None:
        raise error

    monkeypatch.setitem(cli.commands, "failing", failing)
    ended = run("failing", "--json", expect=error.exit_code)
    assert ended.json["error"]["class"] == kind.__name__
    assert ended.json["error"]["message"] == str(error)
    assert error.exit_code in (1, 10, 11, 12, 13, 14, 15, 16, 130)


@pytest.mark.parametrize(
    "arguments",
    [
        ("replica", "failover", "vm1_replica"),
        ("replica", "failover", "vm1_replica", "--json"),
    ],
)
def test_nobody_to_ask_is_a_usage_error(run, target: Path, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments, "--target", target, expect=2)
    assert "--yes" in ended.err
    assert "--dry-run" in ended.err
    assert "ready" in run("replica", "list", "--target", target).out
