"""What is sent to powershell.exe: a fixed bootstrap on its command line, all else over its input.

The command line is the same for every call, so neither its length (8191 characters through
cmd.exe) nor who may read it (event logs, the list of processes) matters. The input is base64: only
ASCII, so that no code page of the host can change it.

    prelude.ps1
    $verb = { … the script … }
    Answer -verb $verb -text '<request: JSON, UTF-8, base64>' -mark '<of this call>'

What Windows PowerShell 5.1 does to a request, and how it is met here:

- ConvertFrom-Json takes at most 2 Mi characters (JavaScriptSerializer): REQUEST_SIZE_MAX.
- Whole numbers beyond Int64 become decimals or doubles: refused here. Within it they become Int32
  or Int64 by size; a script casts where a method's parameter has another type.
- Property names are compared without their case, and two that differ only so end the call: refused.
- A one-element array stays an array, as long as it is a property's value: the request is an object.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from standby.host.hyperv.verbs import script_text

BOOTSTRAP = (
    "$b=[Console]::In.ReadToEnd();"
    "$t=[Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($b));"
    "&([scriptblock]::Create($t))"
)
"""Reads the payload from standard input and runs it."""

COMMAND = "powershell.exe"
ARGUMENTS = (
    "-NoProfile",
    "-NonInteractive",
    "-ExecutionPolicy",
    "Bypass",
    "-EncodedCommand",
    base64.b64encode(BOOTSTRAP.encode("utf-16-le")).decode("ascii"),
)
"""-NonInteractive: what would ask fails instead of waiting for ever. The execution policy is about
files and no boundary; an administrator's policy from the domain stands above this argument."""

REQUEST_SIZE_MAX = 1 << 20
"""Characters of JSON; half of what ConvertFrom-Json takes."""

INT64_MAX = (1 << 63) - 1


def payload(script: str, request: Any, mark: str) -> bytes:
    """The input of powershell.exe that runs `script` on `request` (what msgspec can write as a JSON
    object) and answers with sentinels that carry `mark`. ValueError where 5.1 would not read it as
    it is meant: our own mistake."""
    plain = msgspec.to_builtins(request, str_keys=True)
    if not isinstance(plain, dict):
        raise ValueError("a request is an object, for 5.1 takes a list of one apart")
    _check(plain)
    written = msgspec.json.encode(plain)
    if len(written) > REQUEST_SIZE_MAX:
        raise ValueError(f"the request has {len(written)} bytes, ask for fewer machines at once")
    text = (
        f"{script_text('prelude')}\n$verb = {{\n{script}\n}}\n"
        f"Answer -verb $verb -text '{base64.b64encode(written).decode('ascii')}' -mark '{mark}'\n"
    )
    return base64.b64encode(text.encode("utf-8"))


def _check(value: Any) -> None:
    if isinstance(value, dict):
        if len({key.lower() for key in value}) < len(value) or "" in value:
            raise ValueError(f"names that 5.1 cannot tell apart: {sorted(value)}")
        for item in value.values():
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, int) and not -INT64_MAX <= value <= INT64_MAX:
        raise ValueError(f"{value} is beyond Int64, write it as text")
