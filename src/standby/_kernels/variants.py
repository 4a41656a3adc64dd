"""Which CPU variant of the kernels runs: the fastest, or the one STANDBY_KERNEL names."""

from __future__ import annotations

import os
from typing import Protocol

from standby.errors import ConfigurationError

VARIABLE = "STANDBY_KERNEL"


class Kernel(Protocol):
    """A compiled module that has CPU variants."""

    def variants(self) -> tuple[str, ...]: ...
    def select(self, name: str) -> None: ...


def choose(kernel: Kernel) -> None:
    """Select what STANDBY_KERNEL names, if it is set. Raises ConfigurationError when this build
    or machine has no such variant: a forced variant is never replaced silently."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return
    try:
        kernel.select(name)
    except ValueError:
        raise ConfigurationError(
            VARIABLE,
            f"this machine has no kernel variant {name!r}",
            f"Choose one of {', '.join(kernel.variants())}, or unset {VARIABLE}",
        ) from None
