/* Reading: neighbouring slots joined into one preadv, opened in place in the caller's buffer; seek; verify. */
#include "tree_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Chunks index .. index+count-1 lie in neighbouring slots; bytes from..from+len of them go to `out`. Chunks that are
 * not wanted whole pass through `edges` (two chunks). */
static fspf_status read_run(tree *t, opener *o, uint64_t index, const uint8_t *pointers, size_t count, size_t from,
                            uint8_t *out, size_t len, uint8_t *edges, fspf_error *err)
{
    uint32_t chunk_size = t->st->chunk_size;
    struct iovec iov[3];
    int iov_count = 0;
    size_t got = 0;
    bool head = from > 0 || len < chunk_size;
    bool tail = count > 1 && (from + len) % chunk_size != 0;
    size_t whole = count - head - tail;
    uint8_t *direct = whole > 0 || tail ? out + (head ? chunk_size - from : 0) : out;
    if (head) {
        iov[iov_count++] = (struct iovec){edges, chunk_size};
    }
    if (whole > 0) {
        iov[iov_count++] = (struct iovec){direct, whole * chunk_size};
    }
    if (tail) {
        iov[iov_count++] = (struct iovec){edges + chunk_size, chunk_size};
    }
    fspf_status status =
        segments_read(&t->st->slots.files, pointer_slot(pointers), iov, iov_count, &got, err);
    if (status == ST_DAMAGED) {
        const char *message = err->message;
        (void)opener_missing(pointers, err);
        err->message = message;
        store_locate(t->st, 0, index, t->size, err);
    }
    for (size_t i = 0; i < count && status == ST_OK; i++) {
        const uint8_t *pointer = pointers + i * POINTER_LEN;
        uint8_t *block;
        if (head && i == 0) {
            block = edges;
        } else if (tail && i == count - 1) {
            block = edges + chunk_size;
        } else {
            block = direct + (i - head) * chunk_size;
        }
        if ((i + 1) * chunk_size > got) {
            status = opener_missing(pointer, err);
        } else {
            status = opener_open(o, pointer, block, block, err);
        }
        if (status != ST_OK) {
            store_locate(t->st, 0, index + i, t->size, err);
        } else if (head && i == 0) {
            memcpy(out, block + from, chunk_size - from < len ? chunk_size - from : len);
        } else if (tail && i == count - 1) {
            memcpy(direct + whole * chunk_size, block, (from + len) % chunk_size);
        }
    }
    if (head || tail) {
        explicit_bzero(edges, 2 * (size_t)chunk_size);
    }
    return status;
}

/* How many chunks from `index` on (at most `limit`) are sealed in neighbouring slots; their pointers. */
static fspf_status find_run(tree *t, uint64_t index, size_t limit, node_ref *leaf, uint64_t *leaf_index,
                            uint8_t *pointers, size_t *count, fspf_error *err)
{
    *count = 0;
    while (*count < limit) {
        uint8_t *pointer = pointers + *count * POINTER_LEN;
        if (*count > 0 && t->chunks.count > 0 && map64_get(&t->chunks, index + *count) != NULL) {
            break;
        }
        fspf_status status = tree_pointer(t, index + *count, leaf, leaf_index, pointer, err);
        if (status != ST_OK) {
            if (*count > 0) {
                break; /* what comes before the damage is read first */
            }
            return status;
        }
        if (pointer_is_hole(pointer)) {
            break;
        }
        uint64_t slot = pointer_slot(pointer);
        if (*count > 0 && (slot != pointer_slot(pointers) + *count || slot % t->st->slots.segment_slots == 0)) {
            break;
        }
        ++*count;
    }
    return ST_OK;
}

static size_t run_limit(const tree *t)
{
    size_t n = STREAM_BYTES / t->st->chunk_size;
    return n < RUN_CHUNKS ? n : RUN_CHUNKS;
}

static fspf_status read_lock_held(tree *t, uint64_t offset, uint8_t *out, size_t len, fspf_error *err)
{
    fspf_status status = ST_OK;
    uint32_t chunk_size = t->st->chunk_size;
    size_t limit = run_limit(t);
    opener o;
    node_ref leaf = {0};
    uint64_t leaf_index = UINT64_MAX;
    scratch *edges = NULL;
    uint8_t pointers[RUN_CHUNKS * POINTER_LEN];

    opener_init(&o, t->st, t->protection);
    while (len > 0 && status == ST_OK) {
        uint64_t index = offset >> chunk_shift(t);
        size_t from = (size_t)(offset & (chunk_size - 1));
        size_t n = chunk_size - from < len ? chunk_size - from : len;
        const uint8_t *dirty = t->chunks.count ? map64_get(&t->chunks, index) : NULL;
        if (dirty != NULL) {
            memcpy(out, dirty + from, n);
        } else {
            size_t count = 0;
            size_t wanted = (from + len + chunk_size - 1) / chunk_size;
            status = find_run(t, index, wanted < limit ? wanted : limit, &leaf, &leaf_index, pointers, &count, err);
            if (status == ST_OK && count == 0) {
                memset(out, 0, n);
            } else if (status == ST_OK) {
                n = count * chunk_size - from < len ? count * chunk_size - from : len;
                if ((from > 0 || (from + n) % chunk_size != 0) && edges == NULL) {
                    edges = store_scratch_get(t->st);
                    if (edges == NULL) {
                        status = ST_NOMEM;
                        break;
                    }
                }
                status = read_run(t, &o, index, pointers, count, from, out, n, edges ? edges->data : NULL, err);
            }
        }
        offset += n;
        out += n;
        len -= n;
    }
    node_ref_end(t, &leaf);
    opener_end(&o);
    store_scratch_put(t->st, edges);
    return status;
}

fspf_status tree_read(tree *t, uint64_t offset, uint8_t *out, size_t len, size_t *got, fspf_error *err)
{
    *got = 0;
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    pthread_rwlock_rdlock(&t->lock);
    uint64_t size = t->size;
    if (offset < size && len > 0) {
        size_t n = (size_t)min_u64(len, size - offset);
        status = read_lock_held(t, offset, out, n, err);
        if (status == ST_OK) {
            *got = n;
        } else {
            explicit_bzero(out, n);
        }
    }
    pthread_rwlock_unlock(&t->lock);
    store_leave(t->st);
    return status;
}

/* ---- seek ---- */

/* First chunk at or after `from` (below `end`) that is data, in block (level, index). */
static fspf_status next_data(tree *t, int level, uint64_t index, const uint8_t *pointer, uint64_t from, uint64_t end,
                             uint64_t *found, fspf_error *err)
{
    unsigned shift = (unsigned)level * t->st->arity_shift;
    uint64_t start = index << shift;
    if (start >= end || ((index + 1) << shift) <= from) {
        return ST_OK;
    }
    if (level == 0) {
        if (!pointer_is_hole(pointer) || map64_get(&t->chunks, index) != NULL) {
            *found = index;
        }
        return ST_OK;
    }
    node_ref ref = {0};
    dirty_node *node = dirty_lookup(t, level, index);
    if (node != NULL) {
        ref.pointers = node->data;
    } else if (pointer_is_hole(pointer)) {
        return ST_OK;
    } else {
        fspf_status status = store_get_node(t->st, pointer, t->protection, &ref.pin, err);
        if (status != ST_OK) {
            store_locate(t->st, level, index, t->size, err);
            return status;
        }
        ref.pointers = ref.pin->data;
    }
    fspf_status status = ST_OK;
    unsigned child_shift = shift - t->st->arity_shift;
    uint64_t c = from > start ? (from - start) >> child_shift : 0;
    for (; c < arity(t) && *found == UINT64_MAX && status == ST_OK; c++) {
        const uint8_t *child = ref.pointers + c * POINTER_LEN;
        if (node != NULL || !pointer_is_hole(child)) {
            status = next_data(t, level - 1, (index << t->st->arity_shift) + c, child, from, end, found, err);
        }
    }
    node_ref_end(t, &ref);
    return status;
}

fspf_status tree_seek(tree *t, uint64_t offset, bool data, uint64_t *found, fspf_error *err)
{
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    pthread_rwlock_rdlock(&t->lock);
    uint64_t size = t->size;
    uint64_t end = chunks_of(t, size);
    uint64_t index = offset >> chunk_shift(t);
    if (offset >= size) {
        status = fail_os(err, ENXIO, "past the end");
    } else if (data) {
        uint64_t chunk = UINT64_MAX;
        status = next_data(t, t->depth, 0, t->root, index, end, &chunk, err);
        if (status == ST_OK && chunk == UINT64_MAX) {
            status = fail_os(err, ENXIO, "no data from here on");
        }
        *found = max_u64(offset, chunk << chunk_shift(t));
    } else {
        node_ref leaf = {0};
        uint64_t leaf_index = UINT64_MAX;
        for (; index < end && status == ST_OK; index++) {
            uint8_t pointer[POINTER_LEN];
            if (t->chunks.count > 0 && map64_get(&t->chunks, index) != NULL) {
                continue;
            }
            status = tree_pointer(t, index, &leaf, &leaf_index, pointer, err);
            if (status == ST_OK && pointer_is_hole(pointer)) {
                break;
            }
        }
        node_ref_end(t, &leaf);
        *found = index < end ? max_u64(offset, index << chunk_shift(t)) : size;
    }
    pthread_rwlock_unlock(&t->lock);
    store_leave(t->st);
    return status;
}

/* ---- verify ---- */

typedef struct {
    tree *t;
    opener o;
    size_t limit, count, capacity;
    tree_finding *findings;
    uint8_t pointer[MAX_DEPTH + 1][POINTER_LEN]; /* of the node that is in node[level], all zero: none */
    uint8_t *node[MAX_DEPTH + 1];
    scratch *buffer;
} verifier;

static fspf_status note(verifier *v, const fspf_error *e)
{
    tree_finding *last = v->count ? &v->findings[v->count - 1] : NULL;
    if (last != NULL && last->kind == e->kind && last->level == e->level && last->offset + last->length == e->offset) {
        last->length += e->length;
        return ST_OK;
    }
    if (v->count == v->limit) {
        return ST_OK;
    }
    if (v->count == v->capacity) {
        size_t capacity = v->capacity ? v->capacity * 2 : 16;
        tree_finding *bigger = realloc(v->findings, capacity * sizeof *bigger);
        if (bigger == NULL) {
            return ST_NOMEM;
        }
        v->findings = bigger;
        v->capacity = capacity;
    }
    v->findings[v->count++] = (tree_finding){e->offset, e->length, e->kind, e->slot, e->level};
    return ST_OK;
}

/* Damage, and what the host cannot read, becomes a finding; anything else is an error. */
static fspf_status note_or_fail(verifier *v, fspf_status status, const uint8_t *pointer, int level, uint64_t index,
                                fspf_error *err)
{
    if (status == ST_OS) {
        (void)opener_missing(pointer, err);
    } else if (status != ST_DAMAGED) {
        return status;
    }
    store_locate(v->t->st, level, index, v->t->size, err);
    return note(v, err);
}

/* Chunks below leaf `index`; *next is the first chunk to look at afterwards. */
static fspf_status verify_leaf(verifier *v, uint64_t index, uint64_t *next, fspf_error *err)
{
    tree *t = v->t;
    uint8_t pointer[POINTER_LEN];
    memcpy(pointer, t->root, POINTER_LEN);
    const uint8_t *leaf = NULL; /* NULL: depth 0 */
    for (int level = t->depth; level > 0; level--) {
        uint64_t i = index >> ((unsigned)(level - 1) * t->st->arity_shift);
        dirty_node *dirty = dirty_lookup(t, level, i);
        const uint8_t *pointers = NULL;
        if (dirty != NULL) {
            pointers = dirty->data;
        } else if (!pointer_is_hole(pointer)) {
            if (memcmp(v->pointer[level], pointer, POINTER_LEN) != 0) {
                memset(v->pointer[level], 0, POINTER_LEN);
                if (v->node[level] == NULL && (v->node[level] = malloc(t->st->chunk_size)) == NULL) {
                    return ST_NOMEM;
                }
                fspf_status status = opener_read(&v->o, pointer, v->node[level], err);
                if (status != ST_OK) {
                    *next = (i + 1) << ((unsigned)level * t->st->arity_shift);
                    return note_or_fail(v, status, pointer, level, i, err);
                }
                memcpy(v->pointer[level], pointer, POINTER_LEN);
            }
            pointers = v->node[level];
        }
        if (pointers == NULL) {
            *next = (i + 1) << ((unsigned)level * t->st->arity_shift);
            return ST_OK;
        }
        if (level == 1) {
            leaf = pointers;
        } else {
            uint64_t child = index >> ((unsigned)(level - 2) * t->st->arity_shift);
            memcpy(pointer, pointers + (child & (arity(t) - 1)) * POINTER_LEN, POINTER_LEN);
        }
    }
    uint64_t first = index << t->st->arity_shift;
    uint64_t end = min_u64(chunks_of(t, t->size), first + (leaf ? arity(t) : 1));
    *next = first + (leaf ? arity(t) : 1);
    const uint8_t *pointers = leaf ? leaf : t->root;
    for (uint64_t c = 0; first + c < end;) {
        const uint8_t *start = pointers + c * POINTER_LEN;
        size_t count = 0;
        while (count < run_limit(t) && first + c + count < end &&
               map64_get(&t->chunks, first + c + count) == NULL) {
            const uint8_t *p = start + count * POINTER_LEN;
            uint64_t slot = pointer_slot(p);
            if (pointer_is_hole(p) || (count > 0 && (slot != pointer_slot(start) + count ||
                                                     slot % t->st->slots.segment_slots == 0))) {
                break;
            }
            count++;
        }
        if (count == 0) {
            c++;
            continue;
        }
        fspf_status status = read_run(t, &v->o, first + c, start, count, 0, v->buffer->data,
                                      count * t->st->chunk_size, NULL, err);
        if (status == ST_OS && count > 1) { /* one bad sector must not hide its neighbours */
            status = read_run(t, &v->o, first + c, start, 1, 0, v->buffer->data, t->st->chunk_size, NULL, err);
            count = 1;
        }
        if (status == ST_DAMAGED) {
            count = (size_t)((err->offset >> chunk_shift(t)) - first - c) + 1;
            status = note(v, err);
        } else if (status != ST_OK) {
            status = note_or_fail(v, status, start, 0, first + c, err);
        }
        if (status != ST_OK) {
            return status;
        }
        c += count;
    }
    return ST_OK;
}

fspf_status tree_verify(tree *t, size_t limit, tree_finding **findings, size_t *count, fspf_error *err)
{
    verifier v = {.t = t, .limit = limit};
    fspf_status status = store_enter(t->st, err);
    if (status != ST_OK) {
        return status;
    }
    opener_init(&v.o, t->st, t->protection);
    v.buffer = store_scratch_get(t->st);
    if (v.buffer == NULL) {
        status = ST_NOMEM;
    }
    for (uint64_t chunk = 0; status == ST_OK;) {
        pthread_rwlock_rdlock(&t->lock); /* for one leaf at a time: writers get their turn */
        uint64_t next = chunk + 1;
        bool more = chunk < chunks_of(t, t->size) && v.count < limit;
        if (more) {
            status = verify_leaf(&v, chunk >> t->st->arity_shift, &next, err);
        }
        pthread_rwlock_unlock(&t->lock);
        if (!more) {
            break;
        }
        chunk = next;
    }
    for (int level = 0; level <= MAX_DEPTH; level++) {
        free(v.node[level]);
    }
    if (v.buffer != NULL) {
        explicit_bzero(v.buffer->data, SCRATCH_BYTES);
    }
    store_scratch_put(t->st, v.buffer);
    opener_end(&v.o);
    store_leave(t->st);
    if (status != ST_OK) {
        free(v.findings);
        return status;
    }
    *findings = v.findings;
    *count = v.count;
    return ST_OK;
}
