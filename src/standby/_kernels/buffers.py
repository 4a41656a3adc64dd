"""Flat byte views for the kernels."""

from __future__ import annotations

from typing import Any


def flat(data: Any) -> Any:
    """`data` itself when a kernel can take it, else a flat view of its bytes.

    Raises TypeError for what has no buffer, and for one that is not contiguous.
    """
    view = memoryview(data)
    if view.ndim == 1 and view.format == "B" and view.c_contiguous:
        return data
    return view.cast("B") if view.nbytes else b""
