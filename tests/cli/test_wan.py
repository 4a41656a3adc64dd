"""`standby wan …` in this process."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from standby.disk import vhdx
from standby.units import MiB
from wan_caches import KEY, OTHER_KEY, check_never_wrong, noise, open_cache

STATUS = {
    *("folder", "limit_bytes", "bytes", "segments", "open_segments", "pinned_segments", "pieces"),
    *("disk_pieces", "entries", "mode", "memory_bytes", "memory_max_bytes", "index_bytes"),
    *("stopped_by", "problems", "namespaces", "counts", "is_in_use", "is_told"),
}
NAMESPACE = {"fingerprint", "segments", "bytes", "pieces", "disk_pieces"}
VERIFY = {
    *("segments", "records", "pieces", "bytes", "unnamed_pieces", "findings", "is_ok", "drops"),
}
POPULATE = {
    *("cache", "evicted", "disks", "bytes_read", "pieces_added", "bytes_added", "problems"),
}


@pytest.fixture
def wan(run):
    """`standby wan …`."""
    return lambda *arguments, **more: run("wan", *arguments, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A reference to the tenant's key."""
    path = tmp_path / "tenant.key"
    path.write_text(KEY.hex() + "\n")
    return f"file:{path}"


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """A folder with a VHDX and a raw image."""
    folder = tmp_path / "disks"
    folder.mkdir()
    with closing(vhdx.create(folder / "a.vhdx", 8 * MiB)) as disk:
        disk.write(MiB, noise(300, 1).data)
    (folder / "b.raw").write_bytes(noise(20, 2).tobytes())
    return folder


@pytest.fixture
def populated(wan, folder: Path, disks: Path, key: str) -> Path:
    wan("populate", folder, disks, "--key", key, "--limit", "64M", "--memory", "1M")
    return folder


def cached(folder: Path, pieces, key: bytes = KEY) -> int:
    with open_cache(folder, new_table=None) as cache:
        return check_never_wrong(cache.namespace(key), pieces, key)


def test_populate_takes_in_the_disks_of_folders_and_files(
    wan, folder: Path, disks: Path, key: str
) -> None:
    found = wan("populate", folder, disks / "b.raw", "--key", key, "--json").json
    assert set(found) == POPULATE
    assert (found["disks"], found["pieces_added"]) == (1, 20)
    text = wan("populate", folder, disks, "--key", key).out
    assert "2 disks" in text
    assert "300 new pieces" in text
    assert cached(folder, noise(300, 1)) == 300
    assert cached(folder, noise(20, 2)) == 20


def test_populate_in_place_copies_nothing(wan, folder: Path, disks: Path, key: str) -> None:
    wan("populate", folder, disks / "a.vhdx", "--key", key, "--in-place")
    found = wan("status", folder, "--json").json
    assert (found["pieces"], found["disk_pieces"]) == (0, 300)
    assert cached(folder, noise(300, 1)) == 300


def test_populate_names_its_disks_before(wan, folder: Path, disks: Path, key: str) -> None:
    found = wan("populate", folder, disks, "--key", key, "--dry-run", "--json").json
    assert [Path(disk["path"]).name for disk in found["disks"]] == ["a.vhdx", "b.raw"]
    assert "would take 2 disks" in wan("populate", folder, disks, "--key", key, "--dry-run").out
    assert not folder.exists()


def test_a_disk_that_cannot_be_read_is_a_warning(wan, folder: Path, disks: Path, key: str) -> None:
    (disks / "a.vhdx").write_bytes(b"vhdxfile")
    ended = wan("populate", folder, disks, "--key", key, expect=3)
    assert "warning:" in ended.err
    assert "a.vhdx" in ended.err
    assert "20 new pieces" in ended.out


def test_populate_says_when_the_limit_was_reached(
    wan, folder: Path, tmp_path: Path, key: str
) -> None:
    (tmp_path / "big.raw").write_bytes(noise(3000, 5).tobytes())
    arguments = ("populate", folder, tmp_path / "big.raw", "--key", key, "--limit", "4M")
    assert "a larger --limit keeps more" in wan(*arguments).err
    assert sum(path.stat().st_size for path in folder.glob("*.segment")) <= 4 * MiB


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "missing.key"), ("", "is empty"), ("abc", "no key"), ("ab" * 31, "no key")],
)
def test_a_key_that_is_none_is_refused_and_not_shown(
    wan, folder: Path, disks: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "missing.key"
    if text is not None:
        path.write_text(text)
    ended = wan("populate", folder, disks, "--key", f"file:{path}", expect=10)
    assert said in ended.err
    assert not text or text not in ended.err.replace(str(tmp_path), "")


def test_a_key_on_the_command_line_is_refused(wan, folder: Path, disks: Path) -> None:
    ended = wan("populate", folder, disks, "--key", KEY.hex(), expect=10)
    assert "env:NAME or file:PATH" in ended.err
    assert KEY.hex() not in ended.err


def test_a_key_from_the_environment(
    wan, folder: Path, disks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANT_KEY", OTHER_KEY.hex())
    wan("populate", folder, disks, "--key", "env:TENANT_KEY")
    assert cached(folder, noise(20, 2), OTHER_KEY) == 20


@pytest.mark.parametrize("option", ["--limit", "--memory"])
def test_limits_too_small_are_refused_before_anything_is_made(
    wan, folder: Path, disks: Path, key: str, option: str
) -> None:
    ended = wan("populate", folder, disks, "--key", key, option, "4K", expect=10)
    assert "at least" in ended.err
    assert not folder.exists()


# --- status ------------------------------------------------------------------------------------


def test_status_says_what_there_is(wan, populated: Path) -> None:
    found = wan("status", populated, "--json").json
    assert set(found) == STATUS
    assert set(found["namespaces"][0]) == NAMESPACE
    assert (found["pieces"], found["mode"], found["limit_bytes"]) == (320, "full", 64 * MiB)
    assert (found["is_in_use"], found["is_told"]) == (False, True)
    text = wan("status", populated).out
    assert "320 pieces" in text
    assert "of 64.0 MiB" in text


def test_status_of_a_cache_in_use(wan, populated: Path) -> None:
    with open_cache(populated, new_table=None) as cache:
        cache.namespace(KEY).add(noise(7, 9))
        found = wan("status", populated, "--json").json
        assert found["is_in_use"]
        assert found["pieces"] == 327
        assert "(in use)" in wan("status", populated).out
        ended = wan("verify", populated, expect=11)
        assert "another process uses the cache" in ended.err


def test_status_without_what_was_told(wan, populated: Path) -> None:
    (populated / "status.json").write_bytes(b"{")
    found = wan("status", populated, "--json").json
    assert (found["is_told"], found["pieces"]) == (False, 320)
    assert "not known" in wan("status", populated).out


@pytest.mark.parametrize("verb", [("status",), ("verify",), ("clear", "--yes")])
def test_a_folder_without_a_cache_is_refused_and_left_alone(
    wan, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    place = tmp_path / "none"
    place.mkdir()
    assert "holds no cache" in wan(verb[0], place, *verb[1:], expect=10).err
    assert not list(place.iterdir())


# --- verify ------------------------------------------------------------------------------------


def damage(folder: Path) -> None:
    path = next(folder.glob("*.segment"))
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def test_verify_of_a_sound_cache(wan, populated: Path, key: str) -> None:
    found = wan("verify", populated, "--key", key, "--json").json
    assert set(found) == VERIFY
    assert (found["is_ok"], found["pieces"], found["unnamed_pieces"]) == (True, 320, 0)
    assert "320 by checksum only" in wan("verify", populated).out


def test_verify_names_and_drops_what_is_bad(wan, populated: Path, key: str) -> None:
    # Sealed, as opening reads what is open and cuts it where it is bad.
    with open_cache(populated, new_table=None) as cache:
        assert all(cache.intake.seal_open(segment) for segment in cache.shelf)
    damage(populated)
    ended = wan("verify", populated, "--dry-run", expect=3)
    assert "dropped" not in ended.out
    ended = wan("verify", populated, "--key", key, expect=3)
    assert "000000001.segment at 0x48" in ended.out
    assert "32 pieces, dropped" in ended.out
    assert "1 bad" in ended.out
    found = wan("verify", populated, "--json").json
    assert (found["is_ok"], found["pieces"]) == (True, 288)
    assert cached(populated, noise(300, 1)) == 268


# --- clear -------------------------------------------------------------------------------------


def test_clear_removes_everything(wan, populated: Path) -> None:
    assert "would remove 1 segments" in wan("clear", populated, "--dry-run").out
    assert wan("clear", populated, "--dry-run", "--json").json["segments"] == 1
    assert "--yes" in wan("clear", populated, expect=2).err
    assert wan("clear", populated, "--yes", "--json").json["segments"] == 1
    assert wan("status", populated, "--json").json["pieces"] == 0
    assert cached(populated, noise(300, 1)) == 0


def test_clear_of_one_tenant_leaves_the_others(
    wan, populated: Path, disks: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENANT_KEY", OTHER_KEY.hex())
    wan("populate", populated, disks / "b.raw", "--key", "env:TENANT_KEY")
    wan("clear", populated, "--key", key, "--yes")
    assert cached(populated, noise(20, 2)) == 0
    assert cached(populated, noise(20, 2), OTHER_KEY) == 20
