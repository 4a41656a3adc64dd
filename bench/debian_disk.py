"""A realistic disk of a Debian server, and the same disk after a day of changes.

    python bench/debian_disk.py [--small]

makes, without root, in a folder of the cache (STANDBY_BENCH_CACHE, else the temp folder):

    base.raw  base.vhdx      4 GiB virtual, about 2 GiB data: some 250 Debian packages, logs, a
                             SQLite database, media that does not compress (MBR, one ext4)
    next.raw  next.vhdx      a day later: upgraded packages and their kept archives, logs appended
                             and rotated, database rows updated in place and inserted, media added
                             and removed
    manifest.json            package versions, sizes, how much differs

VHDX files are qemu-img's, dynamic with 1 MiB blocks. `--small` is 256 MiB virtual and about 130 MB
data. Packages are those of the machine's apt lists, the older version of each where the lists have
two; everything else comes from fixed seeds. Needs e2fsprogs, qemu-utils and apt's lists.
What it is not: an aged disk, a Windows disk, or one with a journal in use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import debian_packages
from debian_packages import Package
from ext4_image import BLOCK, Ext4Image

VERSION = 1
"""Raised when the code below makes another disk from the same recipe."""

PAGE_BYTES = 8192
DAY_ONE_S = 1_760_000_000
DAY_TWO_S = DAY_ONE_S + 86_400
SERVER = (
    "apt build-essential git linux-image-amd64 nginx openjdk-17-jre-headless perl-doc php8.2-cli"
    " php8.2-fpm postgresql-15 python3-numpy redis-server vim"
)
SMALL_SERVER = "apt openssl vim-tiny python3-minimal nginx-light"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a disk is made of; sizes are about."""

    name: str
    virtual_size: int
    packages: str
    database_rows: int
    log_lines: int
    media_files: int
    """Of 2 MB each."""
    upgrade_bytes_max: int
    """Archives above this size stay as they are on the next day."""

    @property
    def key(self) -> str:
        """Changes with the recipe and with VERSION."""
        text = f"{VERSION} {self!r}".encode()
        return f"{self.name}-{hashlib.sha256(text).hexdigest()[:12]}"


FULL = Recipe("debian-4g", 4 << 30, SERVER, 720_000, 450_000, 75, 8_000_000)
SMALL = Recipe("debian-256m", 256 << 20, SMALL_SERVER, 48_000, 30_000, 4, 1_500_000)


@dataclass(frozen=True, slots=True)
class Disks:
    """The files of a finished recipe."""

    folder: Path

    @property
    def manifest(self) -> dict[str, object]:
        """What manifest.json says."""
        found: dict[str, object] = json.loads((self.folder / "manifest.json").read_text())
        return found

    def path(self, state: str, format: str = "vhdx") -> Path:
        """The disk file; `state` is base or next, `format` is raw or vhdx."""
        return self.folder / f"{state}.{format}"


def cache_folder() -> Path:
    """Where finished disks are kept."""
    chosen = os.environ.get("STANDBY_BENCH_CACHE")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / "standby-bench"


def disks(recipe: Recipe = FULL) -> Disks:
    """The disks of the recipe, from the cache or made now."""
    folder = cache_folder() / recipe.key
    if not (folder / "manifest.json").is_file():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _Maker(recipe, partial).make()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return Disks(folder)


class _Maker:
    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.root = folder / "root"
        self.day = folder / "day"
        self.logs = ("/var/log/syslog", "/var/log/nginx/access.log", "/var/log/nginx/error.log")

    def make(self) -> None:
        """Fill the folder."""
        archives = cache_folder() / "archives"
        newest = debian_packages.with_dependencies(self.recipe.packages.split())
        older = debian_packages.older_versions(newest)
        installed = [older.get(package.name, package) for package in newest]
        upgraded = [
            p for p in newest if p.name in older and p.size_bytes <= self.recipe.upgrade_bytes_max
        ]
        if not upgraded:
            raise SystemExit("apt's lists hold no package in two versions: is security in them?")
        debs = debian_packages.fetch(installed, archives)
        upgrades = debian_packages.fetch(upgraded, archives)

        lay_root(self.root)
        debian_packages.unpack(debs.values(), self.root)
        self._first_day()
        base = Ext4Image(self.folder / "base.raw", DAY_ONE_S)
        base.make(self.recipe.virtual_size, self.root)
        base.check()

        following = Ext4Image(self.folder / "next.raw", DAY_TWO_S)
        command = ["cp", "--sparse=always", str(base.path), str(following.path)]
        subprocess.run(command, check=True)
        kept = "/var/cache/apt/archives"
        upgrade(following, self.root, self.day, upgraded, debs, upgrades, kept)
        self._rotate_logs(following)
        self._change_media(following)
        following.apply()
        self._append_logs(following)
        self._change_database(following)
        following.check()
        self._finish(installed, upgraded)

    def _first_day(self) -> None:
        for number, place in enumerate((*self.logs, "/var/log/syslog.1")):
            path = self.root / place[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(log_text(number, self.recipe.log_lines // (1 + 2 * number)))
        database = self._database
        database.parent.mkdir(parents=True)
        make_database(database, self.recipe.database_rows)
        media = self.root / "srv/media"
        media.mkdir(parents=True)
        for number in range(self.recipe.media_files):
            (media / f"{number:04}.jpg").write_bytes(noise(number))

    @property
    def _database(self) -> Path:
        return self.root / "srv/shop/shop.sqlite"

    # --- the day ---

    def _rotate_logs(self, image: Ext4Image) -> None:
        image.remove("/var/log/syslog.1")
        image.rename("/var/log/syslog", "/var/log/syslog.1")
        today = self.day / "syslog"
        today.write_bytes(log_text(90, self.recipe.log_lines // 8))
        image.write(today, "/var/log/syslog")

    def _change_media(self, image: Ext4Image) -> None:
        for number in range(0, self.recipe.media_files, 12):
            image.remove(f"/srv/media/{number:04}.jpg")
        for number in range(self.recipe.media_files, self.recipe.media_files * 9 // 8 + 1):
            fresh = self.day / f"{number:04}.jpg"
            fresh.write_bytes(noise(number))
            image.write(fresh, f"/srv/media/{fresh.name}")

    def _append_logs(self, image: Ext4Image) -> None:
        for number, place in enumerate(self.logs[1:], 1):
            old = (self.root / place[1:]).read_bytes()
            new = old + log_text(90 + number, self.recipe.log_lines // (6 + 2 * number))
            update_in_place(image, place, old, new)

    def _change_database(self, image: Ext4Image) -> None:
        place = f"/{self._database.relative_to(self.root)}"
        old = self._database.read_bytes()
        change_database(self._database, self.recipe.database_rows)
        update_in_place(image, place, old, self._database.read_bytes())

    def _finish(self, installed: list[Package], upgraded: list[Package]) -> None:
        for state in ("base", "next"):
            raw, vhdx = (str(self.folder / f"{state}.{format}") for format in ("raw", "vhdx"))
            options = "subformat=dynamic,block_size=1M"
            command = ["qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, vhdx]
            subprocess.run(command, check=True)
        shutil.rmtree(self.root)
        shutil.rmtree(self.day)
        present, changed = compare(self.folder / "base.raw", self.folder / "next.raw")
        manifest = {
            "recipe": asdict(self.recipe),
            "nonzero_bytes": present,
            "changed_bytes": changed,
            "installed": {package.name: package.version for package in installed},
            "upgraded": {package.name: package.version for package in upgraded},
        }
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


# --- packages --------------------------------------------------------------------------------


def upgrade(
    image: Ext4Image,
    root: Path,
    scratch: Path,
    upgraded: list[Package],
    old: dict[str, Path],
    new: dict[str, Path],
    kept: str = "",
) -> None:
    """What dpkg does, collected in `image`: every file of a new version replaces the old one, files
    gone from the package are removed; a package that has no old version is added. apt leaves each
    archive in the folder `kept` of the image, if one is named.

    `root` is the folder the image was made from: it gets and loses the names, while the content of
    its files stays as it was. Packages are unpacked below `scratch`, which has room for all.
    """
    for package in upgraded:
        before, after = (scratch / when / package.name for when in ("old", "new"))
        for folder, archives in ((before, old), (after, new)):
            lay_root(folder)
            if package.name in archives:
                debian_packages.unpack([archives[package.name]], folder)
        written: dict[int, list[str]] = {}
        for path in sorted(after.rglob("*")):
            place = f"/{path.relative_to(after)}"
            there = root / place[1:]
            if path.is_symlink():
                if not there.is_symlink() and not there.exists():
                    image.link(place, str(path.readlink()))
                    there.symlink_to(str(path.readlink()))
            elif path.is_dir():
                if not there.is_dir():
                    image.make_folder(place)
                    there.mkdir()
            elif path.is_file():
                if there.is_file():
                    image.remove(place)
                else:
                    there.touch()
                names = written.setdefault(path.stat().st_ino, [])
                names.append(place)
                if len(names) > 1:
                    image.hard_link(names[0], place, len(names))
                else:
                    image.write(path, place)
        for path in sorted(before.rglob("*")):
            relative = path.relative_to(before)
            gone = path.is_file() and not path.is_symlink() and not (after / relative).exists()
            if gone and (root / relative).is_file():
                image.remove(f"/{relative}")
                (root / relative).unlink()
        if kept:
            image.write(new[package.name], f"{kept}/{new[package.name].name}")


def lay_root(root: Path) -> None:
    """The links of a merged /usr, before anything is unpacked."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


# --- content ---------------------------------------------------------------------------------


def noise(number: int, size: int = 2_000_000) -> bytes:
    """Bytes that no compressor makes smaller, the same for the same number."""
    return np.random.default_rng(number).bytes(size)


def log_text(seed: int, lines: int) -> bytes:
    """Lines of a web server's access log."""
    chance = random.Random(seed)
    pages = [f"/{chance.choice('abcdef')}/{chance.randrange(9999)}.html" for _ in range(400)]
    agents = ["Mozilla/5.0 (X11; Linux x86_64)", "curl/7.88.1", "Mozilla/5.0 (Windows NT 10.0)"]
    codes = (200, 200, 304, 404)
    text = []
    second = DAY_ONE_S + seed * 86_400
    for _ in range(lines):
        second += chance.randrange(3)
        address = chance.getrandbits(32)
        text.append(
            f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255} - - "
            f'[{second}] "GET {chance.choice(pages)} HTTP/1.1" {chance.choice(codes)} '
            f'{chance.randrange(90_000)} "-" "{chance.choice(agents)}"\n'
        )
    return "".join(text).encode()


_WORDS = [f"{a}{b}{c}" for a in "kmprst" for b in "aeiou" for c in ("nd", "rt", "l", "ss", "nge")]


def _row(chance: random.Random, number: int) -> tuple[int, int, float, str, str]:
    note = " ".join(chance.choices(_WORDS, k=40))
    token = f"{chance.getrandbits(256):064x}"
    return number, chance.randrange(20_000), chance.randrange(10**6) / 100, token, note


def make_database(path: Path, rows: int) -> None:
    """A table of orders with an index, in pages of 8 KiB."""
    chance = random.Random(7)
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database.execute("PRAGMA synchronous = off")
        database.execute("PRAGMA journal_mode = off")
        database.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, amount REAL,"
            " token TEXT, note TEXT)"
        )
        database.execute("BEGIN")
        values = (_row(chance, number) for number in range(rows))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", values)
        database.execute("CREATE INDEX of_customer ON orders (customer)")
        database.execute("COMMIT")
    database.close()


def change_database(path: Path, rows: int) -> None:
    """One order in 120 updated where it is, one in 180 added."""
    chance = random.Random(8)
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute("PRAGMA synchronous = off")
        database.execute("PRAGMA journal_mode = memory")
        database.execute("BEGIN")
        touched = (
            (chance.randrange(10**6) / 100, chance.randrange(rows)) for _ in range(rows // 120)
        )
        database.executemany("UPDATE orders SET amount = ? WHERE id = ?", touched)
        values = (_row(chance, number) for number in range(rows, rows + rows // 180))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", values)
        database.execute("COMMIT")
    database.close()


def update_in_place(image: Ext4Image, place: str, old: bytes, new: bytes) -> None:
    """Make the file `new` where it holds `old`, touching only blocks that differ."""
    blocks = {}
    for number in range(-(-len(new) // BLOCK)):
        part = slice(number * BLOCK, (number + 1) * BLOCK)
        if old[part] != new[part]:
            blocks[number] = new[part].ljust(BLOCK, b"\0")
    image.overwrite(place, blocks, len(new))
    if image.content_of(place) != new:
        raise SystemExit(f"{place} does not read back as it was written")


def compare(old: Path, new: Path) -> tuple[int, int]:
    """Bytes in nonzero 4 KiB pieces of `new`, and bytes in pieces that differ."""
    present = changed = 0
    with old.open("rb") as one, new.open("rb") as two:
        while data := two.read(16 << 20):
            there = np.frombuffer(data, np.uint64).reshape(-1, BLOCK // 8)
            before = np.frombuffer(one.read(len(data)), np.uint64).reshape(-1, BLOCK // 8)
            present += int(there.any(axis=1).sum()) * BLOCK
            changed += int((there != before).any(axis=1).sum()) * BLOCK
    return present, changed


def main() -> None:
    """Make the disks and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="256 MiB instead of 4 GiB")
    made = disks(SMALL if parser.parse_args().small else FULL)
    manifest = made.manifest
    print(made.folder)
    for state in ("base", "next"):
        print(f"{state}.vhdx {made.path(state).stat().st_size / 1e6:.0f} MB")
    print(f"nonzero {manifest['nonzero_bytes']} bytes, changed {manifest['changed_bytes']} bytes")


if __name__ == "__main__":
    main()
