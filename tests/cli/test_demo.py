"""`standby demo`, whole, and cut off in the middle."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from cli.processes import children, started, wait_until
from standby.cli import demo_run
from standby.cli.demo_disks import library_files
from standby.units import MiB


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, with_thread_movers: None) -> None:
    """A tenth of the files."""
    monkeypatch.setattr(demo_run, "library_files", lambda: library_files(2 * MiB))


def test_the_demo_ends_with_a_table_and_leaves_nothing(
    run, small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = run("demo").out
    for words in ("read back 3 points", "failed over to", "undid the failover", "verified"):
        assert words in text
    rows = re.findall(r"^(full|incremental \d)  +(\S+)  (.*)$", text, re.M)
    assert [row[0] for row in rows] == ["full", "incremental 1", "incremental 2"]
    assert text.rstrip().endswith("since.")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_as_json_can_be_kept_and_looked_at(run, small, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    ended = run("demo", "--json", "--keep", "--folder", folder)
    document = ended.json
    assert set(document) == {"sessions", "steps", "kept"}
    assert document["kept"] == str(folder)
    full, first, second = document["sessions"]
    assert set(full) == {"session", "point", "read", "sent", "written", "seconds"}
    assert first["sent"] < full["sent"] / 2
    assert second["sent"] < full["sent"] / 2
    assert first["written"] <= first["sent"] <= first["written"] * 1.1
    assert ended.err.splitlines() == document["steps"]
    shown = run("replica", "list", "--target", folder / "recovery", "--json").json
    assert [item["id"] for item in shown["replicas"][0]["points"]] == [
        item["point"] for item in document["sessions"]
    ]


def test_the_demo_takes_no_folder_that_holds_something(run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    assert "not an empty folder" in run("demo", "--folder", tmp_path, expect=2).err
    assert (tmp_path / "mine").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "made VM"), (signal.SIGTERM, "full: ")]
)
def test_the_demo_cut_off_leaves_no_file_and_no_process(
    tmp_path: Path, number: int, moment: str
) -> None:
    """In the first session, and after it."""
    with started("demo", TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1") as process:
        while not process.stdout.readline().startswith(moment):
            assert process.poll() is None
        wait_until(lambda: len(children(process.pid)) == 2, "two movers run")
        movers = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.split() == ["cancelled"]
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in movers)
