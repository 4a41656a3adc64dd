"""Ctrl-C in the middle of what takes long: one line says what is left, and how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from simulation.site import Site
from standby.disk import vhdx
from standby.units import MiB


def interrupted(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("verb", "where", "left"),
    [
        ("job start job", "server.server.BackupServer.start", "what was transferred is kept; the"),
        ("job plan job --scan", "server.server.BackupServer.plan", "nothing was changed"),
        ("job stop job", "server.server.BackupServer.stop", "the session was asked to end"),
        ("replica verify vm1", "road.replica_work.ReplicaWork.verify", "nothing was changed, and"),
        (
            "replica verify vm1 --repair",
            "road.replica_work.ReplicaWork.verify",
            "pieces that were written anew stay so",
        ),
        (
            "replica failover vm1 --yes",
            "road.replica_work.ReplicaWork.failover",
            "`standby replica show vm1 --config",
        ),
    ],
)
def test_a_command_that_is_cancelled_says_what_is_left(
    run, replicated: Site, monkeypatch: pytest.MonkeyPatch, verb: str, where: str, left: str
) -> None:
    monkeypatch.setattr(f"standby.{where}", interrupted)
    arguments = (*verb.split(), "--config", replicated.config)
    ended = run(*arguments, expect=130)
    line = ended.err.splitlines()[-1]  # the one before ends the terminal's ^C
    assert line.startswith(f"cancelled: {left}")
    error = run(*arguments, "--json", expect=130).json["error"]
    assert (error["class"], error["message"]) == ("Cancelled", line)


def test_a_disk_verb_that_is_cancelled_says_what_is_left(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    vhdx.create(base, 8 * MiB).close()
    vhdx.create_child(child, base).close()
    for name in ("compare.compare_disks", "convert.convert", "merge.merge_file"):
        monkeypatch.setattr(f"standby.disk.{name}", interrupted)
    for verb, left in (
        (("compare", base, child), "nothing was changed"),
        (("convert", base, tmp_path / "new.raw", "--format", "raw"), "new.raw was not made"),
        (("merge", child, "--yes"), "repeat the command to end the merge"),
    ):
        ended = run("disk", *verb, expect=130)
        assert left in ended.err.splitlines()[-1]
        assert ended.err.splitlines()[-1].startswith("cancelled: ")
