"""The rolling hash that finds anchors and cuts. Owner: standby.chunking."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Buffer = Any

WINDOW: int

def variants() -> tuple[str, ...]: ...
def variant() -> str: ...
def select(name: str) -> None: ...

class Rules:
    def __init__(
        self, mixing: NDArray[np.uint16], key: Buffer, bits: int, spacing: int
    ) -> None: ...
    def anchors(
        self,
        data: Buffer,
        limit: int,
        positions_out: NDArray[np.int64],
        fingerprints_out: NDArray[np.uint64],
    ) -> int: ...

class Stream:
    def __init__(
        self,
        rules: Rules,
        min_size: int,
        target_size: int,
        max_size: int,
        hard: int,
        easy: int,
    ) -> None: ...
    def feed(self, data: Buffer, cuts_out: NDArray[np.int64]) -> int: ...
    @property
    def place(self) -> tuple[int, int]: ...
