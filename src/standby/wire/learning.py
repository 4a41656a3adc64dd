"""Values learnt before threads need them.

msgspec works out the fields of a dataclass or Struct when it first meets it, and keeps them with
the class from the beginning of that, half done (msgspec 0.22). Two threads that meet a class at the
same time for the first time end the process: the second one reads what the first has not written
yet. So a process has its classes learnt by one thread, before it begins others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading

import msgspec

_lock = threading.Lock()
_learnt: set[type] = set()


def learn_values() -> None:
    """Have msgspec know every value class of the modules that are imported by now. To be called
    before the threads begin that convert; a second call costs the new classes only."""
    with _lock:
        for name, module in list(sys.modules.items()):
            if not name.startswith("standby."):
                continue
            for kind in list(vars(module).values()):
                if _is_value(kind, name) and kind not in _learnt:
                    _learnt.add(kind)
                    # One that msgspec cannot convert, nobody converts.
                    with contextlib.suppress(Exception):
                        msgspec.json.Decoder(kind)


def _is_value(kind: object, module: str) -> bool:
    if not isinstance(kind, type) or kind.__module__ != module:
        return False
    return dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct)
