/* Keyed BLAKE3 of 4 KiB pieces, many at once. One body (keyed_body.h), compiled once per CPU
 * variant; `keyed_variants` lists them, slowest first.
 *
 * Written from the BLAKE3 paper and its specification (BLAKE3 team, 2020); a piece is 4 chunks of
 * 1024 bytes under 2 parents and a root. One piece alone has only 4 chunks to hash side by side;
 * here the chunks of 16 pieces fill the lanes, then their 32 parents, then their 16 roots. */
#ifndef STANDBY_KEYED_H
#define STANDBY_KEYED_H

#include "words.h"

enum {
    KEYED_PIECE = 4096,
    KEYED_CHUNK = 1024,
    KEYED_CHUNKS = 4, /* in a piece */
    KEYED_BLOCK = 64,
    KEYED_KEY = 32,
    KEYED_NAME = 16,   /* the first bytes */
    KEYED_DIGEST = 32, /* of these */
    KEYED_PART = 256,
    KEYED_MARK = 2, /* bytes that are kept of a part's digest */
    KEYED_GROUP = 64, /* pieces at once: sets of roots fill 16 lanes, 256 KiB stay in L2 */
    /* domain flags, table 3 of the paper */
    KEYED_CHUNK_START = 1,
    KEYED_CHUNK_END = 2,
    KEYED_PARENT = 4,
    KEYED_ROOT = 8,
    KEYED_KEYED = 16
};

/* The first four words of the initial value (table 1): of SHA-256's. */
static const uint32_t keyed_start[4] = {0x6A09E667u, 0xBB67AE85u, 0x3C6EF372u, 0xA54FF53Au};

/* The first `count` bytes of a root, whose words are little-endian. */
static inline void keyed_store_words(uint8_t *to, const uint32_t *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = (uint8_t)(words[i / 4] >> (8 * (i % 4)));
}

/* --- scalar: any compiler, any machine ------------------------------------------------------- */

static inline void keyed_turn_scalar(uint32_t m[16], const uint8_t *const *from)
{
    for (int i = 0; i < 8; i++) {
        const uint64_t pair = words_load_le(from[0] + 8 * i);
        m[2 * i] = (uint32_t)pair;
        m[2 * i + 1] = (uint32_t)(pair >> 32);
    }
}

#define FN(name) keyed_##name##_scalar
#define TARGET
#define V uint32_t
#define V_LANES 1
#define V_ALL(x) ((uint32_t)(x))
#define V_WORDS(p) (*(p))
#define V_STORE(p, v) (*(p) = (v))
#define V_ADD(x, y) ((x) + (y))
#define V_XOR(x, y) ((x) ^ (y))
#define V_ROR16(x) keyed_ror(x, 16)
#define V_ROR12(x) keyed_ror(x, 12)
#define V_ROR8(x) keyed_ror(x, 8)
#define V_ROR7(x) keyed_ror(x, 7)
#define V_TURN keyed_turn_scalar
static inline uint32_t keyed_ror(uint32_t x, int by)
{
    return (x >> by) | (x << (32 - by));
}
#include "keyed_body.h"

/* --- x86-64 with GCC or clang (clang-cl has no intrinsics beyond its flags: scalar) ---------- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_MSC_VER)
#define KEYED_X86 1
#include <immintrin.h>

/* Four rows of four words turned into columns. */
static inline void keyed_turn_4(__m128i r[4])
{
    const __m128i ab_low = _mm_unpacklo_epi32(r[0], r[1]);
    const __m128i ab_high = _mm_unpackhi_epi32(r[0], r[1]);
    const __m128i cd_low = _mm_unpacklo_epi32(r[2], r[3]);
    const __m128i cd_high = _mm_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm_unpacklo_epi64(ab_low, cd_low);
    r[1] = _mm_unpackhi_epi64(ab_low, cd_low);
    r[2] = _mm_unpacklo_epi64(ab_high, cd_high);
    r[3] = _mm_unpackhi_epi64(ab_high, cd_high);
}

static inline void keyed_turn_sse2(__m128i m[16], const uint8_t *const *from)
{
    for (int i = 0; i < 4; i++) {
        for (int lane = 0; lane < 4; lane++)
            m[4 * i + lane] = _mm_loadu_si128((const __m128i *)(from[lane] + 16 * i));
        keyed_turn_4(m + 4 * i);
    }
}

/* The same with rows 0 to 3 in the low halves and 4 to 7 in the high ones. */
__attribute__((target("avx2"))) static inline void keyed_turn_avx2(__m256i m[16],
                                                                   const uint8_t *const *from)
{
    for (int i = 0; i < 4; i++) {
        __m256i r[4], ab_low, ab_high, cd_low, cd_high;
        for (int lane = 0; lane < 4; lane++) {
            const __m128i low = _mm_loadu_si128((const __m128i *)(from[lane] + 16 * i));
            const __m128i high = _mm_loadu_si128((const __m128i *)(from[lane + 4] + 16 * i));
            r[lane] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        }
        ab_low = _mm256_unpacklo_epi32(r[0], r[1]);
        ab_high = _mm256_unpackhi_epi32(r[0], r[1]);
        cd_low = _mm256_unpacklo_epi32(r[2], r[3]);
        cd_high = _mm256_unpackhi_epi32(r[2], r[3]);
        m[4 * i] = _mm256_unpacklo_epi64(ab_low, cd_low);
        m[4 * i + 1] = _mm256_unpackhi_epi64(ab_low, cd_low);
        m[4 * i + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
        m[4 * i + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
    }
}

/* The same with rows 4 q to 4 q + 3 in quarter q. */
__attribute__((target("avx512f"))) static inline void keyed_turn_avx512(__m512i m[16],
                                                                        const uint8_t *const *from)
{
    for (int i = 0; i < 4; i++) {
        __m512i r[4], ab_low, ab_high, cd_low, cd_high;
        for (int lane = 0; lane < 4; lane++) {
            const uint8_t *const *row = from + lane;
            __m512i four = _mm512_castsi128_si512(
                _mm_loadu_si128((const __m128i *)(row[0] + 16 * i)));
            four = _mm512_inserti32x4(
                four, _mm_loadu_si128((const __m128i *)(row[4] + 16 * i)), 1);
            four = _mm512_inserti32x4(
                four, _mm_loadu_si128((const __m128i *)(row[8] + 16 * i)), 2);
            r[lane] = _mm512_inserti32x4(
                four, _mm_loadu_si128((const __m128i *)(row[12] + 16 * i)), 3);
        }
        ab_low = _mm512_unpacklo_epi32(r[0], r[1]);
        ab_high = _mm512_unpackhi_epi32(r[0], r[1]);
        cd_low = _mm512_unpacklo_epi32(r[2], r[3]);
        cd_high = _mm512_unpackhi_epi32(r[2], r[3]);
        m[4 * i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        m[4 * i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        m[4 * i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        m[4 * i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
}

#define FN(name) keyed_##name##_sse2
#define TARGET
#define V __m128i
#define V_LANES 4
#define V_ALL(x) _mm_set1_epi32((int)(x))
#define V_WORDS(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define V_STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define V_ADD _mm_add_epi32
#define V_XOR _mm_xor_si128
#define V_ROR16(x) _mm_shufflehi_epi16(_mm_shufflelo_epi16(x, 0xB1), 0xB1)
#define V_ROR12(x) _mm_or_si128(_mm_srli_epi32(x, 12), _mm_slli_epi32(x, 20))
#define V_ROR8(x) _mm_or_si128(_mm_srli_epi32(x, 8), _mm_slli_epi32(x, 24))
#define V_ROR7(x) _mm_or_si128(_mm_srli_epi32(x, 7), _mm_slli_epi32(x, 25))
#define V_TURN keyed_turn_sse2
#include "keyed_body.h"

#define KEYED_BYTES_AVX2(a, b, c, d)                                                             \
    _mm256_setr_epi8(a, b, c, d, 4 + a, 4 + b, 4 + c, 4 + d, 8 + a, 8 + b, 8 + c, 8 + d, 12 + a, \
                     12 + b, 12 + c, 12 + d, a, b, c, d, 4 + a, 4 + b, 4 + c, 4 + d, 8 + a,      \
                     8 + b, 8 + c, 8 + d, 12 + a, 12 + b, 12 + c, 12 + d)

#define FN(name) keyed_##name##_avx2
#define TARGET __attribute__((target("avx2")))
#define V __m256i
#define V_LANES 8
#define V_ALL(x) _mm256_set1_epi32((int)(x))
#define V_WORDS(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define V_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define V_ADD _mm256_add_epi32
#define V_XOR _mm256_xor_si256
#define V_ROR16(x) _mm256_shuffle_epi8(x, KEYED_BYTES_AVX2(2, 3, 0, 1))
#define V_ROR12(x) _mm256_or_si256(_mm256_srli_epi32(x, 12), _mm256_slli_epi32(x, 20))
#define V_ROR8(x) _mm256_shuffle_epi8(x, KEYED_BYTES_AVX2(1, 2, 3, 0))
#define V_ROR7(x) _mm256_or_si256(_mm256_srli_epi32(x, 7), _mm256_slli_epi32(x, 25))
#define V_TURN keyed_turn_avx2
#include "keyed_body.h"

#define FN(name) keyed_##name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define V __m512i
#define V_LANES 16
#define V_ALL(x) _mm512_set1_epi32((int)(x))
#define V_WORDS(p) _mm512_loadu_si512((const void *)(p))
#define V_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define V_ADD _mm512_add_epi32
#define V_XOR _mm512_xor_si512
#define V_ROR16(x) _mm512_ror_epi32(x, 16)
#define V_ROR12(x) _mm512_ror_epi32(x, 12)
#define V_ROR8(x) _mm512_ror_epi32(x, 8)
#define V_ROR7(x) _mm512_ror_epi32(x, 7)
#define V_TURN keyed_turn_avx512
#include "keyed_body.h"
#else
#define KEYED_X86 0
#endif

/* --- choosing -------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*names)(const uint8_t *const *, size_t, const uint32_t *, size_t, uint8_t *);
    void (*marks)(const uint8_t *, size_t, const uint32_t *, uint8_t *);
} keyed_variant;

#define KEYED_VARIANT(v) {#v, keyed_names_##v, keyed_marks_##v}

static const keyed_variant keyed_variants[] = {
    KEYED_VARIANT(scalar),
#if KEYED_X86
    KEYED_VARIANT(sse2), KEYED_VARIANT(avx2), KEYED_VARIANT(avx512),
#endif
};

enum { KEYED_VARIANTS = sizeof keyed_variants / sizeof keyed_variants[0] };

/* Whether this CPU and its operating system run variant `index`. */
static inline int keyed_supported(int index)
{
#if KEYED_X86
    __builtin_cpu_init();
    if (index == 2)
        return __builtin_cpu_supports("avx2") != 0;
    if (index == 3)
        return __builtin_cpu_supports("avx512f") != 0;
#endif
    return index < KEYED_VARIANTS;
}

static inline void keyed_load_key(uint32_t *key, const uint8_t *bytes)
{
    for (size_t i = 0; i < KEYED_KEY / 8; i++) {
        const uint64_t pair = words_load_le(bytes + 8 * i);
        key[2 * i] = (uint32_t)pair;
        key[2 * i + 1] = (uint32_t)(pair >> 32);
    }
}

/* The marks of `count` parts. */
static void keyed_marks(const keyed_variant *variant, const uint8_t *data, size_t count,
                        const uint8_t *key_bytes, uint8_t *out)
{
    uint32_t key[KEYED_KEY / 4];
    keyed_load_key(key, key_bytes);
    variant->marks(data, count, key, out);
}

/* --- pieces ---------------------------------------------------------------------------------- */

/* Whether every offset lies within the data. */
static int keyed_offsets_valid(const int64_t *offsets, size_t count, size_t length)
{
    for (size_t i = 0; i < count; i++)
        if (offsets[i] < 0 || (uint64_t)offsets[i] >= length)
            return 0;
    return 1;
}

/* The first `width` bytes of the digests of the `count` pieces that begin at `offsets` (valid ones),
 * or one behind the other where that is NULL. What reaches behind `length` is taken as zeros. */
static void keyed_names(const keyed_variant *variant, const uint8_t *data, size_t length,
                        const int64_t *offsets, size_t count, const uint8_t *key_bytes,
                        size_t width, uint8_t *out)
{
    uint32_t key[KEYED_KEY / 4];
    keyed_load_key(key, key_bytes);
    for (size_t first = 0; first < count; first += KEYED_GROUP) {
        const size_t here = count - first < KEYED_GROUP ? count - first : KEYED_GROUP;
        const uint8_t *pieces[KEYED_GROUP];
        size_t whole = 0;
        for (size_t i = 0; i < here; i++) {
            const size_t at =
                offsets ? (size_t)offsets[first + i] : (first + i) * KEYED_PIECE;
            if (length - at < KEYED_PIECE) {
                uint8_t padded[KEYED_PIECE];
                const uint8_t *const one = padded;
                if (i > whole)
                    variant->names(pieces + whole, i - whole, key, width,
                                   out + width * (first + whole));
                memcpy(padded, data + at, length - at);
                memset(padded + (length - at), 0, KEYED_PIECE - (length - at));
                variant->names(&one, 1, key, width, out + width * (first + i));
                whole = i + 1;
            } else {
                pieces[i] = data + at;
            }
        }
        if (here > whole)
            variant->names(pieces + whole, here - whole, key, width,
                           out + width * (first + whole));
    }
}

#endif
