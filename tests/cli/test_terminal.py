"""What happens on a terminal only: progress on stderr, questions, tables that fit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clocks import HeldClock
from standby.cli.output import (
    CELL_MAX,
    PROGRESS_LINE_S,
    WORD_MAX,
    progress_bars,
    shortened_words,
    table_lines,
)
from standby.disk import vhdx
from standby.units import MiB

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def on_terminal(*arguments: object, answer: str = "") -> tuple[int, str, str]:
    """Exit code, stdout (a pipe) and what the terminal showed: stdin and stderr are one."""
    import pty

    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            shown.extend(part)

    process = subprocess.Popen(
        [sys.executable, "-m", "standby", *map(str, arguments)],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    if answer:
        os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=60)
    reader.join()
    os.close(ours)
    return process.returncode, out, shown.decode()


def test_progress_is_shown_on_stderr_and_the_result_on_stdout(tmp_path: Path) -> None:
    disk = vhdx.create(tmp_path / "disk.vhdx", 64 * MiB)
    disk.write(0, b"x" * (8 * MiB))
    disk.close()
    code, out, shown = on_terminal(
        "disk", "convert", "--format", "raw", tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    )
    assert code == 0
    assert out == f"{tmp_path / 'disk.raw'}: 64.0 MiB virtual, 8.0 MiB written\n"
    assert "convert" in shown
    assert "64.0 MiB" in shown


def test_a_question_shows_the_plan_and_takes_no_for_an_answer(target: Path) -> None:
    words = ("replica", "failover", "vm1", "--target", target)
    code, out, shown = on_terminal(*words, answer="n")
    assert code == 130
    assert out == ""
    assert "vm1_replica: ready becomes failover" in shown
    assert "Fail over vm1_replica to " in shown
    assert "[y/N]" in shown
    code, out, _ = on_terminal(*words, answer="y")
    assert code == 0
    assert "failed over to" in out


def test_a_table_wraps_words_and_never_an_id() -> None:
    point = "20261122T220000Z-9c1d"
    rows = [(point, "7", "the host's change tracker says what may have changed")]
    wide = table_lines(("point", ">count", "~why"), rows, 0)
    assert len(wide) == 2
    narrow = table_lines(("point", ">count", "~why"), rows, 60)
    assert max(map(len, narrow)) <= 60
    assert len(narrow) == 3
    assert narrow[1].startswith(point)
    tiny = table_lines(("point", ">count", "~why"), rows, 20)
    assert any(line.startswith(point) for line in tiny)


def test_names_beyond_reading_are_shortened_in_tables_and_messages() -> None:
    name = "a" * 2500 + "z" * 2500
    _, row = table_lines(("name", "~problem"), [(name, f"{name} is gone")], 0)
    shown, problem = row.split("  ")
    assert len(shown) == CELL_MAX
    assert shown.startswith("aaa")
    assert "…" in shown
    assert shown.endswith("zzz")
    assert len(problem) == WORD_MAX + len(" is gone")
    fitting = "x" * WORD_MAX
    assert shortened_words(f"VM {fitting} of host h") == f"VM {fitting} of host h"
    assert len(shortened_words(f"VM {name} of host h")) == WORD_MAX + len("VM  of host h")


def test_a_long_name_in_an_error_is_shortened_for_people_and_whole_in_json(run, site) -> None:
    name = "n" * 5000
    ended = run("job", "plan", name, "--config", site.config, "--json", expect=None)
    assert ended.code >= 10
    assert name not in ended.err
    assert "…" in ended.err
    assert name in ended.out
    refused = run("token", "add", "x", "--role", name, expect=2).err
    assert "…" in refused
    assert name not in refused


def test_without_a_terminal_long_work_writes_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = HeldClock()
    with progress_bars(True, clock) as update:
        for step in range(7):
            update("vm1 scsi:0:0", step * MiB, 8 * MiB)
            update("vm1 scsi:0:1", 0, 0)
            clock.elapsed += PROGRESS_LINE_S / 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[:2] == [
        "vm1 scsi:0:0: 2.0 MiB of 8.0 MiB (25 %)",
        "vm1 scsi:0:1: 0 B of 0 B",
    ]
    assert len(shown.err.splitlines()) == 6
    with progress_bars(False, clock) as update:
        clock.elapsed += PROGRESS_LINE_S
        update("vm1 scsi:0:0", 1, 1)
    assert capsys.readouterr().err == ""
