"""What standby.toml says of those who watch the server: [webhooks.NAME] and [logs]."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from standby.strict_toml import Table

EVENTS = ("result", "alarm")
REFERENCES = ("env:", "file:")
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
LOG_FILE_NAME = "standby-server.log"

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """A [webhooks.NAME]. `url` is one, or a reference to one that holds a secret; `headers` are
    references. `timeout_s` bounds one attempt as a whole, of which there are `attempts`;
    `authority` is a file of certificates to trust instead of the system's."""

    name: str
    url: str
    events: tuple[str, ...] = EVENTS
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: int = 10
    attempts: int = 6
    authority: Path | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[logs]: `form` is text or json; `file` (None: none) is beside what goes to stderr."""

    form: str = "text"
    level: str = "info"
    file: Path | None = None


def parse_logs(table: Table) -> LogConfig:
    """The [logs] table; without a word about a file, it is LOG_FILE_NAME beside standby.toml."""
    wants_file = table.text("file", LOG_FILE_NAME) != ""
    logs = LogConfig(
        table.text("format", "text", choices=FORMATS),
        table.text("level", "info", choices=LEVELS),
        table.path("file", LOG_FILE_NAME) if wants_file else None,
    )
    table.done()
    return logs


def parse_webhook(name: str, table: Table) -> WebhookConfig:
    """A [webhooks.NAME] table; ConfigurationError for the first thing that is wrong."""
    headers = table.table("headers")
    events = table.texts("events", EVENTS)
    for event in events:
        if event not in EVENTS:
            raise table.error("events", f"{event!r} is not known", f"of {', '.join(EVENTS)}")
    webhook = WebhookConfig(
        name,
        table.text("url"),
        events,
        {key: headers.secret(key) for key in headers.keys()},  # noqa: SIM118 (a Table)
        table.duration_s("timeout", 10, minimum=1),
        table.integer("attempts", 6, minimum=1, maximum=20),
        table.path("authority") if table.has("authority") else None,
    )
    table.done()
    if not webhook.url.startswith(REFERENCES):
        try:
            checked_url(webhook.url, has_secrets=bool(webhook.headers))
        except ValueError as exc:
            raise table.error("url", str(exc)) from None
    return webhook


def checked_url(url: str, *, has_secrets: bool) -> urllib.parse.SplitResult:
    """The parts of a URL that may be posted to; ValueError, without the URL, for any other."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("is no http or https URL; write for example https://example.org/hook")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a password: put it into headers, by reference")
    if has_secrets and parts.scheme == "http" and host not in _LOOPBACK:
        raise ValueError("would send the headers' secrets in the clear: use https")
    if any(ord(char) <= 32 or ord(char) >= 127 for char in url):
        raise ValueError("holds a character that must be written as %XX")
    return parts
