"""`.digests` files: the golden bytes, writing, reading, damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from standby import digesting
from standby.digesting import LEAVES_PER_PAGE, PAGE, ZERO_LEAF, DigestFile, DigestWriter
from standby.errors import DiskCorrupt, DiskIO, DiskUnsupported
from standby.units import TiB

ZERO_PAGE = np.full(LEAVES_PER_PAGE, ZERO_LEAF)


def page(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, LEAVES_PER_PAGE, np.uint64)


def root_of(virtual_size: int, pages: dict[int, np.ndarray]) -> bytes:
    numbers = sorted(pages)
    leaves = np.array([pages[n] for n in numbers], np.uint64).reshape(-1, LEAVES_PER_PAGE)
    return digesting.root_of_pages(
        virtual_size, np.array(numbers, np.int64), digesting.page_nodes(leaves)
    )


def write(path: Path, virtual_size: int, pages: dict[int, np.ndarray], root: bytes = b"") -> bytes:
    """A complete file, or with `root` one of differing pages; returns the root."""
    with DigestWriter(path, virtual_size, complete=not root) as writer:
        for number in sorted(pages):
            writer.add(number, pages[number])
        root = root or root_of(virtual_size, pages)
        writer.finish(root)
    return root


def golden(complete: bool) -> bytes:
    """The file of a 40 MiB disk with pages 0 (stored), 1 (zero), 2 (stored), by FORMAT.md, with
    struct and xxhash alone."""
    leaves = [struct.pack("<4096Q", *range(start, start + 4096)) for start in (1000, 9000)]
    nodes = [
        xxhash.xxh3_128_digest(
            b"".join(xxhash.xxh3_128_digest(raw[at : at + 512]) for at in range(0, 32768, 512))
        )
        for raw in leaves
    ]
    zeros = [bytes.fromhex("6eb528c8bc187b8c04ade3e6887e16d2")]
    for _ in range(2):
        zeros.append(xxhash.xxh3_128_digest(zeros[-1] * 64))
    top = nodes[0] + zeros[0] + nodes[1] + zeros[0] * 61
    for zero in zeros[1:]:
        top = xxhash.xxh3_128_digest(top) + zero * 63
    top = xxhash.xxh3_128_digest(top)
    size = 40 << 20
    root = xxhash.xxh3_128_digest(struct.pack("<Q", size) + top)
    header = b"STBYDIGS" + struct.pack("<IIQ", 1, int(complete), size) + bytes(40)
    index = struct.pack("<QQ", 0, 4096) + nodes[0]
    if not complete:
        index += struct.pack("<QQ", 1, 0) + zeros[0]
    index += struct.pack("<QQ", 2, 36864) + nodes[1]
    footer = struct.pack("<QQ", 4096 + 65536, len(index) // 32) + root
    check = xxhash.xxh3_128_digest(header + index + footer)
    tail = footer + check + b"STBYDEND" + bytes(8)
    return header.ljust(4096, b"\0") + b"".join(leaves) + index + tail


@pytest.mark.parametrize("complete", [True, False])
def test_golden_file_is_written_and_read(tmp_path: Path, complete: bool):
    wanted = golden(complete)
    root = wanted[-48:-32]
    with DigestWriter(tmp_path / "a.digests", 40 << 20, complete) as writer:
        writer.add(0, np.arange(1000, 5096, dtype=np.uint64))
        writer.add(1, ZERO_PAGE)
        writer.add(2, np.arange(9000, 13096, dtype=np.uint64))
        writer.finish(root)
    assert (tmp_path / "a.digests").read_bytes() == wanted
    (tmp_path / "b.digests").write_bytes(wanted)
    with DigestFile.open(tmp_path / "b.digests") as file:
        assert file.virtual_size == 40 << 20
        assert file.is_complete is complete
        assert file.root == root
        assert file.page_numbers.tolist() == ([0, 2] if complete else [0, 1, 2])
        assert file.page_numbers.dtype == np.int64
        assert file.nodes.shape == (len(file.page_numbers), 16)
        assert file.leaves(2).tolist() == list(range(9000, 13096))
        if not complete:
            assert (file.leaves(1) == ZERO_LEAF).all()
        with pytest.raises(KeyError):
            file.leaves(1 if complete else 3)


def test_empty_files_are_read(tmp_path: Path):
    for size in (0, 1, 64 * TiB):
        root = write(tmp_path / "a", size, {})
        with DigestFile.open(tmp_path / "a") as file:
            assert (file.virtual_size, file.root, len(file.page_numbers)) == (size, root, 0)
            assert file.nodes.shape == (0, 16)
            with pytest.raises(KeyError):
                file.leaves(0)


def test_pages_beyond_4_gib_of_disk_and_at_its_end_are_read(tmp_path: Path):
    last = 16 * TiB // PAGE - 1
    pages = {300: page(1), last: page(2)}
    write(tmp_path / "a", 16 * TiB, pages)
    with DigestFile.open(tmp_path / "a") as file:
        assert file.page_numbers.tolist() == [300, last]
        assert (file.leaves(last) == pages[last]).all()


def test_nothing_is_left_when_writing_ends_early(tmp_path: Path):
    with DigestWriter(tmp_path / "a", PAGE, True) as writer:
        writer.add(0, page(1))
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_until_the_new_one_is_finished(tmp_path: Path):
    old = write(tmp_path / "a", PAGE, {0: page(1)})
    with DigestWriter(tmp_path / "a", PAGE, True) as writer:
        writer.add(0, page(2))
        with DigestFile.open(tmp_path / "a") as file:
            assert file.root == old
        writer.finish(root_of(PAGE, {0: page(2)}))
    with DigestFile.open(tmp_path / "a") as file:
        assert file.root == root_of(PAGE, {0: page(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_writer_refuses_what_would_make_a_wrong_file(tmp_path: Path):
    with pytest.raises(ValueError, match="no disk has"):
        DigestWriter(tmp_path / "a", -1, True)
    with DigestWriter(tmp_path / "a", 2 * PAGE, True) as writer:
        for number in (-1, 2):
            with pytest.raises(ValueError, match="out of order or outside"):
                writer.add(number, page(1))
        writer.add(1, page(1))
        for number in (0, 1):
            with pytest.raises(ValueError, match="out of order or outside"):
                writer.add(number, page(1))
        for root in (bytes(16), b"short"):
            with pytest.raises(ValueError, match="is not the root"):
                writer.finish(root)
    with DigestWriter(tmp_path / "a", 2 * PAGE, True) as writer:
        for wrong in (page(1)[:-1], page(1).astype(np.int64), page(1).reshape(64, 64)):
            with pytest.raises(ValueError, match="4096 uint64"):
                writer.add(0, wrong)


def test_damaged_leaves_are_found_when_they_are_read(tmp_path: Path):
    write(tmp_path / "a", 2 * PAGE, {0: page(1), 1: page(2)})
    data = bytearray((tmp_path / "a").read_bytes())
    data[4096 + 32768 + 77] ^= 4
    (tmp_path / "a").write_bytes(data)
    with DigestFile.open(tmp_path / "a") as file:
        assert (file.leaves(0) == page(1)).all()
        with pytest.raises(DiskCorrupt, match=r"page 1 do not match .* offset 0x9000"):
            file.leaves(1)


def test_later_versions_and_flags_are_unsupported_rather_than_corrupt(tmp_path: Path):
    data = bytearray(golden(True))
    data[8] = 2
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DiskUnsupported, match="version 2"):
        DigestFile.open(tmp_path / "a")
    (tmp_path / "a").write_bytes(sealed(golden(True), 12, struct.pack("<I", 3)))
    with pytest.raises(DiskUnsupported, match="flags 0x3"):
        DigestFile.open(tmp_path / "a")


def sealed(data: bytes, offset: int, patch: bytes) -> bytes:
    """`data` with a patch (a negative offset counts from the end), checksum made to fit."""
    changed = bytearray(data)
    offset %= len(data)
    changed[offset : offset + len(patch)] = patch
    index_at = 4096 + 65536
    check = xxhash.xxh3_128_digest(changed[:64] + changed[index_at:-64] + changed[-64:-32])
    changed[-32:-16] = check
    return bytes(changed)


INDEX = 4096 + 65536
LYING: dict[str, tuple[bool, int, bytes, str]] = {
    "page behind the disk": (True, INDEX + 32, struct.pack("<Q", 3), "lie outside the disk"),
    "page far behind it": (True, INDEX + 32, b"\xff" * 8, "lie outside the disk"),
    "page twice": (True, INDEX + 32, struct.pack("<Q", 0), "do not ascend"),
    "pages at one place": (True, INDEX + 40, struct.pack("<Q", 4096), "one after the other"),
    "page beyond the file": (True, INDEX + 40, struct.pack("<Q", 1 << 60), "one after the other"),
    "zero page in a complete file": (True, INDEX + 40, bytes(8), "states a page to be zero"),
    "zero page with a node": (False, INDEX + 48, bytes(8), "has another node"),
    "stored page called zero": (False, INDEX + 8, bytes(8), "has another node"),
    "another node": (True, INDEX + 16, bytes(8), "do not make the root"),
    "another root": (True, -48, bytes(8), "do not make the root"),
    "huge disk": (True, 16, b"\xff" * 8, "virtual size"),
    "index elsewhere": (True, -64, struct.pack("<Q", 8192), "does not fill"),
    "index before the pages": (True, -64, struct.pack("<Q", 0), "does not fill"),
    "too many entries": (True, -56, struct.pack("<Q", 1 << 59), "does not fill"),
    "no footer": (True, -16, b"STBYDENX", "no footer"),
    "no header": (True, 0, b"STBYDIGX", "not a digests file"),
}


@pytest.mark.parametrize("case", LYING)
def test_a_lying_file_is_refused_although_its_checksum_fits(tmp_path: Path, case: str):
    complete, offset, patch, message = LYING[case]
    (tmp_path / "a").write_bytes(sealed(golden(complete), offset, patch))
    with pytest.raises(DiskCorrupt, match=message):
        DigestFile.open(tmp_path / "a")


@pytest.mark.parametrize("length", [0, 1, 63, 64, 4096, 4159, 4160])
def test_a_cut_file_is_refused(tmp_path: Path, length: int):
    (tmp_path / "a").write_bytes(golden(True)[:length])
    with pytest.raises(DiskCorrupt):
        DigestFile.open(tmp_path / "a")


def test_a_missing_file_is_an_io_error(tmp_path: Path):
    with pytest.raises(DiskIO, match="open"):
        DigestFile.open(tmp_path / "a")
