"""The command line in this process, and a small site it can be tried on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simulation.site import Site
from standby.cli import cli
from standby.road.source_host import SourceVerbs
from standby.road.target_host import TargetVerbs
from standby.server.movers import MoverPair
from standby.server.server import BackupServer
from standby.testing.movers import thread_movers
from standby.units import MiB


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture
def run() -> Run:
    """Runs the command line in this process; an unexpected exception is the test's."""

    def runs(*arguments: object, expect: int | None = 0) -> Ended:
        found = CliRunner().invoke(cli, [str(item) for item in arguments])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        ended = Ended(found.exit_code, found.stdout, found.stderr)
        if expect is not None:
            assert ended.code == expect, f"{ended.out}\n{ended.err}"
        return ended

    return runs


@pytest.fixture
def with_thread_movers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of this process have their movers in it too: processes take a second to start."""

    def movers(connections: int) -> MoverPair:
        return thread_movers(connections, SourceVerbs, TargetVerbs)

    monkeypatch.setitem(BackupServer.__init__.__kwdefaults__, "make_movers", movers)


def small_site(folder: Path) -> Site:
    """One VM with two disks, a few MiB of content, no session yet."""
    made = Site(folder)
    made.add_machine(sizes=(8 * MiB, 4 * MiB))
    made.write(0, 2 * MiB)
    made.write(4096, MiB, 1)
    return made


@pytest.fixture
def site(tmp_path: Path, with_thread_movers: None) -> Site:
    """A site without any session yet."""
    return small_site(tmp_path / "site")


@pytest.fixture(scope="session")
def _replicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = small_site(tmp_path_factory.mktemp("replicated") / "site")
    made.run()
    made.write(MiB, 64 * 1024)
    made.run()
    return made.folder


@pytest.fixture
def target(_replicated: Path, tmp_path: Path) -> Path:
    """A target folder with the replica `vm1_replica` of two points, and nothing else alive."""
    folder = tmp_path / "dr"
    shutil.copytree(_replicated / "target", folder)
    return folder


@pytest.fixture
def replicated(site: Site) -> Site:
    """A site with two sessions behind it."""
    site.run()
    site.write(MiB, 64 * 1024)
    site.run()
    return site
