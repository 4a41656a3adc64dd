"""`standby wan …`: the global cache of a target WAN accelerator, in its folder or while a mover has
it open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from standby.cli.serving import config_option
from standby.cli.wan_places import (
    KEY_HELP,
    by_mover_options,
    cache_argument,
    chosen,
    opened_caches,
    tenant_key,
)
from standby.units import counted

if TYPE_CHECKING:
    from standby.server.wan_caches import PairStatus
    from standby.wan.counting import CacheStatus

WARNINGS_EXIT = 3
limit_option = click.option(
    "--limit", type=Size(), help="What the cache may take on disk; default as last, first 100G."
)
memory_option = click.option(
    "--memory", type=Size(), help="What its index may take of memory; default as last, first 256M."
)


@click.group()
def wan() -> None:
    """The global cache of a target WAN accelerator: look, verify, clear, warm up.

    CACHE is its folder, where no process has it open; --mover and --pair name one that a mover of
    standby.toml uses, jobs running or not.

    \b
    Example:
      standby wan populate /var/cache/standby /srv/templates --key file:/etc/standby/tenant.key
      standby wan status
      standby wan verify --pair main
    """


# --- status ------------------------------------------------------------------------------------


@wan.command()
@cache_argument
@by_mover_options
@config_option
@json_option
def status(
    cache: Path | None, mover: str | None, pair: str | None, config: Path, as_json: bool
) -> int:
    """What the global cache in the folder CACHE holds, or that of a mover; without any, those of
    all pairs in standby.toml. Nothing is changed. Exit code 3: a pair's cache cannot be asked.

    A folder may be in use; hits, mode and memory are then as the process that has it told last.

    \b
    Example:
      standby wan status
      standby wan status --pair main
      standby wan status /var/cache/standby
    """
    if cache is None and mover is None and pair is None:
        with opened_caches(config) as caches:
            found = caches.status()
        return _show_pairs(found, as_json)
    if cache is not None and mover is None and pair is None:
        from standby.wan.surveying import survey

        surveyed = survey(cache)
        more = {"is_in_use": surveyed.is_in_use, "is_told": surveyed.is_told}
        _show_status(surveyed.status, more, as_json)
        return 0
    with chosen(cache, mover, pair, config) as place:
        told = place.cache.status()
    _show_status(told, {"is_in_use": True, "is_told": True}, as_json)
    return 0


def _show_status(found: CacheStatus, more: dict[str, bool], as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found) | more)
        return
    print_table("", ("", ""), _rows(found, more["is_in_use"]))
    for text in found.problems:
        warn(text)


def _show_pairs(found: Sequence[PairStatus], as_json: bool) -> int:
    if as_json:
        print_json({"pairs": found})
    elif not found:
        click.echo("standby.toml has no pair of WAN accelerators ([wan.NAME])")
    else:
        heads = (
            "pair",
            "source",
            "target",
            ">size",
            ">limit",
            ">pieces",
            "entries",
            ">found",
            "disks",
        )
        print_table("", (*heads, "~state"), [_pair_row(item) for item in found])
    return WARNINGS_EXIT if any(item.problem for item in found) else 0


def _pair_row(item: PairStatus) -> tuple[str, ...]:
    ends = (item.pair, item.source, item.target)
    told = item.cache
    if told is None:
        return (*ends, "-", "-", "-", "-", "-", _disks(item), item.problem)
    state = told.stopped_by or ("not used" if item.mode == "direct" else "ok")
    pieces = str(told.pieces + told.disk_pieces)
    held = (size(told.bytes), size(told.limit_bytes), pieces, told.mode, _hits(told))
    return (*ends, *held, _disks(item), state)


def _disks(item: PairStatus) -> str:
    """Disks under way, and those that wait for room at either end."""
    ends = [end for end in (item.sending, item.receiving) if end is not None]
    if not ends:
        return "-"
    waiting = sum(end.waiting for end in ends)
    most = max(ends, key=lambda end: end.under_way)
    return f"{most.under_way} of {most.at_once}{f', {waiting} wait' if waiting else ''}"


def _hits(told: CacheStatus) -> str:
    asked, found = told.counts["asked"], told.counts["found"]
    return f"{100 * found / asked:.1f} % of {asked}" if asked else "0 asked"


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
@by_mover_options
@config_option
@click.option("--key", "keys", multiple=True, help=f"{KEY_HELP} May be repeated.")
@dry_run_option
@json_option
def verify(
    cache: Path | None,
    mover: str | None,
    pair: str | None,
    config: Path,
    keys: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Read a whole global cache, name what is bad and drop it.

    Checksums are compared, and with a tenant's key the names of its content too; keys of the pairs
    in standby.toml need not be named. Exit code 3: something was bad. Dropped content is sent again
    when it is needed.

    \b
    Example:
      standby wan verify --pair main
      standby wan verify /var/cache/standby --key file:/etc/standby/tenant.key
    """
    with chosen(cache, mover, pair, config) as place, progress_bars(not as_json) as update:
        found_keys = [*place.keys, *(tenant_key(reference) for reference in keys)]
        label = place.cache.label
        report = place.cache.verify(found_keys, _labelled(update, "verify"), drop=not dry_run)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report) | {"is_ok": report.is_ok})
    else:
        for finding in report.findings:
            what = f"{finding.file} at {finding.offset:#x}: {finding.problem}"
            click.echo(f"{what} ({finding.pieces} pieces{'' if dry_run else ', dropped'})")
        names = f", {report.unnamed_pieces} by checksum only" if report.unnamed_pieces else ""
        verdict = "ok" if report.is_ok else f"{len(report.findings)} bad"
        click.echo(f"{label}: {verdict}, {report.pieces} pieces in {size(report.bytes)}{names}")
    return 0 if report.is_ok else WARNINGS_EXIT


def _labelled(update: Callable[[str, int, int], None], label: str) -> Callable[[int, int], None]:
    return lambda done, total: update(label, done, total)


# --- clear -------------------------------------------------------------------------------------


@wan.command()
@cache_argument
@by_mover_options
@config_option
@click.option("--key", help=f"Only what belongs to this key. {KEY_HELP}")
@yes_option
@dry_run_option
@json_option
def clear(
    cache: Path | None,
    mover: str | None,
    pair: str | None,
    config: Path,
    key: str | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove what a global cache holds; replicas are not touched. With --pair, what belongs to the
    pair's key. Transfers under way send what they do not find.

    \b
    Example:
      standby wan clear --mover dr1
      standby wan clear /var/cache/standby --yes
    """
    from standby.wan.cache import fingerprint

    with chosen(cache, mover, pair, config) as place:
        told, label = place.cache.status(), place.cache.label
        only = place.one_key(key) if key is not None or place.pair else None
        mark = "" if only is None else fingerprint(only).hex()
        gone = [part for part in told.namespaces if mark in ("", part.fingerprint)]
        count, length = sum(part.segments for part in gone), sum(part.bytes for part in gone)
        if dry_run:
            if as_json:
                print_json({"cache": label, "segments": count, "bytes": length})
            else:
                click.echo(f"would remove {count} segments, {size(length)}, from {label}")
            return
        plan = [f"{count} segments, {size(length)}, go; what they hold is sent again when needed"]
        confirmed(plan, f"Clear {label}?", yes=yes, as_json=as_json)
        removed = place.cache.clear(only)
    if as_json:
        print_json({"cache": label, "segments": removed, "bytes": length})
    else:
        click.echo(f"removed {removed} segments from {label}")


# --- populate ----------------------------------------------------------------------------------


@wan.command()
@click.argument("places", nargs=-1, required=True, metavar="[CACHE] PLACES...")
@by_mover_options
@config_option
@click.option("--key", help=f"{KEY_HELP} Default: the key of the pair.")
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
    places: tuple[str, ...],
    mover: str | None,
    pair: str | None,
    config: Path,
    key: str | None,
    in_place: bool,
    limit: int | None,
    memory: int | None,
    folders: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Warm the global cache in the folder CACHE up with the disks in PLACES: disk files (VHDX,
    raw), or folders of them, replicas among them, of any operating system. Exit code 3: a disk
    could not be read.

    With --mover or --pair there is no CACHE; PLACES are paths of the mover's machine, below its
    [roots], and jobs may run.

    \b
    Example:
      standby wan populate --pair main /srv/replicas/web01_replica
      standby wan populate /var/cache/standby /srv/templates --key env:TENANT_KEY
    """
    cache = None
    if mover is None and pair is None:
        cache, places = Path(places[0]), places[1:]
        if not places:
            raise click.UsageError("Missing argument 'PLACES...'.")
    beside = [str(folder) for folder in folders]
    with chosen(cache, mover, pair, config, limit=limit, memory=memory) as place:
        tenant, label = place.one_key(key), place.cache.label
        disks = place.cache.disks(places)
        if dry_run:
            _show_disks(label, disks, as_json)
            return 0
        with progress_bars(not as_json) as update:
            report, evicted = place.cache.populate(
                tenant, places, update, folders=beside, in_place=in_place
            )
    if as_json:
        import msgspec

        told: dict[str, Any] = msgspec.to_builtins(report)
        print_json({"cache": label, "evicted": evicted} | told)
    else:
        for path, problem in report.problems.items():
            warn(problem if path in problem else f"{path}: {problem}")
        click.echo(
            f"{label}: {counted(report.disks, 'disk')}, {size(report.bytes_read)} read, "
            f"{report.pieces_added} new pieces, {size(max(0, report.bytes_added))} more in the "
            "cache"
        )
        if evicted:
            warn(f"the limit was reached: {evicted} segments went; a larger --limit keeps more")
    return WARNINGS_EXIT if report.problems else 0


def _show_disks(cache: str, disks: Sequence[tuple[str, int]], as_json: bool) -> None:
    if as_json:
        found = [{"path": path, "bytes": length} for path, length in disks]
        print_json({"cache": cache, "disks": found})
        return
    for path, length in disks:
        click.echo(f"{path}  {size(length)}")
    click.echo(f"would take {counted(len(disks), 'disk')} into {cache}")
