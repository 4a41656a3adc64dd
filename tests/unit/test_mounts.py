"""Mounts of SMB shares that are unfit for disks, by what the kernel says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.files import mount_findings
from standby.road import probing

HEAD = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
GOOD = "rw,vers=3.1.1,cache=strict,username=backup,uid=0,addr=192.0.2.7,rsize=4194304"


def table(options: str, place: str = "/mnt/hv01", kind: str = "cifs") -> str:
    return HEAD + f"90 22 0:55 / {place} rw,relatime shared:9 - {kind} //hv01/vms {options}\n"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (GOOD, []),
        (GOOD.replace("strict", "none"), []),
        (GOOD.replace("3.1.1", "3.0"), []),
        (GOOD.replace("=strict", "=loose"), ["cache=loose"]),
        (GOOD + ",nostrictsync", ["nostrictsync"]),
        (GOOD + ",nobrl", ["nobrl"]),
        (GOOD.replace("3.1.1", "2.1"), ["vers=2.1"]),
        (GOOD.replace("3.1.1", "1.0") + ",nobrl", ["nobrl", "vers=1.0"]),
    ],
)
def test_each_loose_option_has_its_line(options: str, wanted: list[str]) -> None:
    found = mount_findings(Path("/mnt/hv01/vms/web"), table(options))
    assert [next(word for word in wanted if word in line) for line in found] == wanted
    assert all(line.startswith("/mnt/hv01 is mounted with ") for line in found)


@pytest.mark.parametrize(
    ("path", "place", "kind"),
    [
        ("/srv", "/mnt/hv01", "cifs"),
        ("/mnt/hv012/vms", "/mnt/hv01", "cifs"),
        ("/mnt/hv01", "/mnt/hv01", "ext4"),
    ],
)
def test_other_mounts_are_no_business_of_a_path(path: str, place: str, kind: str) -> None:
    assert mount_findings(Path(path), table(GOOD + ",nobrl", place, kind)) == []


def test_a_place_with_blanks_and_one_mounted_over_are_read_as_the_kernel_means_them() -> None:
    loose = table(GOOD + ",nobrl", "/mnt/my\\040share", "smb3")
    assert len(mount_findings(Path("/mnt/my share/x"), loose)) == 1
    assert mount_findings(Path("/mnt/my share/x"), loose + table(GOOD, "/mnt/my\\040share")) == []


def test_a_folder_on_a_loose_mount_is_told_as_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probing.looked_at(tmp_path, True)["problem"] == ""
    real = mount_findings
    text = table(GOOD + ",nobrl", str(tmp_path.resolve()))
    monkeypatch.setattr(probing, "mount_findings", lambda path: real(path, text))
    assert "nobrl" in probing.looked_at(tmp_path, False)["problem"]
