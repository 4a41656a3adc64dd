"""Hosts that hang, restart or run out: deadlines, what is tried again, and that nothing is left."""

from __future__ import annotations

import contextlib
import gc
import http.client
import socket
import ssl
import threading
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
import winrm.transport
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
    WSManFaultError,
)

from hyperv.test_door import CHANGE, LOOK, PASSWORD, REQUEST, Unhurried, played, steps
from hyperv.wsman import Quotas, WsmanServer
from standby.errors import (
    HostAccessDenied,
    HostCallFailed,
    HostDeadline,
    HostFault,
    HostQuotaReached,
    HostShellLost,
    HostUnreachable,
)
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door

SOON_S = 0.3


def door_to(port: int, *, is_tls: bool = False, **options: Any) -> Door:
    access = Access("hv1", "127.0.0.1", port, "basic", is_tls, "backup", "env:HV")
    return Door(access, lambda reference, where: PASSWORD, Unhurried(), **options)


@contextlib.contextmanager
def hosted(
    executor: Any = None, quotas: Quotas | None = None, **options: Any
) -> Iterator[tuple[WsmanServer, Door]]:
    """A host and its door; at the end no shell is left and every fault was shown."""
    with WsmanServer(executor or played(steps), {"backup": PASSWORD}, quotas=quotas) as server:
        with door_to(server.port, **options) as door:
            yield server, door
        assert server.faults.left == 0
        assert server.shells.open == 0


# --- deadlines ---


@pytest.mark.parametrize("kind", ["hang", "trickle"])
@pytest.mark.parametrize("action", ["Get", "Create", "Command", "Send", "Receive"])
def test_a_host_that_does_not_answer_is_left_at_the_deadline(action: str, kind: str) -> None:
    with hosted() as (server, door):
        server.faults.arm(action, kind)
        while server.faults.left:  # a slow machine may not come as far as that the first time
            with pytest.raises(HostDeadline, match=r"look did not end within 0\.3 s"):
                door.run(LOOK, REQUEST, SOON_S)
        assert door.run(LOOK, REQUEST).value("1").size == 1 << 40


def test_a_script_that_does_not_end_is_broken_off_at_the_deadline() -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(request: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        ended.wait(20)
        return steps(request)

    with hosted(played(endless)) as (server, door):
        while not begun.is_set():
            with pytest.raises(HostDeadline, match="was broken off"):
                door.run(LOOK, REQUEST, SOON_S)
        assert server.requests["Signal"] >= 1
        assert server.shells.open == 0
        ended.set()


def test_an_answer_that_is_there_is_not_lost_to_a_hanging_signal() -> None:
    with hosted(cleanup_s=SOON_S) as (server, door):
        server.faults.arm("Signal", "hang")
        assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert server.shells.opened == 1


def test_a_delete_that_hangs_is_made_up_for_by_the_next_call() -> None:
    with hosted(cleanup_s=SOON_S) as (server, door):
        door.run(LOOK, REQUEST)
        server.faults.arm("Delete", "hang")
        door.close()
        assert (door.leftovers, server.shells.open) == (1, 1)
        while door.leftovers:
            door.run(LOOK, REQUEST)
        assert server.shells.open == 1


def test_a_host_ends_shells_that_nobody_speaks_to() -> None:
    with hosted() as (server, door):
        door.run(LOOK, REQUEST)
        (body,) = [body for body in server.bodies if b"IdleTimeOut" in body]
        assert b"<rsp:IdleTimeOut>PT900S</rsp:IdleTimeOut>" in body


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_port_that_accepts_and_keeps_silent_is_left_at_the_deadline(is_tls: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with door_to(silent.getsockname()[1], is_tls=is_tls) as door:
            with pytest.raises(HostDeadline, match=r"reading the host's quotas"):
                door.run(LOOK, REQUEST, SOON_S)


def test_a_port_that_does_not_even_accept_is_left_at_the_deadline() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the queue is full, further ones are not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with door_to(full.getsockname()[1]) as door:
            with pytest.raises(HostDeadline):
                door.run(LOOK, REQUEST, SOON_S)


def test_a_port_where_nobody_listens_is_said_to_be_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with door_to(port) as door:
        with pytest.raises(HostUnreachable, match=r"(?i)refused.*winrm quickconfig"):
            door.run(LOOK, REQUEST)


def test_whoever_waits_for_a_shell_waits_no_longer_than_its_deadline() -> None:
    ended, begun = threading.Event(), threading.Event()

    def busy(request: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        ended.wait(20)
        return steps(request)

    with hosted(played(busy), Quotas(max_shells_per_user=3)) as (_, door):
        first = threading.Thread(target=door.run, args=(LOOK, REQUEST))
        first.start()
        begun.wait(20)
        with pytest.raises(HostDeadline, match="waiting for a free shell"):
            door.run(LOOK, REQUEST, SOON_S)
        ended.set()
        first.join()


# --- what is tried again ---

RETRIES = [
    # step, fault: what a repeatable verb ends with and how often its script ran; any other verb
    ("Get", "drop", (None, 1), (None, 1)),
    ("Get", "denied", (None, 1), (None, 1)),
    ("Create", "drop", (None, 1), (None, 1)),
    ("Create", "quota", (None, 1), (None, 1)),
    ("Create", "unavailable", (None, 1), (None, 1)),
    ("Create", "timed-out", (None, 1), (None, 1)),
    ("Send", "timed-out", (None, 1), (HostShellLost, 0)),
    ("Create", "denied", (HostAccessDenied, 0), (HostAccessDenied, 0)),
    ("Create", "other", (HostFault, 0), (HostFault, 0)),
    ("Command", "drop", (None, 1), (None, 1)),
    ("Command", "drop-answer", (None, 1), (None, 1)),
    ("Command", "no-shell", (None, 1), (None, 1)),
    ("Command", "denied", (HostAccessDenied, 0), (HostAccessDenied, 0)),
    ("Send", "drop", (None, 1), (HostShellLost, 0)),
    ("Send", "drop-answer", (None, 2), (HostShellLost, 1)),
    ("Send", "no-shell", (None, 1), (HostShellLost, 0)),
    ("Send", "unavailable", (None, 1), (HostShellLost, 0)),
    ("Receive", "drop", (None, 1), (None, 1)),
    ("Receive", "timed-out", (None, 1), (None, 1)),
    ("Receive", "drop-answer", (None, 2), (HostShellLost, 1)),
    ("Receive", "no-shell", (None, 2), (HostShellLost, 1)),
    ("Receive", "unavailable", (None, 2), (HostShellLost, 1)),
    ("Receive", "garbled", (None, 2), (HostShellLost, 1)),
    ("Receive", "denied", (HostAccessDenied, 1), (HostAccessDenied, 1)),
    ("Signal", "drop", (None, 1), (None, 1)),
    ("Signal", "no-shell", (None, 1), (None, 1)),
    ("Signal", "denied", (None, 1), (None, 1)),
    ("Delete", "drop", (None, 1), (None, 1)),
]


@pytest.mark.parametrize("is_repeatable", [True, False])
@pytest.mark.parametrize(("action", "kind", "repeatable", "other"), RETRIES)
def test_a_verb_is_tried_again_where_that_is_safe(
    action: str, kind: str, repeatable: Any, other: Any, is_repeatable: bool
) -> None:
    error, scripts = repeatable if is_repeatable else other
    verb = LOOK if is_repeatable else CHANGE
    with hosted() as (server, door):
        server.faults.arm(action, kind)
        if error is None:
            assert door.run(verb, REQUEST).value("1").size == 1 << 40
        else:
            with pytest.raises(error, match="host hv1"):
                door.run(verb, REQUEST)
        assert server.shells.scripts == scripts
        door.close()
        assert door.run(verb, REQUEST).value("2").size == 1 << 40


@pytest.mark.parametrize(
    ("action", "kind", "error"),
    [
        ("Create", "quota", HostQuotaReached),
        ("Create", "unavailable", HostUnreachable),
        ("Create", "timed-out", HostShellLost),
        ("Command", "drop", HostShellLost),
        ("Receive", "no-shell", HostShellLost),
    ],
)
def test_it_is_not_tried_for_ever(action: str, kind: str, error: type[HostCallFailed]) -> None:
    with hosted() as (server, door):
        server.faults.arm(action, kind, 3)
        with pytest.raises(error) as found:
            door.run(LOOK, REQUEST)
        assert type(found.value) is error


# --- whatever else goes wrong ---


def foreign() -> Iterator[Exception]:
    """What pywinrm, requests and what lies below them may raise."""
    for module in (requests.exceptions, urllib3.exceptions, http.client):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Exception):
                yield kind.__new__(kind)
    yield from (
        WinRMError("odd"),
        WinRMTransportError("http", 502, ""),
        WinRMOperationTimeoutError(),
        InvalidCredentialsError("no"),
        WSManFaultError(500, "", b"", "(no error message in fault)"),
        xml.etree.ElementTree.ParseError("no element found"),
        AssertionError(),
        StopIteration(),
        KeyError("www-authenticate"),
        OSError(104, "Connection reset by peer"),
        ssl.SSLError(1, "bad record"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        RecursionError(),
    )


def test_no_foreign_error_leaves_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = list(foreign())
    assert len(errors) > 60

    for error in errors:

        def failing(self: object, message: object, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(winrm.transport.Transport, "send_message", failing)
        with door_to(1) as door, pytest.raises(HostCallFailed, match=r"^host hv1: "):
            door.run(CHANGE, REQUEST)


# --- restarts ---


def test_a_host_that_was_restarted_between_calls_gets_a_new_shell() -> None:
    with hosted() as (server, door):
        door.run(CHANGE, REQUEST)
        server.go_down()
        with pytest.raises(HostUnreachable):
            door.run(CHANGE, REQUEST)
        server.go_up()
        assert door.run(CHANGE, REQUEST).value("1").size == 1 << 40
        assert server.shells.scripts == 2


@pytest.mark.parametrize("is_repeatable", [True, False])
def test_a_service_that_is_restarted_under_a_script(is_repeatable: bool) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(request: dict[str, Any]) -> dict[str, Any]:
        if not begun.is_set():
            begun.set()
            ended.wait(20)
        return steps(request)

    with hosted(played(slow)) as (server, door):

        def restart() -> None:
            begun.wait(20)
            server.shells.forget_all()
            server.drop_connections()
            ended.set()

        restarting = threading.Thread(target=restart)
        restarting.start()
        if is_repeatable:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40
        else:
            with pytest.raises(HostShellLost, match="looked up before it is tried again"):
                door.run(CHANGE, REQUEST)
        restarting.join()
        assert server.shells.scripts == (2 if is_repeatable else 1)


# --- long lives ---


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def test_hundreds_of_calls_leave_nothing() -> None:
    files, threads = open_files(), set(threading.enumerate())
    with hosted() as (server, door):
        for call in range(200):
            if call % 50 == 25:
                server.drop_connections()
            door.run(CHANGE, REQUEST)
        assert server.shells.opened == 1
        assert server.shells.scripts == 200
        assert server.connections <= 2 * 5
    until = time.monotonic() + 20  # the server's own threads end a little after it
    while set(threading.enumerate()) - threads or open_files() > files:
        assert time.monotonic() < until, (threading.enumerate(), open_files(), files)
        time.sleep(0.01)


def test_threads_share_the_shells_that_the_quota_leaves() -> None:
    quotas = Quotas(max_shells_per_user=6)
    with hosted(quotas=quotas) as (server, door):
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(5):
                    door.run(CHANGE, REQUEST)
            except BaseException as exc:
                failed.append(exc)

        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert server.shells.scripts == 60
        assert server.shells.open_most <= 4  # two are left to others


def test_a_door_that_is_forgotten_leaves_no_shell() -> None:
    with WsmanServer(played(steps), {"backup": PASSWORD}) as server:
        door = door_to(server.port)
        door.run(LOOK, REQUEST)
        assert server.shells.open == 1
        del door
        gc.collect()
        assert server.shells.open == 0


def test_a_door_closed_under_a_call_leaves_no_shell_when_it_is_done() -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(request: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        ended.wait(20)
        return steps(request)

    with hosted(played(slow)) as (server, door):
        found: list[int] = []
        calling = threading.Thread(
            target=lambda: found.append(door.run(CHANGE, REQUEST).value("1").size)
        )
        calling.start()
        begun.wait(20)
        door.close()
        ended.set()
        calling.join()
        assert found == [1 << 40]
        assert server.shells.open == 0
