"""What counts as a change in `crashing`: everything that the door to the file system changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crashing import crashing
from standby import files


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (lambda folder: files.write_durably(folder / "old", b"new"), ["make", "write", "rename"]),
        (lambda folder: files.rename_durably(folder / "old", folder / "new"), ["rename"]),
        (lambda folder: files.rename_to_new(folder / "old", folder / "new"), ["link", "unlink"]),
        (lambda folder: files.remove_durably(folder / "old"), ["unlink"]),
        (lambda folder: files.remove_large(folder / "old"), ["unlink"]),
        (lambda folder: files.make_folder_durably(folder / "new" / "deep"), ["make", "make"]),
    ],
)
def test_a_process_can_die_at_every_change_of_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    changes: list[str],
) -> None:
    def found() -> dict[str, bytes]:
        return {
            path.relative_to(tmp_path).as_posix(): path.read_bytes() if path.is_file() else b""
            for path in tmp_path.rglob("*")
        }

    (tmp_path / "old").write_bytes(b"old")
    before = found()
    with crashing(monkeypatch, 1) as crasher:
        change(tmp_path)
    assert crasher.is_dead
    assert found() == before
    with crashing(monkeypatch) as crasher:
        change(tmp_path)
    assert crasher.count == len(changes)
    assert found() != before
