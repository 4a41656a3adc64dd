/* One CPU variant of the loops over 4 KiB pieces; included once per variant by blocks.h, which
 * defines before each inclusion:
 *
 *   FN(name)         name of this variant's copy of a function
 *   TARGET           function attribute that allows its instructions, or nothing
 *   V, V_BYTES       vector of 64-bit lanes, and its size (16, 32 or 64)
 *   V_LOAD(p)        lanes from little-endian bytes, any alignment
 *   V_WORDS(p)       lanes from native words;   V_STORE(p, v)  to native words
 *   V_XOR V_OR V_ADD lane by lane
 *   V_MUL(a, b)      low 32 bits of a times low 32 bits of b, 64-bit result
 *   V_HIGH(a)        a with each lane's high half moved to its low half (high half: anything)
 *   V_SHR47 V_SHL32  shifts of each lane
 *   V_SWAP(a)        neighbouring lanes exchanged
 *   V_PRIME          all lanes XXH3_PRIME32_1
 *   V_IS_ZERO(a)     true when all bits are 0
 *
 * The digest is XXH3 for more than 240 bytes (see xxh3_constants.h). The specification adds to
 * lane i, per stripe, the product of its own halves and the plain word of lane i ^ 1. Sums commute:
 * the plain words are summed on their own and exchanged once per block of 16 stripes, which saves
 * one shuffle of five operations per stripe (58 to 70 GB/s with avx512, 34 to 43 with avx2, 256 KiB
 * in cache, bench/bench_kernels.py).
 */

#define V_COUNT (XXH3_STRIPE / V_BYTES)

/* Unrolled, the key of each stripe becomes an aligned constant of its own. The prefetch crosses
 * 4 KiB borders where the hardware's stops: up to +15 % from memory, nothing lost in cache. It may
 * point past the buffer, where it does nothing. */
TARGET static inline void FN(accumulate)(V *acc, V *plain, const uint8_t *stripe,
                                         const uint8_t *key)
{
    STANDBY_PREFETCH((uintptr_t)stripe + BLOCKS_PREFETCH);
    for (int i = 0; i < V_COUNT; i++) {
        const V words = V_LOAD(stripe + (size_t)i * V_BYTES);
        const V mixed = V_XOR(words, V_LOAD(key + (size_t)i * V_BYTES));
        acc[i] = V_ADD(acc[i], V_MUL(mixed, V_HIGH(mixed)));
        plain[i] = V_ADD(plain[i], words);
    }
}

/* Bring the plain sums into the lanes beside them, and start them anew. */
TARGET static inline void FN(exchange)(V *acc, V *plain)
{
    for (int i = 0; i < V_COUNT; i++) {
        acc[i] = V_ADD(acc[i], V_SWAP(plain[i]));
        plain[i] = V_XOR(plain[i], plain[i]);
    }
}

TARGET static inline void FN(scramble)(V *acc)
{
    for (int i = 0; i < V_COUNT; i++) {
        const V key = V_LOAD(xxh3_secret + XXH3_KEY_SCRAMBLE + (size_t)i * V_BYTES);
        const V mixed = V_XOR(V_XOR(acc[i], V_SHR47(acc[i])), key);
        const V high = V_MUL(V_HIGH(mixed), V_PRIME);
        acc[i] = V_ADD(V_MUL(mixed, V_PRIME), V_SHL32(high));
    }
}

/* The eight lanes after `length` bytes; length is a constant > 240 wherever this is inlined. */
TARGET static inline void FN(lanes)(const uint8_t *data, size_t length, uint64_t lanes[8])
{
    V acc[V_COUNT], plain[V_COUNT];
    const uint8_t *stripe = data;
    const size_t blocks = (length - 1) / XXH3_BLOCK;
    const size_t rest = (length - 1 - blocks * XXH3_BLOCK) / XXH3_STRIPE;
    for (int i = 0; i < V_COUNT; i++) {
        acc[i] = V_WORDS(xxh3_start + (size_t)i * (V_BYTES / 8));
        plain[i] = V_XOR(acc[i], acc[i]);
    }
    for (size_t block = 0; block < blocks; block++) {
        STANDBY_UNROLL_16
        for (int n = 0; n < XXH3_STRIPES_PER_BLOCK; n++, stripe += XXH3_STRIPE)
            FN(accumulate)(acc, plain, stripe, xxh3_secret + n * XXH3_KEY_STEP);
        FN(exchange)(acc, plain);
        FN(scramble)(acc);
    }
    STANDBY_UNROLL_16
    for (size_t n = 0; n < rest; n++, stripe += XXH3_STRIPE)
        FN(accumulate)(acc, plain, stripe, xxh3_secret + n * XXH3_KEY_STEP);
    FN(accumulate)(acc, plain, data + length - XXH3_STRIPE, xxh3_secret + XXH3_KEY_LAST);
    FN(exchange)(acc, plain);
    for (int i = 0; i < V_COUNT; i++)
        V_STORE(lanes + (size_t)i * (V_BYTES / 8), acc[i]);
}

/* Out of line: inlined, the compiler keeps the zero test's vectors alive across it. */
TARGET STANDBY_NOINLINE static uint64_t FN(leaf_of_piece)(const uint8_t *data)
{
    uint64_t lanes[8];
    FN(lanes)(data, BLOCKS_PIECE, lanes);
    return xxh3_merged(lanes, XXH3_KEY_MERGE, (uint64_t)BLOCKS_PIECE * XXH3_PRIME64_1);
}

/* XXH3-128 in its canonical form: high half first, each half big-endian. */
TARGET static inline void FN(node)(const uint8_t *data, size_t length, uint8_t *out)
{
    uint64_t lanes[8];
    FN(lanes)(data, length, lanes);
    words_store_be(out, xxh3_merged(lanes, XXH3_KEY_MERGE_HIGH, ~(length * XXH3_PRIME64_2)));
    words_store_be(out + 8, xxh3_merged(lanes, XXH3_KEY_MERGE, length * XXH3_PRIME64_1));
}

/* True when all `length` bytes are 0. The first word decides for nearly all data; behind it 512
 * bytes are tested at a time. */
TARGET static inline int FN(zeros)(const uint8_t *data, size_t length)
{
    size_t at = 0;
    uint64_t word;
    if (length >= 8) {
        memcpy(&word, data, 8);
        if (word)
            return 0;
    }
    for (; length - at >= 512; at += 512) {
        V any = V_LOAD(data + at);
        for (int i = 1; i < 512 / V_BYTES; i++)
            any = V_OR(any, V_LOAD(data + at + (size_t)i * V_BYTES));
        if (!V_IS_ZERO(any))
            return 0;
    }
    for (; length - at >= 8; at += 8) {
        memcpy(&word, data + at, 8);
        if (word)
            return 0;
    }
    for (; at < length; at++)
        if (data[at])
            return 0;
    return 1;
}

/* Leaf of a piece of 1..4096 bytes, the rest taken as zeros; *kind says data or zero. */
TARGET static inline uint64_t FN(leaf)(const uint8_t *data, size_t length, int64_t *kind)
{
    uint8_t padded[BLOCKS_PIECE];
    if (FN(zeros)(data, length)) {
        *kind = BLOCKS_ZERO;
        return BLOCKS_ZERO_LEAF;
    }
    *kind = BLOCKS_DATA;
    if (length == BLOCKS_PIECE)
        return FN(leaf_of_piece)(data);
    memcpy(padded, data, length);
    memset(padded + length, 0, BLOCKS_PIECE - length);
    return FN(leaf_of_piece)(padded);
}

TARGET static void FN(leaves)(const uint8_t *data, size_t length, uint64_t *out)
{
    int64_t kind;
    size_t i = 0, at = 0;
    for (; length - at >= BLOCKS_PIECE; i++, at += BLOCKS_PIECE)
        out[i] = FN(leaf)(data + at, BLOCKS_PIECE, &kind);
    if (at < length)
        out[i] = FN(leaf)(data + at, length - at, &kind);
}

TARGET static size_t FN(scan)(const uint8_t *data, size_t length, const uint64_t *stored,
                              uint64_t *out, int64_t *runs)
{
    size_t count = 0, i = 0, at = 0;
    int64_t kind;
    for (; length - at >= BLOCKS_PIECE; i++, at += BLOCKS_PIECE) {
        out[i] = FN(leaf)(data + at, BLOCKS_PIECE, &kind);
        if (out[i] != stored[i])
            count = blocks_extend(runs, count, i, kind);
    }
    if (at < length) {
        out[i] = FN(leaf)(data + at, length - at, &kind);
        if (out[i] != stored[i])
            count = blocks_extend(runs, count, i, kind);
    }
    return count;
}

TARGET static void FN(join_leaves)(const uint64_t *leaves, size_t count, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
#if STANDBY_BIG_ENDIAN
        uint64_t children[BLOCKS_FANOUT];
        for (size_t k = 0; k < BLOCKS_FANOUT; k++)
            children[k] = words_swapped(leaves[i * BLOCKS_FANOUT + k]);
        FN(node)((const uint8_t *)children, BLOCKS_FANOUT * 8, out + i * BLOCKS_NODE);
#else
        FN(node)((const uint8_t *)(leaves + i * BLOCKS_FANOUT), BLOCKS_FANOUT * 8,
                 out + i * BLOCKS_NODE);
#endif
    }
}

TARGET static void FN(join_nodes)(const uint8_t *nodes, size_t count, uint8_t *out)
{
    const size_t step = (size_t)BLOCKS_FANOUT * BLOCKS_NODE;
    for (size_t i = 0; i < count; i++)
        FN(node)(nodes + i * step, step, out + i * BLOCKS_NODE);
}

TARGET static int FN(is_zero)(const uint8_t *data, size_t length)
{
    return FN(zeros)(data, length);
}

TARGET static size_t FN(zero_runs)(const uint8_t *data, size_t length, size_t granularity,
                                   int64_t *runs)
{
    size_t count = 0, i = 0;
    for (size_t at = 0; at < length; i++, at += granularity) {
        const size_t here = length - at < granularity ? length - at : granularity;
        count = blocks_extend(runs, count, i,
                              FN(zeros)(data + at, here) ? BLOCKS_ZERO : BLOCKS_DATA);
    }
    return count;
}

#undef FN
#undef TARGET
#undef V
#undef V_BYTES
#undef V_COUNT
#undef V_LOAD
#undef V_WORDS
#undef V_STORE
#undef V_XOR
#undef V_OR
#undef V_ADD
#undef V_MUL
#undef V_HIGH
#undef V_SHR47
#undef V_SHL32
#undef V_SWAP
#undef V_PRIME
#undef V_IS_ZERO
