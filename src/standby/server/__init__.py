"""The backup server: plans, drives, records; it never touches disk bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from standby.server.server import BackupServer

__all__ = ["BackupServer"]


def __getattr__(name: str) -> Any:
    # Whoever wants the configuration or a pure function must not pay for hosts and databases.
    if name == "BackupServer":
        from standby.server.server import BackupServer

        return BackupServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
