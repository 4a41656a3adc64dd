"""[IO.File] and [IO.Directory] of a host, as scripts use them."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from hyperv.dialect.conversion import NOTHING
from hyperv.dialect.values import Int64, PSEnum, PSObject
from hyperv.dialect.world import DotNetType, PSError
from hyperv.world.errors import SHARING_VIOLATION, text_of
from hyperv.world.machines import Host
from hyperv.world.storage import SharingViolation, Storage

if TYPE_CHECKING:
    from hyperv.world.world import World

ATTRIBUTES = {"Archive": 0x20, "SparseFile": 0x200, "Compressed": 0x800, "Encrypted": 0x4000}
_SHARES = {"ReadWrite": ("read", "write"), "Read": ("read",), "None": ()}


def file_types(world: World, host: Host) -> dict[str, DotNetType]:
    """The types, for one host."""
    storage = world.storage

    def place(windows: Any) -> Path | None:
        return storage.path(host.name, str(windows))

    def attributes(windows: Any) -> PSEnum:
        path = place(windows)
        if path is None or not path.exists():
            raise _error(f"Could not find file '{windows}'.", "FileNotFoundException", 0x80070002)
        names = ["Archive", *sorted(storage.attributes.get(path, set()))]
        value = sum(ATTRIBUTES[name] for name in names)
        return PSEnum("System.IO.FileAttributes", ", ".join(names), value)

    def opened(windows: Any, mode: PSEnum, access: PSEnum, share: PSEnum) -> PSObject:
        if (mode.name, access.name) != ("Open", "Read"):
            raise NotImplementedError(f"the model opens no file with {mode.name}, {access.name}")
        path = place(windows)
        if path is None or not path.is_file():
            raise _error(f"Could not find file '{windows}'.", "FileNotFoundException", 0x80070002)
        with world.lock:
            world.settle()
            try:
                handle = storage.open(path, f"script on {host.name}", shares=_SHARES[share.name])
            except SharingViolation as exc:
                raise _error(text_of(SHARING_VIOLATION), "IOException", SHARING_VIOLATION) from exc

        def dispose() -> Any:
            handle.close()
            return NOTHING

        return PSObject(
            ("System.IO.FileStream", "System.IO.Stream", "System.Object"),
            {"Length": Int64(path.stat().st_size)},
            methods={"Dispose": dispose},
        )

    def make(windows: Any) -> PSObject:
        path = place(windows)
        if path is None:
            raise _error(f"'{windows}' cannot be made.", "IOException", 0x80131620)
        path.mkdir(parents=True, exist_ok=True)
        return PSObject(("System.IO.DirectoryInfo", "System.Object"), {"FullName": str(windows)})

    def listed(windows: Any, pattern: Any) -> list[str]:
        path = place(windows)
        if path is None or not path.is_dir():
            raise _error(f"'{windows}'", "DirectoryNotFoundException", 0x80070003)
        names = sorted(each.name for each in path.iterdir() if each.is_dir())
        return [
            str(PureWindowsPath(str(windows), name))
            for name in names
            if fnmatch.fnmatchcase(name.lower(), str(pattern).lower())
        ]

    def exists(windows: Any) -> bool:
        path = place(windows)
        return path is not None and path.is_dir()

    def delete(windows: Any, is_recursive: Any = False) -> Any:
        path = place(windows)
        if path is None or not path.is_dir():
            raise _error(f"'{windows}'", "DirectoryNotFoundException", 0x80070003)
        if not is_recursive and any(path.iterdir()):
            raise _error("The directory is not empty.", "IOException", 0x80070091)
        with world.lock:
            if any(handle.path.is_relative_to(path) for handle in storage.handles):
                raise _error(text_of(SHARING_VIOLATION), "IOException", SHARING_VIOLATION)
            shutil.rmtree(path)
            _forget(storage, path)
        return NOTHING

    return {
        "IO.File": DotNetType("IO.File", {"GetAttributes": attributes, "Open": opened}),
        "IO.Directory": DotNetType(
            "IO.Directory",
            {"CreateDirectory": make, "Exists": exists, "GetDirectories": listed, "Delete": delete},
        ),
        "IO.FileMode": _enum("IO.FileMode", {"Open": 3}),
        "IO.FileAccess": _enum("IO.FileAccess", {"Read": 1}),
        "IO.FileShare": _enum("IO.FileShare", {"None": 0, "Read": 1, "ReadWrite": 3}),
    }


def _forget(storage: Storage, folder: Path) -> None:
    """What is known of the files that were in it."""
    for known in (storage.parents, storage.disk_ids, storage.oddities, storage.attributes):
        for path in [each for each in known if each.is_relative_to(folder)]:
            del known[path]  # type: ignore[attr-defined]
    storage.grants = {
        path: sids for path, sids in storage.grants.items() if not path.is_relative_to(folder)
    }


def _enum(name: str, values: Mapping[str, int]) -> DotNetType:
    made = {key: PSEnum(f"System.{name}", key, value) for key, value in values.items()}
    return DotNetType(name, constants=made)


def _error(message: str, kind: str, hresult: int) -> PSError:
    return PSError(message, "NotSpecified", kind, hresult, f"System.IO.{kind}", is_terminating=True)
