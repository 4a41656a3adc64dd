"""Real movers of one machine without TLS: a secret in one identity folder, shared memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from simulation.installed import Installation
from standby.units import MiB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals")


class PlainInstallation(Installation):
    """`plain = true` everywhere, nobody has a certificate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        text = self.config.read_text()
        self.config.write_text(text.replace('address = "127.', 'plain = true\naddress = "127.'))

    def enrol(self, name: str, folder: Path, roles: tuple[str, ...]) -> None:
        """Nothing: the first mover makes the secret."""

    def write_mover(self, name: str) -> None:
        super().write_mover(name)
        path = self.folder / f"mover-{name}" / "mover.toml"
        text = path.read_text().replace('"identity"', f'"{self.folder / "identity"}"')
        path.write_text(f"plain = true\n{text}")


def test_a_job_without_tls(tmp_path: Path) -> None:
    made = PlainInstallation(tmp_path / "site")
    try:
        made.add_machine(sizes=(256 * MiB,))
        made.write(0, 40 * MiB)
        report = made.start()
        assert report.returncode == 0, report.stdout + report.stderr
        made.write(4096, 300 * 1024)
        report = made.start()
        assert report.returncode == 0, report.stdout + report.stderr
        (disk,) = json.loads(report.stdout)["machines"][0]["disks"]
        assert disk["mode"] == "incremental"
        assert disk["sent"] < 2 * MiB
        assert made.check_points() == 2
        assert [path.name for path in (made.folder / "identity").iterdir()] == ["plain.key"]
        for name in ("src", "px", "dr"):
            assert "refused" not in made.log(name)
    finally:
        made.close()
