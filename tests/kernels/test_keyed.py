"""Every CPU variant of the keyed digests against the blake3 package."""

from __future__ import annotations

from collections.abc import Iterator

import blake3
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby._kernels import keyed, variants
from standby.errors import ConfigurationError
from standby.wan import names as naming

PIECE = 4096
KEY = bytes(range(100, 132))

KERNELS = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=keyed.variants(), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = keyed.variant()
    keyed.select(request.param)
    yield request.param
    keyed.select(before)


def noise(length: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def twin(data: bytes, key: bytes = KEY) -> list[bytes]:
    return [
        blake3.blake3(data[at : at + PIECE].ljust(PIECE, b"\0"), key=key).digest(16)
        for at in range(0, len(data), PIECE)
    ]


def rows(names: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in names]


def test_the_key_and_the_data_of_the_published_test_vectors():
    """BLAKE3's test_vectors.json: input bytes 0..250 repeated, this key, 4096 bytes of input."""
    key = b"whats the Elvish word for friend"
    data = (bytes(range(251)) * 17)[:PIECE]
    assert naming.names(data, key)[0].tobytes() == blake3.blake3(data, key=key).digest(16)
    assert rows(naming.names(data, key)) == [bytes.fromhex("befc660aea2f1718884cd8deb9902811")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64])
@pytest.mark.parametrize("cut", [0, 1, 64, 1023, 1024, 4095])
def test_every_piece_has_the_name_that_the_blake3_package_gives(count: int, cut: int):
    data = noise(count * PIECE)[: max(0, count * PIECE - cut)]
    assert rows(naming.names(data, KEY)) == twin(data)


@given(st.binary(max_size=3 * PIECE), st.binary(min_size=32, max_size=32))
@KERNELS
def test_any_data_any_key(data: bytes, key: bytes):
    assert rows(naming.names(data, key)) == twin(data, key)


@given(st.lists(st.integers(0, 20 * PIECE - 1), max_size=70))
@KERNELS
def test_pieces_at_any_offset_in_any_order_reach_into_zeros(offsets: list[int]):
    data = noise(20 * PIECE - 7)
    offsets = [min(offset, len(data) - 1) for offset in offsets]
    found = naming.names_at(data, np.array(offsets, np.int64), KEY)
    assert rows(found) == [twin(data[at : at + PIECE])[0] for at in offsets]


def test_rows_and_extents_name_the_same_pieces_as_the_whole():
    data = noise(40 * PIECE)
    every = naming.names(data, KEY)
    wanted = np.array([3, 0, 39, 7, 7])
    assert (naming.names_of_rows(data, wanted, KEY) == every[wanted]).all()
    extents = np.array([[2 * PIECE, 3 * PIECE], [0, 0], [30 * PIECE, 10 * PIECE], [9 * PIECE, 1]])
    numbers = [2, 3, 4, *range(30, 40), 9]
    assert (naming.names_of_extents(data, extents, KEY) == every[numbers]).all()
    assert naming.names_of_extents(data, np.empty((0, 2), np.int64), KEY).shape == (0, 16)


def test_takes_every_kind_of_flat_buffer_at_any_address_and_copies_nothing():
    data = noise(5 * PIECE + 3)
    wanted = twin(data[3:])
    room = np.frombuffer(data, np.uint8)[3:]
    for view in (data[3:], bytearray(data[3:]), memoryview(data)[3:], room):
        assert rows(naming.names(view, KEY)) == wanted
    assert rows(naming.names(room.reshape(5, PIECE), KEY)) == wanted
    assert rows(naming.names(room.reshape(5, PIECE).view(np.uint64), KEY)) == wanted
    with pytest.raises(TypeError):
        naming.names(room[::2], KEY)


def test_writes_where_it_is_told_and_nowhere_else():
    data = noise(3 * PIECE)
    room = np.full((5, 16), 0x5A, np.uint8)
    assert naming.names(data, KEY, room[1:4]) is not None
    assert rows(room[1:4]) == twin(data)
    assert (room[[0, 4]] == 0x5A).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: naming.names(bytes(PIECE), KEY[1:]),
        lambda: naming.names(bytes(PIECE), KEY + b"x"),
        lambda: naming.names(bytes(PIECE), KEY, np.empty((2, 16), np.uint8)),
        lambda: naming.names(b"", KEY, np.empty((1, 16), np.uint8)),
        lambda: naming.names(bytes(PIECE + 1), KEY, np.empty((1, 16), np.uint8)),
        lambda: naming.names(bytes(PIECE), KEY, np.empty((1, 17), np.uint8)),
        lambda: naming.names_at(bytes(PIECE), np.array([PIECE]), KEY),
        lambda: naming.names_at(bytes(PIECE), np.array([-1]), KEY),
        lambda: naming.names_at(bytes(PIECE), np.array([0]), KEY, np.empty((2, 16), np.uint8)),
        lambda: naming.names_of_rows(bytes(PIECE), np.array([2**53]), KEY),
        lambda: naming.names_of_rows(bytes(PIECE), np.array([-1]), KEY),
        lambda: naming.names_of_extents(bytes(PIECE), np.array([[0, -PIECE]]), KEY),
        lambda: naming.names_of_extents(bytes(PIECE), np.array([[1, PIECE]]), KEY),
        lambda: naming.names_of_extents(bytes(PIECE), np.array([[0, 1 << 62]]), KEY),
        lambda: naming.names_of_extents(bytes(PIECE), np.array([[-PIECE, PIECE]]), KEY),
    ],
)
def test_refuses_what_does_not_fit(call):
    with pytest.raises(ValueError):
        call()


def test_refuses_buffers_that_overlap():
    room = np.zeros(2 * PIECE, np.uint8)
    with pytest.raises(ValueError, match="overlap"):
        naming.names(room[:PIECE], KEY, room[PIECE - 1 : PIECE + 15].reshape(1, 16))
    with pytest.raises(ValueError, match="overlap"):
        naming.names(room[:PIECE], room[PIECE : PIECE + 32], room[PIECE + 16 :][:16].reshape(1, 16))


@pytest.mark.parametrize("count", [0, 1, 3, 16, 17, 65])
def test_digests_of_pieces_are_those_of_the_package_and_begin_with_the_names(count: int):
    data = noise(count * PIECE)
    made = naming.piece_digests(data, KEY)
    assert rows(made) == [
        blake3.blake3(data[at : at + PIECE], key=KEY).digest(32)
        for at in range(0, len(data), PIECE)
    ]
    assert (made[:, :16] == naming.names(data, KEY)).all()
    chosen = np.arange(count)[::-2] * PIECE
    assert (naming.piece_digests(data, KEY, chosen) == made[::-2]).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_marks_are_the_first_two_bytes_of_each_part_s_digest(count: int):
    data = noise(count * PIECE)
    made = naming.marks(np.frombuffer(data, np.uint8).reshape(-1, PIECE), KEY)
    assert made.shape == (count, 16)
    wanted = [
        int.from_bytes(blake3.blake3(data[at : at + 256], key=KEY).digest(2), "little")
        for at in range(0, len(data), 256)
    ]
    assert made.reshape(-1).tolist() == wanted


def test_marks_of_any_number_of_parts():
    data = noise(40 * 256)
    for count in (1, 2, 3, 4, 7, 8, 15, 16, 17, 33):
        out = np.full((count + 1, 2), 0x5A, np.uint8)
        keyed.marks(data[: count * 256], KEY, out[:count])
        assert rows(out[:count]) == [
            blake3.blake3(data[at : at + 256], key=KEY).digest(2)
            for at in range(0, count * 256, 256)
        ]
        assert (out[count] == 0x5A).all()
    for length, count in ((256, 2), (255, 1), (257, 1)):
        with pytest.raises(ValueError):
            keyed.marks(data[:length], KEY, np.empty((count, 2), np.uint8))
    with pytest.raises(ValueError):
        keyed.marks(data[:256], KEY[1:], np.empty((1, 2), np.uint8))


def test_scalar_is_always_there_and_an_unknown_variant_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
):
    assert naming.available_variants()[0] == "scalar"
    assert naming.kernel_variant() in naming.available_variants()
    monkeypatch.setenv(variants.VARIABLE, "quantum")
    with pytest.raises(ConfigurationError, match=r"quantum"):
        variants.choose(keyed)
