"""Deliveries to a real server on this machine that answers, fails, hangs, redirects, recovers."""

from __future__ import annotations

import http.server
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from standby.errors import ConfigurationError
from standby.server.masking import SECRETS
from standby.server.watch_config import WebhookConfig, checked_url, parse_webhook
from standby.server.webhooks import QUEUE_MAX, Webhooks
from standby.strict_toml import Table


class Receiver:
    """An HTTP server that answers as told, the last answer from then on."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.got: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.arrived = threading.Semaphore(0)
        self.hang = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), json.loads(body)))
                answers = receiver.answers
                status = answers.pop(0) if len(answers) > 1 else answers[0]
                receiver.arrived.release()
                if status == 0:
                    receiver.hang.wait(30)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "file:///etc/passwd")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?team=1"

    def close(self) -> None:
        self.hang.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receivers() -> Iterator[list[Receiver]]:
    found: list[Receiver] = []
    yield found
    for receiver in found:
        receiver.close()


@pytest.fixture
def receive(receivers: list[Receiver]) -> Any:
    def make(*answers: int) -> Receiver:
        receivers.append(Receiver(*answers))
        return receivers[-1]

    return make


class Failures:
    """Deliveries that failed for good."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.came = threading.Semaphore(0)

    def __call__(self, name: str, text: str) -> None:
        self.texts.append(text)
        self.came.release()


def sending(folder: Path, *configs: WebhookConfig, failures: Failures | None = None) -> Webhooks:
    return Webhooks(
        configs,
        "site",
        folder=folder,
        on_failed=failures or Failures(),
        first_delay_s=0.01,
        state_file=folder / "states.json",
    )


def test_a_result_arrives_once_with_its_headers(
    tmp_path: Path, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "Bearer very-secret-token")
    receiver = receive(200)
    config = WebhookConfig("ops", receiver.url, headers={"Authorization": "env:HOOK_TOKEN"})
    webhooks = sending(tmp_path, config)
    webhooks.publish("result", {"job": "nightly", "outcome": "done", "machines": [{"n": 1}]})
    webhooks.close()
    ((headers, body),) = receiver.got
    assert headers["Authorization"] == "Bearer very-secret-token"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Standby-Delivery"] == body["delivery"]
    assert (body["event"], body["installation"], body["job"]) == ("result", "site", "nightly")
    assert body["machines"] == [{"n": 1}]
    (state,) = webhooks.states()
    assert (state.delivered, state.failed, state.waiting, state.last_error) == (1, 0, 0, "")
    assert json.loads((tmp_path / "states.json").read_text())["webhooks"][0]["delivered"] == 1


def test_only_the_events_that_are_wanted_are_sent(tmp_path: Path, receive: Any) -> None:
    receiver = receive(200)
    webhooks = sending(tmp_path, WebhookConfig("ops", receiver.url, events=("alarm",)))
    webhooks.publish("result", {"job": "a"})
    webhooks.publish("alarm", {"job": "b"})
    webhooks.close()
    assert [body["job"] for _, body in receiver.got] == ["b"]


def test_a_server_that_recovers_gets_everything_in_order(tmp_path: Path, receive: Any) -> None:
    receiver = receive(503, 500, 429, 200)
    webhooks = sending(tmp_path, WebhookConfig("ops", receiver.url))
    for number in range(3):
        webhooks.publish("result", {"number": number})
    for _ in range(6):
        assert receiver.arrived.acquire(timeout=10)
    webhooks.close()
    assert [body["number"] for _, body in receiver.got] == [0, 0, 0, 0, 1, 2]
    assert len({body["delivery"] for _, body in receiver.got}) == 3
    assert webhooks.states()[0].delivered == 3


@pytest.mark.parametrize(
    ("answer", "attempts", "text"),
    [(500, 3, "it answers 500"), (404, 1, "it answers 404"), (302, 1, "is not followed")],
)
def test_what_fails_for_good_is_told_after_so_many_attempts(
    tmp_path: Path, receive: Any, answer: int, attempts: int, text: str
) -> None:
    receiver = receive(answer)
    failures = Failures()
    config = WebhookConfig("ops", receiver.url, attempts=3)
    webhooks = sending(tmp_path, config, failures=failures)
    webhooks.publish("alarm", {"job": "nightly"})
    assert failures.came.acquire(timeout=10)
    webhooks.close()
    assert len(receiver.got) == attempts
    assert text in failures.texts[0]
    (state,) = webhooks.states()
    assert (state.failed, state.attempts) == (1, attempts)
    assert text in state.last_error


def test_a_server_that_hangs_holds_up_nobody_else(tmp_path: Path, receive: Any) -> None:
    hanging, sound = receive(0), receive(200)
    configs = [
        WebhookConfig("hangs", hanging.url, timeout_s=1, attempts=2),
        WebhookConfig("sound", sound.url),
    ]
    failures = Failures()
    webhooks = sending(tmp_path, *configs, failures=failures)
    webhooks.publish("result", {"job": "nightly"})
    assert hanging.arrived.acquire(timeout=10)
    assert sound.arrived.acquire(timeout=10)
    assert failures.came.acquire(timeout=10)  # after its two attempts of a second
    assert len(hanging.got) == 2
    webhooks.close()


def test_a_server_that_sends_a_byte_now_and_then_is_cut_off(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(10)
            while not ended.wait(0.1):
                try:
                    peer.sendall(b"H")
                except OSError:
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    failures = Failures()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    config = WebhookConfig("drips", url, timeout_s=1, attempts=1)
    webhooks = sending(tmp_path, config, failures=failures)
    webhooks.publish("result", {})
    assert failures.came.acquire(timeout=10)
    ended.set()
    dripping.join()
    listener.close()
    webhooks.close()


def test_closing_does_not_wait_for_a_server_that_hangs(tmp_path: Path, receive: Any) -> None:
    receiver = receive(0)
    webhooks = sending(tmp_path, WebhookConfig("ops", receiver.url, timeout_s=60))
    webhooks.publish("result", {})
    assert receiver.arrived.acquire(timeout=10)
    webhooks.close(timeout_s=0)
    assert webhooks.states()[0].delivered == 0


def test_the_queue_is_bounded_and_says_what_it_dropped(tmp_path: Path, receive: Any) -> None:
    receiver = receive(0)
    webhooks = sending(tmp_path, WebhookConfig("ops", receiver.url, timeout_s=60))
    webhooks.publish("result", {"number": -1})
    assert receiver.arrived.acquire(timeout=10)
    for number in range(QUEUE_MAX + 5):
        webhooks.publish("result", {"number": number})
    (state,) = webhooks.states()
    assert (state.waiting, state.dropped) == (QUEUE_MAX, 6)
    webhooks.close(timeout_s=0)


def test_a_secret_is_in_no_message_and_no_body(
    tmp_path: Path,
    receive: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = receive(500)
    monkeypatch.setenv("HOOK_URL", receiver.url + "&key=s3cr3t-in-url")
    (tmp_path / "token").write_text("s3cr3t-header\n")
    failures = Failures()
    config = WebhookConfig("ops", "env:HOOK_URL", headers={"X-Key": "file:token"}, attempts=2)
    webhooks = sending(tmp_path, config, failures=failures)
    webhooks.publish("result", {"error": "login with s3cr3t-header failed"})
    assert failures.came.acquire(timeout=10)
    webhooks.publish("result", {"error": "login with s3cr3t-header failed"})
    assert failures.came.acquire(timeout=10)
    webhooks.close()
    assert receiver.got[0][0]["X-Key"] == "s3cr3t-header"
    assert receiver.got[-1][1]["error"] == "login with *** failed"
    told = str(failures.texts) + str(webhooks.states()) + caplog.text
    told += (tmp_path / "states.json").read_text()
    assert "s3cr3t" not in told
    assert SECRETS.masked("a s3cr3t-header b") == "a *** b"


@pytest.mark.parametrize(
    ("url", "header", "text"),
    [
        ("env:HOOK_MISSING", "", "the environment has no HOOK_MISSING"),
        ("file:nothing", "", "nothing: No such file"),
        ("env:HOOK_FILE_URL", "", "is no http or https URL"),
        ("http://127.0.0.1:9/", "env:HOOK_BAD_HEADER", "a character that cannot be sent"),
    ],
)
def test_what_cannot_be_sent_at_all_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, header: str, text: str
) -> None:
    monkeypatch.setenv("HOOK_FILE_URL", "file:///etc/passwd")
    monkeypatch.setenv("HOOK_BAD_HEADER", "one\ntwo: injected")
    failures = Failures()
    config = WebhookConfig("ops", url, headers={"X-Key": header} if header else {})
    webhooks = sending(tmp_path, config, failures=failures)
    webhooks.publish("result", {})
    assert failures.came.acquire(timeout=10)
    assert text in failures.texts[0]
    assert "injected" not in failures.texts[0]
    webhooks.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://example.org/", "is no http or https URL"),
        ("file:///etc/passwd", "is no http or https URL"),
        ("https://", "is no http or https URL"),
        ("https://user:pass@example.org/", "holds a password"),
        ("http://example.org/", "in the clear"),
        ("https://example.org:99999/", "is no URL"),
        ("https://example.org/a b", "must be written as %XX"),
        ("https://example.org/\r\nX: y", "must be written as %XX"),
    ],
)
def test_a_url_that_must_not_be_used_is_refused(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        checked_url(url, has_secrets=True)


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hook")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "hook.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_certificate_is_verified_and_may_be_named(tmp_path: Path, receive: Any) -> None:
    receiver = receive(200)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    receiver.server.handle_error = lambda *_: None  # a client that does not trust it goes away
    url = receiver.url.replace("http:", "https:")
    failures = Failures()
    webhooks = sending(tmp_path, WebhookConfig("strange", url), failures=failures)
    webhooks.publish("result", {})
    assert failures.came.acquire(timeout=10)
    webhooks.close()
    assert "its certificate is not trusted: self" in failures.texts[0]
    assert webhooks.states()[0].attempts == 1
    trusting = sending(tmp_path, WebhookConfig("ops", url, authority=tmp_path / "hook.pem"))
    trusting.publish("result", {"job": "nightly"})
    assert receiver.arrived.acquire(timeout=10)
    trusting.close()
    assert [body["job"] for _, body in receiver.got] == ["nightly"]


def test_the_words_of_a_webhook() -> None:
    values = {
        "url": "https://example.org/hook",
        "events": ["alarm"],
        "headers": {"Authorization": "env:TOKEN"},
        "timeout": "5s",
        "attempts": 2,
    }
    found = parse_webhook("ops", Table("standby.toml", "webhooks.ops", values))
    assert found == WebhookConfig(
        "ops", "https://example.org/hook", ("alarm",), {"Authorization": "env:TOKEN"}, 5, 2
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "url: is missing"),
        ({"url": "ftp://x"}, "url: is no http or https URL"),
        ({"url": "https://x", "events": ["results"]}, "events: 'results' is not known"),
        ({"url": "https://x", "headers": {"A": "plain"}}, "headers] A: a secret must not stand"),
        ({"url": "https://x", "retry": 1}, "retry: unknown key"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_webhook("ops", Table("standby.toml", "webhooks.ops", values))
    assert text in str(caught.value)
