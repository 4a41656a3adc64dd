"""Commands about volumes and shares, as far as they are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hyperv.dialect.values import CimInstance, UInt64
from hyperv.dialect.world import Call, Cmdlet, PSError
from hyperv.world.binding import Bound
from hyperv.world.rows import Rows
from hyperv.world.storage import Volume

STORAGE = "ROOT/Microsoft/Windows/Storage"


def cmdlets(rows: Rows) -> Mapping[str, Cmdlet]:
    """By name."""

    def get_volume(call: Call) -> Iterator[object]:
        bound = Bound(call)
        path = bound.get("FilePath")
        if path is None or len(bound.values) > 1:
            raise NotImplementedError("the model has Get-Volume -FilePath only")
        storage = rows.world.storage
        if storage.path(rows.host.name, path) is None:
            raise PSError(
                f"No MSFT_Volume objects found with property 'FilePath' equal to '{path}'.",
                "ObjectNotFound",
                "CmdletizationQuery_NotFound_FilePath",
                exception_type="Microsoft.PowerShell.Cmdletization.Cim.CimJobException",
                command_type="Get-Volume",
            )
        seen = storage.seen_by(rows.host.name)
        best = max(
            (v for v in seen if path.lower().startswith(v.windows.lower())),
            key=lambda v: len(v.windows),
        )
        yield _volume(best)

    return {"Get-Volume": get_volume}


def _volume(volume: Volume) -> CimInstance:
    return CimInstance(
        "MSFT_Volume",
        STORAGE,
        {
            "ObjectId": volume.id,
            "UniqueId": f"\\\\?\\Volume{{{volume.id}}}\\",
            "Path": f"\\\\?\\Volume{{{volume.id}}}\\",
            "FileSystem": volume.file_system,
            "FileSystemLabel": "",
            "Size": UInt64(volume.size),
            "SizeRemaining": UInt64(volume.free),
            "DriveLetter": volume.windows[0] if len(volume.windows) == 3 else None,
        },
        volume.id,
    )
