"""Whether standby.toml is still what a running server has read.

A server keeps to the configuration that it was started with. What that was, it leaves beside the
state database, so that `server status` of another process can tell too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from standby.errors import StandbyError
from standby.files import write_durably
from standby.server.config import Config
from standby.server.logs import Log

STATE_FILE = "standby-server.json"
CHANGED = "configuration changed since start; restart to use it"


def digest_of(path: Path) -> str:
    """What the file holds, by its SHA-256; '' where it cannot be read now."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


class ConfigWatch:
    """The configuration of the server in this process. Made when that has just been read."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._read = self._seen = digest_of(config.path)

    def leave(self, server: str) -> None:
        """Tell other processes what the server of that id has read."""
        told = {"server": server, "configuration": self._read}
        with contextlib.suppress(StandbyError, OSError):
            write_durably(_state_file(self._config), json.dumps(told).encode())

    def look(self) -> None:
        """Warn of a change, once. A file that cannot be read, or is half written, is looked at
        again; one that is as it was needs nothing."""
        found = digest_of(self._config.path)
        if found and found != self._seen:
            self._seen = found
            if found != self._read:
                self._log.warning(f"{self._config.path}: {CHANGED}")


def is_config_changed(config: Config, server: str) -> bool:
    """Whether the file is another one than the server of that id, on this machine, has read; False
    where that is not known here."""
    try:
        told = json.loads(_state_file(config).read_bytes())
        read = str(told["configuration"]) if told["server"] == server else ""
    except (OSError, ValueError, KeyError, TypeError):
        return False
    now = digest_of(config.path)
    return bool(read and now) and read != now


def _state_file(config: Config) -> Path:
    return config.state_database.parent / STATE_FILE
