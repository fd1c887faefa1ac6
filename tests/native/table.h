/* A namespace in memory in place of the database, for the relay without Python: what the upcalls read and drains change.
 * Its lock stands for the volume's lock: whoever enters from outside has everything applied that the relay answered. */
#ifndef FSPF_TEST_TABLE_H
#define FSPF_TEST_TABLE_H

#include "relay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            (void)fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);   \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

typedef struct {
    drained_inode is;
    bool xattrs;
} table_row;

typedef struct {
    uint64_t parent, cookie, ino;
    size_t len;
    char name[NAME_MAX_BYTES];
} table_name;

typedef struct {
    pthread_mutex_t lock;
    relay *r;
    map64 rows;
    table_name *names;
    size_t name_count, name_capacity;
    pthread_mutex_t lane_lock; /* who lends and takes back */
    int log_fd, hot_fd;
    uint64_t generation, by_lane, entered;
    bool strict; /* requests keep the kernel's rules, so that what is drained must fit */
} table;

static table_row *table_get(table *t, uint64_t ino)
{
    return map64_get(&t->rows, ino);
}

static void table_put(table *t, const drained_inode *is, bool xattrs)
{
    table_row *row = table_get(t, is->ino);
    if (row == NULL) {
        row = calloc(1, sizeof *row);
        CHECK(row != NULL && map64_reserve(&t->rows));
        map64_put(&t->rows, is->ino, row);
    }
    free(row->is.target);
    row->is = *is;
    row->xattrs = row->xattrs || xattrs;
    if (is->target != NULL) {
        row->is.target = malloc(is->target_len + 1);
        CHECK(row->is.target != NULL);
        memcpy(row->is.target, is->target, is->target_len);
    }
}

static size_t table_find(const table *t, uint64_t parent, uint64_t cookie)
{
    size_t i = 0;
    while (i < t->name_count && (t->names[i].parent != parent || t->names[i].cookie != cookie)) {
        i++;
    }
    return i;
}

static void table_name_put(table *t, uint64_t parent, uint64_t cookie, uint64_t ino, const char *name, size_t len)
{
    size_t i = table_find(t, parent, cookie);
    if (i == t->name_count) {
        if (t->name_count == t->name_capacity) {
            t->name_capacity = t->name_capacity ? t->name_capacity * 2 : 64;
            t->names = realloc(t->names, t->name_capacity * sizeof *t->names);
            CHECK(t->names != NULL);
        }
        t->name_count++;
    }
    t->names[i] = (table_name){.parent = parent, .cookie = cookie, .ino = ino, .len = len};
    memcpy(t->names[i].name, name, len);
}

static void table_store_lock_held(table *t, drained rows)
{
    drained d = rows;
    for (size_t i = 0; i < d.removed_count; i++) {
        size_t at = table_find(t, d.removed[i].parent, d.removed[i].cookie);
        CHECK(at < t->name_count || !t->strict);
        if (at < t->name_count) {
            t->names[at] = t->names[--t->name_count];
        }
    }
    for (size_t i = 0; i < d.deleted_count; i++) {
        table_row *row = map64_remove(&t->rows, d.deleted[i].ino);
        CHECK(row != NULL || !t->strict);
        if (row != NULL) {
            free(row->is.target);
            free(row);
        }
    }
    for (size_t i = 0; i < d.inode_count; i++) {
        table_put(t, &d.inodes[i], false);
    }
    for (size_t i = 0; i < d.name_count; i++) {
        const drained_name *n = &d.names[i];
        table_name_put(t, n->parent, n->cookie, n->ino, d.text + n->at, n->len);
    }
    drained_clear(&d);
}

/* First what the lane has put into records. */
static void table_store_all_lock_held(table *t, drained rows)
{
    drained *each = rows.next;
    rows.next = NULL;
    while (each != NULL) {
        drained *next = each->next;
        each->next = NULL;
        table_store_lock_held(t, *each);
        free(each);
        each = next;
    }
    table_store_lock_held(t, rows);
}

static void table_apply_lock_held(table *t)
{
    drained d;
    if (++t->entered % 8 == 0) { /* Python has to do it each time, for what it changes by itself; the table is indifferent */
        pthread_rwlock_wrlock(&t->r->meta.gate);
        lane_pause_gate_held(&t->r->lane);
        pthread_rwlock_unlock(&t->r->meta.gate);
    }
    CHECK(meta_drain(&t->r->meta, &d) == 0);
    table_store_all_lock_held(t, d);
}

/* ---- the lane: a log and a ring in memory, both soon full ---- */

#define LANE_RING 65536u

static void table_take_back(table *t)
{
    lane_end *end = calloc(1, sizeof *end);
    CHECK(end != NULL);
    if (lane_take_back(&t->r->lane, end)) {
        CHECK(end->outcome == LANE_CLEAN || end->outcome == LANE_UNPROMISED || end->outcome == LANE_ROOT_DUE);
        CHECK(end->outcome != LANE_CLEAN || end->anchor_generation == end->generation);
        CHECK(end->kept_count <= LANE_RING / 4096 && end->end <= LANE_RING);
        t->generation = end->generation;
        t->by_lane += end->count;
    }
    free(end->inos);
    free(end);
}

static void table_lend(table *t)
{
    static const uint8_t zeros[HEADER_BYTES];
    struct stat status;
    CHECK(stat("/", &status) == 0);
    struct timespec now;
    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    lane_orders orders = {
        .log_key = zeros, .key_version = 1, .epoch = 1, .volume_id = zeros, .header = zeros, .log_fd = t->log_fd,
        .log_len = 1u << 20, .generation = t->generation, .tag = zeros, .silence_ns = UINT64_MAX / 2,
        .contact_ns = (uint64_t)now.tv_sec * 1000000000u, .hot_fd = t->hot_fd, .ring_len = LANE_RING, .end = 4096,
        .version = t->generation, .newest = -1, .state_key = zeros, .aad = zeros, .before = zeros, .between = zeros,
        .after = zeros, .aad_len = 30, .before_len = 20, .between_len = 20, .after_len = 100, .lease_ns = 60,
        .database = "/", .device = status.st_dev, .inode = status.st_ino,
    };
    CHECK(lane_lend(&t->r->lane, &orders) == 0);
}

/* What an fsync through the intent log takes; rows go into the table all the same. */
__attribute__((unused)) static void table_log(table *t, const uint64_t *inos, size_t count)
{
    drained d = {0};
    log_piece pieces[8];
    size_t found = 0;
    bool complete = false;
    CHECK(count <= 8);
    pthread_mutex_lock(&t->lock);
    CHECK(content_take_log(t->r, inos, count, pieces, &found, &complete, &d) == 0);
    table_store_all_lock_held(t, d);
    pthread_mutex_unlock(&t->lock);
    for (size_t i = 0; i < found; i++) {
        captured_clear(&pieces[i].what);
    }
}

static void table_enter(table *t)
{
    pthread_mutex_lock(&t->lock);
    table_apply_lock_held(t);
}

static void table_leave(table *t)
{
    pthread_mutex_unlock(&t->lock);
}

/* As the binding does it; the relay's lock is held. */
static inode *table_fill(table *t, const table_row *row)
{
    meta *m = &t->r->meta;
    inode *node = meta_need(m, row->is.ino);
    CHECK(node != NULL);
    if (node->valid) {
        return node;
    }
    const drained_inode *is = &row->is;
    node->mode = is->mode;
    node->uid = is->uid;
    node->gid = is->gid;
    node->rdev = is->rdev;
    node->nlink = is->nlink;
    node->atime = is->atime;
    node->mtime = is->mtime;
    node->ctime = is->ctime;
    node->btime = is->btime;
    node->protection = is->protection;
    if (node->tree == NULL) {
        node->root.size = is->size;
        node->root.depth = is->depth;
        memcpy(node->root.pointer, is->pointer, POINTER_LEN);
        node->chunks = is->chunks;
    }
    node->parent = is->parent;
    if (is->target != NULL && node->target == NULL) {
        node->target = malloc(is->target_len + 1);
        CHECK(node->target != NULL);
        memcpy(node->target, is->target, is->target_len);
        node->target_len = is->target_len;
        m->bytes += is->target_len;
    }
    node->no_xattrs = !row->xattrs;
    node->stored = true;
    node->valid = true;
    return node;
}

static int up_load_inode(void *context, uint64_t ino)
{
    table *t = context;
    table_enter(t);
    const table_row *row = table_get(t, ino);
    if (row != NULL) {
        pthread_mutex_lock(&t->r->meta.lock);
        (void)table_fill(t, row);
        pthread_mutex_unlock(&t->r->meta.lock);
    }
    table_leave(t);
    return row != NULL ? 0 : ENOENT;
}

static int up_load_directory(void *context, uint64_t ino)
{
    table *t = context;
    meta *m = &t->r->meta;
    table_enter(t);
    const table_row *row = table_get(t, ino);
    int result = row == NULL ? ENOENT : S_ISDIR(row->is.mode) ? 0 : ENOTDIR;
    if (result == 0) {
        pthread_mutex_lock(&m->lock);
        inode *dir = table_fill(t, row);
        meta_pin(dir);
        for (size_t i = 0; i < t->name_count && !dir->complete; i++) {
            const table_name *n = &t->names[i];
            const table_row *child = table_get(t, n->ino);
            if (n->parent != ino || child == NULL) {
                CHECK(n->parent != ino || !t->strict);
                continue;
            }
            inode *node = table_fill(t, child);
            if (meta_name(m, dir, n->name, n->len) == NULL) {
                CHECK(meta_add_name(m, dir, n->cookie, n->name, n->len, node->ino, type_of(node->mode), true) != NULL);
            }
        }
        dir->complete = true;
        meta_unpin(m, dir);
        pthread_mutex_unlock(&m->lock);
    }
    table_leave(t);
    return result;
}

/* Make an inode ourselves, as the control plane does. 0 or an errno. */
static int table_make(table *t, uint64_t parent, const char *name, size_t len, uint32_t mode, const char *target,
                      bool xattrs, uint64_t *made)
{
    meta *m = &t->r->meta;
    int result = 0;
    table_enter(t);
    table_row *dir = table_get(t, parent);
    if (dir == NULL || !S_ISDIR(dir->is.mode) || dir->is.nlink == 0) {
        result = ENOENT;
    }
    for (size_t i = 0; i < t->name_count && result == 0; i++) {
        const table_name *n = &t->names[i];
        result = n->parent == parent && n->len == len && memcmp(n->name, name, len) == 0 ? EEXIST : 0;
    }
    if (result == 0) {
        bool is_dir = S_ISDIR(mode);
        drained_inode is = {
            .ino = atomic_fetch_add(&m->next_ino, 1), .mode = mode, .nlink = is_dir ? 2 : 1, .mtime = now_ns(),
            .protection = dir->is.protection, .parent = is_dir ? parent : 0,
        };
        if (target != NULL) {
            is.target = (uint8_t *)(uintptr_t)target;
            is.target_len = (uint32_t)strlen(target);
        }
        uint64_t cookie = atomic_fetch_add(&m->next_cookie, 1);
        table_put(t, &is, xattrs);
        table_name_put(t, parent, cookie, is.ino, name, len);
        dir->is.nlink += is_dir;
        pthread_mutex_lock(&m->lock);
        inode *node = map64_get(&m->inodes, parent);
        if (node != NULL) {
            node->nlink = node->valid ? dir->is.nlink : node->nlink;
            if (node->complete) {
                CHECK(meta_add_name(m, node, cookie, name, len, is.ino, type_of(mode), true) != NULL);
            }
        }
        pthread_mutex_unlock(&m->lock);
        *made = is.ino;
    }
    table_leave(t);
    return result;
}

static int up_make(void *context, const struct fuse_in_header *in, const char *name, size_t len, uint32_t mode,
                   uint32_t rdev, uint32_t umask)
{
    uint64_t made = 0;
    (void)rdev;
    return table_make(context, in->nodeid, name, len, mode & ~umask, NULL, false, &made);
}

static int up_apply(void *context)
{
    table_enter(context);
    table_leave(context);
    return 0;
}

static int up_grow(void *context)
{
    table *t = context;
    t->r->meta.no_space = false;
    return 0;
}

static int up_fsync(void *context, uint64_t ino, bool may_return)
{
    table *t = context;
    if (may_return && ino % 3 == 0) {
        return -1;
    }
    pthread_mutex_lock(&t->lane_lock);
    table_take_back(t);
    int result = content_flush_all(t->r);
    (void)up_apply(t);
    table_lend(t);
    pthread_mutex_unlock(&t->lane_lock);
    return -result;
}

static int up_inherit(void *context, uint64_t dir, uint64_t ino, uint32_t mode)
{
    (void)context;
    (void)dir;
    (void)ino;
    (void)mode;
    return 0;
}

static int up_nothing(void *context, uint64_t ino)
{
    (void)context;
    (void)ino;
    return 0;
}

static int up_check_xattr(void *context, uint64_t ino, const char *name, uint32_t flags)
{
    table *t = context;
    table_enter(t);
    bool there = table_get(t, ino) != NULL && strlen(name) > 0 && flags != 99;
    table_leave(t);
    return there ? 0 : ENOENT;
}

static int up_failed(void *context, const char *handler, uint64_t ino, fspf_status status, const fspf_error *err)
{
    (void)context;
    (void)handler;
    (void)ino;
    return status == ST_OS && err->os_errno != 0 ? err->os_errno : EIO;
}

static void table_init(table *t, bool strict)
{
    memset(t, 0, sizeof *t);
    pthread_mutexattr_t attributes;
    (void)pthread_mutexattr_init(&attributes);
    (void)pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    (void)pthread_mutex_init(&t->lock, &attributes);
    (void)pthread_mutexattr_destroy(&attributes);
    t->strict = strict;
    (void)pthread_mutex_init(&t->lane_lock, NULL);
    t->log_fd = memfd_create("log", MFD_CLOEXEC);
    t->hot_fd = memfd_create("ring", MFD_CLOEXEC);
    CHECK(t->log_fd >= 0 && t->hot_fd >= 0);
    CHECK(pwrite(t->hot_fd, "FSPC-RNG\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, 0) == 24);
    drained_inode root = {.ino = ROOT_INO, .mode = S_IFDIR | 0755, .nlink = 2};
    table_put(t, &root, false);
}

static relay *table_relay(table *t, store *st, int device, int control, size_t limit, uint32_t threads)
{
    fspf_error err = {0};
    relay_options options = {.atime = true, .threads = threads};
    upcalls up = {
        .context = t, .load_inode = up_load_inode, .load_directory = up_load_directory, .make = up_make,
        .drain = up_apply, .grow = up_grow, .fsync = up_fsync, .drop_capability = up_nothing,
        .inherit = up_inherit, .check_xattr = up_check_xattr, .failed = up_failed,
    };
    CHECK(relay_new(st, device, control, limit, &options, &up, &t->r, &err) == ST_OK);
    t->r->meta.next_ino = 2;
    t->r->meta.next_cookie = 1;
    return t->r;
}

static void table_clear(table *t)
{
    for (size_t i = 0; i < t->rows.capacity; i++) {
        if (t->rows.keys[i] != MAP64_EMPTY) {
            table_row *row = t->rows.values[i];
            free(row->is.target);
            free(row);
        }
    }
    map64_clear(&t->rows);
    (void)close(t->log_fd);
    (void)close(t->hot_fd);
    (void)pthread_mutex_destroy(&t->lane_lock);
    free(t->names);
    (void)pthread_mutex_destroy(&t->lock);
}

/* After the kernel has forgotten everything: names and counts of links agree, nothing is left without a name. */
__attribute__((unused)) static void table_check(table *t)
{
    for (size_t i = 0; i < t->name_count; i++) {
        CHECK(table_get(t, t->names[i].ino) != NULL);
        CHECK(table_get(t, t->names[i].parent) != NULL);
        for (size_t j = 0; j < i; j++) {
            CHECK(t->names[i].parent != t->names[j].parent || t->names[i].len != t->names[j].len ||
                  memcmp(t->names[i].name, t->names[j].name, t->names[i].len) != 0);
        }
    }
    for (size_t i = 0; i < t->rows.capacity; i++) {
        if (t->rows.keys[i] == MAP64_EMPTY) {
            continue;
        }
        const drained_inode *is = &((table_row *)t->rows.values[i])->is;
        uint32_t names = 0;
        uint32_t below = 0;
        for (size_t n = 0; n < t->name_count; n++) {
            names += t->names[n].ino == is->ino;
            below += t->names[n].parent == is->ino && S_ISDIR(table_get(t, t->names[n].ino)->is.mode);
        }
        CHECK(names > 0 || is->ino == ROOT_INO);
        CHECK(S_ISDIR(is->mode) ? is->nlink == 2 + below : is->nlink == names);
    }
}

#endif
