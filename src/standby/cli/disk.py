"""`standby disk …`: virtual disks by themselves."""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import confirmed as ask
from standby.cli.output import (
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    yes_option,
)
from standby.disk import open_disk
from standby.disk.compare import compare_disks
from standby.disk.convert import convert as convert_disk
from standby.disk.merge import merge_file
from standby.disk.vhdx import read_info
from standby.errors import ConfigurationError
from standby.units import parse_size

folders_option = click.option(
    "--parents-in",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folders in which parents may lie, beside the disk's own; may be repeated.",
)
path_argument = click.Path(path_type=Path)


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
    """Virtual disks: look, check, compare, convert, merge, serve."""


@disk.command()
@click.argument("path", type=path_argument)
@json_option
def info(path: Path, as_json: bool) -> None:
    """What the VHDX file PATH says of itself.

    \b
    Example: standby disk info base.vhdx
    """
    found = read_info(path)
    if as_json:
        print_json(found)
        return
    rows = [
        ("virtual size", f"{size(found.virtual_size)} ({found.virtual_size} bytes)"),
        ("file size", size(found.file_size)),
        ("kind", "differencing" if found.has_parent else "fixed" if found.is_fixed else "dynamic"),
        ("block size", size(found.block_size)),
        ("sectors", f"{found.logical_sector_size} logical, {found.physical_sector_size} physical"),
        ("log", "dirty" if found.log_is_dirty else "clean"),
        ("data-write GUID", found.data_write_guid),
        ("page-83 id", found.page83),
        ("made by", found.creator),
        *((f"parent {key}", value) for key, value in found.locator.items()),
    ]
    print_table("", ("", ""), rows)


@disk.command()
@click.argument("path", type=path_argument)
@folders_option
@json_option
def check(path: Path, folders: tuple[Path, ...], as_json: bool) -> int:
    """Check every structure of the VHDX file PATH and of its parents; changes nothing.

    \b
    Example: standby disk check web01.vhdx
    """
    from standby.disk.check import check_disk

    report = check_disk(path, folders=folders)
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            click.echo(finding)
        click.echo(f"{path}: {'ok' if report.is_ok else 'damaged'}")
    return 0 if report.is_ok else 11


@disk.command()
@click.argument("first", type=path_argument)
@click.argument("second", type=path_argument)
@folders_option
@json_option
def compare(first: Path, second: Path, folders: tuple[Path, ...], as_json: bool) -> int:
    """Where the guest sees different bytes on two disks. Exit code 3 when it does.

    \b
    Example: standby disk compare web01.vhdx replica/disk0/ready.vhdx
    """
    with progress_bars(not as_json) as update:
        a = open_disk(first, folders=folders)
        b = open_disk(second, folders=folders)
        try:
            found = list(
                compare_disks(a, b, progress=lambda done, total: update("compare", done, total))
            )
            sizes = (a.virtual_size, b.virtual_size)
        finally:
            a.close()
            b.close()
    total = sum(extent.length for extent in found)
    is_equal = not found and sizes[0] == sizes[1]
    if as_json:
        print_json({"equal": is_equal, "sizes": sizes, "bytes": total, "extents": found})
    else:
        if sizes[0] != sizes[1]:
            click.echo(f"sizes differ: {sizes[0]} and {sizes[1]} bytes")
        for extent in found[:50]:
            click.echo(f"{extent.offset:#014x} {size(extent.length)}")
        if len(found) > 50:
            click.echo(f"… and {len(found) - 50} more ranges (--json has all)")
        click.echo("equal" if is_equal else f"{size(total)} differ in {len(found)} ranges")
    return 0 if is_equal else 3


@disk.command()
@click.argument("source", type=path_argument)
@click.argument("target", type=path_argument)
@click.option("--format", "format_", type=click.Choice(["raw", "vhdx"]), required=True)
@click.option("--source-format", type=click.Choice(["raw", "vhdx"]), help="Default: by content.")
@click.option("--block-size", type=Size(), help="VHDX block size, for example 1M.")
@click.option("--sector-size", type=click.Choice(["512", "4096"]), help="Logical sectors.")
@click.option("--fixed", is_flag=True, help="A fixed VHDX: all space allocated.")
@click.option("--replace", is_flag=True, help="Replace TARGET if it exists.")
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
    folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write SOURCE's content, its chain flattened, to the new file TARGET.

    \b
    Example: standby disk convert --format raw ready.vhdx web01.raw
    """
    with progress_bars(not as_json) as update:
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
            progress=lambda part, total: update("convert", part, total),
        )
    if as_json:
        print_json(done)
    else:
        click.echo(f"{target}: {size(done.virtual_size)} virtual, {size(done.written)} written")


@disk.command()
@click.argument("child", type=path_argument)
@yes_option
@json_option
def merge(child: Path, yes: bool, as_json: bool) -> None:
    """Merge the differencing disk CHILD into its parent, which takes its place.

    \b
    Example: standby disk merge child.avhdx --yes
    """
    if not read_info(child).has_parent:
        raise ConfigurationError(str(child), "has no parent to merge into")
    ask(f"Merge {child} into its parent and remove it?", yes)
    with progress_bars(not as_json) as update:
        merged = merge_file(child, progress=lambda done, total: update("merge", done, total))
    if as_json:
        print_json({"bytes": merged})
    else:
        click.echo(f"merged {size(merged)}; {child} is gone")


@disk.command()
@click.argument("path", type=path_argument)
@click.option("--socket", "socket_path", type=path_argument, required=True, help="Unix socket.")
@click.option("--name", default="disk", show_default=True, help="Export name.")
@click.option("--overlay", is_flag=True, help="Writable; writes are thrown away at the end.")
@folders_option
def serve(
    path: Path, socket_path: Path, name: str, overlay: bool, folders: tuple[Path, ...]
) -> int:
    """Serve the disk PATH (any restore point's file) over NBD until interrupted.

    \b
    Example: standby disk serve 20261122T220000Z-9c1d.vhdx --socket /run/user/1000/point.sock
             qemu-nbd, nbdcopy and qemu-img take nbd+unix:///disk?socket=/run/user/1000/point.sock
    """
    from standby.disk.serve.__main__ import main as serve_disks

    arguments = ["--socket", str(socket_path), f"{name}={path}"]
    if overlay:
        arguments += ["--overlay", str(socket_path.parent)]
    for folder in folders:
        arguments += ["--folder", str(folder)]
    return serve_disks(arguments)
