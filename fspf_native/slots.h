/* Which slots are in use: bitmap, allocation of contiguous runs, the reserve, rebuilding after a crash, trimming.
 * Files are segments.h's business, when a free takes effect is store.h's. Thread-safe. */
#ifndef FSPF_SLOTS_H
#define FSPF_SLOTS_H

#include "common.h"
#include "runs.h"
#include "segments.h"

typedef struct {
    segments files;
    uint32_t chunk_size;
    uint32_t segment_slots;
    uint64_t max_slots; /* quota, 0 = none */

    pthread_mutex_t lock;
    bool started;
    uint64_t segment_count; /* segments that the bitmap knows */
    uint64_t segment_capacity;
    uint64_t *used;  /* a bit per slot; pending frees and the reserve count as used */
    uint64_t *freed; /* freed since the last trim */
    uint32_t *segment_free;
    uint64_t cursor;
    _Atomic uint64_t used_count; /* bits in `used`; below the boundary only what was marked, while rebuilding */

    uint64_t stray_frees; /* of slots that were not in use: stays 0 unless something is badly wrong */

    bool rebuilding;
    uint64_t boundary;   /* while rebuilding, nothing below is handed out */
    uint64_t *marked;    /* bits below the boundary found reachable */
    uint64_t *unmarked;  /* bits below the boundary freed (and anchored) meanwhile */
    uint64_t marked_count;

    uint64_t reserve_target;
    run_list reserve;
    pthread_mutex_t trim_lock;
} slots;

fspf_status slots_open(slots *s, const char *directory, uint32_t chunk_size, uint32_t segment_slots, bool writable,
                       uint64_t reserve_slots, uint64_t max_slots, fspf_error *err);
void slots_close(slots *s);

fspf_status slots_start(slots *s, uint64_t end_of_slots, bool unknown, fspf_error *err);
/* Forget a start that could not be completed. */
void slots_reset(slots *s);
/* While starting: take over `bytes` of a saved bitmap that begins at bit `first` (a multiple of 64). */
fspf_status slots_load_bits(slots *s, uint64_t first, const uint8_t *bits, size_t bytes, fspf_error *err);
/* A slot of the saved map itself; false when there is no such slot. */
bool slots_mark_used(slots *s, uint64_t slot);

/* `count` slots in as few runs as there are; all or ST_OS/ENOSPC. */
fspf_status slots_allocate(slots *s, uint64_t count, run_list *out, fspf_error *err);
fspf_status slots_take_reserve(slots *s, uint64_t count, run_list *out, fspf_error *err);
/* Slots that are in the reserve afterwards. */
uint64_t slots_fill_reserve(slots *s);
/* Free now. */
void slots_free(slots *s, uint64_t start, uint64_t count);
void slots_free_runs(slots *s, run_list *list);

void slots_mark(slots *s, uint64_t slot);
fspf_status slots_rebuild_finish(slots *s, uint64_t *gained, fspf_error *err);
/* Free the reserve for good: before the last trim of a clean close. */
uint64_t slots_drop_reserve(slots *s);
fspf_status slots_trim(slots *s, uint64_t *bytes, fspf_error *err);

/* A copy of the bitmap without the reserve; *words 64-bit words, to be freed. */
fspf_status slots_snapshot(slots *s, uint64_t **bits, uint64_t *words);
uint64_t slots_end(slots *s);

#endif
