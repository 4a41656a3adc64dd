"""A model of Hyper-V hosts and clusters: VMs, checkpoints, reference points and real VHDX files.

`World` is all of it; tests make hosts and VMs there, let guests write, and turn what goes wrong.
`HostView` is one host as scripts see it through the dialect's interpreter.
"""

from __future__ import annotations

from hyperv.world.machines import Adapter, Checkpoint, Host, Machine, ReferencePoint
from hyperv.world.storage import Handle, SharingViolation, Volume
from hyperv.world.view import HostView
from hyperv.world.world import DiskSpec, Fault, World

__all__ = [
    "Adapter",
    "Checkpoint",
    "DiskSpec",
    "Fault",
    "Handle",
    "Host",
    "HostView",
    "Machine",
    "ReferencePoint",
    "SharingViolation",
    "Volume",
    "World",
]
