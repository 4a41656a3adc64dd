"""A lookup table over a restart: what comes back, and that nothing wrong with the file matters."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import crashing
from standby import files
from standby.errors import DiskFull, DiskIO
from standby.wan import table_file
from standby.wan.table import NONE, LookupTable

MiB = 1 << 20
COUNT = 5_000


def names_of(count: int, seed: int = 1) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(16 * count), np.uint8).reshape(count, 16)


NAMES = names_of(COUNT)
AT = np.arange(COUNT, dtype=np.uint64)


def filled(budget: int = 2 * MiB) -> LookupTable:
    table = LookupTable(budget)
    table.insert(NAMES, AT)
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.table"


def test_comes_back_as_it_was_with_its_note(path: Path):
    table = filled()
    table_file.save(table, path, b"segments 1 to 9")
    loaded = table_file.load(path, 2 * MiB)
    assert (loaded.reason, loaded.note) == ("", b"segments 1 to 9")
    assert (loaded.table.lookup(NAMES) == table.lookup(NAMES)).all()
    assert loaded.table.stats() == table.stats()
    more = names_of(190_000, seed=2)
    loaded.table.insert(more, np.arange(190_000, dtype=np.uint64))  # it goes on growing
    assert (loaded.table.lookup(NAMES) != NONE).all()
    assert not loaded.table.is_sampled


@pytest.mark.parametrize("note", [b"", b"x", b"n" * 4096, b"n" * 4097, b"n" * MiB])
def test_a_note_of_any_length_comes_back(path: Path, note: bytes):
    table_file.save(filled(MiB), path, note)
    assert table_file.load(path, MiB + 5).note == note
    with pytest.raises(ValueError, match="note"):
        table_file.save(filled(MiB), path, bytes(MiB + 1))


def test_a_table_of_samples_comes_back_as_one(path: Path):
    table = LookupTable(MiB)
    names = names_of(150_000, seed=3)
    table.insert(names, np.arange(150_000, dtype=np.uint64))
    assert table.is_sampled
    table_file.save(table, path)
    loaded = table_file.load(path, MiB).table
    assert loaded.is_sampled
    assert (loaded.lookup(names) == table.lookup(names)).all()
    again = names_of(10_000, seed=4)
    kept = int((again[:, 0] & 15 == 0).sum())
    assert loaded.insert(again, np.arange(10_000, dtype=np.uint64)) <= kept + 20


def assert_empty(path: Path, budget: int = 2 * MiB) -> str:
    loaded = table_file.load(path, budget)
    assert loaded.reason.startswith(str(path))
    assert loaded.note == b""
    assert loaded.table.entries == 0
    assert (loaded.table.lookup(NAMES) == NONE).all()
    assert loaded.table.insert(NAMES, AT) == COUNT
    return loaded.reason


def test_a_missing_file_a_folder_and_another_budget_give_an_empty_table(path: Path):
    assert "No such file" in assert_empty(path)
    path.mkdir()
    assert_empty(path)
    path.rmdir()
    table_file.save(filled(), path)
    assert "budget of 2 MiB, not 3" in assert_empty(path, 3 * MiB)
    with pytest.raises(ValueError):
        table_file.load(path, 5)


@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [
        (0, b"STBYSEGM", "no lookup table"),
        (8, (2).to_bytes(4, "little"), "version 2"),
        (28, b"\1", "header is damaged"),
        (4080, b"\1", "header is damaged"),
        (4096, b"\0\2", "sizes of shards"),
        (4096 + 100, b"\1", "checksum"),
        (4096 * 2 + 1, b"\xff", "checksum"),
    ],
)
def test_damage_is_told_by_where_it_is(path: Path, offset: int, value: bytes, told: str):
    table_file.save(filled(), path, b"note")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)
    assert told in assert_empty(path)


def test_any_flipped_bit_gives_an_empty_table(path: Path):
    table_file.save(filled(), path, b"note")
    whole = path.read_bytes()
    random = np.random.default_rng(5)
    places = [*range(96), *range(4084, 4110), *random.integers(0, len(whole), 150).tolist()]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        loaded = table_file.load(path, 2 * MiB)
        assert loaded.reason, f"a flipped bit at {place} was not noticed"
        assert loaded.table.entries == 0


def test_a_file_cut_anywhere_or_too_long_gives_an_empty_table(path: Path):
    table_file.save(filled(), path, b"note")
    whole = path.read_bytes()
    for length in (0, 1, 71, 4095, 4096, 4097, 8192, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_empty(path)
    path.write_bytes(whole + b"\0")
    assert_empty(path)


def test_a_header_with_a_right_checksum_leads_no_read_out_of_the_file(path: Path):
    table_file.save(filled(), path)
    whole = bytearray(path.read_bytes())
    for offset, value in [(12, 1 << 31), (40, (1 << 63) - 1), (48, 1 << 62), (16, 1), (20, 0)]:
        damaged = bytearray(whole)
        damaged[offset : offset + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
        damaged[offset + 4 : offset + 8] = (value >> 32).to_bytes(4, "little")
        header = damaged[:4096]
        damaged[4088:4096] = table_file._leaf_of_header(header)
        path.write_bytes(damaged)
        assert_empty(path)


def test_no_room_leaves_the_file_that_was_there(path: Path, monkeypatch: pytest.MonkeyPatch):
    table_file.save(filled(), path, b"first")
    real = files.File.write

    def full(self: files.File, data: object, offset: int) -> None:
        if offset > 8192:
            raise DiskFull(str(self.path), 1, 0)
        real(self, data, offset)

    monkeypatch.setattr(files.File, "write", full)
    with pytest.raises(DiskFull):
        table_file.save(filled(), path, b"second")
    monkeypatch.undo()
    assert table_file.load(path, 2 * MiB).note == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    shutil.rmtree(path.parent)
    with pytest.raises(DiskIO):
        table_file.save(filled(), path)


def test_what_others_put_in_while_it_is_saved_does_no_harm(path: Path):
    table = filled(4 * MiB)
    stop = threading.Event()

    def write() -> None:
        seed = 10
        while not stop.is_set():
            seed += 1
            table.insert(names_of(20_000, seed), np.arange(20_000, dtype=np.uint64))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            table_file.save(table, path)
            loaded = table_file.load(path, 4 * MiB)
            assert loaded.reason == ""
            assert loaded.table.entries >= COUNT * 0.99
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("power_seed", [None, 1, 2, 3])
def test_a_crash_at_any_write_of_a_save_leaves_the_old_table(
    path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool, power_seed: int | None
):
    table_file.save(filled(), path, b"old")
    table = filled()
    with crashing.crashing(monkeypatch) as counted:
        table_file.save(table, path.with_name("other"), b"new")
    assert counted.count >= 6  # created, two shards, directory, note, header
    for at in range(1, counted.count + 1):
        with crashing.crashing(monkeypatch, at, torn=torn, power_seed=power_seed):
            table_file.save(table, path, b"new")
        loaded = table_file.load(path, 2 * MiB)
        assert (loaded.reason, loaded.note) == ("", b"old"), at
        assert (loaded.table.lookup(NAMES) == AT).mean() > 0.999
    table_file.save(table, path, b"newer")  # over what the last crash left
    assert table_file.load(path, 2 * MiB).note == b"newer"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, "other"]


KILLED = """
import os, signal, sys
from pathlib import Path
from standby.wan import table_file
from standby.wan.table import LookupTable

path, is_renamed = Path(sys.argv[1]), sys.argv[2] == "after"
from standby.files import durability
plain = durability.rename_durably
def rename(old, new):
    if is_renamed:
        plain(old, new)
    os.kill(os.getpid(), signal.SIGKILL)
durability.rename_durably = rename
table_file.save(LookupTable(2 << 20), path, b"new")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize(("moment", "note"), [("before", b"old"), ("after", b"new")])
def test_a_kill_at_the_rename_leaves_the_old_table_or_the_new_one(
    path: Path, moment: str, note: bytes
):
    table_file.save(filled(), path, b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False)
    assert done.returncode == -9
    loaded = table_file.load(path, 2 * MiB)
    assert (loaded.reason, loaded.note) == ("", note)
    table_file.save(filled(), path, b"newer")
    assert table_file.load(path, 2 * MiB).note == b"newer"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
