/* One CPU variant of the rolling hash; included once per variant by rolling.h, which defines
 * before each inclusion:
 *
 *   FN(name)        name of this variant's copy of a function
 *   TARGET          function attribute that allows its instructions
 *   V               vector of 16-bit lanes
 *   V_STRETCHES     128-bit parts of a vector, each of which takes a stretch of its own
 *   V_STRETCHED(p, length)  16 bytes of each stretch, which begin `length` bytes apart
 *   V_LOW(v), V_HIGH(v)     of each part the first and the last 8 bytes, as 16-bit lanes
 *   V_BEHIND(new, old, n)   in each part, the lanes n before; `old` are those before `new`
 *   V_LOAD(p), V_STORE(p, v)  from and to memory
 *   V_ALL(x)        all lanes x
 *   V_ADD V_MUL V_XOR V_SHR(v, n) V_SHL(v, n)  lane by lane, V_MUL the low halves of products
 *   V_ZEROS(low, high, mask)   a bit for each lane, set where lane & mask is 0
 *   V_OF_STRETCH(zeros, n)     the 16 bits of stretch n, low lanes first
 *   W_LANES W_ALL(x) W_ADD W_ROTATED(v, n)     the same vectors as 64-bit lanes
 */

TARGET static inline V FN(mixed)(V bytes, V first, V add, V second)
{
    const V product = V_ADD(V_MUL(bytes, first), add);
    return V_MUL(V_XOR(product, V_SHR(product, 7)), second);
}

/* The hashes that end with these bytes, of which `hash` is g; `old` holds the lanes of the step
 * before, per pass, and of the one before that for the last. */
TARGET static inline V FN(doubled)(V hash, V third, V old[6])
{
    const V one = V_BEHIND(hash, old[0], 1);
    old[0] = hash;
    hash = V_ADD(hash, V_ADD(one, one));
    const V two = V_BEHIND(hash, old[1], 2);
    old[1] = hash;
    hash = V_ADD(hash, V_SHL(two, 2));
    const V four = V_BEHIND(hash, old[2], 4);
    old[2] = hash;
    hash = V_ADD(hash, V_SHL(four, 4));
    const V eight = old[3];
    old[3] = hash;
    hash = V_ADD(hash, V_SHL(eight, 8));
    const V sixteen = old[5];
    old[5] = old[4];
    old[4] = hash;
    return V_ADD(hash, V_MUL(sixteen, third));
}

/* As rolling_hits_scalar. The positions are taken as V_STRETCHES stretches of equal length, side by
 * side in the 128-bit parts of a vector: so no lane comes from another part, which costs a slow
 * shuffle a pass (avx2 from 3.5 to 5.0 GB/s in cache, avx512 from 6.7 to 7.0), and the passes for
 * 8 and 16 take earlier vectors as they are. */
TARGET static size_t FN(hits)(const rolling_rules *rules, const uint8_t *data, size_t room,
                              size_t count, uint16_t *found)
{
    enum { STEP = 16, BEFORE = ROLLING_REACH - 1 };
    uint8_t copied[ROLLING_STRIP + 2 * STEP + V_STRETCHES];
    uint16_t places[ROLLING_STRIP / V_STRETCHES / STEP + 2];
    uint64_t masks[ROLLING_STRIP / V_STRETCHES / STEP + 2];
    const V first = V_ALL(rules->first), add = V_ALL(rules->add), second = V_ALL(rules->second);
    const V third = V_ALL(rules->third), mask = V_ALL(rules->mask), none = V_ALL(0);
    const size_t length = (count + V_STRETCHES - 1) / V_STRETCHES;
    const size_t end = (length + BEFORE + STEP - 1) / STEP * STEP;
    size_t groups = 0, hits = 0;
    V old[6] = {none, none, none, none, none, none};
    if (room < (V_STRETCHES - 1) * length + end) { /* the last strip of a buffer */
        memset(copied, 0, sizeof copied);
        memcpy(copied, data, count + BEFORE);
        data = copied;
    }
    for (size_t i = 0; i < end; i += STEP) {
        const V bytes = V_STRETCHED(data + i, length);
        const V low = FN(doubled)(FN(mixed)(V_LOW(bytes), first, add, second), third, old);
        const V high = FN(doubled)(FN(mixed)(V_HIGH(bytes), first, add, second), third, old);
        STANDBY_PREFETCH((uintptr_t)data + ROLLING_PREFETCH + i * V_STRETCHES);
        places[groups] = (uint16_t)i;
        masks[groups] = V_ZEROS(low, high, mask);
        groups += masks[groups] != 0;
    }
    for (size_t stretch = 0; stretch < V_STRETCHES; stretch++)
        for (size_t i = 0; i < groups; i++) {
            uint32_t zeros = V_OF_STRETCH(masks[i], stretch);
            for (; zeros; zeros &= zeros - 1) {
                const size_t at = places[i] + rolling_lowest(zeros) - BEFORE;
                found[hits] = (uint16_t)(stretch * length + at);
                hits += (at < length) & (stretch * length + at < count);
            }
        }
    return hits;
}

TARGET static inline void FN(sip_round)(V *v0, V *v1, V *v2, V *v3)
{
    *v0 = W_ADD(*v0, *v1);
    *v2 = W_ADD(*v2, *v3);
    *v1 = V_XOR(W_ROTATED(*v1, 13), *v0);
    *v3 = V_XOR(W_ROTATED(*v3, 16), *v2);
    *v0 = W_ROTATED(*v0, 32);
    *v2 = W_ADD(*v2, *v1);
    *v0 = W_ADD(*v0, *v3);
    *v1 = V_XOR(W_ROTATED(*v1, 17), *v2);
    *v3 = V_XOR(W_ROTATED(*v3, 21), *v0);
    *v2 = W_ROTATED(*v2, 32);
}

/* As rolling_confirm_scalar, eight windows at a time. */
TARGET static void FN(confirm)(const rolling_rules *rules, const uint8_t *data,
                               const size_t *ends, size_t count, uint64_t *chosen,
                               uint64_t *fingerprints)
{
    enum { WORDS = ROLLING_WINDOW / 8, PARTS = ROLLING_LANES / W_LANES };
    uint64_t words[WORDS + 1][ROLLING_LANES], out[2][ROLLING_LANES];
    for (int lane = 0; lane < ROLLING_LANES; lane++)
        words[WORDS][lane] = ROLLING_SIP_END;
    for (size_t i = 0; i < count; i += ROLLING_LANES) {
        const size_t here = count - i < ROLLING_LANES ? count - i : ROLLING_LANES;
        V v0[PARTS], v1[PARTS], v2[PARTS], v3[PARTS];
        for (size_t lane = 0; lane < ROLLING_LANES; lane++) {
            const size_t end = ends[lane < here ? i + lane : i];
            for (int word = 0; word < WORDS; word++)
                words[word][lane] = words_load_le(data + end - ROLLING_WINDOW + 8 * word);
        }
        for (int part = 0; part < PARTS; part++) {
            v0[part] = W_ALL(ROLLING_SIP_0 ^ rules->key[0]);
            v1[part] = W_ALL(ROLLING_SIP_1 ^ rules->key[1]);
            v2[part] = W_ALL(ROLLING_SIP_2 ^ rules->key[0]);
            v3[part] = W_ALL(ROLLING_SIP_3 ^ rules->key[1]);
        }
        for (int word = 0; word <= WORDS; word++)
            for (int part = 0; part < PARTS; part++) {
                const V loaded = V_LOAD(&words[word][part * W_LANES]);
                v3[part] = V_XOR(v3[part], loaded);
                FN(sip_round)(&v0[part], &v1[part], &v2[part], &v3[part]);
                FN(sip_round)(&v0[part], &v1[part], &v2[part], &v3[part]);
                v0[part] = V_XOR(v0[part], loaded);
            }
        for (int half = 0; half < 2; half++)
            for (int part = 0; part < PARTS; part++) {
                if (half)
                    v1[part] = V_XOR(v1[part], W_ALL(0xDD));
                else
                    v2[part] = V_XOR(v2[part], W_ALL(0xEE));
                for (int n = 0; n < 4; n++)
                    FN(sip_round)(&v0[part], &v1[part], &v2[part], &v3[part]);
                V_STORE(&out[half][part * W_LANES],
                        V_XOR(V_XOR(v0[part], v1[part]), V_XOR(v2[part], v3[part])));
            }
        memcpy(chosen + i, out[0], here * sizeof chosen[0]);
        memcpy(fingerprints + i, out[1], here * sizeof fingerprints[0]);
    }
}

#undef FN
#undef TARGET
#undef V
#undef V_LOAD
#undef V_STORE
#undef V_ALL
#undef V_ADD
#undef V_MUL
#undef V_XOR
#undef V_SHR
#undef V_SHL
#undef V_ZEROS
#undef V_STRETCHES
#undef V_STRETCHED
#undef V_LOW
#undef V_HIGH
#undef V_BEHIND
#undef V_OF_STRETCH
#undef W_LANES
#undef W_ALL
#undef W_ADD
#undef W_ROTATED
