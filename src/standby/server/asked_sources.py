"""The source's proxies as one that answers questions about the source's disks."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from standby.errors import DiskError
from standby.server.crew import Handle


class Asking(Protocol):
    """Who knows the proxies, and which of them is asked."""

    def asked(self) -> tuple[Handle, str]:
        """The mover that is asked, and the source's folder there."""

    def ask_another(self) -> bool:
        """Have another one asked; False when there is none that did not fail."""


class AskedSources:
    """A `Handle`: where one proxy does not see a disk, the next one is asked."""

    def __init__(self, crew: Asking) -> None:
        self._crew = crew
        self.name = "source"

    @property
    def is_connected(self) -> bool:
        """See Handle."""
        return self._crew.asked()[0].is_connected

    def start(self, verb: str, /, **arguments: Any) -> Future[Any]:
        """See Handle."""
        return self._crew.asked()[0].start(verb, **arguments)

    def start_now(self, verb: str, /, **arguments: Any) -> Future[Any] | None:
        """See Handle."""
        return self._crew.asked()[0].start_now(verb, **arguments)

    def call(self, verb: str, /, **arguments: Any) -> Any:
        """See Handle."""
        while True:
            mover, root = self._crew.asked()
            if "disk" in arguments:
                arguments["disk"] = {**arguments["disk"], "root": root}
            try:
                return mover.call(verb, **arguments)
            except DiskError:
                if not self._crew.ask_another():
                    raise
