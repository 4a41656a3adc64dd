"""What the server says while it runs: one line per event, as JSON or as text, in one place.

A JSON line has `time`, `level` and `message`, and of `session`, `task`, `mover`, `machine` and
`job` those that apply. It goes through the standard library's `logging` (logger "standby"), so
that what libraries say comes out in the same form. A secret that was read through a reference, or
that looks like one, is masked in every line before it is written.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from standby.clock import SYSTEM_CLOCK, Clock
from standby.server.masking import SECRETS, Secrets

FIELDS = ("job", "session", "machine", "task", "mover")
FILE_SIZE_MAX = 8 << 20
FILES_KEPT = 5


class Log:
    """The server's own events. Thread-safe; never raises."""

    def __init__(self, name: str = "standby") -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: str) -> None:
        """For whoever looks for a fault."""
        self.write("debug", message, fields)

    def info(self, message: str, **fields: str) -> None:
        """What happened as it should."""
        self.write("info", message, fields)

    def warning(self, message: str, **fields: str) -> None:
        """What somebody should look at some day."""
        self.write("warning", message, fields)

    def error(self, message: str, *, error: BaseException | None = None, **fields: str) -> None:
        """What went wrong; `error` adds its traceback."""
        self.write("error", message, fields, error)

    def write(
        self,
        level: str,
        message: str,
        fields: Mapping[str, str],
        error: BaseException | None = None,
    ) -> None:
        """An event of one of `watch_config.LEVELS` with some of FIELDS."""
        self._logger.log(
            logging.getLevelName(level.upper()),
            "%s",
            message,
            extra={"of": dict(fields)},
            exc_info=error,
        )


class _Lines(logging.Formatter):
    """One line per event."""

    def __init__(self, form: str, clock: Clock, secrets: Secrets) -> None:
        super().__init__()
        self._form = form
        self._clock = clock
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        # Once per event, not per place that it is written to.
        now = getattr(record, "at", "") or self._clock.now().isoformat(timespec="milliseconds")
        record.at = now
        of: dict[str, Any] = getattr(record, "of", {})
        fields = {name: str(of[name]) for name in FIELDS if of.get(name)}
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        level = record.levelname.lower()
        if self._form == "json":
            # Masked before it is encoded: a mask must not tear the JSON apart.
            values = {"message": message, "logger": record.name, **fields}
            masked = {name: self._secrets.masked(value) for name, value in values.items()}
            return json.dumps({"time": now, "level": level, **masked}, ensure_ascii=False)
        of_text = "".join(f" {name}={value}" for name, value in fields.items())
        # One event is one line: what a VM is called cannot begin another one.
        line = f"{now} {level}{of_text}: {message}".replace("\r", "\\r").replace("\n", "\n    ")
        return self._secrets.masked(line)


def configure(
    *,
    form: str = "text",
    level: str = "info",
    stream: TextIO | None = None,
    file: Path | None = None,
    clock: Clock = SYSTEM_CLOCK,
    secrets: Secrets = SECRETS,
) -> logging.Logger:
    """Send the events of this process to `stream` (default stderr) and to `file`, which is kept
    within FILES_KEPT files of FILE_SIZE_MAX bytes. Replaces what was configured before."""
    root = logging.getLogger("standby")
    close()
    root.propagate = False
    root.setLevel(logging.getLevelName(level.upper()))
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                file, maxBytes=FILE_SIZE_MAX, backupCount=FILES_KEPT - 1, encoding="utf-8"
            )
        )
    for handler in handlers:
        handler.setFormatter(_Lines(form, clock, secrets))
        root.addHandler(handler)
    return root


def close() -> None:
    """End what `configure` began."""
    root = logging.getLogger("standby")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()


def log_files(file: Path) -> list[Path]:
    """The files that `configure` keeps for `file`, newest first."""
    names = [file, *(file.with_name(f"{file.name}.{number}") for number in range(1, FILES_KEPT))]
    return [name for name in names if name.is_file()]
