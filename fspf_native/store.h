/* What all trees of one volume share: epoch keys and the nonce counter, sealed block I/O, the node cache, when a free
 * takes effect (commits), dirty-data accounting. Trees are tree.h's business. Thread-safe. */
#ifndef FSPF_STORE_H
#define FSPF_STORE_H

#include "aead.h"
#include "cache.h"
#include "common.h"
#include "slots.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#define MAX_DEPTH 9
#define RUN_CHUNKS 64u              /* most chunks that one read or streaming write joins */
#define SCRATCH_BYTES (1u << 20)    /* most that one batch of a flush writes */
#define STREAM_BYTES (256u << 10)   /* one step of a large read or write; stays in the second-level cache */
/* Beyond so much dirty data in all trees together, whoever writes seals its own: chunks, or nodes too. */
#define DIRTY_LIMIT (UINT64_C(32) << 20)
#define DIRTY_LIMIT_ALL (UINT64_C(64) << 20)

typedef struct {
    uint64_t size;
    int depth;
    uint8_t pointer[POINTER_LEN];
} content_root;

typedef struct scratch {
    struct scratch *next;
    _Alignas(64) uint8_t data[];
} scratch;

typedef struct closed_commit {
    struct closed_commit *next;
    uint64_t number;
    run_list frees;
} closed_commit;

typedef struct {
    uint32_t chunk_size;
    unsigned arity_shift;
    bool writable;
    slots slots;
    cache *cache;

    _Atomic(_Atomic(aead_key *) *) epochs[4096]; /* two levels of 12 bits; entries are only ever added */
    pthread_mutex_t epoch_lock;
    _Atomic uint32_t epoch; /* the one that seals, 0 = none */
    _Atomic uint64_t counter;
    pid_t owner; /* the process that began the epoch */

    pthread_mutex_t commit_lock;
    run_list accumulating; /* handed over since the last commit_begin */
    run_list marked;       /* handed over before the last mark, or by metadata: what the next commit frees */
    bool marking;
    closed_commit *closed; /* oldest first */
    uint64_t last_commit;
    run_list map_slots; /* of the map saved last; freed by the commit after the next */
    _Atomic uint64_t pending_count;
    bool start_called;
    _Atomic bool reserve_wanted;

    pthread_mutex_t scratch_lock;
    scratch *idle_scratch;
    unsigned idle_scratch_count;

    _Atomic int64_t host_budget; /* bytes that may still be taken before the host is asked again */
    _Atomic uint64_t dirty_bytes, dirty_blocks, dirty_chunk_bytes; /* of all trees */
    _Atomic uint64_t bytes_sealed, bytes_opened;
    _Atomic uint32_t inside; /* operations under way */
    _Atomic bool closed_down;
    _Atomic uint32_t references;
} store;

fspf_status store_open(const char *directory, uint32_t chunk_size, uint32_t segment_slots, bool writable,
                       size_t cache_bytes, uint64_t reserve_slots, uint64_t max_slots, store **out, fspf_error *err);
/* Waits for operations under way; later ones get ST_MISUSE. */
void store_shut(store *st);
store *store_ref(store *st);
void store_unref(store *st);
/* Every operation is between these two. */
fspf_status store_enter(store *st, fspf_error *err);
void store_leave(store *st);

fspf_status store_add_epoch(store *st, uint32_t epoch, const uint8_t *key, bool begin, fspf_error *err);
/* ST_MISUSE in a forked child of the process that began the epoch. */
fspf_status store_check_process(const store *st, fspf_error *err);
fspf_status store_take_counters(store *st, uint64_t count, uint64_t *first, fspf_error *err);

/* ---- sealed blocks ---- */

typedef struct {
    store *st;
    protection_mode protection;
    uint32_t epoch;
    aead_key *key;
    aead_ctx *ctx;
} opener; /* keeps a context while the epoch stays the same */

void opener_init(opener *o, store *st, protection_mode protection);
void opener_end(opener *o);
/* Decrypt one block in place or elsewhere. On damage err->kind is found out by reading the slot again. */
fspf_status opener_open(opener *o, const uint8_t *pointer, const uint8_t *sealed, uint8_t *plain, fspf_error *err);
/* Read and open one block. */
fspf_status opener_read(opener *o, const uint8_t *pointer, uint8_t *plain, fspf_error *err);
/* Describe a block that could not be read whole. */
fspf_status opener_missing(const uint8_t *pointer, fspf_error *err);

/* The opened node, pinned, through the cache. */
fspf_status store_get_node(store *st, const uint8_t *pointer, protection_mode protection, cache_entry **out,
                           fspf_error *err);

/* Scratch of SCRATCH_BYTES (16 chunks at least). */
scratch *store_scratch_get(store *st);
void store_scratch_put(store *st, scratch *s);
size_t store_scratch_chunks(const store *st);

/* ---- frees and commits ---- */
fspf_status store_hand_over(store *st, run_list *frees, bool metadata);
/* From now on a commit frees only what was handed over before a mark: contents are flushed while states are taken. */
void store_commit_marking(store *st, bool on);
void store_commit_mark(store *st);
fspf_status store_commit_begin(store *st, uint64_t *number);
fspf_status store_commit_anchored(store *st, uint64_t number, fspf_error *err);

/* Before a new dirty chunk: is there room? *tight: the host is nearly full, so write it out at once. */
fspf_status store_may_dirty(store *st, bool *tight, fspf_error *err);

/* ---- starting and maps: map.c ---- */
fspf_status store_start(store *st, const content_root *space_map, uint64_t end_of_slots, bool unknown,
                        fspf_error *err);
fspf_status store_save_map(store *st, content_root *out, fspf_error *err);
fspf_status store_rebuild_mark(store *st, const content_root *root, protection_mode protection, uint64_t *chunks,
                               fspf_error *err);

/* Depth that a size must have. */
int store_depth_of(const store *st, uint64_t size);
/* Is this a root that FORMAT.md 6 allows? */
fspf_status store_check_root(const store *st, const content_root *root, fspf_error *err);
/* File bytes that block (level, index) covers, cut at `size`, into err. */
void store_locate(const store *st, int level, uint64_t index, uint64_t size, fspf_error *err);

#endif
