/* Tables of inodes and names. See meta.h. */
#include "meta.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#define FIRST_BUCKETS 4096u
#define INODE_COST (sizeof(inode) + 32u)  /* with its place in the table */
#define NAME_COST (sizeof(dentry) + sizeof(name_place) + 16u)

int meta_init(meta *m, store *st, size_t limit)
{
    memset(m, 0, sizeof *m);
    m->buckets = calloc(FIRST_BUCKETS, sizeof *m->buckets);
    if (m->buckets == NULL) {
        return -1;
    }
    m->bucket_count = FIRST_BUCKETS;
    m->limit = limit;
    m->st = store_ref(st);
    if (getrandom(&m->seed, sizeof m->seed, 0) != (ssize_t)sizeof m->seed) {
        m->seed = (uint64_t)time(NULL); /* only against names that collide on purpose */
    }
    pthread_rwlockattr_t attributes;
    (void)pthread_rwlockattr_init(&attributes);
    (void)pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    (void)pthread_rwlock_init(&m->gate, &attributes);
    (void)pthread_rwlockattr_destroy(&attributes);
    (void)pthread_mutex_init(&m->lock, NULL);
    (void)pthread_cond_init(&m->much, NULL);
    (void)pthread_cond_init(&m->flushed, NULL);
    return 0;
}

void meta_drop_tree(meta *m, inode *node)
{
    if (node->tree != NULL) {
        tree_free(node->tree);
        node->tree = NULL;
        m->bytes -= TREE_COST;
    }
}

static void free_inode(meta *m, inode *node)
{
    meta_drop_tree(m, node);
    m->bytes -= INODE_COST + node->target_len;
    free(node->target);
    free(node->names);
    free(node);
}

void meta_destroy(meta *m)
{
    if (m->buckets == NULL) {
        return;
    }
    for (size_t b = 0; b < m->bucket_count; b++) {
        for (dentry *d = m->buckets[b], *next; d != NULL; d = next) {
            next = d->chain;
            free(d);
        }
    }
    for (size_t i = 0; i < m->inodes.capacity; i++) {
        if (m->inodes.keys[i] != MAP64_EMPTY) {
            free_inode(m, m->inodes.values[i]);
        }
    }
    map64_clear(&m->inodes);
    map64_clear(&m->counts);
    free(m->buckets);
    free(m->removed);
    free(m->deleted);
    for (drained *each = m->recorded_first, *next; each != NULL; each = next) {
        next = each->next;
        each->next = NULL;
        drained_clear(each);
        free(each);
    }
    m->recorded_first = m->recorded_last = NULL;
    m->buckets = NULL;
    (void)pthread_mutex_destroy(&m->lock);
    (void)pthread_rwlock_destroy(&m->gate);
    (void)pthread_cond_destroy(&m->much);
    (void)pthread_cond_destroy(&m->flushed);
    store_unref(m->st);
}

/* ---- lookup counts ---- */

uint64_t meta_lookups(meta *m, uint64_t ino)
{
    return (uint64_t)(uintptr_t)map64_get(&m->counts, ino);
}

bool meta_set_lookups(meta *m, uint64_t ino, uint64_t packed)
{
    if (packed == 0) {
        (void)map64_remove(&m->counts, ino);
        return true;
    }
    if (!map64_reserve(&m->counts)) {
        return false;
    }
    map64_put(&m->counts, ino, (void *)(uintptr_t)packed);
    return true;
}

bool meta_in_use(meta *m, const inode *node)
{
    return node->pins > 0 || node->ino == ROOT_INO || meta_lookups(m, node->ino) != 0;
}

/* ---- inodes ---- */

static void unlink_ring(meta *m, inode *node)
{
    if (node->next == node) {
        m->newest = NULL;
    } else {
        node->prev->next = node->next;
        node->next->prev = node->prev;
        if (m->newest == node) {
            m->newest = node->next;
        }
    }
    node->next = node->prev = NULL;
}

static void link_newest(meta *m, inode *node)
{
    if (m->newest == NULL) {
        node->next = node->prev = node;
    } else {
        node->next = m->newest;
        node->prev = m->newest->prev;
        node->prev->next = node;
        m->newest->prev = node;
    }
    m->newest = node;
}

inode *meta_find(meta *m, uint64_t ino)
{
    inode *node = map64_get(&m->inodes, ino);
    if (node != NULL && m->newest != node) {
        unlink_ring(m, node);
        link_newest(m, node);
    }
    return node;
}

inode *meta_need(meta *m, uint64_t ino)
{
    inode *node = meta_find(m, ino);
    if (node != NULL) {
        return node;
    }
    node = map64_reserve(&m->inodes) ? calloc(1, sizeof *node) : NULL;
    if (node == NULL) {
        return NULL;
    }
    node->ino = ino;
    map64_put(&m->inodes, ino, node);
    link_newest(m, node);
    m->bytes += INODE_COST;
    return node;
}

void meta_pin(inode *node)
{
    node->pins++;
}

void meta_unpin(meta *m, inode *node)
{
    if (--node->pins == 0 && node->gone) {
        free_inode(m, node);
    }
}

void meta_dirty(meta *m, inode *node)
{
    if (node->dirty || node->gone) {
        return;
    }
    node->dirty = true;
    node->dirty_prev = NULL;
    node->dirty_next = m->dirty_first;
    if (m->dirty_first != NULL) {
        m->dirty_first->dirty_prev = node;
    }
    m->dirty_first = node;
    m->dirty_count++;
    if ((m->dirty_count & 4095) == 0) {
        pthread_cond_signal(&m->much);
    }
}

static void clean_inode(meta *m, inode *node)
{
    if (!node->dirty) {
        return;
    }
    node->dirty = false;
    if (node->dirty_prev != NULL) {
        node->dirty_prev->dirty_next = node->dirty_next;
    } else {
        m->dirty_first = node->dirty_next;
    }
    if (node->dirty_next != NULL) {
        node->dirty_next->dirty_prev = node->dirty_prev;
    }
    m->dirty_count--;
}

void meta_changed(meta *m, inode *node)
{
    node->changes++;
    if (node->changed || node->gone) {
        return;
    }
    node->changed = true;
    node->changed_next = NULL;
    node->changed_prev = m->changed_last;
    if (m->changed_last != NULL) {
        m->changed_last->changed_next = node;
    } else {
        m->changed_first = node;
    }
    m->changed_last = node;
    m->changed_count++;
}

void meta_unchanged(meta *m, inode *node)
{
    if (!node->changed) {
        return;
    }
    node->changed = false;
    if (node->changed_prev != NULL) {
        node->changed_prev->changed_next = node->changed_next;
    } else {
        m->changed_first = node->changed_next;
    }
    if (node->changed_next != NULL) {
        node->changed_next->changed_prev = node->changed_prev;
    } else {
        m->changed_last = node->changed_prev;
    }
    m->changed_count--;
}

/* ---- names ---- */

static uint32_t hash_name(const meta *m, uint64_t dir, const char *name, size_t len)
{
    uint8_t text[NAME_MAX_BYTES + 16];
    memcpy(text, &m->seed, 8);
    memcpy(text + 8, &dir, 8);
    memcpy(text + 16, name, len);
    return (uint32_t)checksum_xxh3(text, len + 16);
}

static void grow_buckets(meta *m)
{
    size_t count = m->bucket_count * 4;
    dentry **buckets = calloc(count, sizeof *buckets);
    if (buckets == NULL) {
        return; /* longer chains will do */
    }
    for (size_t b = 0; b < m->bucket_count; b++) {
        for (dentry *d = m->buckets[b], *next; d != NULL; d = next) {
            next = d->chain;
            d->chain = buckets[d->hash & (count - 1)];
            buckets[d->hash & (count - 1)] = d;
        }
    }
    free(m->buckets);
    m->buckets = buckets;
    m->bucket_count = count;
}

dentry *meta_name(meta *m, const inode *dir, const char *name, size_t len)
{
    if (len > NAME_MAX_BYTES) {
        return NULL;
    }
    uint32_t hash = hash_name(m, dir->ino, name, len);
    for (dentry *d = m->buckets[hash & (m->bucket_count - 1)]; d != NULL; d = d->chain) {
        if (d->hash == hash && d->dir == dir && d->len == len && memcmp(d->name, name, len) == 0) {
            return d;
        }
    }
    return NULL;
}

size_t meta_first_after(const inode *dir, uint64_t cookie)
{
    size_t low = 0;
    size_t high = dir->name_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (dir->names[middle].cookie > cookie) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static void compact_names(inode *dir)
{
    size_t kept = 0;
    for (size_t i = 0; i < dir->name_count; i++) {
        if (dir->names[i].name != NULL) {
            dir->names[kept++] = dir->names[i];
        }
    }
    dir->name_count = kept;
}

static bool room_for_name(inode *dir)
{
    if (dir->name_count < dir->name_capacity) {
        return true;
    }
    if (dir->live < dir->name_count / 2) {
        compact_names(dir);
        return true;
    }
    size_t capacity = dir->name_capacity ? dir->name_capacity * 2 : 8;
    name_place *names = realloc(dir->names, capacity * sizeof *names);
    if (names == NULL) {
        return false;
    }
    dir->names = names;
    dir->name_capacity = capacity;
    return true;
}

static dentry *new_name(meta *m, inode *dir, uint64_t cookie, const char *name, size_t len, uint64_t ino, uint8_t type)
{
    dentry *d = calloc(1, sizeof *d + len);
    if (d == NULL) {
        return NULL;
    }
    if (m->name_total >= m->bucket_count) {
        grow_buckets(m);
    }
    d->dir = dir;
    d->cookie = cookie;
    d->ino = ino;
    d->type = type;
    d->len = (uint16_t)len;
    memcpy(d->name, name, len);
    d->hash = hash_name(m, dir->ino, name, len);
    d->chain = m->buckets[d->hash & (m->bucket_count - 1)];
    m->buckets[d->hash & (m->bucket_count - 1)] = d;
    m->name_total++;
    m->bytes += NAME_COST + len;
    return d;
}

dentry *meta_add_name(meta *m, inode *dir, uint64_t cookie, const char *name, size_t len, uint64_t ino, uint8_t type,
                      bool stored)
{
    if (len > NAME_MAX_BYTES || !room_for_name(dir)) {
        return NULL;
    }
    dentry *d = new_name(m, dir, cookie, name, len, ino, type);
    if (d == NULL) {
        return NULL;
    }
    d->stored = stored;
    size_t at = dir->name_count;
    if (at > 0 && dir->names[at - 1].cookie >= cookie) {
        at = meta_first_after(dir, cookie);
        memmove(dir->names + at + 1, dir->names + at, (dir->name_count - at) * sizeof *dir->names);
    }
    dir->names[at] = (name_place){cookie, d};
    dir->name_count++;
    dir->live++;
    return d;
}

void meta_name_dirty(meta *m, dentry *name)
{
    if (name->dirty) {
        return;
    }
    name->dirty = true;
    name->dirty_prev = NULL;
    name->dirty_next = m->dirty_names;
    if (m->dirty_names != NULL) {
        m->dirty_names->dirty_prev = name;
    }
    m->dirty_names = name;
    name->dir->dirty_names++;
    m->dirty_count++;
}

static void clean_name(meta *m, dentry *name)
{
    if (!name->dirty) {
        return;
    }
    name->dirty = false;
    name->dir->dirty_names--;
    if (name->dirty_prev != NULL) {
        name->dirty_prev->dirty_next = name->dirty_next;
    } else {
        m->dirty_names = name->dirty_next;
    }
    if (name->dirty_next != NULL) {
        name->dirty_next->dirty_prev = name->dirty_prev;
    }
    m->dirty_count--;
}

static void free_name(meta *m, dentry *name)
{
    dentry **link = &m->buckets[name->hash & (m->bucket_count - 1)];
    while (*link != name) {
        link = &(*link)->chain;
    }
    *link = name->chain;
    clean_name(m, name);
    m->name_total--;
    m->bytes -= NAME_COST + name->len;
    free(name);
}

static bool note_removed(meta *m, uint64_t parent, uint64_t cookie)
{
    if (m->removed_count == m->removed_capacity) {
        size_t capacity = m->removed_capacity ? m->removed_capacity * 2 : 256;
        name_key *removed = realloc(m->removed, capacity * sizeof *removed);
        if (removed == NULL) {
            return false;
        }
        m->removed = removed;
        m->removed_capacity = capacity;
    }
    m->removed[m->removed_count++] = (name_key){parent, cookie};
    m->dirty_count++;
    return true;
}

bool meta_remove_name(meta *m, dentry *name, bool tell)
{
    inode *dir = name->dir;
    if (tell && name->stored && !note_removed(m, dir->ino, name->cookie)) {
        return false;
    }
    size_t at = meta_first_after(dir, name->cookie - 1);
    dir->names[at].name = NULL;
    dir->live--;
    if (dir->live == 0) {
        dir->name_count = 0;
    }
    free_name(m, name);
    return true;
}

dentry *meta_rename_name(meta *m, dentry *name, const char *text, size_t len)
{
    inode *dir = name->dir;
    dentry *renamed = len > NAME_MAX_BYTES ? NULL : new_name(m, dir, name->cookie, text, len, name->ino, name->type);
    if (renamed == NULL) {
        return NULL;
    }
    if (name->stored && !note_removed(m, dir->ino, name->cookie)) {
        free_name(m, renamed);
        return NULL;
    }
    dir->names[meta_first_after(dir, name->cookie - 1)].name = renamed;
    free_name(m, name);
    meta_name_dirty(m, renamed);
    return renamed;
}

void meta_drop_names(meta *m, inode *dir)
{
    for (size_t i = 0; i < dir->name_count; i++) {
        if (dir->names[i].name != NULL) {
            free_name(m, dir->names[i].name);
        }
    }
    free(dir->names);
    dir->names = NULL;
    dir->name_count = dir->name_capacity = dir->live = 0;
    dir->complete = false;
}

/* ---- deleting and letting go ---- */

static void take_out(meta *m, inode *node)
{
    clean_inode(m, node);
    meta_unchanged(m, node);
    meta_drop_names(m, node);
    unlink_ring(m, node);
    (void)map64_remove(&m->inodes, node->ino);
}

bool meta_delete(meta *m, inode *node, bool tell)
{
    if (tell && node->stored) {
        if (m->deleted_count == m->deleted_capacity) {
            size_t capacity = m->deleted_capacity ? m->deleted_capacity * 2 : 256;
            inode_key *deleted = realloc(m->deleted, capacity * sizeof *deleted);
            if (deleted == NULL) {
                return false;
            }
            m->deleted = deleted;
            m->deleted_capacity = capacity;
        }
        m->deleted[m->deleted_count++] = (inode_key){node->ino, !node->no_xattrs};
        m->dirty_count++;
    }
    take_out(m, node);
    node->gone = true;
    if (node->pins == 0) {
        free_inode(m, node);
    }
    return true;
}

void meta_shrink(meta *m)
{
    unsigned tries = 64; /* what cannot go now is looked at again later */
    const inode *kept = m->newest != NULL ? m->newest->next : NULL; /* and the newest: a directory and what was found */
    while (m->bytes > m->limit && tries-- > 0 && kept != NULL) {
        inode *oldest = m->newest->prev;
        if (oldest == kept) {
            break;
        }
        if (oldest->pins > 0 || oldest->dirty || oldest->changed || oldest->ino == ROOT_INO ||
            (oldest->tree != NULL && tree_dirty(oldest->tree)) || (oldest->valid && oldest->nlink == 0) ||
            oldest->dirty_names > 0) {
            m->newest = oldest; /* to the front */
            continue;
        }
        take_out(m, oldest);
        free_inode(m, oldest);
        m->evictions++;
    }
}
