/* Looking names up in the table of wan_cache.h: its parts, and readers that take no lock. */
#ifndef STANDBY_WAN_LOOKUP_H
#define STANDBY_WAN_LOOKUP_H

#include "wan_bucket.h"

enum {
    WAN_LAST = 16384, /* buckets of a full shard: 1 MiB, which is rebuilt in 1 to 3 ms */
    WAN_GROUP = 8, /* names looked up side by side, in groups of which so many are asked ahead: */
    WAN_AHEAD = 4,
    WAN_LAG = 2, /* and second candidates are read so many groups later */
    WAN_RING = 8,
    WAN_TRIES = 64
};

#define WAN_BUSY (~0ull - 1)

typedef struct {
    uint32_t version; /* odd while the shard changes */
    uint32_t buckets;
    uint32_t entries;
    uint32_t marks; /* bit 31: holds only samples; below: filter bits that nothing stands behind */
} wan_shard;

#define WAN_ONLY_SAMPLES 0x80000000u

typedef struct {
    uint8_t *room; /* WAN_LAST buckets for each shard, of which it uses the first ones */
    wan_shard *shards;
    uint32_t shard_count;
} wan_table;

/* --- what compilers call differently --------------------------------------------------------- */

#if defined(__GNUC__) || defined(__clang__)
#define WAN_LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define WAN_STORE(p, x) __atomic_store_n(p, x, __ATOMIC_RELEASE)
#define WAN_FENCE_READS() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define WAN_FENCE_WRITES() __atomic_thread_fence(__ATOMIC_RELEASE)
#elif defined(_MSC_VER)
#include <intrin.h>
#if defined(_M_X64) || defined(_M_IX86)
#define WAN_FENCE_READS() _ReadWriteBarrier() /* x86 keeps loads, and stores, in order */
#define WAN_FENCE_WRITES() _ReadWriteBarrier()
#else
#define WAN_FENCE_READS() __dmb(_ARM64_BARRIER_ISH)
#define WAN_FENCE_WRITES() __dmb(_ARM64_BARRIER_ISH)
#endif
static inline uint32_t wan_load(const volatile uint32_t *p)
{
    const uint32_t x = *p;
    WAN_FENCE_READS();
    return x;
}
static inline void wan_store(volatile uint32_t *p, uint32_t x)
{
    WAN_FENCE_WRITES();
    *p = x;
}
#define WAN_LOAD(p) wan_load(p)
#define WAN_STORE(p, x) wan_store(p, x)
#endif

static inline uint8_t *wan_shard_room(const wan_table *table, uint32_t shard)
{
    return table->room + (size_t)shard * WAN_LAST * WAN_BUCKET;
}

static inline uint8_t *wan_bucket(uint8_t *room, uint32_t index)
{
    return room + (size_t)index * WAN_BUCKET;
}

/* --- looking up ------------------------------------------------------------------------------ */

typedef struct {
    const uint8_t *bucket;
    uint32_t shard, version, buckets, place;
} wan_question;

static inline wan_question wan_ask(const wan_table *table, const uint8_t *name)
{
    const wan_key key = wan_key_of(name, table->shard_count);
    const wan_shard *shard = table->shards + key.shard;
    wan_question question;
    question.shard = key.shard;
    question.place = key.place;
    question.version = WAN_LOAD(&shard->version);
    question.buckets = shard->buckets;
    question.bucket = wan_bucket(wan_shard_room(table, key.shard),
                                 wan_first(key.place, question.buckets));
    return question;
}

static inline const uint8_t *wan_second_bucket(const wan_table *table,
                                               const wan_question *question)
{
    const uint32_t first = wan_first(question->place, question->buckets);
    return wan_bucket(wan_shard_room(table, question->shard),
                      wan_second(first, wan_tag(question->place), question->buckets));
}

/* Not 0 when the shard changed, or was changing, since the question was asked; a fence that keeps
 * the loads of the answer in front comes first. */
static inline uint32_t wan_changed(const wan_table *table, const wan_question *question)
{
    const uint32_t now = WAN_LOAD(&table->shards[question->shard].version);
    return (now ^ question->version) | (now & 1);
}

/* The location, WAN_NONE, or WAN_BUSY when a writer was in the way at every try. */
static STANDBY_NOINLINE uint64_t wan_ask_again(const wan_table *table, const uint8_t *name)
{
    for (int i = 0; i < WAN_TRIES; i++) {
        const wan_question question = wan_ask(table, name);
        const uint32_t tag = wan_tag(question.place);
        uint64_t answer = wan_look(question.bucket, tag, 0);
        if (!answer && wan_may_be_away(question.bucket, tag))
            answer = wan_look(wan_second_bucket(table, &question), tag, 1);
        WAN_FENCE_READS();
        if (!wan_changed(table, &question))
            return answer - 1; /* 0 becomes WAN_NONE */
    }
    return WAN_BUSY;
}

typedef struct {
    wan_question questions[WAN_GROUP];
    uint8_t away[WAN_GROUP]; /* those that go on to their second candidate */
    size_t first, count, away_count;
} wan_group;

static inline void wan_ask_group(const wan_table *table, const uint8_t *names, size_t first,
                                 size_t count, wan_group *group)
{
    const wan_table here = *table; /* what the compiler knows that nothing below changes */
    const size_t asked = count - first < WAN_GROUP ? count - first : WAN_GROUP;
    group->first = first;
    group->count = asked;
    for (size_t i = 0; i < asked; i++) {
        const wan_question question = wan_ask(&here, names + (first + i) * WAN_NAME);
        group->questions[i] = question;
        STANDBY_PREFETCH(question.bucket);
    }
}

/* Those of the group at `which` (all where that is NULL) whose shard changed are asked again, each
 * on its own; returns how many of them stay busy. */
static STANDBY_NOINLINE size_t wan_repeat(const wan_table *table, const uint8_t *names,
                                          wan_group *group, const uint8_t *which, size_t count,
                                          uint64_t *out)
{
    size_t busy = 0, left = 0;
    uint8_t changed[WAN_GROUP] = {0};
    for (size_t i = 0; i < count; i++) {
        const size_t at = which ? which[i] : i;
        if (!wan_changed(table, &group->questions[at]))
            continue;
        changed[at] = 1;
        out[group->first + at] = wan_ask_again(table, names + (group->first + at) * WAN_NAME);
        busy += out[group->first + at] == WAN_BUSY;
    }
    for (size_t i = 0; !which && i < group->away_count; i++)
        if (!changed[group->away[i]])
            group->away[left++] = group->away[i];
    if (!which)
        group->away_count = left;
    return busy;
}

/* Answer a group of which no name is expected to be there; 0 when any may be, and then nothing is
 * answered. */
static inline int wan_miss_group(wan_group *group, uint64_t *answers)
{
    uint32_t hits = 0;
    size_t away = 0;
    for (size_t i = 0; i < group->count; i++) {
        const wan_question *question = &group->questions[i];
        const uint32_t tag = wan_tag(question->place);
        hits |= wan_equal_tags(question->bucket, tag);
        answers[i] = WAN_NONE;
        group->away[away] = (uint8_t)i;
        away += (size_t)wan_may_be_away(question->bucket, tag);
    }
    group->away_count = away;
    return hits == 0;
}

/* Answer a group from first candidates; returns whether any name was there. */
static inline int wan_look_group(wan_group *group, uint64_t *answers)
{
    uint64_t found = 0;
    size_t away = 0;
    for (size_t i = 0; i < group->count; i++) {
        const wan_question question = group->questions[i];
        const uint32_t tag = wan_tag(question.place);
        const uint64_t answer = wan_look(question.bucket, tag, 0);
        answers[i] = answer - 1; /* 0 becomes WAN_NONE */
        found |= answer;
        group->away[away] = (uint8_t)i;
        away += (size_t)(answer == 0) & (size_t)wan_may_be_away(question.bucket, tag);
    }
    group->away_count = away;
    return found != 0;
}

/* `is_known` says whether the group before had names that are there, and then of this one: content
 * is known, or new, for many pieces in a row, and a group of which nothing is there is answered in
 * 0.7 of the time when that is expected. */
static inline size_t wan_answer_group(const wan_table *table, const uint8_t *names,
                                      wan_group *group, int *is_known, uint64_t *out)
{
    const wan_table here = *table;
    const size_t asked = group->count;
    uint64_t *answers = out + group->first;
    uint32_t changed = 0;
    size_t away;
    if (*is_known || !wan_miss_group(group, answers))
        *is_known = wan_look_group(group, answers);
    away = group->away_count;
    WAN_FENCE_READS();
    for (size_t i = 0; i < asked; i++)
        changed |= wan_changed(&here, &group->questions[i]);
    for (size_t i = 0; i < away; i++) {
        wan_question *question = &group->questions[group->away[i]];
        question->bucket = wan_second_bucket(&here, question);
        STANDBY_PREFETCH(question->bucket);
    }
    return changed ? wan_repeat(table, names, group, NULL, asked, out) : 0;
}

static inline size_t wan_answer_away(const wan_table *table, const uint8_t *names,
                                     wan_group *group, uint64_t *out)
{
    uint32_t changed = 0;
    for (size_t i = 0; i < group->away_count; i++) {
        const wan_question *question = &group->questions[group->away[i]];
        const uint64_t answer = wan_look(question->bucket, wan_tag(question->place), 1);
        out[group->first + group->away[i]] = answer - 1;
    }
    WAN_FENCE_READS();
    for (size_t i = 0; i < group->away_count; i++)
        changed |= wan_changed(table, &group->questions[group->away[i]]);
    return changed ? wan_repeat(table, names, group, group->away, group->away_count, out) : 0;
}

/* Answers for `count` names; returns how many of them are WAN_BUSY. While a group is answered the
 * buckets of the next ones, and the second candidates of those before, are on their way from
 * memory. Groups are small because a core waits with a question when it has a dozen lines under way
 * already: between few questions answers are computed meanwhile. With 32 at a time, one group ahead,
 * misses in 50 MiB took 1.15 of the time, and questions to a table in the cache 1.4. Six or eight
 * groups ahead are no faster; keys of eight names made with AVX-512 are slower. */
static size_t wan_lookup(const wan_table *table, const uint8_t *names, size_t count,
                         uint64_t *out)
{
    wan_group ring[WAN_RING];
    size_t busy = 0;
    int is_known = 0;
    const size_t groups = (count + WAN_GROUP - 1) / WAN_GROUP;
    for (size_t i = 0; i < groups && i < WAN_AHEAD; i++)
        wan_ask_group(table, names, i * WAN_GROUP, count, &ring[i]);
    for (size_t i = 0; i < groups + WAN_LAG; i++) {
        const size_t next = i + WAN_AHEAD;
        if (next < groups)
            wan_ask_group(table, names, next * WAN_GROUP, count, &ring[next % WAN_RING]);
        if (i < groups)
            busy += wan_answer_group(table, names, &ring[i % WAN_RING], &is_known, out);
        if (i >= WAN_LAG && i - WAN_LAG < groups)
            busy += wan_answer_away(table, names, &ring[(i - WAN_LAG) % WAN_RING], out);
    }
    return busy;
}

/* The same answers, one name after the other and nothing called for in advance: what benches and
 * tests compare with. */
static size_t wan_lookup_plainly(const wan_table *table, const uint8_t *names, size_t count,
                                 uint64_t *out)
{
    size_t busy = 0;
    for (size_t i = 0; i < count; i++) {
        out[i] = wan_ask_again(table, names + i * WAN_NAME);
        busy += out[i] == WAN_BUSY;
    }
    return busy;
}

#endif
