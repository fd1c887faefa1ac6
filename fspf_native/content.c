/* The contents of the mount's files: trees made when they are used, flushed one by one or all. */
#include "relay.h"

#include <errno.h>
#include <sys/stat.h>

int content_tree(relay *r, inode *node, tree **out)
{
    fspf_error err = {0};
    int result = 0;
    pthread_mutex_lock(&r->meta.lock);
    if (!S_ISREG(node->mode)) {
        result = S_ISDIR(node->mode) ? -EISDIR : -EINVAL;
    } else if (node->tree == NULL) {
        fspf_status status =
            tree_new(r->st, &node->root, (protection_mode)node->protection, node->chunks, false, &node->tree, &err);
        if (status != ST_OK) {
            node->tree = NULL;
            result = status == ST_NOMEM ? -ENOMEM : -EIO;
        } else {
            node->told_size = node->root.size;
            r->meta.bytes += TREE_COST;
        }
    }
    *out = node->tree;
    pthread_mutex_unlock(&r->meta.lock);
    return result;
}

/* Note what a flush has sealed; lock held. */
static void note_root(meta *m, inode *node, tree *t, const content_root *root, uint64_t allocated, uint32_t seen)
{
    bool again = node->changes != seen; /* by a write that came during the flush */
    m->bytes_delta += (int64_t)root->size - (int64_t)node->root.size;
    node->root = *root;
    node->chunks = allocated;
    node->told_size = root->size;
    node->reflushed = true;
    meta_dirty(m, node);
    meta_unchanged(m, node);
    if (again) {
        meta_changed(m, node); /* behind the others */
    } else if (node->pins == 1 && !tree_dirty(t)) { /* only we use it: it is soon made again */
        meta_drop_tree(m, node);
    }
}

int content_flush(relay *r, inode *node)
{
    fspf_error err = {0};
    content_root root = {0};
    fspf_status status = ST_OK;
    meta *m = &r->meta;
    int blocked = m->blocked; /* who may not write any more may not seal either: the slots may be another writer's */
    pthread_rwlock_rdlock(&m->gate);
    pthread_mutex_lock(&m->lock);
    while (node->flushing) { /* whoever does it has passed the gate */
        pthread_cond_wait(&m->flushed, &m->lock);
    }
    tree *t = node->tree;
    bool due = node->changed && !node->gone && t != NULL;
    uint32_t seen = node->changes;
    node->flushing = due && blocked == 0;
    pthread_mutex_unlock(&m->lock);
    if (due && blocked == 0) {
        status = tree_flush(t, &root, &err);
        uint64_t allocated = tree_allocated(t);
        pthread_mutex_lock(&m->lock);
        node->flushing = false;
        pthread_cond_broadcast(&m->flushed);
        if (status == ST_OK && !node->gone) {
            note_root(m, node, t, &root, allocated, seen);
        }
        pthread_mutex_unlock(&m->lock);
    }
    pthread_rwlock_unlock(&m->gate);
    if (due && blocked != 0) {
        return -blocked;
    }
    /* The call may drain: not inside the gate. */
    return status == ST_OK ? 0 : -r->up.failed(r->up.context, "flush", node->ino, status, &err);
}

int content_prepare_log(relay *r, inode *node)
{
    pthread_mutex_lock(&r->meta.lock);
    tree *t = node->changed ? node->tree : NULL; /* it stays while the caller has the inode pinned */
    pthread_mutex_unlock(&r->meta.lock);
    return t == NULL || tree_capturable(t) ? 0 : content_flush(r, node);
}

static inode *pin_inode(relay *r, uint64_t ino)
{
    pthread_mutex_lock(&r->meta.lock);
    inode *node = meta_find(&r->meta, ino);
    if (node != NULL) {
        meta_pin(node);
    }
    pthread_mutex_unlock(&r->meta.lock);
    return node;
}

static void unpin_inode(relay *r, inode *node)
{
    pthread_mutex_lock(&r->meta.lock);
    meta_unpin(&r->meta, node);
    pthread_mutex_unlock(&r->meta.lock);
}

int content_flush_these(relay *r, const uint64_t *inos, size_t count)
{
    int result = 0;
    for (size_t i = 0; i < count; i++) {
        inode *node = pin_inode(r, inos[i]);
        if (node != NULL) {
            int error = content_flush(r, node);
            result = result ? result : error;
            node_put(r, node);
        }
    }
    return result;
}

/* Nothing is flushed meanwhile: the gate is held for writing. */
static bool take_piece(relay *r, inode *node, log_piece *piece, bool *empty)
{
    fspf_error err = {0};
    meta *m = &r->meta;
    pthread_mutex_lock(&m->lock);
    bool due = node->changed && !node->gone && node->tree != NULL;
    pthread_mutex_unlock(&m->lock);
    *empty = true;
    if (!due) {
        return true;
    }
    piece->ino = node->ino;
    if (tree_capture(node->tree, &piece->what, &err) != ST_OK || !piece->what.complete) {
        return false;
    }
    pthread_mutex_lock(&m->lock);
    *empty = piece->what.count == 0 && !piece->what.is_cut && piece->what.size == node->told_size;
    node->told_size = piece->what.size;
    pthread_mutex_unlock(&m->lock);
    return true;
}

int content_take_log(relay *r, const uint64_t *inos, size_t count, log_piece *pieces, size_t *piece_count,
                     bool *complete, drained *rows)
{
    *piece_count = 0;
    *complete = true;
    pthread_rwlock_wrlock(&r->meta.gate);
    for (size_t i = 0; i < count; i++) {
        inode *node = pin_inode(r, inos[i]);
        if (node == NULL) {
            continue;
        }
        bool empty = true;
        log_piece *piece = &pieces[*piece_count];
        memset(piece, 0, sizeof *piece);
        *complete = take_piece(r, node, piece, &empty) && *complete;
        if (empty) {
            captured_clear(&piece->what);
        } else {
            (*piece_count)++;
        }
        unpin_inode(r, node);
    }
    int result = meta_drain_gate_held(&r->meta, rows);
    pthread_rwlock_unlock(&r->meta.gate);
    for (size_t i = 0; i < count; i++) { /* deleting needs the gate */
        inode *node = pin_inode(r, inos[i]);
        if (node != NULL) {
            node_put(r, node);
        }
    }
    return result;
}

static bool all_capturable(relay *r, const uint64_t *inos, size_t count)
{
    bool little = true;
    for (size_t i = 0; i < count && little; i++) {
        inode *node = pin_inode(r, inos[i]);
        if (node != NULL) {
            pthread_mutex_lock(&r->meta.lock);
            tree *t = node->changed && !node->gone ? node->tree : NULL;
            pthread_mutex_unlock(&r->meta.lock);
            little = t == NULL || tree_capturable(t);
            unpin_inode(r, node);
        }
    }
    return little;
}

static taking take_pieces_gate_held(relay *r, const uint64_t *inos, size_t count, log_piece *pieces, size_t *piece_count)
{
    for (size_t i = 0; i < count; i++) {
        inode *node = pin_inode(r, inos[i]);
        if (node == NULL) {
            continue;
        }
        bool empty = true;
        log_piece *piece = &pieces[*piece_count];
        memset(piece, 0, sizeof *piece);
        bool complete = take_piece(r, node, piece, &empty);
        unpin_inode(r, node);
        if (empty) {
            captured_clear(&piece->what);
        } else {
            (*piece_count)++;
        }
        if (!complete) {
            return TAKE_LOST; /* also to what was taken before it */
        }
    }
    return TAKE_ALL;
}

taking content_take_for_lane(relay *r, const uint64_t *inos, size_t count, log_piece *pieces, size_t *piece_count,
                             bool *has_rows)
{
    meta *m = &r->meta;
    *piece_count = 0;
    *has_rows = false;
    pthread_rwlock_wrlock(&m->gate);
    taking result = TAKE_NOTHING;
    if (lane_may_take(&r->lane) && meta_is_little_gate_held(m, LANE_MOST_ROWS) &&
        m->recorded_rows <= LANE_MOST_RECORDED && all_capturable(r, inos, count)) {
        result = take_pieces_gate_held(r, inos, count, pieces, piece_count);
    }
    const drained *rows = NULL;
    if (result == TAKE_ALL) { /* encoded within the gate: the next drain owns them */
        int taken = meta_take_recorded_gate_held(m, &rows);
        *has_rows = rows != NULL;
        if (taken != 0 || (rows != NULL && !lane_encode_rows(&r->lane, rows))) {
            result = TAKE_LOST;
        }
    }
    pthread_rwlock_unlock(&m->gate);
    for (size_t i = 0; i < count; i++) { /* deleting needs the gate */
        inode *node = pin_inode(r, inos[i]);
        if (node != NULL) {
            node_put(r, node);
        }
    }
    return result;
}

/* The first content that changed, after `at` that could not be flushed; one that is being flushed only with `wait`. */
static inode *pin_next_changed(relay *r, size_t at, bool wait)
{
    pthread_mutex_lock(&r->meta.lock);
    inode *node = r->meta.changed_first;
    while (node != NULL && (at > 0 || (node->flushing && !wait))) {
        at -= at > 0;
        node = node->changed_next;
    }
    if (node != NULL) {
        meta_pin(node);
    }
    pthread_mutex_unlock(&r->meta.lock);
    return node;
}

/* One after the other from the front; those that cannot be flushed stay there and are stepped over. */
static int flush_some(relay *r, size_t most, uint64_t bytes, bool wait)
{
    int result = 0;
    size_t failed = 0;
    for (size_t done = 0; done < most && atomic_load(&r->st->dirty_bytes) >= bytes; done++) {
        inode *node = pin_next_changed(r, failed, wait);
        if (node == NULL) {
            break;
        }
        int error = content_flush(r, node);
        if (error != 0) {
            failed++;
            result = result ? result : error;
        }
        node_put(r, node);
    }
    return result;
}

int content_flush_all(relay *r)
{
    pthread_mutex_lock(&r->meta.lock);
    size_t count = r->meta.changed_count; /* what changes from now on is for the next */
    pthread_mutex_unlock(&r->meta.lock);
    return flush_some(r, count + 8, 0, true);
}

void content_relieve(relay *r, uint64_t bytes)
{
    (void)flush_some(r, 256, bytes, false);
}

void content_destroy(relay *r, inode *node)
{
    fspf_error err = {0};
    uint64_t lost = 0;
    pthread_mutex_lock(&r->meta.lock);
    bool is_file = S_ISREG(node->mode);
    uint8_t protection = node->protection;
    uint64_t chunks = node->chunks;
    content_root root = node->root;
    tree *own = node->tree; /* freed with the inode */
    pthread_mutex_unlock(&r->meta.lock);
    if (!is_file || (own == NULL && pointer_is_hole(root.pointer))) {
        return;
    }
    tree *t = own;
    if (t == NULL && tree_new(r->st, &root, (protection_mode)protection, chunks, false, &t, &err) != ST_OK) {
        return; /* the slots are found free at the next rebuild */
    }
    (void)tree_destroy(t, &lost, &err);
    if (own == NULL) {
        tree_free(t);
    }
}
