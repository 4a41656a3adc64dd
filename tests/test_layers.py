"""The imports between the project's parts, read from the source: who may know whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "standby"

BOTTOM = frozenset(
    {"clock", "errors", "files", "heap", "killpoints", "model", "ports", "strict_toml", "units"}
)
"""Known by all; they know one another, the standard library and numpy."""

KERNEL_OWNERS = frozenset({"digesting", "comparing", "chunking"})
CARRIED = KERNEL_OWNERS | {"disk", "host", "repository", "wire", "wan"}

MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(BOTTOM, frozenset()),
    "_kernels": frozenset(),
    "digesting": frozenset({"_kernels"}),
    "comparing": frozenset({"_kernels", "digesting"}),
    "chunking": frozenset({"_kernels", "digesting", "comparing"}),
    "disk": KERNEL_OWNERS,
    "host": KERNEL_OWNERS,
    "repository": KERNEL_OWNERS,
    "wire": KERNEL_OWNERS,
    "wan": KERNEL_OWNERS | {"wire"},
    "road": CARRIED,
    "server": CARRIED | {"road"},
    "testing": CARRIED | {"road", "server"},
    "client": frozenset({"road", "server"}),
    "cli": CARRIED | {"road", "server", "client", "testing", "__init__"},
    "__main__": frozenset({"cli"}),
    "__init__": frozenset({"server"}),
}
"""What each part may import besides itself and BOTTOM."""

MAY_IMPORT_ALSO: dict[str, frozenset[str]] = {
    "host/folder": frozenset({"disk"}),
    "wan": frozenset({"disk", "_kernels"}),
}
"""Additions by place: the folder host makes disks, the global cache reads what replicas hold, and
its table and names own kernels."""

DOORS: dict[str, frozenset[str]] = {
    "numpy": frozenset({"*"}),
    "click": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    "zstandard": frozenset({"road/packing.py", "wan"}),
    "cryptography": frozenset({"wire/authority.py", "host/hyperv/kerberos.py"}),
    "blake3": frozenset({"wan"}),
    "backports": frozenset({"wan/compressing.py"}),
    "compression": frozenset({"wan/compressing.py"}),
    "sqlalchemy": frozenset({"server/store"}),
    "alembic": frozenset({"server/store"}),
    "xxhash": frozenset({"digesting"}),
    "msgspec": frozenset(MAY_IMPORT) - BOTTOM - {"_kernels"} - KERNEL_OWNERS,
    "winrm": frozenset({"host/hyperv/connections.py", "host/hyperv/transports.py"}),
    "requests": frozenset(
        {
            "host/hyperv/connections.py",
            "host/hyperv/transports.py",
            "host/hyperv/kerberos.py",
        }
    ),
    "requests_ntlm": frozenset({"host/hyperv/transports.py"}),
    "requests_credssp": frozenset({"host/hyperv/transports.py"}),
    "gssapi": frozenset({"host/hyperv/kerberos.py"}),
    "urllib3": frozenset({"host/hyperv/connections.py"}),
    "fastapi": frozenset({"server/api"}),
    "uvicorn": frozenset({"server/api"}),
    "pydantic": frozenset({"server/api"}),
    "starlette": frozenset({"server/api"}),
    "prometheus_client": frozenset({"server/api/metrics.py"}),
}
"""The only places that may import each third party; '*' is everywhere."""

STANDARD_DOORS: dict[str, frozenset[str]] = {
    "time": frozenset({"clock.py"}),
    "random": frozenset({"clock.py", "testing"}),
    "secrets": frozenset({"clock.py"}),
    "sqlite3": frozenset({"repository", "cli/demo_disks.py", "server/store/opening.py"}),
    "fcntl": frozenset({"files"}),
    "msvcrt": frozenset({"files"}),
    "pickle": frozenset(),
}
"""Modules of the standard library that have one caller: time and chance can be held by tests,
system calls have their Windows branch beside them, nothing is unpickled."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement: the importing file below src/standby, and what it names."""

    file: str
    line: int
    module: str
    """Dotted, absolute; a name imported from the package itself is joined to it."""
    at_run_time: bool
    """False under `if TYPE_CHECKING`."""

    @property
    def part(self) -> str:
        """The importing part: a folder of src/standby, or a module without its suffix."""
        return part_of(self.file)


def part_of(file: str) -> str:
    """The part that a file below src/standby belongs to."""
    first, _, rest = file.partition("/")
    return first if rest else first.rpartition(".")[0]


def imports_of(file: str, text: str) -> Iterator[Import]:
    """Every import in the source `text` of `file`, function bodies included."""
    tree = ast.parse(text)
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    package = ["standby", *Path(file).parent.parts]
    for node in ast.walk(tree):
        at_run_time = id(node) not in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "standby":  # the package itself: what is taken from it counts
                    yield Import(file, node.lineno, alias.name, at_run_time)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "standby":
            if not node.attr.startswith("__"):
                yield Import(file, node.lineno, f"standby.{_part_named(node.attr)}", at_run_time)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            if base != "standby":
                yield Import(file, node.lineno, base, at_run_time)
                continue
            for alias in node.names:
                if alias.name == "__version__":
                    continue
                yield Import(file, node.lineno, f"standby.{_part_named(alias.name)}", at_run_time)


def _part_named(name: str) -> str:
    """The part that a name taken from the package itself belongs to."""
    return name if name in MAY_IMPORT else "__init__"


def breach_of(found: Import) -> str:
    """What is wrong with an import, '' when nothing is."""
    head, _, rest = found.module.partition(".")
    if head == "standby":
        return _breach_of_layers(found, rest.partition(".")[0] or "__init__")
    doors = DOORS.get(head, STANDARD_DOORS.get(head))
    if doors is None:
        return "" if head in _standard() else f"{head} has no door: name its one place here"
    if "*" in doors or any(found.file == door or _is_in(found, door) for door in doors):
        return ""
    return f"{head} may be imported only by {', '.join(sorted(doors)) or 'nobody'}"


def _is_in(found: Import, door: str) -> bool:
    return found.file.startswith(f"{door}/") or found.part == door


def _breach_of_layers(found: Import, imported: str) -> str:
    if found.part not in MAY_IMPORT:
        return f"{found.part} has no layer: name what it may import here"
    if imported not in MAY_IMPORT:
        return f"{imported} has no layer: name it here"
    allowed = MAY_IMPORT[found.part] | BOTTOM | {found.part}
    for place, also in MAY_IMPORT_ALSO.items():
        if found.file.startswith(f"{place}/"):
            allowed |= also
    return "" if imported in allowed else f"{found.part} may not know {imported}"


def _standard() -> frozenset[str]:
    import sys

    return frozenset(sys.stdlib_module_names)


def _all_imports() -> list[Import]:
    files = sorted(path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts)
    return [
        found
        for path in files
        for found in imports_of(
            path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8")
        )
    ]


def test_every_import_points_down_and_goes_through_its_door() -> None:
    breaches = [
        f"{found.file}:{found.line} imports {found.module}: {problem}"
        for found in _all_imports()
        if (problem := breach_of(found))
    ]
    assert not breaches, "\n".join(breaches)


def test_no_two_parts_import_each_other() -> None:
    edges: dict[str, set[str]] = {}
    for found in _all_imports():
        head, _, rest = found.module.partition(".")
        target = rest.partition(".")[0]
        if head == "standby" and target and target != found.part and found.at_run_time:
            edges.setdefault(found.part, set()).add(target)
    seen: set[str] = set()

    def visit(part: str, trail: tuple[str, ...]) -> None:
        assert part not in trail, " imports ".join([*trail, part])
        if part not in seen:
            for target in sorted(edges.get(part, ())):
                visit(target, (*trail, part))
            seen.add(part)

    for part in sorted(edges):
        visit(part, ())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("disk/raw.py", "from standby.repository import Repository"),
        ("disk/raw.py", "from ..wire import link"),
        ("disk/raw.py", "from standby import host"),
        ("disk/raw.py", "def late():\n    import standby.server.driver"),
        ("wire/link.py", "import zstandard"),
        ("server/driver.py", "import click"),
        ("host/memory.py", "from standby.disk import open_disk"),
        ("model/extent.py", "import msgspec"),
        ("errors/disks.py", "from standby import digesting"),
        ("road/mover.py", "import time"),
        ("road/mover.py", "from standby import BackupServer"),
        ("road/mover.py", "import standby\nstandby.BackupServer"),
        ("cli/main.py", "import requests"),
        ("server/driver.py", "import winrm"),
        ("host/folder/host.py", "import winrm"),
        ("host/hyperv/door.py", "import winrm"),
        ("host/hyperv/door.py", "from standby.server import config"),
        ("host/hyperv/door.py", "from standby.wire import link"),
    ],
)
def test_a_breach_is_noticed(file: str, text: str) -> None:
    (found,) = imports_of(file, text)
    assert breach_of(found)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("host/folder/host.py", "from standby.disk import open_disk"),
        ("disk/raw.py", "from . import extents"),
        ("road/packing.py", "import zstandard"),
        ("cli/job.py", "from standby import BackupServer"),
        ("server/driver.py", "from standby import errors, __version__"),
        ("server/movers.py", "import standby\nstandby.__file__"),
    ],
)
def test_what_is_allowed_passes(file: str, text: str) -> None:
    for found in imports_of(file, text):
        assert not breach_of(found)
