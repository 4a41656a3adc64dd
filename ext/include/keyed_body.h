/* One CPU variant of the keyed digests; included once per variant by keyed.h, which defines before
 * each inclusion:
 *
 *   FN(name)        name of this variant's copy of a function
 *   TARGET          function attribute that allows its instructions, or nothing
 *   V, V_LANES      vector of 32-bit lanes, and how many it has (1, 4, 8 or 16)
 *   V_ALL(x)        x in every lane;   V_WORDS(p)  lanes from native words;   V_STORE(p, v)
 *   V_ADD V_XOR     lane by lane
 *   V_ROR16 V_ROR12 V_ROR8 V_ROR7   rotations to the right
 *   V_TURN(m, from) m[i] = word i of the 64 bytes at from[lane], for i in 0..15
 *
 * Each lane hashes another chunk; nothing is shared but the key. Section numbers are those of the
 * BLAKE3 paper (O'Connor, Aumasson, Neves, Wilcox-O'Hearn).
 */

/* Section 2.2, table 2: the words that each of the seven rounds takes in order, i.e. the
 * permutation applied 0 to 6 times. */
#define FN_G(a, b, c, d, x, y)                                                                   \
    v[a] = V_ADD(V_ADD(v[a], v[b]), m[x]);                                                       \
    v[d] = V_ROR16(V_XOR(v[d], v[a]));                                                           \
    v[c] = V_ADD(v[c], v[d]);                                                                    \
    v[b] = V_ROR12(V_XOR(v[b], v[c]));                                                           \
    v[a] = V_ADD(V_ADD(v[a], v[b]), m[y]);                                                       \
    v[d] = V_ROR8(V_XOR(v[d], v[a]));                                                            \
    v[c] = V_ADD(v[c], v[d]);                                                                    \
    v[b] = V_ROR7(V_XOR(v[b], v[c]));

#define FN_ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15)           \
    FN_G(0, 4, 8, 12, s0, s1)                                                                    \
    FN_G(1, 5, 9, 13, s2, s3)                                                                    \
    FN_G(2, 6, 10, 14, s4, s5)                                                                   \
    FN_G(3, 7, 11, 15, s6, s7)                                                                   \
    FN_G(0, 5, 10, 15, s8, s9)                                                                   \
    FN_G(1, 6, 11, 12, s10, s11)                                                                 \
    FN_G(2, 7, 8, 13, s12, s13)                                                                  \
    FN_G(3, 4, 9, 14, s14, s15)

/* Section 2.2: the chaining value `h` after one block of `length` bytes. */
TARGET static inline void FN(compress)(V h[8], const V m[16], V counter, V length, V flags)
{
    V v[16];
    for (int i = 0; i < 8; i++)
        v[i] = h[i];
    for (int i = 0; i < 4; i++)
        v[8 + i] = V_ALL(keyed_start[i]);
    v[12] = counter; /* its low half: no input here has 2^32 chunks */
    v[13] = V_ALL(0);
    v[14] = length;
    v[15] = flags;
    FN_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    FN_ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
    FN_ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1)
    FN_ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6)
    FN_ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4)
    FN_ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7)
    FN_ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)
    for (int i = 0; i < 8; i++)
        h[i] = V_XOR(v[i], v[8 + i]);
}

/* Write the chaining value of lane `i` to values + 8 i, for the first `lanes` lanes. */
TARGET static inline void FN(spread)(const V h[8], uint32_t *values, size_t lanes)
{
    uint32_t words[8][V_LANES];
    for (int i = 0; i < 8; i++)
        V_STORE(words[i], h[i]);
    for (size_t lane = 0; lane < lanes; lane++)
        for (int i = 0; i < 8; i++)
            values[8 * lane + (size_t)i] = words[i][lane];
}

/* Chaining values of the chunks of `count` pieces (at most KEYED_GROUP), which begin at pieces[i].
 * Chunk by chunk as many as there are lanes; lanes behind the last one hash it again. */
TARGET static void FN(chunks)(const uint8_t *const *pieces, size_t count, const uint32_t *key,
                              uint32_t *values)
{
    const size_t chunks = count * KEYED_CHUNKS;
    for (size_t first = 0; first < chunks; first += V_LANES) {
        const size_t lanes = chunks - first < V_LANES ? chunks - first : V_LANES;
        const uint8_t *from[V_LANES], *next[V_LANES];
        uint32_t counters[V_LANES];
        V h[8], m[16], counter;
        for (size_t lane = 0; lane < V_LANES; lane++) {
            const size_t chunk = first + (lane < lanes ? lane : lanes - 1);
            counters[lane] = (uint32_t)(chunk % KEYED_CHUNKS);
            from[lane] = pieces[chunk / KEYED_CHUNKS] + KEYED_CHUNK * (size_t)counters[lane];
            next[lane] = from[lane];
            if (chunk + V_LANES < chunks)
                next[lane] = pieces[(chunk + V_LANES) / KEYED_CHUNKS] +
                             KEYED_CHUNK * ((chunk + V_LANES) % KEYED_CHUNKS);
        }
        counter = V_WORDS(counters);
        for (int i = 0; i < 8; i++)
            h[i] = V_ALL(key[i]);
        for (int block = 0; block < KEYED_CHUNK / KEYED_BLOCK; block++) {
            uint32_t flags = KEYED_KEYED;
            flags |= block == 0 ? KEYED_CHUNK_START : 0;
            flags |= block == KEYED_CHUNK / KEYED_BLOCK - 1 ? KEYED_CHUNK_END : 0;
            V_TURN(m, from);
            FN(compress)(h, m, counter, V_ALL(KEYED_BLOCK), V_ALL(flags));
            for (size_t lane = 0; lane < V_LANES; lane++) {
                STANDBY_PREFETCH(next[lane] + KEYED_BLOCK * block);
                from[lane] += KEYED_BLOCK;
            }
        }
        FN(spread)(h, values + 8 * first, lanes);
    }
}

/* Section 2.5: `count` parents of pairs of chaining values, in place. */
TARGET static void FN(parents)(uint32_t *values, size_t count, const uint32_t *key,
                               uint32_t flags)
{
    for (size_t first = 0; first < count; first += V_LANES) {
        const size_t lanes = count - first < V_LANES ? count - first : V_LANES;
        const uint8_t *from[V_LANES];
        V h[8], m[16];
        for (size_t lane = 0; lane < V_LANES; lane++)
            from[lane] = (const uint8_t *)(values + 16 * (first + (lane < lanes ? lane : 0)));
        for (int i = 0; i < 8; i++)
            h[i] = V_ALL(key[i]);
        V_TURN(m, from);
        FN(compress)(h, m, V_ALL(0), V_ALL(KEYED_BLOCK), V_ALL(flags));
        FN(spread)(h, values + 8 * first, lanes); /* behind what was read, or before it */
    }
}

/* The first `width` bytes (KEYED_NAME or KEYED_DIGEST) of the digests of `count` pieces of 4096
 * bytes, which begin at pieces[i], at most KEYED_GROUP. */
TARGET static void FN(names)(const uint8_t *const *pieces, size_t count, const uint32_t *key,
                             size_t width, uint8_t *out)
{
    uint32_t values[KEYED_GROUP * KEYED_CHUNKS * 8];
    FN(chunks)(pieces, count, key, values);
    FN(parents)(values, 2 * count, key, KEYED_PARENT | KEYED_KEYED);
    FN(parents)(values, count, key, KEYED_PARENT | KEYED_ROOT | KEYED_KEYED);
    for (size_t i = 0; i < count; i++)
        keyed_store_words(out + width * i, values + 8 * i, width);
}

/* The first KEYED_MARK bytes of the digests of `count` parts of KEYED_PART bytes, one behind the
 * other. A part is one chunk, and that the root. */
TARGET static void FN(marks)(const uint8_t *data, size_t count, const uint32_t *key,
                             uint8_t *out)
{
    for (size_t first = 0; first < count; first += V_LANES) {
        const size_t lanes = count - first < V_LANES ? count - first : V_LANES;
        const uint8_t *from[V_LANES];
        uint32_t words[V_LANES];
        V h[8], m[16];
        for (size_t lane = 0; lane < V_LANES; lane++)
            from[lane] = data + KEYED_PART * (first + (lane < lanes ? lane : 0));
        for (int i = 0; i < 8; i++)
            h[i] = V_ALL(key[i]);
        for (int block = 0; block < KEYED_PART / KEYED_BLOCK; block++) {
            uint32_t flags = KEYED_KEYED;
            flags |= block == 0 ? KEYED_CHUNK_START : 0;
            flags |= block == KEYED_PART / KEYED_BLOCK - 1 ? KEYED_CHUNK_END | KEYED_ROOT : 0;
            V_TURN(m, from);
            FN(compress)(h, m, V_ALL(0), V_ALL(KEYED_BLOCK), V_ALL(flags));
            for (size_t lane = 0; lane < V_LANES; lane++)
                from[lane] += KEYED_BLOCK;
        }
        V_STORE(words, h[0]);
        for (size_t lane = 0; lane < lanes; lane++)
            keyed_store_words(out + KEYED_MARK * (first + lane), words + lane, KEYED_MARK);
    }
}

#undef FN_G
#undef FN_ROUND
#undef FN
#undef TARGET
#undef V
#undef V_LANES
#undef V_ALL
#undef V_WORDS
#undef V_STORE
#undef V_ADD
#undef V_XOR
#undef V_ROR16
#undef V_ROR12
#undef V_ROR8
#undef V_ROR7
#undef V_TURN
