"""System calls that Python does not offer, where the C library has them."""

from __future__ import annotations

import ctypes
import functools
from typing import Any


@functools.cache
def libc_function(name: str, *argument_types: Any) -> Any:
    """The C library's function of that name, which returns an int; None where there is none."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library of no name
        return None
    function.argtypes = list(argument_types)
    function.restype = ctypes.c_int
    return function
