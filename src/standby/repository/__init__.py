"""Digests and points of every replica, kept near the source host (FORMAT.md).

A page (4,096 leaves: 16 MiB of disk) is stored once and shared by all later states until it
changes. Losing a repository costs time, never a replica: the target's own digests replace it.
"""

from standby.repository.repository import DiskState, Repository
from standby.repository.staging import Mark, StagedDisk, Staging

__all__ = ["DiskState", "Mark", "Repository", "StagedDisk", "Staging"]
