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
            r->meta.bytes += TREE_COST;
        }
    }
    *out = node->tree;
    pthread_mutex_unlock(&r->meta.lock);
    return result;
}

int content_flush(relay *r, inode *node)
{
    fspf_error err = {0};
    content_root root = {0};
    fspf_status status = ST_OK;
    meta *m = &r->meta;
    pthread_rwlock_rdlock(&m->gate);
    pthread_mutex_lock(&m->lock);
    tree *t = node->tree;
    bool due = node->changed && !node->gone && t != NULL;
    meta_unchanged(m, node); /* before the flush: a write that comes during it is noted again */
    pthread_mutex_unlock(&m->lock);
    if (due) {
        status = tree_flush(t, &root, &err);
        uint64_t allocated = tree_allocated(t);
        pthread_mutex_lock(&m->lock);
        if (status != ST_OK) {
            meta_changed(m, node);
        } else if (!node->gone) {
            m->bytes_delta += (int64_t)root.size - (int64_t)node->root.size;
            node->root = root;
            node->chunks = allocated;
            node->flush_errno = 0;
            meta_dirty(m, node);
            if (node->pins == 1 && !node->changed && !tree_dirty(t)) { /* only we use it: it is soon made again */
                meta_drop_tree(m, node);
            }
        }
        pthread_mutex_unlock(&m->lock);
    }
    pthread_rwlock_unlock(&m->gate);
    if (status == ST_OK) {
        return 0;
    }
    int error = r->up.failed(r->up.context, "flush", node->ino, status, &err); /* may drain: not inside the gate */
    pthread_mutex_lock(&m->lock);
    node->flush_errno = error;
    pthread_mutex_unlock(&m->lock);
    return -error;
}

static inode *pin_next_changed(relay *r, size_t at)
{
    pthread_mutex_lock(&r->meta.lock);
    inode *node = r->meta.changed_first;
    while (at-- > 0 && node != NULL) {
        node = node->changed_next;
    }
    if (node != NULL) {
        meta_pin(node);
    }
    pthread_mutex_unlock(&r->meta.lock);
    return node;
}

/* One after the other from the front; those that cannot be flushed stay there and are stepped over. */
static int flush_some(relay *r, size_t most, uint64_t bytes)
{
    int result = 0;
    size_t failed = 0;
    for (size_t done = 0; done < most && atomic_load(&r->st->dirty_bytes) >= bytes; done++) {
        inode *node = pin_next_changed(r, failed);
        if (node == NULL) {
            break;
        }
        int error = content_flush(r, node);
        if (error != 0) {
            failed++;
            result = result ? result : error;
        }
        pthread_mutex_lock(&r->meta.lock);
        meta_unpin(&r->meta, node);
        pthread_mutex_unlock(&r->meta.lock);
    }
    return result;
}

int content_flush_all(relay *r)
{
    pthread_mutex_lock(&r->meta.lock);
    size_t count = r->meta.changed_count; /* what changes from now on is for the next */
    pthread_mutex_unlock(&r->meta.lock);
    return flush_some(r, count + 8, 0);
}

void content_relieve(relay *r, uint64_t bytes)
{
    (void)flush_some(r, 256, bytes);
}

void content_destroy(relay *r, inode *node)
{
    fspf_error err = {0};
    uint64_t lost = 0;
    if (!S_ISREG(node->mode) || (node->tree == NULL && pointer_is_hole(node->root.pointer))) {
        return;
    }
    tree *t = node->tree;
    if (t == NULL) {
        if (tree_new(r->st, &node->root, (protection_mode)node->protection, node->chunks, false, &t, &err) != ST_OK) {
            return; /* the slots are found free at the next rebuild */
        }
    }
    (void)tree_destroy(t, &lost, &err);
    if (node->tree == NULL) {
        tree_free(t);
    }
}
