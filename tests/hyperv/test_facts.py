"""No script uses a cmdlet, parameter, class, method, property, value or .NET type that neither the
published facts nor assumed.toml hold; all uses are listed with their sources (`-rP`)."""

from __future__ import annotations

from functools import cache
from textwrap import dedent

import msgspec
import pytest

from hyperv import excerpt_facts, published
from hyperv.uses.catalog import EXCERPT, Assumed, Catalog, read_assumed
from hyperv.uses.reading import Answers, Module, note_value
from hyperv.uses.remedies import told_commands
from hyperv.uses.scripts import (
    Followed,
    assumed,
    assumed_text,
    examined,
    follow_one,
    follow_project,
    format_problem,
    listed,
    script_names,
    unused,
    verbs,
)
from hyperv.uses.walker import unreached
from standby.host.hyperv.verbs import Verb


@cache
def _project() -> tuple[Catalog, Followed]:
    """Followed once, with all that is published where that is at hand: the excerpt is then compared
    with what was asked for, so that it says the same."""
    lines = assumed()
    folder = published.folder()
    if (folder / published.CMDLETS).is_file() and (folder / published.WMI).is_file():
        cmdlets, classes = published.facts(published.CMDLETS), published.facts(published.WMI)
        catalog = excerpt_facts.full_catalog(cmdlets, classes, lines)
    else:
        catalog = Catalog.of_excerpt(lines)
    return catalog, follow_project(catalog)


_HINT = (
    "for what is published make facts.json anew (python tests/hyperv/excerpt_facts.py), "
    "for what is not write a line in assumed.toml, whose top says how"
)


def test_every_use_is_published_or_assumed() -> None:
    _, found = _project()
    print("\n".join(listed(found)))
    assert found.findings == [], _HINT
    assert len(found.uses) > 200


def test_every_assumption_is_used() -> None:
    catalog, _ = _project()
    assert unused(catalog) == []


def test_assumptions_are_written_in_the_form_that_the_file_describes() -> None:
    lines, wrong = read_assumed(assumed_text())
    assert wrong == []
    assert lines


def test_the_kept_facts_are_those_that_are_published_and_used() -> None:
    published.facts(published.CMDLETS)  # without them it is skipped, but not in CI
    catalog, _ = _project()
    assert EXCERPT.read_text() == excerpt_facts.rendered(excerpt_facts.excerpt(catalog)), _HINT


def test_every_script_has_a_verb_and_every_verb_a_script() -> None:
    assert script_names() == sorted(name for name, verb in verbs().items() if not verb.text)


# --- that the test can fail ---------------------------------------------------------------------

_KNOWN = [
    Assumed("Array.Count", "member", "w", "s", "t", gives="sint32"),
    Assumed("MSFT_Volume.SizeRemaining", "property", "w", "s", "t", gives="uint64"),
    Assumed("icacls.exe", "program", "w", "s", "t"),
    Assumed("Msvm_VirtualSystemSnapshotSettingData.GuestBackupType", "set", "w", "s", "t"),
    Assumed("CimClass.CimClassProperties", "member", "w", "s", "t", gives="CimPropertyDeclaration"),
    Assumed("CimPropertyDeclaration.Name", "member", "w", "s", "t", gives="string"),
    Assumed(
        "Msvm_VirtualSystemSnapshotSettingData.GuestBackupType", "later", "w", "s", "t",
        min_server=2019,
    ),
]  # fmt: skip


def _findings(body: str) -> list[str]:
    """What is found in a small script, without its place; what the prelude uses is not asked."""
    text = "param($request)\n" + dedent(body)
    walker, _ = follow_one(Catalog.of_excerpt(_KNOWN), "small", text)
    places = [finding.partition(": ") for finding in sorted(walker.findings)]
    return [text for place, _, text in places if place.startswith("small:")]


_SERVICE = "Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotService"
_VM = "Get-CimInstance -Namespace $ns -ClassName Msvm_ComputerSystem"
_SETTINGS = "Get-CimInstance -Namespace $ns -ClassName Msvm_VirtualSystemSettingData"
_NOWHERE = "is neither published nor in assumed.toml"

WRONG = {
    "a cmdlet": (
        "Get-VirtualMachine -Name 'a'",
        f"the cmdlet Get-VirtualMachine {_NOWHERE}",
    ),
    "a parameter": (
        "Get-CimInstance -ClassNames Msvm_ComputerSystem",
        f"the parameter Get-CimInstance -ClassNames {_NOWHERE}",
    ),
    "parameters of two sets": (
        "Start-Sleep -Seconds 1 -Milliseconds 1",
        "no parameter set of Start-Sleep has -Milliseconds, -Seconds together",
    ),
    "a mandatory parameter left out": (
        f"$s = {_SERVICE}\nInvoke-CimMethod -InputObject $s",
        "Invoke-CimMethod lacks -MethodName",
    ),
    "a class": (
        "Get-CimInstance -Namespace $ns -ClassName Msvm_Computer",
        f"the class Msvm_Computer {_NOWHERE}",
    ),
    "a class that is chosen while it runs": (
        "Get-CimInstance -Namespace $ns -ClassName $request.class",
        "the class is not written down",
    ),
    "a property that is read": (
        f"$vm = {_VM}\n@{{ a = $vm.Nme }}",
        f"the property Msvm_ComputerSystem.Nme {_NOWHERE}",
    ),
    "a property through the pipeline": (
        f"{_VM} | ForEach-Object {{ $_.Nme }}",
        f"the property Msvm_ComputerSystem.Nme {_NOWHERE}",
    ),
    "a property that is chosen": (
        f"{_VM} | Select-Object -Property Name, Nme",
        f"the property Msvm_ComputerSystem.Nme {_NOWHERE}",
    ),
    "a property in a filter": (
        f"{_VM} -Filter \"Nme='$($request.id)' AND EnabledState = 2\"",
        f"the property Msvm_ComputerSystem.Nme {_NOWHERE}",
    ),
    "a property of what is associated": (
        f"$vm = {_VM}\n$s = @(Get-CimAssociatedInstance -InputObject $vm -ResultClassName "
        "Msvm_VirtualSystemSettingData)\n$s[0].Nme",
        f"the property Msvm_VirtualSystemSettingData.Nme {_NOWHERE}",
    ),
    "a property behind a function": (
        f"function Ask {{\n  param($what)\n  {_VM} -Property $what\n}}\nAsk -what Nme",
        f"the property Msvm_ComputerSystem.Nme {_NOWHERE}",
    ),
    "a property of what a cmdlet emits": (
        "(Get-Volume -FilePath $request.path).Size",
        f"the property MSFT_Volume.Size {_NOWHERE}",
    ),
    "a method": (
        f"$s = {_SERVICE}\nInvoke-CimMethod -InputObject $s -MethodName TakeSnapshot",
        f"the method Msvm_VirtualSystemSnapshotService.TakeSnapshot {_NOWHERE}",
    ),
    "an argument": (
        f"$s = {_SERVICE}\n$of = {_SETTINGS}\nInvoke-CimMethod -InputObject $s -MethodName "
        "DestroySnapshot -Arguments @{ Snapshot = $of }",
        f"the argument Msvm_VirtualSystemSnapshotService.DestroySnapshot Snapshot {_NOWHERE}",
    ),
    "an argument of another class": (
        f"$s = {_SERVICE}\nInvoke-CimMethod -InputObject $s -MethodName DestroySnapshot "
        "-Arguments @{ AffectedSnapshot = $s }",
        "Msvm_VirtualSystemSnapshotService.DestroySnapshot AffectedSnapshot takes a "
        "CIM_VirtualSystemSettingData",
    ),
    "an argument without a cast": (
        f"$s = {_SERVICE}\nInvoke-CimMethod -InputObject $s -MethodName CreateSnapshot "
        "-Arguments @{ SnapshotType = 32768 }",
        "Msvm_VirtualSystemSnapshotService.CreateSnapshot SnapshotType takes a uint16, not a "
        "sint32: cast it",
    ),
    "an argument's value": (
        f"$s = {_SERVICE}\nInvoke-CimMethod -InputObject $s -MethodName CreateSnapshot "
        "-Arguments @{ SnapshotType = [uint16]9 }",
        f"the value Msvm_VirtualSystemSnapshotService.CreateSnapshot SnapshotType = 9 {_NOWHERE}",
    ),
    "a part of a method's answer": (
        f"$s = {_SERVICE}\n$r = Invoke-CimMethod -InputObject $s -MethodName CreateSnapshot\n"
        "$r.Snapshot",
        f"the argument Msvm_VirtualSystemSnapshotService.CreateSnapshot Snapshot {_NOWHERE}",
    ),
    "a return code": (
        f"$s = {_SERVICE}\n$r = Invoke-CimMethod -InputObject $s -MethodName CreateSnapshot\n"
        "@{ a = $r.ReturnValue -eq 77 }",
        f"the value Msvm_VirtualSystemSnapshotService.CreateSnapshot() = 77 {_NOWHERE}",
    ),
    "a value of a property": (
        f"$vm = {_VM}\n@{{ a = $vm.OperationalStatus -contains 77 }}",
        f"the value Msvm_ComputerSystem.OperationalStatus = 77 {_NOWHERE}",
    ),
    "a text that a property has": (
        f"{_SETTINGS} | Where-Object {{ $_.VirtualSystemType -like '*:Snapshot:*' }}",
        f"the value Msvm_VirtualSystemSettingData.VirtualSystemType = *:Snapshot:* {_NOWHERE}",
    ),
    "a property that is set": (
        "New-CimInstance -ClientOnly -Property @{ Level = [byte]2 } -CimClass (Get-CimClass "
        "-Namespace $ns -ClassName Msvm_VirtualSystemSnapshotSettingData)",
        f"the property Msvm_VirtualSystemSnapshotSettingData.Level {_NOWHERE}",
    ),
    "a property that is published as read-only, set": (
        "New-CimInstance -ClientOnly -Property @{ ConsistencyLevel = [byte]2 } -CimClass "
        "(Get-CimClass -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotSettingData)",
        f"the set Msvm_VirtualSystemSnapshotSettingData.ConsistencyLevel {_NOWHERE}",
    ),
    "a property of a later server without a guard": (
        "New-CimInstance -ClientOnly -Property @{ GuestBackupType = [byte]2 } -CimClass "
        "(Get-CimClass -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotSettingData)",
        "the property Msvm_VirtualSystemSnapshotSettingData.GuestBackupType is there since Server "
        "2019: ask for it by its name, and use it inside that if",
    ),
    "a property of an object that is set": (
        "$v = Get-Volume -FilePath $request.path\n$v.Label = 1",
        f"the property MSFT_Volume.Label {_NOWHERE}",
    ),
    "a .NET type": ("[IO.Path]::DirectorySeparatorChar", f"the type IO.Path {_NOWHERE}"),
    "a member of a text": ("'a'.PadLeft(3)", f"the member String.PadLeft {_NOWHERE}"),
    "a program's switch": (
        "icacls.exe $request.path '/grant'",
        f"the program icacls.exe /grant {_NOWHERE}",
    ),
    "what comes from nowhere": (
        "@{ a = $vm.Name }",
        "nothing is assigned to $vm before",
    ),
    "a key that nobody set": (
        "$a = @{ b = 1 }\n@{ c = $a.d }",
        "what is made at small:2 has no d",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_finds_in_a_script(case: str) -> None:
    body, finding = WRONG[case]
    assert finding in _findings(body)


def test_a_guarded_use_of_a_later_property_is_well() -> None:
    assert not _findings(
        """
        $class = Get-CimClass -Namespace $ns -ClassName Msvm_VirtualSystemSnapshotSettingData
        $there = @($class.CimClassProperties | Where-Object { $_.Name -eq 'GuestBackupType' })
        $has = $there.Count -gt 0
        $values = @{}
        if ($has) { $values['GuestBackupType'] = [byte]2 }
        $null = New-CimInstance -ClientOnly -CimClass $class -Property $values
        """
    )


def test_code_that_nothing_calls_is_a_finding() -> None:
    text = "param($request)\nfunction Never {\n  Get-Nothing -Name 'a'\n}\n@{ id = 'a' }"
    walker, _ = follow_one(Catalog.of_excerpt(_KNOWN), "small", text)
    assert unreached([walker], "small", examined("small", text)) == [
        "small:3: nothing comes here, so what it uses is not known"
    ]


# --- what Python reads ---------------------------------------------------------------------------


class _Row(msgspec.Struct, rename="pascal"):
    name: str
    enabled_state: int = 0


def _read(chosen: str, row: type = _Row) -> list[str]:
    text = f"param($request)\nStep 'host' {{\n  {_VM} | Select-Object -Property {chosen}\n}}"
    _, answer = follow_one(Catalog.of_excerpt(_KNOWN), "small", text)
    answers = Answers()
    answers.compare(Verb("small", row), answer)
    return answers.end()


def test_rows_that_have_what_the_script_chooses_are_well() -> None:
    assert _read("Name, EnabledState") == []


def test_finds_a_field_that_the_script_does_not_choose() -> None:
    assert _read("EnabledState") == [
        "small:3: _Row.Name is needed, and not chosen",
        "_Row.Name is read, and chosen nowhere",
    ]
    assert _read("Name") == ["_Row.EnabledState is read, and chosen nowhere"]


def test_finds_what_is_chosen_and_never_read() -> None:
    assert _read("Name, EnabledState, ElementName") == [
        "small:3: ElementName is chosen, and _Row has none"
    ]


def test_finds_a_field_of_another_type() -> None:
    class Wrong(msgspec.Struct, rename="pascal"):
        name: int

    assert _read("Name", Wrong) == ["small.Name: string is read as int"]


def test_finds_an_array_that_is_read_as_one_value() -> None:
    class Wrong(msgspec.Struct, rename="pascal"):
        operational_status: int

    class Right(msgspec.Struct, rename="pascal"):
        operational_status: list[int]

    assert _read("OperationalStatus", Wrong) == ["small.OperationalStatus: uint16[] is read as int"]
    assert _read("OperationalStatus", Right) == []


def test_finds_a_script_without_steps() -> None:
    _, answer = follow_one(Catalog.of_excerpt(_KNOWN), "small", "param($request)\n@{ a = 1 }")
    answers = Answers()
    answers.compare(Verb("small", _Row), answer)
    assert answers.findings == ["small: emits what is no step", "small: no step has a value"]


def test_finds_what_python_asks_an_embedded_instance_for() -> None:
    module = Module(
        "small",
        "def f(text):\n"
        "    found = parse_instance(text, 'Msvm_VirtualHardDiskSettingData')\n"
        "    return found.number('Kind')\n",
        {},
    )
    assert list(module.embedded()) == [(3, "Msvm_VirtualHardDiskSettingData", "Kind")]


def test_finds_the_values_that_python_compares_rows_with() -> None:
    module = Module(
        "small",
        "def f(row):\n"
        "    a = row.enabled_state in (PAUSED, 9)\n"
        "    b = (row.kind or '').lower() == 'x'\n"
        "    return a, b, row.other == 3, row.enabled_state is None\n",
        {"PAUSED": 32768},
    )
    assert list(module.compared(["enabled_state", "kind"])) == [
        (2, "enabled_state", 32768),
        (2, "enabled_state", 9),
        (3, "kind", "x"),
    ]


def test_a_value_that_no_class_has_is_a_finding() -> None:
    catalog = Catalog.of_excerpt(assumed())
    origins = {"Msvm_ComputerSystem.EnabledState"}
    findings: list[str] = []

    def note(place: str, kind: str, name: str, known: object) -> None:
        findings.extend([name] if known is None else [])

    for value in (2, 77):
        note_value(catalog, origins, value, "small.py:1", note)
    assert findings == ["Msvm_ComputerSystem.EnabledState = 77"]


# --- the form of assumed.toml ---------------------------------------------------------------------

_STEPS = '[selftest]\ndoor = "opens"\n'
_LINE = '[[assumed]]\nname = "A"\nkind = "type"\nwhy = "w"\nsource = "s"\nselftest = "door"\n'


def test_a_line_in_the_right_form() -> None:
    lines, wrong = read_assumed(_STEPS + _LINE)
    assert lines == [Assumed("A", "type", "w", "s", "door")]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (_LINE.replace('why = "w"\n', ""), "A: why is missing"),
        (_LINE.replace('"w"', '""'), "A: why is empty, or no str"),
        (_LINE.replace('"type"', '"thing"'), "A: no kind is called thing"),
        (_LINE.replace('"door"', '"window"'), "A: no step of the self-test is called window"),
        (_LINE + 'note = "x"\n', "A: nothing is called note"),
        (_LINE + "min_server = 2019\n", "A: min_server stands with the kind later, and only there"),
        (
            _LINE.replace('"type"', '"format"'),
            "A: a format has where, the module and the text that rely on it",
        ),
        (_LINE + _LINE, "a: twice as type"),
        ("", "the step door of the self-test settles no line"),
    ],
)
def test_a_line_in_a_wrong_form(text: str, finding: str) -> None:
    assert finding in read_assumed(_STEPS + text)[1]


def test_a_line_that_nothing_uses_is_a_finding() -> None:
    catalog, _ = _project()
    more = Catalog({}, {}, [*assumed(), Assumed("IO.Path", "type", "w", "s", "door")])
    more.used = catalog.used
    assert unused(more) == ["type IO.Path: nothing uses it"]


def test_a_format_whose_code_is_gone_is_a_finding() -> None:
    line = Assumed("ids", "format", "w", "s", "door", where="machines.py: no such text")
    found = format_problem(Catalog({}, {}, [line]), line)
    assert found == ["ids: machines.py: no such text is not there"]


def test_finds_the_commands_that_texts_tell_to_run() -> None:
    module = (
        '"""Get-Nothing -At all, in a docstring."""\n'
        'A = "on the host: Start-Service vmms; where it is missing: "\n'
        "B = f\"Update-VMVersion -Name '{name}' -Force (for good), or Get-VM | Stop-VM -TurnOff\"\n"
    )
    assert list(told_commands("small", module)) == [
        ("small:2", "Start-Service", []),
        ("small:3", "Update-VMVersion", ["Name", "Force"]),
        ("small:3", "Get-VM", []),
        ("small:3", "Stop-VM", ["TurnOff"]),
    ]


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ("Get-Later", "the cmdlet Get-Later is there since Server 2022"),
        ("Get-Known -Younger 'a'", "the parameter Get-Known -Younger is there since Server 2025"),
        ("@{ a = 'Get-Known' }", ""),
    ],
)
def test_cmdlets_and_parameters_of_later_servers(body: str, finding: str) -> None:
    cmdlets = {
        "Get-Later": {"parameters": {}, "outputs": [], "server_versions": ["2022", "2025"]},
        "Get-Known": {
            "parameters": {"Younger": {"type": "String", "server_versions": ["2025"]}},
            "outputs": [],
            "server_versions": ["2016", "2019", "2022", "2025"],
        },
    }
    walker, _ = follow_one(Catalog(cmdlets, {}, []), "small", f"param($request)\n{body}")
    found = [text for text in walker.findings if text.startswith("small:")]
    guard = ": ask for it by its name, and use it inside that if"
    assert found == ([f"small:2: {finding}{guard}"] if finding else [])
