"""What the block kernels refuse before they touch memory, and how a variant is chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from standby._kernels import blocks, variants
from standby._kernels.buffers import flat
from standby.errors import ConfigurationError


def words(count: int) -> np.ndarray:
    return np.zeros(count, np.uint64)


def rows(count: int, columns: int = 3) -> np.ndarray:
    return np.zeros((count, columns), np.int64)


DATA = bytes(8192)

WRONG = {
    "leaves: out too short": lambda: blocks.leaves(DATA, words(1)),
    "leaves: out too long": lambda: blocks.leaves(DATA, words(3)),
    "scan: stored too short": lambda: blocks.scan(DATA, words(1), words(2), rows(2)),
    "scan: leaves_out too long": lambda: blocks.scan(DATA, words(2), words(3), rows(2)),
    "scan: too few runs": lambda: blocks.scan(DATA, words(2), words(2), rows(1)),
    "scan: two columns": lambda: blocks.scan(DATA, words(2), words(2), rows(2, 2)),
    "scan: wrong words": lambda: blocks.scan(DATA, rows(2), words(2), rows(2)),
    "join_leaves: width": lambda: blocks.join_leaves(
        words(63).reshape(1, 63), np.zeros((1, 16), np.uint8)
    ),
    "join_leaves: rows": lambda: blocks.join_leaves(
        words(64).reshape(1, 64), np.zeros((2, 16), np.uint8)
    ),
    "join_nodes: width": lambda: blocks.join_nodes(
        np.zeros((1, 1023), np.uint8), np.zeros((1, 16), np.uint8)
    ),
    "join_nodes: node": lambda: blocks.join_nodes(
        np.zeros((1, 1024), np.uint8), np.zeros((1, 15), np.uint8)
    ),
    "zero_runs: granularity": lambda: blocks.zero_runs(DATA, 0, rows(2)),
    "zero_runs: out": lambda: blocks.zero_runs(DATA, 4096, rows(1)),
    "changed: lengths": lambda: blocks.changed(words(2), words(3), rows(2, 2)),
    "changed: out": lambda: blocks.changed(words(3), words(3), rows(1, 2)),
    "differing: lengths": lambda: blocks.differing(DATA, DATA[1:], 4096, rows(2, 2)),
    "differing: granularity": lambda: blocks.differing(DATA, DATA, 0, rows(2, 2)),
    "differing: out": lambda: blocks.differing(DATA, DATA, 1024, rows(3, 2)),
    "compact: beyond the data": lambda: blocks.compact(
        bytearray(DATA), np.array([[0, 3, 1]], np.int64)
    ),
    "compact: empty run": lambda: blocks.compact(bytearray(DATA), np.array([[1, 1, 1]], np.int64)),
    "compact: negative": lambda: blocks.compact(bytearray(DATA), np.array([[-1, 1, 1]], np.int64)),
    "compact: descending": lambda: blocks.compact(
        bytearray(DATA), np.array([[1, 2, 1], [0, 1, 1]], np.int64)
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_refuses_shapes_that_do_not_fit(call):
    with pytest.raises(ValueError):
        call()


def overlapping():
    room = np.zeros(3 * 8192, np.uint8)
    data, leaves, stored = room[:8192], room[8184:8200].view(np.uint64), words(2)
    runs = room[8208:8256].view(np.int64).reshape(2, 3)
    yield lambda: blocks.leaves(data, leaves)
    yield lambda: blocks.scan(data, stored, leaves, rows(2))
    yield lambda: blocks.scan(data, stored, stored, rows(2))
    yield lambda: blocks.scan(DATA, runs.reshape(-1)[:2].view(np.uint64), words(2), runs)
    yield lambda: blocks.zero_runs(room, 8192, room[:72].view(np.int64).reshape(3, 3))
    yield lambda: blocks.compact(room, room[:24].view(np.int64).reshape(1, 3))
    yield lambda: blocks.join_nodes(room[:1024].reshape(1, 1024), room[1008:1024].reshape(1, 16))


@pytest.mark.parametrize("call", list(overlapping()))
def test_refuses_buffers_that_overlap(call):
    with pytest.raises(ValueError, match="overlap"):
        call()


def test_refuses_none_and_read_only_outputs():
    with pytest.raises(TypeError):
        blocks.leaves(None, words(0))
    with pytest.raises(TypeError):
        blocks.is_zero(None)
    frozen = words(2)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        blocks.leaves(DATA, frozen)
    with pytest.raises((BufferError, ValueError)):
        blocks.compact(DATA, np.array([[1, 2, 1]], np.int64))


def test_takes_every_kind_of_flat_buffer():
    wanted = words(2)
    blocks.leaves(DATA, wanted)
    for data in (bytearray(DATA), memoryview(DATA), np.zeros(8192, np.uint8)):
        out = words(2)
        blocks.leaves(data, out)
        assert (out == wanted).all()


def test_flat_views_wider_items_as_bytes_and_refuses_gaps():
    wide = np.arange(8, dtype=np.uint64)
    assert bytes(flat(wide)) == wide.tobytes()
    assert bytes(flat(wide.reshape(2, 4))) == wide.tobytes()
    assert bytes(flat(np.empty((0, 4)))) == b""
    with pytest.raises(TypeError):
        flat(wide[::2])
    with pytest.raises(TypeError):
        flat("text")


def test_scalar_is_always_there_and_the_fastest_is_the_default():
    assert blocks.variants()[0] == "scalar"
    clean = {name: value for name, value in os.environ.items() if name != variants.VARIABLE}
    assert chosen(clean).stdout.split() == [blocks.variants()[-1]]


def chosen(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = "from standby.comparing import kernel_variant; print(kernel_variant())"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_the_environment_forces_a_variant():
    assert chosen(os.environ | {variants.VARIABLE: "scalar"}).stdout == "scalar\n"


def test_an_unknown_variant_is_an_error_and_never_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variants.VARIABLE, "quantum")
    with pytest.raises(ConfigurationError, match=r"quantum.*Choose one of scalar"):
        variants.choose(blocks)
    with pytest.raises(ValueError, match="quantum"):
        blocks.select("quantum")
