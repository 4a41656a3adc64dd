# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Loops over a disk's 4 KiB pieces. Owners: standby.digesting and standby.comparing."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from "blocks.h" nogil:
    const size_t PIECE "BLOCKS_PIECE"
    const uint64_t ZERO "BLOCKS_ZERO_LEAF"
    const int VARIANTS "BLOCKS_VARIANTS"
    ctypedef struct variant_t "blocks_variant":
        const char *name
        void (*leaves)(const uint8_t *, size_t, uint64_t *) noexcept nogil
        size_t (*scan)(const uint8_t *, size_t, const uint64_t *, uint64_t *,
                       int64_t *) noexcept nogil
        void (*join_leaves)(const uint64_t *, size_t, uint8_t *) noexcept nogil
        void (*join_nodes)(const uint8_t *, size_t, uint8_t *) noexcept nogil
        int (*is_zero)(const uint8_t *, size_t) noexcept nogil
        size_t (*zero_runs)(const uint8_t *, size_t, size_t, int64_t *) noexcept nogil
    const variant_t table "blocks_variants"[]
    int supported "blocks_supported"(int) noexcept
    size_t c_changed "blocks_changed"(
        const uint64_t *, const uint64_t *, size_t, int64_t *) noexcept
    size_t c_differing "blocks_differing"(
        const uint8_t *, const uint8_t *, size_t, size_t, int64_t *) noexcept
    int c_runs_valid "blocks_runs_valid"(const int64_t *, size_t, size_t) noexcept
    size_t c_compact "blocks_compact"(uint8_t *, size_t, const int64_t *, size_t) noexcept

cdef extern from "file_scan.h" nogil:
    const bint AVAILABLE "FILE_SCAN_AVAILABLE"
    const int64_t CHUNK "FILE_SCAN_CHUNK"
    const int DONE "FILE_SCAN_DONE"
    const int FULL "FILE_SCAN_FULL"
    const int FAILED "FILE_SCAN_FAILED"
    enum:
        WINDOW "FILE_SCAN_WINDOW"
        OFFSET "FILE_SCAN_OFFSET"
        FILLED "FILE_SCAN_FILLED"
        ROWS "FILE_SCAN_ROWS"
        KEPT "FILE_SCAN_KEPT"
        READ "FILE_SCAN_READ"
        READ_NS "FILE_SCAN_READ_NS"
        BAD_FILE "FILE_SCAN_BAD_FILE"
        BAD_OFFSET "FILE_SCAN_BAD_OFFSET"
        BAD_LENGTH "FILE_SCAN_BAD_LENGTH"
        BAD_DONE "FILE_SCAN_BAD_DONE"
        BAD_ERRNO "FILE_SCAN_BAD_ERRNO"
        FIELDS "FILE_SCAN_FIELDS"
    ctypedef struct file_scan_t "file_scan":
        const int64_t *windows
        size_t window_count
        const int64_t *segments
        size_t segment_count
        const int32_t *files
        size_t file_count
        const uint64_t *stored
        uint64_t *leaves
        size_t leaf_count
        uint8_t *slot
        size_t slot_size
        int keeps
        int64_t *rows
        size_t row_count
        uint64_t *kept
        int64_t *state
    int file_scan_valid(const file_scan_t *) noexcept
    int file_scan_run(const file_scan_t *, const variant_t *) noexcept

ZERO_LEAF = ZERO
READS_FILES = bool(AVAILABLE)
READ_CHUNK = CHUNK
ALL_DONE, READ_FAILED = DONE, FAILED
include "variants.pxi"
include "checks.pxi"


cdef inline size_t pieces(size_t length, size_t granularity) noexcept nogil:
    return length // granularity + (length % granularity != 0)


def leaves(const uint8_t[::1] data not None, uint64_t[::1] out not None):
    cdef size_t length = data.shape[0], count = out.shape[0]
    require(count == pieces(length, PIECE), "out must hold one leaf per piece")
    require(apart(&data[0], length, &out[0], 8 * count), "buffers overlap")
    with nogil:
        active.leaves(&data[0], length, &out[0])


def scan(const uint8_t[::1] data not None, const uint64_t[::1] stored not None,
         uint64_t[::1] leaves_out not None, int64_t[:, ::1] runs_out not None):
    cdef size_t length = data.shape[0], count = pieces(length, PIECE), found
    cdef size_t rows = runs_out.shape[0], old = stored.shape[0], new = leaves_out.shape[0]
    require(old == count and new == count, "stored and leaves_out must hold one leaf per piece")
    require(rows >= count and runs_out.shape[1] == 3, "runs_out must be (one row per piece, 3)")
    require(apart(&data[0], length, &leaves_out[0], 8 * count)
            and apart(&stored[0], 8 * count, &leaves_out[0], 8 * count)
            and apart(&data[0], length, &runs_out[0, 0], 24 * rows)
            and apart(&stored[0], 8 * count, &runs_out[0, 0], 24 * rows)
            and apart(&leaves_out[0], 8 * count, &runs_out[0, 0], 24 * rows), "buffers overlap")
    with nogil:
        found = active.scan(&data[0], length, &stored[0], &leaves_out[0], &runs_out[0, 0])
    return found


def join_leaves(const uint64_t[:, ::1] children not None, uint8_t[:, ::1] out not None):
    cdef size_t count = children.shape[0], rows = out.shape[0]
    require(children.shape[1] == 64, "children must be (n, 64)")
    require(rows == count and out.shape[1] == 16, "out must be (n, 16)")
    require(apart(&children[0, 0], 512 * count, &out[0, 0], 16 * count), "buffers overlap")
    with nogil:
        active.join_leaves(&children[0, 0], count, &out[0, 0])


def join_nodes(const uint8_t[:, ::1] children not None, uint8_t[:, ::1] out not None):
    cdef size_t count = children.shape[0], rows = out.shape[0]
    require(children.shape[1] == 1024, "children must be (n, 1024)")
    require(rows == count and out.shape[1] == 16, "out must be (n, 16)")
    require(apart(&children[0, 0], 1024 * count, &out[0, 0], 16 * count), "buffers overlap")
    with nogil:
        active.join_nodes(&children[0, 0], count, &out[0, 0])


def is_zero(const uint8_t[::1] data not None):
    cdef size_t length = data.shape[0]
    cdef bint answer
    with nogil:
        answer = active.is_zero(&data[0], length)
    return answer


def zero_runs(const uint8_t[::1] data not None, size_t granularity, int64_t[:, ::1] out not None):
    cdef size_t length = data.shape[0], rows = out.shape[0], found
    require(granularity > 0, "granularity must be positive")
    require(rows >= pieces(length, granularity) and out.shape[1] == 3, "out is too small")
    require(apart(&data[0], length, &out[0, 0], 24 * rows), "buffers overlap")
    with nogil:
        found = active.zero_runs(&data[0], length, granularity, &out[0, 0])
    return found


def changed(const uint64_t[::1] a not None, const uint64_t[::1] b not None,
            int64_t[:, ::1] out not None):
    cdef size_t count = a.shape[0], rows = out.shape[0], found
    require(a.shape[0] == b.shape[0], "a and b differ in length")
    require(rows >= (count + 1) // 2 and out.shape[1] == 2, "out is too small")
    require(apart(&a[0], 8 * count, &out[0, 0], 16 * rows)
            and apart(&b[0], 8 * count, &out[0, 0], 16 * rows), "buffers overlap")
    with nogil:
        found = c_changed(&a[0], &b[0], count, &out[0, 0])
    return found


def differing(const uint8_t[::1] a not None, const uint8_t[::1] b not None, size_t granularity,
              int64_t[:, ::1] out not None):
    cdef size_t length = a.shape[0], rows = out.shape[0], found
    require(granularity > 0 and a.shape[0] == b.shape[0], "a and b differ in length")
    require(rows >= (pieces(length, granularity) + 1) // 2, "out is too small")
    require(out.shape[1] == 2, "out must have 2 columns")
    require(apart(&a[0], length, &out[0, 0], 16 * rows)
            and apart(&b[0], length, &out[0, 0], 16 * rows), "buffers overlap")
    with nogil:
        found = c_differing(&a[0], &b[0], length, granularity, &out[0, 0])
    return found


def compact(uint8_t[::1] data not None, const int64_t[:, ::1] runs not None):
    cdef size_t length = data.shape[0], count = runs.shape[0], kept
    require(runs.shape[1] == 3, "runs must have 3 columns")
    require(apart(&data[0], length, &runs[0, 0], 24 * count), "buffers overlap")
    require(c_runs_valid(&runs[0, 0], count, pieces(length, PIECE)), "runs must ascend in data")
    with nogil:
        kept = c_compact(&data[0], length, &runs[0, 0], count)
    return kept


cdef class FileScan:
    """Stored ranges of files, read and scanned in as few calls as there is room for."""

    cdef const int64_t[:, ::1] windows
    cdef const int64_t[:, ::1] segments
    cdef const int32_t[::1] files
    cdef const uint64_t[::1] stored
    cdef uint64_t[::1] leaves
    cdef int64_t state[FIELDS]

    def __init__(self, const int64_t[:, ::1] windows not None,
                 const int64_t[:, ::1] segments not None, const int32_t[::1] files not None,
                 const uint64_t[::1] stored not None, uint64_t[::1] leaves not None):
        require(windows.shape[1] == 3 and segments.shape[1] == 4,
                "windows must be (n, 3), segments (n, 4)")
        require(stored.shape[0] == leaves.shape[0], "stored and leaves differ in length")
        require(apart(&stored[0], 8 * <size_t>stored.shape[0],
                      &leaves[0], 8 * <size_t>leaves.shape[0]), "buffers overlap")
        self.windows, self.segments, self.files = windows, segments, files
        self.stored, self.leaves = stored, leaves
        memset(self.state, 0, sizeof(self.state))

    def run(self, uint8_t[::1] slot not None, bint keeps, int64_t[:, ::1] rows not None,
            uint64_t[::1] kept not None):
        cdef file_scan_t scan
        cdef int answer
        cdef size_t row_bytes = 24 * <size_t>rows.shape[0], kept_bytes = 8 * <size_t>kept.shape[0]
        cdef size_t slot_size = slot.shape[0], leaf_bytes = 8 * <size_t>self.stored.shape[0]
        require(rows.shape[1] == 3, "rows must be (n, 3)")
        require(<size_t>kept.shape[0] > slot_size // PIECE, "kept is too short for the slot")
        require(apart(&slot[0], slot_size, &rows[0, 0], row_bytes)
                and apart(&slot[0], slot_size, &kept[0], kept_bytes)
                and apart(&slot[0], slot_size, &self.leaves[0], leaf_bytes)
                and apart(&slot[0], slot_size, &self.stored[0], leaf_bytes)
                and apart(&rows[0, 0], row_bytes, &kept[0], kept_bytes)
                and apart(&rows[0, 0], row_bytes, &self.leaves[0], leaf_bytes)
                and apart(&rows[0, 0], row_bytes, &self.stored[0], leaf_bytes)
                and apart(&kept[0], kept_bytes, &self.leaves[0], leaf_bytes)
                and apart(&kept[0], kept_bytes, &self.stored[0], leaf_bytes), "buffers overlap")
        scan.windows, scan.window_count = &self.windows[0, 0], self.windows.shape[0]
        scan.segments, scan.segment_count = &self.segments[0, 0], self.segments.shape[0]
        scan.files, scan.file_count = &self.files[0], self.files.shape[0]
        scan.stored, scan.leaves = &self.stored[0], &self.leaves[0]
        scan.leaf_count = self.stored.shape[0]
        scan.slot, scan.slot_size, scan.keeps = &slot[0], slot_size, keeps
        scan.rows, scan.row_count, scan.kept = &rows[0, 0], rows.shape[0], &kept[0]
        scan.state = &self.state[0]
        self.state[FILLED] = self.state[ROWS] = self.state[KEPT] = 0
        self.state[READ] = self.state[READ_NS] = 0
        with nogil:
            answer = -1
            if file_scan_valid(&scan):
                answer = file_scan_run(&scan, active)
        require(answer >= 0, "windows and segments must ascend and lie within their arrays")
        return answer

    @property
    def place(self):
        return self.state[WINDOW], self.state[OFFSET]

    @property
    def made(self):
        return self.state[FILLED], self.state[ROWS], self.state[KEPT]

    @property
    def read(self):
        return self.state[READ], self.state[READ_NS]

    @property
    def failure(self):
        return (self.state[BAD_FILE], self.state[BAD_OFFSET], self.state[BAD_LENGTH],
                self.state[BAD_DONE], self.state[BAD_ERRNO])
