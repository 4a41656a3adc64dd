/* What bench/rolling_hash.py compares the rolling kernel with: the scalar loops of the literature,
 * without keys. Built by it with the machine's C compiler at -O3. */
#include <stddef.h>
#include <stdint.h>

/* Positions behind which `mask` finds a Gear hash 0: the loop that FastCDC and others are built
 * on, nothing skipped; unrolled, which makes it twice as fast with gcc 12. */
size_t gear(const uint64_t *restrict table, const uint8_t *restrict data, size_t length,
            uint64_t mask, int64_t *restrict out)
{
    size_t found = 0;
    uint64_t hash = 0;
#pragma GCC unroll 8
    for (size_t i = 0; i < length; i++) {
        hash = (hash << 1) + table[data[i]];
        if (__builtin_expect(!(hash & mask), 0))
            out[found++] = (int64_t)i + 1;
    }
    return found;
}

/* FastCDC with normalised chunking (Xia et al., USENIX ATC 2016, algorithm 1): where the pieces of
 * `data` end. The first min_size bytes of a piece are skipped; `hard` up to the target size, `easy`
 * behind it. */
size_t fastcdc(const uint64_t *table, const uint8_t *data, size_t length, size_t min_size,
               size_t target_size, size_t max_size, uint64_t hard, uint64_t easy, int64_t *out)
{
    size_t found = 0;
    for (size_t start = 0; start < length;) {
        const size_t left = length - start;
        const size_t stop = start + (left < max_size ? left : max_size);
        const size_t normal = start + (left < target_size ? left : target_size);
        size_t i = start + min_size;
        uint64_t hash = 0;
        if (left <= min_size)
            i = start + left;
        for (; i < normal; i++) {
            hash = (hash << 1) + table[data[i]];
            if (!(hash & hard))
                goto cut;
        }
        for (; i < stop; i++) {
            hash = (hash << 1) + table[data[i]];
            if (!(hash & easy))
                goto cut;
        }
    cut:
        start = i < stop ? i + 1 : stop;
        out[found++] = (int64_t)start;
    }
    return found;
}
