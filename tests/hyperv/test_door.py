"""The door over a real HTTP server, with a program in Python that plays PowerShell's part."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hyperv.wsman import CommandLine, Quotas, Result, WsmanServer
from standby.clock import Clock
from standby.errors import (
    HostAccessDenied,
    HostAnswerWrong,
    HostCredentialsRefused,
    HostQuotaReached,
    HostUnreachable,
    ScriptFailed,
)
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.door import Door
from standby.host.hyperv.payload import BOOTSTRAP
from standby.host.hyperv.verbs import Verb

PASSWORD = "correct horse 7 battery"


class Seen(msgspec.Struct):
    """What the test's verb answers."""

    name: str
    size: int


LOOK = Verb("look", Seen, is_repeatable=True, deadline_s=20, text="param($request)")
CHANGE = Verb("change", Seen, deadline_s=20, text="param($request)")


class Unhurried(Clock):
    """The system's clock, with pauses that take no time."""

    def sleep(self, duration_s: float) -> None:
        """Nothing is waited for."""


def played(
    said: Callable[[dict[str, Any]], dict[str, Any]], stderr: bytes = b"", exit_code: int = 0
) -> Callable[[CommandLine, bytes], Result]:
    """powershell.exe, as far as the door can tell: `said` makes the answer of the request."""

    def run(line: CommandLine, stdin: bytes) -> Result:
        encoded = line.arguments.rpartition(" ")[2]
        assert base64.b64decode(encoded).decode("utf-16-le") == BOOTSTRAP
        text = base64.b64decode(stdin, validate=True).decode()
        found = re.search(r"Answer -verb \$verb -text '([^']*)' -mark '([0-9a-f]+)'", text)
        assert found
        document = json.dumps(said(json.loads(base64.b64decode(found[1])))).encode()
        body = base64.b64encode(document).decode()
        answer = f"\n<standby {found[2]} plain {len(body)}>\n{body}\n</standby {found[2]}>\n"
        return Result(answer.encode(), stderr, exit_code)

    return run


def steps(request: dict[str, Any]) -> dict[str, Any]:
    """One step per machine."""
    return {
        "steps": [
            {"id": one["id"], "value": {"name": f"vm {one['id']} ä", "size": 1 << 40}}
            for one in request["machines"]
        ]
    }


REQUEST = {"machines": [{"id": "1"}, {"id": "2"}]}


def door_of(server: WsmanServer, password: str = PASSWORD, **options: Any) -> Door:
    """A door to the test's server; basic over HTTP, which no configuration may ask for."""
    access = Access("hv1", "127.0.0.1", server.port, "basic", False, "backup", "env:HV")
    return Door(access, lambda reference, where: password, Unhurried(), cleanup_s=2, **options)


def served(executor: Any, **options: Any) -> WsmanServer:
    """A host."""
    return WsmanServer(executor, {"backup": PASSWORD}, **options)


def test_a_verb_is_answered_machine_by_machine_and_the_shell_is_kept() -> None:
    with served(played(steps)) as server:
        with door_of(server) as door:
            for _ in range(3):
                answer = door.run(LOOK, REQUEST)
                assert answer.value("2") == Seen("vm 2 ä", 1 << 40)
                assert list(answer.values()) == ["1", "2"]
            assert server.shells.opened == 1
            assert server.shells.scripts == 3
            assert server.requests["Get"] == 1  # the quotas, once
        assert server.shells.open == 0


def test_threads_have_a_shell_each_and_leave_none() -> None:
    together = threading.Barrier(8)

    def said(request: dict[str, Any]) -> dict[str, Any]:
        together.wait(20)
        return steps(request)

    with served(played(said)) as server:
        with door_of(server) as door:
            found: list[Seen] = []
            threads = [
                threading.Thread(target=lambda: found.append(door.run(LOOK, REQUEST).value("1")))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [Seen("vm 1 ä", 1 << 40)] * 8
            assert server.shells.open_most == 8
        assert server.shells.open == 0


def test_output_in_pieces_that_cut_characters_is_one_answer() -> None:
    warning = '#< CLIXML\r\n<Objs><S S="warning">größer_x000D__x000A_</S></Objs>'.encode()
    with served(played(steps, warning)) as server, door_of(server) as door:
        server.faults.split_bytes = 7
        server.faults.late_done = True
        answer = door.run(LOOK, REQUEST)
        assert answer.value("1").name == "vm 1 ä"
        assert answer.warnings == ("größer",)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unauthorized", HostCredentialsRefused),
        ("denied", HostAccessDenied),
        ("unavailable", HostUnreachable),
        ("garbled", HostUnreachable),
    ],
)
def test_a_refusal_is_a_typed_error(kind: str, error: type[Exception]) -> None:
    with served(played(steps)) as server, door_of(server) as door:
        server.faults.arm("Create", kind, 3)
        with pytest.raises(error, match="host hv1"):
            door.run(LOOK, REQUEST)
        assert server.shells.open == 0


def test_wrong_credentials_are_tried_once() -> None:
    with served(played(steps)) as server, door_of(server, "wrong") as door:
        with pytest.raises(HostCredentialsRefused):
            door.run(LOOK, REQUEST)
        assert (server.refusals, server.request_count) == (1, 0)


def test_a_used_up_quota_is_named() -> None:
    with served(played(steps), quotas=Quotas(max_shells_per_user=1)) as server:
        server.shells.create("backup")  # another program's
        with door_of(server) as door, pytest.raises(HostQuotaReached, match="concurrent shells"):
            door.run(LOOK, REQUEST)


def test_a_shell_that_could_not_be_deleted_is_deleted_by_the_next_call() -> None:
    with served(played(steps)) as server, door_of(server) as door:
        server.faults.arm("Receive", "no-shell")
        door.run(LOOK, REQUEST)
        server.faults.arm("Receive", "denied")
        server.faults.arm("Delete", "drop")
        with pytest.raises(HostAccessDenied):
            door.run(LOOK, REQUEST)
        assert door.leftovers == 1
        assert server.shells.open == 1
        door.run(LOOK, REQUEST)
        assert door.leftovers == 0
        assert server.shells.open == 1  # the one that is kept


def test_large_input_goes_in_envelopes_that_the_host_takes() -> None:
    with served(played(steps), quotas=Quotas(max_envelope_size_kb=150)) as server:
        with door_of(server) as door:
            machines = [{"id": f"{number:064}"} for number in range(6000)]
            assert len(door.run(LOOK, {"machines": machines}).steps) == 6000
        assert server.requests["Send"] > 4
        assert max(map(len, server.bodies)) <= 150 * 1024


def test_a_host_whose_limits_may_not_be_read_is_taken_for_a_small_one() -> None:
    with served(played(steps), quotas=Quotas(is_readable=False)) as server:
        with door_of(server) as door:
            assert door.run(LOOK, REQUEST).value("1").size == 1 << 40


def test_an_error_of_one_machine_does_not_hide_the_others() -> None:
    def said(request: dict[str, Any]) -> dict[str, Any]:
        error = {"message": "in use (0x80070020)", "kind": "Busy,X", "hresult": -2146233087}
        return {"steps": [{"id": "1", "error": error}, *steps(request)["steps"][1:]]}

    with served(played(said)) as server, door_of(server) as door:
        answer = door.run(LOOK, REQUEST)
        assert list(answer.values()) == ["2"]
        (error,) = answer.errors().values()
        assert isinstance(error, ScriptFailed)
        assert (error.machine, error.hresult, error.error_id) == ("1", 0x80070020, "Busy,X")
        with pytest.raises(ScriptFailed, match="VM 1"):
            answer.value("1")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda out: b"", "there is none"),
        (lambda out: out * 2, "there are 2"),
        (lambda out: out[:-40], "cut off"),
        (lambda out: out.replace(b">\n", b">\nstray", 1), "cut off"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(
    change: Callable[[bytes], bytes], problem: str
) -> None:
    stderr = b'#< CLIXML\r\n<Objs><S S="Error">out of memory_x000D__x000A_</S></Objs>'

    def run(line: CommandLine, stdin: bytes) -> Result:
        return Result(change(played(steps)(line, stdin).stdout), stderr, 1)

    with served(run) as server, door_of(server) as door:
        with pytest.raises(HostAnswerWrong, match=f"{problem}.*out of memory"):
            door.run(LOOK, REQUEST)


def test_no_secret_is_in_a_request_or_an_error() -> None:
    with served(played(steps)) as server:
        with door_of(server) as door:
            door.run(LOOK, REQUEST)
            server.faults.arm("Command", "unauthorized", 2)
            with pytest.raises(HostCredentialsRefused) as refused:
                door.run(LOOK, REQUEST)
        written = b"".join(server.bodies) + repr(server.headers).encode()
        shown = f"{refused.value} {refused.value!r} {door.access!r} {refused.getrepr()}"
        for secret in (PASSWORD, base64.b64encode(PASSWORD.encode()).decode()):
            assert secret.encode() not in written
            assert secret not in shown
