/* One CPU variant of the rolling hash; included once per variant by rolling.h, which defines
 * before each inclusion:
 *
 *   FN(name)        name of this variant's copy of a function
 *   TARGET          function attribute that allows its instructions
 *   V, V_LANES      vector of 16-bit lanes, and how many it has
 *   V_WIDENED(p)    lanes from as many bytes;  V_LOAD(p), V_STORE(p, v)  from and to lanes
 *   V_ALL(x)        all lanes x
 *   V_ADD V_MUL V_XOR V_SHR(v, n) V_SHL(v, n)  lane by lane, V_MUL the low halves of products
 *   V_ZEROS(a, b, mask)  a bit per lane of a and then b, set where lane & mask is 0
 *   W_LANES W_ALL(x) W_ADD W_ROTATED(v, n)     the same vectors as 64-bit lanes
 */

/* at[0] = at[k] + (at[0] << k), a vector of it; `k` is a constant. */
#define DOUBLED(at, k) V_ADD(V_LOAD((at) + (k)), V_SHL(V_LOAD(at), k))

TARGET static inline V FN(mixed)(V bytes, V first, V add, V second)
{
    const V product = V_ADD(V_MUL(bytes, first), add);
    return V_MUL(V_XOR(product, V_SHR(product, 7)), second);
}

/* As rolling_hits_scalar. Reads data in whole vectors except at its end. */
TARGET static size_t FN(hits)(const rolling_rules *rules, const uint8_t *data, size_t count,
                              uint16_t *found)
{
    uint16_t a[ROLLING_STRIP + 4 * V_LANES];
    uint16_t places[ROLLING_STRIP / (2 * V_LANES) + 1];
    uint64_t masks[ROLLING_STRIP / (2 * V_LANES) + 1];
    const V first = V_ALL(rules->first), add = V_ALL(rules->add), second = V_ALL(rules->second);
    const V mask = V_ALL(rules->mask);
    const size_t needed = count + ROLLING_REACH - 1;
    size_t i = 0, groups = 0, hits = 0;
    for (; i + V_LANES <= needed; i += V_LANES)
        V_STORE(a + i, FN(mixed)(V_WIDENED(data + i), first, add, second));
    if (i < needed) {
        uint8_t rest[V_LANES] = {0};
        memcpy(rest, data + i, needed - i);
        V_STORE(a + i, FN(mixed)(V_WIDENED(rest), first, add, second));
        i += V_LANES;
    }
    /* the passes run on to whole vectors; what they read there belongs to no result */
    memset(a + i, 0, 3 * V_LANES * sizeof a[0]);
    for (i = 0; i < count + 14; i += V_LANES)
        V_STORE(a + i, DOUBLED(a + i, 1));
    for (i = 0; i < count + 12; i += V_LANES)
        V_STORE(a + i, DOUBLED(a + i, 2));
    for (i = 0; i < count + 8; i += V_LANES)
        V_STORE(a + i, DOUBLED(a + i, 4));
    for (i = 0; i < count; i += 2 * V_LANES) {
        const V low = DOUBLED(a + i, 8), high = DOUBLED(a + i + V_LANES, 8);
        uint64_t zeros = V_ZEROS(low, high, mask);
        if (count - i < 2 * V_LANES)
            zeros &= ((uint64_t)1 << (count - i)) - 1;
        places[groups] = (uint16_t)i;
        masks[groups] = zeros;
        groups += zeros != 0;
    }
    for (i = 0; i < groups; i++) {
        uint64_t zeros = masks[i];
        do {
            found[hits++] = (uint16_t)(places[i] + rolling_lowest(zeros));
            zeros &= zeros - 1;
        } while (zeros);
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

#undef DOUBLED
#undef FN
#undef TARGET
#undef V
#undef V_LANES
#undef V_WIDENED
#undef V_LOAD
#undef V_STORE
#undef V_ALL
#undef V_ADD
#undef V_MUL
#undef V_XOR
#undef V_SHR
#undef V_SHL
#undef V_ZEROS
#undef W_LANES
#undef W_ALL
#undef W_ADD
#undef W_ROTATED
