/* Shared by the tree_*.c files only. */
#ifndef FSPF_TREE_INTERNAL_H
#define FSPF_TREE_INTERNAL_H

#include "map64.h"
#include "tree.h"

#include <pthread.h>
#include <stdlib.h>

#define DIRTY_CHUNKS 256u  /* more than so many are sealed at once */
#define DIRTY_NODES 2048u  /* more than so many are sealed, without a root being reported */
#define LARGE_WRITE 65536u /* from here on whole chunks are sealed straight from the caller's buffer */

typedef struct {
    int level;
    uint64_t index;
    _Alignas(64) uint8_t data[];
} dirty_node;

/* Invariants: every ancestor of a dirty node or chunk is dirty; the pointer to a dirty block still names its last
 * sealed version; depth is the least that fits the size; bytes of the last chunk beyond the size are zero. */
struct tree {
    store *st;
    protection_mode protection;
    bool metadata;
    bool overlay; /* changes stay in memory, above a store that is open for reading */
    pthread_rwlock_t lock;
    _Atomic uint64_t size;
    int depth;
    uint8_t root[POINTER_LEN];
    map64 nodes;  /* (level, index) -> dirty_node */
    map64 chunks; /* index -> plaintext */
    uint64_t last_chunk; /* written last: an append goes on there */
    run_list pending;    /* slots that the last reported root names and the tree no longer does */
    uint64_t seal_floor; /* what this tree sealed at or after this counter is in no reported root */
    _Atomic uint64_t allocated;
    _Atomic bool changed;
    _Atomic uint64_t dirty_bytes;
    /* Since the last capture or flush: chunks written, the least size it was cut to, and whether there is more. */
    uint64_t touched[CAPTURE_MOST];
    unsigned touched_count;
    bool beyond;
    bool is_cut;
    uint64_t cut;
};

typedef struct {
    const uint8_t *pointers; /* NULL: the node is a hole */
    cache_entry *pin;
} node_ref;

static inline uint64_t node_key(int level, uint64_t index)
{
    return ((uint64_t)(unsigned)level << 56) | index;
}

static inline unsigned chunk_shift(const tree *t)
{
    return (unsigned)__builtin_ctz(t->st->chunk_size);
}

static inline uint64_t arity(const tree *t)
{
    return UINT64_C(1) << t->st->arity_shift;
}

static inline uint8_t *child_of(uint8_t *pointers, const tree *t, uint64_t index)
{
    return pointers + (index & (arity(t) - 1)) * POINTER_LEN;
}

static inline uint64_t chunks_of(const tree *t, uint64_t size)
{
    return (size >> chunk_shift(t)) + ((size & (t->st->chunk_size - 1)) != 0);
}

static inline dirty_node *dirty_lookup(const tree *t, int level, uint64_t index)
{
    return map64_get(&t->nodes, node_key(level, index));
}

/* Is there anything in memory for this block? */
static inline bool dirty_at(const tree *t, int level, uint64_t index)
{
    return level == 0 ? map64_get(&t->chunks, index) != NULL : dirty_lookup(t, level, index) != NULL;
}

static inline bool is_fresh(const tree *t, const uint8_t *pointer)
{
    return pointer_epoch(pointer) == atomic_load_explicit(&t->st->epoch, memory_order_relaxed) &&
           pointer_counter(pointer) >= t->seal_floor;
}

/* tree.c */
fspf_status tree_node(tree *t, int level, uint64_t index, node_ref *out, fspf_error *err);
void node_ref_end(tree *t, node_ref *ref);
/* Pointer of a chunk; `leaf` is kept between calls. */
fspf_status tree_pointer(tree *t, uint64_t index, node_ref *leaf, uint64_t *leaf_index, uint8_t *out,
                         fspf_error *err);
fspf_status dirty_node_get(tree *t, int level, uint64_t index, dirty_node **out, fspf_error *err);
void dirty_node_drop(tree *t, dirty_node *node);
/* The plaintext buffer of a chunk; with `fill` its present content is in it. `tight`: see store_may_dirty; NULL: do
 * not ask. */
fspf_status dirty_chunk_get(tree *t, uint64_t index, bool fill, bool *tight, uint8_t **out, fspf_error *err);
void dirty_chunk_drop(tree *t, uint64_t index);
fspf_status grow_depth(tree *t, uint64_t size, fspf_error *err);
fspf_status check_writable(const tree *t, fspf_error *err);
/* The tree no longer names this slot. */
void retire(tree *t, const uint8_t *pointer);

/* tree_capture.c. Whoever changes a tree says which chunk he wrote, or that a capture cannot tell what he did. */
void capture_touch(tree *t, uint64_t index);
void capture_lost(tree *t);
void capture_cut(tree *t, uint64_t size);
void capture_reset(tree *t);

/* tree_cut.c */
fspf_status truncate_lock_held(tree *t, uint64_t size, bool ask, bool *tight, fspf_error *err);
/* tree_flush.c */
typedef struct {
    int level;
    uint64_t index;
    const uint8_t *source; /* plaintext */
    uint8_t *place;        /* where the pointer goes: in the parent or the root */
    uint8_t old[POINTER_LEN];
    bool pruned;
} seal_item;

fspf_status seal_batch(tree *t, seal_item *items, size_t count, fspf_error *err);
fspf_status seal_chunks(tree *t, bool keep_last, fspf_error *err);
fspf_status seal_all(tree *t, fspf_error *err);
/* Keep the amount of dirty data within its bounds. */
fspf_status relieve(tree *t, bool tight, fspf_error *err);

#endif
