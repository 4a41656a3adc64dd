"""What came over a link that breaks is committed before the task ends: it is not sent again."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from partials import rows, spec_of
from standby import digesting
from standby.digesting import PAGE
from standby.errors import Fenced, LinkError
from standby.road.extent_log import KIND_DATA
from standby.road.partial import PartialDisk
from standby.road.target_proxy import TargetProxy
from standby.units import MiB
from standby.wire.link import Link
from standby.wire.messages import Acknowledged, Attach, Batch, Mark

SIZE = 2 * PAGE
WAIT_S = 30


class Broken:
    """A task whose source sends two batches and vanishes in the middle of the third."""

    def __init__(self, folder: Path, check_lease=None, *, cut_acknowledging: bool = False) -> None:
        ours, theirs = socket.socketpair()
        far = Link(theirs, "source mover")
        self.partial = PartialDisk.open(folder, spec_of(SIZE))
        if cut_acknowledging:
            self.cut_at_first_word(far)
        proxy = TargetProxy("task", "vm1", self.partial, SIZE, far, None, check_lease=check_lease)
        self.content = np.random.default_rng(4).bytes(SIZE)
        with ThreadPoolExecutor(1) as pool, Link(ours, "target mover") as link:
            run = pool.submit(proxy.run)
            with contextlib.suppress(LinkError):  # cut before it has all
                self._send(link)
            with contextlib.suppress(OSError):
                ours.send(b"STBY")
            link.shutdown()
            self.error = run.exception(WAIT_S)
        self.written = proxy.counters.written
        self.acknowledged = self.partial.acknowledged_bytes
        self.mark = self.partial.resume_mark
        far.close()
        self.partial.close()

    def _send(self, link: Link) -> None:
        link.send(Attach("task"))
        for start in (0, MiB):
            data = self.content[start : start + MiB]
            leaves = digesting.leaves(data)
            link.send(Batch(1, len(leaves), MiB), rows((start, MiB, KIND_DATA)), leaves, data)
        link.send(Mark(2 * MiB))

    @staticmethod
    def cut_at_first_word(link: Link) -> None:
        plain = link.send

        def send(message, *payload) -> None:
            if isinstance(message, Acknowledged):
                link.shutdown()
            plain(message, *payload)

        link.send = send  # type: ignore[method-assign]


def test_what_came_is_acknowledged_when_the_link_ends(tmp_path: Path) -> None:
    task = Broken(tmp_path)
    assert isinstance(task.error, LinkError)
    assert (task.acknowledged, task.mark) == (2 * MiB, 2 * MiB)
    again = PartialDisk.open(tmp_path, spec_of(SIZE))
    assert again.acknowledged_bytes == 2 * MiB
    assert not again.log.open_ranges or again.log.mark == 2 * MiB
    again.close()


def test_what_came_beside_a_commit_that_met_the_links_end_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.road.group_commits.COMMIT_BYTES", 1)
    task = Broken(tmp_path, cut_acknowledging=True)
    assert isinstance(task.error, LinkError)
    assert task.acknowledged == task.written > 0


def test_one_that_was_fenced_writes_no_more(tmp_path: Path) -> None:
    asked = threading.Event()

    def check_lease() -> None:
        asked.set()
        raise Fenced("vm1", 1, 2)

    task = Broken(tmp_path, check_lease)
    assert isinstance(task.error, LinkError)
    assert asked.is_set()
    assert task.acknowledged == 0
