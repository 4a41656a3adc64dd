"""What the nursery of tests leaves open when nothing was started."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from net.nursery import Nursery


class Ready(Nursery):
    """The client's side alone, of a nursery that is asked at `address`."""

    def __init__(self, address: Path) -> None:
        self._address = str(address)

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
        yield Ready(tmp_path / "socket")
        thread.join()


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def test_a_start_that_was_refused_leaves_no_channel(refusing: Ready, tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="started nothing"):
        refusing.start(["version"], tmp_path / "log")
    assert descriptors() == before


def test_a_piped_start_that_was_refused_leaves_no_channel(refusing: Ready) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="started nothing"):
        refusing.piped(["version"])
    assert descriptors() == before


def test_a_start_of_a_nursery_that_is_gone_leaves_nothing_open(tmp_path: Path) -> None:
    nursery = Ready(tmp_path / "nobody")
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        nursery.start(["version"], tmp_path / "log")
    with pytest.raises(FileNotFoundError):
        nursery.piped(["version"])
    assert descriptors() == before
