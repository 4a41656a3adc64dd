"""VHDX files ([MS-VHDX]): reading and writing, dynamic, fixed and differencing.

`create`, `create_child`, `open_vhdx` and `read_info` are the doors; a `VhdxDisk` is what they give.
"""

from standby.disk.vhdx.api import create, create_child, open_vhdx, read_info
from standby.disk.vhdx.disk import VhdxDisk
from standby.disk.vhdx.geometry import default_block_size
from standby.disk.vhdx.info import VhdxInfo

__all__ = [
    "VhdxDisk",
    "VhdxInfo",
    "create",
    "create_child",
    "default_block_size",
    "open_vhdx",
    "read_info",
]
