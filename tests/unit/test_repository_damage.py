"""The repository against kills, other processes, damage, and files that are not its own."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from standby import digesting
from standby.errors import DiskFull, RepositoryBusy, RepositoryError
from standby.repository import Repository, database

SIZE = 4 << 30
PAGES = SIZE // digesting.PAGE

ACT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from standby.repository import Repository

def leaves(seed):
    return np.random.default_rng(seed).integers(1, 1 << 63, (1, 4096), dtype=np.uint64)

def act(repository):
    'p2 on top of p1 for both disks, then p1 is given up'
    if repository.points("web") != ["p2"]:
        if "p2" not in repository.points("web"):
            roots = {}
            for disk in ("d0", "d1"):
                staging = repository.stage("web", disk, "s", "p2", 4 << 30, True)
                first = staging.mark.offset
                for page in range(first, 150, 2):
                    staging.put([page], leaves(1000 + page))
                    if page % 20 == 0:
                        staging.set_mark("c", page)
                roots[disk] = staging.root()
            repository.commit("web", "p2", roots)
        repository.drop_points("web", {"p2"})
"""

KILLED = (
    ACT
    + """
left = int(sys.argv[2])
def strike():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
repository = Repository(Path(sys.argv[1]))
repository._database._connection.set_progress_handler(strike, 40)
act(repository)
"""
)

WRITER = (
    ACT
    + """
repository = Repository(Path(sys.argv[1]))
disk = sys.argv[2]
staging = repository.stage("web", disk, "s", "p1", 4 << 30, False)
for page in range(0, 256):
    staging.put([page], leaves(page))
print(staging.root().hex())
"""
)


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True
    )


def build(folder: Path) -> Repository:
    """Two disks with a point p1, every fifth page."""
    repository = Repository(folder)
    roots = {}
    for disk in ("d0", "d1"):
        staging = repository.stage("web", disk, "s", "p1", SIZE, False)
        numbers = range(0, PAGES, 5)
        staging.put(numbers, some_leaves(7, len(numbers)))
        roots[disk] = staging.root()
    repository.commit("web", "p1", roots)
    return repository


def some_leaves(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1 << 63, (count, 4096), dtype=np.uint64)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_at_any_moment_leaves_a_consistent_store_that_the_work_goes_on_in(
    tmp_path: Path,
) -> None:
    scope: dict[str, object] = {}
    exec(ACT, scope)
    strikes_in_all = 0

    def count() -> None:
        nonlocal strikes_in_all
        strikes_in_all += 1

    with build(tmp_path / "reference") as reference:
        reference._database._connection.set_progress_handler(count, 40)
        scope["act"](reference)  # type: ignore[operator]
        expected = {disk: state.root for disk, state in reference.states("web").items()}
    seen = set()
    for twelfth in range(12):
        strikes = 1 + strikes_in_all * twelfth // 12
        folder = tmp_path / str(twelfth)
        build(folder).close()
        process = child(KILLED, str(folder), str(strikes))
        process.communicate(timeout=60)
        with Repository(folder, create=False) as repository:
            assert repository.verify() == []
            states = repository.states("web")
            assert len({(s.point_id, s.sequence) for s in states.values()}) == 1, strikes
            seen.add((process.returncode, tuple(repository.points("web"))))
            scope["act"](repository)  # type: ignore[operator]
            assert {d: s.root for d, s in repository.states("web").items()} == expected
            assert repository.points("web") == ["p2"]
            assert repository.verify() == []
    assert seen == {(-signal.SIGKILL, ("p1",)), (-signal.SIGKILL, ("p1", "p2"))}


def test_movers_in_several_processes_stage_and_the_server_commits(tmp_path: Path) -> None:
    folder = tmp_path / "repository"  # made by whichever child comes first
    children = {disk: child(WRITER, str(folder), disk) for disk in ("d0", "d1", "d2")}
    roots = {}
    for disk, process in children.items():
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        roots[disk] = bytes.fromhex(output.strip())
    with Repository(folder, create=False) as repository:
        repository.commit("web", "p1", roots)
        assert set(repository.states("web")) == {"d0", "d1", "d2"}
        assert repository.verify() == []


def test_a_reader_sees_the_old_state_until_the_commit(tmp_path: Path) -> None:
    with build(tmp_path) as writer, Repository(tmp_path, create=False) as reader:
        staging = writer.stage("web", "d0", "s", "p2", SIZE, True)
        staging.put([1], some_leaves(1, 1))
        root = staging.root()
        with writer._database.writing():
            assert reader.points("web") == ["p1"]  # does not wait either
        writer.commit("web", "p2", {"d0": root})
        state = reader.state("web", "d0")
        assert state is not None
        assert state.root == root


def test_a_writer_that_waited_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0)
    with build(tmp_path) as first, Repository(tmp_path) as second:
        with first._database.writing():
            with pytest.raises(RepositoryBusy, match="another process has been writing"):
                second.discard("web")
        second.discard("web")


def test_a_full_disk_is_said_and_leaves_the_state(tmp_path: Path) -> None:
    with build(tmp_path) as repository:
        connection = repository._database._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        staging = repository.stage("web", "d0", "s", "p2", SIZE, True)
        with pytest.raises(DiskFull, match="no space left"):
            staging.put(range(PAGES), some_leaves(1, PAGES))
        assert repository.points("web") == ["p1"]
        assert repository.verify() == []


# --- damage ----------------------------------------------------------------------------------


def database_file(folder: Path) -> Path:
    return folder / "repository.sqlite"


def test_a_flipped_bit_in_leaves_is_named_with_its_page(tmp_path: Path) -> None:
    with build(tmp_path) as repository:
        stored = repository.leaves("web", "d0", [10]).tobytes()
    path = database_file(tmp_path)
    data = bytearray(path.read_bytes())
    place = data.find(stored[1024:2048])
    data[place] ^= 1
    path.write_bytes(data)
    with Repository(tmp_path) as repository:
        repository.index("web", "d0")
        repository.leaves("web", "d0", [5, 15])
        with pytest.raises(
            RepositoryError,
            match=r"disk d0: digest page 10 \(disk offset 0xa000000\) is damaged: "
            r"its leaves do not match.*can be rebuilt: move the folder away",
        ):
            repository.leaves("web", "d0", [5, 10])
        assert repository.verify() == [
            "replica web, disk d0: page 10 of state 1: its leaves are missing or do not match"
            " their node"
        ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE pages SET node = randomblob(16) WHERE page = 5",
        "DELETE FROM pages WHERE page = 5",
        "UPDATE pages SET page = 1000000 WHERE page = 5",
        "UPDATE pages SET node = NULL, leaves_id = NULL WHERE page = 5",
        "UPDATE states SET virtual_size = virtual_size + 512",
    ],
)
def test_an_index_that_does_not_add_up_to_its_root_is_refused(tmp_path: Path, change: str) -> None:
    build(tmp_path).close()
    other = sqlite3.connect(database_file(tmp_path))
    other.execute(change)
    other.commit()
    other.close()
    with Repository(tmp_path) as repository:
        with pytest.raises(RepositoryError, match=r"do not add up to its root .* can be rebuilt"):
            repository.index("web", "d0")
        assert any("do not add up" in problem for problem in repository.verify())


def test_missing_leaves_are_damage_not_zeros(tmp_path: Path) -> None:
    with build(tmp_path) as repository:
        with repository._database.writing() as connection:
            connection.execute("DELETE FROM leaves WHERE id = 1")
        with pytest.raises(RepositoryError, match=r"page 0 .* its leaves are missing"):
            repository.leaves("web", "d0", [0])
        assert len(repository.verify()) == 1


def test_leaves_of_no_state_are_reported(tmp_path: Path) -> None:
    with build(tmp_path) as repository:
        with repository._database.writing() as connection:
            connection.execute("INSERT INTO leaves (data) VALUES (zeroblob(32768))")
        assert repository.verify() == ["1 pages of leaves belong to no state"]


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_file_cut_short_is_damage(tmp_path: Path, kept: float) -> None:
    build(tmp_path).close()
    path = database_file(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) // 4096 * 4096])
    with pytest.raises(RepositoryError, match=r"is damaged: .* can be rebuilt"):
        Repository(tmp_path)


@pytest.mark.parametrize(
    "data", [b"not a database at all" * 400, b"SQLite format 3\0" + b"\xff" * 8000]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    database_file(tmp_path).write_bytes(data)
    with pytest.raises(RepositoryError, match=r"is damaged: .*can be rebuilt"):
        Repository(tmp_path)
    assert database_file(tmp_path).read_bytes() == data


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(database_file(tmp_path))
    other.execute("CREATE TABLE t (x)")
    other.execute("PRAGMA user_version = 1")
    other.commit()
    other.close()
    before = database_file(tmp_path).read_bytes()
    with pytest.raises(RepositoryError, match=r"another program's database .* another folder"):
        Repository(tmp_path)
    assert database_file(tmp_path).read_bytes() == before


def test_a_newer_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    build(tmp_path).close()
    other = sqlite3.connect(database_file(tmp_path))
    other.execute("PRAGMA user_version = 2")
    other.close()
    with pytest.raises(RepositoryError, match="has format 2, this release knows 1; use the rel"):
        Repository(tmp_path)


def test_an_empty_file_left_by_a_kill_becomes_a_repository(tmp_path: Path) -> None:
    database_file(tmp_path).touch()
    with Repository(tmp_path) as repository:
        assert repository.verify() == []


def test_a_missing_repository_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"does not exist \(no repository.sqlite in it\)"):
        Repository(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="is a file; a repository is a folder"):
        Repository(tmp_path / "file")
