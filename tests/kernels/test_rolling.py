"""Every CPU variant of the rolling kernel against its plain-Python twin, and what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import rolling_twins as twins
from kernels.rolling_twins import WINDOW, noise
from standby import chunking
from standby._kernels import blocks, rolling, variants
from standby.errors import ConfigurationError
from standby.units import KiB, MiB

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
SIZES = [(64, 128, 256), (64, 300, 1000), (100, 512, 2048), (256, 2048, 8192)]

SETTINGS = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=rolling.variants(), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = rolling.variant()
    rolling.select(request.param)
    yield request.param
    rolling.select(before)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes of noise, runs, short and long patterns and text, of any length up to some strips."""
    data = bytearray()
    for kind, size, seed in draw(
        st.lists(
            st.tuples(
                st.sampled_from(["noise", "run", "pattern", "words"]),
                st.sampled_from([0, 1, 15, 16, 63, 64, 65, 500, 4095, 4096, 4097]),
                st.integers(0, 255),
            ),
            max_size=5,
        )
    ):
        if kind == "noise":
            data += noise(size, seed)
        elif kind == "run":
            data += bytes([seed]) * size
        elif kind == "pattern":
            data += (noise(1 + seed % 50, seed) * size)[:size]
        else:
            data += (b"%d words of a log line; " % seed * size)[:size]
    return bytes(data)


def anchors_of(data: bytes, key: bytes = KEY, period: int = 2048) -> list[tuple[int, int]]:
    positions, fingerprints = chunking.anchors(data, key, period)
    return list(zip(positions.tolist(), fingerprints.tolist(), strict=True))


def test_the_twin_computes_siphash_as_its_authors_do():
    first, second = twins.siphash(bytes(range(16)), b"")
    output = (first.to_bytes(8, "little") + second.to_bytes(8, "little")).hex()
    assert output == "a3817f04ba25a8e66df67214c7550293"


@given(contents(), st.sampled_from(chunking.PERIODS[:5]), st.sampled_from([KEY, OTHER_KEY]))
@SETTINGS
def test_anchors_equal_their_twin(data: bytes, period: int, key: bytes):
    assert anchors_of(data, key, period) == twins.anchors(data, key, period)


@given(contents(), st.sampled_from(SIZES))
@SETTINGS
def test_cuts_equal_their_twin(data: bytes, sizes: tuple[int, int, int]):
    assert chunking.cuts(data, KEY, *sizes).tolist() == twins.cuts(data, KEY, sizes)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 63, 64, 65, 4095, 4126, 4127, 4128, 4160, 8223])
def test_lengths_around_windows_and_strips_equal_the_twin(length: int):
    data = noise(length, 5)
    assert anchors_of(data, KEY, 128) == twins.anchors(data, KEY, 128)
    assert chunking.cuts(data, KEY, 64, 128, 256).tolist() == twins.cuts(data, KEY, (64, 128, 256))


def test_a_buffer_at_any_alignment_gives_the_same():
    wanted = anchors_of(noise(9000), KEY, 128)
    for start in range(33):
        room = np.zeros(9000 + start, np.uint8)
        room[start:] = np.frombuffer(noise(9000), np.uint8)
        positions, _ = chunking.anchors(room[start:], KEY, 128)
        assert positions.tolist() == [at for at, _ in wanted]


def test_all_variants_find_the_same_in_more_data_than_a_twin_can_check():
    data = noise(3 * MiB, 11) + bytes(MiB // 2) + noise(777, 12) * 500
    rolling.select("scalar")
    wanted = [chunking.cuts(data, KEY), chunking.cuts(data, KEY, 64, 256, 2048)]
    wanted += chunking.anchors(data, KEY, 512)
    for name in rolling.variants():
        rolling.select(name)
        found = [chunking.cuts(data, KEY), chunking.cuts(data, KEY, 64, 256, 2048)]
        found += chunking.anchors(data, KEY, 512)
        assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True)), name


@given(
    contents(), st.sampled_from(SIZES), st.lists(st.integers(0, 6000), max_size=8), st.booleans()
)
@SETTINGS
def test_cuts_do_not_depend_on_how_a_stream_is_fed(
    data: bytes, sizes: tuple[int, int, int], parts: list[int], by_bytes: bool
):
    stream = chunking.CutStream(KEY, *sizes)
    found: list[int] = []
    places = sorted({0, len(data), *(part for part in parts if part < len(data))})
    if by_bytes:
        places = sorted({*places, *range(min(len(data), 200))})
    for start, stop in pairwise(places):
        found += stream.feed(data[start:stop]).tolist()
        assert stream.length == stop
        assert stream.last_cut == (found[-1] if found else 0)
    if stream.length > stream.last_cut:
        found.append(stream.length)
    assert found == chunking.cuts(data, KEY, *sizes).tolist()


def test_a_cut_is_told_as_soon_as_it_is_decided():
    stream = chunking.CutStream(KEY, 64, 128, 256)
    assert stream.feed(bytes(255)).tolist() == []
    assert stream.feed(bytes(1)).tolist() == [256]
    assert stream.feed(b"").tolist() == []
    assert stream.feed(bytes(600)).tolist() == [512, 768]
    assert (stream.length, stream.last_cut) == (856, 768)


def test_sizes_stay_within_their_bounds_and_near_the_target():
    data = noise(4 * MiB, 3)
    for min_size, target_size, max_size in [(64, 256, 1024), (1 * KiB, 4 * KiB, 16 * KiB)]:
        ends = chunking.cuts(data, KEY, min_size, target_size, max_size)
        sizes = np.diff(ends, prepend=0)
        assert ends[-1] == len(data)
        assert sizes[:-1].min() >= min_size
        assert sizes.max() <= max_size
        assert 1.0 < sizes.mean() / target_size < 1.3


@pytest.mark.parametrize("period", chunking.PERIODS)
def test_anchors_are_as_rare_as_their_period_and_keep_their_distance(period: int):
    data = noise(8 * MiB, 4)
    positions, _ = chunking.anchors(data, KEY, period)
    expected = len(data) / period
    assert abs(len(positions) - expected) < 6 * expected**0.5
    assert positions.min() >= WINDOW
    assert np.diff(positions).min() > period // 32


def test_a_fingerprint_depends_on_key_and_window_alone():
    data = noise(256 * KiB, 6)
    rare, often = dict(anchors_of(data, KEY, 4096)), dict(anchors_of(data, KEY, 128))
    shared = rare.keys() & often.keys()
    assert len(shared) > 10
    assert all(rare[at] == often[at] for at in shared)
    _, sip_key = chunking.derived(KEY)
    at, fingerprint = next(iter(rare.items()))
    assert twins.siphash(sip_key, data[at - WINDOW : at])[1] == fingerprint


def test_another_key_finds_other_places():
    data = noise(256 * KiB, 7)
    one, other = (set(chunking.anchors(data, key, 512)[0].tolist()) for key in (KEY, OTHER_KEY))
    assert min(len(one), len(other)) > 300
    assert len(one & other) < 20
    assert chunking.derived(KEY) != chunking.derived(OTHER_KEY)


def test_fingerprints_use_all_their_bits():
    _, fingerprints = chunking.anchors(noise(2 * MiB, 8), KEY, 128)
    shares = [float((fingerprints >> np.uint64(bit) & np.uint64(1)).mean()) for bit in range(64)]
    assert len(set(fingerprints.tolist())) == len(fingerprints) > 10_000
    assert 0.46 < min(shares) < max(shares) < 0.54


def test_nothing_in_a_run_of_one_byte_is_an_anchor():
    for byte in range(256):
        run = bytes([byte]) * 2000
        assert anchors_of(run, KEY, 128) == []
        assert [at for at, _ in anchors_of(noise(500) + run, KEY, 128) if at > 532] == []
        assert chunking.cuts(run, KEY, 64, 256, 1000).tolist() == [1000, 2000]


def test_zeros_and_ones_are_no_hits_at_all_whatever_the_key():
    for number in range(50):
        key = number.to_bytes(32, "little")
        for byte in (b"\0", b"\xff"):
            assert twins.hits(byte * 40, key, 4) == []


@pytest.mark.parametrize("length", [2, 3, 4, 5, 7, 8, 12, 16, 24, 32])
def test_repeating_data_gives_no_anchors_up_to_the_distance(length: int):
    for seed in range(20):
        data = noise(length, seed) * (4096 // length)
        assert [at for at, _ in anchors_of(data, KEY, 1024) if at > WINDOW + length] == []


def test_data_in_parts_with_overlap_gives_the_anchors_of_the_whole():
    data = noise(64 * KiB, 9) + noise(100, 9) * 100 + noise(64 * KiB, 10)
    period, part = 256, 5000
    overlap = chunking.WINDOW + period // 32
    found = []
    for start in range(0, len(data), part):
        begin = max(0, start - overlap)
        for at, mark in anchors_of(data[begin : start + part], KEY, period):
            if begin + at > start:
                found.append((begin + at, mark))
    assert found == anchors_of(data, KEY, period)


def edits() -> list[tuple[bytes, bytes, int]]:
    """(before, after, where they differ) for insertions and deletions of 1 to 5000 bytes."""
    chance = np.random.default_rng(12)
    made = []
    for size in (1, 2, 3, 17, 64, 100, 1000, 5000) * 3:
        before = noise(96 * KiB, int(chance.integers(1 << 30)))
        place = int(chance.integers(20 * KiB, 40 * KiB))
        made.append((before, before[:place] + noise(size, size) + before[place:], place))
        made.append((before, before[:place] + before[place + size :], place))
    return made


@pytest.mark.parametrize("sizes", [(256, 1 * KiB, 4 * KiB), (64, 256, 1 * KiB)])
def test_cuts_fall_into_step_again_behind_an_edit(sizes: tuple[int, int, int]):
    apart = []
    for before, after, place in edits():
        shift = len(after) - len(before)
        old, new = (set(chunking.cuts(data, KEY, *sizes).tolist()) for data in (before, after))
        assert {at for at in old if at <= place} == {at for at in new if at <= place}
        moved = {at + shift for at in old}
        shared = sorted(at for at in moved & new if at > place + max(shift, 0))
        assert {at for at in new if at >= shared[0]} == {at for at in moved if at >= shared[0]}
        apart.append(shared[0] - place - max(shift, 0))
    assert sum(apart) / len(apart) < 3 * sizes[1]
    assert max(apart) < 24 * sizes[1]


def test_anchors_beyond_an_edit_are_the_same():
    reach = WINDOW + 512 // 32
    for before, after, place in edits():
        shift = len(after) - len(before)
        old, new = (anchors_of(data, KEY, 512) for data in (before, after))
        assert [a for a in old if a[0] <= place] == [a for a in new if a[0] <= place]
        behind = place + reach + max(shift, 0)
        assert [(at + shift, mark) for at, mark in old if at + shift > behind] == [
            (at, mark) for at, mark in new if at > behind
        ]


def test_writes_stay_within_the_arrays_it_is_given():
    data = noise(6400, 13)
    rules = rolling.Rules(np.array([1, 0, 1, 1], np.uint16), bytes(16), 1, 1)
    room = len(data) // 2 + 1
    positions, fingerprints = np.full(room + 2, -7, np.int64), np.full(room + 2, 7, np.uint64)
    found = rules.anchors(data, 1 << 32, positions[1:-1], fingerprints[1:-1])
    assert found > 1000
    assert positions[0] == positions[found + 1] == positions[-1] == -7
    assert fingerprints[0] == fingerprints[found + 1] == fingerprints[-1] == 7
    cuts = np.full(102, -7, np.int64)
    found = rolling.Stream(rules, 64, 64, 64, 1 << 32, 1 << 32).feed(data, cuts[1:-1])
    assert found == 100
    assert cuts[1:-1].tolist() == list(range(64, 6401, 64))
    assert cuts[0] == cuts[-1] == -7


def rules() -> rolling.Rules:
    return rolling.Rules(np.array([1, 0, 1, 1], np.uint16), bytes(16), 4, 3)


def stream() -> rolling.Stream:
    return rolling.Stream(rules(), 64, 128, 256, 0, 0)


WORDS, MARKS = np.zeros(300, np.int64), np.zeros(300, np.uint64)

WRONG = {
    "key: short": lambda: chunking.anchors(b"", bytes(31)),
    "key: long": lambda: chunking.cuts(b"", bytes(33)),
    "period: too small": lambda: chunking.anchors(b"", KEY, 64),
    "period: too large": lambda: chunking.anchors(b"", KEY, 1 << 14),
    "period: no power": lambda: chunking.anchors(b"", KEY, 1000),
    "sizes: min": lambda: chunking.cuts(b"", KEY, 63, 256, 512),
    "sizes: target": lambda: chunking.CutStream(KEY, 64, 127, 512),
    "sizes: descending": lambda: chunking.CutStream(KEY, 512, 256, 1024),
    "sizes: max": lambda: chunking.CutStream(KEY, 64, 256, 255),
    "rules: three constants": lambda: rolling.Rules(np.ones(3, np.uint16), bytes(16), 4, 1),
    "rules: even": lambda: rolling.Rules(np.zeros(4, np.uint16), bytes(16), 4, 1),
    "rules: key": lambda: rolling.Rules(np.ones(4, np.uint16), bytes(15), 4, 1),
    "rules: bits": lambda: rolling.Rules(np.ones(4, np.uint16), bytes(16), 17, 1),
    "rules: spacing": lambda: rolling.Rules(np.ones(4, np.uint16), bytes(16), 4, 0),
    "anchors: out too short": lambda: rules().anchors(bytes(4000), 0, WORDS, MARKS),
    "anchors: out differs": lambda: rules().anchors(bytes(40), 0, WORDS, MARKS[1:]),
    "anchors: overlap": lambda: rules().anchors(WORDS.view(np.uint8)[:80], 0, WORDS, MARKS),
    "anchors: outputs overlap": lambda: rules().anchors(b"", 0, WORDS, WORDS.view(np.uint64)),
    "stream: sizes": lambda: rolling.Stream(rules(), 0, 128, 256, 0, 0),
    "feed: out too short": lambda: stream().feed(bytes(6400), WORDS[:99]),
    "feed: overlap": lambda: stream().feed(WORDS.view(np.uint8)[:80], WORDS),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_refuses_what_does_not_fit(call):
    with pytest.raises(ValueError):
        call()


def test_refuses_none_and_read_only_outputs():
    frozen = np.zeros(300, np.int64)
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        rules().anchors(None, 0, WORDS, MARKS)
    with pytest.raises(TypeError):
        stream().feed(None, WORDS)
    with pytest.raises(TypeError):
        rolling.Stream(None, 64, 128, 256, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        stream().feed(b"", frozen)


def test_takes_every_kind_of_flat_buffer():
    data = noise(4096)
    wanted = anchors_of(data, KEY, 128)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint64)):
        assert anchors_of(buffer, KEY, 128) == wanted
        assert chunking.cuts(buffer, KEY)[-1] == 4096


def test_the_environment_forces_a_variant_and_an_unknown_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, variant: str
):
    monkeypatch.setenv(variants.VARIABLE, variant)
    rolling.select("scalar")
    variants.choose(rolling)
    assert rolling.variant() == chunking.kernel_variant() == variant
    monkeypatch.setenv(variants.VARIABLE, "quantum")
    with pytest.raises(ConfigurationError, match=r"quantum.*Choose one of scalar"):
        variants.choose(rolling)
    with pytest.raises(ValueError, match="quantum"):
        rolling.select("quantum")


def test_every_variant_of_the_block_kernels_is_one_of_this_too():
    """STANDBY_KERNEL names one for all of them."""
    assert rolling.variants() == blocks.variants()
