/* Requests for attributes and extended attributes. */
#include "relay.h"

#include <errno.h>
#include <linux/limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define VALID_S 3600u
#define SECOND INT64_C(1000000000)
#define WIRE_STATX_BASIC 0x7ffu
#define WIRE_STATX_BTIME 0x800u

static void reply_attr_lock_held(request *req, inode *node)
{
    attr_told_lock_held(node, req->in->pid);
    struct fuse_attr_out out = {.attr_valid = VALID_S};
    fill_attr(req->r, node, &out.attr);
    memcpy(req->out, &out, sizeof out);
    req->out_len = sizeof out;
}

int op_getattr(request *req)
{
    inode *node = NULL;
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    pthread_mutex_lock(&req->r->meta.lock);
    reply_attr_lock_held(req, node);
    meta_unpin(&req->r->meta, node);
    pthread_mutex_unlock(&req->r->meta.lock);
    return 0;
}

static struct wire_sx_time sx_time(uint64_t seconds, uint32_t ns)
{
    return (struct wire_sx_time){.tv_sec = (int64_t)seconds, .tv_nsec = ns};
}

int op_statx(request *req)
{
    inode *node = NULL;
    struct fuse_attr attr;
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    pthread_mutex_lock(&req->r->meta.lock);
    attr_told_lock_held(node, req->in->pid);
    fill_attr(req->r, node, &attr);
    int64_t born = node->btime;
    meta_unpin(&req->r->meta, node);
    pthread_mutex_unlock(&req->r->meta.lock);
    struct wire_statx_out out = {.attr_valid = VALID_S};
    out.stat = (struct wire_statx){
        .mask = WIRE_STATX_BASIC | WIRE_STATX_BTIME, .blksize = attr.blksize, .nlink = attr.nlink, .uid = attr.uid,
        .gid = attr.gid, .mode = (uint16_t)attr.mode, .ino = attr.ino, .size = attr.size, .blocks = attr.blocks,
        .atime = sx_time(attr.atime, attr.atimensec), .mtime = sx_time(attr.mtime, attr.mtimensec),
        .ctime = sx_time(attr.ctime, attr.ctimensec), .rdev_major = major(attr.rdev), .rdev_minor = minor(attr.rdev),
    };
    int64_t s = born / SECOND - (born % SECOND < 0);
    out.stat.btime = (struct wire_sx_time){.tv_sec = s, .tv_nsec = (uint32_t)(born - s * SECOND)};
    memcpy(req->out, &out, sizeof out);
    req->out_len = sizeof out;
    return 0;
}

static int64_t joined_time(uint64_t seconds, uint32_t ns)
{
    __int128 all = (__int128)(int64_t)seconds * SECOND + ns; /* kept in 64 bits: from 1677 to 2262 */
    return all > INT64_MAX ? INT64_MAX : all < INT64_MIN ? INT64_MIN : (int64_t)all;
}

int op_setattr(request *req)
{
    struct fuse_setattr_in in;
    memcpy(&in, req->arg, sizeof in);
    relay *r = req->r;
    inode *node = NULL;
    int result = check_change(req);
    if (result == 0) {
        result = node_get(req, req->in->nodeid, &node);
    }
    if (result != 0) {
        return result;
    }
    bool resized = false;
    /* chown(2) to nobody, or the kernel's own removal of privileges: it leaves them to us without saying so. */
    bool bare = (in.valid & ~(uint32_t)(FATTR_CTIME | FATTR_KILL_SUIDGID | FATTR_FH | FATTR_LOCKOWNER)) == 0;
    if (bare && (in.valid & FATTR_CTIME) != 0 && (node->mode & (S_ISUID | S_ISGID)) != 0 && req->in->uid != 0 &&
        req->in->uid != node->uid) {
        node_put(req->r, node);
        return -EPERM;
    }
    if (in.valid & FATTR_SIZE) {
        tree *t = NULL;
        fspf_error err = {0};
        result = content_tree(r, node, &t);
        if (result == 0 && in.size > MAX_FILE_SIZE) {
            result = -EFBIG;
        }
        if (result == 0) {
            resized = true; /* also to the same size: times and privileges follow */
            fspf_status status = tree_truncate(t, in.size, &err);
            if (status != ST_OK) {
                result = status == ST_OS ? -err.os_errno
                                         : -r->up.failed(r->up.context, "truncate", node->ino, status, &err);
            }
        }
    }
    bool concerned = result == 0 && (bare || (in.valid & (FATTR_SIZE | FATTR_UID | FATTR_GID)) != 0);
    pthread_mutex_lock(&r->meta.lock);
    bool pass = result == 0 && !node->no_xattrs && (in.valid & FATTR_MODE) != 0; /* an access list follows the mode */
    if (concerned && !S_ISDIR(node->mode) && capability_due_lock_held(node)) {
        pthread_mutex_unlock(&r->meta.lock);
        drop_capability(req, node);
        pthread_mutex_lock(&r->meta.lock);
    }
    if (result == 0) {
        int64_t now = now_ns();
        uint32_t valid = in.valid;
        if (r->options.view) {
            if (r->options.view_uid != UINT32_MAX) {
                valid &= ~(uint32_t)FATTR_UID;
            }
            if (r->options.view_gid != UINT32_MAX) {
                valid &= ~(uint32_t)FATTR_GID;
            }
        }
        if (bare || (valid & FATTR_KILL_SUIDGID) != 0) {
            if ((bare || (valid & (FATTR_UID | FATTR_GID)) != 0) && req->in->uid == 0) { /* a change of owner clears them for root, too */
                uint32_t kept = node->mode & ~(uint32_t)S_ISUID;
                if (!S_ISDIR(node->mode)) {
                    node->mode = (kept & S_IXGRP) != 0 ? kept & ~(uint32_t)S_ISGID : kept;
                }
            } else {
                (void)kill_privileges(req, node);
            }
        }
        if (valid & FATTR_MODE) {
            node->mode = (node->mode & S_IFMT) | (in.mode & 07777);
        }
        if (valid & FATTR_UID) {
            node->uid = in.uid;
        }
        if (valid & FATTR_GID) {
            node->gid = in.gid;
        }
        if (valid & FATTR_ATIME) {
            node->atime = valid & FATTR_ATIME_NOW ? now : joined_time(in.atime, in.atimensec);
        }
        if (resized) {
            set_times(node, now);
            meta_changed(&r->meta, node);
        }
        if (valid & FATTR_MTIME) {
            node->mtime = valid & FATTR_MTIME_NOW ? now : joined_time(in.mtime, in.mtimensec);
        }
        if (valid & FATTR_CTIME) { /* what the kernel tells everybody meanwhile, though we may have set a later one */
            node->ctime = joined_time(in.ctime, in.ctimensec);
        } else if (now > node->ctime) {
            node->ctime = now; /* it never goes back */
        }
        meta_dirty(&r->meta, node);
        reply_attr_lock_held(req, node);
    }
    meta_unpin(&r->meta, node);
    pthread_mutex_unlock(&r->meta.lock);
    if (pass) {
        struct fuse_setattr_in *rest = (struct fuse_setattr_in *)(void *)(req->w->in + sizeof(struct fuse_in_header));
        rest->valid &= FATTR_MODE | FATTR_CTIME;
        return PASS;
    }
    return result;
}

/* ---- extended attributes: only that there are none ---- */

static int known_to_have_none(request *req)
{
    inode *node = NULL;
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    pthread_mutex_lock(&req->r->meta.lock);
    result = node->no_xattrs ? 1 : 0;
    pthread_mutex_unlock(&req->r->meta.lock);
    node_put(req->r, node);
    return result;
}

int op_getxattr(request *req)
{
    const char *name = (const char *)req->arg + sizeof(struct fuse_getxattr_in);
    size_t room = req->arg_len - sizeof(struct fuse_getxattr_in);
    if (memchr(name, 0, room) == NULL) {
        return -EINVAL;
    }
    if (req->in->nodeid == FUSE_ROOT_ID && strncmp(name, "user.fspf.", 10) == 0) {
        return PASS;
    }
    int none = known_to_have_none(req);
    return none == 1 ? -ENODATA : none == 0 ? PASS : none;
}

int op_listxattr(request *req)
{
    struct fuse_getxattr_in in;
    memcpy(&in, req->arg, sizeof in);
    int none = known_to_have_none(req);
    if (none != 1) {
        return none == 0 ? PASS : none;
    }
    if (in.size == 0) {
        struct fuse_getxattr_out out = {0};
        memcpy(req->out, &out, sizeof out);
        req->out_len = sizeof out;
    }
    return 0;
}

int op_setxattr(request *req)
{
    struct fuse_setxattr_in in = {0};
    memcpy(&in, req->arg, FUSE_COMPAT_SETXATTR_IN_SIZE);
    const char *name = (const char *)req->arg + FUSE_COMPAT_SETXATTR_IN_SIZE;
    size_t room = req->arg_len - FUSE_COMPAT_SETXATTR_IN_SIZE;
    size_t len = strnlen(name, room);
    if (len == room || in.size > room - len - 1) {
        return -EINVAL;
    }
    if (in.size > XATTR_SIZE_MAX) {
        return -E2BIG;
    }
    if ((in.flags & (XATTR_CREATE | XATTR_REPLACE)) != 0) { /* pyfuse3 does not tell its handler */
        int error = req->r->up.check_xattr(req->r->up.context, req->in->nodeid, name, in.flags);
        if (error != 0) {
            return -error;
        }
    }
    return PASS;
}

int op_removexattr(request *req)
{
    return strnlen((const char *)req->arg, req->arg_len) < req->arg_len ? PASS : -EINVAL;
}
