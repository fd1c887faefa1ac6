/* Sealing what is dirty: batches into contiguous slots, children before parents, nothing lost when a write fails. */
#include "tree_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool all_holes(const uint8_t *pointers, size_t len)
{
    return pointers[0] == 0 && memcmp(pointers, pointers + 1, len - 1) == 0;
}

static uint8_t *place_of(tree *t, int level, uint64_t index)
{
    if (level == t->depth) {
        return t->root;
    }
    dirty_node *parent = dirty_lookup(t, level + 1, index >> t->st->arity_shift);
    return child_of(parent->data, t, index);
}

/* Seal `sealed` items into `runs` and write them. */
static fspf_status seal_into(tree *t, seal_item *items, size_t count, size_t sealed, const run_list *runs,
                             uint8_t *buffer, uint8_t *entries, fspf_error *err)
{
    store *st = t->st;
    uint32_t chunk_size = st->chunk_size;
    uint32_t epoch = st->epoch;
    uint64_t counter = 0;
    fspf_status status = store_take_counters(st, sealed, &counter, err);
    if (status != ST_OK) {
        return status;
    }
    aead_key *key = st->epochs[epoch >> 12][epoch & 4095];
    aead_ctx *ctx = aead_borrow(key, AEAD_SEAL);
    if (ctx == NULL) {
        return ST_CRYPTO;
    }
    size_t run = 0;
    uint64_t used = 0; /* of that run */
    size_t done = 0;
    for (size_t i = 0; i < count && status == ST_OK; i++) {
        if (items[i].pruned) {
            continue;
        }
        if (used == runs->runs[run].length) {
            run++;
            used = 0;
        }
        uint8_t *block = buffer + done * chunk_size;
        uint8_t pointer[POINTER_LEN];
        pointer_make(pointer, runs->runs[run].start + used, epoch, counter);
        status = aead_seal(ctx, counter, t->protection, items[i].source, block, chunk_size, pointer + 16);
        memcpy(items[i].place, pointer, POINTER_LEN); /* before the parent, later in this batch, is sealed */
        store_le64(entries + done * ENTRY_LEN, checksum_xxh3(block, chunk_size));
        store_le64(entries + done * ENTRY_LEN + 8, (uint64_t)epoch | counter << 24);
        used++;
        counter++;
        done++;
    }
    aead_give_back(key, ctx);
    atomic_fetch_add_explicit(&st->bytes_sealed, done * chunk_size, memory_order_relaxed);
    size_t first = 0;
    for (run = 0; run < runs->count && status == ST_OK; run++) {
        status = segments_write(&st->slots.files, runs->runs[run].start, (size_t)runs->runs[run].length,
                                buffer + first * chunk_size, entries + first * ENTRY_LEN, err);
        first += (size_t)runs->runs[run].length;
    }
    return status;
}

static bool no_space(fspf_status status, const fspf_error *err)
{
    return status == ST_OS && (err->os_errno == ENOSPC || err->os_errno == EDQUOT);
}

/* Into free slots, or into the reserve; on error the slots are free again. */
static fspf_status allocate_and_seal(tree *t, seal_item *items, size_t count, size_t sealed, run_list *runs,
                                     uint8_t *buffer, uint8_t *entries, bool reserve, fspf_error *err)
{
    slots *all = &t->st->slots;
    fspf_status status =
        reserve ? slots_take_reserve(all, sealed, runs, err) : slots_allocate(all, sealed, runs, err);
    if (status == ST_OK) {
        status = seal_into(t, items, count, sealed, runs, buffer, entries, err);
        if (status != ST_OK) {
            slots_free_runs(all, runs);
        }
    }
    return status;
}

/* Items in an order with children first; count is at most store_scratch_chunks. On error nothing has changed. */
fspf_status seal_batch(tree *t, seal_item *items, size_t count, fspf_error *err)
{
    store *st = t->st;
    fspf_status status = ST_OK;
    run_list runs = {0};
    size_t sealed = 0;
    uint8_t *entries = malloc(count * ENTRY_LEN);
    scratch *buffer = store_scratch_get(st);
    if (entries == NULL || buffer == NULL || !runs_reserve(&t->pending, count)) {
        status = ST_NOMEM;
        goto done;
    }
    if (atomic_exchange(&st->reserve_wanted, false)) {
        (void)slots_fill_reserve(&st->slots);
    }
    for (size_t i = 0; i < count; i++) {
        seal_item *item = &items[i];
        item->place = place_of(t, item->level, item->index);
        memcpy(item->old, item->place, POINTER_LEN);
        item->pruned = item->level > 0 && all_holes(item->source, st->chunk_size);
        /* Until the real pointer is known, anything but a hole, for the parent's turn in this loop. */
        memset(item->place, item->pruned ? 0 : 0xff, POINTER_LEN);
        sealed += !item->pruned;
    }
    if (sealed > 0) {
        status = allocate_and_seal(t, items, count, sealed, &runs, buffer->data, entries, false, err);
        uint64_t given_back = 0;
        fspf_error ignored = {0};
        if (no_space(status, err) && slots_trim(&st->slots, &given_back, &ignored) == ST_OK && given_back > 0) {
            status = allocate_and_seal(t, items, count, sealed, &runs, buffer->data, entries, false, err);
        }
        if (no_space(status, err) && t->metadata) {
            status = allocate_and_seal(t, items, count, sealed, &runs, buffer->data, entries, true, err);
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (status != ST_OK) {
            memcpy(items[i].place, items[i].old, POINTER_LEN);
        } else {
            retire(t, items[i].old);
        }
    }
    if (status == ST_OK) {
        t->changed = true;
    }

done:
    store_scratch_put(st, buffer);
    free(entries);
    runs_clear(&runs);
    return status;
}

static void keep_in_cache(tree *t, const seal_item *item)
{
    cache_entry *entry = item->pruned ? NULL : cache_entry_new(t->st->cache, item->place);
    if (entry != NULL) {
        memcpy(entry->data, item->source, t->st->chunk_size);
        cache_unpin(t->st->cache, cache_add(t->st->cache, entry));
    }
}

static fspf_status seal_items(tree *t, seal_item *items, size_t count, fspf_error *err)
{
    fspf_status status = ST_OK;
    size_t batch = store_scratch_chunks(t->st);
    for (size_t at = 0; at < count && status == ST_OK; at += batch) {
        size_t n = count - at < batch ? count - at : batch;
        status = seal_batch(t, items + at, n, err);
        if (status != ST_OK) {
            break;
        }
        for (size_t i = at; i < at + n; i++) {
            if (items[i].level > 0) {
                keep_in_cache(t, &items[i]);
            }
        }
        for (size_t i = at; i < at + n; i++) { /* only now: a place is inside the parent */
            if (items[i].level == 0) {
                dirty_chunk_drop(t, items[i].index);
            } else {
                dirty_node_drop(t, dirty_lookup(t, items[i].level, items[i].index));
            }
        }
    }
    return status;
}

static int compare_items(const void *a, const void *b)
{
    const seal_item *x = a;
    const seal_item *y = b;
    if (x->level != y->level) {
        return x->level < y->level ? -1 : 1;
    }
    return (x->index > y->index) - (x->index < y->index);
}

static fspf_status seal_dirty(tree *t, bool keep_last, bool with_nodes, fspf_error *err)
{
    size_t count = 0;
    size_t room = t->chunks.count + (with_nodes ? t->nodes.count : 0);
    if (room == 0) {
        return ST_OK;
    }
    seal_item *items = calloc(room, sizeof *items);
    if (items == NULL) {
        return ST_NOMEM;
    }
    for (size_t i = 0; i < t->chunks.capacity; i++) {
        uint64_t index = t->chunks.keys[i];
        if (index != MAP64_EMPTY && !(keep_last && index == t->last_chunk)) {
            items[count++] = (seal_item){.level = 0, .index = index, .source = t->chunks.values[i]};
        }
    }
    for (size_t i = 0; with_nodes && i < t->nodes.capacity; i++) {
        if (t->nodes.keys[i] != MAP64_EMPTY) {
            dirty_node *node = t->nodes.values[i];
            items[count++] = (seal_item){.level = node->level, .index = node->index, .source = node->data};
        }
    }
    qsort(items, count, sizeof *items, compare_items);
    fspf_status status = seal_items(t, items, count, err);
    free(items);
    return status;
}

fspf_status seal_chunks(tree *t, bool keep_last, fspf_error *err)
{
    return seal_dirty(t, keep_last, false, err);
}

fspf_status seal_all(tree *t, fspf_error *err)
{
    return seal_dirty(t, false, true, err);
}

fspf_status relieve(tree *t, bool tight, fspf_error *err)
{
    if (t->overlay) {
        return ST_OK;
    }
    if (tight) {
        return seal_chunks(t, false, err);
    }
    if (t->nodes.count > DIRTY_NODES || t->st->dirty_bytes > DIRTY_LIMIT_ALL) {
        return seal_all(t, err);
    }
    if (t->st->dirty_chunk_bytes > DIRTY_LIMIT) {
        return seal_chunks(t, false, err);
    }
    if (t->chunks.count > DIRTY_CHUNKS) {
        return seal_chunks(t, true, err);
    }
    return ST_OK;
}

static fspf_status flush_lock_held(tree *t, fspf_error *err)
{
    if (t->overlay) {
        return fail_os(err, EROFS, "an overlay is not flushed");
    }
    if (!t->changed) {
        return ST_OK;
    }
    fspf_status status = check_writable(t, err);
    if (status == ST_OK) {
        status = seal_all(t, err);
    }
    if (status == ST_OK) {
        status = store_hand_over(t->st, &t->pending, t->metadata);
    }
    if (status == ST_OK) {
        t->seal_floor = atomic_load(&t->st->counter);
        t->changed = false;
        capture_reset(t);
    }
    return status;
}

fspf_status tree_flush(tree *t, content_root *out, fspf_error *err)
{
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    pthread_rwlock_wrlock(&t->lock);
    status = flush_lock_held(t, err);
    out->size = t->size;
    out->depth = t->depth;
    memcpy(out->pointer, t->root, POINTER_LEN);
    pthread_rwlock_unlock(&t->lock);
    store_leave(t->st);
    return status;
}
