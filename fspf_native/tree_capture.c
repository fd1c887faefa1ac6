/* What changed in a tree since its state was last told: chunks for the intent log, so that fsync need not seal and
 * sync the tree. What a record of the log looks like is fspf/core/log.py's business. */
#include "tree_internal.h"

#include <string.h>

void capture_touch(tree *t, uint64_t index)
{
    if (t->beyond) {
        return;
    }
    for (unsigned i = t->touched_count; i > 0; i--) {
        if (t->touched[i - 1] == index) {
            return;
        }
    }
    if (t->touched_count == CAPTURE_MOST) {
        t->beyond = true;
    } else {
        t->touched[t->touched_count++] = index;
    }
}

void capture_lost(tree *t)
{
    t->beyond = true;
}

void capture_cut(tree *t, uint64_t size)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < t->touched_count; i++) {
        if (t->touched[i] < chunks_of(t, size)) {
            t->touched[kept++] = t->touched[i];
        }
    }
    t->touched_count = kept;
    t->cut = t->is_cut ? min_u64(t->cut, size) : size;
    t->is_cut = true;
}

void capture_reset(tree *t)
{
    t->touched_count = 0;
    t->beyond = false;
    t->is_cut = false;
}

bool tree_capturable(tree *t)
{
    pthread_rwlock_rdlock(&t->lock);
    bool little = !t->beyond;
    pthread_rwlock_unlock(&t->lock);
    return little;
}

void captured_clear(captured *c)
{
    if (c->data != NULL) {
        explicit_bzero(c->data, c->data_len);
        free(c->data);
    }
    memset(c, 0, sizeof *c);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

fspf_status tree_capture(tree *t, captured *out, fspf_error *err)
{
    memset(out, 0, sizeof *out);
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    pthread_rwlock_wrlock(&t->lock);
    uint32_t chunk_size = t->st->chunk_size;
    if (!t->beyond && t->touched_count > 0) {
        qsort(t->touched, t->touched_count, sizeof t->touched[0], compare_u64);
        out->data_len = (size_t)t->touched_count * chunk_size;
        out->data = malloc(out->data_len);
        if (out->data == NULL) {
            status = ST_NOMEM;
        }
        for (unsigned i = 0; status == ST_OK && !t->beyond && i < t->touched_count; i++) {
            const uint8_t *chunk = map64_get(&t->chunks, t->touched[i]);
            if (chunk == NULL) {
                t->beyond = true; /* sealed meanwhile, to keep memory within its bounds */
                break;
            }
            uint64_t offset = t->touched[i] << chunk_shift(t);
            out->offset[i] = offset;
            out->length[i] = (uint32_t)min_u64(chunk_size, t->size - offset);
            memcpy(out->data + (size_t)i * chunk_size, chunk, out->length[i]);
        }
    }
    if (status == ST_OK && !t->beyond) {
        out->complete = true;
        out->size = t->size;
        out->is_cut = t->is_cut;
        out->cut = t->cut;
        out->count = t->touched_count;
        capture_reset(t);
    }
    pthread_rwlock_unlock(&t->lock);
    store_leave(t->st);
    return status;
}
