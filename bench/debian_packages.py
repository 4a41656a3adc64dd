"""Debian packages without root: which ones a list needs, in which versions, fetched and unpacked.

Only apt's lists and caches of this machine are read (`apt-get update` must have run once); nothing
is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """One package in one version."""

    name: str
    version: str
    size_bytes: int = 0
    """Of the .deb; 0 where apt was not asked."""


def _apt(*words: str, cwd: Path | None = None) -> str:
    command = [*words, "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} failed:\n{done.stderr}")
    return done.stdout


def with_dependencies(names: Sequence[str]) -> list[Package]:
    """The packages and all they depend on, as if nothing were installed, in order of name."""
    with tempfile.NamedTemporaryFile() as nothing_installed:
        status = f"Dir::State::status={nothing_installed.name}"
        words = ("apt-get", "install", "--no-install-recommends", "--yes", "--print-uris")
        # An empty archive folder: what apt has cached already would be left out of the answer.
        with tempfile.TemporaryDirectory() as archives:
            (Path(archives) / "partial").mkdir()
            cached = f"Dir::Cache::archives={archives}"
            listed = _apt(*words, *names, "-o", status, "-o", cached)
    found = {}
    for name, version, size in re.findall(
        r"^'[^']*' ([^_ ]+)_([^_ ]+)_\w+\.deb (\d+)", listed, re.M
    ):
        found[name] = Package(name, version.replace("%3a", ":"), int(size))
    if not found:
        raise SystemExit("apt names no package: has `apt-get update` run?")
    return [found[name] for name in sorted(found)]


def older_versions(packages: Iterable[Package]) -> dict[str, Package]:
    """The oldest version in the lists of each package that has one older than the given."""
    newest = {package.name: package for package in packages}
    listed = _apt("apt-cache", "madison", *newest)
    oldest: dict[str, Package] = {}
    for line in listed.splitlines():
        name, version, source = (part.strip() for part in line.split("|"))
        if source.endswith("Packages") and name in newest:
            oldest[name] = Package(name, version)  # in falling order of versions
    return {
        name: package for name, package in oldest.items() if package.version != newest[name].version
    }


def fetch(packages: Sequence[Package], folder: Path) -> dict[str, Path]:
    """The .deb of each package by name, downloaded into `folder` unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    place = {p.name: folder / f"{p.name}_{p.version.replace(':', '%3a')}" for p in packages}
    wanted = [p for p in packages if not list(folder.glob(f"{place[p.name].name}_*.deb"))]
    for first in range(0, len(wanted), 100):
        part = wanted[first : first + 100]
        _apt("apt-get", "download", *(f"{p.name}={p.version}" for p in part), cwd=folder)
    return {name: next(folder.glob(f"{start.name}_*.deb")) for name, start in place.items()}


def unpack(archives: Iterable[Path], folder: Path, threads: int = 2) -> None:
    """Extract all archives over one another into `folder`, as dpkg would."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(archive: Path) -> None:
        # Through tar, so that a folder that is already there keeps its place and its links: Debian
        # 12 packages put files below /lib, which is a link to /usr/lib on a merged system.
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as packed:
            extract = [
                "tar",
                "-x",
                "--no-same-owner",
                "--keep-directory-symlink",
                "-C",
                str(folder),
            ]
            subprocess.run(extract, stdin=packed.stdout, check=True)
        if packed.returncode:
            raise SystemExit(f"dpkg-deb ended with {packed.returncode} on {archive}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, archives))
