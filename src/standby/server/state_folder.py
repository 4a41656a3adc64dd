"""Where a backup server keeps what it remembers, and one that only looks nothing."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from standby.errors import StandbyError
from standby.files import is_there, make_folder_durably
from standby.host.folder import OWNER_FILE
from standby.server.config import Config


class StateFolder:
    """`database` is the state database's place, `folder` that of what tells this installation's
    checkpoints from others', None where nothing does. Close it.

    With `keeps` False nothing is made: where there is no state database an empty one that is gone
    with this object stands in for it.
    """

    def __init__(self, config: Config, *, keeps: bool = True) -> None:
        self.database: Path | str = config.state_place()
        self.folder: Path | None = config.state_database.parent
        self._stand_in: tempfile.TemporaryDirectory[str] | None = None
        if keeps:
            make_folder_durably(self.folder)
            return
        if isinstance(self.database, Path) and not is_there(self.database):
            self._stand_in = tempfile.TemporaryDirectory(prefix="standby-")
            self.database = Path(self._stand_in.name) / self.database.name
        with contextlib.suppress(StandbyError):
            if is_there(self.folder / OWNER_FILE):
                return
        self.folder = None

    def close(self) -> None:
        """Remove what stood in; a second call does nothing."""
        if self._stand_in is not None:
            self._stand_in.cleanup()
