"""What the paths in verbs mean: absolute paths on one machine, (root, path) between machines.

A child mover belongs to the backup server's own machine and user: paths are absolute. A service
mover opens nothing but what lies below its configured roots, whoever asks (RULES 20): a path is
"ROOT:relative/path", and its components are looked at one by one, none of them a link. What the
files found there name themselves (parent locators, disks in a vm.toml) is held below the same
roots by `files.confine`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from standby import files
from standby.errors import ConfigurationError, PathRefused

_DRIVE = re.compile(r"[A-Za-z]:")
ROOT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{1,62}")
"""At least two characters, so that no root is taken for a Windows drive."""


class Places(Protocol):
    """What the texts in a verb's arguments and results mean on this machine."""

    def path(self, text: str) -> Path:
        """The path that `text` means; it need not exist. Raises PathRefused."""

    def inside(self, text: str, name: str) -> Path:
        """The path of `name`, relative with forward slashes, below the folder `text`."""

    def text(self, path: Path) -> str:
        """What `path` is called in a result; `path` reads it back."""


class LocalPlaces:
    """Absolute paths, as the user wrote them: for movers of the server's own machine."""

    def path(self, text: str) -> Path:
        """See Places."""
        return Path(text)

    def inside(self, text: str, name: str) -> Path:
        """See Places; links are followed, but not out of the folder."""
        root = Path(text).resolve()
        path = root / name
        if not path.resolve().is_relative_to(root):
            raise PathRefused(str(path), f"leads out of the host's folder {root}")
        return path

    def text(self, path: Path) -> str:
        """See Places."""
        return str(path)


LOCAL_PLACES = LocalPlaces()


class RootPlaces:
    """ "ROOT:relative/path" below the configured roots; "ROOT:" is the root itself."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        for name in roots:
            if not ROOT_NAME.fullmatch(name):
                raise ConfigurationError(
                    f"[roots] {name}",
                    "is no name for a root",
                    "2 to 63 letters, digits, '.', '_' and '-'",
                )
        self.roots = {name: files.plain_absolute(path) for name, path in roots.items()}

    def path(self, text: str) -> Path:
        """See Places."""
        name, colon, relative = text.partition(":")
        if not colon or name not in self.roots:
            known = ", ".join(f"{known}:" for known in sorted(self.roots)) or "none"
            raise PathRefused(text, f"does not begin with one of this mover's roots ({known})")
        path = self.roots[name].joinpath(*_parts(relative, text))
        files.check_links(self.roots[name], path)
        return path

    def inside(self, text: str, name: str) -> Path:
        """See Places."""
        if not name:
            raise PathRefused(text, "an empty name below it")
        return self.path(f"{text.removesuffix('/')}{'' if text.endswith(':') else '/'}{name}")

    def text(self, path: Path) -> str:
        """See Places; where roots lie in one another, by the innermost."""
        plain = files.plain_absolute(path)
        found = [
            (len(root.parts), name)
            for name, root in self.roots.items()
            if plain == root or plain.is_relative_to(root)
        ]
        if not found:
            raise PathRefused(str(path), "lies below none of this mover's roots")
        name = max(found)[1]
        relative = plain.relative_to(self.roots[name]).as_posix()
        return f"{name}:{'' if relative == '.' else relative}"


def _parts(relative: str, text: str) -> list[str]:
    """The components of a relative path; raises PathRefused for anything that is more."""
    if not relative:
        return []
    parts = relative.split("/")
    if "\0" in relative:
        raise PathRefused(text.replace("\0", "?"), "holds a NUL")
    if "\\" in relative or _DRIVE.match(relative):
        raise PathRefused(text, "is written with backslashes or a drive")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise PathRefused(text, "holds an empty component, '.' or '..', or is absolute")
    return parts


def plain_name(text: str, what: str) -> str:
    """`text` where it is the name of one file or folder; raises PathRefused. For what a server
    names below a replica: disks, seeds."""
    bad = not text or text in (".", "..") or any(sign in text for sign in "/\\:\0")
    if bad:
        raise PathRefused(text.replace("\0", "?"), f"is no name of a {what}")
    return text
