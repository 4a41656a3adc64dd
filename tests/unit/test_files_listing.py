"""What is not there, and what the system keeps from us."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rights import without_rights
from standby.errors import DiskIO, RepositoryError
from standby.files import is_file, is_folder, is_taken, is_there, listed, make_folder_durably
from standby.repository.database import Database

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes rights away as Linux does")


def test_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert listed(tmp_path / "none") == listed(tmp_path / "file") == []
    assert listed(tmp_path) == [tmp_path / "file", tmp_path / "loop"]
    assert is_there(tmp_path / "file")
    assert not is_folder(tmp_path / "file")
    for path in (tmp_path / "none", tmp_path / "file" / "below", tmp_path / "loop"):
        assert not is_there(path)
        assert not is_folder(path)
        assert not is_file(path)
        assert is_taken(path) is (path.name == "loop")
    assert is_folder(tmp_path)
    assert is_file(tmp_path / "file")
    assert not is_file(tmp_path)


def test_what_may_not_be_looked_at_is_named_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with without_rights(folder):
        for look in (
            lambda: listed(folder),
            lambda: is_there(folder / "file"),
            lambda: is_folder(folder / "file"),
            lambda: is_file(folder / "file"),
            lambda: is_taken(folder / "file"),
            lambda: make_folder_durably(folder / "below" / "deeper"),
        ):
            with pytest.raises(DiskIO, match=r"folder.*Permission denied"):
                look()
        assert is_folder(folder)
    assert listed(folder) == []


@pytest.mark.parametrize("create", [False, True])
def test_a_repository_that_may_not_be_read_is_named(tmp_path: Path, create: bool) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for closed in (folder, tmp_path):
        with (
            without_rights(closed),
            pytest.raises(RepositoryError, match=r"repository: cannot be read: Permission denied"),
        ):
            Database(folder, create=create)
    assert listed(folder) == []
