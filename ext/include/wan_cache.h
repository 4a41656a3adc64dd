/* A table from names of 4 KiB pieces to their locations, in memory the caller owns.
 *
 * Entries lie in buckets (wan_bucket.h) and move between their two candidates to make room (cuckoo
 * displacement, found breadth first).
 *
 * The table is cut into shards of at most WAN_LAST buckets by bits of the name, so that growing is
 * many short steps. A shard grows in place by an eighth, from WAN_FIRST buckets on, without the
 * names: a bucket and a tag give back what decides where an entry belongs.
 *
 * Names must be spread evenly (they are keyed digests). Two names may share all stored bits: the
 * later one then replaces the earlier, and a question for a name that was never put in may be
 * answered. About count / 2^(21 - log2(buckets / WAN_FIRST)) of such questions are, per bucket
 * looked at; callers verify.
 *
 * One writer at a time; any number of readers beside it, without a lock: a shard's version is odd
 * while it changes, and a reader that saw a change asks again. Its plain loads race with the
 * writer's stores on purpose; what they gave is used only after the version proved it whole. */
#ifndef STANDBY_WAN_CACHE_H
#define STANDBY_WAN_CACHE_H

#include "wan_lookup.h"

enum {
    WAN_STEP = 64, /* buckets in 4 KiB: memory is used in whole pages */
    WAN_SOON = 32, /* names of which writers call for the buckets in advance */
    WAN_NODES = 256, /* buckets looked at for a way to make room */
    WAN_OUTPUTS = 3 /* what `wan_insert` counts: put in, replaced, dropped */
};

/* --- making room ----------------------------------------------------------------------------- */

typedef struct {
    uint32_t bucket;
    int16_t parent; /* node whose entry `slot` would come here, -1 for the two candidates */
    uint8_t slot;
} wan_node;

/* Move the entries on the way up from `node`, whose entry `slot` goes to `free_bucket`; then put
 * the new entry into the candidate that the way began in. */
static inline void wan_shift(uint8_t *room, const wan_node *nodes, int node, uint32_t slot,
                             uint32_t free_bucket, wan_entry entry, uint32_t first,
                             uint32_t *stale)
{
    uint8_t *to = wan_bucket(room, free_bucket);
    uint32_t to_slot = wan_count(to);
    wan_set_count(to, to_slot + 1);
    for (;;) {
        uint8_t *from = wan_bucket(room, nodes[node].bucket);
        wan_entry moved = wan_get(from, slot);
        moved.is_away ^= 1;
        wan_set(to, to_slot, moved);
        if (moved.is_away)
            wan_mark_away(from, moved.tag);
        else
            ++*stale;
        to = from;
        to_slot = slot;
        if (nodes[node].parent < 0)
            break;
        slot = nodes[node].slot;
        node = nodes[node].parent;
    }
    entry.is_away = to != wan_bucket(room, first);
    wan_set(to, to_slot, entry);
    if (entry.is_away)
        wan_mark_away(wan_bucket(room, first), entry.tag);
}

/* Whether `bucket` lies on the way from `node` up. */
static inline int wan_is_on_way(const wan_node *nodes, int node, uint32_t bucket)
{
    for (; node >= 0; node = nodes[node].parent)
        if (nodes[node].bucket == bucket)
            return 1;
    return 0;
}

/* Put in an entry that is not there yet; 0 when no room was found. */
static int wan_put(uint8_t *room, uint32_t buckets, uint32_t place, uint64_t location,
                   uint32_t *stale)
{
    wan_node nodes[WAN_NODES];
    wan_entry entry;
    int count = 2;
    const uint32_t tag = wan_tag(place), first = wan_first(place, buckets);
    const uint32_t second = wan_second(first, tag, buckets);
    entry.location = location;
    entry.tag = tag;
    entry.is_away = 0;
    if (wan_count(wan_bucket(room, first)) < WAN_SLOTS) {
        wan_add(wan_bucket(room, first), entry);
        return 1;
    }
    if (wan_count(wan_bucket(room, second)) < WAN_SLOTS) {
        entry.is_away = 1;
        wan_add(wan_bucket(room, second), entry);
        wan_mark_away(wan_bucket(room, first), tag);
        return 1;
    }
    nodes[0].bucket = first;
    nodes[1].bucket = second;
    nodes[0].parent = nodes[1].parent = -1;
    nodes[0].slot = nodes[1].slot = 0;
    for (int node = 0; node < count; node++) {
        const uint32_t here = nodes[node].bucket;
        const uint8_t *bucket = wan_bucket(room, here);
        for (uint32_t slot = 0; slot < WAN_SLOTS; slot++) {
            const wan_entry other = wan_get(bucket, slot);
            const uint32_t there = other.is_away ? wan_first_of_second(here, other.tag, buckets)
                                                 : wan_second(here, other.tag, buckets);
            if (wan_count(wan_bucket(room, there)) < WAN_SLOTS) {
                wan_shift(room, nodes, node, slot, there, entry, first, stale);
                return 1;
            }
            if (count < WAN_NODES && !wan_is_on_way(nodes, node, there)) {
                nodes[count].bucket = there;
                nodes[count].parent = (int16_t)node;
                nodes[count].slot = (uint8_t)slot;
                count++;
            }
        }
    }
    return 0;
}

static inline void wan_begin(wan_shard *shard)
{
    WAN_STORE(&shard->version, shard->version + 1);
    WAN_FENCE_WRITES();
}

static inline void wan_end(wan_shard *shard)
{
    WAN_STORE(&shard->version, shard->version + 1);
}

/* Lay a shard out anew with `buckets` buckets (not fewer than it has); `scratch` has room for
 * WAN_LAST of them. First those that find room in their first candidate, then the others. */
static STANDBY_NOINLINE void wan_rebuild(const wan_table *table, uint32_t index, uint32_t buckets,
                                         int only_samples, uint8_t *scratch)
{
    wan_shard *shard = &table->shards[index];
    uint8_t *room = wan_shard_room(table, index);
    const uint32_t old = shard->buckets;
    uint32_t stale = 0, entries = 0;
    wan_begin(shard);
    memcpy(scratch, room, (size_t)old * WAN_BUCKET);
    memset(room, 0, (size_t)buckets * WAN_BUCKET);
    for (int is_first = 1; is_first >= 0; is_first--) {
        for (uint32_t here = 0; here < old; here++) {
            uint8_t *bucket = wan_bucket(scratch, here);
            const uint32_t count = wan_count(bucket), from = wan_first_place(here, old);
            for (uint32_t slot = 0; slot < count && slot < WAN_SLOTS; slot++) {
                wan_entry entry = wan_get(bucket, slot);
                const uint32_t place = wan_place(
                    entry.is_away
                        ? wan_first_place(wan_first_of_second(here, entry.tag, old), old)
                        : from,
                    entry.tag);
                uint8_t *to = wan_bucket(room, wan_first(place, buckets));
                if (entry.location == 0 || (only_samples && !wan_is_sample(place)))
                    continue;
                if (!is_first) {
                    entries += (uint32_t)wan_put(room, buckets, place, entry.location, &stale);
                } else if (wan_count(to) < WAN_SLOTS) {
                    entry.is_away = 0;
                    wan_add(to, entry);
                    wan_set_location(bucket, slot, 0); /* done */
                    entries++;
                }
            }
        }
    }
    shard->buckets = buckets;
    shard->entries = entries;
    shard->marks = (only_samples ? WAN_ONLY_SAMPLES : shard->marks & WAN_ONLY_SAMPLES) | stale;
    wan_end(shard);
}

static inline uint32_t wan_grown(uint32_t buckets)
{
    const uint32_t more = (buckets / 8 + WAN_STEP - 1) / WAN_STEP * WAN_STEP;
    return buckets + more < WAN_LAST ? buckets + more : WAN_LAST;
}

/* Entries that a shard of `slots` slots takes: up to 31/32 at the last size, further the ways to
 * make room become long. Before that 15/16 to 27/32, another share for every one of 16 neighbours:
 * names fill all shards at the same pace, and they are not to grow all in one call. */
static inline uint64_t wan_limit(uint32_t shard, uint64_t slots, int is_last)
{
    return is_last ? slots - slots / 32 : slots - slots / 16 - slots * (shard * 5 % 16) / 160;
}

/* Bits of the filters that stand for nothing cost every fourth miss a second look at most. */
static inline void wan_tidy(const wan_table *table, uint32_t index, uint8_t *scratch)
{
    const wan_shard *shard = &table->shards[index];
    if ((shard->marks & ~WAN_ONLY_SAMPLES) > 2 * shard->buckets)
        wan_rebuild(table, index, shard->buckets, 0, scratch);
}

/* Find the entry of a key: its bucket, and the slot or -1. */
static inline int wan_locate(const wan_table *table, wan_key key, uint8_t **bucket)
{
    const uint32_t buckets = table->shards[key.shard].buckets, tag = wan_tag(key.place);
    uint8_t *room = wan_shard_room(table, key.shard);
    const uint32_t first = wan_first(key.place, buckets);
    int slot;
    *bucket = wan_bucket(room, first);
    slot = wan_find(*bucket, tag, 0);
    if (slot < 0 && wan_may_be_away(*bucket, tag)) {
        *bucket = wan_bucket(room, wan_second(first, tag, buckets));
        slot = wan_find(*bucket, tag, 1);
    }
    return slot;
}

static inline void wan_prefetch(const wan_table *table, const uint8_t *name)
{
    const wan_key key = wan_key_of(name, table->shard_count);
    const uint32_t first = wan_first(key.place, table->shards[key.shard].buckets);
    STANDBY_PREFETCH(wan_bucket(wan_shard_room(table, key.shard), first));
}

/* Put in `count` names, from `*next` on, which is moved on. Stops, and returns 0, before a name
 * that finds its shard full and `only_samples` not set; else 1. `counts` are added to. */
static int wan_insert(const wan_table *table, const uint8_t *names, const uint64_t *locations,
                      size_t count, size_t *next, int only_samples, uint8_t *scratch,
                      int64_t counts[WAN_OUTPUTS])
{
    size_t asked = *next;
    for (size_t i = *next; i < count; i++) {
        const wan_key key = wan_key_of(names + i * WAN_NAME, table->shard_count);
        wan_shard *shard = &table->shards[key.shard];
        uint8_t *room = wan_shard_room(table, key.shard), *bucket;
        int slot, is_done = 0;
        *next = i;
        for (; asked < count && asked <= i + WAN_SOON; asked++)
            wan_prefetch(table, names + asked * WAN_NAME);
        slot = wan_locate(table, key, &bucket);
        if (slot >= 0) {
            wan_begin(shard);
            wan_set_location(bucket, (uint32_t)slot, locations[i] + 1);
            wan_end(shard);
            counts[1]++;
            continue;
        }
        if (only_samples && !wan_is_sample(key.place)) {
            counts[2]++;
            continue;
        }
        while (!is_done) {
            const uint64_t slots = (uint64_t)shard->buckets * WAN_SLOTS;
            const int is_last = shard->buckets == WAN_LAST;
            if (shard->entries < wan_limit(key.shard, slots, is_last)) {
                uint32_t stale = 0;
                wan_begin(shard);
                is_done = wan_put(room, shard->buckets, key.place, locations[i] + 1, &stale);
                shard->entries += (uint32_t)is_done;
                shard->marks += stale;
                wan_end(shard);
                if (is_done) {
                    counts[0]++;
                    wan_tidy(table, key.shard, scratch);
                    break;
                }
            }
            if (!is_last) {
                wan_rebuild(table, key.shard, wan_grown(shard->buckets), 0, scratch);
            } else if (!only_samples) {
                return 0;
            } else if (!(shard->marks & WAN_ONLY_SAMPLES)) {
                wan_rebuild(table, key.shard, WAN_LAST, 1, scratch);
            } else {
                counts[2]++;
                break;
            }
        }
    }
    *next = count;
    return 1;
}

/* --- taking out ------------------------------------------------------------------------------ */

/* Take an entry out; the last of its bucket takes its slot. */
static inline void wan_take(wan_shard *shard, uint8_t *bucket, uint32_t slot)
{
    const uint32_t last = wan_count(bucket) - 1;
    wan_entry none = {0, 0, 0};
    shard->marks += wan_get(bucket, slot).is_away;
    if (slot != last)
        wan_set(bucket, slot, wan_get(bucket, last));
    wan_set(bucket, last, none);
    wan_set_count(bucket, last);
    shard->entries -= shard->entries > 0;
}

/* Take out the names that are at these locations; returns how many. */
static size_t wan_remove(const wan_table *table, const uint8_t *names, const uint64_t *locations,
                         size_t count)
{
    size_t removed = 0, asked = 0;
    for (size_t i = 0; i < count; i++) {
        const wan_key key = wan_key_of(names + i * WAN_NAME, table->shard_count);
        wan_shard *shard = &table->shards[key.shard];
        uint8_t *bucket;
        int slot;
        for (; asked < count && asked <= i + WAN_SOON; asked++)
            wan_prefetch(table, names + asked * WAN_NAME);
        slot = wan_locate(table, key, &bucket);
        if (slot < 0 || wan_location(bucket, (uint32_t)slot) != locations[i] + 1)
            continue;
        wan_begin(shard);
        wan_take(shard, bucket, (uint32_t)slot);
        wan_end(shard);
        removed++;
    }
    return removed;
}

/* Take out every entry of shards `from` to `to` with a location in start <= x < stop. */
static size_t wan_remove_between(const wan_table *table, uint32_t from, uint32_t to,
                                 uint64_t start, uint64_t stop)
{
    size_t removed = 0;
    for (uint32_t index = from; index < to; index++) {
        wan_shard *shard = &table->shards[index];
        uint8_t *room = wan_shard_room(table, index);
        wan_begin(shard);
        for (uint32_t here = 0; here < shard->buckets; here++) {
            uint8_t *bucket = wan_bucket(room, here);
            for (uint32_t slot = 0; slot < wan_count(bucket) && slot < WAN_SLOTS;) {
                const uint64_t location = wan_location(bucket, slot) - 1;
                if (location >= start && location < stop) {
                    wan_take(shard, bucket, slot);
                    removed++;
                } else {
                    slot++;
                }
            }
        }
        wan_end(shard);
    }
    return removed;
}

/* Count a shard's entries after its buckets were filled from elsewhere. */
static void wan_recount(const wan_table *table)
{
    for (uint32_t index = 0; index < table->shard_count; index++) {
        wan_shard *shard = &table->shards[index];
        uint8_t *room = wan_shard_room(table, index);
        uint32_t entries = 0;
        for (uint32_t here = 0; here < shard->buckets; here++)
            entries += wan_count(wan_bucket(room, here));
        shard->entries = entries;
    }
}

#endif
