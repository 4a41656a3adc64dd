"""What the nursery of tests leaves open when nothing was started."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from net.nursery import Nursery
from open_ends import open_ends


class Ready(Nursery):
    """The client's side alone, of a nursery that is asked at `address`."""

    def __init__(self, address: Path, other_side: threading.Thread) -> None:
        self._address = str(address)
        self.other_side = other_side

    def _wait(self) -> None:
        pass


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[Ready]:
    """A nursery that starts nothing: it ends every channel without an id."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def refuse() -> None:
            channel, _ = listener.accept()
            with channel:
                while channel.recv(65536):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        yield Ready(tmp_path / "socket", thread)
        thread.join()


def test_a_start_that_was_refused_leaves_no_channel(refusing: Ready, tmp_path: Path) -> None:
    before = open_ends()
    with pytest.raises(OSError, match="started nothing"):
        refusing.start(["version"], tmp_path / "log")
    refusing.other_side.join()  # its end is this process's, too
    assert open_ends() <= before


def test_a_piped_start_that_was_refused_leaves_no_channel(refusing: Ready) -> None:
    before = open_ends()
    with pytest.raises(OSError, match="started nothing"):
        refusing.piped(["version"])
    refusing.other_side.join()
    assert open_ends() <= before
