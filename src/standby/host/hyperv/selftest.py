"""`standby host selftest`: what no test without Windows can show, tried on a real host.

The test makes a folder and small VMs of its own in it, goes through everything that assumed.toml
calls assumed with the very scripts that jobs use, and takes all of it away again, also after a
failure. What a killed test left is found by the VMs' notes and the folder's name, and removed by
the next one in the same folder. The host's other VMs are listed, and never touched.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files

from standby.errors import HostCallFailed, ScriptFailed, StandbyError
from standby.host.hyperv import (
    selftest_cluster,
    selftest_replica,
    selftest_snapshots,
    selftest_vm,
)
from standby.host.hyperv.doctor import BUILD_MIN
from standby.host.hyperv.doctor_rows import DOCTOR
from standby.host.hyperv.files import folded
from standby.host.hyperv.gathering import Gathering
from standby.host.hyperv.language import differences, snippets
from standby.host.hyperv.machines import LIVE
from standby.host.hyperv.rows import HostRows
from standby.host.hyperv.selftest_rows import ECHO, ERRORS, LIST_FOLDERS, REMOVE_FOLDERS, Texts
from standby.host.hyperv.selftest_walk import Finding, Mark, NotLookedAt, Walk, is_of_a_test
from standby.host.hyperv.states import Watch
from standby.host.hyperv.target_plan import noted

REMOVE_PAUSES_S = (2.0, 5.0, 15.0, 60.0)
"""Between tries to remove a folder: the host lets go of a VM's files a moment after the VM."""
_NO_NAMESPACE = "0x8004100E"
_ACCESS = r"(Allow|Deny):(Full|Change|Read|Custom):.+"
_MISSING = r"C:\standby-selftest-there-is-no-such-file"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `settles` is the text that assumed.toml has for it, or its own."""

    name: str
    run: Callable[[Walk], None]
    settles: str = ""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step found."""

    name: str
    settles: str
    findings: tuple[Finding, ...]

    @property
    def mark(self) -> Mark:
        """The worst of its findings; told facts alone are well."""
        marks = {item.mark for item in self.findings}
        if Mark.DIFFERS in marks:
            return Mark.DIFFERS
        return Mark.OK if marks & {Mark.OK, Mark.TOLD} else Mark.MISSED


@dataclass(frozen=True, slots=True)
class AssumedLine:
    """A line of assumed.toml: its kind and name, the step that settles it, what came of that."""

    name: str
    step: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Report:
    """What the self-test of a host found. It names the host, the test's own folder and VMs, and
    nothing else of the user's: no address, no account, no other VM."""

    host: str
    steps: tuple[StepReport, ...]
    assumed: tuple[AssumedLine, ...]

    @property
    def differs(self) -> bool:
        """Whether anything is other than expected."""
        return any(step.mark is Mark.DIFFERS for step in self.steps)


# --- the steps -----------------------------------------------------------------------------------


def door(walk: Walk) -> None:
    """Texts of any length and letter, there and back."""
    short = ["a", "", "Größe ß € 漢字 \U0001f4be", "'\"`$(1+1)\r\n\t\\", "<a>&</a>"]
    walk.check("short texts", short, _echo(walk, short))
    quotas = walk.door.quotas()
    walk.tell("the limits of its WinRM may be read", quotas.is_read)
    walk.tell("shells per user", quotas.shells_per_user)
    long = [f"{number} äöü€ " * 100 for number in range(400)]
    came = _echo(walk, long)
    walk.check("texts of 400 KB, told back the same", True, came == long)


def _echo(walk: Walk, texts: list[str]) -> list[str]:
    return walk.door.run(ECHO, {"texts": texts}).value("host").texts


def language(walk: Walk) -> None:
    """The scripts' language, snippet by snippet."""
    found = list(differences(walk.door))
    for item in found:
        walk.check(item.snippet.script, list(item.snippet.lines), list(item.printed))
    walk.check(f"of {len(snippets())} snippets print something else", 0, len(found))


def errors(walk: Walk) -> None:
    """Failures, by what jobs tell them apart with."""
    answer = walk.door.run(ERRORS, {"missing": _MISSING})
    walk.check("the step that does not fail", Texts(["sound"]), answer.values().get("sound"))
    found = {key: item for key, item in answer.errors().items() if isinstance(item, ScriptFailed)}
    walk.check("steps that fail", ["code", "file", "query", "thrown"], sorted(found))
    if "query" in found:
        query = found["query"]
        walk.check("an invalid query: its HRESULT", "0x80041017", f"0x{query.hresult:08X}")
        begins = query.error_id.partition(",")[0]
        walk.check("its error id begins with", "HRESULT 0x80041017", begins)
        walk.check("its category", "InvalidArgument", query.category)
    if "file" in found:
        walk.check("a missing file: its error id", "FileNotFoundException", found["file"].error_id)
        walk.tell("HRESULT of a missing file", f"0x{found['file'].hresult:08X}")
    if "thrown" in found:
        walk.check("a text that is thrown", "thrown by the self-test", found["thrown"].problem)
    if "code" in found:
        walk.check("a table that is thrown: its code", 32775, found["code"].wmi_code)


def doctor(walk: Walk) -> None:
    """What `standby host check` reads of the host itself."""
    answer = walk.door.run(DOCTOR, {})
    values = answer.values()
    for key, error in sorted(answer.errors().items()):
        if key == "cluster" and isinstance(error, ScriptFailed):
            came = f"0x{error.hresult:08X}"
            walk.check("a host that is in no cluster lacks the namespace", _NO_NAMESPACE, came)
        elif key == "shares":
            walk.miss("SMB shares", f"only Administrators may list them ({error})")
        else:
            walk.check(f"its part {key!r}", "answered", str(error))
    walk.untried |= {"Add-LocalGroupMember", "Install-WindowsFeature"}  # messages name them
    systems = [system for seen in values.values() for system in seen.systems]
    walk.check("operating systems", 1, len(systems))
    for system in systems:
        walk.tell("system", f"{system.caption} (build {system.build_number})")
        walk.check(
            f"its build is a number of {BUILD_MIN} or more",
            True,
            system.build_number.isdecimal() and int(system.build_number) >= BUILD_MIN,
        )
        walk.check("it tells its time", True, system.local_date_time is not None)
    groups = [group for seen in values.values() for group in seen.groups]
    is_sid = all(re.fullmatch(r"S-1-[0-9-]+", group) for group in groups)
    walk.check("the account's groups are SIDs", True, bool(groups) and is_sid)
    walk.check("the account has a name", True, any(seen.account for seen in values.values()))
    services = [item for seen in values.values() for item in seen.services]
    walk.check("services of Hyper-V", 2, len(services))
    walk.tell("names of the services", [item.name for item in services])
    walk.check("they run", [True, True], [item.started for item in services])
    clusters = [item for seen in values.values() for item in seen.clusters]
    walk.tell("it is a node of a cluster", bool(clusters))
    if not clusters:
        walk.untried.add("MSCluster_Cluster")
    shares = [item for seen in values.values() for item in seen.shares]
    if shares:
        walk.check("the system's own shares are told", True, any(item.special for item in shares))
    else:
        walk.untried.add("MSFT_SMBShare")
    access = [entry for item in shares for entry in item.access]
    if access:
        is_known = all(re.fullmatch(_ACCESS, entry) for entry in access)
        walk.check("who may use a share is told", True, is_known)
    else:
        walk.untried.add("MSFT_SmbShareAccessControlEntry")


STEPS: tuple[Step, ...] = (
    Step("door", door),
    Step("language", language),
    Step("errors", errors),
    Step("doctor", doctor),
    Step("files", selftest_vm.files),
    Step("embedded", selftest_vm.embedded),
    Step("inventory", selftest_vm.inventory),
    Step("boot", selftest_vm.boot, "a VM starts from a disk that standby wrote on Linux"),
    Step("snapshot", selftest_snapshots.snapshot),
    Step("tracking", selftest_snapshots.tracking, "the tracker counts on while the VM is off"),
    Step("growth", selftest_snapshots.growth),
    Step("replica", selftest_replica.replica),
    Step(
        "merge",
        selftest_replica.merge,
        "a chain's oldest two files are merged by standby, and it is started from",
    ),
    Step(
        "chain",
        selftest_replica.chain,
        f"a chain of {selftest_replica.CHAIN} files is started from",
    ),
    Step("orphan", selftest_replica.orphan, "a VM whose disk lacks its parent does not start"),
    Step("cluster", selftest_cluster.cluster),
)
"""In their order; each works with what those before it left."""


# --- running -------------------------------------------------------------------------------------


def run(walk: Walk, steps: Sequence[Step] = STEPS) -> Report:
    """Clean up after an earlier test, do the steps, clean up; one that fails hinders no other but
    those that need what it was to make."""
    first = _one(walk, Step("clean-up before", _clean, "what a killed test left is removed"))
    done = [first]
    try:
        if first.mark is not Mark.DIFFERS:
            done += [_one(walk, step) for step in steps]
    finally:
        last = _one(walk, Step("clean-up", _clean, "nothing of the test is left"))
    ran = {step.name: step for step in (*done, last)}
    lines = tuple(
        AssumedLine(name, step, _mark_of(name, ran.get(step), walk.untried))
        for name, step in assumed_lines()
    )
    return Report(walk.host, (*done, last), lines)


def _mark_of(name: str, step: StepReport | None, untried: Collection[str]) -> Mark:
    """What came of a line: what came of its step, unless that did not come by it."""
    if step is None:
        return Mark.MISSED
    subject = name.partition(" ")[2]
    is_tried = not any(
        subject == item or subject.startswith((f"{item}.", f"{item} ")) for item in untried
    )
    return step.mark if is_tried or step.mark is Mark.DIFFERS else Mark.MISSED


def _one(walk: Walk, step: Step) -> StepReport:
    walk.say(step.name)
    walk.findings = []
    try:
        step.run(walk)
    except NotLookedAt as exc:
        walk.miss(step.name, str(exc))
    except (StandbyError, OSError, ValueError) as exc:
        walk.check("the step goes to its end", "yes", str(exc))
    return StepReport(
        step.name, step.settles or settled_by().get(step.name, ""), tuple(walk.findings)
    )


def _clean(walk: Walk) -> None:
    """Remove every VM and folder of a self-test in the walk's folder."""
    for machine, name in _machines(walk, walk.keeper.read_rows()):
        _remove(walk, machine, name)
        walk.tell("removed the VM", name)
    for path in _folders(walk):
        _remove_folder(walk, path)
        walk.tell("removed the folder", path)
    left = [name for _, name in _machines(walk, walk.keeper.read_rows())]
    walk.check("VMs of self-tests in the folder", [], left)
    walk.check("folders of self-tests in it", [], _folders(walk))


def _machines(walk: Walk, rows: HostRows) -> list[tuple[str, str]]:
    """(id, name) of the VMs that a self-test made in this folder: it wrote their notes."""
    return [
        (row.virtual_system_identifier.lower(), row.element_name or "")
        for row in rows.settings
        if row.virtual_system_type == LIVE
        and is_of_a_test(noted(row.notes))
        and folded(row.configuration_data_root or "").startswith(folded(walk.folder) + "\\")
    ]


def _remove(walk: Walk, machine: str, name: str) -> None:
    watch = Watch(Gathering(walk.cluster or walk.door, walk.host), walk.host, walk.clock, 1.0)
    selftest_vm.at_rest(watch, walk.keeper, machine, name)
    walk.keeper.remove(machine)


def _folders(walk: Walk) -> list[str]:
    asked = {"folders": [{"id": "host", "path": walk.folder}]}
    return walk.door.run(LIST_FOLDERS, asked).value("host").names


def _remove_folder(walk: Walk, path: str) -> None:
    pauses = list(REMOVE_PAUSES_S)
    while True:
        try:
            asked = {"folders": [{"id": "host", "path": path}]}
            walk.door.run(REMOVE_FOLDERS, asked).value("host")
            return
        except HostCallFailed:
            if not pauses:
                raise
            walk.clock.sleep(pauses.pop(0))


# --- assumed.toml --------------------------------------------------------------------------------


@cache
def _assumed() -> dict[str, object]:
    text = package_files(__package__).joinpath("assumed.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def settled_by() -> dict[str, str]:
    """What each step settles, as assumed.toml says."""
    table = _assumed()["selftest"]
    assert isinstance(table, dict)
    return table


def assumed_lines() -> list[tuple[str, str]]:
    """(kind and name, step) of every line of assumed.toml."""
    entries = _assumed()["assumed"]
    assert isinstance(entries, list)
    return [(f"{item['kind']} {item['name']}", item["selftest"]) for item in entries]
