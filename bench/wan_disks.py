"""The disks of the WAN figures: two servers of one Debian release, and days in their lives.

    python bench/wan_disks.py [--small] [--seed N]

makes, without root, in a folder of the cache (STANDBY_BENCH_CACHE, else the temp folder), raw
images with an MBR and one ext4 each:

    web.raw        a web server: nginx, PHP, git, Perl and Python with documentation, kernel, its
                   package database; logs, a journal, a site of pages and pictures
    patched.raw    the same after a patch day: each package of which apt's lists have a newer
                   version replaced as dpkg does it (new files, old ones removed), a new kernel
                   beside the old one, the package database rewritten; and a quiet day's changes
    quiet.raw      web.raw after a quiet day: logs rotated and appended, the journal written on in
                   place, sessions, one picture, three settings edited, access times of 1 file in 8
    database.raw   another server of the same release, another file system: PostgreSQL's packages,
                   a database of 8 KiB pages, a log. What web.raw has too is content, not places
    edited.raw     database.raw after a day of edits: the log appended, rows updated where they are
                   and added, text files of packages rewritten with one to three small edits, shared
                   objects with an insertion and 50 bytes changed, one tree copied
    manifest.json  packages and versions, bytes stored, bytes in changed 4 KiB pieces per day

`BEFORE` says which disk each day began with. Sizes: 2 GiB virtual, 1.1 to 1.5 GB data each;
`--small` 256 MiB and 110 to 180 MB, without kernels. Package versions are those of the machine's
apt lists, the oldest of each first; all else comes from the seed. Nothing of Debian is stored here:
archives are downloaded once into the cache. Needs e2fsprogs, dpkg and apt's lists
(`apt-get update`).

What to know when reading figures: archives that apt downloads are not on the disks (a memory file
system; any method would send them whole). Neither is what runs after unpacking: initramfs, compiled
Python. The disks are not aged, their allocator is libext2fs's, which takes the first free blocks,
and their ext4 journals are not in use. Copied trees favour aligned look-ups, edited files anchored
deltas: the day of edits has both. The order in which the host lists a folder decides the places of
files, so that other machines make disks of equal content but not of equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import debian_disk
import debian_packages
from debian_disk import DAY_ONE_S, DAY_TWO_S, cache_folder, log_text, noise, update_in_place
from ext4_image import Ext4Image

VERSION = 1
"""Raised when the code below makes other disks from the same recipe."""

STATES = ("web", "patched", "quiet", "database", "edited")
BEFORE = {"patched": "web", "quiet": "web", "edited": "database"}

LOGS = ("/var/log/syslog", "/var/log/nginx/access.log", "/var/log/nginx/error.log")
SYSLOG, *APPENDED = LOGS
JOURNAL = "/var/log/journal/system.journal"
JOURNAL_SIZE = 8 << 20
DATABASE = "/srv/shop/shop.sqlite"
SETTINGS = ("/etc/hosts", "/etc/nginx/conf.d/site.conf", "/etc/motd")
DPKG = "/var/lib/dpkg"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the disks are made of; sizes are about."""

    name: str
    virtual_size: int
    web_packages: str
    database_packages: str
    kernel: bool
    log_lines: int
    pictures: int
    """Of 300 KB each."""
    rows: int
    edited_files: int
    edited_objects: int
    copied_tree: str
    """The first folder that matches below the root."""
    seed: int = 1

    @property
    def key(self) -> str:
        """Changes with the recipe and with VERSION."""
        text = f"{VERSION} {debian_disk.VERSION} {self!r}".encode()
        return f"{self.name}-{hashlib.sha256(text).hexdigest()[:12]}"


FULL = Recipe(
    "wan-2g", 2 << 30,
    "apt git libnginx-mod-http-geoip2 mariadb-client nginx openssh-server perl-doc php8.2-cli"
    " php8.2-fpm php8.2-gd php8.2-intl php8.2-mysql python3-numpy rsync vim",
    "apt git openssh-server perl-doc pgbackrest postgresql-15 postgresql-plpython3-15 python3-numpy"
    " redis-server rsync vim",
    True, 240_000, 120, 150_000, 1500, 12, "usr/share/perl/5.*",
)  # fmt: skip
SMALL = Recipe(
    "wan-256m", 256 << 20, "apt nginx-light openssl python3-minimal vim-tiny",
    "apt openssl postgresql-client-15 python3-minimal rsync vim-tiny",
    False, 20_000, 10, 16_000, 150, 4, "usr/lib/python3.11/*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WanDisks:
    """The files of a finished recipe."""

    folder: Path

    @property
    def manifest(self) -> dict[str, dict[str, object]]:
        """What manifest.json says."""
        found: dict[str, dict[str, object]] = json.loads(
            (self.folder / "manifest.json").read_text()
        )
        return found

    def path(self, state: str) -> Path:
        """The raw image of one of STATES."""
        return self.folder / f"{state}.raw"


def disks(recipe: Recipe = FULL) -> WanDisks:
    """The disks of the recipe, from the cache or made now."""
    folder = cache_folder() / recipe.key
    if not (folder / "manifest.json").is_file():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(recipe, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return WanDisks(folder)


def make(recipe: Recipe, folder: Path) -> None:
    """Fill the folder."""
    web = _Server(recipe, folder, "web", recipe.web_packages)
    web.first_day(recipe.seed)
    quiet = web.copied("quiet")
    web.quiet_day(quiet, recipe.seed + 1)
    patched = web.copied("patched")
    web.patch_day(patched)
    web.quiet_day(patched, recipe.seed + 2)

    database = _Server(recipe, folder, "database", recipe.database_packages)
    database.first_day(recipe.seed + 3)
    database.day_of_edits(database.copied("edited"), recipe.seed + 4)

    days = {}
    for state in STATES:
        image = folder / f"{state}.raw"
        before = folder / f"{BEFORE.get(state, state)}.raw"
        stored, changed = debian_disk.compare(before, image)
        days[state] = {"stored_bytes": stored, "changed_bytes": changed}
    manifest = {
        "recipe": asdict(recipe),
        "disks": days,
        "web": {package.name: package.version for package in web.installed},
        "patched": {package.name: package.version for package in web.upgraded},
        "database": {package.name: package.version for package in database.installed},
    }
    for server in (web, database):
        shutil.rmtree(server.root)
        shutil.rmtree(server.day)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


class _Server:
    """A server's packages, its root folder, its disks."""

    def __init__(self, recipe: Recipe, folder: Path, name: str, packages: str) -> None:
        self.recipe = recipe
        self.folder = folder
        self.name = name
        self.root = folder / f"{name}-root"
        self.day = folder / f"{name}-day"
        self.day.mkdir()
        self.archives = cache_folder() / "archives"
        newest = debian_packages.with_dependencies(packages.split())
        older = debian_packages.older_versions(newest)
        self.installed = [older.get(package.name, package) for package in newest]
        self.upgraded = [package for package in newest if package.name in older]
        if recipe.kernel:
            self._choose_kernels()
        if not self.upgraded:
            raise SystemExit("apt's lists hold no package in two versions: is security in them?")
        self.debs = debian_packages.fetch(self.installed, self.archives)

    def _choose_kernels(self) -> None:
        """The older kernel at first, the newer one beside it on patch day."""
        meta = "linux-image-amd64"
        (newer,) = (p for p in debian_packages.with_dependencies([meta]) if p.name == meta)
        older = debian_packages.older_versions([newer]).get(meta, newer)
        for package, chosen in ((older, self.installed), (newer, self.upgraded)):
            needed = debian_packages.with_dependencies([f"{meta}={package.version}"])
            chosen += [p for p in needed if p.name.startswith("linux-image")]

    def first_day(self, seed: int) -> None:
        """The root folder, and the image made from it."""
        debian_disk.lay_root(self.root)
        debian_packages.unpack(self.debs.values(), self.root)
        self._write(f"{DPKG}/status", package_database(self.debs.values(), self.root))
        lines = self.recipe.log_lines
        for number, place in enumerate((*LOGS, f"{SYSLOG}.1")):
            self._write(place, log_text(seed * 100 + number, lines // (1 + 2 * number)))
        self._write(JOURNAL, journal(seed, JOURNAL_SIZE // 2))
        for number, place in enumerate(SETTINGS):
            self._write(place, log_text(seed * 100 + 10 + number, 40))
        if self.name == "web":
            for number in range(self.recipe.pictures):
                picture = noise(seed * 100_000 + number, 300_000)
                self._write(f"/srv/site/pictures/{number:04}.jpg", picture)
                page = log_text(seed * 1000 + number, 100)
                self._write(f"/srv/site/pages/{number:04}.html", page)
            (self.root / "var/lib/php/sessions").mkdir(parents=True, exist_ok=True)
        else:
            (self.root / DATABASE[1:]).parent.mkdir(parents=True)
            debian_disk.make_database(self.root / DATABASE[1:], self.recipe.rows)
        for path in self.root.rglob("*"):
            if path.stat(follow_symlinks=False).st_mtime > DAY_ONE_S:  # made here and now
                os.utime(path, (DAY_ONE_S, DAY_ONE_S), follow_symlinks=False)
        image = Ext4Image(self.folder / f"{self.name}.raw", DAY_ONE_S)
        image.make(self.recipe.virtual_size, self.root)
        image.check()

    def _write(self, place: str, data: bytes) -> None:
        path = self.root / place[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def copied(self, state: str) -> Ext4Image:
        """A copy of the first day's disk, to be changed."""
        image = Ext4Image(self.folder / f"{state}.raw", DAY_TWO_S)
        first = self.folder / f"{self.name}.raw"
        subprocess.run(["cp", "--sparse=always", str(first), str(image.path)], check=True)
        return image

    def _replace(self, image: Ext4Image, place: str, data: bytes) -> None:
        """A new file instead of one of that name, as editors and dpkg write."""
        fresh = self.day / f"{image.path.stem}{place.replace('/', '_')}"
        fresh.write_bytes(data)
        shutil.copymode(self.root / place[1:], fresh)
        image.remove(place)
        image.write(fresh, place)

    # --- days ---

    def quiet_day(self, image: Ext4Image, seed: int) -> None:
        """Logs, journal, sessions, one picture, three settings, access times."""
        lines = self.recipe.log_lines
        image.remove(f"{SYSLOG}.1")
        image.rename(SYSLOG, f"{SYSLOG}.1")
        fresh = {
            SYSLOG: log_text(seed * 100, lines // 20),
            f"/srv/site/pictures/{seed:03}-new.jpg": noise(seed * 100_000, 300_000),
        }
        chance = random.Random(seed)
        for number in range(30):
            name = f"/var/lib/php/sessions/sess_{chance.getrandbits(128):032x}"
            fresh[name] = log_text(seed * 1000 + number, 4)
        for number, (place, data) in enumerate(fresh.items()):
            path = self.day / f"{image.path.stem}-{number}"
            path.write_bytes(data)
            image.write(path, place)
        for place in SETTINGS:
            data = (self.root / place[1:]).read_bytes()
            self._replace(image, place, edited(data, 1, chance))
        names = (p for p in sorted(self.root.rglob("*")) if p.is_file() and not p.is_symlink())
        for path in names:
            place = f"/{path.relative_to(self.root)}"
            if chance.random() < 1 / 8 and place.startswith("/usr"):
                image.read_at(place, DAY_TWO_S - chance.randrange(86_400))
        image.apply()
        for number, place in enumerate(APPENDED, 1):
            old = (self.root / place[1:]).read_bytes()
            new = old + log_text(seed * 100 + number, lines // (20 + 20 * number))
            update_in_place(image, place, old, new)
        old = (self.root / JOURNAL[1:]).read_bytes()
        update_in_place(image, JOURNAL, old, journal(self.recipe.seed, JOURNAL_SIZE * 5 // 8))
        image.check()

    def patch_day(self, image: Ext4Image) -> None:
        """All packages that have newer versions, and the package database."""
        upgrades = debian_packages.fetch(self.upgraded, self.archives)
        debian_disk.upgrade(image, self.root, self.day, self.upgraded, self.debs, upgrades)
        status = package_database((self.debs | upgrades).values(), self.day / "database")
        for path in sorted((self.day / f"database{DPKG}/info").iterdir()):
            place = f"{DPKG}/info/{path.name}"
            if not (self.root / place[1:]).exists():
                image.write(path, place)
            elif (self.root / place[1:]).read_bytes() != path.read_bytes():
                self._replace(image, place, path.read_bytes())
        image.rename(f"{DPKG}/status", f"{DPKG}/status-old")
        (self.day / "status").write_bytes(status)
        image.write(self.day / "status", f"{DPKG}/status")
        image.apply()

    def day_of_edits(self, image: Ext4Image, seed: int) -> None:
        """Log, rows, texts, shared objects and a copied tree."""
        chance = random.Random(seed)
        files = [
            path
            for path in sorted((self.root / "usr").rglob("*"))
            if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
        ]
        texts = [p for p in files if p.suffix in (".py", ".pm", ".pl", ".pod", ".txt", ".conf", "")]
        texts = [p for p in texts if p.stat().st_size > 1000 and b"\0" not in p.read_bytes()]
        objects = [p for p in files if ".so" in p.name and 200_000 < p.stat().st_size < 8_000_000]
        for path in chance.sample(texts, min(self.recipe.edited_files, len(texts))):
            data = edited(path.read_bytes(), chance.randint(1, 3), chance)
            self._replace(image, f"/{path.relative_to(self.root)}", data)
        for path in chance.sample(objects, min(self.recipe.edited_objects, len(objects))):
            data = bytearray(path.read_bytes())
            at = chance.randrange(len(data)) & -16
            data[at:at] = chance.randbytes(chance.randrange(64, 4096))
            for _ in range(50):
                data[chance.randrange(len(data))] = chance.randrange(256)
            self._replace(image, f"/{path.relative_to(self.root)}", bytes(data))
        tree = next(p for p in sorted(self.root.glob(self.recipe.copied_tree)) if p.is_dir())
        image.make_folder("/srv/copy")
        for path in sorted(tree.rglob("*")):
            place = f"/srv/copy/{path.relative_to(tree)}"
            if path.is_dir() and not path.is_symlink():
                image.make_folder(place)
            elif path.is_file() and not path.is_symlink():
                image.write(path, place)
        image.apply()
        old = (self.root / SYSLOG[1:]).read_bytes()
        update_in_place(image, SYSLOG, old, old + log_text(seed, self.recipe.log_lines // 8))
        database = self.root / DATABASE[1:]
        old = database.read_bytes()
        debian_disk.change_database(database, self.recipe.rows)
        update_in_place(image, DATABASE, old, database.read_bytes())
        image.check()


def edited(data: bytes, edits: int, chance: random.Random) -> bytes:
    """A text with some lines added, removed or changed."""
    lines = data.split(b"\n")
    for _ in range(edits):
        at = chance.randrange(len(lines))
        kind = chance.randrange(3)
        if kind == 0:
            lines.insert(at, b"# changed by hand: %d" % chance.getrandbits(40))
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        else:
            lines[at] += b" %d" % chance.getrandbits(20)
    return b"\n".join(lines)


def journal(seed: int, filled: int) -> bytes:
    """A file of JOURNAL_SIZE whose first `filled` bytes are entries with binary heads behind a hash
    table of 256 KiB, into which each entry writes 8 bytes; the longer one continues the shorter."""
    chance = random.Random(seed)
    data = bytearray(256 << 10)
    while len(data) < filled:
        text = f"MESSAGE=unit {chance.randrange(40)} did {chance.randrange(10**6)} things".encode()
        entry = chance.randbytes(24) + len(text).to_bytes(8, "little") + text
        slot = chance.randrange((256 << 10) // 8) * 8
        data[slot : slot + 8] = len(data).to_bytes(8, "little")
        data += entry + bytes(-len(entry) % 8)
    return bytes(data[:filled]).ljust(JOURNAL_SIZE, b"\0")


def package_database(debs: Iterable[Path], root: Path) -> bytes:
    """What dpkg keeps of the packages: control files below `root`, the status file returned."""
    info = root / DPKG[1:] / "info"
    info.mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for deb in sorted(debs):
        name = deb.name.partition("_")[0]
        control = root.with_name(f"{root.name}-control")
        shutil.rmtree(control, ignore_errors=True)
        subprocess.run(["dpkg-deb", "--control", str(deb), str(control)], check=True)
        for path in control.iterdir():
            if path.name not in ("control", "triggers"):
                path.rename(info / f"{name}.{path.name}")
        head, _, rest = (control / "control").read_bytes().partition(b"\n")
        paragraphs.append(head + b"\nStatus: install ok installed\n" + rest.rstrip() + b"\n")
        shutil.rmtree(control)
    return b"\n".join(paragraphs)


def main() -> None:
    """Make the disks and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="256 MiB instead of 2 GiB each")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    recipe = SMALL if options.small else FULL
    values = {name: getattr(recipe, name) for name in recipe.__slots__}
    made = disks(Recipe(**(values | {"seed": options.seed})))
    print(made.folder)
    for state, sizes in made.manifest["disks"].items():
        stored, changed = sizes["stored_bytes"], sizes["changed_bytes"]
        print(f"{state}.raw  {stored / 1e6:.1f} MB stored, {changed / 1e6:.1f} MB changed")


if __name__ == "__main__":
    main()
