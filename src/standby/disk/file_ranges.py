"""Where files store a part of a disk, for who reads them without a disk's help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from standby.files import BlockFile, File


@dataclass(frozen=True, slots=True)
class FileRanges:
    """`rows` (n, 4) int64 of (disk offset, length, file offset, index in `files`), ascending; what
    is in none of them is zeros."""

    rows: npt.NDArray[np.int64]
    files: tuple[File, ...]


def plain(file: BlockFile) -> File | None:
    """The file, when reads of its descriptor show what it shows; one that a test put there is
    none."""
    return file if type(file) is File else None
