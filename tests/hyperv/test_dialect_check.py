"""What the check finds: each rule by a text that breaks it and one beside it that does not."""

from __future__ import annotations

import inspect
import re

import pytest

import hyperv.dialect.check as rules_of_scripts
from hyperv.dialect import reading
from hyperv.dialect.check import check

BROKEN = [
    ("sign", "'a' # \u2013"),
    ("sign", "\u2018a\u2019"),
    ("bracket", "if ($a) { 1"),
    ("bracket", "$a = (1"),
    ("bracket", "1)"),
    ("bracket", "'a"),
    ("bracket", '"a $(1 "'),
    ("bracket", "<# a"),
    ("syntax", "$a.b 3"),
    ("syntax", "'a' 'b'"),
    ("node", '@"\nhere\n"@'),
    ("node", "class A { }"),
    ("node", "for ($i = 0; $i -lt 3; $i++) { $i }"),
    ("node", "do { 1 } while ($a)"),
    ("node", "switch ($x) {\n 1 { 'a' }\n}"),
    ("node", "Get-VM -Name a 2>$null"),
    ("node", "Get-VM && Get-VM"),
    ("node", "$a ? 1 : 2"),
    ("node", "'{0}' -f 1"),
    ("node", "$a..$b"),
    ("node", "${a}"),
    ("node", "filter Half { $_ }"),
    ("node", "[string[]]@(1)"),
    ("node", "function Typed {\n  param([int]$a)\n  $a\n}"),
    ("node", "function Given {\n  param($a = 1)\n  $a\n}"),
    ("node", "$a--"),
    ("node", "++$a"),
    ("node", "0x10"),
    ("number", "1e3"),
    ("alias", "ls"),
    ("alias", "1, 2 | % { $_ }"),
    ("alias", "1, 2 | ? { $_ }"),
    ("alias", "1, 2 | Where { $_ }"),
    ("alias", "(1..3)"),
    ("alias", "get-vm"),
    ("command", "Invoke-Expression -Command 'x'"),
    ("command", "Add-Type -TypeDefinition 'x'"),
    ("command", "Start-Job -ScriptBlock { 1 }"),
    ("command", "New-Object -TypeName Object"),
    ("node", "& Get-VM"),
    ("positional", "Get-VM 'a'"),
    ("positional", "1, 2 | Select-Object 'a'"),
    ("positional", "1 | ForEach-Object { 1 } { 2 }"),
    ("positional", "Get-VM -Name 'a' -name 'b'"),
    ("unquoted", "Get-VM -Name a*"),
    ("unquoted", "Get-VM -Path C:\\x"),
    ("unquoted", "function Take {\n  param($a)\n  $a\n}\nTake word"),
    ("parameters", "function Twice($a) {\n  param($b)\n  $a\n}"),
    ("pipeline", "1 | & { 2 }"),
    ("pipeline", "function Take {\n  1\n}\n1 | Take"),
    ("operator", "'a' -match 'b'"),
    ("operator", "'a' -replace 'b', 'c'"),
    ("operator", "'a' -split 'b'"),
    ("operator", "'a' -ceq 'b'"),
    ("operator", "$a *= 2"),
    ("operator", "+1"),
    ("operator", "'a' -like '[ab]*'"),
    ("null", "$a -eq $null"),
    ("null", "$a -ne $NULL"),
    ("mixed", "'a' + $b"),
    ("mixed", '1 + "$b"'),
    ("precedence", "$a -and $b -or $c"),
    ("precedence", "-not $a -eq $b"),
    ("precedence", "$a -eq $b -eq $c"),
    ("precedence", "1, 2 + 3"),
    ("precedence", "$a -band 1 -eq 1"),
    ("precedence", "[int]1, 2"),
    ("string", '"$a.b"'),
    ("string", '"$a[0]"'),
    ("string", '"a`qb"'),
    ("scope", "$global:a"),
    ("scope", "$using:a"),
    ("scope", '"$a:b"'),
    ("scope", "$env:PATH"),
    ("automatic", "$input"),
    ("automatic", "$true = 1"),
    ("automatic", "foreach ($_ in 1, 2) { 1 }"),
    ("automatic", "function Take {\n  param($host)\n  1\n}"),
    ("assignment", "$a = ($b = 1)"),
    ("assignment", "if ($a = 1) { 1 }"),
    ("assignment", "$a = $b++"),
    ("assignment", "$a, $b = 1, 2"),
    ("type", "[regex]'a'"),
    ("type", "[ordered]$a"),
    ("type", "1 -is 'int'"),
    ("type", "1 -is [foo]"),
    ("member", "$a.$b"),
    ("member", "$a::b"),
    ("member", "[int].Name"),
    ("hash", "@{ a = 1; A = 2 }"),
    ("array", "@(1; 2)"),
    ("loop", "break"),
    ("loop", "foreach ($a in 1, 2) { 1 | ForEach-Object { continue } }"),
    ("json", "ConvertTo-Json -InputObject 1 -Compress"),
    ("json", "1 | ConvertTo-Json -Depth 2 -Compress"),
]

FINE = [
    "1",
    "# a comment with (",
    "'a ( in quotes'",
    '"a $("b") ( c"',
    "Get-VM -Name $a -Force -Confirm:$false",
    "Get-CimInstance -ClassName Msvm_ComputerSystem -Property Name, ElementName",
    "Get-VM -Name 'a' `\n  -Force",
    "1, 2 |\n  ForEach-Object { $_ }",
    "1, 2 | ForEach-Object -Process { $_ }",
    "$null -eq $a",
    "$a -and $b -and $c",
    "($a -and $b) -or $c",
    "(-not $a) -eq $b",
    "-not $a -and $b",
    "$a + 1 -gt 2",
    "1 + 2 * 3",
    '"$a. $($a.b) $a, x"',
    "$null = Get-VM",
    "$script:a = 1",
    "foreach ($a in 1, 2) { while ($true) { break } }",
    "& $verb $request",
    "& icacls.exe 'a' '/grant' 'b'",
]


@pytest.mark.parametrize(("rule", "text"), BROKEN, ids=[f"{r}: {t[:30]!a}" for r, t in BROKEN])
def test_a_text_out_of_the_dialect_is_found(rule: str, text: str) -> None:
    assert rule in {finding.rule for finding in check(text, "x")}


@pytest.mark.parametrize("text", FINE)
def test_a_text_of_the_dialect_has_no_findings(text: str) -> None:
    assert check(text, "x") == []


def test_a_finding_says_where_it_stands() -> None:
    (found,) = check("$a = 1\n\nls\n", "one.ps1")
    assert str(found) == "one.ps1:3: alias: ls is no command by its full name"


def test_functions_of_the_prelude_are_known_by_name() -> None:
    assert check("Step 'a' { 1 }", "x", ["Step"]) == []
    assert {f.rule for f in check("Step 'a' { 1 }", "x")} == {"alias", "positional"}


def test_every_rule_has_a_text_that_breaks_it() -> None:
    source = inspect.getsource(rules_of_scripts) + inspect.getsource(reading)
    rules = set(re.findall(r'(?:_find\([^,]+?|Finding\([^,]+?), "(\w+)"', source))
    rules |= set(re.findall(r'_refuse\([^)]*, "(\w+)"\)', source))
    assert rules >= {"alias", "string"}
    assert rules <= {rule for rule, _ in BROKEN}
