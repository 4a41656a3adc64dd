"""Partial disks: what is received, acknowledged and sealed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partials
from clocks import HeldClock
from partials import (
    LATER,
    SIZE,
    noise,
    root_of,
    rows,
    sealed_base,
    send,
    send_changes,
    spec_of,
)
from standby import digesting
from standby.digesting import PAGE, PIECE, DigestChain, DigestFile
from standby.disk import vhdx
from standby.disk.check import check_disk
from standby.errors import ProtocolError
from standby.road.extent_log import KIND_DATA, KIND_ZERO
from standby.road.partial import PartialDisk
from standby.units import MiB


def test_a_base_holds_exactly_what_was_sent_and_its_digests_are_complete(tmp_path: Path) -> None:
    content = noise(1, SIZE)
    sealed = sealed_base(tmp_path, content)
    assert sealed.root == root_of(content)
    assert partials.content_of(sealed.partial_path) == content
    assert check_disk(sealed.partial_path).is_ok
    info = vhdx.read_info(sealed.partial_path)
    assert sealed.size == sealed.partial_path.stat().st_size
    assert (sealed.data_write_guid, info.log_is_dirty) == (info.data_write_guid, False)
    assert info.page83 == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    with DigestFile.open(sealed.digests_path) as digests:
        assert digests.is_complete
        assert digests.root == sealed.root


def test_a_child_carries_only_changes_and_digests_of_differing_pages(tmp_path: Path) -> None:
    content = noise(2, SIZE)
    base = sealed_base(tmp_path / "base", content)
    changed = bytearray(content)
    changed[5 * PIECE : 6 * PIECE] = b"x" * PIECE
    changed[PAGE : 2 * PAGE] = bytes(PAGE)
    changed[-512:] = b"y" * 512
    spec = spec_of(SIZE, point=LATER, parent=(base,))
    partial = PartialDisk.open(tmp_path / "child", spec)
    sent = send_changes(partial, changed)
    assert sent[0] == 5 * PIECE
    # A piece that is sent although it is equal changes nothing in the digests.
    send(partial, changed, 2 * PAGE, 2 * PAGE + PIECE)
    sealed = partial.seal()
    assert sealed.root == root_of(changed)
    assert partials.content_of(sealed.partial_path, base.partial_path) == changed
    assert check_disk(sealed.partial_path, parents=[base.partial_path]).is_ok
    with DigestFile.open(sealed.digests_path) as digests:
        assert not digests.is_complete
        assert digests.page_numbers.tolist() == [0, 1, 2]
        assert (digests.leaves(1) == digesting.ZERO_LEAF).all()
    with DigestChain([sealed.digests_path, base.digests_path]) as chain:
        assert chain.root(SIZE) == sealed.root


def test_a_child_that_received_nothing_has_its_parents_root(tmp_path: Path) -> None:
    base = sealed_base(tmp_path / "base", noise(3, SIZE))
    partial = PartialDisk.open(tmp_path / "child", spec_of(SIZE, point=LATER, parent=(base,)))
    sealed = partial.seal()
    assert sealed.root == base.root
    with DigestFile.open(sealed.digests_path) as digests:
        assert len(digests.page_numbers) == 0


def test_the_baseline_is_the_parent_under_what_is_acknowledged(tmp_path: Path) -> None:
    content = noise(4, SIZE)
    base = sealed_base(tmp_path / "base", content)
    partial = PartialDisk.open(tmp_path / "child", spec_of(SIZE, point=LATER, parent=(base,)))
    before = partial.baseline.leaves(0)
    assert np.array_equal(before, partials.source_leaves(content)[:4096])
    content[:PIECE] = b"z" * PIECE
    send(partial, content, 0, PIECE)
    assert np.array_equal(partial.baseline.leaves(0), before)  # not acknowledged yet
    partial.receive(rows((PAGE, PAGE, KIND_ZERO)), np.empty(0, np.uint64), b"")
    assert partial.group_commit() == PIECE + PAGE
    content[PAGE : 2 * PAGE] = bytes(PAGE)
    assert np.array_equal(partial.baseline.leaves(0), partials.source_leaves(content)[:4096])
    numbers, nodes = partial.baseline.index()
    assert numbers.tolist() == [0, 2]
    assert len(nodes) == 2
    assert partial.baseline.root(SIZE) == partial.root() == root_of(content)
    assert partial.log.pages().tolist() == [0, 1]
    partial.close()


def test_batches_that_cannot_be_are_refused(tmp_path: Path) -> None:
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    leaf = np.zeros(1, dtype=np.uint64)
    for table, leaves, payload in (
        (rows((0, PIECE, KIND_DATA)), leaf, bytes(PIECE - 1)),
        (rows((0, PIECE, KIND_DATA)), leaf[:0], bytes(PIECE)),
        (rows((0, PIECE, KIND_ZERO)), leaf[:0], bytes(PIECE)),
        (rows((SIZE, PIECE, KIND_DATA)), leaf, bytes(PIECE)),
        (rows((512, PIECE, KIND_DATA)), leaf, bytes(PIECE)),
    ):
        with pytest.raises(ProtocolError):
            partial.receive(table, leaves, payload)
    assert partial.group_commit() == 0
    partial.receive(rows(), leaf[:0], b"")
    assert partial.group_commit() == 0
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_buffers_may_be_reused_after_receive(tmp_path: Path) -> None:
    partial = PartialDisk.open(tmp_path, spec_of(SIZE))
    payload = bytearray(b"a" * PIECE)
    leaves = digesting.leaves(payload).copy()
    table = rows((0, PIECE, KIND_DATA))
    partial.receive(table, leaves, memoryview(payload))
    payload[:] = bytes(PIECE)
    leaves[0] = 0
    table[0, 0] = PAGE
    partial.group_commit()
    assert partial.read_back() == []
    assert partial.baseline.leaves(0)[0] == digesting.leaves(b"a" * PIECE)[0]
    partial.close()


def test_a_commit_is_due_after_five_seconds_or_256_mib(tmp_path: Path) -> None:
    clock = HeldClock()
    partial = PartialDisk.open(tmp_path, spec_of(1 << 30), clock=clock)
    clock.advance(60)
    assert not partial.should_commit()  # nothing is waiting
    clock.advance(-60)
    partial.receive(rows((0, PIECE, KIND_DATA)), digesting.leaves(b"q" * PIECE), b"q" * PIECE)
    assert not partial.should_commit()
    clock.advance(5)
    assert partial.should_commit()
    partial.group_commit()
    assert not partial.should_commit()
    partial.receive(rows((PAGE, 256 * MiB, KIND_ZERO)), np.empty(0, np.uint64), b"")
    assert partial.should_commit()
    partial.close()
