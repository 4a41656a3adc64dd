"""What a mover says of a folder that it may have to write to: nothing above its root is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.clock import SYSTEM_CLOCK
from standby.road import probing
from standby.road.places import RootPlaces
from standby.road.probing import ProbeVerbs, looked_at
from standby.wire.link import Link


def verbs(root: Path) -> ProbeVerbs:
    def connect(address: str, name: str, role: str, own: str, timeout_s: float) -> Link:
        raise AssertionError

    return ProbeVerbs(connect, RootPlaces({"data": root}), SYSTEM_CLOCK)


def test_nothing_is_written_above_a_missing_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    original = probing.tempfile.TemporaryFile

    def noted(dir: Path) -> object:
        written.append(dir)
        return original(dir=dir)

    monkeypatch.setattr(probing.tempfile, "TemporaryFile", noted)
    root = tmp_path / "root"
    for place in ("data:", "data:a/b"):
        told = verbs(root).call("probe_place", {"path": place, "writes": True})
        assert str(root) in told["problem"]
        assert told["free_bytes"] == 0
    assert written == []
    root.mkdir()
    for place in ("data:", "data:a/b"):
        told = verbs(root).call("probe_place", {"path": place, "writes": True})
        assert told["problem"] == ""
    assert written == [root, root]


def test_a_folder_of_this_machine_is_made_below_the_nearest_one_that_is_there(
    tmp_path: Path,
) -> None:
    assert looked_at(tmp_path / "a" / "b", writes=True)["problem"] == ""
    assert looked_at(tmp_path / "a" / "b", writes=False)["problem"] == "there is no such folder"
