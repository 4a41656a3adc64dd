"""Every script that is sent to a host is in the dialect, and runs as it is sent."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.dialect.check import check, parse
from hyperv.dialect.interpreter import Interpreter, Outcome
from hyperv.dialect.syntax import Function, walk
from hyperv.dialect.values import CimInstance, UInt16
from hyperv.dialect.world import Call, EmptyWorld, PSError
from standby.host.hyperv.payload import BOOTSTRAP, payload
from standby.host.hyperv.verbs import script_text

SCRIPTS = files("standby.host.hyperv").joinpath("scripts")
NAMES = sorted(p.name[:-4] for p in SCRIPTS.iterdir() if p.name.endswith(".ps1"))
PRELUDE = [n.name for n in walk(parse(script_text("prelude"))) if isinstance(n, Function)]


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_in_the_dialect(name: str) -> None:
    assert check(script_text(name), name, PRELUDE) == []


def test_the_bootstrap_is_in_the_dialect() -> None:
    assert check(BOOTSTRAP, "bootstrap") == []


def _answer(outcome: Outcome) -> Any:
    assert outcome.exit_code == 0, outcome.stderr_records
    _, head, body, _, _ = outcome.stdout.split("\n")
    data = base64.b64decode(body)
    return json.loads(zlib.decompress(data, -15) if " deflate " in head else data)


def _instances(call: Call) -> Iterator[object]:
    if call.parameters["ClassName"] == "Msvm_Broken":
        raise PSError(
            "denied",
            "PermissionDenied",
            "HRESULT 0x80041003",
            0x80041003,
            "Microsoft.Management.Infrastructure.CimException",
            command_type="Microsoft.Management.Infrastructure.CimCmdlets.GetCimInstanceCommand",
        )
    for name in ("a", "b"):
        yield CimInstance(
            "Msvm_ComputerSystem",
            r"root\virtualization\v2",
            {"Name": name, "OperationalStatus": [UInt16(2), UInt16(32768)]},
        )


def _run(script: str, request: Any) -> Outcome:
    host = Interpreter(EmptyWorld({"Get-CimInstance": _instances}), "hv1", HeldClock())
    return host.run(BOOTSTRAP, payload(script, request, "m1").decode())


def test_the_payload_of_a_script_is_executed_through_the_bootstrap() -> None:
    said = _answer(_run(script_text("machines"), {}))
    assert said["steps"][0]["id"] == "host"
    rows = said["steps"][0]["value"]["computers"]
    assert [row["Name"] for row in rows] == ["a", "b"]
    assert rows[0]["OperationalStatus"] == [2, 32768]


def test_one_bad_machine_does_not_hide_the_others() -> None:
    script = """param($request)
foreach ($one in $request.machines) {
  Step $one.id {
    @{ names = @(Get-CimInstance -ClassName $one.class | ForEach-Object { $_.Name }) }
  }
}"""
    machines = [{"id": "1", "class": "Msvm_Broken"}, {"id": "2", "class": "Msvm_ComputerSystem"}]
    first, second = _answer(_run(script, {"machines": machines}))["steps"]
    assert second == {"id": "2", "value": {"names": ["a", "b"]}}
    assert first["error"] == {
        "kind": "HRESULT 0x80041003,"
        "Microsoft.Management.Infrastructure.CimCmdlets.GetCimInstanceCommand",
        "message": "denied",
        "category": "PermissionDenied",
        "hresult": 0x80041003 - (1 << 32),
    }


def test_a_long_answer_is_deflated() -> None:
    script = "param($request)\nStep 'a' { @{ text = 'x' * 100000 } }"
    outcome = _run(script, {})
    assert len(outcome.stdout) < 2000
    assert _answer(outcome)["steps"][0]["value"]["text"] == "x" * 100000


def test_what_the_prelude_waits_for_moves_the_clock_alone() -> None:
    clock = HeldClock()
    host = Interpreter(EmptyWorld(), "hv1", clock)
    script = """$until = (Get-Date).AddSeconds(3)
while ((Get-Date) -lt $until) { Start-Sleep -Milliseconds 250 }"""
    assert host.run(script).exit_code == 0
    assert clock.elapsed == 3
