"""Memory between plain movers: both ends have the same, or neither, and nothing else is opened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from standby.errors import ProtocolError
from standby.road import sharing
from standby.units import KiB
from standby.wire.link import Link
from standby.wire.messages import Attach, Message, OfferMemory
from standby.wire.shared_memory import SharedRing, offered, taken

SIZE = 64 * KiB


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    near, far = socket.socketpair()
    with Link(near, "target") as link, Link(far, "source") as other:
        link.shares_memory = other.shares_memory = True
        yield link, other


def both(ends: tuple[Link, Link]) -> tuple[SharedRing | None, SharedRing | None]:
    with ThreadPoolExecutor(1) as pool:
        far = pool.submit(sharing.shared_ring, ends[1], is_source=False)
        return sharing.shared_ring(ends[0], is_source=True), far.result(20)


def test_both_ends_see_the_same_bytes(ends: tuple[Link, Link]) -> None:
    ours, theirs = both(ends)
    assert ours is not None
    assert theirs is not None
    ours.slot(2)[-5:] = b"hello"
    assert theirs.slot(2)[-5:] == b"hello"
    assert (theirs.count, theirs.slot_size) == (sharing.SLOTS, sharing.SLOT_SIZE)


def test_neither_end_has_any_where_it_cannot_be_opened(
    ends: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "taken", lambda *offer: None)
    assert both(ends) == (None, None)


def test_a_link_between_machines_offers_nothing(ends: tuple[Link, Link]) -> None:
    for link in ends:
        link.shares_memory = False
    assert both(ends) == (None, None)
    assert ends[0].sent_bytes == ends[1].sent_bytes == 0


@pytest.mark.parametrize("is_source", [True, False])
def test_anything_else_than_offer_and_answer_ends_it(
    ends: tuple[Link, Link], is_source: bool
) -> None:
    wrong: Message = OfferMemory("x", b"", 1, 1) if is_source else Attach("task")
    ends[1].send(wrong)
    with pytest.raises(ProtocolError):
        sharing.shared_ring(ends[0], is_source=is_source)


def test_only_memory_of_ours_with_the_mark_is_taken(tmp_path: Path) -> None:
    with offered(2, SIZE) as (ring, place, mark):
        found = taken(place, mark, 2, SIZE)
        assert found is not None
        ring.slot(1)[:3] = b"abc"
        assert found.slot(1)[:3] == b"abc"
        assert taken(place, bytes(32), 2, SIZE) is None
        assert taken(place, b"", 2, SIZE) is None
        assert taken(place, mark, 17, SIZE) is None
        assert taken(place, mark, 0, SIZE) is None
        assert taken(place, mark, 2, 1 << 40) is None
        if sys.platform == "linux":
            assert taken(place, mark, 3, SIZE) is None
            for elsewhere in ("", "/", "1/", f"{os.getpid()}/-1", "../../etc/passwd", "²/1"):
                assert taken(elsewhere, mark, 2, SIZE) is None


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors of other processes")
def test_no_file_is_opened_whatever_the_place_says() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(2 * SIZE))
        file.flush()
        assert taken(f"{os.getpid()}/{file.fileno()}", bytes(32), 2, SIZE) is None
    reading, writing = os.pipe()
    assert taken(f"{os.getpid()}/{reading}", bytes(32), 2, SIZE) is None
    os.close(reading)
    os.close(writing)


def test_another_process_takes_it() -> None:
    script = (
        "import sys\n"
        "from standby.wire.shared_memory import taken\n"
        f"ring = taken(sys.argv[1], bytes.fromhex(sys.argv[2]), 2, {SIZE})\n"
        "ring.slot(1)[:5] = b'there'\n"
    )
    with offered(2, SIZE) as (ring, place, mark):
        subprocess.run([sys.executable, "-c", script, place, mark.hex()], check=True, timeout=60)
        assert ring.slot(1)[:5] == b"there"
