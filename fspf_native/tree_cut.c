/* Taking content away: truncate, punch, destroy. */
#include "tree_internal.h"

#include <errno.h>
#include <string.h>

#define ALL_CHUNKS UINT64_MAX /* as an end */

/* Free a block and all below it. What a damaged node hides stays allocated; *lost counts the chunks it may hold. */
static void free_subtree(tree *t, int level, uint64_t index, const uint8_t *pointer, uint64_t *lost)
{
    if (level == 0) {
        if (!pointer_is_hole(pointer) || map64_get(&t->chunks, index) != NULL) {
            t->allocated -= t->allocated > 0;
        }
        dirty_chunk_drop(t, index);
        retire(t, pointer);
        return;
    }
    dirty_node *node = dirty_lookup(t, level, index);
    cache_entry *pin = NULL;
    const uint8_t *children = NULL;
    if (node != NULL) {
        children = node->data;
    } else if (pointer_is_hole(pointer)) {
        return;
    } else {
        fspf_error ignored = {0};
        if (store_get_node(t->st, pointer, t->protection, &pin, &ignored) == ST_OK) {
            children = pin->data;
        } else {
            store_locate(t->st, level, index, t->size, &ignored);
            *lost += chunks_of(t, ignored.length);
        }
    }
    for (uint64_t c = 0; children != NULL && c < arity(t); c++) {
        uint8_t child[POINTER_LEN];
        memcpy(child, children + c * POINTER_LEN, POINTER_LEN);
        if (node != NULL || !pointer_is_hole(child)) {
            free_subtree(t, level - 1, (index << t->st->arity_shift) + c, child, lost);
        }
    }
    cache_unpin(t->st->cache, pin);
    if (node != NULL) {
        dirty_node_drop(t, node);
    }
    retire(t, pointer);
}

/* Free chunks first .. end-1 below a node that has others too. With `prepare` only make the nodes dirty that will
 * change: that is all that can fail. */
static fspf_status cut_node(tree *t, int level, uint64_t index, uint64_t first, uint64_t end, bool prepare,
                            uint64_t *lost, fspf_error *err)
{
    dirty_node *node = NULL;
    fspf_status status = dirty_node_get(t, level, index, &node, err);
    if (status != ST_OK) {
        return status;
    }
    unsigned shift = (unsigned)(level - 1) * t->st->arity_shift; /* chunks below one child, as a power of two */
    for (uint64_t c = 0; c < arity(t); c++) {
        uint64_t child = (index << t->st->arity_shift) + c;
        uint64_t start = child << shift;
        uint64_t stop = (child + 1) << shift;
        uint8_t *pointer = node->data + c * POINTER_LEN;
        if (stop <= first || start >= end || (pointer_is_hole(pointer) && !dirty_at(t, level - 1, child))) {
            continue;
        }
        if (start < first || stop > end) {
            status = cut_node(t, level - 1, child, first, end, prepare, lost, err);
            if (status != ST_OK) {
                return status;
            }
        } else if (!prepare) {
            uint8_t old[POINTER_LEN];
            memcpy(old, pointer, POINTER_LEN);
            memset(pointer, 0, POINTER_LEN);
            free_subtree(t, level - 1, child, old, lost);
        }
    }
    return ST_OK;
}

static fspf_status cut(tree *t, uint64_t first, uint64_t end, bool prepare, uint64_t *lost, fspf_error *err)
{
    uint64_t chunks = chunks_of(t, t->size);
    if (first >= end || first >= chunks || (pointer_is_hole(t->root) && !dirty_at(t, t->depth, 0))) {
        return ST_OK;
    }
    if (end >= chunks) {
        end = ALL_CHUNKS; /* nodes at the right edge go whole */
    }
    if (first == 0 && end == ALL_CHUNKS) {
        if (!prepare) {
            uint8_t old[POINTER_LEN];
            memcpy(old, t->root, POINTER_LEN);
            memset(t->root, 0, POINTER_LEN);
            free_subtree(t, t->depth, 0, old, lost);
            t->changed = true;
        }
        return ST_OK;
    }
    return cut_node(t, t->depth, 0, first, end, prepare, lost, err);
}

/* The chunk's buffer when part of it has to be zeroed, NULL when it is a hole. */
static fspf_status edge(tree *t, uint64_t index, bool *tight, uint8_t **chunk, fspf_error *err)
{
    node_ref leaf = {0};
    uint64_t leaf_index = UINT64_MAX;
    uint8_t pointer[POINTER_LEN];
    *chunk = NULL;
    if (map64_get(&t->chunks, index) == NULL) {
        fspf_status status = tree_pointer(t, index, &leaf, &leaf_index, pointer, err);
        node_ref_end(t, &leaf);
        if (status != ST_OK || pointer_is_hole(pointer)) {
            return status;
        }
    }
    return dirty_chunk_get(t, index, true, tight, chunk, err);
}

static fspf_status shrink_depth(tree *t, int wanted, bool prepare, fspf_error *err)
{
    fspf_status status = ST_OK;
    if (prepare) {
        for (int level = t->depth; level > wanted && status == ST_OK; level--) {
            dirty_node *node = NULL;
            node_ref ref = {0};
            status = tree_node(t, level, 0, &ref, err);
            bool hole = ref.pointers == NULL;
            node_ref_end(t, &ref);
            if (status == ST_OK && !hole) {
                status = dirty_node_get(t, level, 0, &node, err);
            }
        }
        return status;
    }
    while (t->depth > wanted) {
        dirty_node *node = dirty_lookup(t, t->depth, 0); /* otherwise there is nothing below */
        retire(t, t->root);
        memset(t->root, 0, POINTER_LEN);
        if (node != NULL) {
            memcpy(t->root, node->data, POINTER_LEN);
            dirty_node_drop(t, node);
        }
        t->depth--;
    }
    return ST_OK;
}

fspf_status truncate_lock_held(tree *t, uint64_t size, bool ask, bool *tight, fspf_error *err)
{
    fspf_status status = ST_OK;
    uint64_t lost = 0;
    uint8_t *last = NULL;
    size_t tail = (size_t)(size & (t->st->chunk_size - 1));
    if (size == t->size) {
        return ST_OK;
    }
    if (size > t->size) {
        status = grow_depth(t, size, err);
        if (status == ST_OK) {
            t->size = size;
        } else {
            (void)shrink_depth(t, store_depth_of(t->st, t->size), false, err);
        }
        t->changed = true;
        return status;
    }
    int depth = store_depth_of(t->st, size);
    /* Everything that can fail comes first. */
    if (tail > 0) {
        status = edge(t, size >> chunk_shift(t), ask ? tight : NULL, &last, err);
        if (status == ST_DAMAGED && tight == NULL) {
            /* An append is taken back that could not read its first chunk, so it has not changed it either. */
            status = ST_OK;
        }
    }
    if (status == ST_OK) {
        status = cut(t, chunks_of(t, size), ALL_CHUNKS, true, &lost, err);
    }
    if (status == ST_OK && size > 0) {
        status = shrink_depth(t, depth, true, err);
    }
    if (status != ST_OK) {
        return status;
    }
    (void)cut(t, chunks_of(t, size), ALL_CHUNKS, false, &lost, err);
    if (last != NULL) {
        memset(last + tail, 0, t->st->chunk_size - tail);
    }
    (void)shrink_depth(t, depth, false, err);
    t->size = size;
    t->changed = true;
    return ST_OK;
}

fspf_status tree_truncate(tree *t, uint64_t size, fspf_error *err)
{
    bool tight = false;
    if (size > MAX_FILE_SIZE) {
        return fail_os(err, EFBIG, "a file ends at 2^63-1");
    }
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    status = check_writable(t, err);
    if (status == ST_OK) {
        pthread_rwlock_wrlock(&t->lock);
        bool cuts = size < t->size;
        status = truncate_lock_held(t, size, !cuts, &tight, err); /* cutting must work on a full disk */
        if (status != ST_OK) {
            capture_lost(t);
        } else if (cuts) {
            capture_cut(t, size);
        }
        pthread_rwlock_unlock(&t->lock);
    }
    store_leave(t->st);
    return status;
}

static fspf_status punch_lock_held(tree *t, uint64_t offset, uint64_t end, fspf_error *err)
{
    uint32_t chunk_size = t->st->chunk_size;
    uint64_t lost = 0;
    bool tight = false;
    uint64_t first = chunks_of(t, offset);                               /* first whole chunk */
    uint64_t stop = end == t->size ? chunks_of(t, end) : end >> chunk_shift(t); /* past the last whole one */
    uint8_t *head = NULL;
    uint8_t *tail = NULL;
    fspf_status status = ST_OK;
    size_t head_from = (size_t)(offset & (chunk_size - 1));
    size_t tail_to = (size_t)(end & (chunk_size - 1));

    if (head_from > 0) {
        status = edge(t, offset >> chunk_shift(t), &tight, &head, err);
    }
    /* The part after the last whole chunk; nothing when it is the head's chunk or the file's end. */
    if (status == ST_OK && tail_to > 0 && stop == end >> chunk_shift(t) && stop >= first) {
        status = edge(t, stop, &tight, &tail, err);
    }
    if (status == ST_OK) {
        status = cut(t, first, stop, true, &lost, err);
    }
    if (status != ST_OK) {
        return status;
    }
    (void)cut(t, first, stop, false, &lost, err);
    if (head != NULL) {
        uint64_t chunk_end = (offset | (chunk_size - 1)) + 1;
        memset(head + head_from, 0, end < chunk_end ? (size_t)(end - offset) : chunk_size - head_from);
    }
    if (tail != NULL) {
        memset(tail, 0, tail_to);
    }
    t->changed = true;
    return relieve(t, tight, err);
}

fspf_status tree_punch(tree *t, uint64_t offset, uint64_t length, fspf_error *err)
{
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    status = check_writable(t, err);
    if (status == ST_OK) {
        pthread_rwlock_wrlock(&t->lock);
        if (length > 0 && offset < t->size) {
            capture_lost(t);
            status = punch_lock_held(t, offset, offset + min_u64(length, t->size - offset), err);
        }
        pthread_rwlock_unlock(&t->lock);
    }
    store_leave(t->st);
    return status;
}

fspf_status tree_destroy(tree *t, uint64_t *lost, fspf_error *err)
{
    fspf_status status = store_enter(t->st, err);
    *lost = 0;
    if (status != ST_OK) {
        return status;
    }
    status = check_writable(t, err);
    if (status == ST_OK) {
        pthread_rwlock_wrlock(&t->lock);
        uint64_t covered = 0;
        (void)cut(t, 0, ALL_CHUNKS, false, &covered, err);
        (void)shrink_depth(t, 0, false, err);
        if (covered > 0) {
            *lost = t->allocated > 0 ? min_u64(t->allocated, covered) : covered;
        }
        t->size = 0;
        t->allocated = 0;
        status = store_hand_over(t->st, &t->pending, t->metadata);
        if (status == ST_OK) {
            t->seal_floor = atomic_load(&t->st->counter);
            t->changed = false;
            capture_lost(t);
        }
        pthread_rwlock_unlock(&t->lock);
    }
    store_leave(t->st);
    return status;
}
