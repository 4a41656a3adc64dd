"""Whether this mover could do what it may be asked for: reach a peer, read and write a folder.

For `standby infrastructure check`. Nothing is changed: a folder is tried by a file of no name, or
one that is gone again at once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from standby.clock import Clock
from standby.errors import DiskIO
from standby.files import free_bytes, is_there, mount_findings
from standby.road.places import Places, RootPlaces
from standby.road.verbs import called
from standby.wire.link import Link

TIMEOUT_S = 10.0


class ProbeVerbs:
    """Verbs of every mover, whatever its roles."""

    def __init__(
        self,
        connect: Callable[[str, str, str, str, float], Link],
        places: Places,
        clock: Clock,
    ) -> None:
        self._connect = connect
        self._places = places
        self._clock = clock
        self._verbs: dict[str, Callable[..., Any]] = {
            "probe": self._probe,
            "probe_place": self._probe_place,
            "probe_clock": lambda: clock.now().isoformat(),
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """`probe`, `probe_place`, `probe_clock`; NotImplemented for any other."""
        return called(self._verbs, verb, arguments)

    def _probe(self, name: str, address: str, role: str, own_role: str) -> float:
        """Seconds that it takes to connect to the mover `name` with this one's own identity, and to
        be let in as `own_role` by its `role`; raises what a task would."""
        begun = self._clock.monotonic()
        link = self._connect(address, name, role, own_role, TIMEOUT_S)
        took_s = self._clock.monotonic() - begun
        link.close()
        return took_s

    def _probe_place(self, path: str, writes: bool = False) -> dict[str, Any]:
        root = None
        if isinstance(self._places, RootPlaces):
            root = self._places.roots.get(path.partition(":")[0])
        return looked_at(self._places.path(path), bool(writes), root)

    def close(self) -> None:
        """Nothing is open."""


def looked_at(path: Path, writes: bool, root: Path | None = None) -> dict[str, Any]:
    """{problem, free_bytes} of a folder: `problem` '' where it can be read, and written in with
    `writes`. One that is not there yet is judged by the nearest folder above it, where it would be
    made; nothing above `root` is looked at or written to, for movers do not make their roots."""
    place = path
    problem = ""
    try:
        while writes and not is_there(place) and place not in (root, place.parent):
            place = place.parent
        with os.scandir(place) as entries:
            next(entries, None)
        if writes:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"standby")
        problem = "; ".join(mount_findings(place))
    except FileNotFoundError:
        problem = "there is no such folder"
        if place == root:
            problem = f"the mover's root {root} does not exist, and is made by no mover"
    except NotADirectoryError:
        problem = "is not a folder"
    except DiskIO as exc:
        problem = f"cannot be read: {exc.reason}"
    except OSError as exc:
        problem = f"cannot be {'written' if os.access(place, os.R_OK) else 'read'}: {exc.strerror}"
    return {"problem": problem, "free_bytes": free_bytes(place) if not problem else 0}
