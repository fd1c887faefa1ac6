/* Writing: small and partial pieces into dirty chunks, whole chunks of large writes straight into sealed slots. */
#include "tree_internal.h"

#include <errno.h>
#include <string.h>

/* `count` whole chunks from the caller's buffer. */
static fspf_status write_direct(tree *t, uint64_t index, size_t count, const uint8_t *data, fspf_error *err)
{
    seal_item items[RUN_CHUNKS];
    for (size_t i = 0; i < count; i++) {
        items[i] = (seal_item){.level = 0, .index = index + i, .source = data + i * t->st->chunk_size};
        if (t->depth > 0 && (i == 0 || ((index + i) & (arity(t) - 1)) == 0)) {
            dirty_node *leaf = NULL;
            fspf_status status = dirty_node_get(t, 1, (index + i) >> t->st->arity_shift, &leaf, err);
            if (status != ST_OK) {
                return status;
            }
        }
    }
    fspf_status status = seal_batch(t, items, count, err);
    if (status != ST_OK) {
        return status;
    }
    uint64_t added = 0;
    for (size_t i = 0; i < count; i++) {
        if (t->chunks.count > 0 && map64_get(&t->chunks, index + i) != NULL) {
            dirty_chunk_drop(t, index + i);
        } else if (pointer_is_hole(items[i].old)) {
            added++;
        }
    }
    t->allocated += added;
    return ST_OK;
}

static fspf_status write_lock_held(tree *t, uint64_t offset, const uint8_t *data, size_t len, fspf_error *err)
{
    uint32_t chunk_size = t->st->chunk_size;
    bool large = len >= LARGE_WRITE;
    bool tight = false;
    size_t stream = STREAM_BYTES / chunk_size < RUN_CHUNKS ? STREAM_BYTES / chunk_size : RUN_CHUNKS;
    fspf_status status = ST_OK;

    while (len > 0 && status == ST_OK) {
        uint64_t index = offset >> chunk_shift(t);
        size_t in = (size_t)(offset & (chunk_size - 1));
        size_t n = chunk_size - in < len ? chunk_size - in : len;
        if (large && in == 0 && len >= chunk_size && !t->overlay) {
            capture_lost(t);
            size_t chunks = len >> chunk_shift(t);
            chunks = chunks < stream ? chunks : stream;
            n = chunks * chunk_size;
            status = write_direct(t, index, chunks, data, err);
        } else {
            uint8_t *chunk = NULL;
            status = dirty_chunk_get(t, index, n < chunk_size, &tight, &chunk, err);
            if (status == ST_OK) {
                memcpy(chunk + in, data, n);
                t->last_chunk = index;
                capture_touch(t, index);
            }
        }
        offset += n;
        data += n;
        len -= n;
        if (status == ST_OK) {
            status = relieve(t, tight, err);
            if (status == ST_OS && t->metadata && (err->os_errno == ENOSPC || err->os_errno == EDQUOT)) {
                status = ST_OK; /* it stays dirty; the flush tells, and SQLite keeps its transaction */
            }
        }
    }
    return status;
}

fspf_status tree_write(tree *t, uint64_t offset, const uint8_t *data, size_t len, fspf_error *err)
{
    if (offset > MAX_FILE_SIZE || len > MAX_FILE_SIZE - offset) {
        return fail_os(err, EFBIG, "a file ends at 2^63-1");
    }
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    status = check_writable(t, err);
    if (status != ST_OK || len == 0) {
        store_leave(t->st);
        return status;
    }
    pthread_rwlock_wrlock(&t->lock);
    uint64_t old_size = t->size;
    uint64_t end = offset + len;
    if (end > old_size) {
        status = grow_depth(t, end, err);
        t->size = end;
        t->changed = true;
    }
    if (status == ST_OK) {
        status = write_lock_held(t, offset, data, len, err);
    }
    if (status != ST_OK && end > old_size) {
        fspf_error ignored = {0};
        capture_lost(t);
        (void)truncate_lock_held(t, old_size, false, NULL, &ignored); /* what was appended never was */
    }
    pthread_rwlock_unlock(&t->lock);
    store_leave(t->st);
    return status;
}
