"""Damage to a cache's files: never a wrong byte, only misses, and only of what was hit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from standby.errors import DiskIO
from standby.files import File
from standby.wan.loading import TABLE_NAME
from standby.wan.locations import NONE
from standby.wan.segment_file import TRAILER
from standby.wan.table import LookupTable
from wan_caches import KEY, check_never_wrong, held, names_of, noise, open_cache, text

PARTS = 3
PIECES = 44


def part_of(number: int) -> np.ndarray:
    """What one segment holds: some records that are packed, one that is not."""
    return np.concatenate([text(PIECES - 4, number), noise(4, number)])


ALL = np.concatenate([part_of(number) for number in range(PARTS)])


def opened(folder: Path, **more):
    return open_cache(folder, new_table=None, **more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed cache of two sealed segments and an open one, with its saved table."""
    folder = tmp_path_factory.mktemp("prepared")
    with opened(folder) as cache:
        for number in range(PARTS):
            cache.namespace(KEY).add(part_of(number))
            if number < PARTS - 1:
                assert all(cache.intake.seal_open(segment) for segment in cache.shelf)
    assert cache.index_saved
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path):
    """Makes a fresh copy of that cache."""

    def fresh() -> Path:
        folder = tmp_path / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(prepared, folder)
        return folder

    return fresh


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def places_in(size: int, count: int, seed: int) -> list[int]:
    """The first and last bytes of a file, and some between."""
    chosen = random.Random(seed).sample(range(size), min(count, size))
    return sorted({*range(0, min(size, 130), 7), *range(max(0, size - 2 * TRAILER), size), *chosen})


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def test_the_prepared_cache_is_whole(copy) -> None:
    folder = copy()
    with opened(folder) as cache:
        assert cache.status().segments == PARTS
        assert check_never_wrong(cache.namespace(KEY), ALL) == len(ALL)
        assert cache.verify().is_ok


@pytest.mark.parametrize("with_table", [True, False], ids=["saved table", "footers"])
@pytest.mark.parametrize("number", range(PARTS + 1))
def test_a_flipped_byte_costs_its_segment_at_most(copy, number: int, with_table: bool) -> None:
    folder = copy()
    name = files_of(folder)[number]
    places = places_in((folder / name).stat().st_size, 20, number)
    for place in places[number % 2 :: 2]:
        folder = copy()
        flip(folder / name, place, 1 << place % 8)
        if not with_table:
            (folder / TABLE_NAME).unlink(missing_ok=True)
        with opened(folder) as cache:
            part = cache.namespace(KEY)
            found = check_never_wrong(part, ALL)
            lost = PIECES if name != TABLE_NAME else 0
            assert found >= len(ALL) - lost, place
            part.add(ALL)
            assert check_never_wrong(part, ALL) == len(ALL), place


def test_a_byte_flipped_while_the_cache_is_open_is_met_at_the_read(copy) -> None:
    folder = copy()
    with opened(folder) as cache:
        part = cache.namespace(KEY)
        path = folder / files_of(folder)[0]
        records_end = path.stat().st_size - TRAILER - 16 * PIECES - 200
        for place in range(100, records_end, 101):
            flip(path, place)
        names = names_of(ALL, KEY)
        data, ok = held(part, names)
        assert np.array_equal(data[ok], ALL[ok])
        assert not ok[:PIECES].all()
        assert ok[PIECES:].all()
        lost = int(np.count_nonzero(~ok))
        assert lost > PIECES // 2
        assert cache.status().counts["damaged"] == lost
        assert ((part.lookup(names) == NONE) == ~ok).all()
        part.add(ALL)
        assert check_never_wrong(part, ALL) == len(ALL)


def test_a_truncated_file_costs_its_end(copy) -> None:
    for number in range(PARTS):
        size = (copy() / files_of(copy())[number]).stat().st_size
        for length in [*range(0, size, size // 23), size - 1]:
            folder = copy()
            with (folder / files_of(folder)[number]).open("r+b") as file:
                file.truncate(length)
            with opened(folder) as cache:
                found = check_never_wrong(cache.namespace(KEY), ALL)
                assert len(ALL) - PIECES <= found <= len(ALL)


@pytest.mark.parametrize("while_open", [True, False])
@pytest.mark.parametrize("number", range(PARTS))
def test_a_deleted_segment_costs_its_content(copy, number: int, while_open: bool) -> None:
    folder = copy()
    path = folder / files_of(folder)[number]
    if not while_open:
        path.unlink()
    with opened(folder) as cache:
        if while_open:
            path.unlink()
        part = cache.namespace(KEY)
        found = check_never_wrong(part, ALL)
        assert found >= len(ALL) - PIECES
        assert number == PARTS - 1 or found == len(ALL) - PIECES
        part.add(ALL)
        if not while_open:
            assert check_never_wrong(part, ALL) == len(ALL)
        check_never_wrong(part, ALL)


def test_files_exchanged_for_one_another_are_not_believed(copy) -> None:
    folder = copy()
    first, second, third = [folder / name for name in files_of(folder)[:PARTS]]
    content = first.read_bytes(), second.read_bytes(), third.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    with opened(folder) as cache:
        assert check_never_wrong(cache.namespace(KEY), ALL) == PIECES
        assert len(cache.status().problems) == 2


def test_an_older_copy_of_the_folder_serves_what_it_has(copy, tmp_path: Path) -> None:
    folder = copy()
    with opened(folder, limit=4 << 20) as cache:
        part = cache.namespace(KEY)
        for seed in range(20):
            part.add(noise(256, seed))
        assert check_never_wrong(part, ALL) < len(ALL)
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    folder = copy()
    with opened(folder) as cache:
        assert check_never_wrong(cache.namespace(KEY), ALL) == len(ALL)
    for name in files_of(newer):  # older files among newer ones, the newer table over both
        if name == TABLE_NAME or name not in files_of(folder):
            shutil.copy(newer / name, folder / name)
    with opened(folder) as cache:
        part = cache.namespace(KEY)
        assert check_never_wrong(part, ALL) >= len(ALL) - PIECES
        for seed in range(20):
            check_never_wrong(part, noise(256, seed))


def test_an_older_table_over_newer_segments(copy, tmp_path: Path) -> None:
    folder = copy()
    table = (folder / TABLE_NAME).read_bytes()
    with opened(folder, limit=4 << 20) as cache:
        for seed in range(9):
            cache.namespace(KEY).add(noise(256, seed))
    (folder / TABLE_NAME).write_bytes(table)
    with opened(folder) as cache:
        part = cache.namespace(KEY)
        assert check_never_wrong(part, noise(256, 8)) == 256
        check_never_wrong(part, ALL)
        assert isinstance(cache.table, LookupTable)
        assert cache.verify().is_ok


def test_a_segment_of_a_newer_release_is_left_alone_and_told(copy) -> None:
    folder = copy()
    path = folder / files_of(folder)[0]
    flip(path, 8, 2)
    told: list[str] = []
    with opened(folder, warn=told.append) as cache:
        assert check_never_wrong(cache.namespace(KEY), ALL) == len(ALL) - PIECES
        assert "not of this release" in cache.status().problems[0]
    assert path.exists()
    assert any(path.name in text for text in told)


# --- verify ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(PARTS))
def test_verify_names_what_is_bad_and_drops_just_that(copy, number: int) -> None:
    folder = copy()
    name = files_of(folder)[number]
    with opened(folder) as cache:
        flip(folder / name, 1500)
        report = cache.verify([KEY])
        assert [finding.file for finding in report.findings] == [name]
        assert 0 < report.findings[0].pieces <= 32
        assert report.pieces >= len(ALL)  # what was copied is met again
        lost = report.findings[0].pieces
        part = cache.namespace(KEY)
        assert check_never_wrong(part, ALL) == len(ALL) - lost
        assert cache.verify().is_ok
    with opened(folder) as cache:
        assert cache.verify().is_ok
        assert check_never_wrong(cache.namespace(KEY), ALL) == len(ALL) - lost


def test_verify_of_a_damaged_footer_and_of_a_missing_file(copy) -> None:
    folder = copy()
    with opened(folder) as cache:
        first, second = files_of(folder)[:2]
        flip(folder / first, (folder / first).stat().st_size - 10)
        (folder / second).unlink()
        cache.shelf.close()
        report = cache.verify([KEY])
        assert sorted(finding.file for finding in report.findings) == [first, second]
        assert check_never_wrong(cache.namespace(KEY), ALL) == PIECES


def test_verify_without_the_key_says_what_it_could_not_compare(copy) -> None:
    with opened(copy()) as cache:
        report = cache.verify()
        assert report.is_ok
        assert report.unnamed_pieces == len(ALL)
        assert cache.verify([KEY]).unnamed_pieces == 0


def test_verify_finds_content_that_another_name_was_given_to(copy) -> None:
    """A forged record: sound checksum, wrong names."""
    folder = copy()
    with opened(folder) as cache:
        (opened_segment,) = cache.intake._open.values()
        forged = noise(3, 77)
        from standby.wan.appending import Run
        from standby.wan.payloads import packed

        wrong = names_of(noise(3, 78), KEY)
        cache.intake.take(opened_segment.segment.header.namespace, [Run(wrong, *packed(forged))])
        part = cache.namespace(KEY)
        assert not held(part, wrong)[1].any()
        report = cache.verify([KEY])
        assert [finding.problem for finding in report.findings] == [
            "content that is not what its name says"
        ]
        assert check_never_wrong(part, ALL) == len(ALL)


# --- what passes -------------------------------------------------------------------------------


def test_a_file_that_cannot_be_opened_now_costs_misses_and_no_content(
    copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy()
    with opened(folder) as cache:
        part = cache.namespace(KEY)
        names = names_of(ALL, KEY)
        places = part.lookup(names)
        plain = File.__init__

        def refuse(self: File, path: Path, **options: bool) -> None:
            if path.suffix == ".segment":
                raise DiskIO(str(path), "open", 0, 0, "Too many open files")
            plain(self, path, **options)

        with monkeypatch.context() as context:
            context.setattr(File, "__init__", refuse)
            cache.shelf.close()
            data, ok = part.read(places, names)
            assert not ok.any()
            assert not data.any()
        assert cache.status().counts["damaged"] == 0
        assert check_never_wrong(part, ALL) == len(ALL)


def test_a_segment_that_goes_while_it_is_read_is_a_miss(copy) -> None:
    with opened(copy()) as cache:
        part = cache.namespace(KEY)
        names = names_of(ALL, KEY)
        places = part.lookup(names)
        segment = next(iter(cache.shelf))
        with cache.shelf.using(segment) as file:
            cache.intake.drop(segment)
            assert segment.path.exists()
            assert len(file.read(0, 8)) == 8
        assert not segment.path.exists()
        assert int(part.read(places, names)[1].sum()) == len(ALL) - PIECES
        assert cache.status().counts["damaged"] == 0
