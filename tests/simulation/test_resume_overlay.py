"""RULES 8's test: write, kill mid-transfer, revert the write, resume, compare every byte.

The transfer is killed at every change it makes to a file, in the middle of writes, and with the
power going; then the source has other content (the old one again, or newer), and a source proxy
that trusts nothing but what the target says it holds sends what differs. What the target holds
afterwards is the source's disk, byte for byte, or the target lied about what it held.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import partials
from crashing import crashing
from partials import LATER, noise, send_changes, spec_of
from standby.digesting import PAGE, PIECE
from standby.road.partial import PartialDisk
from standby.road.resuming import candidates
from standby.units import MiB

SIZE = PAGE + MiB + 512
PARTS = [(0, 2 * MiB), (2 * MiB, 3 * MiB), (PAGE - MiB, SIZE)]
"""What the transfer covers, one group commit each."""


def base_content() -> bytearray:
    content = bytearray(SIZE)
    content[: 3 * MiB] = noise(1, 3 * MiB, 0.5)
    content[PAGE:] = noise(2, SIZE - PAGE, 0.5)
    return content


def written(content: bytearray, seed: int) -> bytearray:
    """The guest writes: data over data, data over zeros, zeros over data, single pieces."""
    choice = random.Random(seed)
    changed = bytearray(content)
    for start, stop in PARTS:
        for _ in range(6):
            first = choice.randrange(start // PIECE, stop // PIECE)
            count = choice.randint(1, 40)
            begin, end = first * PIECE, min((first + count) * PIECE, stop)
            fill = bytes(end - begin) if choice.random() < 0.3 else choice.randbytes(end - begin)
            changed[begin:end] = fill
    changed[MiB : 2 * MiB] = bytes(MiB)
    changed[-512:] = choice.randbytes(512)
    return changed


def transfer(folder: Path, spec: partials.PartialSpec, content: bytearray) -> None:
    """One session's transfer, cut off by the simulated kill."""
    partial = PartialDisk.open(folder, spec)
    for start, stop in PARTS:
        send_changes(partial, content, start=start, stop=stop)
        partial.mark(stop)
        partial.group_commit()
        assert partial.read_back(threads=1) == []
    partial.close()


def resumed(folder: Path, spec: partials.PartialSpec, content: bytearray) -> bytes:
    """The next session: everything is planned again; the file's bytes when it is sealed."""
    partial = PartialDisk.open(folder, spec)
    send_changes(partial, content, start=partial.resume_mark // PIECE * PIECE)
    partial.group_commit()
    assert partial.read_back(threads=1) == []
    root = partial.root()
    sealed = partial.seal()
    assert sealed.root == root
    return partials.content_of(sealed.partial_path, *spec.parent_chain)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    """The newest restore point: content and sealed file."""
    content = base_content()
    partial = PartialDisk.open(tmp_path_factory.mktemp("base"), spec_of(SIZE))
    send_changes(partial, content)
    return content, partial.seal()


@pytest.mark.parametrize("has_parent", [True, False])
@pytest.mark.parametrize("manner", ["whole", "torn", "power"])
def test_a_kill_at_any_change_then_reverted_content(
    base, manner: str, has_parent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, point = base
    parent = (point,) if has_parent else ()
    now = written(old, 3)
    first = spec_of(SIZE, point=LATER, parent=parent)
    again = spec_of(SIZE, point=LATER, parent=parent, checkpoint="checkpoint-2")
    (tmp_path / "count").mkdir()
    with crashing(monkeypatch) as crasher:
        transfer(tmp_path / "count", first, now)
    total = crasher.count
    step = {"whole": 7, "torn": 11, "power": 9}[manner]
    for number, at in enumerate(range(2, total + 1, step)):
        folder = tmp_path / "disk0"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with crashing(
            monkeypatch,
            at,
            torn=manner == "torn",
            power_seed=at if manner == "power" else None,
        ) as crasher:
            transfer(folder, first, now)
        assert crasher.is_dead
        # The write is reverted; or the same checkpoint goes on; or there are newer writes.
        case = number % 3
        wanted = (old, now, written(now, at))[case]
        if not has_parent and case == 0:
            wanted = bytearray(SIZE)
        found = resumed(folder, first if case == 1 else again, wanted)
        assert found == wanted, f"killed at change {at} of {total}, case {case}"


def test_kills_in_a_row_with_content_that_goes_back_and_forth(
    base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, point = base
    states = [written(old, seed) for seed in range(20, 24)]
    states.append(old)
    choice = random.Random(5)
    for turn in range(6):
        folder = tmp_path / f"disk{turn}"
        for session in range(4):
            spec = spec_of(
                SIZE, point=LATER, parent=(point,), checkpoint=f"checkpoint-{choice.randrange(3)}"
            )
            # One checkpoint is one content (RULES 8).
            wanted = states[int(spec.checkpoint_id[-1])]
            with crashing(
                monkeypatch,
                choice.randrange(2, 260),
                torn=choice.random() < 0.5,
                power_seed=100 * turn + session,
            ):
                transfer(folder, spec, wanted)
        last = spec_of(SIZE, point=LATER, parent=(point,), checkpoint="checkpoint-9")
        assert resumed(folder, last, old) == old, f"turn {turn}"


@pytest.mark.parametrize("point_name", ["extent log commit: disk flushed", "extent log commit"])
@pytest.mark.parametrize("time", [1, 2, 3])
def test_the_kill_points_of_a_group_commit(
    base, point_name: str, time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, point = base
    now = written(old, 31)
    spec = spec_of(SIZE, point=LATER, parent=(point,))
    with crashing(monkeypatch, kill_point=(point_name, time)) as crasher:
        transfer(tmp_path, spec, now)
    assert crasher.is_dead
    (left,) = candidates(tmp_path)
    logged = left.logged_bytes
    assert (logged > 0) == (time > 1 or point_name == "extent log commit")
    next_spec = spec_of(SIZE, point=LATER, parent=(point,), checkpoint="checkpoint-2")
    assert resumed(tmp_path, next_spec, old) == old


def test_a_take_over_after_any_kill_copies_only_what_is_right(
    base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, point = base
    now = written(old, 41)
    first = spec_of(SIZE, point=LATER, parent=(point,))
    for number, at in enumerate(range(12, 250, 37)):
        folder = tmp_path / f"disk{number}"
        with crashing(monkeypatch, at, torn=True, power_seed=at):
            transfer(folder, first, now)
        second = spec_of(SIZE, point=LATER, generation=2, parent=(point,))
        with crashing(monkeypatch, 5 + number * 17, power_seed=number):
            transfer(folder, second, now)
        third = spec_of(
            SIZE,
            point=LATER,
            generation=3,
            parent=(point,),
            checkpoint=f"checkpoint-{1 + number % 2}",
        )
        wanted = old if number % 2 else now
        assert resumed(folder, third, wanted) == wanted
        assert {item.generation for item in candidates(folder)} == {3}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("commit", [1, 2])
def test_a_process_that_is_really_killed(base, commit: int, tmp_path: Path) -> None:
    old, point = base
    now = written(old, 51)
    (tmp_path / "now").write_bytes(now)
    folder = tmp_path / "disk0"
    folder.mkdir()
    child = subprocess.run(
        [sys.executable, __file__, str(folder), str(tmp_path / "now"), str(point.partial_path),
         str(point.digests_path), point.root.hex()],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "STANDBY_KILL_POINT": f"extent log commit: disk flushed:{commit}",
        },
        check=False,
    )  # fmt: skip
    assert child.returncode == -9
    spec = spec_of(SIZE, point=LATER, parent=(point,), checkpoint="checkpoint-2")
    assert resumed(folder, spec, old) == old


def main(folder: str, content: str, parent: str, digests: str, root: str) -> None:
    """The process that is killed."""
    spec = partials.PartialSpec(
        "disk0",
        LATER,
        1,
        "checkpoint-1",
        SIZE,
        parent_chain=(Path(parent),),
        digests=(Path(digests),),
        parent_root=bytes.fromhex(root),
    )
    transfer(Path(folder), spec, bytearray(Path(content).read_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
