/* Reading directories from memory, and the table of all operations. */
#include "relay.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define OWN_COOKIES 2u /* offsets 1 and 2 are . and ..; the names' cookies follow */

/* The directory with every name in memory; with the lock held on success. */
static int complete_directory(request *req, uint64_t ino, inode **out)
{
    relay *r = req->r;
    int result = 0;
    pthread_mutex_lock(&r->meta.lock);
    inode *dir = node_hold(r, ino); /* so that what is loaded stays until it is looked at */
    for (int tries = 0; tries < 8 && dir != NULL && result == 0; tries++) {
        bool known = dir->valid;
        if (dir->gone || (known && !S_ISDIR(dir->mode))) {
            result = dir->gone ? -ENOENT : -ENOTDIR;
        } else if (known && dir->complete) {
            meta_unpin(&r->meta, dir);
            *out = dir;
            return 0;
        } else {
            pthread_mutex_unlock(&r->meta.lock);
            result = -(known ? load_directory(r, ino) : load_inode(r, ino));
            pthread_mutex_lock(&r->meta.lock);
        }
    }
    if (dir != NULL) {
        node_let_go(r, dir);
    }
    pthread_mutex_unlock(&r->meta.lock);
    return dir == NULL ? -ENOMEM : result != 0 ? result : -EIO;
}

typedef struct {
    request *req;
    size_t room;
    bool plus;
} lister;

static bool add(lister *l, const char *name, size_t len, uint64_t ino, uint64_t off, uint8_t type, inode *node)
{
    request *req = l->req;
    size_t head = l->plus ? sizeof(struct fuse_entry_out) : 0;
    size_t size = (head + offsetof(struct fuse_dirent, name) + len + 7) & ~(size_t)7;
    if (req->out_len + size > l->room) {
        return false;
    }
    uint8_t *at = req->out + req->out_len;
    memset(at, 0, size);
    if (l->plus && node != NULL && node->valid) {
        meta *m = &req->r->meta;
        struct fuse_entry_out entry;
        attr_told_lock_held(node, req->in->pid);
        fill_entry(req->r, node, &entry);
        memcpy(at, &entry, sizeof entry);
        if (!meta_set_lookups(m, ino, meta_lookups(m, ino) + (UINT64_C(1) << 32))) {
            memset(at, 0, sizeof entry); /* then the kernel looks it up when it needs it */
        }
    }
    struct fuse_dirent entry = {.ino = ino, .off = off, .namelen = (uint32_t)len, .type = type};
    memcpy(at + head, &entry, offsetof(struct fuse_dirent, name));
    memcpy(at + head + offsetof(struct fuse_dirent, name), name, len);
    req->out_len += size;
    return true;
}

static int read_directory(request *req, bool plus)
{
    struct fuse_read_in in;
    memcpy(&in, req->arg, sizeof in);
    meta *m = &req->r->meta;
    inode *dir = NULL;
    if (in.size > RELAY_MAX_WRITE) {
        in.size = RELAY_MAX_WRITE;
    }
    int result = complete_directory(req, req->in->nodeid, &dir);
    if (result != 0) {
        return result;
    }
    lister l = {.req = req, .room = in.size, .plus = plus};
    bool more = true;
    if (in.offset < 1) {
        more = add(&l, ".", 1, dir->ino, 1, DT_DIR, NULL);
    }
    if (more && in.offset < OWN_COOKIES) {
        more = add(&l, "..", 2, dir->parent ? dir->parent : dir->ino, 2, DT_DIR, NULL);
    }
    uint64_t after = in.offset > OWN_COOKIES ? in.offset - OWN_COOKIES : 0;
    for (size_t i = meta_first_after(dir, after); more && i < dir->name_count; i++) {
        const dentry *name = dir->names[i].name;
        if (name != NULL) {
            inode *node = plus ? map64_get(&m->inodes, name->ino) : NULL;
            more = add(&l, name->name, name->len, name->ino, name->cookie + OWN_COOKIES, name->type, node);
        }
    }
    if (more && req->r->options.diratime) {
        touch_atime_lock_held(req->r, dir);
    }
    meta_shrink(m);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int op_readdir(request *req)
{
    return read_directory(req, false);
}

static int op_readdirplus(request *req)
{
    return read_directory(req, true);
}

static int op_readlink(request *req)
{
    inode *node = NULL;
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    if (node->target == NULL) {
        result = -EINVAL;
    } else {
        memcpy(req->out, node->target, node->target_len);
        req->out_len = node->target_len;
    }
    if (result == 0) {
        pthread_mutex_lock(&req->r->meta.lock);
        touch_atime_lock_held(req->r, node);
        pthread_mutex_unlock(&req->r->meta.lock);
    }
    node_put(req->r, node);
    return result;
}

static int op_interrupt(request *req)
{
    (void)req; /* every request is answered soon, or waits for a commit, which cannot be taken back */
    return NO_REPLY;
}

static int op_destroy(request *req)
{
    (void)req;
    return 0;
}

int op_read(request *req), op_write(request *req), op_fsync(request *req), op_flush(request *req),
    op_fallocate(request *req), op_lseek(request *req), op_copy_file_range(request *req), op_open(request *req),
    op_opendir(request *req), op_release(request *req), op_fsyncdir(request *req), op_getattr(request *req),
    op_statx(request *req), op_setattr(request *req), op_getxattr(request *req), op_listxattr(request *req),
    op_setxattr(request *req), op_removexattr(request *req), op_symlink(request *req),
    op_lookup(request *req), op_mknod(request *req), op_mkdir(request *req), op_create(request *req),
    op_tmpfile(request *req), op_link(request *req), op_unlink(request *req), op_rmdir(request *req),
    op_rename(request *req), op_rename2(request *req), op_forget(request *req), op_batch_forget(request *req);

/* Without a function: the control plane's. Not listed: ENOSYS. */
const operation operations[OPCODES] = {
    [FUSE_LOOKUP] = {op_lookup, 2, "lookup"},
    [FUSE_FORGET] = {op_forget, sizeof(struct fuse_forget_in), "forget"},
    [FUSE_GETATTR] = {op_getattr, sizeof(struct fuse_getattr_in), "getattr"},
    [FUSE_SETATTR] = {op_setattr, sizeof(struct fuse_setattr_in), "setattr"},
    [FUSE_READLINK] = {op_readlink, 0, "readlink"},
    [FUSE_SYMLINK] = {op_symlink, 4, "symlink"},
    [FUSE_MKNOD] = {op_mknod, sizeof(struct fuse_mknod_in) + 2, "mknod"},
    [FUSE_MKDIR] = {op_mkdir, sizeof(struct fuse_mkdir_in) + 2, "mkdir"},
    [FUSE_UNLINK] = {op_unlink, 2, "unlink"},
    [FUSE_RMDIR] = {op_rmdir, 2, "rmdir"},
    [FUSE_RENAME] = {op_rename, sizeof(struct fuse_rename_in) + 4, "rename"},
    [FUSE_LINK] = {op_link, sizeof(struct fuse_link_in) + 2, "link"},
    [FUSE_OPEN] = {op_open, sizeof(struct fuse_open_in), "open"},
    [FUSE_READ] = {op_read, sizeof(struct fuse_read_in), "read"},
    [FUSE_WRITE] = {op_write, sizeof(struct fuse_write_in), "write"},
    [FUSE_STATFS] = {NULL, 0, "statfs"},
    [FUSE_RELEASE] = {op_release, sizeof(struct fuse_release_in), "release"},
    [FUSE_FSYNC] = {op_fsync, sizeof(struct fuse_fsync_in), "fsync"},
    [FUSE_SETXATTR] = {op_setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE + 2, "setxattr"},
    [FUSE_GETXATTR] = {op_getxattr, sizeof(struct fuse_getxattr_in) + 2, "getxattr"},
    [FUSE_LISTXATTR] = {op_listxattr, sizeof(struct fuse_getxattr_in), "listxattr"},
    [FUSE_REMOVEXATTR] = {op_removexattr, 2, "removexattr"},
    [FUSE_FLUSH] = {op_flush, sizeof(struct fuse_flush_in), "flush"},
    [FUSE_INIT] = {NULL, 16, "init"},
    [FUSE_OPENDIR] = {op_opendir, sizeof(struct fuse_open_in), "opendir"},
    [FUSE_READDIR] = {op_readdir, sizeof(struct fuse_read_in), "readdir"},
    [FUSE_RELEASEDIR] = {op_release, sizeof(struct fuse_release_in), "releasedir"},
    [FUSE_FSYNCDIR] = {op_fsyncdir, sizeof(struct fuse_fsync_in), "fsyncdir"},
    [FUSE_CREATE] = {op_create, sizeof(struct fuse_create_in) + 2, "create"},
    [FUSE_INTERRUPT] = {op_interrupt, sizeof(struct fuse_interrupt_in), "interrupt"},
    [FUSE_DESTROY] = {op_destroy, 0, "destroy"},
    [FUSE_BATCH_FORGET] = {op_batch_forget, sizeof(struct fuse_batch_forget_in), "batch_forget"},
    [FUSE_FALLOCATE] = {op_fallocate, sizeof(struct fuse_fallocate_in), "fallocate"},
    [FUSE_READDIRPLUS] = {op_readdirplus, sizeof(struct fuse_read_in), "readdirplus"},
    [FUSE_RENAME2] = {op_rename2, sizeof(struct fuse_rename2_in) + 4, "rename2"},
    [FUSE_LSEEK] = {op_lseek, sizeof(struct fuse_lseek_in), "lseek"},
    [FUSE_COPY_FILE_RANGE] = {op_copy_file_range, sizeof(struct fuse_copy_file_range_in), "copy_file_range"},
    [FUSE_TMPFILE] = {op_tmpfile, sizeof(struct fuse_create_in), "tmpfile"},
    [OP_STATX] = {op_statx, sizeof(struct wire_statx_in), "statx"},
};
