"""The global cache and disk files: entries that point into them, and warming up from them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from standby.disk import open_disk, vhdx
from standby.disk.merge import merge_file
from standby.errors import DiskError
from standby.units import MiB
from standby.wan.cache import GlobalCache
from standby.wan.locations import NONE
from standby.wan.populating import disk_files
from wan_caches import KEY, OTHER_KEY, PIECE, check_never_wrong, held, names_of, noise, open_cache

BASE = noise(600, 1)
SIZE = 8 * MiB + 512
TAIL = np.frombuffer(bytes(range(256)) * 2, dtype=np.uint8)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[GlobalCache]:
    with open_cache(tmp_path / "cache", new_table=None) as opened:
        yield opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A disk with 600 pieces from its second MiB on, and 512 bytes in its last, short piece."""
    path = tmp_path / "base.vhdx"
    with closing(vhdx.create(path, SIZE)) as disk:
        disk.write(MiB, BASE.data)
        disk.write(SIZE - 512, TAIL.data)
    return path


def write(path: Path, offset: int, data: np.ndarray, **options) -> None:
    opener = vhdx.open_vhdx if options else open_disk
    with closing(opener(path, writable=True, **options)) as disk:
        disk.write(offset, data.data)


def tail_piece() -> np.ndarray:
    piece = np.zeros((1, PIECE), dtype=np.uint8)
    piece[0, :512] = TAIL
    return piece


# --- entries into disk files -------------------------------------------------------------------


def test_what_a_disk_holds_is_found_there_and_not_copied(cache: GlobalCache, base: Path) -> None:
    assert cache.index_disk(KEY, base) == 601
    part = cache.namespace(KEY)
    assert check_never_wrong(part, BASE) == 600
    assert check_never_wrong(part, tail_piece()) == 1
    status = cache.status()
    assert (status.pieces, status.disk_pieces) == (0, 601)
    assert status.bytes < 601 * 100
    assert cache.index_disk(KEY, base) == 0


def test_entries_are_there_after_a_restart_with_and_without_the_table(
    tmp_path: Path, base: Path
) -> None:
    with open_cache(tmp_path / "cache", new_table=None) as cache:
        cache.index_disk(KEY, base)
    for _ in range(2):
        with open_cache(tmp_path / "cache", new_table=None) as cache:
            assert check_never_wrong(cache.namespace(KEY), BASE) == 600
        (tmp_path / "cache" / "index.table").unlink()


def test_entries_belong_to_one_tenant(cache: GlobalCache, base: Path) -> None:
    cache.index_disk(KEY, base)
    theirs = cache.namespace(OTHER_KEY)
    assert (theirs.lookup(names_of(BASE, OTHER_KEY)) == NONE).all()
    assert not theirs.read(cache.namespace(KEY).lookup(names_of(BASE, KEY)))[1].any()


def test_only_what_is_whole_in_the_layer_itself_gets_an_entry(
    cache: GlobalCache, base: Path, tmp_path: Path
) -> None:
    child = tmp_path / "child.vhdx"
    vhdx.create_child(child, base).close()
    write(child, MiB + PIECE, noise(2, 2))
    write(child, MiB + 8 * PIECE + 512, noise(1, 3).reshape(-1)[:512])
    assert cache.index_disk(KEY, child) == 2
    assert check_never_wrong(cache.namespace(KEY), noise(2, 2)) == 2


def test_a_disk_of_zeros_gets_no_entries(cache: GlobalCache, tmp_path: Path) -> None:
    path = tmp_path / "zeros.vhdx"
    with closing(vhdx.create(path, 4 * MiB)) as disk:
        disk.write(0, bytes(2 * MiB))
    assert cache.index_disk(KEY, path) == 0
    assert cache.status().segments == 0


def test_what_is_not_a_vhdx_is_refused(cache: GlobalCache, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MiB))
    with pytest.raises(DiskError):
        cache.index_disk(KEY, path)


@pytest.mark.parametrize("way", ["written", "deleted", "replaced", "cut"])
def test_entries_go_when_the_file_changed(
    cache: GlobalCache, base: Path, tmp_path: Path, way: str
) -> None:
    cache.index_disk(KEY, base)
    part = cache.namespace(KEY)
    names = names_of(BASE, KEY)
    places = part.lookup(names)
    assert held(part, names[:5])[1].all()
    if way == "written":
        write(base, 4 * MiB, noise(1, 9))
    elif way == "deleted":
        base.unlink()
    elif way == "replaced":
        other = tmp_path / "other.vhdx"
        with closing(vhdx.create(other, SIZE)) as disk:
            disk.write(MiB, noise(600, 5).data)
        other.replace(base)
    else:
        with base.open("r+b") as file:
            file.truncate(base.stat().st_size // 2)
    data, ok = part.read(places, names)
    assert np.array_equal(data[ok], BASE[ok])
    assert way == "cut" or not ok.any()
    assert way == "cut" or cache.status().counts["invalidated"] == 1
    assert way == "cut" or (part.lookup(names) == NONE).all()
    assert way == "cut" or cache.status().segments == 0


def test_content_changed_under_the_same_identity_is_not_handed_out(
    cache: GlobalCache, base: Path
) -> None:
    """What a merge does before it changes the base's GUID."""
    cache.index_disk(KEY, base)
    part = cache.namespace(KEY)
    assert check_never_wrong(part, BASE) == 600
    write(base, MiB + 10 * PIECE, noise(4, 7), keep_data_write_guid=True)
    assert check_never_wrong(part, BASE) == 596
    assert cache.status().counts["damaged"] == 4
    assert check_never_wrong(part, noise(4, 7)) == 0
    part.add(noise(4, 7))
    assert check_never_wrong(part, noise(4, 7)) == 4


def test_a_merge_invalidates_and_the_merged_file_can_be_named_again(
    cache: GlobalCache, base: Path, tmp_path: Path
) -> None:
    child = tmp_path / "child.vhdx"
    vhdx.create_child(child, base).close()
    write(child, MiB, noise(3, 2))
    cache.index_disk(KEY, base)
    cache.index_disk(KEY, child)
    part = cache.namespace(KEY)
    assert check_never_wrong(part, np.concatenate([BASE, noise(3, 2)])) == 603
    merge_file(child)
    check_never_wrong(part, np.concatenate([BASE, noise(3, 2)]))
    cache.drop_changed()
    assert cache.index_disk(KEY, base) > 0
    assert check_never_wrong(part, np.concatenate([BASE[3:], noise(3, 2)])) == 600


def test_entries_into_changed_files_can_be_dropped_at_once(
    cache: GlobalCache, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.vhdx"
    with closing(vhdx.create(other, MiB)) as disk:
        disk.write(0, noise(5, 5).data)
    cache.index_disk(KEY, base)
    cache.index_disk(KEY, other)
    base.unlink()
    assert cache.drop_changed() == 1
    assert cache.drop_changed() == 0
    assert check_never_wrong(cache.namespace(KEY), noise(5, 5)) == 5


def test_verify_compares_what_entries_point_to(cache: GlobalCache, base: Path) -> None:
    cache.index_disk(KEY, base)
    assert cache.verify([KEY]).is_ok
    write(base, MiB, noise(1, 9), keep_data_write_guid=True)
    report = cache.verify([KEY])
    assert [finding.pieces for finding in report.findings] == [601]
    assert "base.vhdx" in report.findings[0].problem
    assert cache.status().segments == 0
    base.unlink()
    assert cache.verify([KEY]).is_ok


# --- warming up --------------------------------------------------------------------------------


def folder_of_disks(tmp_path: Path) -> Path:
    """A VHDX with a child in a folder below, a raw image, and things that are none."""
    folder = tmp_path / "disks"
    (folder / "below").mkdir(parents=True)
    with closing(vhdx.create(folder / "a.vhdx", SIZE)) as disk:
        disk.write(MiB, BASE.data)
        disk.write(SIZE - 512, TAIL.data)
    vhdx.create_child(folder / "b.avhdx", folder / "a.vhdx").close()
    write(folder / "b.avhdx", MiB + 512, noise(2, 2))
    (folder / "below" / "c.raw").write_bytes(noise(10, 3).tobytes() + b"end")
    (folder / "below" / "p.1.partial.vhdx").write_bytes(b"unfinished")
    (folder / "notes.txt").write_text("no disk")
    (folder / "link.vhdx").symlink_to(folder / "a.vhdx")
    return folder


def test_the_disk_files_of_a_folder(tmp_path: Path) -> None:
    folder = folder_of_disks(tmp_path)
    found = [path.relative_to(folder).as_posix() for path in disk_files(folder)]
    assert found == ["a.vhdx", "b.avhdx", "below/c.raw"]


def content_of(path: Path) -> np.ndarray:
    with closing(open_disk(path)) as disk:
        data = np.zeros(-(-disk.virtual_size // PIECE) * PIECE, dtype=np.uint8)
        disk.read_into(0, data.data[: disk.virtual_size])
    pieces = data.reshape(-1, PIECE)
    return pieces[pieces.any(axis=1)]


@pytest.mark.parametrize("in_place", [False, True])
def test_populate_knows_what_the_disks_hold(
    cache: GlobalCache, tmp_path: Path, in_place: bool
) -> None:
    folder = folder_of_disks(tmp_path)
    told: list[tuple[str, int, int]] = []
    report = cache.populate(
        KEY, disk_files(folder), in_place=in_place, told=lambda *facts: told.append(facts)
    )
    assert (report.disks, report.problems) == (3, {})
    assert {label for label, _, _ in told} == {"a.vhdx", "b.avhdx", "c.raw"}
    assert all(done <= total for _, done, total in told)
    part = cache.namespace(KEY)
    assert check_never_wrong(part, content_of(folder / "a.vhdx")) == 601
    child = content_of(folder / "b.avhdx")
    # In place, a piece that is only partly in the child has no entry.
    assert check_never_wrong(part, child) == len(child) - (2 if in_place else 0)
    assert check_never_wrong(part, noise(10, 3)) == 10
    assert cache.status().disk_pieces == (602 if in_place else 0)
    assert report.pieces_added == cache.status().pieces + cache.status().disk_pieces
    again = cache.populate(KEY, disk_files(folder), in_place=in_place)
    assert again.pieces_added == 0


def test_a_disk_that_cannot_be_read_is_told_and_the_others_are_taken(
    cache: GlobalCache, tmp_path: Path
) -> None:
    folder = folder_of_disks(tmp_path)
    (folder / "a.vhdx").write_bytes(b"vhdxfile" + bytes(100))
    report = cache.populate(KEY, disk_files(folder))
    assert report.disks == 1
    assert sorted(Path(path).name for path in report.problems) == ["a.vhdx", "b.avhdx"]
    assert check_never_wrong(cache.namespace(KEY), noise(10, 3)) == 10


def test_several_sources_and_a_warm_up_at_once(tmp_path: Path) -> None:
    folder = folder_of_disks(tmp_path)
    problems: list[BaseException] = []
    with open_cache(tmp_path / "cache", 8 * MiB, MiB, new_table=None) as cache:

        def work(number: int) -> None:
            try:
                part = cache.namespace(KEY if number % 2 else OTHER_KEY)
                for turn in range(6):
                    pieces = noise(150, 100 * (number % 3) + turn)
                    with part.pin() as pin:
                        names = part.add(pieces)
                        data, ok = part.read(part.lookup(names, pin), names)
                        assert np.array_equal(data[ok], pieces[ok])
            except BaseException as exc:
                problems.append(exc)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        report = cache.populate(KEY, disk_files(folder))
        assert cache.verify().is_ok
        for thread in threads:
            thread.join()
        assert not problems
        assert report.problems == {}
        status = cache.status()
        assert status.bytes <= 8 * MiB
        assert status.counts["damaged"] == 0
    with open_cache(tmp_path / "cache", 8 * MiB, MiB, new_table=None) as cache:
        assert cache.verify([KEY, OTHER_KEY]).is_ok
        assert not cache.status().problems
