/* Taking what the database does not have out of the tables, as of one instant. See meta.h. */
#include "meta.h"

#include <stdlib.h>

static void clear_list(drained *d)
{
    while (d != NULL) {
        drained *next = d->next;
        d->next = NULL;
        drained_clear(d);
        free(d);
        d = next;
    }
}

void drained_clear(drained *d)
{
    clear_list(d->next);
    for (size_t i = 0; i < d->inode_count; i++) {
        free(d->inodes[i].target);
    }
    free(d->inodes);
    free(d->names);
    free(d->removed);
    free(d->deleted);
    free(d->text);
    memset(d, 0, sizeof *d);
}

static void count_dirty(const meta *m, size_t *inodes, size_t *names, size_t *text)
{
    *inodes = *names = *text = 0;
    for (const inode *node = m->dirty_first; node != NULL; node = node->dirty_next) {
        (*inodes)++;
    }
    for (const dentry *name = m->dirty_names; name != NULL; name = name->dirty_next) {
        (*names)++;
        *text += name->len;
    }
}

static int copy_inode(const inode *node, drained_inode *out)
{
    *out = (drained_inode){
        .ino = node->ino, .parent = node->parent, .chunks = node->chunks, .size = node->root.size,
        .atime = node->atime, .mtime = node->mtime, .ctime = node->ctime, .btime = node->btime,
        .mode = node->mode, .uid = node->uid, .gid = node->gid, .rdev = node->rdev, .nlink = node->nlink,
        .depth = node->root.depth, .protection = node->protection, .stored = node->stored,
        .reflushed = node->reflushed,
    };
    memcpy(out->pointer, node->root.pointer, POINTER_LEN);
    if (node->target != NULL) {
        out->target = malloc(node->target_len);
        if (out->target == NULL) {
            return -1;
        }
        memcpy(out->target, node->target, node->target_len);
        out->target_len = node->target_len;
    }
    return 0;
}

static int take_lock_held(meta *m, drained *out)
{
    size_t inodes = 0;
    size_t names = 0;
    size_t text = 0;
    count_dirty(m, &inodes, &names, &text);
    out->inodes = malloc((inodes + 1) * sizeof *out->inodes);
    out->names = malloc((names + 1) * sizeof *out->names);
    out->text = malloc(text + 1);
    if (out->inodes == NULL || out->names == NULL || out->text == NULL) {
        return -1;
    }
    for (const inode *node = m->dirty_first; node != NULL; node = node->dirty_next) {
        if (copy_inode(node, &out->inodes[out->inode_count]) != 0) {
            return -1;
        }
        out->inode_count++;
    }
    size_t at = 0;
    for (const dentry *name = m->dirty_names; name != NULL; name = name->dirty_next) {
        out->names[out->name_count++] = (drained_name){
            .parent = name->dir->ino, .cookie = name->cookie, .ino = name->ino, .stored = name->stored,
            .len = name->len, .at = at,
        };
        memcpy(out->text + at, name->name, name->len);
        at += name->len;
    }
    /* From here on nothing fails. */
    for (inode *node = m->dirty_first, *next; node != NULL; node = next) {
        next = node->dirty_next;
        node->dirty = false;
        node->stored = true;
        node->reflushed = false;
        node->dirty_next = node->dirty_prev = NULL;
    }
    m->dirty_first = NULL;
    for (dentry *name = m->dirty_names, *next; name != NULL; name = next) {
        next = name->dirty_next;
        name->dirty = false;
        name->dir->dirty_names--;
        name->stored = true;
        name->dirty_next = name->dirty_prev = NULL;
    }
    m->dirty_names = NULL;
    out->removed = m->removed;
    out->removed_count = m->removed_count;
    out->deleted = m->deleted;
    out->deleted_count = m->deleted_count;
    m->removed = NULL;
    m->removed_count = m->removed_capacity = 0;
    m->deleted = NULL;
    m->deleted_count = m->deleted_capacity = 0;
    m->dirty_count = 0;
    out->files_delta = m->files_delta;
    out->bytes_delta = m->bytes_delta;
    m->files_delta = 0;
    m->bytes_delta = 0;
    return 0;
}

int meta_drain_gate_held(meta *m, drained *out)
{
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&m->lock);
    int result = take_lock_held(m, out);
    out->next_ino = m->next_ino;
    out->next_cookie = m->next_cookie;
    if (result == 0) {
        store_commit_mark(m->st);
        out->next = m->recorded_first;
        m->recorded_first = m->recorded_last = NULL;
        m->recorded_rows = 0;
    }
    pthread_mutex_unlock(&m->lock);
    if (result != 0) {
        drained_clear(out);
    }
    return result;
}

size_t drained_rows(const drained *d)
{
    return d->inode_count + d->name_count + d->removed_count + d->deleted_count;
}

int meta_take_recorded_gate_held(meta *m, const drained **out)
{
    int result = -1;
    drained *taken = calloc(1, sizeof *taken);
    *out = NULL;
    if (taken == NULL) {
        return -1;
    }
    pthread_mutex_lock(&m->lock);
    if (take_lock_held(m, taken) == 0) { /* frees are not marked: the next drain does it for this, too */
        result = 0;
        taken->next_ino = m->next_ino;
        taken->next_cookie = m->next_cookie;
        if (drained_rows(taken) > 0 || taken->files_delta != 0 || taken->bytes_delta != 0) {
            if (m->recorded_last != NULL) {
                m->recorded_last->next = taken;
            } else {
                m->recorded_first = taken;
            }
            m->recorded_last = taken;
            m->recorded_rows += drained_rows(taken) + 1;
            *out = taken;
        }
    }
    pthread_mutex_unlock(&m->lock);
    if (*out == NULL) {
        drained_clear(taken);
        free(taken);
    }
    return result;
}

bool meta_is_little_gate_held(meta *m, size_t most)
{
    pthread_mutex_lock(&m->lock);
    bool little = m->dirty_count <= most;
    for (const inode *node = m->dirty_first; little && node != NULL; node = node->dirty_next) {
        little = !node->reflushed;
    }
    pthread_mutex_unlock(&m->lock);
    return little;
}

int meta_drain(meta *m, drained *out)
{
    pthread_rwlock_wrlock(&m->gate);
    int result = meta_drain_gate_held(m, out);
    pthread_rwlock_unlock(&m->gate);
    return result;
}
