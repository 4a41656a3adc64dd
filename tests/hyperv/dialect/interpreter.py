"""powershell.exe in a process of its own: a script's text in, standard output and errors out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hyperv.dialect import dotnet
from hyperv.dialect.check import examine
from hyperv.dialect.conversion import DialectError, to_text
from hyperv.dialect.errors import StderrRecord, clixml, error_lines, record
from hyperv.dialect.evaluator import Evaluator
from hyperv.dialect.scopes import Scope
from hyperv.dialect.signals import Enough, Exit, Out, Return
from hyperv.dialect.syntax import Block
from hyperv.dialect.values import Hashtable, PSObject, ScriptBlock
from hyperv.dialect.world import PSError, Session, World
from standby.clock import Clock


@dataclass(frozen=True)
class Outcome:
    """What powershell.exe left behind."""

    stdout: str
    stderr_records: list[StderrRecord]
    exit_code: int

    @property
    def stderr(self) -> str:
        """Standard error as text: CLIXML, with a progress record even where all is well."""
        return clixml(self.stderr_records)


@lru_cache(maxsize=64)
def _checked(text: str) -> Block:
    """A script that may run: parsed once."""
    findings, script = examine(text, "script")
    if findings or script is None:
        raise DialectError("not in the dialect:\n" + "\n".join(str(each) for each in findings))
    return script


class _Process(Evaluator):
    def __init__(self, world: World, session: Session, stdin: str) -> None:
        self.world, self.session = world, session
        self.cmdlets = {name.lower(): each for name, each in world.cmdlets.items()}
        self.types = {}
        self.is_utf8 = False
        self.line = self.tries = self.strict = 0
        self.caught, self.errors, self.source, self.stderr = [], [], [], []
        self.is_well = True
        self.output: list[str] = []
        self._input = stdin
        self.types = dotnet.builtin(self)
        self.scope = Scope(None)
        self.scope.values |= {
            "erroractionpreference": "Continue",
            "warningpreference": "Continue",
            "progresspreference": "Continue",
            "verbosepreference": "SilentlyContinue",
            "error": self.errors,
            "lastexitcode": 0,
        }

    def read_input(self) -> str:
        """All that is left of standard input."""
        text, self._input = self._input, ""
        return text

    def write(self, text: str) -> None:
        """Write to standard output; without UTF-8 the console's code page has no other signs."""
        if not self.is_utf8:
            text = text.encode("cp437", "replace").decode("cp437")
        self.output.append(text)

    def block(self, text: str) -> ScriptBlock:
        """A script's text as a block, checked as every script is."""
        self.source = text.splitlines()
        return ScriptBlock(_checked(text), None, text)

    def show(self, value: Any) -> None:
        """An object that nobody took: a line of text, or its properties."""
        if value is None:
            return
        pairs: Any = None
        if isinstance(value, Hashtable):
            pairs = value
        elif isinstance(value, PSObject) and value.text is None:
            pairs = value.properties
        if not pairs:
            self.write(f"{to_text(value)}\r\n")
            return
        width = max(len(to_text(key)) for key in pairs)
        lines = (f"{to_text(key):{width}} : {to_text(each)}\r\n" for key, each in pairs.items())
        self.write("\r\n" + "".join(lines) + "\r\n")


class Interpreter:
    """Runs scripts of the dialect as Windows PowerShell 5.1 would on one host."""

    def __init__(self, world: World, host_name: str, clock: Clock) -> None:
        self._world = world
        self._host_name = host_name
        self._clock = clock

    def run(self, text: str, stdin: str = "") -> Outcome:
        """Run one script in a fresh process; `Start-Sleep` moves the clock, nothing else waits.

        DialectError where the script is not in the dialect, or leaves it while it runs.
        """
        session = Session(self._host_name, self._clock)
        process = _Process(self._world, session, stdin)
        process.source = text.splitlines()
        try:
            code = self._run(process, _checked(text), process.show)
        finally:
            for run in reversed(session.at_exit):
                run()
        return Outcome("".join(process.output), process.stderr, code)

    @staticmethod
    def _run(process: _Process, script: Block, out: Out) -> int:
        try:
            for statement in script.body.body:
                process.is_well = True
                one = type(script.body)(statement.line, [statement])
                process.run(one, process.scope, out)
        except Exit as leaving:
            return leaving.code
        except (Return, Enough):
            pass
        except PSError as error:
            process.remember(error)
            process.stderr += error_lines(record(error, process.line), process.source)
            return 1
        return 0 if process.is_well else 1
