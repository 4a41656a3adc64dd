"""Which generation of backup server a mover has met: older ones are fenced (RULES 18)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from standby import files
from standby.errors import ProtocolError

FILE_NAME = "server-generation.json"


class ServerGeneration:
    """The highest generation that ever joined, kept in the mover's state folder. Its callers
    lock."""

    def __init__(self, state: Path) -> None:
        """Raises ProtocolError for a file that cannot be read."""
        self._path = state / FILE_NAME
        self.current = _read(self._path)

    def raise_to(self, generation: int) -> None:
        """From now on, durably, that is the lowest that is served; a lower one changes nothing."""
        if generation > self.current:
            files.write_durably(self._path, msgspec.json.encode({"generation": generation}))
            self.current = generation


def _read(path: Path) -> int:
    if not path.exists():
        return 0
    with files.File(path) as file:
        try:
            return int(msgspec.json.decode(file.read(0, file.size))["generation"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(str(path), f"cannot be read: {exc}") from exc
