"""`standby disk …`: virtual disks by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.disk_serve import serve
from standby.cli.output import (
    confirmed,
    dry_run_option,
    if_cancelled,
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    yes_option,
)
from standby.units import parse_size

if TYPE_CHECKING:
    from standby.disk import RawDisk, VhdxDisk
    from standby.disk.vhdx.info import VhdxInfo

folders_option = click.option(
    "--parents-in",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder that a parent's path may lead into, beside the disk's own; may be repeated.",
)
existing_file = click.Path(path_type=Path, exists=True, dir_okay=False)

UNCHANGED = "nothing was changed"
DAMAGED_EXIT = 11
DIFFERENT_EXIT = 3


class Size(click.ParamType[int]):
    """'64M', '1 GiB', '4096'."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@click.group()
def disk() -> None:
    """Virtual disks (VHDX, raw): look, check, compare, convert, merge, serve.

    \b
    Example:
      standby disk info web01.vhdx
      standby disk compare web01.vhdx replicas/web01_replica/disk0/ready.vhdx
    """


@disk.command()
@click.argument("path", type=existing_file)
@json_option
def info(path: Path, as_json: bool) -> None:
    """What the disk file PATH (VHDX or raw) says of itself; its parents are not opened.

    \b
    Example: standby disk info base.vhdx
    """
    from standby.disk import RawDisk, detected_format
    from standby.disk.vhdx import read_info

    if detected_format(path) == "raw":
        raw = RawDisk(path, pad=True)
        try:
            allocated = sum(last - first for first, last in raw.file.data_ranges(0, raw.file.size))
            facts = {
                "virtual_size": raw.virtual_size,
                "file_size": raw.file.size,
                "allocated": allocated,
            }
        finally:
            raw.close()
        if as_json:
            print_json({"path": path, "format": "raw"} | facts)
            return
        rows = [(name.replace("_", " "), _exact(count)) for name, count in facts.items()]
        print_table("", ("", ""), [("kind", "raw image"), *rows])
        return
    found = read_info(path)
    if as_json:
        import msgspec

        print_json({"path": path, "format": "vhdx"} | msgspec.to_builtins(found))
    else:
        print_table("", ("", ""), _vhdx_rows(found))


def _exact(count: int) -> str:
    return f"{size(count)} ({count} bytes)"


def _vhdx_rows(found: VhdxInfo) -> list[tuple[str, str]]:
    kind = "differencing" if found.has_parent else "fixed" if found.is_fixed else "dynamic"
    return [
        ("kind", f"{kind} VHDX"),
        ("virtual size", _exact(found.virtual_size)),
        ("file size", size(found.file_size)),
        ("block size", size(found.block_size)),
        ("sectors", f"{found.logical_sector_size} logical, {found.physical_sector_size} physical"),
        ("log", "dirty: replayed when the disk is opened" if found.log_is_dirty else "clean"),
        ("data-write GUID", found.data_write_guid),
        ("page-83 id", found.page83),
        ("made by", found.creator),
        *((f"parent {key.replace('_', ' ')}", value) for key, value in found.locator.items()),
    ]


@disk.command()
@click.argument("path", type=existing_file)
@folders_option
@json_option
def check(path: Path, folders: tuple[Path, ...], as_json: bool) -> int:
    """Check every structure of the VHDX file PATH and of its parents; changes nothing. Exit code
    11: damaged.

    \b
    Example: standby disk check web01.vhdx
    """
    from standby.disk import detected_format
    from standby.disk.check import check_disk
    from standby.errors import DiskUnsupported

    if detected_format(path) == "raw":
        raise DiskUnsupported(
            str(path), "checking a raw image", "It has no structure that could be damaged"
        )
    with if_cancelled(UNCHANGED):
        report = check_disk(path, folders=folders)
    if as_json:
        import msgspec

        print_json({"path": path, "is_ok": report.is_ok} | msgspec.to_builtins(report))
    else:
        for text in (*report.findings, *report.notes):
            click.echo(text)
        present = f"{report.blocks_present} of {report.blocks} blocks present"
        layers = f"{report.layers} files checked" if report.layers > 1 else "1 file checked"
        click.echo(f"{path}: {'ok' if report.is_ok else 'DAMAGED'}, {present}, {layers}")
    return 0 if report.is_ok else DAMAGED_EXIT


@disk.command()
@click.argument("first", type=existing_file)
@click.argument("second", type=existing_file)
@folders_option
@json_option
def compare(first: Path, second: Path, folders: tuple[Path, ...], as_json: bool) -> int:
    """Where the guest sees different bytes on two disks. Exit code 3 when it does.

    \b
    Example: standby disk compare web01.vhdx replica/disk0/ready.vhdx
    """
    from contextlib import closing
    from dataclasses import replace

    from standby.disk.compare import compare_disks

    with (
        if_cancelled(UNCHANGED),
        progress_bars(not as_json) as update,
        closing(_opened(first, folders)) as a,
        closing(_opened(second, folders)) as b,
    ):
        sizes = (_true_size(a), _true_size(b))
        found = [
            replace(extent, length=min(extent.stop, max(sizes)) - extent.offset)
            for extent in compare_disks(a, b, progress=_labelled(update, "compare"))
        ]
    total = sum(extent.length for extent in found)
    is_equal = not found and sizes[0] == sizes[1]
    if as_json:
        extents = [{"offset": extent.offset, "length": extent.length} for extent in found]
        print_json({"equal": is_equal, "sizes": sizes, "bytes": total, "extents": extents})
    else:
        if sizes[0] != sizes[1]:
            by = size(abs(sizes[0] - sizes[1]))
            longer, extra = (first, sizes[1]) if sizes[0] > sizes[1] else (second, sizes[0])
            click.echo(
                f"sizes differ: {sizes[0]} and {sizes[1]} bytes; {longer} is longer by {by}, from "
                f"offset {extra:#x} on, which counts as zeros of the other"
            )
        for extent in found[:50]:
            click.echo(f"{extent.offset:#014x} {size(extent.length)}")
        if len(found) > 50:
            click.echo(f"and {len(found) - 50} more ranges (--json has all)")
        if is_equal:
            click.echo("equal")
        elif found:
            click.echo(f"{size(total)} differ in {len(found)} ranges")
        else:
            click.echo("no byte differs but the sizes do")
    return 0 if is_equal else DIFFERENT_EXIT


def _opened(path: Path, folders: tuple[Path, ...]) -> RawDisk | VhdxDisk:
    """The disk to be read, a raw image of whatever length."""
    from standby.disk import RawDisk, detected_format, open_disk

    if detected_format(path) == "raw":
        return RawDisk(path, pad=True)
    return open_disk(path, folders=folders, format="vhdx")


def _true_size(disk: RawDisk | VhdxDisk) -> int:
    """Its bytes: a raw image need not be whole sectors."""
    from standby.disk import RawDisk

    return disk.file.size if isinstance(disk, RawDisk) else disk.virtual_size


def _labelled(update: Callable[[str, int, int], None], label: str) -> Callable[[int, int], None]:
    return lambda done, total: update(label, done, total)


def _block_size(
    _context: click.Context, _parameter: click.Parameter, value: int | None
) -> int | None:
    from standby.disk.vhdx.structures import BLOCK_SIZE_MAX, BLOCK_SIZE_MIN

    if value is None or (BLOCK_SIZE_MIN <= value <= BLOCK_SIZE_MAX and not value & (value - 1)):
        return value
    raise click.BadParameter(f"{size(value)} is not a power of two from 1 MiB to 256 MiB.")


@disk.command()
@click.argument("source", type=existing_file)
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--format", "format_", type=click.Choice(["raw", "vhdx"]), required=True, help="Of TARGET."
)
@click.option("--source-format", type=click.Choice(["raw", "vhdx"]), help="Default: by content.")
@click.option(
    "--block-size",
    type=Size(),
    callback=_block_size,
    help="VHDX block size, a power of two from 1M to 256M.",
)
@click.option("--sector-size", type=click.Choice(["512", "4096"]), help="Logical sectors.")
@click.option("--fixed", is_flag=True, help="A fixed VHDX: all space allocated.")
@click.option("--replace", is_flag=True, help="Replace TARGET if it exists.")
@dry_run_option
@folders_option
@json_option
def convert(
    source: Path,
    target: Path,
    format_: str,
    source_format: str | None,
    block_size: int | None,
    sector_size: str | None,
    fixed: bool,
    replace: bool,
    dry_run: bool,
    folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write SOURCE's content, its chain flattened, to the new file TARGET, whole or not at all.

    \b
    Example: standby disk convert --format raw ready.vhdx web01.raw
    """
    from standby.disk.convert import convert as convert_disk
    from standby.errors import ConfigurationError
    from standby.files import is_folder, is_there

    _refuse_replica_file(target, "name another target")
    if is_there(target) and not replace:
        raise ConfigurationError(
            str(target), "exists already", "Name another file, or repeat with --replace"
        )
    if not is_folder(target.absolute().parent):
        raise ConfigurationError(str(target), "its folder does not exist", "Make the folder first")
    if dry_run:
        _show_conversion(source, target, format_, source_format, folders, as_json)
        return
    with if_cancelled(f"{target} was not made"), progress_bars(not as_json) as update:
        done = convert_disk(
            source,
            target,
            format_,
            source_format=source_format,
            folders=folders,
            block_size=block_size,
            logical_sector_size=int(sector_size) if sector_size else None,
            fixed=fixed,
            replace=replace,
            progress=_labelled(update, "convert"),
        )
    if as_json:
        print_json(done)
    else:
        click.echo(f"{target}: {size(done.virtual_size)} virtual, {size(done.written)} written")


def _refuse_replica_file(path: Path, instead: str) -> None:
    """ConfigurationError for a file inside a replica: changing it behind the replica's back
    damages restore points."""
    from standby.errors import ConfigurationError
    from standby.files import is_there

    for folder in list(path.absolute().parents)[:2]:
        if is_there(folder / "replica.json"):
            raise ConfigurationError(
                str(path), f"belongs to the replica in {folder}", f"Leave it alone: {instead}"
            )


def _show_conversion(
    source: Path,
    target: Path,
    format_: str,
    source_format: str | None,
    folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    from contextlib import closing

    from standby.disk import RawDisk, detected_format, open_disk
    from standby.model.extent import Kind

    chosen = source_format or detected_format(source)
    opened: RawDisk | VhdxDisk
    if chosen == "raw":
        opened = RawDisk(source, pad=True)
    else:
        opened = open_disk(source, folders=folders, format=chosen)
    with closing(opened) as found:
        data = sum(item.length for item in found.extents() if item.kind is Kind.DATA)
        facts = {
            "source": source,
            "source_format": chosen,
            "target": target,
            "format": format_,
            "virtual_size": found.virtual_size,
            "read": data,
        }
    if as_json:
        print_json(facts)
    else:
        click.echo(
            f"would read {size(data)} of {source} ({chosen}, {size(found.virtual_size)} virtual) "
            f"and write at most that to {target} ({format_})"
        )


@disk.command()
@click.argument("child", type=existing_file)
@yes_option
@dry_run_option
@folders_option
@json_option
def merge(child: Path, yes: bool, dry_run: bool, folders: tuple[Path, ...], as_json: bool) -> None:
    """Merge the differencing disk CHILD into its parent, which takes its place; CHILD is removed.

    \b
    Example: standby disk merge child.avhdx --yes
    """
    from standby.disk.merge import merge_file, planned_merge

    _refuse_replica_file(child, "retention merges its points")
    base, grows_by = planned_merge(child, folders=folders)
    plan = [
        f"the content of {child} goes into {base}, which grows by {size(grows_by)} at most",
        f"{child} is removed; its former state, and that of {base}, cannot be had back",
    ]
    if dry_run:
        if as_json:
            print_json({"child": child, "base": base, "grows_by": grows_by})
        else:
            click.echo("\n".join(plan))
        return
    confirmed(plan, f"Merge {child} into {base}?", yes=yes, as_json=as_json)
    left = (
        f"{child} is as it was, and so is what it reads as; {base} may hold a part of it already: "
        f"use it through {child} only, and repeat the command to end the merge"
    )
    with if_cancelled(left), progress_bars(not as_json) as update:
        merged = merge_file(child, folders=folders, progress=_labelled(update, "merge"))
    if as_json:
        print_json({"child": child, "base": merged.base, "copied": merged.copied})
    else:
        click.echo(f"merged {size(merged.copied)} into {merged.base}; {child} is gone")


disk.add_command(serve)
