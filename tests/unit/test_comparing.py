"""The comparing functions as their callers see them; the kernels have their own tests."""

from __future__ import annotations

import mmap
import threading

import numpy as np
import pytest

from standby import comparing
from standby.digesting import PIECE, ZERO_LEAF, leaves


def noise(pieces: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(pieces * PIECE)


def scanned(data, stored: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    new = np.empty(len(stored), np.uint64)
    runs = np.empty((len(stored), 3), np.int64)
    return new, runs[: comparing.scan(data, stored, new, runs)].tolist()


def test_scan_names_changed_pieces_and_says_which_are_zero():
    data = bytearray(noise(8))
    stored = leaves(data)
    data[2 * PIECE] ^= 1
    data[3 * PIECE + 9] ^= 1
    data[4 * PIECE : 6 * PIECE] = bytes(2 * PIECE)
    new, runs = scanned(data, stored)
    assert runs == [[2, 4, comparing.DATA], [4, 6, comparing.ZERO]]
    assert new.tolist() == leaves(data).tolist()
    assert (new[4:6] == ZERO_LEAF).all()
    assert scanned(data, new)[1] == []


def test_scan_of_nothing_finds_nothing():
    assert scanned(b"", np.empty(0, np.uint64))[1] == []


def test_compact_keeps_the_data_runs_and_a_short_tail():
    data = bytearray(noise(3) + b"tail")
    wanted = data[PIECE : 2 * PIECE] + b"tail"
    runs = np.array([[0, 1, 0], [1, 2, 1], [2, 3, 0], [3, 4, 1]])
    kept = comparing.compact(data, runs)
    assert data[:kept] == wanted
    assert comparing.compact(data, runs[:0]) == 0


def test_compact_accepts_the_rows_that_scan_filled():
    data = bytearray(noise(4))
    stored = leaves(data)
    stored[1] = stored[3] = 0
    runs = np.empty((9, 3), np.int64)
    count = comparing.scan(data, stored, np.empty(4, np.uint64), runs)
    wanted = bytes(data[PIECE : 2 * PIECE] + data[3 * PIECE :])
    assert bytes(data[: comparing.compact(data, runs[:count])]) == wanted


def test_changed_runs_of_leaves():
    a = np.arange(6, dtype=np.uint64)
    b = a.copy()
    b[[0, 1, 5]] = 99
    assert comparing.changed_runs(a, b).tolist() == [[0, 2], [5, 6]]
    assert comparing.changed_runs(a, a).shape == (0, 2)
    assert comparing.changed_runs(a[:0], b[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="differ in length"):
        comparing.changed_runs(a, b[1:])


def test_differing_extents_by_granularity():
    a = noise(4)
    b = bytearray(a)
    b[PIECE - 1] ^= 1
    b[PIECE] ^= 1
    b[-1] ^= 1
    assert comparing.differing_extents(a, b).tolist() == [[0, 2], [3, 4]]
    assert comparing.differing_extents(a, b, 512).tolist() == [[7, 9], [31, 32]]
    assert comparing.differing_extents(a, a).shape == (0, 2)
    assert comparing.differing_extents(b"", b"").shape == (0, 2)
    with pytest.raises(ValueError, match="differ in length"):
        comparing.differing_extents(a, b[1:])


@pytest.mark.parametrize("granularity", [0, -1])
def test_granularity_must_be_positive(granularity: int):
    with pytest.raises(ValueError, match="granularity must be positive"):
        comparing.runs_of_zero(b"abc", granularity)
    with pytest.raises(ValueError, match="granularity must be positive"):
        comparing.differing_extents(b"abc", b"abd", granularity)


def test_runs_of_zero_cover_everything():
    data = bytes(PIECE) + noise(2) + bytes(2 * PIECE + 1)
    assert comparing.runs_of_zero(data).tolist() == [[0, 1, 0], [1, 3, 1], [3, 6, 0]]
    assert comparing.runs_of_zero(bytes(5), 1 << 20).tolist() == [[0, 1, 0]]
    assert comparing.runs_of_zero(b"").shape == (0, 3)


def test_is_zero():
    assert comparing.is_zero(bytes(5000))
    assert comparing.is_zero(b"")
    assert not comparing.is_zero(bytes(4999) + b"\1")


def test_buffers_of_every_kind_and_shape():
    words = np.zeros((16, 64), np.uint64)
    assert comparing.is_zero(words)
    assert comparing.runs_of_zero(words).tolist() == [[0, 2, 0]]
    with mmap.mmap(-1, 8192) as mapped:
        assert comparing.is_zero(mapped)
    with pytest.raises(TypeError):
        comparing.is_zero(words[:, ::2])


def test_aligned_buffer_starts_on_a_piece():
    for length in (1, 4096, 1 << 20):
        buffer = comparing.aligned_buffer(length)
        assert buffer.shape == (length,)
        assert buffer.ctypes.data % PIECE == 0
        assert buffer.flags.writeable
    assert comparing.aligned_buffer(0).shape == (0,)


def test_variant_in_use_is_one_of_those_there_are():
    assert comparing.kernel_variant() in comparing.available_variants()


def test_threads_scan_at_the_same_time_without_disturbing_one_another():
    inputs = [noise(64, seed) for seed in range(4)]
    wanted = [leaves(data).tolist() for data in inputs]
    results: list[list[int]] = [[] for _ in inputs]

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = scanned(inputs[i], np.zeros(64, np.uint64))[0].tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == wanted
