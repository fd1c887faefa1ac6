/* Segment files: names, lazily opened descriptors with a bound, vectored I/O, checksum tables, sync, punching
 * (FORMAT.md 5). Which slots are in use is slots.h's business. Thread-safe. */
#ifndef FSPF_SEGMENTS_H
#define FSPF_SEGMENTS_H

#include "common.h"
#include "map64.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

typedef struct segment segment;

typedef struct {
    int directory;
    uint32_t chunk_size;
    uint32_t segment_slots;
    bool writable;

    pthread_mutex_t lock;
    map64 table;      /* number -> segment; those open, or written since the last sync */
    segment *newest;  /* ring of the open ones by last use */
    size_t open_count;
    size_t open_limit;
    bool directory_dirty;

    pthread_mutex_t sync_lock;
    int sync_errno; /* once fdatasync has failed, pages may be lost: no later sync may succeed */
    _Atomic bool punch_unsupported;
    _Atomic uint64_t syncs, writes, reads;
} segments;

fspf_status segments_open(segments *s, const char *directory, uint32_t chunk_size, uint32_t segment_slots,
                          bool writable, fspf_error *err);
void segments_close(segments *s);

/* One above the highest segment file that there is, not counting stray ones far above `expected`. */
fspf_status segments_scan(segments *s, uint64_t expected, uint64_t *end, fspf_error *err);

/* Read neighbouring slots of one segment, starting at `slot`. *got is short at the end of the file; ST_DAMAGED with
 * KIND_MISSING when there is no such file. The iovec is used up. */
fspf_status segments_read(segments *s, uint64_t slot, struct iovec *iov, int iov_count, size_t *got, fspf_error *err);
/* Write `count` neighbouring slots of one segment and their table entries. */
fspf_status segments_write(segments *s, uint64_t slot, size_t count, const uint8_t *data, const uint8_t *entries,
                           fspf_error *err);
fspf_status segments_read_entry(segments *s, uint64_t slot, uint8_t *entry, fspf_error *err);
/* Give the range's storage back and zero its entries. *bytes: punched. A missing file is fine. */
fspf_status segments_punch(segments *s, uint64_t slot, uint64_t count, uint64_t *bytes, fspf_error *err);
/* Make sure that the host has room for the range and its entries. */
fspf_status segments_allocate(segments *s, uint64_t slot, uint64_t count, fspf_error *err);
fspf_status segments_sync(segments *s, uint64_t *synced, fspf_error *err);
/* Bytes that the host has left for us. */
uint64_t segments_host_free(segments *s);

#endif
