"""Get-SmbOpenFile and Close-SmbOpenFile: what clients have open through a host's shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from hyperv.dialect.values import CimInstance, UInt64
from hyperv.dialect.world import Call, Cmdlet, PSError
from hyperv.world.binding import Bound
from hyperv.world.rows import Rows
from hyperv.world.storage import Handle

NAMESPACE = "ROOT/Microsoft/Windows/SMB"
SESSION = 0x4000_0000_0000


def cmdlets(rows: Rows) -> Mapping[str, Cmdlet]:
    """By name."""
    storage = rows.world.storage

    def served() -> Iterator[tuple[str, Handle]]:
        """A cluster's volumes are served by the node that coordinates them."""
        for handle in list(storage.handles):
            if not handle.client:
                continue
            with contextlib.suppress(KeyError):
                path = storage.windows(rows.host.name, handle.path)
                homes = [v for v in storage.seen_by(rows.host.name) if path.startswith(v.windows)]
                if all(volume.owner in ("", rows.host.name) for volume in homes):
                    yield path, handle

    def get_open(call: Call) -> Iterator[object]:
        if Bound(call).values:
            raise NotImplementedError("the model has Get-SmbOpenFile without parameters only")
        for path, handle in served():
            yield CimInstance(
                "MSFT_SmbOpenFile",
                NAMESPACE,
                {
                    "FileId": UInt64(handle.id),
                    "SessionId": UInt64(SESSION + handle.id),
                    "Path": path,
                    "ClientComputerName": handle.client,
                    "ClientUserName": "EXAMPLE\\mover",
                },
                handle.id,
            )

    def close(call: Call) -> Iterator[object]:
        bound = Bound(call)
        if set(bound.values) != {"FileId", "SessionId", "Force"}:
            raise NotImplementedError("the model closes by FileId, SessionId and Force only")
        ids = bound.values["FileId"], bound.values["SessionId"]
        found = [h for _, h in served() if ([h.id], [SESSION + h.id]) == ids]
        if not found:
            raise PSError(
                "No MSFT_SmbOpenFile objects found.",
                "ObjectNotFound",
                "CmdletizationQuery_NotFound_FileId",
                exception_type="Microsoft.PowerShell.Cmdletization.Cim.CimJobException",
                command_type="Close-SmbOpenFile",
            )
        for handle in found:
            handle.close()
        yield from ()

    return {"Get-SmbOpenFile": get_open, "Close-SmbOpenFile": close}
