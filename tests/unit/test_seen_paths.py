"""A cluster's paths as proxies see them, and whether a file is the disk that its host means."""

from __future__ import annotations

import pytest

from standby.errors import WrongDisk
from standby.host.seen_paths import ExpectedDisk, check_disk, mapped_path, path_on_node
from standby.units import GiB

MAPS = {
    "prod": {"C:\\ClusterStorage\\Volume1": "/mnt/csv1", "D:\\": "/mnt/any"},
    "prod/hv1": {"d:": "/mnt/hv1-d", "D:\\vm\\big": "/mnt/big"},
    "prod/hv2": {"D:\\": "/mnt/hv2-d"},
}


@pytest.mark.parametrize(
    ("path", "node", "expected"),
    [
        ("C:\\clusterstorage\\volume1\\a.vhdx", "hv1", "/mnt/csv1/a.vhdx"),
        ("C:\\ClusterStorage\\Volume10\\a.vhdx", "hv1", None),
        ("D:\\vm\\a.vhdx", "hv1", "/mnt/hv1-d/vm/a.vhdx"),
        ("D:\\vm\\a.vhdx", "hv2", "/mnt/hv2-d/vm/a.vhdx"),
        ("D:\\vm\\a.vhdx", "hv3", "/mnt/any/vm/a.vhdx"),
        ("D:\\vm\\a.vhdx", "", "/mnt/any/vm/a.vhdx"),
        ("D:\\VM\\Big\\a.vhdx", "hv1", "/mnt/big/a.vhdx"),
        ("E:\\a.vhdx", "hv1", None),
    ],
)
def test_a_nodes_own_map_counts_first(path: str, node: str, expected: str | None) -> None:
    assert path_on_node(path, "prod", node, MAPS) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\ClusterStorage\\V1\\x.vhdx", "/mnt/v1/x.vhdx"),
        ("c:/clusterstorage\\v1//x.vhdx", "/mnt/v1/x.vhdx"),
        ("C:\\ClusterStorage\\V1.\\x.vhdx. ", "/mnt/v1/x.vhdx"),
        ("C:\\ClusterStorage\\V1 \\.hidden", "/mnt/v1/.hidden"),
        ("\\\\?\\C:\\ClusterStorage\\V1\\x", "/mnt/v1/x"),
        ("//?/C:/ClusterStorage/V1/x", "/mnt/v1/x"),
        ("\\\\.\\C:\\ClusterStorage\\V1\\x", "/mnt/v1/x"),
        ("\\??\\C:\\ClusterStorage\\V1\\x", "/mnt/v1/x"),
        ("\\\\SRV\\VMs\\a\\x", "/mnt/vms/a/x"),
        ("\\\\?\\unc\\srv\\vms\\x", "/mnt/vms/x"),
        ("//srv/vms/x", "/mnt/vms/x"),
        ("C:\\ClusterStorage\\V10\\x", None),
        ("\\\\srv\\vms2\\x", None),
        ("C:\\ClusterStorage\\V1\\..\\x", None),
        ("C:\\ClusterStorage\\V1\\.. \\x", None),
        ("C:\\ClusterStorage\\V1\\x.vhdx:stream", None),
        ("/mnt/x", None),
        ("", None),
    ],
)
def test_every_spelling_of_a_windows_path_leads_to_the_same_file(
    path: str, expected: str | None
) -> None:
    maps = {"C:\\ClusterStorage\\V1": "/mnt/v1", "\\\\srv\\vms": "/mnt/vms"}
    assert mapped_path(path, maps) == expected


@pytest.mark.parametrize(
    ("disk_id", "size", "difference"),
    [
        ("{AB-1}", GiB, ""),
        ("ab-2", GiB, "its id is ab-2, the host says ab-1"),
        ("ab-1", 2 * GiB, f"it has {2 * GiB} bytes, the host says {GiB}"),
    ],
)
def test_another_disk_is_refused(disk_id: str, size: int, difference: str) -> None:
    expected = ExpectedDisk("web", "scsi:0:0", "ab-1", GiB)
    if not difference:
        check_disk(expected, "/mnt/a.vhdx", disk_id, size)
        return
    with pytest.raises(WrongDisk, match=difference):
        check_disk(expected, "/mnt/a.vhdx", disk_id, size)
