"""The dialect: golden snippets, their coverage, and what powershell.exe leaves behind."""

from __future__ import annotations

import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.dialect import dotnet
from hyperv.dialect.check import parse
from hyperv.dialect.conversion import CASTS, DialectError
from hyperv.dialect.core import CORE
from hyperv.dialect.interpreter import Interpreter, Outcome
from hyperv.dialect.members import METHODS
from hyperv.dialect.operators import ASSIGNMENTS, BINARY, UNARY
from hyperv.dialect.reading import KINDS, Reader
from hyperv.dialect.syntax import Assign, Binary, Cast, Command, Invoke, TypeName, Unary, walk
from hyperv.dialect.values import PSObject
from hyperv.dialect.world import Call, EmptyWorld, PSError

HERE = files("hyperv.dialect")
LANGUAGE = files("standby.host.hyperv").joinpath("language.toml")
SNIPPETS = tomllib.loads(LANGUAGE.read_text())["snippet"]
PAGE = HERE.joinpath("DIALECT.md").read_text()
PARSED = [node for each in SNIPPETS for node in walk(parse(each["script"]))]


def run(script: str, **commands: Any) -> Outcome:
    named = {name.replace("_", "-"): command for name, command in commands.items()}
    return Interpreter(EmptyWorld(named), "hv1", HeldClock()).run(script)


def lines(outcome: Outcome) -> list[str]:
    found = outcome.stdout.split("\r\n")
    return found[:-1] if found[-1] == "" else found


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[each["script"][:40] for each in SNIPPETS])
def test_a_snippet_prints_what_is_documented(snippet: dict[str, Any]) -> None:
    assert set(snippet) - {"script", "lines"} in ({"documented"}, {"run"})
    assert lines(run(snippet["script"])) == snippet["lines"]


# --- nothing in the dialect without a snippet ----------------------------------------------------


def test_every_operator_has_a_snippet() -> None:
    assert {node.operator for node in PARSED if isinstance(node, Binary)} == BINARY
    assert {node.operator for node in PARSED if isinstance(node, Unary)} == UNARY
    assert {node.operator for node in PARSED if isinstance(node, Assign)} == ASSIGNMENTS


def test_every_cast_has_a_snippet() -> None:
    assert {node.type.lower() for node in PARSED if isinstance(node, Cast)} == CASTS


def test_every_command_of_the_core_has_a_snippet() -> None:
    names = {str(node.name).lower() for node in PARSED if isinstance(node, Command)}
    assert names >= set(CORE)


def test_every_type_and_method_has_a_snippet() -> None:
    types = {node.name.lower().removeprefix("system.") for node in PARSED if type(node) is TypeName}
    assert types >= {each.lower() for each in dotnet.TYPES.split()}
    methods = {node.name.lower() for node in PARSED if isinstance(node, Invoke)}
    assert methods >= METHODS


def test_every_kind_of_node_has_a_snippet() -> None:
    seen = set()
    for snippet in SNIPPETS:
        waiting = [Reader(snippet["script"]).root]
        while waiting:
            node = waiting.pop()
            waiting += node.children
            seen.add(node.type)
    # A program by name and a class by name need a world; other tests have them.
    others = {"elseif_clauses", "bareword_argument_list"}
    assert seen - others >= KINDS - others
    assert len(KINDS) <= 80


@pytest.mark.parametrize(
    "names",
    [KINDS, BINARY | UNARY | ASSIGNMENTS, CASTS, frozenset(dotnet.TYPES.split()), METHODS],
    ids=["kinds", "operators", "casts", "types", "methods"],
)
def test_the_page_lists_the_whole_dialect(names: frozenset[str]) -> None:
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


# --- the process ---------------------------------------------------------------------------------


def test_an_uncaught_throw_ends_with_1_and_an_error_in_clixml() -> None:
    outcome = run("'before'\nthrow 'boom <1>'\n'never'")
    assert lines(outcome) == ["before"]
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("#< CLIXML\r\n<Objs ")
    assert '<S S="Error">boom &lt;1&gt;_x000D__x000A_</S>' in outcome.stderr
    ElementTree.fromstring(outcome.stderr.partition("\r\n")[2])
    texts = [each.text for each in outcome.stderr_records]
    assert "    + FullyQualifiedErrorId : boom <1>" in texts


def test_a_script_without_errors_writes_a_progress_record_all_the_same() -> None:
    outcome = run("'a'")
    assert (outcome.exit_code, outcome.stderr_records) == (0, [])
    assert 'S="progress"' in outcome.stderr
    assert 'S="Error"' not in outcome.stderr


def test_exit_gives_its_code_to_the_caller() -> None:
    assert run("& { exit 3 }\n'never'").exit_code == 3


def test_objects_that_nobody_takes_leak_to_the_output() -> None:
    assert lines(run("$x = 5\n$x\n@{ a = 1 }")) == ["5", "", "a : 1", ""]


def test_output_without_utf_8_loses_what_the_code_page_lacks() -> None:
    text = "[Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('4oKsw6k='))"
    assert lines(run(text)) == ["?é"]
    assert lines(run(f"[Console]::OutputEncoding = [Text.Encoding]::UTF8\n{text}")) == ["€é"]


def test_an_error_that_ends_nothing_is_written_and_the_script_goes_on() -> None:
    outcome = run("1 / 0\n'on'")
    assert lines(outcome) == ["on"]
    assert outcome.exit_code == 0
    assert outcome.stderr_records[0].text == "Attempted to divide by zero."
    assert run("'on'\n1 / 0").exit_code == 1


# --- the world's commands ------------------------------------------------------------------------


def _missing(call: Call) -> Iterator[object]:
    yield "first"
    raise PSError(
        "no such VM",
        "InvalidArgument",
        "InvalidParameter",
        0x80070020,
        "Microsoft.HyperV.PowerShell.VirtualizationException",
        {"StatusCode": 5},
        command_type="Microsoft.HyperV.PowerShell.Commands.GetVM",
    )


def _shown(call: Call) -> Iterator[object]:
    call.warn("careful")
    inputs = "" if call.inputs is None else ",".join(map(str, call.inputs))
    yield f"{call.name}({', '.join(f'{k}={v}' for k, v in call.parameters.items())})<{inputs}>"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("Get-VM -Name a\n'on'", ["first", "on"]),
        ("Get-VM -Name a -ErrorAction SilentlyContinue\n'on'", ["first", "on"]),
        ("try { Get-VM -Name a -ErrorAction Stop } catch { 'caught' }", ["first", "caught"]),
        (
            "$ErrorActionPreference = 'Stop'\ntry { Get-VM -Name a } catch { "
            "$_.Exception.HResult; $_.FullyQualifiedErrorId; $_.Exception.StatusCode }",
            [
                "first",
                "-2147024864",
                "InvalidParameter,Microsoft.HyperV.PowerShell.Commands.GetVM",
                "5",
            ],
        ),
        ("try { Get-VM -Name a } catch { 'caught' }\n'on'", ["first", "on"]),
    ],
)
def test_an_error_of_a_command_follows_the_error_action(script: str, expected: list[str]) -> None:
    assert lines(run(script, Get_VM=_missing)) == expected


def test_an_error_that_ends_its_command_is_not_hushed_by_an_error_action() -> None:
    def end(call: Call) -> Iterator[object]:
        raise PSError("over", is_terminating=True)
        yield

    script = "try { Get-VM -Name a -ErrorAction SilentlyContinue } catch { 'caught' }"
    assert lines(run(script, Get_VM=end)) == ["caught"]


def test_a_command_gets_its_parameters_by_name_and_what_comes_down_the_pipeline() -> None:
    outcome = run("1, 2 | Get-VM -Name a, b -Force -Confirm:$false", Get_VM=_shown)
    assert lines(outcome) == ["Get-VM(Name=['a', 'b'], Force=True, Confirm=False)<1,2>"]
    assert [each.stream for each in outcome.stderr_records] == ["Warning"]


def test_a_program_gets_its_arguments_as_they_stand_and_leaves_its_code() -> None:
    def icacls(call: Call) -> Iterator[object]:
        call.exit_code = 5
        yield "|".join(call.parameters["arguments"])

    script = "& icacls.exe 'C:\\x y' '/grant' \"a:F\"\n$LASTEXITCODE"
    world = EmptyWorld({"icacls.exe": icacls})
    outcome = Interpreter(world, "hv1", HeldClock()).run(script)
    assert lines(outcome) == ["C:\\x y|/grant|a:F", "5"]


def test_an_error_inside_a_method_keeps_its_hresult_inside() -> None:
    def lock() -> None:
        raise PSError("used", hresult=0x80070020, exception_type="System.IO.IOException")

    def file(call: Call) -> Iterator[object]:
        yield PSObject(("Example.File",), methods={"Open": lock})

    script = """$f = Get-VM
try { $f.Open() } catch [IO.IOException] {
  $_.Exception.HResult
  $_.Exception.InnerException.HResult
  $_.Exception.Message
}"""
    assert lines(run(script, Get_VM=file)) == [
        "-2146233087",
        "-2147024864",
        'Exception calling "Open" with "0" argument(s): "used"',
    ]


def test_what_a_process_holds_is_let_go_when_it_ends() -> None:
    ended = []

    def open_(call: Call) -> Iterator[object]:
        call.session.at_exit.append(lambda: ended.append(call.session.host_name))
        yield "open"

    run("Get-VM\nthrow 'x'", Get_VM=open_)
    assert ended == ["hv1"]


# --- nothing is silently lenient -----------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "'a' -lt 'b'",
        "1 -lt $null",
        "[xml]'<a/>'",
        "[IO.File]::ReadAllText('x')",
        "[Convert]::ToInt32('5')",
        "'abc'[0]",
        "@(1, 2)[0, 1]",
        "$x = 5\n& $x",
        "function Take {\n  param($a)\n  $a\n}\nTake 1 2",
        "function Take {\n  param($a)\n  $a\n}\nTake -b 1",
        "(1.5).ToString('N2')",
        "Set-StrictMode -Version 9.0",
        "ConvertTo-Json -InputObject (Get-Date).Year.GetType() -Depth 1 -Compress",
        "@(([pscustomobject]@{ a = 1 }), 2) | Select-Object -Property a",
        "$p = '[a]*'\n'a' -like $p",
    ],
)
def test_what_is_not_certain_does_not_run(script: str) -> None:
    with pytest.raises(DialectError):
        run(f"try {{ {script} }} catch {{ 'hidden' }}" if "function" not in script else script)


def test_a_script_with_findings_does_not_run() -> None:
    with pytest.raises(DialectError, match="alias"):
        run("'never'\nls")
    with pytest.raises(DialectError, match="alias"):
        run("& ([scriptblock]::Create('ls'))")
