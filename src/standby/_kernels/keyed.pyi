"""Keyed BLAKE3 of 4 KiB pieces, many side by side. Owner: standby.wan.names."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Buffer = Any

PIECE: int
KEY: int
NAME: int
DIGEST: int
PART: int
MARK: int

def variants() -> tuple[str, ...]: ...
def variant() -> str: ...
def select(name: str) -> None: ...
def names(data: Buffer, key: Buffer, out: NDArray[np.uint8]) -> None: ...
def names_at(
    data: Buffer, offsets: NDArray[np.int64], key: Buffer, out: NDArray[np.uint8]
) -> None: ...
def marks(data: Buffer, key: Buffer, out: NDArray[np.uint8]) -> None: ...
