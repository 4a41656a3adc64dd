"""Disks over NBD, for guests and tools on this machine (`python -m standby.disk.serve`)."""

from standby.disk.serve.server import NbdServer

__all__ = ["NbdServer"]
