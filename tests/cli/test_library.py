"""The same as a library: four lines of script replicate a VM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import standby
from cli.conftest import small_site

SCRIPT = """\
import standby
with standby.BackupServer("standby.toml") as server:
    report = server.start("job")
    print(report.outcome, [machine.point for machine in report.machines])
"""


def test_four_lines_replicate_a_vm(tmp_path: Path) -> None:
    site = small_site(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (point,) = [item.id for item in site.replica().points()]
    assert done.stdout == f"done ['{point}']\n"
    site.remember_point("vm1_replica", point, "vm1")
    assert site.check_points() == 1


def test_the_packages_own_example_calls_what_exists() -> None:
    text = standby.__doc__ or ""
    for line in ('standby.BackupServer("standby.toml")', 'server.start("nightly")'):
        assert line in text
    assert callable(standby.BackupServer.start)


def test_everything_the_command_line_does_is_a_method() -> None:
    for name in ("check", "jobs", "plan", "start", "stop", "sessions", "report", "acknowledge"):
        assert callable(getattr(standby.BackupServer, name))


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    assert not hasattr(standby, "nope")
