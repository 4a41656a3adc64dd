"""The HTTP(S) side: authentication, faults, and one method per WS-Management action."""

from __future__ import annotations

import base64
import gzip
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from hyperv.wsman import envelopes
from hyperv.wsman.faults import Faults
from hyperv.wsman.shells import Command, CommandLine, Executor, Quotas, Shell, Shells
from hyperv.wsman.signing import Garbled, Guard, Refused, Signing


@dataclass(frozen=True)
class Tls:
    """PEM files: the host's certificate and key, and the authority of clients' certificates;
    `binding` is what a sign-in is bound to (tls-server-end-point)."""

    certificate: Path
    key: Path
    client_authority: Path | None = None
    binding: bytes = b""
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED


class WsmanServer:
    """A host's WinRM service on a free port of this machine, while its context lasts.

    `users` are names and passwords for basic authentication. `requests` counts the messages by
    action, of users who are signed in; `bodies` and `headers` keep what came over the wire.
    """

    def __init__(
        self,
        executor: Executor,
        users: Mapping[str, str],
        tls: Tls | None = None,
        quotas: Quotas | None = None,
        signing: Signing | None = None,
    ) -> None:
        self.users = dict(users)
        self.signing = signing or Signing()
        self.signed: Counter[str] = Counter()
        """Who signed in how often, over all connections."""
        self.is_up = True
        self.quotas = quotas or Quotas()
        self.faults = Faults()
        self.shells = Shells(executor)
        self.requests: Counter[str] = Counter()
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        """Of every request, but for a basic Authorization."""
        self.connections = 0
        self.operation_timeouts: list[float] = []
        """Seconds that clients asked a Receive to wait."""
        self.lock = threading.Lock()
        self.tls = tls
        self.refusals = 0
        """Answers of 401."""
        self._http = _Http(("127.0.0.1", 0), _Handler, self, tls)
        self._thread = self._server_thread()

    def _server_thread(self) -> threading.Thread:
        return threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    @property
    def request_count(self) -> int:
        """All HTTP requests so far."""
        return sum(self.requests.values())

    def drop_connections(self) -> None:
        """End every connection, as a restart of the service does; shells stay."""
        self._http.drop_connections()

    def go_down(self) -> None:
        """The machine dies: its shells and connections are gone, nobody listens any more."""
        if not self.is_up:
            return
        self.is_up = False
        self._http.shutdown()
        self._http.socket.close()
        self.drop_connections()
        self.shells.forget_all()

    def go_up(self) -> None:
        """It is back, under the same address."""
        if self.is_up:
            return
        self._thread.join()
        self._http.socket = socket.create_server(self._http.server_address, backlog=64)
        self.is_up = True
        self._thread = self._server_thread()
        self._thread.start()

    def __enter__(self) -> WsmanServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.faults.let_go()
        self._http.shutdown()
        self._thread.join()
        self.drop_connections()
        self._http.server_close()
        self.shells.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], handler: Any, service: WsmanServer, tls: Tls | None
    ) -> None:
        self.service = service
        self._open: set[socket.socket] = set()
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.maximum_version = tls.newest
            self._context.load_cert_chain(tls.certificate, tls.key)
            if tls.client_authority is not None:
                self._context.load_verify_locations(tls.client_authority)
                self._context.verify_mode = ssl.CERT_OPTIONAL
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: TLS, then messages until it ends."""
        with self.service.lock:
            self.service.connections += 1
        try:
            if self._context is not None:
                request = self._context.wrap_socket(request, server_side=True)
            self._open.add(request)
            super().finish_request(request, client_address)
        except OSError:
            pass  # the client went away, or refused our certificate
        finally:
            self._open.discard(request)
            request.close()

    def drop_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _Dropped(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def setup(self) -> None:
        """A connection begins."""
        super().setup()
        certificate = getattr(self.connection, "getpeercert", dict)() or {}
        subject = [value for part in certificate.get("subject", ()) for _, value in part]
        service = self.service
        binding = service.tls.binding if service.tls else None
        self._guard = Guard(service.signing, service.users, binding, "".join(subject))

    @property
    def service(self) -> WsmanServer:
        return self.server.service

    def do_POST(self) -> None:
        """One message."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        service = self.service
        with service.lock:
            service.bodies.append(body)
            service.headers.append(
                {k: v for k, v in self.headers.items() if not v.startswith("Basic ")}
            )
        try:
            if not service.is_up:
                raise _Dropped
            user = self._guard.look(self.headers.get("Authorization", ""))
            if "Authorization" in self.headers:
                with service.lock:
                    service.signed[user] += 1
            plain = self._guard.opened(self.headers.get("Content-Type", ""), body)
            is_hidden = service.tls is not None or self._guard.is_encrypted
            if not plain:
                self._set_up()
            elif not is_hidden and not service.signing.allows_plain:
                self._reply(500, b"")
            else:
                self._answer(plain, user)
        except Refused as refused:
            self._refuse(refused)
        except Garbled:
            self._reply(400, b"")
        except _Dropped:
            self.close_connection = True
            self.connection.close()

    def _set_up(self) -> None:
        """The empty message that encryption begins with."""
        kind = self.service.faults.take("Setup")
        if kind == "hang":
            self.service.faults.hang()
        if kind == "drop":
            raise _Dropped
        if kind == "unproven":
            self._guard.token = b""
        self._reply(503 if kind == "unavailable" else 200, b"")

    def _refuse(self, refused: Refused) -> None:
        self._guard.token = b""
        self._reply(401, b"", offers=self._guard.offers(refused))

    def _answer(self, body: bytes, user: str) -> None:
        message = envelopes.read(body)
        kind = self.service.faults.take(message.action)
        with self.service.lock:
            self.service.requests[message.action] += 1
        if kind == "unauthorized":
            self._guard.sign_out()
            self._refuse(Refused())
        elif kind == "redirected":
            self._reply(302, b"", {"Location": "http://elsewhere.invalid/wsman"})
        elif kind == "compressed":
            self._reply(200, gzip.compress(bytes(1 << 20)), {"Content-Encoding": "gzip"})
        elif kind == "endless":
            self._endless(bytes(1 << 16))
        elif kind == "trickle":
            self._endless(b"<", 0.02)
        elif self.path != "/wsman":
            self._reply(404, b"")
        elif kind in ("unavailable", "forbidden"):
            self._reply(503 if kind == "unavailable" else 403, b"")
        elif kind == "garbled":
            self._reply(200, b"<html>a proxy's page")
        elif kind == "drop":
            raise _Dropped
        elif kind == "hang":
            self.service.faults.hang()
            raise _Dropped
        else:
            status, answer = self._acted(message, user, kind, len(body))
            if kind == "drop-answer":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + answer[:40])
                raise _Dropped
            self._reply(status, answer)

    def _acted(
        self, message: envelopes.Message, user: str, kind: str, size: int
    ) -> tuple[int, bytes]:
        if kind == "no-shell" and self.service.shells.get(message.shell_id):
            self.service.shells.delete(message.shell_id)
        try:
            if kind and kind != "drop-answer":
                raise envelopes.FAULTS[kind]
            if size > self.service.quotas.max_envelope_size_kb * 1024:
                raise envelopes.TOO_LARGE
            act = getattr(self, f"_{message.action.lower()}")
            return 200, message.reply(act(message, user))
        except envelopes.Fault as fault:
            return 500, message.fault(fault)

    def _endless(self, piece: bytes, pause_s: float = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        try:
            while not self.service.faults.is_over(pause_s):
                self.wfile.write(piece)
        except OSError as exc:
            raise _Dropped from exc

    def _reply(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        offers: Sequence[str] = (),
    ) -> None:
        if offers:
            with self.service.lock:
                self.service.refusals += 1
        self.send_response(status)
        if body:
            kind, body = self._guard.closed(body)
            self.send_header("Content-Type", kind)
        if self._guard.token:
            token = base64.b64encode(self._guard.token).decode()
            self.send_header("WWW-Authenticate", f"Negotiate {token}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        for offer in offers:
            self.send_header("WWW-Authenticate", offer)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # --- the actions; each answers the content of the body ---

    def _shell(self, message: envelopes.Message, user: str) -> Shell:
        shell = self.service.shells.get(message.shell_id)
        if shell is None or shell.user != user:
            raise envelopes.FAULTS["no-shell"]
        return shell

    def _command_of(self, message: envelopes.Message, user: str, path: str) -> Command:
        command_id = message.attribute(path, "CommandId")
        command = self._shell(message, user).commands.get(command_id)
        if command is None:
            raise envelopes.NO_COMMAND
        return command

    def _create(self, message: envelopes.Message, user: str) -> str:
        if self.service.shells.of(user) >= self.service.quotas.max_shells_per_user:
            raise envelopes.FAULTS["quota"]
        return envelopes.created(self.service.shells.create(user).id)

    def _command(self, message: envelopes.Message, user: str) -> str:
        line = CommandLine(message.text("rsp:Command"), message.text("rsp:Arguments"))
        return envelopes.commanded(self.service.shells.command(self._shell(message, user), line).id)

    def _send(self, message: envelopes.Message, user: str) -> str:
        command = self._command_of(message, user, "rsp:Stream")
        data = base64.b64decode(message.text("rsp:Stream"))
        is_end = message.attribute("rsp:Stream", "End") == "true"
        self.service.shells.send(command, data, is_end=is_end)
        return "<rsp:SendResponse/>"

    def _receive(self, message: envelopes.Message, user: str) -> str:
        command = self._command_of(message, user, "rsp:DesiredStream")
        with self.service.lock:
            self.service.operation_timeouts.append(message.timeout_s)
        shells = self.service.shells
        with shells.changed:
            shells.changed.wait_for(
                lambda: command.result is not None or command.is_ended, message.timeout_s
            )
        if command.is_ended:
            raise envelopes.FAULTS["no-shell"]
        if command.result is None:
            raise envelopes.FAULTS["timed-out"]
        return self._output(command)

    def _output(self, command: Command) -> str:
        faults, result = self.service.faults, command.result
        assert result is not None
        streams = []
        is_rest_sent = True
        for name, data in (("stdout", result.stdout), ("stderr", result.stderr)):
            start = command.sent[name]
            stop = min(len(data), start + faults.split_bytes) if faults.split_bytes else len(data)
            command.sent[name] = stop
            is_rest_sent = is_rest_sent and stop == len(data)
            if stop > start:
                streams.append((name, data[start:stop]))
        is_done = is_rest_sent and not (faults.late_done and streams)
        return envelopes.received(command.id, streams, result.exit_code if is_done else None)

    def _signal(self, message: envelopes.Message, user: str) -> str:
        command = self._command_of(message, user, "rsp:Signal")
        with self.service.shells.changed:
            command.is_ended = True
            self.service.shells.changed.notify_all()
        return "<rsp:SignalResponse/>"

    def _delete(self, message: envelopes.Message, user: str) -> str:
        self.service.shells.delete(self._shell(message, user).id)
        return ""

    def _get(self, message: envelopes.Message, user: str) -> str:
        if not self.service.quotas.is_readable:
            raise envelopes.FAULTS["denied"]
        return envelopes.configuration(self.service.quotas)
