"""What the server logs: one line per event, its fields, and never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from standby.clock import Clock
from standby.server import logs
from standby.server.logs import Log
from standby.server.masking import Secrets


class HeldClock(Clock):
    def now(self) -> datetime:
        return datetime(2026, 7, 1, 12, 0, 0, 250000, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    logs.close()
    root = logging.getLogger("standby")
    root.propagate = True
    root.setLevel(logging.NOTSET)


def written(form: str, secrets: Secrets | None = None, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(
        form=form, level=level, stream=stream, clock=HeldClock(), secrets=secrets or Secrets()
    )
    return stream


def test_a_json_line_has_its_fields_and_no_empty_ones() -> None:
    stream = written("json")
    Log().info("begins", job="nightly", session="s1", machine="", task="t", mover="px1")
    assert json.loads(stream.getvalue()) == {
        "time": "2026-07-01T12:00:00.250+00:00",
        "level": "info",
        "message": "begins",
        "logger": "standby",
        "job": "nightly",
        "session": "s1",
        "task": "t",
        "mover": "px1",
    }


def test_a_text_line_is_one_line_whatever_a_vm_is_called() -> None:
    stream = written("text")
    Log().warning("it failed\n2026 info: forged", machine="web\r\n01")
    first, *rest = stream.getvalue().rstrip("\n").split("\n")
    assert first == "2026-07-01T12:00:00.250+00:00 warning machine=web\\r"
    assert all(line.startswith("    ") for line in rest)


def test_lines_below_the_level_are_left_out_and_errors_have_their_traceback() -> None:
    stream = written("json", level="warning")
    Log().info("nothing")
    try:
        raise ValueError("wrong")
    except ValueError as exc:
        Log().error("it failed", error=exc)
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: wrong" in json.loads(line)["message"]


def test_what_libraries_say_comes_out_in_the_same_form() -> None:
    stream = written("json")
    logging.getLogger("standby.library").warning("%s of %d", "one", 2)
    assert json.loads(stream.getvalue())["message"] == "one of 2"


@pytest.mark.parametrize("form", ["json", "text"])
def test_known_secrets_are_masked_in_messages_fields_and_tracebacks(form: str) -> None:
    secrets = Secrets()
    secrets.add('pa"ss\nword-two')
    secrets.add("x")  # too short to be one
    stream = written(form, secrets)
    Log().info('with pa"ss inside', machine="word-two")
    try:
        raise ValueError('pa"ss\nword-two')
    except ValueError as exc:
        Log().error("it failed: x", error=exc)
    text = stream.getvalue()
    assert "ss inside" not in text.replace("*** inside", "")
    assert "word-two" not in text
    assert 'pa"ss' not in text
    assert 'pa\\"ss' not in text
    assert "it failed: x" in text
    if form == "json":
        for line in text.splitlines():
            json.loads(line)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer ***"),
        ("password=hunter2 user=me", "password=*** user=me"),
        ('{"api_key": "abc123"}', '{"api_key": "***"}'),
        ("postgresql://me:hunter2@db/standby", "postgresql://me:***@db/standby"),
        ("the token was refused", "the token was refused"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert Secrets().masked(text) == masked


def test_the_file_is_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_SIZE_MAX", 1000)
    file = tmp_path / "logs" / "standby.log"
    logs.configure(stream=io.StringIO(), file=file, clock=HeldClock(), secrets=Secrets())
    for number in range(500):
        Log().info(f"line {number}")
    found = logs.log_files(file)
    assert len(found) == logs.FILES_KEPT
    assert sum(path.stat().st_size for path in found) <= 1000 * logs.FILES_KEPT
    assert "line 499" in file.read_text()
    assert len(list(file.parent.iterdir())) == logs.FILES_KEPT
