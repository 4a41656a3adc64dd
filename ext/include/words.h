/* Words in explicit byte order, and 64 x 64 -> 128 bit multiplication, for every compiler. */
#ifndef STANDBY_WORDS_H
#define STANDBY_WORDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) && \
    __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define STANDBY_BIG_ENDIAN 1
#else
#define STANDBY_BIG_ENDIAN 0
#endif

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

/* Hints; a compiler that knows none of them builds the same results more slowly. */
#if defined(__clang__)
#define STANDBY_UNROLL_16 _Pragma("clang loop unroll_count(16)")
#define STANDBY_NOINLINE __attribute__((noinline))
#define STANDBY_PREFETCH(address) __builtin_prefetch((const void *)(address))
#elif defined(__GNUC__)
#define STANDBY_UNROLL_16 _Pragma("GCC unroll 16")
#define STANDBY_NOINLINE __attribute__((noinline))
#define STANDBY_PREFETCH(address) __builtin_prefetch((const void *)(address))
#else
#define STANDBY_UNROLL_16
#define STANDBY_NOINLINE
#define STANDBY_PREFETCH(address) ((void)(address))
#endif

static inline uint64_t words_swapped(uint64_t x)
{
    x = ((x & 0x00FF00FF00FF00FFull) << 8) | ((x >> 8) & 0x00FF00FF00FF00FFull);
    x = ((x & 0x0000FFFF0000FFFFull) << 16) | ((x >> 16) & 0x0000FFFF0000FFFFull);
    return (x << 32) | (x >> 32);
}

static inline uint64_t words_load_le(const void *from)
{
    uint64_t x;
    memcpy(&x, from, sizeof x);
    return STANDBY_BIG_ENDIAN ? words_swapped(x) : x;
}

static inline void words_store_be(void *to, uint64_t x)
{
    x = STANDBY_BIG_ENDIAN ? x : words_swapped(x);
    memcpy(to, &x, sizeof x);
}

/* Low half XOR high half of the 128-bit product. */
static inline uint64_t words_folded_product(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    uint64_t high;
    const uint64_t low = _umul128(a, b, &high);
    return low ^ high;
#else
    /* schoolbook in 32-bit digits */
    const uint64_t al = a & 0xFFFFFFFFu, ah = a >> 32, bl = b & 0xFFFFFFFFu, bh = b >> 32;
    const uint64_t ll = al * bl, lh = al * bh, hl = ah * bl, hh = ah * bh;
    const uint64_t middle = (ll >> 32) + (lh & 0xFFFFFFFFu) + hl;
    const uint64_t high = hh + (lh >> 32) + (middle >> 32);
    return ((middle << 32) | (ll & 0xFFFFFFFFu)) ^ high;
#endif
}

#endif
