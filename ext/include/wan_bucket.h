/* A bucket of the table in wan_cache.h: 64 bytes with 7 entries of a 16-bit tag, 6 bits more, and a
 * 48-bit location. One line of memory answers most questions, hit or miss.
 *
 *   byte  0        14       16                                58              64
 *         | 7 tags | filter | 7 locations + 1, 6 bytes each   | 7 x more | count |
 *           u16      u16      little-endian                     6 bits     3 bits (+ 3 unused)
 *
 * A name has two candidate buckets; `filter` of the first tells which of its names may lie in the
 * second, so that a miss seldom looks there. The idea of the filter: Cuckoo++ (arXiv 1712.09624);
 * of moving entries knowing only their tags: cuckoo filters (Fan et al., CoNEXT 2014).
 *
 * `place` is 29 bits of the name, the first candidate is place * buckets / 2^29, and the tag with 5
 * of the 6 bits more are the low 21 bits of `place`. A bucket stands for at most 2^21 neighbouring
 * places, so bucket and low bits give the place back. The sixth bit says whether an entry lies in
 * its second candidate. */
#ifndef STANDBY_WAN_BUCKET_H
#define STANDBY_WAN_BUCKET_H

#include "words.h"

#if defined(__SSE2__) || defined(_M_X64)
#define WAN_SSE2 1
#include <emmintrin.h>
#else
#define WAN_SSE2 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define WAN_SELDOM(x) __builtin_expect((x) != 0, 0)
#else
#define WAN_SELDOM(x) (x)
#endif

enum {
    WAN_NAME = 16,
    WAN_SLOTS = 7,
    WAN_BUCKET = 64,
    WAN_FIRST = 256, /* buckets of a new shard; a multiple of WAN_STEP */
    WAN_TAG_BITS = 21,
    WAN_PLACE_BITS = 29, /* WAN_TAG_BITS + log2(WAN_FIRST) */
    WAN_SHARD_BITS = 19, /* shards of 10 GiB differ in size by 2 % at most */
    WAN_SAMPLED_MASK = 15 /* a name is a sample when these bits of its first byte are 0 */
};

#define WAN_NONE (~0ull)
#define WAN_LOCATION_LAST ((1ull << 48) - 2)
#define WAN_LOCATION_MASK ((1ull << 48) - 1)

static inline void wan_store_le(uint8_t *to, uint64_t x)
{
    x = STANDBY_BIG_ENDIAN ? words_swapped(x) : x;
    memcpy(to, &x, sizeof x);
}

/* --- names, buckets, entries ----------------------------------------------------------------- */

typedef struct {
    uint32_t shard, place;
} wan_key;

/* Of a name the bytes 0 to 3, 14 and 15 count: a question need not have the others. */
static inline wan_key wan_key_of(const uint8_t *name, uint32_t shard_count)
{
    wan_key key;
    const uint32_t low = (uint32_t)words_load_le(name);
    const uint64_t high = words_load_le(name + 8) >> 48 << 3 | low >> WAN_PLACE_BITS;
    key.place = low & ((1u << WAN_PLACE_BITS) - 1);
    key.shard = (uint32_t)((high * shard_count) >> WAN_SHARD_BITS);
    return key;
}

static inline int wan_is_sample(uint32_t place)
{
    return (place & WAN_SAMPLED_MASK) == 0;
}

static inline uint32_t wan_tag(uint32_t place)
{
    return place & ((1u << WAN_TAG_BITS) - 1);
}

static inline uint32_t wan_first(uint32_t place, uint32_t buckets)
{
    return (uint32_t)(((uint64_t)place * buckets) >> WAN_PLACE_BITS);
}

/* From the first candidate to the second: 1 to buckets - 1 further, round the end. */
static inline uint32_t wan_distance(uint32_t tag, uint32_t buckets)
{
    const uint32_t mixed = tag * 0x9E3779B1u;
    return 1 + (uint32_t)(((uint64_t)mixed * (buckets - 1)) >> 32);
}

static inline uint32_t wan_second(uint32_t first, uint32_t tag, uint32_t buckets)
{
    const uint32_t at = first + wan_distance(tag, buckets);
    return at < buckets ? at : at - buckets;
}

static inline uint32_t wan_first_of_second(uint32_t second, uint32_t tag, uint32_t buckets)
{
    const uint32_t distance = wan_distance(tag, buckets);
    return second >= distance ? second - distance : second + buckets - distance;
}

/* The first place that has `first` as its first candidate, */
static inline uint32_t wan_first_place(uint32_t first, uint32_t buckets)
{
    return (uint32_t)((((uint64_t)first << WAN_PLACE_BITS) + buckets - 1) / buckets);
}

/* and the only one from there on, among those of one bucket, that has these low bits. */
static inline uint32_t wan_place(uint32_t from, uint32_t tag)
{
    return (from + wan_tag(tag - from)) & ((1u << WAN_PLACE_BITS) - 1);
}

typedef struct {
    uint64_t location; /* + 1 */
    uint32_t tag;
    uint32_t is_away; /* in its second candidate */
} wan_entry;

static inline uint32_t wan_count(const uint8_t *bucket)
{
    return (bucket[63] >> 2) & 7;
}

static inline void wan_set_count(uint8_t *bucket, uint32_t count)
{
    bucket[63] = (uint8_t)((bucket[63] & 3) | (count << 2));
}

static inline uint32_t wan_more(const uint8_t *bucket, uint32_t slot)
{
    return (uint32_t)(words_load_le(bucket + 56) >> (16 + 6 * slot)) & 63;
}

static inline uint64_t wan_location(const uint8_t *bucket, uint32_t slot)
{
    return words_load_le(bucket + 16 + 6 * slot) & WAN_LOCATION_MASK;
}

static inline wan_entry wan_get(const uint8_t *bucket, uint32_t slot)
{
    wan_entry entry;
    const uint32_t more = wan_more(bucket, slot);
    entry.location = wan_location(bucket, slot);
    entry.tag = (uint32_t)bucket[2 * slot] | (uint32_t)bucket[2 * slot + 1] << 8;
    entry.tag |= (more >> 1) << 16;
    entry.is_away = more & 1;
    return entry;
}

static inline void wan_set_location(uint8_t *bucket, uint32_t slot, uint64_t location)
{
    uint8_t *at = bucket + 16 + 6 * slot;
    wan_store_le(at, (words_load_le(at) & ~WAN_LOCATION_MASK) | location);
}

static inline void wan_set(uint8_t *bucket, uint32_t slot, wan_entry entry)
{
    const uint64_t more = (uint64_t)(((entry.tag >> 16) << 1) | entry.is_away);
    const uint32_t shift = 16 + 6 * slot;
    wan_set_location(bucket, slot, entry.location);
    bucket[2 * slot] = (uint8_t)entry.tag;
    bucket[2 * slot + 1] = (uint8_t)(entry.tag >> 8);
    wan_store_le(bucket + 56, (words_load_le(bucket + 56) & ~(63ull << shift)) | more << shift);
}

static inline void wan_add(uint8_t *bucket, wan_entry entry)
{
    const uint32_t count = wan_count(bucket);
    wan_set(bucket, count, entry);
    wan_set_count(bucket, count + 1);
}

/* The names of one bucket are neighbours in the high bits of a tag, and samples in the lowest. */
static inline uint32_t wan_filter_bit(uint32_t tag)
{
    return (tag >> 4) & 15;
}

static inline int wan_may_be_away(const uint8_t *bucket, uint32_t tag)
{
    return (int)(words_load_le(bucket + 8) >> (48 + wan_filter_bit(tag))) & 1;
}

static inline void wan_mark_away(uint8_t *bucket, uint32_t tag)
{
    const uint32_t bit = wan_filter_bit(tag);
    bucket[14 + (bit >> 3)] = (uint8_t)(bucket[14 + (bit >> 3)] | 1u << (bit & 7));
}

/* Bit 2 i of the result: the tag of slot i is the low 16 bits of `tag`. */
static inline uint32_t wan_equal_tags(const uint8_t *bucket, uint32_t tag)
{
#if WAN_SSE2
    const __m128i tags = _mm_loadu_si128((const __m128i *)(const void *)bucket);
    const __m128i equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16((short)(tag & 0xFFFF)));
    return (uint32_t)_mm_movemask_epi8(equal) & 0x1555;
#else
    /* four tags at a time: bit 15 of each 16 that are equal, gathered by a multiplication */
    const uint64_t every = 0x0001000100010001ull, low = 0x7FFF7FFF7FFF7FFFull;
    const uint64_t wanted = (tag & 0xFFFF) * every, gather = 0x0001000400100040ull;
    const uint64_t a = words_load_le(bucket) ^ wanted, b = words_load_le(bucket + 8) ^ wanted;
    const uint64_t a_hits = (~(((a & low) + low) | a | low) >> 15) * gather >> 48;
    const uint64_t b_hits = (~(((b & low) + low) | b | low) >> 15) * gather >> 48;
    return (uint32_t)((a_hits & 0x55) | (b_hits & 0x15) << 8);
#endif
}

static inline uint32_t wan_lowest_bit(uint32_t bits)
{
#if defined(__GNUC__) || defined(__clang__)
    return (uint32_t)__builtin_ctz(bits);
#else
    uint32_t at = 0;
    while (!((bits >> at) & 1))
        at++;
    return at;
#endif
}

/* Slot of the entry with this tag, or -1. */
static inline int wan_find(const uint8_t *bucket, uint32_t tag, uint32_t is_away)
{
    const uint32_t more = ((tag >> 16) << 1) | is_away, count = wan_count(bucket);
    for (uint32_t hits = wan_equal_tags(bucket, tag); hits; hits &= hits - 1) {
        const uint32_t slot = wan_lowest_bit(hits) / 2;
        if (slot < count && wan_more(bucket, slot) == more)
            return (int)slot;
    }
    return -1;
}

/* The location + 1 behind a tag, or 0: as `wan_find`, without a branch that data decide, but for
 * a tag of another name that is equal in 16 bits. A slot not in use is all zeros. */
static inline uint64_t wan_look(const uint8_t *bucket, uint32_t tag, uint32_t is_away)
{
    const uint32_t hits = wan_equal_tags(bucket, tag);
    const uint64_t mask = 0 - (uint64_t)(hits != 0);
    const uint32_t slot = wan_lowest_bit(hits | 1u << 12) / 2;
    const uint32_t more = ((tag >> 16) << 1) | is_away;
    if (WAN_SELDOM((wan_more(bucket, slot) ^ more) & mask)) {
        const int found = wan_find(bucket, tag, is_away);
        return found < 0 ? 0 : wan_location(bucket, (uint32_t)found);
    }
    return wan_location(bucket, slot) & mask;
}

#endif
