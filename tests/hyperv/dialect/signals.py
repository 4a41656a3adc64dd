"""How a script leaves a loop, a block, a pipeline or the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Out = Callable[[Any], None]
"""Takes one object that was emitted."""


class Signal(BaseException):
    """Not an error: no `catch` sees it."""


class Break(Signal):
    pass


class Continue(Signal):
    pass


class Return(Signal):
    pass


class Exit(Signal):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Enough(Signal):
    """Select-Object -First has what it wants: `stage` is its own."""

    def __init__(self, stage: object) -> None:
        super().__init__()
        self.stage = stage
