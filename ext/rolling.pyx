# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The rolling hash that finds anchors and cuts. Owner: standby.chunking."""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t

cdef extern from "rolling.h" nogil:
    const int VARIANTS "ROLLING_VARIANTS"
    const size_t WINDOW_BYTES "ROLLING_WINDOW"
    ctypedef struct rules_t "rolling_rules":
        uint16_t first
        uint16_t add
        uint16_t second
        uint16_t third
        uint16_t mask
        int64_t spacing
        uint64_t key[2]
        uint16_t table[256]
    ctypedef struct variant_t "rolling_variant":
        const char *name
    ctypedef struct stream_t "rolling_stream":
        int64_t min_size
        int64_t target_size
        int64_t max_size
        uint64_t hard
        uint64_t easy
        int64_t length
        int64_t last_cut
    const variant_t table "rolling_variants"[]
    int supported "rolling_supported"(int) noexcept
    void tabulate "rolling_tabulate"(rules_t *) noexcept
    uint64_t load_le "words_load_le"(const void *) noexcept
    size_t c_anchors "rolling_anchors"(const rules_t *, const variant_t *, const uint8_t *, size_t,
                                       uint64_t, int64_t *, uint64_t *) noexcept
    void begin "rolling_begin"(stream_t *) noexcept
    size_t cuts_max "rolling_cuts_max"(const stream_t *, size_t) noexcept
    size_t c_feed "rolling_feed"(stream_t *, const rules_t *, const variant_t *, const uint8_t *,
                                 size_t, int64_t *) noexcept

WINDOW = WINDOW_BYTES
include "variants.pxi"
include "checks.pxi"


cdef class Rules:
    """What is a hit, and under which key its window is hashed; changes no more once made."""

    cdef rules_t rules

    def __init__(self, const uint16_t[::1] mixing not None, const uint8_t[::1] key not None,
                 int bits, int64_t spacing):
        require(mixing.shape[0] == 4 and mixing[0] & mixing[2] & mixing[3] & 1,
                "mixing must be 4, all but the second odd")
        require(key.shape[0] == 16, "key must have 16 bytes")
        require(1 <= bits <= 16 and 1 <= spacing < 1 << 32, "bits or spacing out of range")
        self.rules.first, self.rules.add = mixing[0], mixing[1]
        self.rules.second, self.rules.third = mixing[2], mixing[3]
        self.rules.mask = <uint16_t>(0x10000 - (1 << (16 - bits)))
        self.rules.spacing = spacing
        self.rules.key[0], self.rules.key[1] = load_le(&key[0]), load_le(&key[8])
        tabulate(&self.rules)

    def anchors(self, const uint8_t[::1] data not None, uint64_t limit,
                int64_t[::1] positions_out not None, uint64_t[::1] fingerprints_out not None):
        cdef size_t length = data.shape[0], rows = positions_out.shape[0], found
        cdef const variant_t *chosen = active
        require(rows > length // <size_t>(self.rules.spacing + 1), "positions_out is too short")
        require(rows == <size_t>fingerprints_out.shape[0], "outputs differ in length")
        require(apart(&data[0], length, &positions_out[0], 8 * rows)
                and apart(&data[0], length, &fingerprints_out[0], 8 * rows)
                and apart(&positions_out[0], 8 * rows, &fingerprints_out[0], 8 * rows),
                "buffers overlap")
        with nogil:
            found = c_anchors(&self.rules, chosen, &data[0], length, limit, &positions_out[0],
                              &fingerprints_out[0])
        return found


cdef class Stream:
    """Cuts of bytes that come in parts; one thread at a time."""

    cdef Rules rules
    cdef stream_t stream
    cdef bint busy

    def __init__(self, Rules rules not None, int64_t min_size, int64_t target_size,
                 int64_t max_size, uint64_t hard, uint64_t easy):
        require(1 <= min_size <= target_size <= max_size < 1 << 40, "sizes must ascend")
        self.rules = rules
        self.stream.min_size, self.stream.target_size = min_size, target_size
        self.stream.max_size, self.stream.hard, self.stream.easy = max_size, hard, easy
        begin(&self.stream)

    def feed(self, const uint8_t[::1] data not None, int64_t[::1] cuts_out not None):
        cdef size_t length = data.shape[0], rows = cuts_out.shape[0], found
        cdef const variant_t *chosen = active
        require(length <= <uint64_t>(INT64_MAX // 4 - self.stream.length), "the stream is too long")
        require(rows >= cuts_max(&self.stream, length), "cuts_out is too short")
        require(apart(&data[0], length, &cuts_out[0], 8 * rows), "buffers overlap")
        require(not self.busy, "another thread feeds this stream")
        self.busy = True
        with nogil:
            found = c_feed(&self.stream, &self.rules.rules, chosen, &data[0], length, &cuts_out[0])
        self.busy = False
        return found

    @property
    def place(self):
        return self.stream.length, self.stream.last_cut
