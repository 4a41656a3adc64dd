"""The block kernels against their rivals: `pytest -n 0 bench/bench_kernels.py`.

Each contender works on the same bytes in the same run and its result is checked; compare the rows
of one group. `extra_info` records CPU, variant, compiler and commit (`--benchmark-json`).
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from standby import comparing, digesting
from standby._kernels import blocks
from standby.digesting import PIECE, ZERO_LEAF
from standby.files import File
from standby.units import KiB, MiB, TiB

SIZES = [PIECE, 256 * KiB, MiB, 64 * MiB]
"""One piece, a block, a batch, and beyond the cache."""


def _name(size: int) -> str:
    return f"{size // KiB} KiB"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


@pytest.fixture(params=blocks.variants())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = blocks.variant()
    blocks.select(request.param)
    yield request.param
    blocks.select(before)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`measure(function, bytes per call, group)`: benchmarks it, records GB/s from the fastest."""

    def run(function: Callable[[], Any], size: int, group: str) -> Any:
        benchmark.group = group
        few = size > 8 * MiB
        result = benchmark.pedantic(
            function,
            rounds=10 if few else 200,
            iterations=1 if few else max(1, MiB // max(size, 64 * KiB)),
            warmup_rounds=1,
        )
        if benchmark.stats:
            gbps = round(size / benchmark.stats.stats.min / 1e9, 1)
            benchmark.extra_info.update(
                gbps=gbps,
                variant=blocks.variant(),
                cpu=_cpu(),
                compiler=platform.python_compiler(),
                commit=_commit(),
            )
            _figures.append((group, request.node.name, gbps))
        return result

    return run


_figures: list[tuple[str, str, float]] = []


@pytest.fixture(scope="module", autouse=True)
def _print_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for group, name, gbps in sorted(_figures):
            print(f"\n{group:28} {name:52} {gbps:8.1f} GB/s", end="")
        print()


def data_of(size: int) -> np.ndarray:
    data = comparing.aligned_buffer(size)
    data[:] = np.frombuffer(np.random.default_rng(1).bytes(size), np.uint8)
    return data


def wanted_leaves(data: np.ndarray) -> list[int]:
    return [xxhash.xxh3_64_intdigest(data[at : at + PIECE]) for at in range(0, len(data), PIECE)]


@pytest.mark.parametrize("size", SIZES, ids=_name)
def test_scan_of_data(measure, variant: str, size: int):
    data = data_of(size)
    stored = digesting.leaves(data)
    out, runs = np.empty_like(stored), np.empty((len(stored), 3), np.int64)
    found = measure(lambda: comparing.scan(data, stored, out, runs), size, f"scan {_name(size)}")
    assert found == 0
    assert out.tolist() == wanted_leaves(data)


@pytest.mark.parametrize("size", SIZES, ids=_name)
def test_scan_of_data_by_memcpy(measure, size: int):
    data, out = data_of(size), comparing.aligned_buffer(size)
    measure(lambda: np.copyto(out, data), size, f"scan {_name(size)}")
    assert (out == data).all()


@pytest.mark.parametrize("size", SIZES[:3], ids=_name)
def test_scan_of_data_by_xxhash_per_piece(measure, size: int):
    data = data_of(size)
    view = memoryview(data)

    def leaves() -> list[int]:
        digest = xxhash.xxh3_64_intdigest
        return [digest(view[at : at + PIECE]) for at in range(0, size, PIECE)]

    assert measure(leaves, size, f"scan {_name(size)}") == digesting.leaves(data).tolist()


@pytest.mark.parametrize("size", SIZES[1:], ids=_name)
def test_scan_of_data_by_xxhash_in_one(measure, size: int):
    """No leaves, one digest of all: what the hash itself costs."""
    data = data_of(size)
    assert measure(lambda: xxhash.xxh3_64_intdigest(data), size, f"scan {_name(size)}")


@pytest.mark.parametrize("size", SIZES[1:], ids=_name)
def test_scan_of_zeros(measure, variant: str, size: int):
    data = comparing.aligned_buffer(size)
    data[:] = 0
    stored = np.full(size // PIECE, ZERO_LEAF)
    out, runs = np.empty_like(stored), np.empty((len(stored), 3), np.int64)
    group = f"scan zeros {_name(size)}"
    assert measure(lambda: comparing.scan(data, stored, out, runs), size, group) == 0
    assert (out == ZERO_LEAF).all()


def test_scan_of_data_off_alignment(measure, variant: str):
    data = data_of(MiB + PIECE)[16 : 16 + MiB]
    stored = digesting.leaves(data)
    out, runs = np.empty_like(stored), np.empty((len(stored), 3), np.int64)
    assert measure(lambda: comparing.scan(data, stored, out, runs), MiB, "scan 1024 KiB") == 0


@pytest.fixture
def file_of_data(tmp_path: Path) -> Iterator[File]:
    (tmp_path / "data").write_bytes(data_of(64 * MiB).tobytes())
    with File(tmp_path / "data") as file:
        yield file


@pytest.mark.skipif(not comparing.CAN_READ_FILES, reason="no pread on this system")
def test_file_scan(measure, variant: str, file_of_data: File):
    """Read, hash and compare in one call; what differs nowhere stays out of the way."""
    size = file_of_data.size
    windows, segments = np.array([[0, size, 0]]), np.array([[0, size, 0, 0]])
    stored = digesting.leaves(data_of(size))
    leaves, slot = np.empty_like(stored), comparing.aligned_buffer(MiB)
    rows, kept = np.empty((256, 3), np.int64), np.empty(257, np.uint64)

    def scan() -> tuple[int, int, int]:
        found = comparing.FileScan(windows, segments, (file_of_data,), stored, leaves)
        assert found.run(slot, rows, kept)
        return found.made

    assert measure(scan, size, "scan of a file") == (0, 0, 0)
    assert (leaves == stored).all()


def test_file_scan_by_reads_and_xxhash(measure, file_of_data: File):
    size, chunk = file_of_data.size, comparing.READ_CHUNK
    buffer = comparing.aligned_buffer(chunk)

    def read() -> int:
        for offset in range(0, size, chunk):
            file_of_data.read_into(buffer, offset)
            digest = xxhash.xxh3_64_intdigest(buffer)
        return digest

    assert measure(read, size, "scan of a file")


@pytest.mark.parametrize("size", SIZES[1:], ids=_name)
def test_differing_extents(measure, size: int):
    a, b = data_of(size), data_of(size)
    b[size // 2] ^= 1
    group = f"compare {_name(size)}"
    found = measure(lambda: comparing.differing_extents(a, b), size, group)
    assert found.tolist() == [[size // 2 // PIECE, size // 2 // PIECE + 1]]


@pytest.mark.parametrize("size", SIZES[1:], ids=_name)
def test_differing_extents_by_numpy(measure, size: int):
    a, b = data_of(size), data_of(size)
    b[size // 2] ^= 1

    def differing() -> np.ndarray:
        words = (a.view(np.uint64) != b.view(np.uint64)).reshape(-1, PIECE // 8)
        return np.flatnonzero(words.any(axis=1))

    assert measure(differing, size, f"compare {_name(size)}").tolist() == [size // 2 // PIECE]


def test_page_nodes(measure, variant: str):
    leaves = np.random.default_rng(1).integers(0, 1 << 64, (64, 4096), np.uint64)
    nodes = measure(
        lambda: digesting.page_nodes(leaves), leaves.nbytes, "page nodes, 1 GiB of disk"
    )
    blocks_below = digesting.block_nodes(leaves[3])
    assert nodes[3].tobytes() == xxhash.xxh3_128_digest(blocks_below.tobytes())


def test_root_of_a_full_disk_of_16_tib(measure):
    count = 16 * TiB // digesting.PAGE
    numbers = np.arange(count, dtype=np.int64)
    nodes = np.random.default_rng(1).integers(0, 256, (count, 16), np.uint8)
    root = measure(
        lambda: digesting.root_of_pages(16 * TiB, numbers, nodes), nodes.nbytes, "root, 16 TiB"
    )
    assert root != digesting.root_of_pages(16 * TiB, numbers[1:], nodes[1:])


def test_compact(measure):
    data = data_of(MiB)
    runs = np.array([[i, i + 1, 1] for i in range(0, 256, 2)], np.int64)
    group = "compact every other piece"
    assert measure(lambda: comparing.compact(data, runs), MiB, group) == MiB // 2


def test_vector_variants_are_worth_their_code(measure):
    """Each is at least 1.3 times the one before it in cache, or it would not be there."""
    data = data_of(256 * KiB)
    stored = digesting.leaves(data)
    out, runs = np.empty_like(stored), np.empty((len(stored), 3), np.int64)
    before = blocks.variant()
    speeds = []
    try:
        for name in blocks.variants():
            blocks.select(name)
            speeds.append(_best_rate(lambda: comparing.scan(data, stored, out, runs)))
    finally:
        blocks.select(before)
    measure(lambda: None, 1, "nothing")
    _figures.pop()
    for name, slower, faster in zip(blocks.variants()[1:], speeds, speeds[1:], strict=False):
        assert faster > 1.3 * slower, f"{name}: {faster / slower:.2f} times the one before"


def _best_rate(function: Callable[[], Any]) -> float:
    import timeit

    return 1 / min(timeit.repeat(function, number=4, repeat=100))
