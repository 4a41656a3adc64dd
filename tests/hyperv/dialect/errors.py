"""Error records as a script sees them, and the error stream as powershell.exe writes it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from hyperv.dialect.conversion import DialectError, to_text, type_name
from hyperv.dialect.values import PSEnum, PSObject
from hyperv.dialect.world import PSError

_CATEGORIES = """NotSpecified OpenError CloseError DeviceError DeadlockDetected InvalidArgument
InvalidData InvalidOperation InvalidResult InvalidType MetadataError NotImplemented NotInstalled
ObjectNotFound OperationStopped OperationTimeout SyntaxError ParserError PermissionDenied
ResourceBusy ResourceExists ResourceUnavailable ReadError WriteError FromStdErr SecurityError
ProtocolError ConnectionError AuthenticationError LimitsExceeded QuotaExceeded NotEnabled"""
CATEGORIES = tuple(_CATEGORIES.split())
"""System.Management.Automation.ErrorCategory, by value."""

_HRESULTS = {
    "System.Exception": 0x80131500,
    "System.ArgumentException": 0x80070057,
    "System.FormatException": 0x80131537,
    "System.InvalidOperationException": 0x80131509,
    "System.IO.IOException": 0x80131620,
    "System.IO.FileNotFoundException": 0x80070002,
    "System.IO.DirectoryNotFoundException": 0x80070003,
    "System.UnauthorizedAccessException": 0x80070005,
    "System.TimeoutException": 0x80131505,
    "Microsoft.Management.Infrastructure.CimException": 0x80131500,
}
_BASES = {
    "System.IO.FileNotFoundException": ("System.IO.IOException",),
    "System.IO.DirectoryNotFoundException": ("System.IO.IOException",),
    "System.Management.Automation.CommandNotFoundException": (
        "System.Management.Automation.RuntimeException",
    ),
    "System.Management.Automation.MethodInvocationException": (
        "System.Management.Automation.RuntimeException",
    ),
}
_RUNTIME_HRESULT = 0x80131501
_MARK = "System.Management.Automation.ErrorRecord"


class ErrorRecord(PSObject):
    """$_ in a `catch`; `error` is what raised it."""

    def __init__(self, error: PSError, exception: PSObject, error_id: str, line: int) -> None:
        category = PSEnum(
            "System.Management.Automation.ErrorCategory",
            error.category,
            CATEGORIES.index(error.category),
        )
        super().__init__(
            (_MARK, "System.Object"),
            {
                "Exception": exception,
                "TargetObject": error.target,
                "CategoryInfo": PSObject(
                    ("System.Management.Automation.ErrorCategoryInfo", "System.Object"),
                    {"Category": category, "Reason": exception.ps_type.rpartition(".")[2]},
                ),
                "FullyQualifiedErrorId": error_id,
                "ErrorDetails": None,
            },
            text=error.message,
        )
        self.error = error
        self.line = line


def signed(hresult: int) -> int:
    """An HRESULT as the Int32 that .NET has."""
    return hresult - (1 << 32) if hresult >= 1 << 31 else hresult


def exception_object(
    kind: str, message: str, hresult: int | None, more: Any = None, inner: Any = None
) -> PSObject:
    """An Exception as a script sees it."""
    if hresult is None:
        hresult = _HRESULTS.get(kind, _RUNTIME_HRESULT)
    made = PSObject(
        (kind, *_BASES.get(kind, ()), "System.Exception", "System.Object"),
        {"Message": message, "HResult": signed(hresult), "InnerException": inner, **(more or {})},
        text=f"{kind}: {message}",
        read_only=("Message", "InnerException"),
    )
    made.methods = {"getbaseexception": lambda: made if inner is None else inner}
    return made


def record(error: PSError, line: int) -> ErrorRecord:
    """The record of an error, made once."""
    made: Any = getattr(error, "record", None)
    if made is not None:
        return made
    if error.category not in CATEGORIES:
        raise DialectError(f"the error category {error.category!r}")
    exception = getattr(error, "exception", None) or exception_object(
        error.exception_type, error.message, error.hresult, error.wmi
    )
    error_id = error.error_id or error.exception_type.rpartition(".")[2]
    if error.command_type:
        error_id = f"{error_id},{error.command_type}"
    made = ErrorRecord(error, exception, error_id, line)
    error.record = made  # type: ignore[attr-defined]
    return made


def thrown(value: Any) -> PSError:
    """The error of `throw value`."""
    if isinstance(value, ErrorRecord):
        return value.error
    if isinstance(value, PSObject) and "System.Exception" in value.type_names:
        error = PSError(
            to_text(value.get("Message")),
            "OperationStopped",
            to_text(value.get("Message")),
            exception_type=value.ps_type,
        )
        error.exception = value  # type: ignore[attr-defined]
    else:
        text = "ScriptHalted" if value is None else to_text(value)
        error = PSError(text, "OperationStopped", text, target=value)
    error.is_terminating = True
    error.ends_script = True  # type: ignore[attr-defined]
    return error


def of_method(name: str, count: int, error: PSError) -> PSError:
    """The error of a .NET method: what the method raised is inside it, with its HResult."""
    inner = exception_object(error.exception_type, error.message, error.hresult, error.wmi)
    kind = "System.Management.Automation.MethodInvocationException"
    message = f'Exception calling "{name}" with "{count}" argument(s): "{error.message}"'
    outer = PSError(
        message,
        "NotSpecified",
        error.exception_type.rpartition(".")[2],
        exception_type=kind,
        is_terminating=True,
    )
    outer.exception = exception_object(  # type: ignore[attr-defined]
        kind, message, None, None, inner
    )
    return outer


def is_caught(found: ErrorRecord, types: list[str]) -> bool:
    """Whether `catch [types]` takes it: by its type, a base of it, or what is inside it."""
    if not types:
        return True
    exception = found.get("Exception")
    inner = exception.get("InnerException")
    names = {n.lower() for each in (exception, inner) if each is not None for n in each.type_names}
    return any(
        name.lower() in names or f"system.{name.lower()}" in names
        for name in (each.strip() for each in types)
    )


@dataclass(frozen=True)
class StderrRecord:
    """One line of the error stream as CLIXML has it: `stream` is Error, Warning, Verbose, …"""

    stream: str
    text: str


_WIDTH = 79
"""Columns of a console without a window, less the one that stays free."""


def error_lines(found: ErrorRecord, source: list[str]) -> list[StderrRecord]:
    """What an uncaught error looks like: message, place, category, id."""
    line = source[found.line - 1].strip() if 0 < found.line <= len(source) else ""
    category = found.get("CategoryInfo").properties
    target = found.get("TargetObject")
    named = f"({to_text(target)}:{type_name(target).rpartition('.')[2]})" if target else "(:)"
    command = found.error.command_type or ""
    shown = [
        found.error.message,
        f"At line:{found.line} char:1",
        f"+ {line}",
        "+ " + "~" * min(len(line), _WIDTH - 2),
        f"    + CategoryInfo          : {category['Category'].name}: {named} "
        f"[{command}], {category['Reason']}",
        f"    + FullyQualifiedErrorId : {found.get('FullyQualifiedErrorId')}",
        " ",
    ]
    return [StderrRecord("Error", part) for each in shown for part in wrapped(each)]


def wrapped(text: str) -> list[str]:
    """A text in lines of the console's width; a blank at which one ends stays on it."""
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(
            line, _WIDTH, drop_whitespace=False, break_on_hyphens=False, replace_whitespace=False
        ) or [line]
    return lines


_PROGRESS = (
    '<Obj S="progress" RefId="0"><TN RefId="0"><T>System.Management.Automation.PSCustomObject</T>'
    '<T>System.Object</T></TN><MS><I64 N="SourceId">1</I64><PR N="Record">'
    "<AV>Preparing modules for first use.</AV><AI>0</AI><Nil /><PI>-1</PI><PC>-1</PC>"
    "<T>Completed</T><SR>-1</SR><SD> </SD></PR></MS></Obj>"
)


def clixml(records: list[StderrRecord]) -> str:
    """Standard error as powershell.exe writes it where its command came encoded.

    The progress record of the first module is there whatever the script says of progress.
    """
    lines = []
    for each in records:
        text = "".join(f"_x{ord(c):04X}_" if c < " " else c for c in escape(each.text + "\r\n"))
        lines.append(f'<S S="{each.stream}">{text}</S>')
    return (
        '#< CLIXML\r\n<Objs Version="1.1.0.1" '
        'xmlns="http://schemas.microsoft.com/powershell/2004/04">'
        f"{_PROGRESS}{''.join(lines)}</Objs>"
    )
