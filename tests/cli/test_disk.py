"""`standby disk …` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.disk import open_disk, vhdx
from standby.units import MiB


@pytest.fixture
def disk(run):
    """`standby disk …`."""
    return lambda *arguments, **more: run("disk", *arguments, **more)


def written(disk, offset: int, data: bytes) -> None:
    try:
        disk.write(offset, data)
    finally:
        disk.close()


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path]:
    """A base of 8 MiB with data in its first MiB, and a child with some in its third."""
    base, child = tmp_path / "base.vhdx", tmp_path / "child.avhdx"
    written(vhdx.create(base, 8 * MiB), 0, b"b" * MiB)
    written(vhdx.create_child(child, base), 2 * MiB, b"c" * 8192)
    return base, child


def content(path: Path) -> bytes:
    opened = open_disk(path)
    try:
        data = bytearray(opened.virtual_size)
        opened.read_into(0, data)
        return bytes(data)
    finally:
        opened.close()


# --- info ------------------------------------------------------------------------------------


def test_info_of_a_chain(disk, chain: tuple[Path, Path]) -> None:
    text = disk("info", chain[1]).out
    assert "differencing VHDX" in text
    assert "8.0 MiB (8388608 bytes)" in text
    assert "base.vhdx" in text
    found = disk("info", chain[0], "--json").json
    assert found["format"] == "vhdx"
    assert found["has_parent"] is False


def test_info_of_a_raw_image(disk, tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    with raw.open("wb") as file:
        file.truncate(4 * MiB)
        file.seek(MiB)
        file.write(b"x" * 4096)
    assert "raw image" in disk("info", raw).out
    found = disk("info", raw, "--json").json
    assert found["virtual_size"] == 4 * MiB
    assert 4096 <= found["allocated"] <= 4 * MiB


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb",
    [
        ("info", "{}"),
        ("check", "{}"),
        ("compare", "{}", "{}"),
        ("convert", "--format", "raw", "{}", "out.raw"),
        ("merge", "{}"),
        ("serve", "{}"),
    ],
)
def test_missing_files_and_folders_are_usage_errors(disk, tmp_path: Path, verb) -> None:
    missing = tmp_path / "missing.vhdx"
    ended = disk(*(word.format(missing) for word in verb), expect=2)
    assert f"File '{missing}' does not exist" in ended.err
    ended = disk(*(word.format(tmp_path) for word in verb), expect=2)
    assert f"File '{tmp_path}' is a directory" in ended.err


@pytest.mark.parametrize("verb", ["info", "check", "merge"])
@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("no.vhdx", b"not a disk" * 1000, "no.vhdx"),
        ("empty.vhdx", b"", "empty.vhdx"),
        ("other.img", b"QFI\xfb" + bytes(8192), "qcow2"),
    ],
)
def test_what_is_not_a_vhdx_is_refused_by_name(
    disk, tmp_path: Path, verb: str, name: str, data: bytes, text: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    ended = disk(verb, path, expect=11)
    assert text in ended.out + ended.err
    assert "Traceback" not in ended.err


def test_a_raw_image_has_no_structure_to_check_and_no_parent(disk, tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(8192))
    assert "raw image" in disk("check", raw, expect=11).err
    assert "no VHDX parent" in disk("merge", raw, "--yes", expect=11).err


# --- check and compare -----------------------------------------------------------------------


def test_check(disk, chain: tuple[Path, Path]) -> None:
    assert f"{chain[1]}: ok, " in disk("check", chain[1]).out
    assert disk("check", chain[1], "--json").json["is_ok"] is True
    chain[0].write_bytes(chain[0].read_bytes()[: 2 * MiB])
    ended = disk("check", chain[1], expect=11)
    assert "DAMAGED" in ended.out
    assert "base.vhdx" in ended.out


def test_compare_equal_and_different(disk, chain: tuple[Path, Path]) -> None:
    assert disk("compare", chain[0], chain[0]).out == "equal\n"
    ended = disk("compare", *chain, expect=3)
    assert ended.out == "0x000000200000 8.0 KiB\n8.0 KiB differ in 1 ranges\n"
    assert disk("compare", *chain, "--json", expect=3).json == {
        "equal": False,
        "sizes": [8 * MiB, 8 * MiB],
        "bytes": 8192,
        "extents": [{"offset": 2 * MiB, "length": 8192}],
    }


# --- convert ---------------------------------------------------------------------------------


def test_convert_there_and_back(disk, chain: tuple[Path, Path], tmp_path: Path) -> None:
    raw, again = tmp_path / "flat.raw", tmp_path / "again.vhdx"
    assert disk("convert", "--format", "raw", chain[1], raw, "--json").json["virtual_size"] == (
        8 * MiB
    )
    assert raw.read_bytes() == content(chain[1])
    disk("convert", "--format", "vhdx", "--block-size", "2M", raw, again)
    assert content(again) == content(chain[1])
    assert vhdx.read_info(again).block_size == 2 * MiB


def test_convert_dry_run_writes_nothing(disk, chain: tuple[Path, Path], tmp_path: Path) -> None:
    raw = tmp_path / "flat.raw"
    planned = disk("convert", "--format", "raw", chain[1], raw, "--dry-run", "--json").json
    assert planned["source_format"] == "vhdx"
    assert planned["virtual_size"] == 8 * MiB
    assert planned["read"] >= MiB + 8192
    assert "would read" in disk("convert", "--format", "raw", chain[1], raw, "--dry-run").out
    assert not raw.exists()


def test_convert_refuses_to_overwrite_unasked(disk, chain: tuple[Path, Path]) -> None:
    for more in ((), ("--dry-run",)):
        ended = disk("convert", "--format", "raw", chain[1], chain[0], *more, expect=10)
        assert "--replace" in ended.err
    ended = disk("convert", "--format", "raw", chain[1], chain[0].parent / "no" / "x", expect=10)
    assert "folder" in ended.err


def test_a_block_size_that_is_none_is_a_usage_error(disk, chain, tmp_path: Path) -> None:
    ended = disk(
        "convert", "--format", "vhdx", "--block-size", "huge", chain[0], tmp_path / "x", expect=2
    )
    assert "'huge' is not a size" in ended.err


@pytest.mark.parametrize("size", ["3M", "512K", "512M", "0"])
def test_a_block_size_that_vhdx_has_not_is_a_usage_error(
    disk, chain, tmp_path: Path, size: str
) -> None:
    new = tmp_path / "x.vhdx"
    ended = disk("convert", "--format", "vhdx", "--block-size", size, chain[0], new, expect=2)
    assert "--block-size" in ended.err
    assert "not a power of two from 1 MiB to 256 MiB" in ended.err
    assert "partial" not in ended.err


# --- merge -----------------------------------------------------------------------------------


def test_merge_says_where_to_and_how_much(disk, chain: tuple[Path, Path]) -> None:
    base, child = chain
    wanted = content(child)
    planned = disk("merge", child, "--dry-run", "--json").json
    assert planned == {"child": str(child), "base": str(base), "grows_by": MiB}
    assert str(base) in disk("merge", child, "--dry-run").out
    assert "--yes" in disk("merge", child, expect=2).err
    assert child.exists()
    done = disk("merge", child, "--yes", "--json").json
    assert done == {"child": str(child), "base": str(base), "copied": 8192}
    assert not child.exists()
    assert content(base) == wanted


def test_a_parent_in_another_folder_is_found_where_that_is_allowed(disk, tmp_path: Path) -> None:
    base, child = tmp_path / "bases" / "base.vhdx", tmp_path / "children" / "child.avhdx"
    for path in (base, child):
        path.parent.mkdir()
    written(vhdx.create(base, 8 * MiB), 0, b"b" * MiB)
    written(vhdx.create_child(child, base), 0, b"c" * 4096)
    for verb in ("check", "merge"):
        ended = disk(verb, child, expect=11)
        assert "base.vhdx" in ended.out + ended.err
    assert "2 files checked" in disk("check", child, "--parents-in", base.parent).out
    planned = disk("merge", child, "--dry-run", "--json", "--parents-in", base.parent)
    assert Path(planned.json["base"]).samefile(base)


def test_merging_a_replicas_point_is_refused(disk, target: Path) -> None:
    folder = target / "vm1_replica" / "disk0"
    point = next(path for path in folder.glob("2*.vhdx"))
    ended = disk("merge", point, "--yes", expect=10)
    assert "belongs to the replica" in ended.err
    assert point.exists()


@pytest.mark.parametrize(("first", "second"), [(1000, 1000), (5000, 5001), (MiB + 1, MiB + 513)])
def test_raw_images_that_are_no_whole_sectors_are_compared(
    disk, tmp_path: Path, first: int, second: int
) -> None:
    a, b = tmp_path / "a.img", tmp_path / "b.img"
    a.write_bytes(b"a" * first)
    b.write_bytes(b"a" * first + bytes(second - first))
    if first == second:
        assert disk("compare", a, b).out == "equal\n"
    else:
        found = disk("compare", a, b, expect=3).out
        assert f"sizes differ: {first} and {second} bytes; {b} is longer by " in found
        assert "no byte differs but the sizes do" in found
    b.write_bytes(b"a" * (second - 1) + b"b")
    told = disk("compare", a, b, "--json", expect=3).json
    assert (told["equal"], told["sizes"]) == (False, [first, second])
    last = told["extents"][-1]
    assert last["offset"] + last["length"] == second
    assert told["bytes"] == sum(item["length"] for item in told["extents"])
