"""Which generation of backup server a mover has met: older ones are fenced (RULES 18)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from standby import files
from standby.errors import ConfigurationError

FILE_NAME = "server-generation.json"


class ServerGeneration:
    """The highest generation that ever joined, kept in the mover's state folder. Its callers
    lock."""

    def __init__(self, state: Path) -> None:
        """Raises ConfigurationError for a file that is damaged."""
        self._path = state / FILE_NAME
        self.current = _read(self._path)

    def raise_to(self, generation: int) -> None:
        """From now on, durably, that is the lowest that is served; a lower one changes nothing."""
        if generation > self.current:
            files.write_durably(self._path, msgspec.json.encode({"generation": generation}))
            self.current = generation


def _read(path: Path) -> int:
    if not files.is_there(path):
        return 0
    with files.File(path) as file:
        try:
            return int(msgspec.json.decode(file.read(0, file.size))["generation"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError(
                str(path),
                f"does not say which generation of backup server was met: {exc}",
                "Remove it: the next server that joins writes it anew, and until then an older one "
                "is not fenced",
            ) from exc
