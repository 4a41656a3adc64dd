# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A table from names of 4 KiB pieces to locations, in arrays. Owner: standby.wan.table."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t

cdef extern from "wan_cache.h" nogil:
    const size_t BUCKET "WAN_BUCKET"
    const uint32_t FIRST "WAN_FIRST"
    const uint32_t LAST "WAN_LAST"
    const uint32_t STEP "WAN_STEP"
    const int OUTPUTS "WAN_OUTPUTS"
    const int SAMPLED_MASK "WAN_SAMPLED_MASK"
    const uint32_t SAMPLES_MARK "WAN_ONLY_SAMPLES"
    const uint64_t C_NONE "WAN_NONE"
    const uint64_t C_BUSY "WAN_BUSY"
    const uint64_t C_LOCATION_LAST "WAN_LOCATION_LAST"
    ctypedef struct shard_t "wan_shard":
        uint32_t version
    ctypedef struct table_t "wan_table":
        uint8_t *room
        shard_t *shards
        uint32_t shard_count
    size_t c_lookup "wan_lookup"(
        const table_t *, const uint8_t *, size_t, uint64_t *) noexcept
    size_t c_lookup_plainly "wan_lookup_plainly"(
        const table_t *, const uint8_t *, size_t, uint64_t *) noexcept
    int c_insert "wan_insert"(
        const table_t *, const uint8_t *, const uint64_t *, size_t, size_t *, int, uint8_t *,
        int64_t *) noexcept
    size_t c_remove "wan_remove"(
        const table_t *, const uint8_t *, const uint64_t *, size_t) noexcept
    size_t c_remove_between "wan_remove_between"(
        const table_t *, uint32_t, uint32_t, uint64_t, uint64_t) noexcept
    void c_recount "wan_recount"(const table_t *) noexcept

NONE, BUSY, LOCATION_LAST = C_NONE, C_BUSY, C_LOCATION_LAST
BUCKET_BYTES, SHARD_BYTES, SLOTS = BUCKET, BUCKET * LAST, 7
BUCKETS_FIRST, BUCKETS_LAST, BUCKETS_STEP = FIRST, LAST, STEP
SAMPLED_BITS, ONLY_SAMPLES = SAMPLED_MASK, SAMPLES_MARK
include "checks.pxi"


cdef int fill(table_t *table, uint8_t[::1] room, uint32_t[:, ::1] shards) except -1:
    cdef size_t count = shards.shape[0]
    require(shards.shape[1] == 4 and 0 < count < 2**31, "shards must be (n, 4)")
    require(<size_t>room.shape[0] == count * LAST * BUCKET, "room must hold every shard")
    require(<uintptr_t>&room[0] % BUCKET == 0, "room must start on a bucket's border")
    require(apart(&room[0], room.shape[0], &shards[0, 0], 16 * count), "buffers overlap")
    table.room, table.shards = &room[0], <shard_t *>&shards[0, 0]
    table.shard_count = <uint32_t>count
    return 0


def check(uint32_t[:, ::1] shards not None):
    """Refuse sizes that would lead the loops out of the room: once, where shards come from a file;
    every other function only makes sizes that are right."""
    cdef size_t i
    require(shards.shape[1] == 4, "shards must be (n, 4)")
    for i in range(<size_t>shards.shape[0]):
        require(FIRST <= shards[i, 1] <= LAST and shards[i, 1] % STEP == 0,
                "a shard's size is none that shards have")


def lookup(uint8_t[::1] room not None, uint32_t[:, ::1] shards not None,
           const uint8_t[:, ::1] names not None, uint64_t[::1] out not None, bint prefetches):
    cdef table_t table
    cdef size_t count = names.shape[0], busy, places = out.shape[0]
    fill(&table, room, shards)
    require(names.shape[1] == 16 and places == count, "names must be (n, 16), out (n,)")
    require(apart(&names[0, 0], 16 * count, &out[0], 8 * count)
            and apart(&room[0], room.shape[0], &out[0], 8 * count)
            and apart(&shards[0, 0], 16 * <size_t>shards.shape[0], &out[0], 8 * count),
            "buffers overlap")
    with nogil:
        if prefetches:
            busy = c_lookup(&table, &names[0, 0], count, &out[0])
        else:
            busy = c_lookup_plainly(&table, &names[0, 0], count, &out[0])
    return busy


def insert(uint8_t[::1] room not None, uint32_t[:, ::1] shards not None,
           const uint8_t[:, ::1] names not None, const uint64_t[::1] locations not None,
           size_t start, bint only_samples, uint8_t[::1] scratch not None,
           int64_t[::1] counts not None):
    cdef table_t table
    cdef size_t count = names.shape[0], places = locations.shape[0], reached = start
    fill(&table, room, shards)
    require(names.shape[1] == 16 and places == count, "names must be (n, 16), locations (n,)")
    require(start <= count, "start lies behind the names")
    require(<size_t>scratch.shape[0] >= LAST * BUCKET, "scratch must hold a shard")
    require(counts.shape[0] == OUTPUTS, "counts must be (3,)")
    require(apart(&room[0], room.shape[0], &names[0, 0], 16 * count)
            and apart(&room[0], room.shape[0], &locations[0], 8 * count)
            and apart(&room[0], room.shape[0], &scratch[0], scratch.shape[0])
            and apart(&scratch[0], scratch.shape[0], &names[0, 0], 16 * count)
            and apart(&scratch[0], scratch.shape[0], &locations[0], 8 * count),
            "buffers overlap")
    with nogil:
        c_insert(&table, &names[0, 0], &locations[0], count, &reached, only_samples, &scratch[0],
                 &counts[0])
    return reached


def remove(uint8_t[::1] room not None, uint32_t[:, ::1] shards not None,
           const uint8_t[:, ::1] names not None, const uint64_t[::1] locations not None):
    cdef table_t table
    cdef size_t count = names.shape[0], places = locations.shape[0], removed
    fill(&table, room, shards)
    require(names.shape[1] == 16 and places == count, "names must be (n, 16), locations (n,)")
    require(apart(&room[0], room.shape[0], &names[0, 0], 16 * count)
            and apart(&room[0], room.shape[0], &locations[0], 8 * count), "buffers overlap")
    with nogil:
        removed = c_remove(&table, &names[0, 0], &locations[0], count)
    return removed


def remove_between(uint8_t[::1] room not None, uint32_t[:, ::1] shards not None,
                   uint32_t first, uint32_t last, uint64_t start, uint64_t stop):
    cdef table_t table
    cdef size_t removed
    fill(&table, room, shards)
    require(first <= last <= table.shard_count, "there are fewer shards")
    with nogil:
        removed = c_remove_between(&table, first, last, start, stop)
    return removed


def recount(uint8_t[::1] room not None, uint32_t[:, ::1] shards not None):
    cdef table_t table
    check(shards)
    fill(&table, room, shards)
    with nogil:
        c_recount(&table)
