# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Keyed BLAKE3 of 4 KiB pieces, many side by side. Owner: standby.wan.names."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t

cdef extern from "keyed.h" nogil:
    const size_t C_PIECE "KEYED_PIECE"
    const size_t C_KEY "KEYED_KEY"
    const size_t C_NAME "KEYED_NAME"
    const size_t C_DIGEST "KEYED_DIGEST"
    const size_t C_PART "KEYED_PART"
    const size_t C_MARK "KEYED_MARK"
    const int VARIANTS "KEYED_VARIANTS"
    ctypedef struct variant_t "keyed_variant":
        const char *name
    const variant_t table "keyed_variants"[]
    int supported "keyed_supported"(int) noexcept
    int c_offsets_valid "keyed_offsets_valid"(const int64_t *, size_t, size_t) noexcept
    void c_names "keyed_names"(
        const variant_t *, const uint8_t *, size_t, const int64_t *, size_t, const uint8_t *,
        size_t, uint8_t *) noexcept
    void c_marks "keyed_marks"(
        const variant_t *, const uint8_t *, size_t, const uint8_t *, uint8_t *) noexcept

PIECE, KEY, NAME, DIGEST, PART, MARK = C_PIECE, C_KEY, C_NAME, C_DIGEST, C_PART, C_MARK
include "variants.pxi"
include "checks.pxi"


def names(const uint8_t[::1] data not None, const uint8_t[::1] key not None,
          uint8_t[:, ::1] out not None):
    cdef size_t length = data.shape[0], count = out.shape[0], width = out.shape[1]
    require(<size_t>key.shape[0] == C_KEY, "the key must have 32 bytes")
    require((width == C_NAME or width == C_DIGEST)
            and count == length // C_PIECE + (length % C_PIECE != 0),
            "out must be (one row per piece, 16 or 32)")
    require(apart(&data[0], length, &out[0, 0], width * count)
            and apart(&key[0], C_KEY, &out[0, 0], width * count), "buffers overlap")
    with nogil:
        c_names(active, &data[0], length, NULL, count, &key[0], width, &out[0, 0])


def names_at(const uint8_t[::1] data not None, const int64_t[::1] offsets not None,
             const uint8_t[::1] key not None, uint8_t[:, ::1] out not None):
    cdef size_t length = data.shape[0], count = offsets.shape[0], rows = out.shape[0]
    cdef size_t width = out.shape[1]
    cdef bint valid
    require(<size_t>key.shape[0] == C_KEY, "the key must have 32 bytes")
    require((width == C_NAME or width == C_DIGEST) and rows == count,
            "out must be (one row per offset, 16 or 32)")
    require(apart(&data[0], length, &out[0, 0], width * count)
            and apart(&offsets[0], 8 * count, &out[0, 0], width * count)
            and apart(&key[0], C_KEY, &out[0, 0], width * count), "buffers overlap")
    with nogil:
        valid = c_offsets_valid(&offsets[0], count, length)
        if valid:
            c_names(active, &data[0], length, &offsets[0], count, &key[0], width, &out[0, 0])
    require(valid, "an offset lies outside of the data")


def marks(const uint8_t[::1] data not None, const uint8_t[::1] key not None,
          uint8_t[:, ::1] out not None):
    cdef size_t length = data.shape[0], count = out.shape[0]
    require(<size_t>key.shape[0] == C_KEY, "the key must have 32 bytes")
    require(out.shape[1] == <Py_ssize_t>C_MARK and length == count * C_PART,
            "out must be (one row per whole part, 2)")
    require(apart(&data[0], length, &out[0, 0], C_MARK * count)
            and apart(&key[0], C_KEY, &out[0, 0], C_MARK * count), "buffers overlap")
    with nogil:
        c_marks(active, &data[0], count, &key[0], &out[0, 0])
