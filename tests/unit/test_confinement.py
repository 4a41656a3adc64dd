"""What a service mover can be talked into opening: nothing outside of its roots (RULES 20)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from standby import files
from standby.disk import open_disk, vhdx
from standby.errors import ConfigurationError, DiskIO, ParentRefused, PathRefused
from standby.files import ByteLock, File
from standby.road.places import LocalPlaces, RootPlaces, plain_name
from standby.units import MiB

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a right there")


@pytest.fixture
def root(tmp_path: Path):
    """A root with a folder, and a secret beside it; this process is confined to the root."""
    (tmp_path / "root" / "vm").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    files.confine([tmp_path / "root"])
    yield tmp_path / "root"
    files.confine(())


@pytest.fixture
def places(root: Path) -> RootPlaces:
    return RootPlaces({"vms": root})


# --- names ---------------------------------------------------------------------------------------


def test_a_place_reads_back_as_it_is_called(root, places):
    for text in ("vms:", "vms:vm", "vms:vm/disk0.vhdx", "vms:not/there/yet"):
        assert places.text(places.path(text)) == text
    assert places.path("vms:vm/disk0.vhdx") == root / "vm" / "disk0.vhdx"
    assert places.inside("vms:", "a/b") == root / "a" / "b"
    assert places.inside("vms:vm", "a") == root / "vm" / "a"


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "vm/disk0.vhdx",
        "other:vm",
        "vms:/etc/passwd",
        "vms:../outside/secret",
        "vms:vm/../../outside/secret",
        "vms:vm/./x",
        "vms:vm//x",
        "vms:C:/x",
        "vms:..\\outside",
        "vms:vm\0",
        "",
    ],
)
def test_a_text_that_is_no_place_below_a_root_is_refused(places, text):
    with pytest.raises(PathRefused):
        places.path(text)


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/passwd", "a/../../x", "a\\b"])
def test_a_name_that_leaves_its_folder_is_refused(places, name):
    with pytest.raises(PathRefused):
        places.inside("vms:vm", name)


def test_a_link_on_the_way_is_refused(root, places):
    (root / "link").symlink_to(root.parent / "outside")
    (root / "vm" / "disk0.vhdx").symlink_to(root.parent / "outside" / "secret")
    for text in ("vms:link", "vms:link/secret", "vms:vm/disk0.vhdx", "vms:vm/disk0.vhdx/x"):
        with pytest.raises(PathRefused):
            places.path(text)


def test_what_lies_elsewhere_has_no_name(root, places):
    with pytest.raises(PathRefused):
        places.text(root.parent / "outside")


def test_of_two_roots_in_one_another_the_inner_one_names(root):
    places = RootPlaces({"outer": root, "inner": root / "vm"})
    assert places.text(root / "vm" / "x") == "inner:x"
    assert places.text(root / "y") == "outer:y"


@pytest.mark.parametrize("name", ["C", "", "a b", "../x", "a:b"])
def test_a_root_that_reads_like_something_else_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError):
        RootPlaces({name: tmp_path})


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "C:x", "a\0"])
def test_disks_and_seeds_are_plain_names(name):
    with pytest.raises(PathRefused):
        plain_name(name, "disk")
    assert plain_name("d1", "disk") == "d1"


def test_local_places_do_not_leave_the_hosts_folder(tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "link").symlink_to("/etc")
    places = LocalPlaces()
    assert places.path(places.text(tmp_path)) == tmp_path
    for name in ("../x", "link/passwd"):
        with pytest.raises(PathRefused):
            places.inside(str(tmp_path / "host"), name)


# --- opening -------------------------------------------------------------------------------------


def test_files_below_the_root_are_used_as_ever(root):
    path = root / "vm" / "a"
    with File(path, create=True) as file:
        file.write(b"text", 0)
    files.write_durably(path, b"more")
    files.write_plainly(root / "vm" / "b", b"shown")
    files.rename_durably(path, root / "c")
    assert files.rename_to_new(root / "c", root / "d")
    assert not files.rename_to_new(root / "vm" / "b", root / "d")
    files.make_folder_durably(root / "new" / "folder")
    with ByteLock(root / "new" / "lock"):
        assert files.is_byte_locked(root / "new" / "lock")
    assert (root / "d").read_bytes() == b"more"
    files.remove_durably(root / "d")
    files.remove_durably(root / "d")
    assert sorted(path.name for path in root.iterdir()) == ["new", "vm"]


def _uses(path: Path, inside: Path):
    """Everything that can be done to `path` through the door."""
    return [
        lambda: File(path),
        lambda: File(path, writable=True),
        lambda: File(path, create=True),
        lambda: files.write_durably(path, b"x"),
        lambda: files.write_plainly(path, b"x"),
        lambda: files.remove_durably(path / "x"),
        lambda: files.rename_durably(inside, path / "x"),
        lambda: files.rename_durably(path / "x", inside),
        lambda: files.rename_to_new(inside, path / "x"),
        lambda: files.make_folder_durably(path / "x"),
        lambda: files.drop_cached(path),
        lambda: ByteLock(path).acquire(),
        lambda: files.check_confined(path),
    ]


def test_nothing_outside_of_the_root_is_touched(root):
    inside = root / "vm" / "mine"
    inside.write_bytes(b"mine")
    outside = root.parent / "outside"
    for place in (outside / "secret", outside, root / "vm" / ".." / ".." / "outside" / "secret"):
        for use in _uses(place, inside):
            with pytest.raises(PathRefused):
                use()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_nothing_behind_a_planted_folder_link_is_touched(root):
    inside = root / "vm" / "mine"
    inside.write_bytes(b"mine")
    outside = root.parent / "outside"
    (root / "link").symlink_to(outside)
    for use in _uses(root / "link" / "secret", inside):
        with pytest.raises(PathRefused):
            use()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_planted_file_link_is_not_followed(root):
    link = root / "vm" / "link"
    link.symlink_to(root.parent / "outside" / "secret")
    for use in (
        lambda: File(link),
        lambda: File(link, writable=True),
        lambda: files.write_plainly(link, b"x"),
        lambda: ByteLock(link).acquire(),
        lambda: files.drop_cached(link),
    ):
        with pytest.raises(PathRefused):
            use()
    files.write_durably(link, b"own")  # replaces the link, not what it leads to
    assert (root.parent / "outside" / "secret").read_bytes() == b"secret"
    assert link.read_bytes() == b"own"


def test_a_folder_exchanged_for_a_link_after_the_look_leads_nowhere(root, places):
    path = places.path("vms:vm/secret")
    (root / "vm").rmdir()
    (root / "vm").symlink_to(root.parent / "outside")
    with pytest.raises(PathRefused):
        File(path)


def test_a_parent_locator_does_not_lead_out(root):
    files.confine(())
    parent = root.parent / "outside" / "parent.vhdx"
    vhdx.create(parent, 8 * MiB).close()
    child = root / "vm" / "child.vhdx"
    vhdx.create_child(child, parent).close()
    files.confine([root])
    with pytest.raises((ParentRefused, PathRefused)):
        open_disk(child)
    with pytest.raises(ParentRefused, match="refused by the mover"):  # nor what a server names
        open_disk(child, parents=[parent])
    linked = root / "vm" / "parent.vhdx"
    linked.symlink_to(parent)
    with pytest.raises(ParentRefused, match="refused by the mover"):
        open_disk(child, parents=[linked])


def test_a_pipe_at_the_place_of_a_disk_does_not_block(root):
    os.mkfifo(root / "vm" / "pipe")
    with pytest.raises(DiskIO):
        File(root / "vm" / "pipe")
