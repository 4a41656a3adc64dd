"""One POST of JSON per session result and per alarm, to whoever is named in standby.toml.

Each webhook has a thread and a bounded queue of its own, so that one that hangs holds up nothing
and nobody. A delivery is tried again, ever later, while that can help; one that fails for good is
an alarm. Redirects are not followed, certificates are verified, secrets come by reference and are
in no message.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import standby
from standby.clock import SYSTEM_CLOCK, Clock, new_uuid
from standby.errors import ConfigurationError, StandbyError
from standby.files import write_durably
from standby.server.logs import Log
from standby.server.masking import SECRETS
from standby.server.references import read_reference
from standby.server.watch_config import REFERENCES, WebhookConfig, checked_url

QUEUE_MAX = 256
"""Deliveries that wait; above it the oldest is dropped, and counted."""
FIRST_DELAY_S = 2.0
DELAY_MAX_S = 300.0
STATE_FILE = "standby-webhooks.json"

_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class WebhookState:
    """How deliveries went since the server began. Times are ISO 8601, '' where there is none;
    `last_error` is '' once a delivery went through."""

    name: str
    waiting: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    attempts: int = 0
    last_delivered_at: str = ""
    last_failed_at: str = ""
    last_error: str = ""


class Webhooks:
    """All webhooks of a server. `publish` never blocks and never raises."""

    def __init__(
        self,
        configs: Iterable[WebhookConfig],
        installation: str,
        *,
        folder: Path,
        clock: Clock = SYSTEM_CLOCK,
        log: Log | None = None,
        on_failed: Callable[[str, str], None] = lambda name, text: None,
        first_delay_s: float = FIRST_DELAY_S,
        state_file: Path | None = None,
    ) -> None:
        """`folder` is what relative file references count from. `on_failed(name, text)` is called
        for a delivery that failed for good, from a webhook's thread. `state_file` gets the states
        after every delivery, for other processes."""
        self._installation = installation
        self._clock = clock
        self._state_file = state_file
        self._writing = threading.Lock()
        self._senders = [
            _Sender(config, folder, clock, log or Log(), on_failed, first_delay_s, self._write)
            for config in configs
        ]

    def publish(self, event: str, payload: Mapping[str, Any]) -> None:
        """Queue a delivery for every webhook that wants the event."""
        body = {
            "version": 1,
            "event": event,
            "installation": self._installation,
            "time": self._clock.now().isoformat(),
            **_masked(payload),
        }
        for sender in self._senders:
            if event in sender.config.events:
                sender.put(event, body)

    def states(self) -> list[WebhookState]:
        """How deliveries went."""
        return [sender.state() for sender in self._senders]

    def close(self, timeout_s: float = 5.0) -> None:
        """Let what waits be tried once more, for `timeout_s` at most, and end."""
        for sender in self._senders:
            sender.finish()
        deadline = self._clock.monotonic() + timeout_s
        for sender in self._senders:
            sender.join(max(0.0, deadline - self._clock.monotonic()))
        for sender in self._senders:
            sender.cut()

    def _write(self) -> None:
        if self._state_file is None:
            return
        states = [{name: getattr(item, name) for name in item.__slots__} for item in self.states()]
        with self._writing, contextlib.suppress(StandbyError, OSError):
            write_durably(self._state_file, json.dumps({"webhooks": states}, indent=2).encode())


class _Refused(Exception):
    """A delivery that fails however often it is tried."""


class _Sender:
    """One webhook."""

    def __init__(
        self,
        config: WebhookConfig,
        folder: Path,
        clock: Clock,
        log: Log,
        on_failed: Callable[[str, str], None],
        first_delay_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.config = config
        self._folder = folder
        self._clock = clock
        self._log = log
        self._on_failed = on_failed
        self._first_delay_s = first_delay_s
        self._on_change = on_change
        self._state = WebhookState(config.name)
        self._queue: collections.deque[tuple[str, dict[str, Any]]] = collections.deque()
        self._changed = threading.Condition()
        self._is_finishing = False
        self._is_over = False
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(
            target=self._serve, name=f"webhook {config.name}", daemon=True
        )
        self._thread.start()

    def put(self, event: str, body: dict[str, Any]) -> None:
        """Queue a delivery."""
        with self._changed:
            if len(self._queue) >= QUEUE_MAX:
                self._queue.popleft()
                self._state = replace(self._state, dropped=self._state.dropped + 1)
            self._queue.append((event, {"delivery": str(new_uuid()), **body}))
            self._changed.notify()

    def state(self) -> WebhookState:
        """How deliveries went."""
        with self._changed:
            return replace(self._state, waiting=len(self._queue))

    def finish(self) -> None:
        """End when nothing waits any more, and wait for nothing between attempts."""
        with self._changed:
            self._is_finishing = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout_s)

    def cut(self) -> None:
        """End now."""
        with self._changed:
            self._is_over = self._is_finishing = True
            self._changed.notify()
            connection = self._connection
        _shut(connection)
        self._thread.join(self.config.timeout_s)

    # --- the thread --------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._is_finishing:
                    self._changed.wait()
                if self._is_over or not self._queue:
                    return
                event, body = self._queue[0]
            error = self._deliver(event, body)
            now = self._clock.now().isoformat()
            with self._changed:
                if self._queue and self._queue[0][1] is body:
                    self._queue.popleft()
                state = self._state
                if error:
                    self._state = replace(
                        state, failed=state.failed + 1, last_failed_at=now, last_error=error
                    )
                else:
                    self._state = replace(
                        state, delivered=state.delivered + 1, last_delivered_at=now, last_error=""
                    )
            self._on_change()
            if error and not self._is_over:
                text = f"webhook {self.config.name}: a {event} could not be delivered: {error}"
                self._log.error(text)
                with contextlib.suppress(StandbyError):
                    self._on_failed(self.config.name, text)

    def _deliver(self, event: str, body: dict[str, Any]) -> str:
        """Try until it is delivered ('') or cannot be: why."""
        delay_s = self._first_delay_s
        for attempt in range(1, self.config.attempts + 1):
            with self._changed:
                self._state = replace(self._state, attempts=self._state.attempts + 1)
            try:
                self._post(event, body)
                return ""
            except _Refused as exc:
                return str(exc)
            except (OSError, http.client.HTTPException) as exc:
                error = SECRETS.masked(f"{type(exc).__name__}: {exc}")
            with self._changed:
                self._state = replace(self._state, last_error=error)
            self._log.warning(f"webhook {self.config.name}: attempt {attempt} failed: {error}")
            with self._changed:
                if attempt < self.config.attempts and not self._is_finishing:
                    self._changed.wait_for(lambda: self._is_finishing, delay_s)
                if self._is_over or (self._is_finishing and attempt > 1):
                    break
            delay_s = min(2 * delay_s, DELAY_MAX_S)
        return error

    def _post(self, event: str, body: dict[str, Any]) -> None:
        """One attempt. Bounded as a whole: a peer that sends a byte now and then is cut off."""
        config = self.config
        parts, headers = self._resolved()
        headers |= {
            "Content-Type": "application/json",
            "User-Agent": f"standby/{standby.__version__}",
            "X-Standby-Event": event,
            "X-Standby-Delivery": str(body["delivery"]),
        }
        host, port = parts.hostname or "", parts.port
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            try:
                context = ssl.create_default_context(
                    cafile=str(config.authority) if config.authority is not None else None
                )
            except OSError as exc:
                raise _Refused(f"{config.authority}: {exc.strerror or exc}") from None
            connection = http.client.HTTPSConnection(
                host, port, timeout=config.timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=config.timeout_s)
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        cut = threading.Timer(config.timeout_s, lambda: _shut(connection))
        cut.daemon = True
        cut.start()
        with self._changed:
            self._connection = connection
        try:
            connection.request("POST", path, json.dumps(body).encode(), headers)
            status = connection.getresponse().status
        except ssl.SSLCertVerificationError as exc:
            raise _Refused(f"its certificate is not trusted: {exc.verify_message}") from None
        except ValueError:  # a header that cannot be sent; the message would hold it
            raise _Refused("a header holds a character that cannot be sent") from None
        finally:
            cut.cancel()
            with self._changed:
                self._connection = None
            connection.close()
        if 300 <= status < 400:
            raise _Refused(f"it answers with a redirect ({status}), which is not followed")
        if 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
            raise _Refused(f"it answers {status}")
        if status >= 300:
            raise http.client.HTTPException(f"it answers {status}")

    def _resolved(self) -> tuple[urllib.parse.SplitResult, dict[str, str]]:
        """The URL and the headers, with what they refer to as it is now."""
        config = self.config
        where = f"[webhooks.{config.name}]"
        try:
            headers = {
                name: read_reference(text, f"{where} {name}", self._folder)
                for name, text in config.headers.items()
            }
            url = config.url
            if url.startswith(REFERENCES):
                url = read_reference(url, f"{where} url", self._folder)
            return checked_url(url, has_secrets=bool(headers)), headers
        except ConfigurationError as exc:
            raise _Refused(str(exc)) from None
        except ValueError as exc:
            raise _Refused(f"{where} url: {exc}") from None


def _shut(connection: http.client.HTTPConnection | None) -> None:
    """End whatever a thread does with the connection."""
    found = connection.sock if connection is not None else None
    if found is not None:
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def _masked(value: Any) -> Any:
    """`value` without secrets in any of its texts."""
    if isinstance(value, str):
        return SECRETS.masked(value)
    if isinstance(value, Mapping):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
