"""The backup server: plans, drives, records; it never touches disk bytes."""

from __future__ import annotations

from standby.server.server import BackupServer

__all__ = ["BackupServer"]
