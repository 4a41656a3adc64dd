"""Which log entries count, and what they do: rings made by hand over a disk in memory."""

from __future__ import annotations

import pytest

from standby.disk import vhdx
from standby.disk.vhdx import structures
from standby.disk.vhdx.log_writer import PAGES_PER_ENTRY, LogWriter
from standby.errors import DiskCorrupt, DiskUnsupported
from standby.testing.disks import content, random_bytes
from standby.testing.vhdx_files import MemoryFile
from standby.units import MiB

GUID = b"\x77" * 16
LOG, BAT, FIRST_BLOCK = MiB, 3 * MiB, 4 * MiB
PAGE = structures.PAGE


def _disk() -> MemoryFile:
    """A disk of 4 MiB whose block 0 has content, and whose headers name the log GUID."""
    file = MemoryFile()
    with vhdx.create(file, 4 * MiB) as disk:
        disk.write(0, random_bytes(MiB, 1))
    file = file.copy()
    for place in structures.HEADER_OFFSETS:
        header = structures.parse_header(file.read(place, structures.HEADER_SIZE))
        assert header is not None
        named = structures.Header(
            header.sequence,
            header.file_write_guid,
            header.data_write_guid,
            GUID,
            header.log_length,
            header.log_offset,
        )
        file.write(named.pack(), place)
    return file


def _entry(
    file: MemoryFile,
    position: int,
    sequence: int,
    tail: int,
    *pages: tuple[int, bytes],
    guid: bytes = GUID,
) -> int:
    """Write an entry into the ring; where it ends."""
    entry = structures.pack_entry(
        list(pages),
        sequence=sequence,
        tail=tail,
        log_guid=guid,
        flushed_size=file.size,
        last_size=file.size,
    )
    for start in range(0, len(entry), PAGE):
        file.write(entry[start : start + PAGE], LOG + (position + start) % MiB)
    return (position + len(entry)) % MiB


def _payload(page: int, seed: int) -> tuple[int, bytes]:
    """A log page over the content of block 0."""
    return FIRST_BLOCK + page * PAGE, random_bytes(PAGE, seed)


def _read(file: MemoryFile) -> bytes:
    """The content through the log, which replaying must give too."""
    with vhdx.open_vhdx(file.copy(writable=False)) as disk:
        found = content(disk)
    replayed = file.copy()
    vhdx.open_vhdx(replayed, writable=True).close()
    with vhdx.open_vhdx(replayed.copy(writable=False)) as disk:
        assert not disk.info.log_is_dirty
        assert content(disk) == found
    return found


def _seeds(found: bytes, *seeds: int) -> list[bool]:
    """Whether page n of block 0 holds what seed n makes."""
    return [found[n * PAGE : (n + 1) * PAGE] == random_bytes(PAGE, s) for n, s in enumerate(seeds)]


def test_entries_before_the_tail_are_not_applied() -> None:
    file = _disk()
    second = _entry(file, 0, 10, 0, _payload(0, 50))
    third = _entry(file, second, 11, 0, _payload(1, 51))
    _entry(file, third, 12, second, _payload(2, 52))
    assert _seeds(_read(file), 50, 51, 52) == [False, True, True]


def test_the_last_of_two_changes_of_a_page_wins() -> None:
    file = _disk()
    second = _entry(file, 0, 10, 0, _payload(0, 50))
    _entry(file, second, 11, 0, _payload(0, 51))
    assert _seeds(_read(file), 51) == [True]


@pytest.mark.parametrize("start", [MiB - PAGE, MiB - 2 * PAGE, MiB - 3 * PAGE])
def test_an_entry_goes_on_at_the_start_of_the_ring(start: int) -> None:
    file = _disk()
    place = _entry(file, start, 10, start, _payload(0, 50), _payload(1, 51), _payload(2, 52))
    _entry(file, place, 11, start, _payload(3, 53))
    assert _seeds(_read(file), 50, 51, 52, 53) == [True] * 4


def test_entries_of_another_life_are_dead() -> None:
    file = _disk()
    second = _entry(file, 0, 10, 0, _payload(0, 50))
    _entry(file, second, 11, 0, _payload(1, 51), guid=b"\x66" * 16)
    assert _seeds(_read(file), 50, 51) == [True, False]


def test_of_two_runs_the_newer_one_counts() -> None:
    file = _disk()
    _entry(file, 0, 900, 0, _payload(0, 50))
    _entry(file, 512 * 1024, 10, 512 * 1024, _payload(1, 51))
    assert _seeds(_read(file), 50, 51) == [True, False]


def test_a_number_that_is_skipped_ends_the_run() -> None:
    file = _disk()
    second = _entry(file, 0, 10, 0, _payload(0, 50))
    _entry(file, second, 12, 0, _payload(1, 51))  # its tail is in another run
    assert _seeds(_read(file), 50, 51) == [True, False]


def test_numbers_beyond_32_bits_are_kept_apart() -> None:
    file = _disk()
    second = _entry(file, 0, (1 << 32) * 7, 0, _payload(0, 50))
    _entry(file, second, (1 << 32) * 7 + 1, 0, _payload(1, 51))
    assert _seeds(_read(file), 50, 51) == [True, True]


def test_a_torn_last_entry_is_as_if_it_had_not_been_written() -> None:
    file = _disk()
    second = _entry(file, 0, 10, 0, _payload(0, 50))
    _entry(file, second, 11, 0, _payload(1, 51))
    file.write(b"\x00" * 100, LOG + second + PAGE + 300)
    assert _seeds(_read(file), 50, 51) == [True, False]


def test_zero_descriptors_clear_what_earlier_entries_wrote() -> None:
    file = _disk()
    second = _entry(file, 0, 10, 0, _payload(0, 50), _payload(4, 54))
    entry = bytearray(
        structures.pack_entry(
            [],
            sequence=11,
            tail=0,
            log_guid=GUID,
            flushed_size=file.size,
            last_size=file.size + 2 * MiB,
        )
    )
    entry[24:28] = (1).to_bytes(4, "little")
    entry[64:68] = b"zero"
    entry[72:80] = (3 * PAGE).to_bytes(8, "little")
    entry[80:88] = FIRST_BLOCK.to_bytes(8, "little")
    entry[88:96] = (11).to_bytes(8, "little")
    file.write(structures.with_checksum(bytes(entry)), LOG + second)
    found = _read(file)
    assert found[: 3 * PAGE] == bytes(3 * PAGE)
    assert found[3 * PAGE : 4 * PAGE] == random_bytes(MiB, 1)[3 * PAGE : 4 * PAGE]
    assert found[4 * PAGE : 5 * PAGE] == random_bytes(PAGE, 54)
    replayed = file.copy()
    vhdx.open_vhdx(replayed, writable=True).close()
    assert replayed.size == file.size + 2 * MiB


def test_region_tables_and_metadata_are_read_through_the_log() -> None:
    file = _disk()
    pages = [(offset, file.read(offset, PAGE)) for offset in (192 * 1024, 2 * MiB)]
    _entry(file, 0, 10, 0, *pages)
    for offset, _ in pages:
        file.write(bytes(PAGE), offset)
    assert _read(file)[:MiB] == random_bytes(MiB, 1)


def test_a_log_too_large_to_hold_is_left_to_a_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("standby.disk.vhdx.replaying._PAGES_MAX", 2)
    file = _disk()
    _entry(file, 0, 10, 0, *(_payload(page, page) for page in range(4)))
    with pytest.raises(DiskUnsupported, match="for writing"):
        vhdx.open_vhdx(file.copy(writable=False))
    with vhdx.open_vhdx(file, writable=True) as disk:
        assert _seeds(content(disk), 0, 1, 2, 3) == [True] * 4


def test_a_file_without_a_log_is_read_but_not_written() -> None:
    file = _disk()
    for place in structures.HEADER_OFFSETS:
        header = structures.Header(9, GUID, GUID, bytes(16), log_length=0, log_offset=0)
        file.write(header.pack(), place)
    with vhdx.open_vhdx(file.copy(writable=False)) as disk:
        assert content(disk)[:MiB] == random_bytes(MiB, 1)
    with pytest.raises(DiskUnsupported, match="without a log"):
        vhdx.open_vhdx(file, writable=True)


def test_entries_that_overlap_in_too_many_ways_are_refused() -> None:
    file = _disk()
    for index in range(256):
        entry = bytearray(MiB)
        structures.ENTRY_HEADER.pack_into(
            entry, 0, b"loge", 0, 200 * PAGE, 0, 5, 199, 0, GUID, file.size, file.size
        )
        for number in range(126):
            place = 64 + 32 * number
            entry[place : place + 4] = b"zero"
            entry[place + 24 : place + 32] = (5).to_bytes(8, "little")
        file.write(bytes(entry[:PAGE]), LOG + index * PAGE)
    with pytest.raises(DiskCorrupt, match="log"):
        vhdx.open_vhdx(file.copy(writable=False))


def test_the_writer_spares_the_last_durable_entry() -> None:
    file = MemoryFile()
    file.resize(4 * MiB)
    writer = LogWriter(file, LOG, MiB)
    writer.begin(GUID)
    page = (BAT, bytes(PAGE))
    full = [page] * PAGES_PER_ENTRY
    assert LogWriter.length(PAGES_PER_ENTRY) * 2 <= MiB
    assert writer.has_room(PAGES_PER_ENTRY)
    writer.append(full, file.size, file.size)
    assert writer.has_room(PAGES_PER_ENTRY)
    writer.append(full, file.size, file.size)
    assert not writer.has_room(PAGES_PER_ENTRY)
    writer.settle()
    assert writer.has_room(PAGES_PER_ENTRY)
    writer.append(full, file.size, file.size)
    assert not writer.has_room(PAGES_PER_ENTRY)
