"""Secrets that the configuration names and does not hold: env:NAME, file:PATH."""

from __future__ import annotations

import os
from pathlib import Path

from standby.errors import ConfigurationError
from standby.server.masking import SECRETS

SIZE_MAX = 64 * 1024


def read_reference(reference: str, where: str, folder: Path) -> str:
    """The secret that `reference` names, without the line end; a relative path counts from
    `folder`. It is masked from now on (`masking`). ConfigurationError about `where` (never with the
    secret) when it is not there."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
        if not value:
            raise ConfigurationError(where, f"the environment has no {name}", f"Set {name}")
        return SECRETS.add(value.strip())
    path = folder / Path(name).expanduser()
    try:
        with path.open("rb") as file:
            text = file.read(SIZE_MAX).decode().strip()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "is not UTF-8 text"
        raise ConfigurationError(where, f"{path}: {reason}", "Is the path right?") from None
    if not text:
        raise ConfigurationError(where, f"{path} is empty", "Write the secret into it")
    return SECRETS.add(text)
