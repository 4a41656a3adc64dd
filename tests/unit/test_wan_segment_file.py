"""The bytes of a segment file: as FORMAT.md says them, today and in the golden file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import blake3
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby import clock
from standby.files import File
from standby.wan.appending import Run
from standby.wan.cache import fingerprint
from standby.wan.segment_file import (
    CONTENT,
    IN_DISK,
    RAW,
    DiskFile,
    Header,
    SegmentDamaged,
    SegmentUnknown,
    footer_place,
    packed_header,
    read_footer,
    read_header,
    read_record,
    scanned,
)
from wan_caches import KEY, PIECE, check_never_wrong, open_cache, plain_names, text

GOLDEN = Path(__file__).parent / "golden" / "segment-1.segment"
GOLDEN_ENTRIES = Path(__file__).parent / "golden" / "segment-1-entries.segment"


def pieces() -> np.ndarray:
    """What the golden segment holds: 33 pieces that pack well, and 2 that do not."""
    hashed = [blake3.blake3(bytes([number])).digest(PIECE) for number in range(2)]
    plain = np.frombuffer(b"".join(hashed), dtype=np.uint8).reshape(2, PIECE)
    packed = np.zeros((33, PIECE), dtype=np.uint8)
    packed[:, 0] = np.arange(1, 34)
    return np.concatenate([packed, plain])


def golden_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose one segment is that of the golden file."""
    import uuid

    monkeypatch.setattr(clock, "new_uuid", lambda: uuid.UUID(bytes=bytes(range(16))))
    with open_cache(folder) as cache:
        part = cache.namespace(KEY)
        part.add(pieces()[:33])
        part.add(pieces()[33:])
        assert all(cache.intake.seal_open(segment) for segment in cache.shelf)
    return folder / "000000001.segment"


def test_a_segment_of_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "000000001.segment").write_bytes(GOLDEN.read_bytes())
    with open_cache(tmp_path) as cache:
        assert check_never_wrong(cache.namespace(KEY), pieces()) == 35
        assert cache.verify([KEY]).is_ok


def test_what_is_written_today_is_as_the_format_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read with nothing but struct, BLAKE3 and zstd, from FORMAT.md."""
    data = golden_folder(tmp_path, monkeypatch).read_bytes()
    magic, version, kind, number, id_, space, piece, tail = struct.unpack_from(
        "<8sIIQ16s16sII", data
    )
    assert (magic, version, kind, number, piece, tail) == (b"STBYSEGM", 1, 1, 1, 4096, 0)
    assert (id_, space) == (bytes(range(16)), fingerprint(KEY))
    keyed = blake3.blake3(b"standby global cache: namespace", key=KEY)
    assert space == keyed.digest(16)
    assert blake3.blake3(data[:64]).digest(8) == data[64:72]
    position, found, rows = 72, [], []
    for record in range(3):
        head = data[position : position + 40]
        mark = struct.unpack("<4sBBHIIIIQ8s", head)
        magic, type_, codec, zero, index, first, count, length, place, mark = mark
        assert (magic, type_, zero, index, first) == (b"SREC", 1, 0, record, len(found))
        assert (place, mark) == (0, id_[:8])
        body = data[position + 48 : position + 48 + 16 * count + length]
        assert blake3.blake3(head + body).digest(8) == data[position + 40 : position + 48]
        payload = body[16 * count :]
        held = zstandard.ZstdDecompressor().decompress(payload) if codec else payload
        assert codec == (record < 2)
        assert len(held) == count * PIECE
        for at in range(count):
            content = held[at * PIECE : (at + 1) * PIECE]
            assert body[16 * at : 16 * at + 16] == blake3.blake3(content, key=KEY).digest(16)
            found.append(content)
        rows.append((position, 0, first, count, length, codec))
        position += 48 + len(body)
    assert b"".join(found) == pieces().tobytes()
    footer = data[position : len(data) - 40]
    assert struct.unpack_from("<4sBBHIIIIQ8s", footer) == (
        b"SREC", 2, 0, 0, 3, 35, 0, 96, 0, id_[:8],
    )  # fmt: skip
    assert blake3.blake3(footer[:40] + footer[48:]).digest(8) == footer[40:48]
    assert footer[48:144] == b"".join(struct.pack("<QQIIII", *row) for row in rows)
    assert footer[144:] == plain_names(pieces(), KEY).tobytes()
    trailer = data[-40:]
    assert struct.unpack("<8sQQ8s", trailer[:32]) == (
        b"STBYSEND", position, len(footer), id_[:8],
    )  # fmt: skip
    assert blake3.blake3(trailer[:32]).digest(8) == trailer[32:]


def test_the_golden_file_is_that_of_today_but_for_zstd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = golden_folder(tmp_path, monkeypatch)
    with File(made) as ours, File(GOLDEN) as theirs:
        assert read_header(ours) == read_header(theirs)
        headers = read_header(ours)[0]
        for file in (ours, theirs):
            place = footer_place(file, headers)
            assert place is not None
            assert (
                read_footer(file, headers, place)[1].tobytes()
                == plain_names(pieces(), KEY).tobytes()
            )


def entries_segment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A segment of entries into a disk file: two runs of pieces."""
    import uuid

    monkeypatch.setattr(clock, "new_uuid", lambda: uuid.UUID(bytes=bytes(range(16))))
    disk = DiskFile("/replicas/web01/disk0/base.vhdx", "0" * 32, 1 << 40)
    with open_cache(folder) as cache:
        opened = cache.intake.open_disk_segment(fingerprint(KEY), disk)
        assert opened is not None
        names = plain_names(pieces(), KEY)
        runs = [Run(names[:33], b"", RAW, 1 << 27), Run(names[33:], b"", RAW, 7)]
        assert cache.intake.take_entries(opened, runs)
        cache.intake.seal_entries(opened)
    return folder / "000000001.segment"


def test_a_segment_of_entries_of_version_1_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with File(GOLDEN_ENTRIES) as file:
        header, start = read_header(file)
        assert (header.kind, header.number, header.namespace) == (IN_DISK, 1, fingerprint(KEY))
        disk = DiskFile("/replicas/web01/disk0/base.vhdx", "0" * 32, 1 << 40)
        assert header.disk == disk
        place = footer_place(file, header)
        assert place is not None
        directory, names = read_footer(file, header, place)
        assert directory["place"].tolist() == [1 << 27, 7]
        assert directory["count"].tolist() == [33, 2]
        assert names.tobytes() == plain_names(pieces(), KEY).tobytes()
        assert scanned(file, header, start)[0].tobytes() == directory.tobytes()
    assert entries_segment(tmp_path, monkeypatch).read_bytes() == GOLDEN_ENTRIES.read_bytes()


def test_a_header_that_points_into_a_disk_comes_back(tmp_path: Path) -> None:
    disk = DiskFile("/replicas/web01/disk0/bäse.vhdx", "0" * 32, 1 << 40)
    header = Header(IN_DISK, 7, bytes(range(16)), bytes(16), disk)
    path = tmp_path / "a"
    path.write_bytes(packed_header(header))
    with File(path) as file:
        assert read_header(file) == (header, path.stat().st_size)
    assert json.loads(packed_header(header)[64:-8])["virtual_size"] == 1 << 40


@pytest.mark.parametrize("length", range(0, 72, 3))
def test_a_header_cut_short_is_damage(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(packed_header(Header(CONTENT, 1, bytes(16), bytes(16)))[:length])
    with File(path) as file, pytest.raises(SegmentDamaged):
        read_header(file)


def test_another_version_is_not_called_damage_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = bytearray(packed_header(Header(CONTENT, 1, bytes(16), bytes(16))))
    data[8] = 2
    path.write_bytes(data)
    with File(path) as file, pytest.raises(SegmentUnknown):
        read_header(file)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_make_reading_fail_otherwise_than_as_damage(
    tmp_path: Path, data: st.DataObject
) -> None:
    """The golden file with any part overwritten, checksums made to fit or not."""
    content = bytearray(GOLDEN.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(72, len(content) - 1))
        content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    position = 72
    if data.draw(st.booleans()):  # the first record's checksum, over whatever it says now
        count, length = struct.unpack_from("<II", content, position + 16)
        body = content[position + 48 : position + 48 + 16 * (count % 4096) + length % 65536]
        fixed = bytes(content[position : position + 40]) + bytes(body)
        content[position + 40 : position + 48] = blake3.blake3(fixed).digest(8)
    path = tmp_path / "a"
    path.write_bytes(content)
    with File(path) as file:
        header, start = read_header(file)
        directory, names, end, _ = scanned(file, header, start)
        assert len(names) == directory["count"].sum()
        assert start <= end <= len(content)
        place = footer_place(file, header)
        try:
            if place is not None:
                read_footer(file, header, place)
            read_record(file, header, start, file.size)
        except SegmentDamaged:
            pass


def test_a_frame_that_says_it_is_huge_is_not_unpacked(tmp_path: Path) -> None:
    from standby.wan.payloads import unpacked

    frame = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    with pytest.raises(SegmentDamaged, match="another length"):
        unpacked(frame, 1, 1)
    with pytest.raises(SegmentDamaged):
        unpacked(b"\x28\xb5\x2f\xfd garbage", 1, 1)
    with pytest.raises(SegmentDamaged):
        unpacked(bytes(PIECE), 0, 2)
    assert unpacked(text(1, 1).tobytes(), 0, 1).tobytes() == text(1, 1).tobytes()
