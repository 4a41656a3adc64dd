"""The lookup table against a dict, with the few bits it keeps of a name taken into account."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from standby._kernels import wan_cache
from standby.wan.table import BUDGET_MIN, LOCATION_LAST, NONE, SAMPLED_ONE_IN, LookupTable

MiB = 1 << 20
SLOTS_OF_A_SHARD = wan_cache.BUCKETS_LAST * wan_cache.SLOTS


def names_of(count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.frombuffer(random.bytes(16 * count), np.uint8).reshape(count, 16)


def numbers(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.uint64)


def wrong(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((found != wanted).mean())


class AgainstADict(RuleBasedStateMachine):
    """Any sequence of calls on a table of one shard gives what a dict gives."""

    names = names_of(3000, seed=7)
    """Few enough that no two of them share all bits that are kept: checked below."""

    @initialize()
    def begin(self) -> None:
        self.table = LookupTable(BUDGET_MIN)
        self.twin: dict[int, int] = {}

    @rule(start=st.integers(0, 2999), count=st.integers(0, 1500), at=st.integers(0, 1 << 40))
    def insert(self, start: int, count: int, at: int) -> None:
        chosen = self.names[start : start + count]
        assert self.table.insert(chosen, numbers(len(chosen), at)) == len(chosen)
        self.twin.update((start + i, at + i) for i in range(len(chosen)))

    @rule(start=st.integers(0, 2999), count=st.integers(1, 1500), shift=st.integers(0, 1))
    def remove(self, start: int, count: int, shift: int) -> None:
        indices = [i for i in range(start, min(start + count, 3000)) if i in self.twin]
        at = np.array([self.twin[i] + shift for i in indices], np.uint64)
        removed = self.table.remove(self.names[indices], at)
        assert removed == (0 if shift else len(indices))
        for i in indices if not shift else []:
            del self.twin[i]

    @rule(start=st.integers(0, 1 << 40), length=st.integers(0, 1 << 39))
    def remove_between(self, start: int, length: int) -> None:
        gone = [i for i, at in self.twin.items() if start <= at < start + length]
        assert self.table.remove_between(start, start + length) == len(gone)
        for i in gone:
            del self.twin[i]

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.twin.clear()

    @invariant()
    def equal(self) -> None:
        wanted = np.full(3000, NONE)
        for i, at in self.twin.items():
            wanted[i] = at
        assert (self.table.lookup(self.names) == wanted).all()
        assert self.table.entries == len(self.twin)
        assert not self.table.is_sampled


AgainstADict.TestCase.settings = settings(
    deadline=None, derandomize=True, max_examples=40, stateful_step_count=15
)
TestAgainstADict = AgainstADict.TestCase


def test_the_names_of_the_twin_differ_in_the_bits_that_are_kept():
    low = AgainstADict.names[:, :4].copy().view("<u4")[:, 0] & np.uint32((1 << 29) - 1)
    assert len(np.unique(low)) == 3000


def test_growth_loses_no_name_and_keeps_memory_tight_at_every_size():
    table = LookupTable(4 * MiB)
    names, at = names_of(420_000), numbers(420_000)
    for stop in range(6_000, len(names) + 1, 6_000):
        table.insert(names[stop - 6_000 : stop], at[stop - 6_000 : stop])
        assert table.entries >= stop * 0.999
        used = table.memory_bytes - MiB  # but for the room to rebuild a shard
        assert used / table.entries <= 14, (stop, used)
    assert wrong(table.lookup(names), at) < 1e-3
    assert not table.is_sampled


def test_shards_do_not_grow_all_in_one_call():
    table = LookupTable(32 * MiB)
    names, at = names_of(800_000), numbers(800_000)
    table.insert(names[:300_000], at[:300_000])
    most = 0
    for start in range(300_000, len(names), 2_000):
        before = table._shards[:, 1].copy()
        table.insert(names[start : start + 2_000], at[start : start + 2_000])
        most = max(most, int((table._shards[:, 1] != before).sum()))
    assert 1 <= most <= 8
    assert (table._shards[:, 1] > 2_000).all()


def test_ten_bytes_an_entry_when_full():
    table = LookupTable(2 * MiB)
    count = int(2 * SLOTS_OF_A_SHARD * 0.93)
    table.insert(names_of(count), numbers(count))
    assert not table.is_sampled
    assert table.stats().entries / SLOTS_OF_A_SHARD / 2 > 0.92
    assert 2 * MiB / table.entries < 10


def test_names_never_put_in_are_seldom_answered():
    table = LookupTable(2 * MiB)
    count = int(2 * SLOTS_OF_A_SHARD * 0.9)
    table.insert(names_of(count), numbers(count))
    found = table.lookup(names_of(1_000_000, seed=2))
    assert 0 < (found != NONE).mean() < 4e-4


def test_beyond_its_budget_it_keeps_samples_and_says_so():
    table = LookupTable(MiB)
    names, at = names_of(3 * SLOTS_OF_A_SHARD), numbers(3 * SLOTS_OF_A_SHARD)
    taken = table.insert(names, at)
    assert table.is_sampled
    stats = table.stats()
    assert stats.is_sampled
    assert stats.dropped == len(names) - taken
    is_sample = (names[:, 0] & 15) == 0
    found = table.lookup(names)
    assert wrong(found[is_sample], at[is_sample]) < 0.02  # samples share fewer bits: 17
    again = names_of(500_000, seed=3)
    table.insert(again, numbers(500_000, 1 << 30))
    assert table.entries < len(names) // SAMPLED_ONE_IN * 4
    kept = (again[:, 0] & 15) == 0
    later = table.lookup(again)
    assert wrong(later[kept], numbers(500_000, 1 << 30)[kept]) < 0.03
    assert (later[~kept] == NONE).all()


def test_what_finds_no_room_even_as_a_sample_is_dropped():
    table = LookupTable(MiB)
    names = names_of(2_400_000)
    samples = np.ascontiguousarray(names[(names[:, 0] & 15) == 0])
    table.insert(names_of(SLOTS_OF_A_SHARD, seed=9), numbers(SLOTS_OF_A_SHARD))
    assert table.is_sampled
    table.insert(samples, numbers(len(samples)))
    before = table.stats()
    assert before.entries <= SLOTS_OF_A_SHARD
    assert before.entries > 0.95 * SLOTS_OF_A_SHARD
    more = samples[:1000] ^ np.uint8(0x40)
    assert table.insert(more, numbers(1000)) < 20
    assert table.stats().dropped >= before.dropped + 980
    table.clear()
    assert (table.entries, table.is_sampled) == (0, False)
    assert table.insert(names[:1000], numbers(1000)) == 1000
    assert (table.lookup(names[:1000]) == numbers(1000)).all()


def test_six_bytes_of_a_name_are_enough_to_find_it():
    table = LookupTable(37 * MiB)
    names = names_of(50_000)
    table.insert(names, numbers(50_000))
    asked = np.zeros_like(names)
    asked[:, [0, 1, 2, 3, 14, 15]] = names[:, [0, 1, 2, 3, 14, 15]]
    assert (table.lookup(asked) == table.lookup(names)).all()


def test_the_last_location_of_a_name_given_twice_counts_within_a_call_too():
    table = LookupTable(MiB)
    names = names_of(100)
    twice = np.concatenate([names, names])
    table.insert(twice, numbers(200))
    assert table.entries == 100
    assert (table.lookup(names) == numbers(100, 100)).all()


def test_holds_the_largest_location_and_refuses_one_beyond():
    table = LookupTable(MiB)
    names = names_of(7)
    largest = np.full(7, LOCATION_LAST, np.uint64)
    table.insert(names, largest)
    assert (table.lookup(names) == largest).all()
    with pytest.raises(ValueError, match="at most"):
        table.insert(names, largest + np.uint64(1))
    assert (table.lookup(names) == largest).all()
    assert table.remove_between(LOCATION_LAST, 1 << 64) == 7
    assert table.entries == 0


def test_churn_at_the_full_budget_goes_on_and_misses_stay_cheap():
    table = LookupTable(MiB)
    count = int(SLOTS_OF_A_SHARD * 0.9)
    names, at = names_of(count * 3), numbers(count * 3)
    table.insert(names[:count], at[:count])
    step = 5_000
    for start in range(0, count * 2 - step, step):
        table.remove(names[start : start + step], at[start : start + step])
        table.insert(names[start + count :][:step], at[start + count :][:step])
    assert not table.is_sampled
    last = slice(start + step, start + step + count)
    assert wrong(table.lookup(names[last]), at[last]) < 2e-3
    buckets = table.shard(0).reshape(-1, 64)
    filters = np.unpackbits(buckets[:, 14:16], axis=1).sum() / (16 * len(buckets))
    assert filters < 0.3


def test_look_ups_beside_a_writer_see_every_name_put_in_before():
    table = LookupTable(8 * MiB)
    names, at = names_of(400_000), numbers(400_000)
    sure, sure_at = names[:20_000], at[:20_000]
    table.insert(sure, sure_at)
    stable = table.lookup(sure) == sure_at
    done = threading.Event()
    worst: list[int] = []

    def read() -> None:
        while not done.is_set():
            found = table.lookup(sure)
            # a later name may share all bits with an earlier one, and replaces it
            worst.append(int((found[stable] == NONE).sum()))
            worst.append(int((found[stable] > 400_000).sum()))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for start in range(20_000, 400_000, 2_000):
        table.insert(names[start : start + 2_000], at[start : start + 2_000])
    done.set()
    for reader in readers:
        reader.join()
    assert worst
    assert max(worst) == 0


def test_a_look_up_that_meets_a_shard_in_change_says_so():
    table = LookupTable(MiB)
    names = names_of(10)
    table.insert(names, numbers(10))
    shards = table._shards
    shards[0, 0] += 1  # as if a writer were at it
    found = np.empty(10, np.uint64)
    assert wan_cache.lookup(table._room, shards, names, found, True) == 10
    assert (found == np.uint64(wan_cache.BUSY)).all()
    shards[0, 0] += 1
    assert (table.lookup(names) == numbers(10)).all()


@pytest.mark.parametrize("prefetches", [False, True])
@pytest.mark.parametrize("count", [1, 10, 11, 21, 22, 32, 33, 64, 65, 1000])
def test_every_count_gives_the_same_answers_with_and_without_prefetch(prefetches: bool, count: int):
    table = LookupTable(MiB)
    names = names_of(100_000)
    table.insert(names, numbers(100_000))
    asked = np.concatenate([names[:count], names_of(count, seed=5), names[-count:]])
    found = np.empty(3 * count, np.uint64)
    assert wan_cache.lookup(table._room, table._shards, asked, found, prefetches) == 0
    one_by_one = [int(table.lookup(asked[i : i + 1])[0]) for i in range(len(asked))]
    assert found.tolist() == one_by_one
    assert wrong(found[:count], numbers(count)) < 0.01


def test_buckets_of_any_content_lead_no_loop_out_of_the_room():
    random = np.random.default_rng(4)
    table = LookupTable(2 * MiB)
    table.take_sizes(np.array([320, wan_cache.BUCKETS_LAST], np.uint32), is_sampled=False)
    for index in range(2):
        room = table.shard(index)
        room[:] = np.frombuffer(random.bytes(len(room)), np.uint8)
    table.recount()
    names = names_of(20_000)
    table.lookup(names)
    table.insert(names, numbers(20_000))
    table.remove(names, table.lookup(names) & np.uint64((1 << 48) - 1))
    table.remove_between(0, 1 << 47)
    table.insert(names_of(300_000, seed=8), numbers(300_000))
    assert table.entries <= 2 * SLOTS_OF_A_SHARD


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.insert(names_of(2), numbers(3)),
        lambda table: table.insert(names_of(2), np.zeros(2, np.int64)),
        lambda table: table.insert(np.zeros((2, 15), np.uint8), numbers(2)),
        lambda table: table.lookup(np.zeros(16, np.uint8)),
        lambda table: table.lookup(np.zeros((1, 16), np.int8)),
        lambda table: table.remove(names_of(2), numbers(1)),
        lambda table: table.remove_between(-1, 5),
        lambda _: LookupTable(BUDGET_MIN - 1),
        lambda table: table.take_sizes(np.array([0], np.uint32), is_sampled=False),
        lambda table: table.take_sizes(np.array([257], np.uint32), is_sampled=False),
        lambda table: table.take_sizes(np.array([1 << 20], np.uint32), is_sampled=False),
    ],
)
def test_refuses_what_does_not_fit(call):
    with pytest.raises(ValueError):
        call(LookupTable(MiB))


def test_nothing_to_do_is_done():
    table = LookupTable(MiB)
    assert table.lookup(names_of(0)).shape == (0,)
    assert table.insert(names_of(0), numbers(0)) == 0
    assert table.remove(names_of(0), numbers(0)) == 0
    assert table.remove_between(5, 5) == 0


def test_the_kernel_refuses_buffers_that_overlap_or_are_too_small():
    table = LookupTable(MiB)
    room, shards, scratch = table._room, table._shards, table._scratch
    names, at, counts = names_of(4), numbers(4), np.zeros(3, np.int64)
    inside = room[:64].reshape(4, 16)
    calls = [
        lambda: wan_cache.lookup(room[:-64], shards, names, at.copy(), True),
        lambda: wan_cache.lookup(room, shards[:, :3].copy(), names, at.copy(), True),
        lambda: wan_cache.lookup(room, shards, names, at[:3].copy(), True),
        lambda: wan_cache.lookup(room, shards, names, room[:32].view(np.uint64), True),
        lambda: wan_cache.insert(room, shards, inside, at, 0, False, scratch, counts),
        lambda: wan_cache.insert(room, shards, names, at, 5, False, scratch, counts),
        lambda: wan_cache.insert(room, shards, names, at, 0, False, scratch[1:], counts),
        lambda: wan_cache.insert(room, shards, names, at, 0, False, scratch, counts[1:]),
        lambda: wan_cache.remove(room, shards, inside, at),
        lambda: wan_cache.remove_between(room, shards, 0, 2, 0, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("run", [1, 3, 7, 8, 9, 64])
def test_known_and_unknown_names_in_runs_are_answered_as_one_by_one(run: int):
    table = LookupTable(2 * MiB)
    names = names_of(200_000)
    table.insert(names, numbers(len(names)))
    asked = names_of(20_000, seed=2).copy()
    known = np.arange(len(asked)) // run % 2 == 0
    asked[known] = names[: known.sum()]
    plain = np.empty(len(asked), np.uint64)
    assert wan_cache.lookup(table._room, table._shards, asked, plain, False) == 0
    assert (table.lookup(asked) == plain).all()
    assert (plain[known] != NONE).all()
    assert (plain[~known] != NONE).mean() < 1e-2
