"""What comes back from a script, between its sentinels, as typed values.

    <standby MARK plain|deflate LENGTH>
    LENGTH characters of base64: JSON in UTF-8, deflated above 64 KiB
    </standby MARK>

The JSON is {"steps": [{"id", "value"} | {"id", "error"}, …]}, or {"error": …} where the script
failed as a whole. What Windows PowerShell 5.1's ConvertTo-Json does to values, and who minds it:

- It goes two levels deep unless told: the prelude asks for 32. Deeper ones would become texts.
- `-InputObject` keeps a list of one a list; a script writes `@(…)` around what may be one or many.
- An array that once went through a pipeline or `New-Object` may be written as {"value": […],
  "Count": n}: undone here.
- Enums are numbers: a script writes "$($_.State)" where it means the name.
- A DateTime is the text /Date(milliseconds)/: `Moment` reads it, and ISO texts too.
- `/`, `<`, `>`, `&` and `'` may be escaped; any JSON reader takes that.
- Any property of a CIM instance may be null: it is left out, and the field has its default.
- Long lists are slow to write, one object each: ranges are one text of lines "offset,length", and
  `ranges` reads it.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic

import msgspec
import numpy as np
from numpy.typing import NDArray

from standby.errors import HostAccessDenied, HostAnswerWrong, HostCallFailed, ScriptFailed
from standby.host.hyperv.verbs import Value, Verb

ANSWER_SIZE_MAX = 64 << 20
"""Bytes of JSON; 200 VMs answer with about 2 MB, the ranges of a shattered TiB with about 20."""

_BEGIN = re.compile(rb"<standby ([0-9a-f]+) (plain|deflate) ([0-9]+)>\r?\n")
_DATE = re.compile(r"/Date\((-?[0-9]+)(?:[+-][0-9]{4})?\)/")
_HRESULT = re.compile(r"0x([89A-Fa-f][0-9A-Fa-f]{7})(?![0-9A-Fa-f])")
_ACCESS_DENIED = (0x80070005, 0x80041003, 0x80338105)
"""Windows, WMI, WS-Management."""
_FIRST_DATE = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(datetime):
    """A DateTime of the host, in UTC; for fields of answers."""


@dataclass(frozen=True, slots=True)
class Step(Generic[Value]):
    """What a script answered for one machine (or other thing) of its list."""

    id: str
    value: Value | None
    error: HostCallFailed | None = None
    """ScriptFailed, or HostAccessDenied."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """What one script answered, step by step, in the script's order."""

    host: str
    verb: str
    steps: tuple[Step[Value], ...]
    warnings: tuple[str, ...] = ()

    def value(self, id: str) -> Value:
        """The value of the only step of that id; its error is raised, HostAnswerWrong when there is
        no such step."""
        found = [step for step in self.steps if step.id == id]
        if len(found) != 1:
            raise HostAnswerWrong(self.host, self.verb, f"{len(found)} answers about {id!r}")
        return self._value_of(found[0])

    def values(self) -> dict[str, Value]:
        """By id, what did not fail."""
        return {step.id: self._value_of(step) for step in self.steps if step.error is None}

    def errors(self) -> dict[str, HostCallFailed]:
        """By id, what failed."""
        return {step.id: step.error for step in self.steps if step.error is not None}

    def _value_of(self, step: Step[Value]) -> Value:
        if step.error is not None:
            raise step.error
        return step.value  # type: ignore[return-value]  # None only where the verb's type has it


class _Error(msgspec.Struct):
    message: str
    kind: str = ""
    category: str = ""
    hresult: int | None = None
    wmi: int | None = None


class _Step(msgspec.Struct):
    id: str
    value: Any = None
    error: _Error | None = None


class _Said(msgspec.Struct):
    steps: list[_Step] = []
    error: _Error | None = None


def read_answer(
    host: str,
    verb: Verb[Value],
    mark: str,
    stdout: bytes,
    said: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Answer[Value]:
    """The answer in a script's standard output. `said`: the first lines of its error stream, for
    the message of HostAnswerWrong, raised where the answer is missing, doubled, cut off or not what
    the verb promises. ScriptFailed where the script failed as a whole."""
    try:
        answer = msgspec.convert(_plain(_document(mark, stdout)), _Said)
        if answer.error is not None:
            raise error_of(host, verb.name, "", answer.error)
        steps = tuple(
            Step(step.id, None, error_of(host, verb.name, step.id, step.error))
            if step.error is not None
            else Step(step.id, _value(step, verb.value))
            for step in answer.steps
        )
    except (ValueError, RecursionError, msgspec.MsgspecError) as exc:
        raise HostAnswerWrong(host, verb.name, str(exc), tuple(said)) from exc
    return Answer(host, verb.name, steps, tuple(warnings))


def _value(step: _Step, kind: type[Value]) -> Value:
    try:
        return msgspec.convert(step.value, kind, dec_hook=_hook)
    except msgspec.MsgspecError as exc:
        raise ValueError(f"about {step.id!r}: {exc}") from exc


def _hook(kind: type, value: Any) -> Any:
    if kind is not Moment:
        raise NotImplementedError(f"no answer holds a {kind.__name__}")
    return moment(value)


def moment(text: str) -> Moment:
    """The time meant by a DateTime's JSON text, or by an ISO 8601 one; ValueError when none is."""
    match = _DATE.fullmatch(text)
    try:
        if match:
            when = _FIRST_DATE + timedelta(milliseconds=int(match[1]))
        else:
            when = datetime.fromisoformat(text)
            when = (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as exc:
        raise ValueError(f"{text[:60]} is beyond what a time can be") from exc
    return Moment.combine(when.date(), when.timetz())


def ranges(text: str) -> NDArray[np.int64]:
    """(n, 2) offsets and lengths from lines "offset,length"; ValueError for anything else."""
    data = text.strip().replace("\r\n", "\n").encode("ascii")
    if not data:
        return np.empty((0, 2), dtype=np.int64)
    lines = data.count(b"\n") + 1
    if data.translate(None, b"0123456789") != b",\n" * (lines - 1) + b",":
        raise ValueError("ranges are lines of an offset and a length")
    try:
        numbers = np.array(data.replace(b"\n", b",").decode().split(","), dtype=np.int64)
    except OverflowError as exc:
        raise ValueError("a range is beyond Int64") from exc
    return numbers.reshape(-1, 2)


def error_of(host: str, verb: str, machine: str, error: _Error) -> HostCallFailed:
    """The typed error of what PowerShell said. The HRESULT is PowerShell's own (0x8013…) for most
    exceptions; then the one that the error id or the message names is meant."""
    hresult = (error.hresult or 0) & 0xFFFFFFFF
    if hresult >> 16 in (0, 0x8013):
        named = _HRESULT.search(f"{error.kind} {error.message}")
        hresult = int(named[1], 16) if named else 0
    # 32769 is "access denied" of every method of root\virtualization\v2.
    if hresult in _ACCESS_DENIED or error.wmi == 32769:
        return HostAccessDenied(host, verb, error.message.strip(), machine)
    return ScriptFailed(
        host,
        verb,
        machine,
        error.message,
        error.kind,
        hresult,
        error.category,
        error.wmi or 0,
    )


def _document(mark: str, stdout: bytes) -> Any:
    begins = [match for match in _BEGIN.finditer(stdout) if match[1] == mark.encode("ascii")]
    if len(begins) != 1:
        raise ValueError("there is none" if not begins else f"there are {len(begins)}")
    begin = begins[0]
    length = int(begin[3])
    body = stdout[begin.end() : begin.end() + length]
    tail = stdout[begin.end() + length :]
    if len(body) < length or not tail.lstrip(b"\r\n").startswith(f"</standby {mark}>".encode()):
        raise ValueError(f"it is cut off or holds foreign output ({length} characters announced)")
    try:
        data = base64.b64decode(body, validate=True)
        if begin[2] == b"deflate":
            data = _inflated(data)
    except (binascii.Error, zlib.error) as exc:
        raise ValueError(f"its bytes are damaged: {exc}") from exc
    return msgspec.json.decode(data)


def _inflated(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    plain = unpacker.decompress(data, ANSWER_SIZE_MAX)
    if unpacker.unconsumed_tail:
        raise ValueError(f"it is larger than {ANSWER_SIZE_MAX} bytes")
    if not unpacker.eof:
        raise ValueError("its bytes are damaged: the deflated data has no end")
    return plain


def _plain(value: Any) -> Any:
    """`value` with what 5.1 made of wrapped arrays undone, and without properties that are null."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    inner = value.get("value")
    if len(value) == 2 and isinstance(inner, list) and value.get("Count") == len(inner):
        return _plain(inner)
    return {key: _plain(item) for key, item in value.items() if item is not None}
