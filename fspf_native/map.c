/* Space maps and rebuilding: which slots are in use, saved at a clean close, loaded or found out at the next start.
 * A map is the bitmap of the slots in use, bit n of byte n/8 (least significant first), zero chunks left as holes. */
#include "tree.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    store *st;
    run_list *collect; /* either: slots go here */
    bool mark;         /* or: they are marked for the rebuild */
    opener o;
    uint64_t chunks;
    uint64_t size;
} walker;

static fspf_status visit(walker *w, const uint8_t *pointer)
{
    if (w->mark) {
        slots_mark(&w->st->slots, pointer_slot(pointer));
        return ST_OK;
    }
    return runs_add(w->collect, pointer_slot(pointer), 1) ? ST_OK : ST_NOMEM;
}

static fspf_status walk(walker *w, int level, uint64_t index, const uint8_t *pointer, fspf_error *err)
{
    if (pointer_is_hole(pointer)) {
        return ST_OK;
    }
    fspf_status status = visit(w, pointer);
    if (level == 0 || status != ST_OK) {
        w->chunks += status == ST_OK;
        return status;
    }
    uint8_t *node = malloc(w->st->chunk_size);
    if (node == NULL) {
        return ST_NOMEM;
    }
    status = opener_read(&w->o, pointer, node, err);
    if (status != ST_OK) {
        store_locate(w->st, level, index, w->size, err);
    }
    for (uint64_t c = 0; status == ST_OK && c < UINT64_C(1) << w->st->arity_shift; c++) {
        status = walk(w, level - 1, (index << w->st->arity_shift) + c, node + c * POINTER_LEN, err);
    }
    free(node);
    return status;
}

static fspf_status walk_root(walker *w, const content_root *root, protection_mode protection, fspf_error *err)
{
    fspf_status status = store_check_root(w->st, root, err);
    if (status == ST_OK) {
        w->size = root->size;
        opener_init(&w->o, w->st, protection);
        status = walk(w, root->depth, 0, root->pointer, err);
        opener_end(&w->o);
    }
    return status;
}

fspf_status store_rebuild_mark(store *st, const content_root *root, protection_mode protection, uint64_t *chunks,
                               fspf_error *err)
{
    walker w = {.st = st, .mark = true};
    fspf_status status = store_enter(st, err);
    if (status == ST_OK) {
        status = walk_root(&w, root, protection, err);
        store_leave(st);
    }
    *chunks = w.chunks;
    return status;
}

static fspf_status load_map(store *st, const content_root *root, uint64_t end_of_slots, fspf_error *err)
{
    tree *map = NULL;
    run_list own = {0};
    walker w = {.st = st, .collect = &own};
    uint8_t *buffer = malloc(STREAM_BYTES);
    fspf_status status = buffer ? ST_OK : ST_NOMEM;
    if (status == ST_OK && root->size > (end_of_slots + 63) / 64 * 8) {
        status = fail_with(err, ST_VALUE, "the space map goes beyond end_of_slots");
    }
    if (status == ST_OK) {
        status = tree_new(st, root, PROTECT_ENCRYPT, 0, true, &map, err);
    }
    for (uint64_t offset = 0; status == ST_OK && offset < root->size;) {
        size_t got = 0;
        status = tree_read(map, offset, buffer, STREAM_BYTES, &got, err);
        if (status == ST_OK) {
            status = slots_load_bits(&st->slots, offset * 8, buffer, got, err);
        }
        offset += got;
    }
    if (status == ST_OK) {
        status = walk_root(&w, root, PROTECT_ENCRYPT, err);
    }
    for (size_t i = 0; status == ST_OK && i < own.count; i++) {
        for (uint64_t n = 0; n < own.runs[i].length; n++) {
            if (!slots_mark_used(&st->slots, own.runs[i].start + n)) {
                status = fail_with(err, ST_VALUE, "the space map lies beyond end_of_slots");
                break;
            }
        }
    }
    if (status == ST_OK) {
        status = store_hand_over(st, &own, false);
    }
    tree_free(map);
    runs_clear(&own);
    free(buffer);
    return status;
}

fspf_status store_start(store *st, const content_root *space_map, uint64_t end_of_slots, bool unknown,
                        fspf_error *err)
{
    fspf_status status = store_enter(st, err);
    if (status != ST_OK) {
        return status;
    }
    pthread_mutex_lock(&st->epoch_lock);
    if (!st->writable) {
        status = fail_with(err, ST_MISUSE, "the store is open for reading");
    } else if (st->start_called) {
        status = fail_with(err, ST_MISUSE, "the store was started before");
    }
    pthread_mutex_unlock(&st->epoch_lock);
    if (status == ST_OK) {
        status = slots_start(&st->slots, end_of_slots, unknown, err);
    }
    if (status == ST_OK && space_map != NULL) {
        status = load_map(st, space_map, end_of_slots, err);
        if (status != ST_OK) {
            slots_reset(&st->slots); /* the caller may go on with start_unknown */
        }
    }
    if (status == ST_OK) {
        st->start_called = true;
    }
    store_leave(st);
    return status;
}

static bool all_zero(const uint8_t *data, size_t len)
{
    return len == 0 || (data[0] == 0 && memcmp(data, data + 1, len - 1) == 0);
}

static void clear_runs(uint64_t *bits, uint64_t words, const run_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        for (uint64_t n = 0; n < list->runs[i].length; n++) {
            uint64_t slot = list->runs[i].start + n;
            if (slot / 64 < words) {
                bits[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
            }
        }
    }
}

static fspf_status write_map(store *st, const uint8_t *bits, uint64_t bytes, content_root *out, fspf_error *err)
{
    static const content_root empty = {0};
    tree *map = NULL;
    run_list own = {0};
    walker w = {.st = st, .collect = &own};
    fspf_status status = tree_new(st, &empty, PROTECT_ENCRYPT, 0, true, &map, err);
    if (status == ST_OK) {
        status = tree_truncate(map, bytes, err);
    }
    for (uint64_t offset = 0; status == ST_OK && offset < bytes;) {
        /* Stretches of chunks that are not zero go together. */
        size_t len = 0;
        while (offset + len < bytes && len < STREAM_BYTES) {
            size_t n = (size_t)min_u64(st->chunk_size, bytes - offset - len);
            if (all_zero(bits + offset + len, n)) {
                break;
            }
            len += n;
        }
        if (len > 0) {
            status = tree_write(map, offset, bits + offset, len, err);
        }
        offset += len > 0 ? len : st->chunk_size;
    }
    if (status == ST_OK) {
        status = tree_flush(map, out, err);
    }
    if (status == ST_OK) {
        status = walk_root(&w, out, PROTECT_ENCRYPT, err);
    }
    tree_free(map);
    if (status == ST_OK) {
        pthread_mutex_lock(&st->commit_lock);
        st->pending_count += own.slots;
        (void)runs_move(&st->map_slots, &own);
        pthread_mutex_unlock(&st->commit_lock);
    }
    runs_clear(&own);
    return status;
}

fspf_status store_save_map(store *st, content_root *out, fspf_error *err)
{
    uint64_t *bits = NULL;
    uint64_t words = 0;
    fspf_status status = store_enter(st, err);
    if (status != ST_OK) {
        return status;
    }
    if (st->slots.rebuilding) {
        status = fail_with(err, ST_MISUSE, "save_map while the map is being rebuilt");
    } else if (!st->start_called || st->epoch == 0) {
        status = fail_with(err, ST_MISUSE, "save_map before the store was started");
    }
    if (status == ST_OK) {
        /* A map saved since the last commit is in no root. */
        pthread_mutex_lock(&st->commit_lock);
        st->pending_count -= st->map_slots.slots;
        slots_free_runs(&st->slots, &st->map_slots);
        status = slots_snapshot(&st->slots, &bits, &words);
        if (status == ST_OK) {
            clear_runs(bits, words, &st->accumulating);
            clear_runs(bits, words, &st->marked);
            for (const closed_commit *c = st->closed; c != NULL; c = c->next) {
                clear_runs(bits, words, &c->frees);
            }
        }
        pthread_mutex_unlock(&st->commit_lock);
    }
    if (status == ST_OK) {
        while (words > 0 && bits[words - 1] == 0) {
            words--;
        }
        for (uint64_t i = 0; i < words; i++) {
            bits[i] = htole64(bits[i]);
        }
        status = write_map(st, (const uint8_t *)bits, words * 8, out, err);
    }
    free(bits);
    store_leave(st);
    return status;
}
