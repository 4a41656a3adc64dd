"""`standby wan …`: the global cache of a target WAN accelerator, in its folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.disk import Size, folders_option
from standby.cli.output import (
    confirmed,
    dry_run_option,
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    warn,
    yes_option,
)
from standby.units import GiB, MiB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from standby.wan.cache import GlobalCache
    from standby.wan.counting import CacheStatus

WARNINGS_EXIT = 3
LIMIT = 100 * GiB
MEMORY = 256 * MiB
"""Some 26 million entries: 100 GiB in pieces of 4 KiB."""


cache_argument = click.argument("cache", type=click.Path(path_type=Path, file_okay=False))
KEY_HELP = (
    "The tenant's key, 64 hexadecimal digits, by reference: env:NAME or file:PATH "
    "(`openssl rand -hex 32` makes one)."
)
limit_option = click.option(
    "--limit", type=Size(), help="What the cache may take on disk; default as last, first 100G."
)
memory_option = click.option(
    "--memory", type=Size(), help="What its index may take of memory; default as last, first 256M."
)


@click.group()
def wan() -> None:
    """The global cache of a target WAN accelerator: look, verify, clear, warm up.

    \b
    Example:
      standby wan populate /var/cache/standby /srv/templates --key file:/etc/standby/tenant.key
      standby wan status /var/cache/standby
    """


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


@contextmanager
def opened(
    folder: Path, limit: int | None = None, memory: int | None = None
) -> Iterator[GlobalCache]:
    """The cache in `folder`, with the limits given, else those it had last."""
    from standby.wan.cache import GlobalCache, Limits
    from standby.wan.surveying import last_told

    told = last_told(folder)
    limits = Limits(
        limit_bytes=limit or (told.limit_bytes if told else LIMIT),
        index_bytes=memory or (told.index_bytes if told else MEMORY),
    )
    with GlobalCache(folder, limits, warn=warn) as cache:
        yield cache


# --- status ------------------------------------------------------------------------------------


@wan.command()
@cache_argument
@json_option
def status(cache: Path, as_json: bool) -> None:
    """What the global cache in the folder CACHE holds. It may be in use; nothing is changed.

    Hits, mode and memory are as the process that has it told last.

    \b
    Example: standby wan status /var/cache/standby
    """
    from standby.wan.surveying import survey

    found = survey(cache)
    if as_json:
        import msgspec

        facts = msgspec.to_builtins(found.status)
        print_json(facts | {"is_in_use": found.is_in_use, "is_told": found.is_told})
        return
    print_table("", ("", ""), _rows(found.status, found.is_in_use))
    for text in found.status.problems:
        warn(text)


def _rows(found: CacheStatus, is_in_use: bool) -> list[tuple[str, str]]:
    counts = found.counts
    share = 100 * counts["found"] / counts["asked"] if counts["asked"] else 0.0
    rows = [
        ("folder", f"{found.folder}{' (in use)' if is_in_use else ''}"),
        ("size", f"{size(found.bytes)} of {size(found.limit_bytes)}"),
        ("segments", f"{found.segments}, {found.open_segments} open"),
        ("content", f"{found.pieces} pieces, {size(found.pieces * 4096)}"),
        ("in disk files", f"{found.disk_pieces} pieces, {size(found.disk_pieces * 4096)}"),
        ("entries", f"{found.entries} ({found.mode or 'not known'})"),
        ("memory", f"{size(found.memory_bytes)} of {size(found.memory_max_bytes)}"),
        ("asked, found", f"{counts['asked']}, {counts['found']} ({share:.1f} %)"),
        ("read, missed", f"{counts['read']}, {counts['missed']}"),
        ("damaged", f"{counts['damaged']}"),
        ("taking in", found.stopped_by or "yes"),
    ]
    for part in found.namespaces:
        held = f"{size(part.bytes)}, {part.pieces} pieces, {part.disk_pieces} in disk files"
        rows.append((f"tenant {part.fingerprint[:8]}", held))
    return rows


# --- verify ------------------------------------------------------------------------------------


@wan.command()
@cache_argument
@click.option("--key", "keys", multiple=True, help=f"{KEY_HELP} May be repeated.")
@dry_run_option
@json_option
def verify(cache: Path, keys: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Read the whole global cache in the folder CACHE, name what is bad and drop it.

    Checksums are compared, and with a tenant's key the names of its content too. Exit code 3:
    something was bad. Dropped content is sent again when it is needed.

    \b
    Example: standby wan verify /var/cache/standby --key file:/etc/standby/tenant.key
    """
    from standby.wan.surveying import survey

    survey(cache)
    found_keys = [tenant_key(reference) for reference in keys]
    with opened(cache) as cache_, progress_bars(not as_json) as update:
        report = cache_.verify(found_keys, _labelled(update, "verify"), drop=not dry_run)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report) | {"is_ok": report.is_ok})
    else:
        for finding in report.findings:
            what = f"{finding.file} at {finding.offset:#x}: {finding.problem}"
            click.echo(f"{what} ({finding.pieces} pieces{'' if dry_run else ', dropped'})")
        names = f", {report.unnamed_pieces} by checksum only" if report.unnamed_pieces else ""
        verdict = "ok" if report.is_ok else f"{len(report.findings)} bad"
        click.echo(f"{cache}: {verdict}, {report.pieces} pieces in {size(report.bytes)}{names}")
    return 0 if report.is_ok else WARNINGS_EXIT


def _labelled(update: Callable[[str, int, int], None], label: str) -> Callable[[int, int], None]:
    return lambda done, total: update(label, done, total)


# --- clear -------------------------------------------------------------------------------------


@wan.command()
@cache_argument
@click.option("--key", help=f"Only what belongs to this key. {KEY_HELP}")
@yes_option
@dry_run_option
@json_option
def clear(cache: Path, key: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove what the global cache in the folder CACHE holds; replicas are not touched.

    \b
    Example: standby wan clear /var/cache/standby --yes
    """
    from standby.wan.cache import fingerprint
    from standby.wan.surveying import survey

    found = survey(cache).status
    mark = None if key is None else fingerprint(tenant_key(key))
    gone = [part for part in found.namespaces if mark is None or part.fingerprint == mark.hex()]
    count, length = sum(part.segments for part in gone), sum(part.bytes for part in gone)
    if dry_run:
        if as_json:
            print_json({"cache": cache, "segments": count, "bytes": length})
        else:
            click.echo(f"would remove {count} segments, {size(length)}, from {cache}")
        return
    plan = [f"{count} segments, {size(length)}, go; what they hold is sent again when needed"]
    confirmed(plan, f"Clear {cache}?", yes=yes, as_json=as_json)
    with opened(cache) as cache_:
        removed = cache_.clear(None if key is None else tenant_key(key))
    if as_json:
        print_json({"cache": cache, "segments": removed, "bytes": length})
    else:
        click.echo(f"removed {removed} segments from {cache}")


# --- populate ----------------------------------------------------------------------------------


@wan.command()
@cache_argument
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--key", required=True, help=KEY_HELP)
@click.option(
    "--in-place",
    is_flag=True,
    help="Point into VHDX files instead of copying; they count until they are changed.",
)
@limit_option
@memory_option
@folders_option
@dry_run_option
@json_option
def populate(
    cache: Path,
    places: tuple[Path, ...],
    key: str,
    in_place: bool,
    limit: int | None,
    memory: int | None,
    folders: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Warm the global cache in the folder CACHE up with the disks in PLACES: disk files (VHDX,
    raw), or folders of them, of any operating system. Exit code 3: a disk could not be read.

    \b
    Example: standby wan populate /var/cache/standby /srv/templates --key env:TENANT_KEY
    """
    from standby.wan.populating import disk_files

    disks = [
        path for place in places for path in (disk_files(place) if place.is_dir() else [place])
    ]
    tenant = tenant_key(key)
    if dry_run:
        _show_disks(cache, disks, as_json)
        return 0
    with opened(cache, limit, memory) as cache_, progress_bars(not as_json) as update:
        report = cache_.populate(tenant, disks, folders=folders, in_place=in_place, told=update)
        evicted = cache_.counters["evicted"]
    if as_json:
        import msgspec

        print_json({"cache": cache, "evicted": evicted} | msgspec.to_builtins(report))
    else:
        for path, problem in report.problems.items():
            warn(problem if path in problem else f"{path}: {problem}")
        click.echo(
            f"{cache}: {report.disks} disks, {size(report.bytes_read)} read, {report.pieces_added} "
            f"new pieces, {size(max(0, report.bytes_added))} more in the cache"
        )
        if evicted:
            warn(f"the limit was reached: {evicted} segments went; a larger --limit keeps more")
    return WARNINGS_EXIT if report.problems else 0


def _show_disks(cache: Path, disks: list[Path], as_json: bool) -> None:
    found = [{"path": path, "bytes": path.stat().st_size} for path in disks]
    if as_json:
        print_json({"cache": cache, "disks": found})
        return
    for path in disks:
        click.echo(f"{path}  {size(path.stat().st_size)}")
    click.echo(f"would take {len(disks)} disks into {cache}")
