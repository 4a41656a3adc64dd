"""A repository that lies with a mover, as a session asks it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from standby.repository import DiskState, StagedDisk
from standby.server.crew import Handle


class RemoteRepository:
    """The repository with a mover, as a session asks it."""

    def __init__(self, mover: Handle, folder: str, create: bool) -> None:
        self._mover = mover
        self._folder = folder
        # Whether it is there, or made now: what follows opens it as it is.
        self._call("states", replica="", create=create)

    def _call(self, verb: str, **arguments: Any) -> Any:
        return self._mover.call(f"repository_{verb}", repository=self._folder, **arguments)

    def states(self, replica: str) -> dict[str, DiskState]:
        """See Repository."""
        found = self._call("states", replica=replica)
        return {
            disk: DiskState(
                state["point_id"],
                bytes.fromhex(state["root"]),
                state["virtual_size"],
                state["sequence"],
            )
            for disk, state in found.items()
        }

    def points(self, replica: str) -> list[str]:
        """See Repository."""
        return list(self._call("points", replica=replica))

    def staged(self, replica: str) -> list[StagedDisk]:
        """See Repository."""
        return msgspec.convert(self._call("staged", replica=replica), list[StagedDisk])

    def commit(self, replica: str, point_id: str, disks: Mapping[str, bytes]) -> None:
        """See Repository."""
        roots = {disk: root.hex() for disk, root in disks.items()}
        self._call("commit", replica=replica, point_id=point_id, disks=roots)

    def discard(self, replica: str, disk: str | None = None) -> None:
        """See Repository."""
        self._call("discard", replica=replica, disk=disk)

    def drop_points(self, replica: str, keep: Collection[str]) -> None:
        """See Repository."""
        self._call("drop_points", replica=replica, keep=sorted(keep))

    def forget(self, replica: str) -> None:
        """See Repository."""
        self._call("forget", replica=replica)

    def close(self) -> None:
        """Nothing: each call opens and closes it at the mover."""
