"""The .NET types of the dialect; a host's model adds its own."""

from __future__ import annotations

import base64
import binascii
import math
import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from hyperv.dialect.conversion import NOTHING, DialectError, to_number, to_text
from hyperv.dialect.errors import exception_object
from hyperv.dialect.values import Int64, PSEnum, PSObject, ScriptBlock, UInt64
from hyperv.dialect.world import DotNetType, PSError, Session


class Process(Protocol):
    """What the types need of the process that they are used in."""

    session: Session
    is_utf8: bool

    def read_input(self) -> str:
        """All that is left of standard input."""

    def write(self, text: str) -> None:
        """Write to standard output."""

    def block(self, text: str) -> ScriptBlock:
        """A script's text as a block."""


def _format_error(message: str) -> PSError:
    return PSError(message, exception_type="System.FormatException", is_terminating=True)


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode("".join(to_text(text).split()), validate=True)
    except binascii.Error:
        raise _format_error(
            "The input is not a valid Base-64 string as it contains a non-base 64 character, more "
            "than two padding characters, or an illegal character among the padding characters. "
        ) from None


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return bytes(int(to_number(each)) for each in value)
    raise DialectError("bytes are asked for")


class Encoding(PSObject):
    """A System.Text.Encoding."""

    def __init__(self, kind: str, codec: str) -> None:
        self.codec = codec
        super().__init__(
            (f"System.Text.{kind}", "System.Text.Encoding", "System.Object"),
            methods={
                "GetString": lambda data: _bytes(data).decode(codec, "replace"),
                "GetBytes": lambda text: to_text(text).encode(codec, "replace"),
            },
        )


UTF8 = Encoding("UTF8Encoding", "utf-8")


class _MemoryStream(PSObject):
    def __init__(self, data: Any = b"") -> None:
        self.data = bytearray(_bytes(data))
        super().__init__(
            ("System.IO.MemoryStream", "System.IO.Stream", "System.Object"),
            methods={"ToArray": lambda: bytes(self.data), "Write": self.write, "Dispose": _void},
        )

    def write(self, data: Any, start: int, count: int) -> Any:
        self.data += _bytes(data)[start : start + count]
        return NOTHING


def _void() -> Any:
    return NOTHING


class _DeflateStream(PSObject):
    def __init__(self, stream: _MemoryStream, mode: PSEnum, leave_open: bool = False) -> None:
        if mode.name != "Compress":
            raise DialectError("DeflateStream that unpacks")
        self._packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        self._stream = stream
        self._is_open = True
        super().__init__(
            ("System.IO.Compression.DeflateStream", "System.IO.Stream", "System.Object"),
            methods={"Write": self.write, "Dispose": self.close, "Close": self.close},
        )

    def write(self, data: Any, start: int, count: int) -> Any:
        if not self._is_open:
            raise PSError(
                "Cannot access a closed Stream.",
                exception_type="System.ObjectDisposedException",
                is_terminating=True,
            )
        self._stream.data += self._packer.compress(_bytes(data)[start : start + count])
        return NOTHING

    def close(self) -> Any:
        if self._is_open:
            self._stream.data += self._packer.flush()
            self._is_open = False
        return NOTHING


def _enum(name: str, **values: int) -> DotNetType:
    full = f"System.{name}"
    return DotNetType(name, constants={k: PSEnum(full, k, v) for k, v in values.items()})


def _exception(name: str) -> DotNetType:
    return DotNetType(
        name,
        construct=lambda message="": exception_object(f"System.{name}", to_text(message), None),
    )


def _rounded(run: Callable[[float], float]) -> Callable[[Any], float]:
    return lambda value: float(run(float(to_number(value))))


def builtin(process: Process) -> Mapping[str, DotNetType]:
    """The dialect's types, by their name in lower case without `System.`."""
    clock = process.session.clock

    def write(text: Any = "") -> Any:
        process.write(to_text(text))
        return NOTHING

    def write_line(text: Any = "") -> Any:
        process.write(to_text(text) + "\r\n")
        return NOTHING

    output = PSObject(
        ("System.IO.TextWriter", "System.Object"),
        methods={"Write": write, "WriteLine": write_line, "Flush": _void},
    )
    source = PSObject(
        ("System.IO.TextReader", "System.Object"), methods={"ReadToEnd": process.read_input}
    )
    found = (
        DotNetType(
            "Convert",
            {
                "FromBase64String": _from_base64,
                "ToBase64String": lambda data: base64.b64encode(_bytes(data)).decode(),
            },
        ),
        DotNetType(
            "Text.Encoding",
            constants={
                "UTF8": UTF8,
                "Unicode": Encoding("UnicodeEncoding", "utf-16-le"),
                "ASCII": Encoding("ASCIIEncoding", "ascii"),
            },
        ),
        DotNetType(
            "Text.UTF8Encoding", construct=lambda has_mark=False: Encoding("UTF8Encoding", "utf-8")
        ),
        DotNetType("Console", constants={"In": source, "Out": output}),
        DotNetType("IO.MemoryStream", construct=_MemoryStream),
        DotNetType("IO.Compression.DeflateStream", construct=_DeflateStream),
        _enum("IO.Compression.CompressionMode", Decompress=0, Compress=1),
        DotNetType("ScriptBlock", {"Create": lambda text: process.block(to_text(text))}),
        DotNetType("Guid", {"NewGuid": uuid.uuid4}, {"Empty": uuid.UUID(int=0)}),
        DotNetType("DateTime", constants={"UtcNow": clock.now}),
        DotNetType(
            "String",
            {
                "IsNullOrEmpty": lambda text: to_text(text) == "",
                "Join": lambda by, values: to_text(by).join(to_text(each) for each in values),
            },
        ),
        DotNetType(
            "Math",
            {
                "Min": lambda a, b: min(to_number(a), to_number(b)),
                "Max": lambda a, b: max(to_number(a), to_number(b)),
                "Floor": _rounded(math.floor),
                "Ceiling": _rounded(math.ceil),
            },
        ),
        DotNetType("Int", constants={"MaxValue": 2**31 - 1}),
        DotNetType("Long", constants={"MaxValue": Int64(2**63 - 1)}),
        DotNetType("UInt64", constants={"MaxValue": UInt64(2**64 - 1)}),
        *(_exception(n) for n in ("Exception", "InvalidOperationException", "ArgumentException")),
    )
    return {each.name.lower(): each for each in found}


TYPES = """Convert Text.Encoding Text.UTF8Encoding Console IO.MemoryStream
IO.Compression.DeflateStream IO.Compression.CompressionMode ScriptBlock Guid DateTime String Math
Int Long UInt64 Exception InvalidOperationException ArgumentException"""
"""The names of the types here."""


def find(name: str, own: Mapping[str, DotNetType], world: Mapping[str, DotNetType]) -> DotNetType:
    """A type by its name as a script writes it."""
    plain = name.lower().removeprefix("system.")
    if plain in own:
        return own[plain]
    for key, found in world.items():
        if key.lower().removeprefix("system.") == plain:
            return found
    raise DialectError(f"the .NET type [{name}] is not in the dialect")


def static(found: DotNetType, name: str, process: Process) -> Any:
    """`[Type]::Name`."""
    if found.name == "Console" and name.lower() == "outputencoding":
        return UTF8 if process.is_utf8 else Encoding("SBCSCodePageEncoding", "cp437")
    for key, value in found.constants.items():
        if key.lower() == name.lower():
            return value() if callable(value) and not isinstance(value, PSObject) else value
    raise DialectError(f"[{found.name}]::{name} is not in the dialect")


def set_static(found: DotNetType, name: str, value: Any, process: Process) -> None:
    """`[Console]::OutputEncoding = …`, the only one that can be set."""
    if found.name != "Console" or name.lower() != "outputencoding":
        raise DialectError(f"[{found.name}]::{name} cannot be set in the dialect")
    if not isinstance(value, Encoding):
        raise DialectError("the output's encoding is no encoding")
    process.is_utf8 = value.codec == "utf-8"


def static_method(found: DotNetType, name: str) -> Callable[..., Any]:
    """`[Type]::Name(…)`, or the constructor for `new`."""
    if name.lower() == "new" and found.construct is not None:
        return found.construct
    for key, method in found.statics.items():
        if key.lower() == name.lower():
            return method
    raise DialectError(f"[{found.name}]::{name}() is not in the dialect")
