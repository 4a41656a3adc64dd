"""What a script sees beyond the language: the commands and .NET types of a model of hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hyperv.dialect.values import Hashtable
from standby.clock import Clock


class PSError(Exception):
    """An error of a command, of a method or of the language itself.

    `category` is a value of System.Management.Automation.ErrorCategory, `error_id` the first part
    of FullyQualifiedErrorId, which gets the command's type name behind a comma where `command_type`
    tells one.  `hresult` may be written either way (0x80070020 or -2147024864).  `wmi` are further
    properties of the exception object: for a CimException `NativeErrorCode`, `StatusCode`,
    `MessageId` and what else the host's code says.

    Raised out of a command it ends the command.  Where `is_terminating` is False, as for most
    errors of Hyper-V's and the CIM cmdlets, the script goes on behind it unless the error action is
    Stop; where it is True, `-ErrorAction SilentlyContinue` does not hush it.
    """

    def __init__(
        self,
        message: str,
        category: str = "NotSpecified",
        error_id: str = "",
        hresult: int | None = None,
        exception_type: str = "System.Management.Automation.RuntimeException",
        wmi: Mapping[str, Any] | None = None,
        *,
        is_terminating: bool = False,
        command_type: str | None = None,
        target: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.category = category
        self.error_id = error_id
        self.hresult = hresult
        self.exception_type = exception_type
        self.wmi = wmi
        self.is_terminating = is_terminating
        self.command_type = command_type
        self.target = target


@dataclass
class Session:
    """One powershell.exe from start to end: `items` is the world's, `at_exit` runs when it ends."""

    host_name: str
    clock: Clock
    items: dict[str, Any] = field(default_factory=dict)
    at_exit: list[Callable[[], None]] = field(default_factory=list)


class Call:
    """One call of a world's command.

    `parameters` has what was bound by name, switches as True (or False where `-Name:$false` was
    written), no common parameters.  `inputs` are the objects that came down the pipeline, None
    where the command stands first in it.  For a program (`name.exe`) the arguments are texts in
    `parameters["arguments"]`, and the world sets `exit_code`.
    """

    def __init__(
        self,
        name: str,
        parameters: Hashtable,
        inputs: list[Any] | None,
        session: Session,
        warn: Callable[[str], None],
        error: Callable[[PSError], None],
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.inputs = inputs
        self.session = session
        self.exit_code = 0
        self._warn = warn
        self._error = error

    def warn(self, text: str) -> None:
        """Write a warning, as Write-Warning does."""
        self._warn(text)

    def error(self, error: PSError) -> None:
        """Write an error and go on, unless the error action is Stop: then this raises."""
        self._error(error)


Cmdlet = Callable[[Call], Iterator[object]]
"""A command: yields what it emits, one object at a time (a list that it yields is one object)."""


@dataclass(frozen=True)
class DotNetType:
    """A .NET type that the world offers beside those of the language.

    `statics`: static methods, called with the arguments; `constants`: static properties and an
    enum's values; `construct`: `[Type]::new(…)`, None where a script cannot make one; `convert`:
    the cast `[Type]value`, None where there is none.
    """

    name: str
    statics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    construct: Callable[..., Any] | None = None
    convert: Callable[[Any], Any] | None = None


class World(Protocol):
    """One host as scripts see it.

    Names of commands count without their case.  A type's name stands as scripts write it, without
    `System.` (both ways are found).
    """

    @property
    def cmdlets(self) -> Mapping[str, Cmdlet]:
        """The commands that are not of the language's core."""

    @property
    def types(self) -> Mapping[str, DotNetType]:
        """The .NET types that are not of the dialect's own list."""


@dataclass(frozen=True)
class EmptyWorld:
    """A host with nothing but the language."""

    cmdlets: Mapping[str, Cmdlet] = field(default_factory=dict)
    types: Mapping[str, DotNetType] = field(default_factory=dict)
