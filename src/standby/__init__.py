"""standby keeps ready-to-start replicas of virtual machines on another host.

    import standby

    server = standby.BackupServer("standby.toml")
    report = server.start("nightly")
    print(report.outcome, [machine.point for machine in report.machines])

Everything the command line does is a method of `BackupServer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from standby.server import BackupServer

__all__ = ["BackupServer", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # A mover imports this package too and must not pay for the backup server's imports.
    if name == "BackupServer":
        from standby.server import BackupServer

        return BackupServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
