"""The repository's format against FORMAT.md and the golden file of each version.

The golden file holds replica `web` with disk `os` of 1 GiB at points p1 and p2 and a staging for
p3, and is made by this module run as a script: `python tests/unit/test_repository_format.py`.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from standby import digesting
from standby.repository import Mark, Repository

GOLDEN = Path(__file__).parent / "golden" / "repository-1.sqlite.gz"
SIZE = 1 << 30


def page_of(start: int) -> NDArray[np.uint64]:
    """Leaves start, start + 1, …"""
    return np.arange(start, start + 4096, dtype=np.uint64).reshape(1, -1)


FIRST = {0: page_of(1), 9: page_of(2), 63: page_of(3)}
SECOND = {0: page_of(1), 9: page_of(4), 10: page_of(5)}


def root_of(pages: dict[int, NDArray[np.uint64]]) -> bytes:
    leaves = np.concatenate(list(pages.values()))
    return digesting.root_of_pages(SIZE, np.array(list(pages)), digesting.page_nodes(leaves))


def fill(repository: Repository) -> None:
    staging = repository.stage("web", "os", "s1", "p1", SIZE, False)
    for page, leaves in FIRST.items():
        staging.put([page], leaves)
    staging.sync()
    repository.commit("web", "p1", {"os": root_of(FIRST)})
    staging = repository.stage("web", "os", "s2", "p2", SIZE, True)
    staging.put([9, 10], np.concatenate([SECOND[9], SECOND[10]]))
    staging.put([63], np.full((1, 4096), digesting.ZERO_LEAF))
    staging.sync()
    repository.commit("web", "p2", {"os": root_of(SECOND)})
    staging = repository.stage("web", "os", "s3", "p3", SIZE, True)
    staging.put([1], page_of(6))
    staging.set_mark("c3", 2 * digesting.PAGE)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    (tmp_path / "repository.sqlite").write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    return tmp_path


def test_version_1_is_read(golden: Path) -> None:
    with Repository(golden, create=False) as repository:
        assert repository.verify() == []
        assert repository.points("web") == ["p1", "p2"]
        for point, pages in (("p1", FIRST), ("p2", SECOND)):
            assert repository.index("web", "os", point)[0].tolist() == list(pages)
            leaves = repository.leaves("web", "os", list(pages), point)
            assert (leaves == np.concatenate(list(pages.values()))).all()
        (staged,) = repository.staged("web")
        assert (staged.point_id, staged.mark) == ("p3", Mark("c3", 2 * digesting.PAGE))
        staging = repository.stage("web", "os", "s4", "p3", SIZE, True)
        repository.commit("web", "p3", {"os": staging.root()})
        repository.drop_points("web", {"p3"})
        assert repository.index("web", "os")[0].tolist() == [0, 1, 9, 10]
        assert repository.verify() == []


def test_this_release_writes_version_1(golden: Path, tmp_path: Path) -> None:
    with Repository(tmp_path / "new") as repository:
        fill(repository)
        new = dump(repository)
    with Repository(golden) as repository:
        assert dump(repository) == new


def dump(repository: Repository) -> dict[str, object]:
    """The schema, and every row of every table."""
    with repository._database.reading() as connection:
        schema = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        ).fetchall()
        rows = {
            name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3").fetchall()
            for name in ("disks", "states", "pages", "stagings", "staged_pages")
        }
        leaves = connection.execute("SELECT * FROM leaves ORDER BY id").fetchall()
    return {"schema": schema, **rows, "leaves": leaves}


def test_magic_and_version_stand_where_the_document_says(golden: Path) -> None:
    header = (golden / "repository.sqlite").read_bytes()[:100]
    assert header[:16] == b"SQLite format 3\0"
    assert header[68:72] == b"SBDP"
    assert struct.unpack(">I", header[60:64]) == (1,)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with Repository(Path(folder)) as repository:
            fill(repository)
        data = (Path(folder) / "repository.sqlite").read_bytes()
    GOLDEN.write_bytes(gzip.compress(data, mtime=0))
