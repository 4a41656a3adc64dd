"""Secrets are masked wherever text leaves the server: logs, webhooks, support bundles."""

from __future__ import annotations

import json
import re
import threading

MASK = "***"
SECRET_LENGTH_MIN = 4
"""A shorter secret is no secret, and masking it would tear words apart."""

_LOOKS_SECRET = (
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"),
    re.compile(
        r"(?i)(\b[\w-]*(?:password|passwd|secret|token|authorization|api[_-]?key)[\"']?\s*[=:]\s*"
        r"[\"']?)(?!\*\*\*)(?!(?:bearer|basic)\s)[^\s\"',;&}]+"
    ),
    re.compile(r"(://[^/\s:@]*:)[^@\s/]+(?=@)"),
)


class Secrets:
    """The secrets that were read, so that they can be masked wherever they turn up."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._lock = threading.Lock()

    def add(self, value: str) -> str:
        """Mask `value` from now on, each of its lines too; `value`."""
        parts = {value, value.strip(), *(line.strip() for line in value.splitlines())}
        with self._lock:
            for part in parts:
                if len(part) >= SECRET_LENGTH_MIN:
                    self._values |= {part, json.dumps(part, ensure_ascii=False)[1:-1]}
        return value

    def masked(self, text: str) -> str:
        """`text` without any secret that is known, or looks like one."""
        with self._lock:
            values = sorted(self._values, key=len, reverse=True)
        for value in values:
            text = text.replace(value, MASK)
        for pattern in _LOOKS_SECRET:
            text = pattern.sub(rf"\g<1>{MASK}", text)
        return text


SECRETS = Secrets()
"""Those of this process."""
