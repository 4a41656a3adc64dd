/* Loops over a disk's 4 KiB pieces: digests, comparison, zero test. One body (blocks_body.h),
 * compiled once per CPU variant; `blocks_variants` lists them, slowest first.
 *
 * Everything here reads and writes only what the caller owns. Lengths are bytes, any value; the
 * last piece is padded with zeros where it is short. */
#ifndef STANDBY_BLOCKS_H
#define STANDBY_BLOCKS_H

#include "words.h"
#include "xxh3_constants.h"

enum {
    BLOCKS_PIECE = 4096,
    BLOCKS_FANOUT = 64,
    BLOCKS_NODE = 16,
    BLOCKS_PREFETCH = 2048, /* bytes ahead */
    BLOCKS_ZERO = 0, /* kinds of a run */
    BLOCKS_DATA = 1
};

/* XXH3-64 of 4096 zeros. */
#define BLOCKS_ZERO_LEAF 0x93D76FE148C689BAull

/* Add piece `i` to the runs (first, stop, kind); returns how many runs there are now. */
static inline size_t blocks_extend(int64_t *runs, size_t count, size_t i, int64_t kind)
{
    int64_t *next = runs + 3 * count;
    if (count && next[-2] == (int64_t)i && next[-1] == kind) {
        next[-2]++;
        return count;
    }
    next[0] = (int64_t)i;
    next[1] = (int64_t)i + 1;
    next[2] = kind;
    return count + 1;
}

/* --- scalar: any compiler, any machine ------------------------------------------------------ */

typedef struct {
    uint64_t a, b;
} blocks_pair;

static inline blocks_pair blocks_pair_of(uint64_t a, uint64_t b)
{
    blocks_pair pair;
    pair.a = a;
    pair.b = b;
    return pair;
}

static inline void blocks_pair_store(uint64_t *to, blocks_pair pair)
{
    to[0] = pair.a;
    to[1] = pair.b;
}

#define FN(name) blocks_##name##_scalar
#define TARGET
#define V blocks_pair
#define V_BYTES 16
#define V_LOAD(p) blocks_pair_of(words_load_le(p), words_load_le((p) + 8))
#define V_WORDS(p) blocks_pair_of((p)[0], (p)[1])
#define V_STORE(p, v) blocks_pair_store(p, v)
#define V_XOR(x, y) blocks_pair_of((x).a ^ (y).a, (x).b ^ (y).b)
#define V_OR(x, y) blocks_pair_of((x).a | (y).a, (x).b | (y).b)
#define V_ADD(x, y) blocks_pair_of((x).a + (y).a, (x).b + (y).b)
#define V_MUL(x, y) \
    blocks_pair_of(((x).a & 0xFFFFFFFFu) * ((y).a & 0xFFFFFFFFu), \
                   ((x).b & 0xFFFFFFFFu) * ((y).b & 0xFFFFFFFFu))
#define V_HIGH(x) blocks_pair_of((x).a >> 32, (x).b >> 32)
#define V_SHR47(x) blocks_pair_of((x).a >> 47, (x).b >> 47)
#define V_SHL32(x) blocks_pair_of((x).a << 32, (x).b << 32)
#define V_SWAP(x) blocks_pair_of((x).b, (x).a)
#define V_PRIME blocks_pair_of(XXH3_PRIME32_1, XXH3_PRIME32_1)
#define V_IS_ZERO(x) (((x).a | (x).b) == 0)
#include "blocks_body.h"

/* --- x86-64 with GCC or clang (clang-cl has no intrinsics beyond its flags: scalar) ---------- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_MSC_VER)
#define BLOCKS_X86 1
#include <immintrin.h>

#define FN(name) blocks_##name##_sse2
#define TARGET
#define V __m128i
#define V_BYTES 16
#define V_LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define V_WORDS(p) _mm_loadu_si128((const __m128i *)(p))
#define V_STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define V_XOR _mm_xor_si128
#define V_OR _mm_or_si128
#define V_ADD _mm_add_epi64
#define V_MUL _mm_mul_epu32
#define V_HIGH(x) _mm_shuffle_epi32(x, 0x31)
#define V_SHR47(x) _mm_srli_epi64(x, 47)
#define V_SHL32(x) _mm_slli_epi64(x, 32)
#define V_SWAP(x) _mm_shuffle_epi32(x, 0x4E)
#define V_PRIME _mm_set1_epi64x((long long)XXH3_PRIME32_1)
#define V_IS_ZERO(x) (_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128())) == 0xFFFF)
#include "blocks_body.h"

#define FN(name) blocks_##name##_avx2
#define TARGET __attribute__((target("avx2")))
#define V __m256i
#define V_BYTES 32
#define V_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define V_WORDS(p) _mm256_loadu_si256((const __m256i *)(p))
#define V_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define V_XOR _mm256_xor_si256
#define V_OR _mm256_or_si256
#define V_ADD _mm256_add_epi64
#define V_MUL _mm256_mul_epu32
#define V_HIGH(x) _mm256_shuffle_epi32(x, 0x31)
#define V_SHR47(x) _mm256_srli_epi64(x, 47)
#define V_SHL32(x) _mm256_slli_epi64(x, 32)
#define V_SWAP(x) _mm256_shuffle_epi32(x, 0x4E)
#define V_PRIME _mm256_set1_epi64x((long long)XXH3_PRIME32_1)
#define V_IS_ZERO(x) _mm256_testz_si256(x, x)
#include "blocks_body.h"

#define FN(name) blocks_##name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define V __m512i
#define V_BYTES 64
#define V_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define V_WORDS(p) _mm512_loadu_si512((const void *)(p))
#define V_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define V_XOR _mm512_xor_si512
#define V_OR _mm512_or_si512
#define V_ADD _mm512_add_epi64
#define V_MUL _mm512_mul_epu32
#define V_HIGH(x) _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x31)
#define V_SHR47(x) _mm512_srli_epi64(x, 47)
#define V_SHL32(x) _mm512_slli_epi64(x, 32)
#define V_SWAP(x) _mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x4E)
#define V_PRIME _mm512_set1_epi64((long long)XXH3_PRIME32_1)
#define V_IS_ZERO(x) (_mm512_test_epi64_mask(x, x) == 0)
#include "blocks_body.h"
#else
#define BLOCKS_X86 0
#endif

/* --- choosing ------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*leaves)(const uint8_t *, size_t, uint64_t *);
    size_t (*scan)(const uint8_t *, size_t, const uint64_t *, uint64_t *, int64_t *);
    void (*join_leaves)(const uint64_t *, size_t, uint8_t *);
    void (*join_nodes)(const uint8_t *, size_t, uint8_t *);
    int (*is_zero)(const uint8_t *, size_t);
    size_t (*zero_runs)(const uint8_t *, size_t, size_t, int64_t *);
} blocks_variant;

#define BLOCKS_VARIANT(v)                                                                        \
    {#v, blocks_leaves_##v, blocks_scan_##v, blocks_join_leaves_##v, blocks_join_nodes_##v,      \
     blocks_is_zero_##v, blocks_zero_runs_##v}

static const blocks_variant blocks_variants[] = {
    BLOCKS_VARIANT(scalar),
#if BLOCKS_X86
    BLOCKS_VARIANT(sse2), BLOCKS_VARIANT(avx2), BLOCKS_VARIANT(avx512),
#endif
};

enum { BLOCKS_VARIANTS = sizeof blocks_variants / sizeof blocks_variants[0] };

/* Whether this CPU and its operating system run variant `index`. */
static inline int blocks_supported(int index)
{
#if BLOCKS_X86
    __builtin_cpu_init();
    if (index == 2)
        return __builtin_cpu_supports("avx2") != 0;
    if (index == 3)
        return __builtin_cpu_supports("avx512f") != 0;
#endif
    return index < BLOCKS_VARIANTS;
}

/* --- the same in every variant -------------------------------------------------------------- */

/* Runs (first, stop) of positions where a and b differ; at most (count + 1) / 2 of them. */
static size_t blocks_changed(const uint64_t *a, const uint64_t *b, size_t count, int64_t *runs)
{
    size_t found = 0;
    for (size_t i = 0; i < count;) {
        if (a[i] == b[i]) {
            i++;
            continue;
        }
        runs[2 * found] = (int64_t)i;
        while (i < count && a[i] != b[i])
            i++;
        runs[2 * found + 1] = (int64_t)i;
        found++;
    }
    return found;
}

/* Runs (first, stop) of pieces of `granularity` bytes that differ; libc's memcmp is at memory
 * speed and leaves a piece at its first difference. */
static size_t blocks_differing(const uint8_t *a, const uint8_t *b, size_t length,
                               size_t granularity, int64_t *runs)
{
    size_t found = 0, i = 0;
    for (size_t at = 0; at < length; i++, at += granularity) {
        const size_t here = length - at < granularity ? length - at : granularity;
        if (memcmp(a + at, b + at, here) == 0)
            continue;
        if (found && runs[2 * found - 1] == (int64_t)i) {
            runs[2 * found - 1]++;
        } else {
            runs[2 * found] = (int64_t)i;
            runs[2 * found + 1] = (int64_t)i + 1;
            found++;
        }
    }
    return found;
}

/* Whether the runs (first, stop, kind) ascend, do not overlap and lie within `pieces`. */
static int blocks_runs_valid(const int64_t *runs, size_t count, size_t pieces)
{
    int64_t from = 0;
    for (size_t i = 0; i < count; i++, runs += 3) {
        if (runs[0] < from || runs[1] <= runs[0] || runs[1] > (int64_t)pieces)
            return 0;
        from = runs[1];
    }
    return 1;
}

/* Move the data runs to the front of `data`; returns their bytes. The runs are valid. */
static size_t blocks_compact(uint8_t *data, size_t length, const int64_t *runs, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++, runs += 3) {
        const size_t start = (size_t)runs[0] * BLOCKS_PIECE;
        const size_t end = (size_t)runs[1] * BLOCKS_PIECE;
        const size_t stop = end < length ? end : length;
        if (runs[2] != BLOCKS_DATA)
            continue;
        if (start != kept)
            memmove(data + kept, data + start, stop - start);
        kept += stop - start;
    }
    return kept;
}

#endif
