"""Which global cache a command of `standby wan` means: a folder of this machine, or what a mover
has open; both in the same words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from standby.cli.output import warn
from standby.units import GiB, MiB

if TYPE_CHECKING:
    from standby.ports import Progress
    from standby.server.wan_caches import MoverCache, Told, WanCaches
    from standby.wan.cache import GlobalCache
    from standby.wan.checking import CheckReport
    from standby.wan.counting import CacheStatus
    from standby.wan.populating import PopulateReport

LIMIT = 100 * GiB
MEMORY = 256 * MiB
"""Some 26 million entries: 100 GiB in pieces of 4 KiB."""

KEY_HELP = (
    "The tenant's key, 64 hexadecimal digits, by reference: env:NAME or file:PATH "
    "(`openssl rand -hex 32` makes one)."
)

cache_argument = click.argument(
    "cache", required=False, type=click.Path(path_type=Path, file_okay=False)
)


def by_mover_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--mover and --pair."""
    command = click.option(
        "--pair", metavar="NAME", help="The cache of that pair of WAN accelerators of standby.toml."
    )(command)
    return click.option(
        "--mover", metavar="NAME", help="The cache that this mover of standby.toml has open."
    )(command)


def tenant_key(reference: str) -> bytes:
    """The 32 bytes that a reference leads to; ConfigurationError where it does not."""
    from standby.errors import ConfigurationError
    from standby.server.references import read_reference

    hint = "Write env:NAME or file:PATH; there, 64 hexadecimal digits"
    if not reference.startswith(("env:", "file:")):
        raise ConfigurationError("--key", "is no reference to a key", hint)
    text = read_reference(reference, "--key", Path())
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigurationError("--key", f"{reference} holds no key of 32 bytes", hint)
    return key


class FolderCache:
    """The cache in a folder, which no other process has open."""

    def __init__(self, folder: Path, limit: int | None = None, memory: int | None = None) -> None:
        """With the limits given, else those it had last."""
        self.label = str(folder)
        self.folder = folder
        self._limit = limit
        self._memory = memory

    @contextmanager
    def _opened(self) -> Iterator[GlobalCache]:
        from standby.wan.cache import GlobalCache, Limits
        from standby.wan.surveying import last_told

        told = last_told(self.folder)
        limits = Limits(
            limit_bytes=self._limit or (told.limit_bytes if told else LIMIT),
            index_bytes=self._memory or (told.index_bytes if told else MEMORY),
        )
        with GlobalCache(self.folder, limits, warn=warn) as cache:
            yield cache

    def status(self) -> CacheStatus:
        """ConfigurationError where the folder holds no cache."""
        from standby.wan.surveying import survey

        return survey(self.folder).status

    def verify(
        self, keys: Sequence[bytes], progress: Progress | None, *, drop: bool
    ) -> CheckReport:
        """See GlobalCache."""
        self.status()
        with self._opened() as cache:
            return cache.verify(keys, progress, drop=drop)

    def clear(self, key: bytes | None) -> int:
        """See GlobalCache."""
        with self._opened() as cache:
            return cache.clear(key)

    def disks(self, places: Sequence[str]) -> list[tuple[str, int]]:
        """Path and bytes of the disk files in `places`."""
        return [(str(path), path.stat().st_size) for path in self._files(places)]

    def populate(
        self,
        key: bytes,
        places: Sequence[str],
        told: Told | None,
        *,
        folders: Sequence[str] = (),
        in_place: bool = False,
    ) -> tuple[PopulateReport, int]:
        """See GlobalCache; and how many segments went for room."""
        disks, beside = self._files(places), [Path(folder) for folder in folders]
        with self._opened() as cache:
            report = cache.populate(key, disks, folders=beside, in_place=in_place, told=told)
            return report, cache.counters["evicted"]

    def _files(self, places: Sequence[str]) -> list[Path]:
        from standby.files import is_folder, is_there
        from standby.wan.populating import disk_files

        found: list[Path] = []
        for place in map(Path, places):
            if not is_there(place):
                raise click.UsageError(f"Path '{place}' does not exist.")
            found += disk_files(place) if is_folder(place) else [place]
        return found


@dataclass(frozen=True, slots=True)
class Chosen:
    """The cache that was named, and the keys that standby.toml has for it."""

    cache: FolderCache | MoverCache
    keys: tuple[bytes, ...] = ()
    pair: str = ""

    def one_key(self, reference: str | None) -> bytes:
        """The key that was given, else the only one there is."""
        if reference is not None:
            return tenant_key(reference)
        if len(self.keys) == 1:
            return self.keys[0]
        if self.keys:
            raise click.UsageError("Its pairs have several keys: name one with --pair or --key.")
        raise click.UsageError("Missing option '--key'.")


@contextmanager
def opened_caches(config: Path) -> Iterator[WanCaches]:
    """The caches of that configuration's movers; no state database is needed."""
    from standby.server.config import load_config
    from standby.server.fleet import Fleet
    from standby.server.wan_caches import WanCaches

    loaded = load_config(config)
    with contextlib.closing(Fleet(loaded)) as fleet:
        yield WanCaches(loaded, fleet)


@contextmanager
def chosen(
    folder: Path | None,
    mover: str | None,
    pair: str | None,
    config: Path,
    *,
    limit: int | None = None,
    memory: int | None = None,
) -> Iterator[Chosen]:
    """The one cache that the options name."""
    named = [item for item in (folder, mover, pair) if item is not None]
    if len(named) != 1:
        raise click.UsageError("Name one cache: its folder, or --mover NAME, or --pair NAME.")
    if folder is not None:
        yield Chosen(FolderCache(folder, limit, memory))
        return
    if limit or memory:
        raise click.UsageError("--limit and --memory are [wan] in the mover's own mover.toml.")
    with opened_caches(config) as caches:
        if mover is not None:
            yield Chosen(caches.of_mover(mover), tuple(caches.keys_of_mover(mover)))
        else:
            assert pair is not None
            yield Chosen(caches.of_pair(pair), (caches.key_of_pair(pair),), pair)
