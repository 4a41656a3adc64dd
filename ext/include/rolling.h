/* The rolling hash that finds places by content, in 16-bit lanes, and the keyed hash that decides
 * at those places. One body (rolling_body.h) compiled once per CPU variant; `rolling_variants`
 * lists them, slowest first.
 *
 * A position p lies in front of byte p. With g a keyed map of bytes to 16 bits:
 *
 *   gear(p)       sum of g(data[p - 1 - j]) << j for j = 0..15, modulo 2^16.
 *                 As a loop over bytes: h = (h << 1) + g(b), which is Gear with 16 bits of state.
 *   hash(p)       gear(p) + gear(p - 16) * third, modulo 2^16; p >= 32. Over 16 bytes alone the
 *                 sizes of pieces of text spread 10 % more (bench/rolling_hash.py).
 *   hit           hash(p) & mask is 0; the mask is the top bits, which depend on most bytes.
 *   candidate     a hit with p >= 64 that has no other hit among the `spacing` positions before it.
 *                 So nothing inside a run that repeats itself after `spacing` bytes or fewer is a
 *                 candidate, constant windows least of all, and candidates have a distance.
 *   chosen, fingerprint
 *                 the two words of SipHash-2-4 with 128 bits of output over the 64 bytes before p.
 *
 * The vector form needs no gathers: of hashes of the last k bytes it makes those of the last 2 k,
 * hash2k(p) = hash_k(p) + (hash_k(p - k) << k), for k = 1, 2, 4, 8, beginning with g itself; the
 * last step multiplies, since a shift would leave nothing. */
#ifndef STANDBY_ROLLING_H
#define STANDBY_ROLLING_H

#include "words.h"

enum {
    ROLLING_REACH = 32,      /* bytes that the hash depends on */
    ROLLING_GEAR = 16,       /* those that its first half depends on */
    ROLLING_WINDOW = 64,     /* bytes that the keyed hash covers */
    ROLLING_STRIP = 4096,    /* positions looked at in one go */
    ROLLING_PREFETCH = 8192, /* bytes ahead; the hardware's own stops at borders of 4 KiB */
    ROLLING_PENDING = 64,    /* candidates that wait to be hashed side by side */
    ROLLING_BATCH = ROLLING_PENDING + ROLLING_STRIP / 2,
    ROLLING_LANES = 8        /* windows hashed side by side */
};

typedef struct {
    uint16_t first, add, second; /* g(b) = x * second, x = y ^ (y >> 7), y = b * first + add */
    uint16_t third, mask;
    int64_t spacing; /* at least 1 */
    uint64_t key[2];
    uint16_t table[256]; /* g, for the scalar loop */
} rolling_rules;

static inline uint16_t rolling_mixed(const rolling_rules *rules, uint32_t byte)
{
    const uint32_t product = (byte * rules->first + rules->add) & 0xFFFFu;
    return (uint16_t)((product ^ (product >> 7)) * rules->second);
}

static inline void rolling_tabulate(rolling_rules *rules)
{
    for (uint32_t byte = 0; byte < 256; byte++)
        rules->table[byte] = rolling_mixed(rules, byte);
}

#if defined(__GNUC__)
#define ROLLING_RARE(x) __builtin_expect((x), 0)
#else
#define ROLLING_RARE(x) (x)
#endif

/* Index of the lowest set bit of a word that is not 0. */
static inline unsigned rolling_lowest(uint64_t word)
{
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(word);
#else
    unsigned at = 0;
    for (; !(word & 1); word >>= 1)
        at++;
    return at;
#endif
}

/* SipHash (Aumasson and Bernstein 2012; 128 bits as in its authors' reference code), started. */
#define ROLLING_SIP_0 0x736F6D6570736575ull
#define ROLLING_SIP_1 (0x646F72616E646F6Dull ^ 0xEE)
#define ROLLING_SIP_2 0x6C7967656E657261ull
#define ROLLING_SIP_3 0x7465646279746573ull
#define ROLLING_SIP_END ((uint64_t)ROLLING_WINDOW << 56)

/* --- scalar: any compiler, any machine ------------------------------------------------------ */

#define ROLLING_ROTATED(x, n) (((x) << (n)) | ((x) >> (64 - (n))))

static inline void rolling_sip_round(uint64_t *v)
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = ROLLING_ROTATED(v[1], 13) ^ v[0];
    v[3] = ROLLING_ROTATED(v[3], 16) ^ v[2];
    v[0] = ROLLING_ROTATED(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = ROLLING_ROTATED(v[1], 17) ^ v[2];
    v[3] = ROLLING_ROTATED(v[3], 21) ^ v[0];
    v[2] = ROLLING_ROTATED(v[2], 32);
}

static inline void rolling_sip_absorb(uint64_t *v, uint64_t word)
{
    v[3] ^= word;
    rolling_sip_round(v);
    rolling_sip_round(v);
    v[0] ^= word;
}

/* The two words of each window that ends at data[ends[i]]. */
static void rolling_confirm_scalar(const rolling_rules *rules, const uint8_t *data,
                                   const size_t *ends, size_t count, uint64_t *chosen,
                                   uint64_t *fingerprints)
{
    for (size_t i = 0; i < count; i++) {
        const uint8_t *window = data + ends[i] - ROLLING_WINDOW;
        uint64_t v[4] = {ROLLING_SIP_0 ^ rules->key[0], ROLLING_SIP_1 ^ rules->key[1],
                         ROLLING_SIP_2 ^ rules->key[0], ROLLING_SIP_3 ^ rules->key[1]};
        for (int word = 0; word < ROLLING_WINDOW / 8; word++)
            rolling_sip_absorb(v, words_load_le(window + 8 * word));
        rolling_sip_absorb(v, ROLLING_SIP_END);
        v[2] ^= 0xEE;
        for (int n = 0; n < 4; n++)
            rolling_sip_round(v);
        chosen[i] = v[0] ^ v[1] ^ v[2] ^ v[3];
        v[1] ^= 0xDD;
        for (int n = 0; n < 4; n++)
            rolling_sip_round(v);
        fingerprints[i] = v[0] ^ v[1] ^ v[2] ^ v[3];
    }
}

/* 16 bits throughout, so that compilers do not widen the lanes. */
static inline uint16_t rolling_joined(uint16_t far, uint16_t near, uint16_t third)
{
    return (uint16_t)(near + (uint16_t)((uint32_t)far * third));
}

/* Indices i, ascending, at which the 32 bytes from data[i] on are a hit; i < count <= STRIP. Data
 * has `room` bytes, at least count + 31; `found` has room for count + 1. Returns how many there
 * are. */
static size_t rolling_hits_scalar(const rolling_rules *rules, const uint8_t *data, size_t room,
                                  size_t count, uint16_t *found)
{
    enum { GROUP = 64 };
    uint16_t gears[ROLLING_STRIP + ROLLING_REACH + GROUP];
    const uint16_t *table = rules->table;
    const uint16_t third = rules->third, mask = rules->mask;
    size_t hits = 0;
    uint32_t gear = 0;
    (void)room;
    STANDBY_UNROLL_16
    for (size_t i = 0; i < count + ROLLING_REACH - 1; i++) {
        gear = (gear << 1) + table[data[i]];
        gears[i] = (uint16_t)gear;
    }
    memset(gears + count + ROLLING_REACH - 1, 0, GROUP * sizeof gears[0]);
    for (size_t i = 0; i < count; i += GROUP) {
        const uint16_t *far = gears + i + ROLLING_GEAR - 1;
        const size_t here = count - i < GROUP ? count - i : GROUP;
        uint16_t any = 0;
        for (size_t j = 0; j < GROUP; j++) /* in vectors, where the compiler has any */
            any |= (uint16_t)((rolling_joined(far[j], far[j + ROLLING_GEAR], third) & mask) == 0);
        if (ROLLING_RARE(any))
            for (size_t j = 0; j < here; j++)
                if ((rolling_joined(far[j], far[j + ROLLING_GEAR], third) & mask) == 0)
                    found[hits++] = (uint16_t)(i + j);
    }
    return hits;
}

/* --- x86-64 with GCC or clang (with 128-bit vectors it is slower than the loop) -------------- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_MSC_VER)
#define ROLLING_X86 1
#include <immintrin.h>

#define rolling_hits_sse2 rolling_hits_scalar
#define rolling_confirm_sse2 rolling_confirm_scalar

__attribute__((target("avx2"))) static inline uint64_t rolling_zeros_avx2(__m256i a, __m256i b,
                                                                          __m256i mask)
{
    const __m256i zero = _mm256_setzero_si256();
    const __m256i both = _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_and_si256(a, mask), zero),
                                            _mm256_cmpeq_epi16(_mm256_and_si256(b, mask), zero));
    return (uint32_t)_mm256_movemask_epi8(both);
}

#define FN(name) rolling_##name##_avx2
#define TARGET __attribute__((target("avx2")))
#define V __m256i
#define V_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define V_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define V_ALL(x) _mm256_set1_epi16((short)(x))
#define V_ADD _mm256_add_epi16
#define V_MUL _mm256_mullo_epi16
#define V_XOR _mm256_xor_si256
#define V_SHR _mm256_srli_epi16
#define V_SHL _mm256_slli_epi16
#define V_ZEROS rolling_zeros_avx2
#define V_STRETCHES 2
#define V_STRETCHED(p, length) \
    _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(p))), \
                            _mm_loadu_si128((const __m128i *)((p) + (length))), 1)
#define V_LOW(v) _mm256_unpacklo_epi8(v, _mm256_setzero_si256())
#define V_HIGH(v) _mm256_unpackhi_epi8(v, _mm256_setzero_si256())
#define V_BEHIND(new, old, n) _mm256_alignr_epi8(new, old, 16 - 2 * (n))
#define V_OF_STRETCH(zeros, n) ((uint32_t)((zeros) >> (16 * (n))) & 0xFFFFu)
#define W_LANES 4
#define W_ALL(x) _mm256_set1_epi64x((long long)(x))
#define W_ADD _mm256_add_epi64
#define W_ROTATED(v, n) _mm256_or_si256(_mm256_slli_epi64(v, n), _mm256_srli_epi64(v, 64 - (n)))
#include "rolling_body.h"

__attribute__((target("avx512f,avx512bw"))) static inline uint64_t
rolling_zeros_avx512(__m512i a, __m512i b, __m512i mask)
{
    return _mm512_testn_epi16_mask(a, mask) | (uint64_t)_mm512_testn_epi16_mask(b, mask) << 32;
}

__attribute__((target("avx512f,avx512bw"))) static inline __m512i
rolling_stretched_avx512(const uint8_t *p, size_t length)
{
    const __m512i zero = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    const __m512i one = _mm512_inserti32x4(zero, _mm_loadu_si128((const __m128i *)(p + length)), 1);
    const __m512i two =
        _mm512_inserti32x4(one, _mm_loadu_si128((const __m128i *)(p + 2 * length)), 2);
    return _mm512_inserti32x4(two, _mm_loadu_si128((const __m128i *)(p + 3 * length)), 3);
}

#define FN(name) rolling_##name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw")))
#define V __m512i
#define V_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define V_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define V_ALL(x) _mm512_set1_epi16((short)(x))
#define V_ADD _mm512_add_epi16
#define V_MUL _mm512_mullo_epi16
#define V_XOR _mm512_xor_si512
#define V_SHR _mm512_srli_epi16
#define V_SHL _mm512_slli_epi16
#define V_ZEROS rolling_zeros_avx512
#define V_STRETCHES 4
#define V_STRETCHED rolling_stretched_avx512
#define V_LOW(v) _mm512_unpacklo_epi8(v, _mm512_setzero_si512())
#define V_HIGH(v) _mm512_unpackhi_epi8(v, _mm512_setzero_si512())
#define V_BEHIND(new, old, n) _mm512_alignr_epi8(new, old, 16 - 2 * (n))
#define V_OF_STRETCH(zeros, n)                   \
    (((uint32_t)((zeros) >> (8 * (n))) & 0xFFu) | \
     ((uint32_t)((zeros) >> (32 + 8 * (n))) & 0xFFu) << 8)
#define W_LANES 8
#define W_ALL(x) _mm512_set1_epi64((long long)(x))
#define W_ADD _mm512_add_epi64
#define W_ROTATED(v, n) _mm512_rol_epi64(v, n)
#include "rolling_body.h"
#else
#define ROLLING_X86 0
#endif

/* --- choosing ------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    size_t (*hits)(const rolling_rules *, const uint8_t *, size_t, size_t, uint16_t *);
    void (*confirm)(const rolling_rules *, const uint8_t *, const size_t *, size_t, uint64_t *,
                    uint64_t *);
} rolling_variant;

#define ROLLING_VARIANT(v) {#v, rolling_hits_##v, rolling_confirm_##v}

static const rolling_variant rolling_variants[] = {
    ROLLING_VARIANT(scalar),
#if ROLLING_X86
    ROLLING_VARIANT(sse2), ROLLING_VARIANT(avx2), ROLLING_VARIANT(avx512),
#endif
};

enum { ROLLING_VARIANTS = sizeof rolling_variants / sizeof rolling_variants[0] };

/* Whether this CPU and its operating system run variant `index`. */
static inline int rolling_supported(int index)
{
#if ROLLING_X86
    __builtin_cpu_init();
    if (index == 2)
        return __builtin_cpu_supports("avx2") != 0;
    if (index == 3)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#endif
    return index < ROLLING_VARIANTS;
}

/* --- the same in every variant -------------------------------------------------------------- */

/* A way along `length` bytes: positions, the last hit among them, are relative to `data`. */
typedef struct {
    const rolling_rules *rules;
    const rolling_variant *variant;
    const uint8_t *data;
    size_t length;
    size_t next; /* the first position not yet looked at, at least REACH */
    int64_t last_hit;
    size_t count; /* candidates found by the last step */
    size_t at[ROLLING_BATCH];
    uint64_t chosen[ROLLING_BATCH], fingerprints[ROLLING_BATCH];
} rolling_walk;

static inline void rolling_start(rolling_walk *walk, const rolling_rules *rules,
                                 const rolling_variant *variant, const uint8_t *data,
                                 size_t length, size_t next, int64_t last_hit)
{
    walk->rules = rules;
    walk->variant = variant;
    walk->data = data;
    walk->length = length;
    walk->next = next < ROLLING_REACH ? ROLLING_REACH : next;
    walk->last_hit = last_hit;
    walk->count = 0;
}

/* Find and hash the next candidates; 0 when the end is reached and there are none. */
static size_t rolling_step(rolling_walk *walk)
{
    uint16_t found[ROLLING_STRIP + 1];
    const int64_t spacing = walk->rules->spacing;
    size_t count = 0;
    while (count < ROLLING_PENDING && walk->next <= walk->length) {
        const size_t first = walk->next, left = walk->length - first + 1;
        const size_t here = left < ROLLING_STRIP ? left : ROLLING_STRIP;
        const size_t hits =
            walk->variant->hits(walk->rules, walk->data + first - ROLLING_REACH,
                                left + ROLLING_REACH - 1, here, found);
        for (size_t i = 0; i < hits; i++) {
            const size_t at = first + found[i];
            if ((int64_t)at - walk->last_hit > spacing && at >= ROLLING_WINDOW)
                walk->at[count++] = at;
            walk->last_hit = (int64_t)at;
        }
        walk->next += here;
    }
    walk->count = count;
    if (count)
        walk->variant->confirm(walk->rules, walk->data, walk->at, count, walk->chosen,
                               walk->fingerprints);
    return count;
}

/* "No hit yet": farther back than any spacing. */
#define ROLLING_NO_HIT (INT64_MIN / 2)

/* Positions and fingerprints of the candidates whose chosen word is below limit * 2^32; at most
 * length / (spacing + 1) + 1 of them. */
static size_t rolling_anchors(const rolling_rules *rules, const rolling_variant *variant,
                              const uint8_t *data, size_t length, uint64_t limit,
                              int64_t *positions, uint64_t *fingerprints)
{
    rolling_walk walk;
    size_t kept = 0;
    rolling_start(&walk, rules, variant, data, length, 0, ROLLING_NO_HIT);
    while (rolling_step(&walk))
        for (size_t i = 0; i < walk.count; i++)
            if (walk.chosen[i] >> 32 < limit) {
                positions[kept] = (int64_t)walk.at[i];
                fingerprints[kept++] = walk.fingerprints[i];
            }
    return kept;
}

/* Where a stream is to be cut, however it is fed: what is carried from one part to the next. */
typedef struct {
    int64_t min_size, target_size, max_size;
    uint64_t hard, easy; /* limits below and from the target size on */
    int64_t length;      /* bytes so far */
    int64_t last_cut;
    int64_t last_hit;
    size_t tail_size;
    uint8_t tail[ROLLING_WINDOW - 1]; /* the last bytes so far */
} rolling_stream;

static inline void rolling_begin(rolling_stream *stream)
{
    stream->length = stream->last_cut = 0;
    stream->last_hit = ROLLING_NO_HIT;
    stream->tail_size = 0;
}

/* Most cuts that `length` more bytes can give. */
static inline size_t rolling_cuts_max(const rolling_stream *stream, size_t length)
{
    const uint64_t uncut = (uint64_t)(stream->length - stream->last_cut) + length;
    return (size_t)(uncut / (uint64_t)stream->min_size);
}

/* Cuts at the candidates of one walk; `base` is the stream's position of walk->data. */
static size_t rolling_select(rolling_stream *stream, rolling_walk *walk, int64_t base,
                             int64_t *cuts, size_t kept)
{
    while (rolling_step(walk))
        for (size_t i = 0; i < walk->count; i++) {
            const int64_t at = base + (int64_t)walk->at[i];
            for (; at - stream->last_cut > stream->max_size; cuts[kept++] = stream->last_cut)
                stream->last_cut += stream->max_size;
            const int64_t size = at - stream->last_cut;
            const uint64_t limit = size < stream->target_size ? stream->hard : stream->easy;
            if (size >= stream->min_size && walk->chosen[i] >> 32 < limit)
                cuts[kept++] = stream->last_cut = at;
        }
    stream->last_hit = walk->last_hit + base;
    return kept;
}

/* Go on with `length` bytes; returns the cuts they decide. */
static size_t rolling_feed(rolling_stream *stream, const rolling_rules *rules,
                           const rolling_variant *variant, const uint8_t *data, size_t length,
                           int64_t *cuts)
{
    enum { KEPT = ROLLING_WINDOW - 1 };
    rolling_walk walk;
    uint8_t border[2 * KEPT];
    const size_t old = stream->tail_size, head = length < KEPT ? length : KEPT;
    const int64_t border_base = stream->length - (int64_t)old;
    size_t kept = 0;
    if (!length)
        return 0;
    /* positions whose windows reach back over the border, then all others */
    memcpy(border, stream->tail, old);
    memcpy(border + old, data, head);
    rolling_start(&walk, rules, variant, border, old + head, old + 1,
                  stream->last_hit - border_base);
    kept = rolling_select(stream, &walk, border_base, cuts, kept);
    if (length > head) {
        rolling_start(&walk, rules, variant, data, length, ROLLING_WINDOW,
                      stream->last_hit - stream->length);
        kept = rolling_select(stream, &walk, stream->length, cuts, kept);
        memcpy(stream->tail, data + length - KEPT, KEPT);
        stream->tail_size = KEPT;
    } else {
        const size_t all = old + head, left = all < KEPT ? all : KEPT;
        memcpy(stream->tail, border + all - left, left);
        stream->tail_size = left;
    }
    stream->length += (int64_t)length;
    for (; stream->length - stream->last_cut >= stream->max_size; cuts[kept++] = stream->last_cut)
        stream->last_cut += stream->max_size;
    return kept;
}

#endif
