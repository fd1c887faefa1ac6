/* Structure of a content tree: finding nodes, making blocks dirty, depth. See tree.h. */
#include "tree_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

fspf_status tree_new(store *st, const content_root *root, protection_mode protection, uint64_t allocated,
                     bool metadata, tree **out, fspf_error *err)
{
    fspf_status status = store_check_root(st, root, err);
    if (status != ST_OK) {
        return status;
    }
    tree *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return ST_NOMEM;
    }
    pthread_rwlockattr_t attributes;
    (void)pthread_rwlockattr_init(&attributes);
    (void)pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    (void)pthread_rwlock_init(&t->lock, &attributes);
    (void)pthread_rwlockattr_destroy(&attributes);
    t->st = store_ref(st);
    t->protection = protection;
    t->metadata = metadata;
    t->size = root->size;
    t->depth = root->depth;
    memcpy(t->root, root->pointer, POINTER_LEN);
    t->allocated = allocated;
    t->last_chunk = UINT64_MAX;
    t->seal_floor = atomic_load(&st->counter);
    *out = t;
    return ST_OK;
}

void tree_make_overlay(tree *t)
{
    t->overlay = true;
}

/* Free what is in no reported root below a block. */
static void discard(tree *t, int level, uint64_t index, const uint8_t *pointer)
{
    if (level > 0) {
        dirty_node *node = dirty_lookup(t, level, index);
        cache_entry *pin = NULL;
        fspf_error ignored = {0};
        const uint8_t *children = NULL;
        if (node != NULL) {
            children = node->data;
        } else if (!pointer_is_hole(pointer) && is_fresh(t, pointer) &&
                   store_get_node(t->st, pointer, t->protection, &pin, &ignored) == ST_OK) {
            children = pin->data;
        }
        for (uint64_t c = 0; children != NULL && c < arity(t); c++) {
            const uint8_t *child = children + c * POINTER_LEN;
            uint64_t child_index = (index << t->st->arity_shift) + c;
            if (!pointer_is_hole(child) || (level > 1 && dirty_lookup(t, level - 1, child_index) != NULL)) {
                discard(t, level - 1, child_index, child);
            }
        }
        cache_unpin(t->st->cache, pin);
    }
    if (!pointer_is_hole(pointer) && is_fresh(t, pointer)) {
        slots_free(&t->st->slots, pointer_slot(pointer), 1);
    }
}

void tree_free(tree *t)
{
    fspf_error ignored = {0};
    if (t == NULL) {
        return;
    }
    if (t->changed && !t->overlay && store_enter(t->st, &ignored) == ST_OK) {
        discard(t, t->depth, 0, t->root);
        store_leave(t->st);
    }
    for (size_t i = 0; i < t->nodes.capacity; i++) {
        if (t->nodes.keys[i] != MAP64_EMPTY) {
            free(t->nodes.values[i]);
        }
    }
    for (size_t i = 0; i < t->chunks.capacity; i++) {
        if (t->chunks.keys[i] != MAP64_EMPTY) {
            explicit_bzero(t->chunks.values[i], t->st->chunk_size);
            free(t->chunks.values[i]);
        }
    }
    atomic_fetch_sub(&t->st->dirty_bytes, t->dirty_bytes);
    atomic_fetch_sub(&t->st->dirty_blocks, t->nodes.count + t->chunks.count);
    atomic_fetch_sub(&t->st->dirty_chunk_bytes, t->chunks.count * (uint64_t)t->st->chunk_size);
    map64_clear(&t->nodes);
    map64_clear(&t->chunks);
    runs_clear(&t->pending);
    (void)pthread_rwlock_destroy(&t->lock);
    store_unref(t->st);
    free(t);
}

uint32_t tree_chunk_size(const tree *t)
{
    return t->st->chunk_size;
}

uint64_t tree_size(const tree *t)
{
    return atomic_load(&t->size);
}

uint64_t tree_allocated(const tree *t)
{
    return atomic_load(&t->allocated);
}

bool tree_dirty(const tree *t)
{
    return atomic_load(&t->changed);
}

uint64_t tree_dirty_bytes(const tree *t)
{
    return atomic_load(&t->dirty_bytes);
}

fspf_status check_writable(const tree *t, fspf_error *err)
{
    if (t->overlay) {
        return ST_OK;
    }
    if (!t->st->writable) {
        return fail_os(err, EROFS, "the store is open for reading");
    }
    if (t->st->epoch == 0) {
        return fail_with(err, ST_MISUSE, "write before begin_epoch");
    }
    if (store_check_process(t->st, err) != ST_OK) {
        return ST_MISUSE;
    }
    if (!t->st->start_called) {
        return fail_with(err, ST_MISUSE, "write before start_empty, start_map or start_unknown");
    }
    return ST_OK;
}

void retire(tree *t, const uint8_t *pointer)
{
    if (pointer_is_hole(pointer)) {
        return;
    }
    if (is_fresh(t, pointer)) {
        slots_free(&t->st->slots, pointer_slot(pointer), 1);
    } else {
        (void)runs_add(&t->pending, pointer_slot(pointer), 1); /* out of memory: lost until the next rebuild */
    }
}

/* ---- finding ---- */

void node_ref_end(tree *t, node_ref *ref)
{
    cache_unpin(t->st->cache, ref->pin);
    ref->pin = NULL;
    ref->pointers = NULL;
}

fspf_status tree_node(tree *t, int level, uint64_t index, node_ref *out, fspf_error *err)
{
    uint8_t pointer[POINTER_LEN];
    memcpy(pointer, t->root, POINTER_LEN);
    out->pointers = NULL;
    out->pin = NULL;
    for (int l = t->depth;; l--) {
        uint64_t i = index >> ((unsigned)(l - level) * t->st->arity_shift);
        dirty_node *node = t->nodes.count ? dirty_lookup(t, l, i) : NULL;
        node_ref_end(t, out);
        if (node != NULL) {
            out->pointers = node->data;
        } else if (pointer_is_hole(pointer)) {
            return ST_OK;
        } else {
            fspf_status status = store_get_node(t->st, pointer, t->protection, &out->pin, err);
            if (status != ST_OK) {
                store_locate(t->st, l, i, t->size, err);
                return status;
            }
            out->pointers = out->pin->data;
        }
        if (l == level) {
            return ST_OK;
        }
        uint64_t child = index >> ((unsigned)(l - 1 - level) * t->st->arity_shift);
        memcpy(pointer, out->pointers + (child & (arity(t) - 1)) * POINTER_LEN, POINTER_LEN);
    }
}

fspf_status tree_pointer(tree *t, uint64_t index, node_ref *leaf, uint64_t *leaf_index, uint8_t *out,
                         fspf_error *err)
{
    if (t->depth == 0) {
        memcpy(out, t->root, POINTER_LEN);
        return ST_OK;
    }
    uint64_t wanted = index >> t->st->arity_shift;
    if (*leaf_index != wanted) {
        node_ref_end(t, leaf);
        *leaf_index = UINT64_MAX;
        fspf_status status = tree_node(t, 1, wanted, leaf, err);
        if (status != ST_OK) {
            return status;
        }
        *leaf_index = wanted;
    }
    if (leaf->pointers == NULL) {
        memset(out, 0, POINTER_LEN);
    } else {
        memcpy(out, leaf->pointers + (index & (arity(t) - 1)) * POINTER_LEN, POINTER_LEN);
    }
    return ST_OK;
}

/* ---- making dirty ---- */

static void account(tree *t, bool chunk, bool more)
{
    uint64_t bytes = more ? t->st->chunk_size : -(uint64_t)t->st->chunk_size; /* modulo 2^64 */
    atomic_fetch_add(&t->dirty_bytes, bytes);
    atomic_fetch_add(&t->st->dirty_bytes, bytes);
    atomic_fetch_add(&t->st->dirty_blocks, more ? 1 : UINT64_MAX);
    if (chunk) {
        atomic_fetch_add(&t->st->dirty_chunk_bytes, bytes);
    }
}

static dirty_node *dirty_node_add(tree *t, int level, uint64_t index)
{
    size_t size = (sizeof(dirty_node) + t->st->chunk_size + 63) / 64 * 64;
    dirty_node *node = map64_reserve(&t->nodes) ? aligned_alloc(64, size) : NULL;
    if (node != NULL) {
        node->level = level;
        node->index = index;
        memset(node->data, 0, t->st->chunk_size);
        map64_put(&t->nodes, node_key(level, index), node);
        account(t, false, true);
        t->changed = true;
    }
    return node;
}

fspf_status dirty_node_get(tree *t, int level, uint64_t index, dirty_node **out, fspf_error *err)
{
    uint8_t *pointer = t->root;
    *out = dirty_lookup(t, level, index);
    if (*out != NULL) {
        return ST_OK;
    }
    if (level < t->depth) {
        dirty_node *parent = NULL;
        fspf_status status = dirty_node_get(t, level + 1, index >> t->st->arity_shift, &parent, err);
        if (status != ST_OK) {
            return status;
        }
        pointer = child_of(parent->data, t, index);
    }
    cache_entry *pin = NULL;
    if (!pointer_is_hole(pointer)) {
        fspf_status status = store_get_node(t->st, pointer, t->protection, &pin, err);
        if (status != ST_OK) {
            store_locate(t->st, level, index, t->size, err);
            return status;
        }
    }
    *out = dirty_node_add(t, level, index);
    if (*out != NULL && pin != NULL) {
        memcpy((*out)->data, pin->data, t->st->chunk_size);
    }
    cache_unpin(t->st->cache, pin);
    return *out ? ST_OK : ST_NOMEM;
}

void dirty_node_drop(tree *t, dirty_node *node)
{
    (void)map64_remove(&t->nodes, node_key(node->level, node->index));
    free(node);
    account(t, false, false);
}

fspf_status dirty_chunk_get(tree *t, uint64_t index, bool fill, bool *tight, uint8_t **out, fspf_error *err)
{
    uint8_t *pointer = t->root;
    *out = map64_get(&t->chunks, index);
    if (*out != NULL) {
        return ST_OK;
    }
    if (tight != NULL && !t->metadata && !t->overlay) {
        fspf_status status = store_may_dirty(t->st, tight, err);
        if (status != ST_OK) {
            return status;
        }
    }
    if (t->depth > 0) {
        dirty_node *leaf = NULL;
        fspf_status status = dirty_node_get(t, 1, index >> t->st->arity_shift, &leaf, err);
        if (status != ST_OK) {
            return status;
        }
        pointer = child_of(leaf->data, t, index);
    }
    uint8_t *chunk = map64_reserve(&t->chunks) ? aligned_alloc(64, t->st->chunk_size) : NULL;
    if (chunk == NULL) {
        return ST_NOMEM;
    }
    if (pointer_is_hole(pointer)) {
        memset(chunk, 0, t->st->chunk_size);
        t->allocated++;
    } else if (fill) {
        opener o;
        opener_init(&o, t->st, t->protection);
        fspf_status status = opener_read(&o, pointer, chunk, err);
        opener_end(&o);
        if (status != ST_OK) {
            store_locate(t->st, 0, index, t->size, err);
            free(chunk);
            return status;
        }
    }
    map64_put(&t->chunks, index, chunk);
    account(t, true, true);
    t->changed = true;
    *out = chunk;
    return ST_OK;
}

void dirty_chunk_drop(tree *t, uint64_t index)
{
    uint8_t *chunk = map64_remove(&t->chunks, index);
    if (chunk != NULL) {
        explicit_bzero(chunk, t->st->chunk_size);
        free(chunk);
        account(t, true, false);
    }
}

fspf_status grow_depth(tree *t, uint64_t size, fspf_error *err)
{
    (void)err;
    int wanted = store_depth_of(t->st, size);
    while (t->depth < wanted) {
        if (!pointer_is_hole(t->root) || dirty_at(t, t->depth, 0)) {
            dirty_node *node = dirty_node_add(t, t->depth + 1, 0);
            if (node == NULL) {
                return ST_NOMEM;
            }
            memcpy(node->data, t->root, POINTER_LEN);
            memset(t->root, 0, POINTER_LEN);
        }
        t->depth++;
    }
    return ST_OK;
}
