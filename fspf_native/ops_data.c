/* Requests for the content of files. */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_STEP (1u << 20)
#define COPY_MOST (64u << 20) /* of one request: others wait for the thread */
#define RELATIME_NS (INT64_C(24) * 3600 * 1000000000)
#define RELIEVE_BYTES (UINT64_C(48) << 20)

static int failed(request *req, const char *what, const inode *node, fspf_status status, const fspf_error *err)
{
    if (status == ST_OS && (err->os_errno == ENOSPC || err->os_errno == EDQUOT || err->os_errno == EFBIG ||
                            err->os_errno == ENXIO)) {
        return -err->os_errno;
    }
    return -req->r->up.failed(req->r->up.context, what, node->ino, status, err);
}

void touch_atime_lock_held(relay *r, inode *node)
{
    int64_t now = now_ns();
    if (r->options.atime && !r->options.read_only && r->meta.blocked == 0 &&
        (node->atime <= node->mtime || node->atime <= node->ctime || now - node->atime > RELATIME_NS)) {
        node->atime = now;
        meta_dirty(&r->meta, node);
    }
}

int op_read(request *req)
{
    struct fuse_read_in in;
    memcpy(&in, req->arg, sizeof in);
    inode *node = NULL;
    tree *t = NULL;
    size_t got = 0;
    fspf_error err = {0};
    if (in.size > RELAY_MAX_WRITE) {
        return -EINVAL;
    }
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    result = content_tree(req->r, node, &t);
    if (result == 0) {
        fspf_status status = tree_read(t, in.offset, req->out, in.size, &got, &err);
        if (status != ST_OK) {
            result = failed(req, "read", node, status, &err);
        } else {
            req->out_len = got;
            atomic_fetch_add_explicit(&req->r->stats.bytes_read, got, memory_order_relaxed);
        }
    }
    pthread_mutex_lock(&req->r->meta.lock);
    if (result == 0 && (in.flags & O_NOATIME) == 0) {
        touch_atime_lock_held(req->r, node);
    }
    meta_unpin(&req->r->meta, node);
    pthread_mutex_unlock(&req->r->meta.lock);
    return result;
}

/* After a change of content: times (unless the kernel keeps them), privileges, the list of what is to be flushed. */
static void note_change(request *req, inode *node, bool times, bool kill)
{
    meta *m = &req->r->meta;
    pthread_mutex_lock(&m->lock);
    if (times) {
        set_times(node, now_ns());
        meta_dirty(m, node);
    }
    if (kill && kill_privileges(req, node)) {
        meta_dirty(m, node);
        invalidate_later(req, node->ino);
    }
    meta_changed(m, node);
    bool capability = capability_due_lock_held(node);
    pthread_mutex_unlock(&m->lock);
    if (capability) {
        drop_capability(req, node);
    }
}

/* After a change that failed, of which a part may be in the tree all the same: it is to be flushed like any other. */
static void note_part(request *req, inode *node, const tree *t)
{
    pthread_mutex_lock(&req->r->meta.lock);
    if (t != NULL && tree_dirty(t)) {
        meta_changed(&req->r->meta, node);
    }
    pthread_mutex_unlock(&req->r->meta.lock);
}

/* security.capability goes with every change of content or owner, whoever makes it. */
void drop_capability(request *req, inode *node)
{
    meta *m = &req->r->meta;
    pthread_mutex_lock(&m->lock);
    bool due = capability_due_lock_held(node);
    node->no_capability = true; /* before it goes: one that is set afterwards is told, and counts */
    pthread_mutex_unlock(&m->lock);
    if (due && req->r->up.drop_capability(req->r->up.context, node->ino) != 0) {
        pthread_mutex_lock(&m->lock);
        node->no_capability = false;
        pthread_mutex_unlock(&m->lock);
    }
}

int op_write(request *req)
{
    struct fuse_write_in in;
    memcpy(&in, req->arg, sizeof in);
    inode *node = NULL;
    tree *t = NULL;
    fspf_error err = {0};
    const uint8_t *data = req->arg + sizeof in;
    if (in.size > req->arg_len - sizeof in) {
        return -EINVAL;
    }
    int result = check_change(req);
    if (result == 0) {
        result = node_get(req, req->in->nodeid, &node);
    }
    if (result != 0) {
        return result;
    }
    result = content_tree(req->r, node, &t);
    if (result == 0) {
        bool kill = (in.write_flags & FUSE_WRITE_KILL_SUIDGID) != 0;
        bool cached = (in.write_flags & FUSE_WRITE_CACHE) != 0;
        fspf_status status = tree_write(t, in.offset, data, in.size, &err);
        note_change(req, node, !cached, kill);
        if (status != ST_OK) {
            result = failed(req, "write", node, status, &err);
        } else {
            struct fuse_write_out out = {.size = in.size};
            memcpy(req->out, &out, sizeof out);
            req->out_len = sizeof out;
            atomic_fetch_add_explicit(&req->r->stats.bytes_written, in.size, memory_order_relaxed);
        }
    }
    node_put(req->r, node);
    if (atomic_load_explicit(&req->r->st->dirty_bytes, memory_order_relaxed) > RELIEVE_BYTES) {
        content_relieve(req->r, RELIEVE_BYTES / 2);
    }
    return result;
}

int op_fsync(request *req)
{
    inode *node = NULL;
    relay *r = req->r;
    if (r->options.read_only) {
        return 0;
    }
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    if (node_is_file(r, node)) {
        result = content_prepare_log(r, node);
    }
    node_put(req->r, node);
    return result != 0 ? result : lane_or_upcall(r, req->in->nodeid); /* a commit has metadata, too: fdatasync is the same */
}

int op_flush(request *req)
{
    if (req->r->no_open) {
        return -ENOSYS; /* once: close(2) then only waits for the page cache, whose writes report their errors */
    }
    inode *node = NULL;
    int result = node_get(req, req->in->nodeid, &node);
    if (result == 0) {
        result = !req->r->options.read_only && node_is_file(req->r, node) ? content_flush(req->r, node) : 0;
        node_put(req->r, node);
    }
    return result;
}

static int resize(request *req, inode *node, tree *t, uint64_t size)
{
    fspf_error err = {0};
    fspf_status status = tree_truncate(t, size, &err);
    return status == ST_OK ? 0 : failed(req, "truncate", node, status, &err);
}

static int allocate(request *req, inode *node, tree *t, const struct fuse_fallocate_in *in)
{
    fspf_error err = {0};
    uint64_t end = in->offset + in->length;
    uint32_t kind = in->mode & ~(uint32_t)FALLOC_FL_KEEP_SIZE;
    bool keep = (in->mode & FALLOC_FL_KEEP_SIZE) != 0;
    int result = 0;
    if (in->length == 0 || in->offset > MAX_FILE_SIZE) {
        return -EINVAL;
    }
    if (in->length > MAX_FILE_SIZE - in->offset) {
        return -EFBIG;
    }
    if ((kind != 0 && kind != FALLOC_FL_PUNCH_HOLE && kind != FALLOC_FL_ZERO_RANGE) ||
        (kind == FALLOC_FL_PUNCH_HOLE && !keep)) {
        return -EOPNOTSUPP; /* collapse, insert, unshare */
    }
    if (kind != 0) {
        fspf_status status = tree_punch(t, in->offset, in->length, &err);
        if (status != ST_OK) {
            result = failed(req, "fallocate", node, status, &err);
        }
    } else { /* space is taken when data comes, as on any copy-on-write system; but it must be there now */
        uint64_t room = segments_host_free(&req->r->st->slots.files);
        uint64_t quota = req->r->st->slots.max_slots;
        uint64_t used = quota ? atomic_load(&req->r->st->slots.used_count) : 0;
        if (quota != 0) {
            room = min_u64(room, used < quota ? (quota - used) * req->r->chunk_size : 0);
        }
        if (in->length > room && end > tree_allocated(t) * req->r->chunk_size) {
            return -ENOSPC;
        }
    }
    if (result == 0 && !keep && end > tree_size(t)) {
        result = resize(req, node, t, end);
    }
    return result;
}

int op_fallocate(request *req)
{
    struct fuse_fallocate_in in;
    memcpy(&in, req->arg, sizeof in);
    inode *node = NULL;
    tree *t = NULL;
    int result = check_change(req);
    if (result == 0) {
        result = node_get(req, req->in->nodeid, &node);
    }
    if (result != 0) {
        return result;
    }
    result = content_tree(req->r, node, &t);
    if (result == -EINVAL) {
        result = -ENODEV;
    }
    if (result == 0) {
        result = allocate(req, node, t, &in);
        if (result == 0) {
            note_change(req, node, true, req->in->uid != 0);
        } else {
            note_part(req, node, t);
        }
    }
    node_put(req->r, node);
    return result;
}

int op_lseek(request *req)
{
    struct fuse_lseek_in in;
    memcpy(&in, req->arg, sizeof in);
    inode *node = NULL;
    tree *t = NULL;
    fspf_error err = {0};
    if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE) {
        return -EINVAL;
    }
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    result = content_tree(req->r, node, &t);
    if (result == 0 && !req->r->options.read_only && !relay_write_back(req->r, node->ino)) {
        result = -EINVAL; /* what is only in the page cache is no hole; as on a file system without this kind of lseek */
    }
    if (result == 0) {
        struct fuse_lseek_out out = {0};
        fspf_status status = tree_seek(t, in.offset, in.whence == SEEK_DATA, &out.offset, &err);
        if (status != ST_OK) {
            result = failed(req, "lseek", node, status, &err);
        } else {
            memcpy(req->out, &out, sizeof out);
            req->out_len = sizeof out;
        }
    }
    node_put(req->r, node);
    return result;
}

/* How far from `offset` the content is of one kind: data, or a hole (*hole). */
static uint64_t stretch(tree *t, uint64_t offset, uint64_t most, bool *hole)
{
    fspf_error err = {0};
    uint64_t found = 0;
    *hole = false;
    if (tree_seek(t, offset, true, &found, &err) != ST_OK) {
        *hole = err.os_errno == ENXIO; /* a hole up to the end; any other error shows when it is read */
        return most;
    }
    if (found > offset) {
        *hole = true;
        return min_u64(most, found - offset);
    }
    if (tree_seek(t, offset, false, &found, &err) == ST_OK && found > offset) {
        return min_u64(most, found - offset);
    }
    return most;
}

static int copy_range(request *req, inode *from, tree *source, inode *to, tree *target,
                      const struct fuse_copy_file_range_in *in, uint64_t *copied)
{
    fspf_error err = {0};
    uint64_t size = tree_size(source);
    uint64_t left = in->off_in < size ? min_u64(min_u64(in->len, COPY_MOST), size - in->off_in) : 0;
    uint64_t at = 0;
    uint8_t *buffer = malloc(COPY_STEP);
    int result = buffer == NULL ? -ENOMEM : 0;
    while (left > 0 && result == 0) {
        bool hole = false;
        uint64_t n = stretch(source, in->off_in + at, left, &hole);
        size_t got = 0;
        fspf_status status = ST_OK;
        const inode *at_fault = to;
        if (hole) {
            status = tree_punch(target, in->off_out + at, n, &err);
            if (status == ST_OK && tree_size(target) < in->off_out + at + n) {
                status = tree_truncate(target, in->off_out + at + n, &err);
            }
        } else {
            n = min_u64(n, COPY_STEP);
            at_fault = from;
            status = tree_read(source, in->off_in + at, buffer, (size_t)n, &got, &err);
            if (status == ST_OK && got == 0) {
                break; /* cut meanwhile */
            }
            if (status == ST_OK) {
                n = got;
                at_fault = to;
                status = tree_write(target, in->off_out + at, buffer, got, &err);
            }
        }
        if (status != ST_OK) {
            result = failed(req, "copy_file_range", at_fault, status, &err);
            break;
        }
        at += n;
        left -= n;
    }
    if (buffer != NULL) {
        explicit_bzero(buffer, COPY_STEP);
    }
    free(buffer);
    *copied = at;
    return at > 0 ? 0 : result;
}

int op_copy_file_range(request *req)
{
    struct fuse_copy_file_range_in in;
    memcpy(&in, req->arg, sizeof in);
    inode *from = NULL;
    inode *to = NULL;
    tree *source = NULL;
    tree *target = NULL;
    uint64_t copied = 0;
    int result = check_change(req);
    if (result == 0) {
        result = node_get(req, req->in->nodeid, &from);
    }
    if (result != 0) {
        return result;
    }
    result = node_get(req, in.nodeid_out, &to);
    if (result == 0) {
        result = content_tree(req->r, from, &source);
        if (result == 0) {
            result = content_tree(req->r, to, &target);
        }
        if (result == 0 && (in.off_out > MAX_FILE_SIZE || in.off_in > MAX_FILE_SIZE)) {
            result = -EINVAL;
        }
        if (result == 0) {
            result = copy_range(req, from, source, to, target, &in, &copied);
        }
        if (result == 0) {
            struct fuse_write_out out = {.size = (uint32_t)copied};
            memcpy(req->out, &out, sizeof out);
            req->out_len = sizeof out;
        }
        if (copied > 0) {
            note_change(req, to, true, req->in->uid != 0);
        } else {
            note_part(req, to, target);
        }
        node_put(req->r, to);
    }
    node_put(req->r, from);
    return result;
}

/* ---- opening: only where the kernel cannot do without ---- */

int op_open(request *req)
{
    if (req->r->no_open) {
        return -ENOSYS;
    }
    struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
    memcpy(req->out, &out, sizeof out);
    req->out_len = sizeof out;
    return 0;
}

int op_opendir(request *req)
{
    if (req->r->no_opendir) {
        return -ENOSYS;
    }
    struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR};
    memcpy(req->out, &out, sizeof out);
    req->out_len = sizeof out;
    return 0;
}

int op_release(request *req)
{
    (void)req;
    return 0;
}

int op_fsyncdir(request *req)
{
    relay *r = req->r;
    return r->options.read_only ? 0 : lane_or_upcall(r, 0);
}
