/* Reading stored ranges of files and scanning their pieces in one go: what a scan of a disk does
 * between two batches, without a caller's help. The POSIX half of the road; elsewhere
 * FILE_SCAN_AVAILABLE is 0 and callers read by themselves. */
#ifndef STANDBY_FILE_SCAN_H
#define STANDBY_FILE_SCAN_H

#if !defined(_WIN32) && !defined(_XOPEN_SOURCE)
#define _XOPEN_SOURCE 700 /* pread and clock_gettime in strict C */
#endif

#include "blocks.h"

enum {
    FILE_SCAN_CHUNK = 256 << 10, /* bytes read and hashed at a time: they stay in the L2 cache */
    FILE_SCAN_CHUNK_PIECES = FILE_SCAN_CHUNK / BLOCKS_PIECE
};

/* How a call ended. */
enum { FILE_SCAN_DONE, FILE_SCAN_FULL, FILE_SCAN_FAILED };

/* Fields of the state, which callers keep from call to call: where it goes on (window, offset of
 * the disk), what the call made (bytes in the slot, rows, leaves of data rows), what it read
 * (bytes, nanoseconds), and the read that failed (file, offset, length, bytes it got, errno). */
enum {
    FILE_SCAN_WINDOW,
    FILE_SCAN_OFFSET,
    FILE_SCAN_FILLED,
    FILE_SCAN_ROWS,
    FILE_SCAN_KEPT,
    FILE_SCAN_READ,
    FILE_SCAN_READ_NS,
    FILE_SCAN_BAD_FILE,
    FILE_SCAN_BAD_OFFSET,
    FILE_SCAN_BAD_LENGTH,
    FILE_SCAN_BAD_DONE,
    FILE_SCAN_BAD_ERRNO,
    FILE_SCAN_FIELDS
};

typedef struct {
    const int64_t *windows; /* (disk offset, stop, place of the first piece in stored and leaves) */
    size_t window_count;
    const int64_t *segments; /* (disk offset, length, file offset, file), ascending */
    size_t segment_count;
    const int32_t *files; /* descriptors */
    size_t file_count;
    const uint64_t *stored;
    uint64_t *leaves;
    size_t leaf_count;
    uint8_t *slot;
    size_t slot_size;
    int keeps; /* whether changed data stays in the slot, or is only told */
    int64_t *rows; /* (disk offset, length, kind) */
    size_t row_count;
    uint64_t *kept;
    int64_t *state;
} file_scan;

#define FILE_SCAN_MAX ((int64_t)1 << 61) /* sums and rounding stay below 1 << 63 */

/* Whether all numbers lie where they may; everything else trusts them. */
static int file_scan_valid(const file_scan *scan)
{
    int64_t from = 0;
    for (size_t i = 0; i < scan->segment_count; i++) {
        const int64_t *row = scan->segments + 4 * i;
        if (row[0] < from || row[1] <= 0 || row[2] < 0 || row[0] > FILE_SCAN_MAX ||
            row[1] > FILE_SCAN_MAX || row[2] > FILE_SCAN_MAX || row[3] < 0 ||
            row[3] >= (int64_t)scan->file_count)
            return 0;
        from = row[0] + row[1];
    }
    from = 0;
    for (size_t i = 0; i < scan->window_count; i++) {
        const int64_t *row = scan->windows + 3 * i;
        if (row[0] < from || row[1] <= row[0] || row[1] > FILE_SCAN_MAX ||
            row[0] % BLOCKS_PIECE != 0 || row[2] < 0 || row[2] > (int64_t)scan->leaf_count ||
            (row[1] - row[0] + BLOCKS_PIECE - 1) / BLOCKS_PIECE >
                (int64_t)scan->leaf_count - row[2])
            return 0;
        from = row[1];
    }
    return scan->state[FILE_SCAN_WINDOW] >= 0 && scan->state[FILE_SCAN_OFFSET] >= 0 &&
           scan->state[FILE_SCAN_OFFSET] % BLOCKS_PIECE == 0;
}

/* The first segment that reaches beyond `offset`. */
static size_t file_scan_find(const file_scan *scan, int64_t offset)
{
    size_t low = 0, high = scan->segment_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int64_t *row = scan->segments + 4 * middle;
        if (row[0] + row[1] > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int64_t file_scan_smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Where the pieces end that hold bytes of segments, from `offset` on, whose piece holds some. */
static int64_t file_scan_data_end(const file_scan *scan, size_t segment, int64_t offset,
                                  int64_t stop)
{
    int64_t end = offset;
    for (; segment < scan->segment_count && end < stop; segment++) {
        const int64_t *row = scan->segments + 4 * segment;
        if (row[0] / BLOCKS_PIECE * BLOCKS_PIECE > end)
            break;
        end = (row[0] + row[1] + BLOCKS_PIECE - 1) / BLOCKS_PIECE * BLOCKS_PIECE;
    }
    return file_scan_smaller(end, stop);
}

/* Add a row, or lengthen the last one where it goes on. */
static void file_scan_add(const file_scan *scan, int64_t offset, int64_t length, int64_t kind)
{
    int64_t *next = scan->rows + 3 * scan->state[FILE_SCAN_ROWS];
    if (scan->state[FILE_SCAN_ROWS] && next[-1] == kind && next[-3] + next[-2] == offset) {
        next[-2] += length;
        return;
    }
    next[0] = offset;
    next[1] = length;
    next[2] = kind;
    scan->state[FILE_SCAN_ROWS]++;
}

/* Pieces of which nothing is stored: zero from now on where they were not. Returns where it
 * stopped: `stop`, or the first piece that finds no room for a row. */
static int64_t file_scan_zeros(const file_scan *scan, const int64_t *window, int64_t offset,
                               int64_t stop)
{
    size_t place = (size_t)(window[2] + (offset - window[0]) / BLOCKS_PIECE);
    for (; offset < stop; offset += BLOCKS_PIECE, place++) {
        if (scan->stored[place] != BLOCKS_ZERO_LEAF) {
            if (scan->state[FILE_SCAN_ROWS] == (int64_t)scan->row_count)
                return offset;
            file_scan_add(scan, offset, file_scan_smaller(BLOCKS_PIECE, stop - offset),
                          BLOCKS_ZERO);
        }
        scan->leaves[place] = BLOCKS_ZERO_LEAF;
    }
    return stop;
}

/* Compare one chunk that lies at `data` with what is stored; keep what changed. */
static void file_scan_compare(const file_scan *scan, const blocks_variant *variant,
                              const int64_t *window, int64_t offset, uint8_t *data, size_t size)
{
    int64_t runs[3 * FILE_SCAN_CHUNK_PIECES];
    int64_t *state = scan->state;
    const size_t place = (size_t)(window[2] + (offset - window[0]) / BLOCKS_PIECE);
    uint64_t *leaves = scan->leaves + place;
    const size_t count = variant->scan(data, size, scan->stored + place, leaves, runs);
    for (size_t i = 0; i < count; i++) {
        const size_t first = (size_t)runs[3 * i], last = (size_t)runs[3 * i + 1];
        const size_t start = first * BLOCKS_PIECE;
        const size_t stop = last * BLOCKS_PIECE < size ? last * BLOCKS_PIECE : size;
        file_scan_add(scan, offset + (int64_t)start, (int64_t)(stop - start), runs[3 * i + 2]);
        if (runs[3 * i + 2] != BLOCKS_DATA || !scan->keeps)
            continue;
        if (scan->slot + state[FILE_SCAN_FILLED] != data + start)
            memmove(scan->slot + state[FILE_SCAN_FILLED], data + start, stop - start);
        memcpy(scan->kept + state[FILE_SCAN_KEPT], leaves + first, (last - first) * 8);
        state[FILE_SCAN_FILLED] += (int64_t)(stop - start);
        state[FILE_SCAN_KEPT] += (int64_t)(last - first);
    }
}

#if !defined(_WIN32)
#define FILE_SCAN_AVAILABLE 1
#include <errno.h>
#include <time.h>
#include <unistd.h>

static int64_t file_scan_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Read `length` bytes of a file; returns whether all of them came. */
static int file_scan_read(const file_scan *scan, int64_t file, int64_t offset, uint8_t *to,
                          size_t length)
{
    size_t done = 0;
    while (done < length) {
        const ssize_t got =
            pread(scan->files[file], to + done, length - done, (off_t)(offset + (int64_t)done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            scan->state[FILE_SCAN_BAD_FILE] = file;
            scan->state[FILE_SCAN_BAD_OFFSET] = offset;
            scan->state[FILE_SCAN_BAD_LENGTH] = (int64_t)length;
            scan->state[FILE_SCAN_BAD_DONE] = (int64_t)done;
            scan->state[FILE_SCAN_BAD_ERRNO] = got < 0 ? errno : 0;
            return 0;
        }
        done += (size_t)got;
    }
    return 1;
}

/* Bring the disk's bytes [offset, offset + size) to `to`; what no segment holds is zero. */
static int file_scan_fill(const file_scan *scan, size_t segment, int64_t offset, uint8_t *to,
                          size_t size)
{
    const int64_t stop = offset + (int64_t)size;
    int64_t at = offset;
    for (; segment < scan->segment_count && at < stop; segment++) {
        const int64_t *row = scan->segments + 4 * segment;
        const int64_t first = row[0] > at ? row[0] : at;
        const int64_t last = file_scan_smaller(row[0] + row[1], stop);
        if (first >= stop)
            break;
        memset(to + (at - offset), 0, (size_t)(first - at));
        if (!file_scan_read(scan, row[3], row[2] + (first - row[0]), to + (first - offset),
                            (size_t)(last - first)))
            return 0;
        at = last;
    }
    memset(to + (at - offset), 0, (size_t)(stop - at));
    return 1;
}

/* Go on until all windows are scanned, the slot or the rows are full, or a read fails. */
static int file_scan_run(const file_scan *scan, const blocks_variant *variant)
{
    int64_t *state = scan->state;
    while (state[FILE_SCAN_WINDOW] < (int64_t)scan->window_count) {
        const int64_t *window = scan->windows + 3 * state[FILE_SCAN_WINDOW];
        int64_t offset =
            state[FILE_SCAN_OFFSET] > window[0] ? state[FILE_SCAN_OFFSET] : window[0];
        size_t segment = file_scan_find(scan, offset);
        while (offset < window[1]) {
            uint8_t *data = scan->slot + state[FILE_SCAN_FILLED];
            int64_t stop = window[1], begun;
            state[FILE_SCAN_OFFSET] = offset;
            while (segment < scan->segment_count &&
                   scan->segments[4 * segment] + scan->segments[4 * segment + 1] <= offset)
                segment++;
            if (segment == scan->segment_count ||
                scan->segments[4 * segment] >= file_scan_smaller(offset + BLOCKS_PIECE, stop)) {
                if (segment < scan->segment_count && scan->segments[4 * segment] < stop)
                    stop = file_scan_smaller(
                        stop, scan->segments[4 * segment] / BLOCKS_PIECE * BLOCKS_PIECE);
                offset = file_scan_zeros(scan, window, offset, stop);
                state[FILE_SCAN_OFFSET] = offset;
                if (offset < stop)
                    return FILE_SCAN_FULL;
                continue;
            }
            stop = file_scan_data_end(scan, segment, offset,
                                      file_scan_smaller(stop, offset + FILE_SCAN_CHUNK));
            if ((int64_t)scan->slot_size - state[FILE_SCAN_FILLED] < stop - offset ||
                (int64_t)scan->row_count - state[FILE_SCAN_ROWS] < FILE_SCAN_CHUNK_PIECES)
                return FILE_SCAN_FULL;
            begun = file_scan_now();
            if (!file_scan_fill(scan, segment, offset, data, (size_t)(stop - offset)))
                return FILE_SCAN_FAILED;
            state[FILE_SCAN_READ_NS] += file_scan_now() - begun;
            state[FILE_SCAN_READ] += stop - offset;
            file_scan_compare(scan, variant, window, offset, data, (size_t)(stop - offset));
            offset = stop;
        }
        state[FILE_SCAN_OFFSET] = window[1] / BLOCKS_PIECE * BLOCKS_PIECE;
        state[FILE_SCAN_WINDOW]++;
    }
    return FILE_SCAN_DONE;
}
#else
#define FILE_SCAN_AVAILABLE 0

static int file_scan_run(const file_scan *scan, const blocks_variant *variant)
{
    (void)scan;
    (void)variant;
    return FILE_SCAN_FAILED;
}
#endif

#endif
