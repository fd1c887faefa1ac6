/* Requests that look names up, make, remove and rename them. The kernel holds the locks of the directories concerned,
 * so no two of them meet in one directory; `meta.lock` keeps each step whole for drains and for readers. */
#include "relay.h"

#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/stat.h>

/* A name at the end of an argument: its length without the NUL, or -errno. */
static int name_at(const request *req, size_t offset, const char **name, size_t *len)
{
    if (req->arg_len <= offset) {
        return -EINVAL;
    }
    const char *start = (const char *)req->arg + offset;
    const char *end = memchr(start, 0, req->arg_len - offset);
    if (end == NULL || end == start) {
        return -EINVAL;
    }
    *name = start;
    *len = (size_t)(end - start);
    return *len > NAME_MAX_BYTES ? -ENAMETOOLONG : 0;
}

/* The same for a name that is to be made or taken away. */
static int changed_name_at(const request *req, size_t offset, const char **name, size_t *len)
{
    int result = name_at(req, offset, name, len);
    bool dots = result == 0 && (*name)[0] == '.' && (*len == 1 || (*len == 2 && (*name)[1] == '.'));
    return result == 0 && (dots || memchr(*name, '/', *len) != NULL) ? -EINVAL : result;
}

/* Have what is missing loaded: 0 to look again, 1 when all is there, or -errno. The lock is held before and after. */
static int load_missing(relay *r, inode *dir, const dentry *entry, const inode *child, bool with_node)
{
    if (dir->gone) {
        return -ENOENT;
    }
    if (dir->valid && !S_ISDIR(dir->mode)) {
        return -ENOTDIR;
    }
    bool known = dir->valid && (entry != NULL || dir->complete);
    bool whole = entry == NULL || !with_node || (child->valid && !child->gone);
    if (known && whole) {
        return 1;
    }
    uint64_t missing = !dir->valid ? dir->ino : entry != NULL ? child->ino : 0;
    pthread_mutex_unlock(&r->meta.lock);
    int error = missing != 0 ? load_inode(r, missing) : load_directory(r, dir->ino);
    pthread_mutex_lock(&r->meta.lock);
    return -error;
}

/* With the lock held on success: the directory, and the name in it or NULL when it is known not to be there. With
 * `with_node` the inode that it names is known too. Repeats until memory and database agree. */
static int find_name(request *req, uint64_t parent, const char *name, size_t len, bool with_node, inode **dir,
                     dentry **found, inode **node)
{
    relay *r = req->r;
    meta *m = &r->meta;
    int result = 0;
    dentry *entry = NULL;
    inode *child = NULL;
    pthread_mutex_lock(&m->lock);
    inode *d = node_hold(r, parent); /* so that what is loaded stays until it is looked at */
    for (int tries = 0; tries < 16 && d != NULL && result == 0; tries++) {
        entry = d->valid ? meta_name(m, d, name, len) : NULL;
        if (child != NULL && (entry == NULL || entry->ino != child->ino)) {
            node_let_go(r, child);
            child = NULL;
        }
        if (entry != NULL && with_node && child == NULL && (child = node_hold(r, entry->ino)) == NULL) {
            result = -ENOMEM;
        } else {
            result = load_missing(r, d, entry, child, with_node);
        }
    }
    if (result == 1) {
        *dir = d;
        *found = entry;
        if (node != NULL) {
            *node = child;
        }
        if (child != NULL) {
            meta_unpin(m, child); /* with the lock it stays */
        }
        meta_unpin(m, d);
        return 0;
    }
    if (child != NULL) {
        node_let_go(r, child);
    }
    if (d != NULL) {
        node_let_go(r, d);
    }
    pthread_mutex_unlock(&m->lock);
    return d == NULL ? -ENOMEM : result != 0 ? result : -EIO;
}

static void reply_entry_lock_held(request *req, inode *node)
{
    meta *m = &req->r->meta;
    struct fuse_entry_out out;
    attr_told_lock_held(node, req->in->pid);
    fill_entry(req->r, node, &out);
    memcpy(req->out, &out, sizeof out);
    req->out_len = sizeof out;
    (void)meta_set_lookups(m, node->ino, meta_lookups(m, node->ino) + (UINT64_C(1) << 32));
}

/* .. of a directory, which only those ask for who have a handle of it and no path. */
static int lookup_parent(request *req)
{
    relay *r = req->r;
    inode *node = NULL;
    int result = node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result;
    }
    pthread_mutex_lock(&r->meta.lock);
    bool is_dir = S_ISDIR(node->mode);
    uint64_t parent = node->parent != 0 ? node->parent : ROOT_INO;
    pthread_mutex_unlock(&r->meta.lock);
    node_put(r, node);
    result = is_dir ? node_get(req, parent, &node) : -ENOTDIR;
    if (result == 0) {
        pthread_mutex_lock(&r->meta.lock);
        reply_entry_lock_held(req, node);
        pthread_mutex_unlock(&r->meta.lock);
        node_put(r, node);
    }
    return result;
}

/* The kernel has a file handle of an inode that it does not know. What has no name is nobody's any more, even if its
 * FORGET has not come yet. */
static int lookup_handle(request *req)
{
    inode *node = NULL;
    int result = req->in->nodeid > INT64_MAX ? -ESTALE : node_get(req, req->in->nodeid, &node);
    if (result != 0) {
        return result == -ENOENT ? -ESTALE : result;
    }
    pthread_mutex_lock(&req->r->meta.lock);
    if (node->nlink == 0 || node->gone) {
        result = -ESTALE;
    } else {
        reply_entry_lock_held(req, node);
    }
    pthread_mutex_unlock(&req->r->meta.lock);
    node_put(req->r, node);
    return result;
}

int op_lookup(request *req)
{
    const char *name = NULL;
    size_t len = 0;
    inode *dir = NULL;
    dentry *entry = NULL;
    inode *node = NULL;
    int result = name_at(req, 0, &name, &len);
    if (result != 0) {
        return result;
    }
    if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'))) {
        return len == 1 ? lookup_handle(req) : lookup_parent(req);
    }
    result = find_name(req, req->in->nodeid, name, len, true, &dir, &entry, &node);
    if (result != 0) {
        return result;
    }
    if (entry != NULL) {
        reply_entry_lock_held(req, node);
    } else {
        struct fuse_entry_out out = {.entry_valid = 3600};
        memcpy(req->out, &out, sizeof out);
        req->out_len = sizeof out;
    }
    meta_shrink(&req->r->meta);
    pthread_mutex_unlock(&req->r->meta.lock);
    return 0;
}

/* A change of the names in a directory. Lock held. */
static void touch(request *req, inode *dir, int64_t now)
{
    set_times(dir, now);
    meta_dirty(&req->r->meta, dir);
    if (attr_stale_lock_held(dir, req->in->pid)) {
        invalidate_later(req, dir->ino);
    }
}

/* An inode as the request asks for it; lock held. NULL: out of memory. */
static inode *new_inode(request *req, const inode *dir, uint32_t mode, uint32_t rdev, uint32_t umask, int64_t now)
{
    meta *m = &req->r->meta;
    inode *node = meta_need(m, atomic_fetch_add(&m->next_ino, 1));
    if (node == NULL) {
        return NULL;
    }
    bool is_dir = S_ISDIR(mode);
    node->mode = (mode & S_IFMT) | (mode & 07777 & ~umask);
    node->uid = req->in->uid;
    node->gid = req->in->gid;
    if (dir->mode & S_ISGID) {
        node->gid = dir->gid;
        node->mode |= is_dir ? (uint32_t)S_ISGID : 0;
    }
    node->rdev = S_ISCHR(mode) || S_ISBLK(mode) ? rdev : 0;
    node->nlink = is_dir ? 2 : 1;
    node->atime = node->mtime = node->ctime = node->btime = now;
    node->protection = dir->protection;
    node->parent = is_dir ? dir->ino : 0;
    node->valid = true;
    node->no_xattrs = true;
    node->complete = is_dir;
    m->files_delta++;
    meta_dirty(m, node);
    return node;
}

static int make(request *req, size_t name_offset, uint32_t mode, uint32_t rdev, uint32_t umask)
{
    relay *r = req->r;
    meta *m = &r->meta;
    const char *name = NULL;
    size_t len = 0;
    inode *dir = NULL;
    dentry *entry = NULL;
    int result = check_change(req);
    if (result == 0) {
        result = changed_name_at(req, name_offset, &name, &len);
    }
    if (result == 0 && m->no_space) {
        result = -r->up.grow(r->up.context);
    }
    if (result == 0) {
        result = find_name(req, req->in->nodeid, name, len, false, &dir, &entry, NULL);
    }
    if (result != 0) {
        return result;
    }
    if (entry != NULL || dir->nlink == 0) {
        result = entry != NULL ? -EEXIST : -ENOENT;
    } else if (!dir->no_xattrs) {
        result = PASS; /* it may have a default access list */
    } else {
        int64_t now = now_ns();
        inode *node = new_inode(req, dir, mode, rdev, umask, now);
        dentry *made = node == NULL ? NULL
                                    : meta_add_name(m, dir, atomic_fetch_add(&m->next_cookie, 1), name, len, node->ino,
                                                    type_of(node->mode), false);
        if (made == NULL) {
            if (node != NULL) {
                m->files_delta--;
                (void)meta_delete(m, node, false);
            }
            result = -ENOMEM;
        } else {
            meta_name_dirty(m, made);
            dir->nlink += S_ISDIR(mode) ? 1 : 0;
            touch(req, dir, now);
            reply_entry_lock_held(req, node);
            meta_shrink(m);
        }
    }
    pthread_mutex_unlock(&m->lock);
    if (result != PASS) {
        return result;
    }
    int error = r->up.make(r->up.context, req->in, name, len, mode, rdev, umask);
    if (error != 0) {
        return -error;
    }
    inode *node = NULL;
    result = find_name(req, req->in->nodeid, name, len, true, &dir, &entry, &node);
    if (result == 0) {
        if (entry == NULL) {
            result = -EIO;
        } else {
            reply_entry_lock_held(req, node);
        }
        pthread_mutex_unlock(&m->lock);
    }
    return result;
}

int op_mknod(request *req)
{
    struct fuse_mknod_in in;
    memcpy(&in, req->arg, sizeof in);
    uint32_t mode = (in.mode & S_IFMT) != 0 ? in.mode : in.mode | S_IFREG;
    bool can_be = S_ISREG(mode) || S_ISCHR(mode) || S_ISBLK(mode) || S_ISFIFO(mode) || S_ISSOCK(mode);
    return can_be ? make(req, sizeof in, mode, in.rdev, in.umask) : -EINVAL;
}

int op_mkdir(request *req)
{
    struct fuse_mkdir_in in;
    memcpy(&in, req->arg, sizeof in);
    return make(req, sizeof in, S_IFDIR | (in.mode & 07777), 0, in.umask);
}

int op_create(request *req)
{
    struct fuse_create_in in;
    memcpy(&in, req->arg, sizeof in);
    if (req->r->no_open) {
        return -ENOSYS; /* once: from then on the kernel makes the node and needs no opening */
    }
    int result = make(req, sizeof in, S_IFREG | (in.mode & 07777), 0, in.umask);
    if (result == 0) {
        struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
        memcpy(req->out + req->out_len, &out, sizeof out);
        req->out_len += sizeof out;
    }
    return result;
}

/* The control plane makes it; but what it gets must have its ends. */
int op_symlink(request *req)
{
    const char *name = NULL;
    size_t len = 0;
    int result = check_change(req);
    if (result == 0) {
        result = changed_name_at(req, 0, &name, &len);
    }
    if (result != 0) {
        return result;
    }
    const char *target = name + len + 1;
    size_t room = req->arg_len - len - 1;
    size_t target_len = strnlen(target, room);
    if (target_len == room || target_len == 0) {
        return -EINVAL;
    }
    return target_len < PATH_MAX ? PASS : -ENAMETOOLONG;
}

int op_tmpfile(request *req)
{
    struct fuse_create_in in;
    memcpy(&in, req->arg, sizeof in);
    meta *m = &req->r->meta;
    inode *dir = NULL;
    inode *node = NULL;
    int result = check_change(req);
    if (result == 0 && m->no_space) {
        result = -req->r->up.grow(req->r->up.context);
    }
    if (result == 0) {
        result = node_get(req, req->in->nodeid, &dir);
    }
    if (result != 0) {
        return result;
    }
    pthread_mutex_lock(&m->lock);
    bool inherits = !dir->no_xattrs; /* perhaps */
    if (!S_ISDIR(dir->mode) || dir->nlink == 0) {
        result = S_ISDIR(dir->mode) ? -ENOENT : -ENOTDIR;
    } else if ((node = new_inode(req, dir, S_IFREG | (in.mode & 07777), 0, in.umask, now_ns())) == NULL) {
        result = -ENOMEM;
    } else {
        node->nlink = 0;
        meta_pin(node);
    }
    pthread_mutex_unlock(&m->lock);
    node_put(req->r, dir);
    if (node == NULL) {
        return result;
    }
    if (inherits) {
        result = -req->r->up.inherit(req->r->up.context, req->in->nodeid, node->ino, in.mode & 07777);
    }
    if (result == 0) {
        struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE};
        pthread_mutex_lock(&m->lock);
        reply_entry_lock_held(req, node);
        pthread_mutex_unlock(&m->lock);
        memcpy(req->out + req->out_len, &out, sizeof out);
        req->out_len += sizeof out;
    }
    node_put(req->r, node); /* deletes it if it is not to be */
    return result;
}

int op_link(request *req)
{
    struct fuse_link_in in;
    memcpy(&in, req->arg, sizeof in);
    meta *m = &req->r->meta;
    const char *name = NULL;
    size_t len = 0;
    inode *node = NULL;
    inode *dir = NULL;
    dentry *entry = NULL;
    int result = check_change(req);
    if (result == 0) {
        result = changed_name_at(req, sizeof in, &name, &len);
    }
    if (result == 0 && m->no_space) {
        result = -req->r->up.grow(req->r->up.context);
    }
    if (result == 0) {
        result = node_get(req, in.oldnodeid, &node);
    }
    if (result != 0) {
        return result;
    }
    result = find_name(req, req->in->nodeid, name, len, false, &dir, &entry, NULL);
    if (result != 0) {
        node_put(req->r, node);
        return result;
    }
    if (S_ISDIR(node->mode)) {
        result = -EPERM;
    } else if (entry != NULL) {
        result = -EEXIST;
    } else if (dir->nlink == 0 || node->gone) {
        result = -ENOENT;
    } else if (node->protection != dir->protection && S_ISREG(node->mode)) {
        result = -EXDEV; /* content of one protection where another is promised */
    } else {
        dentry *made = meta_add_name(m, dir, atomic_fetch_add(&m->next_cookie, 1), name, len, node->ino,
                                     type_of(node->mode), false);
        if (made == NULL) {
            result = -ENOMEM;
        } else {
            int64_t now = now_ns();
            meta_name_dirty(m, made);
            node->nlink++;
            node->ctime = now;
            meta_dirty(m, node);
            touch(req, dir, now);
            reply_entry_lock_held(req, node);
        }
    }
    meta_unpin(m, node);
    pthread_mutex_unlock(&m->lock);
    return result;
}

/* ---- removing ---- */

/* Count one name less. What nobody uses any more is deleted by the FORGET that follows; lock held. */
static void drop_link(meta *m, inode *node, int64_t now)
{
    node->nlink = S_ISDIR(node->mode) ? 0 : node->nlink - 1;
    node->ctime = now;
    meta_dirty(m, node);
}

void delete_unused(relay *r, inode *node)
{
    meta *m = &r->meta;
    bool unused = node->valid && node->nlink == 0 && !meta_in_use(m, node);
    if (!unused) {
        pthread_mutex_unlock(&m->lock);
        return;
    }
    meta_pin(node);
    pthread_mutex_unlock(&m->lock);
    pthread_rwlock_rdlock(&m->gate); /* before the lock, as everywhere */
    pthread_mutex_lock(&m->lock);
    bool first = !node->gone && node->nlink == 0 && meta_lookups(m, node->ino) == 0;
    if (first && meta_delete(m, node, true)) {
        m->files_delta--;
        m->bytes_delta -= (int64_t)node->root.size;
    } else {
        first = false;
    }
    pthread_mutex_unlock(&m->lock);
    if (first) {
        content_destroy(r, node);
    }
    pthread_rwlock_unlock(&m->gate);
    pthread_mutex_lock(&m->lock);
    meta_unpin(m, node);
    pthread_mutex_unlock(&m->lock);
}

/* Is a directory empty? With the lock held on success; `node` stays pinned by the caller. */
static int check_empty(request *req, inode *node)
{
    relay *r = req->r;
    for (int tries = 0; tries < 8; tries++) {
        pthread_mutex_lock(&r->meta.lock);
        if (node->live > 0) {
            pthread_mutex_unlock(&r->meta.lock);
            return -ENOTEMPTY;
        }
        if (node->complete) {
            return 0;
        }
        pthread_mutex_unlock(&r->meta.lock);
        int error = load_directory(r, node->ino);
        if (error != 0) {
            return -error;
        }
    }
    return -EIO;
}

static int remove_name(request *req, bool directory)
{
    relay *r = req->r;
    meta *m = &r->meta;
    const char *name = NULL;
    size_t len = 0;
    inode *dir = NULL;
    inode *node = NULL;
    dentry *entry = NULL;
    int result = check_change(req);
    if (result == 0) {
        result = changed_name_at(req, 0, &name, &len);
    }
    if (result == 0) {
        result = find_name(req, req->in->nodeid, name, len, true, &dir, &entry, &node);
    }
    if (result != 0) {
        return result;
    }
    if (entry == NULL) {
        result = -ENOENT;
    } else if (S_ISDIR(node->mode) != directory) {
        result = directory ? -ENOTDIR : -EISDIR;
    }
    if (result == 0 && directory) {
        meta_pin(node);
        pthread_mutex_unlock(&m->lock);
        result = check_empty(req, node);
        if (result != 0) {
            node_put(req->r, node);
            return result;
        }
        meta_unpin(m, node);
        dir = meta_find(m, req->in->nodeid);
        entry = dir != NULL ? meta_name(m, dir, name, len) : NULL;
        result = entry == NULL || entry->ino != node->ino ? -ESTALE : 0;
    }
    if (result == 0 && !meta_remove_name(m, entry, true)) {
        result = -ENOMEM;
    }
    if (result != 0) {
        pthread_mutex_unlock(&m->lock);
        return result;
    }
    int64_t now = now_ns();
    dir->nlink -= directory && dir->nlink > 2 ? 1 : 0;
    touch(req, dir, now);
    drop_link(m, node, now);
    delete_unused(r, node);
    return 0;
}

int op_unlink(request *req)
{
    return remove_name(req, false);
}

int op_rmdir(request *req)
{
    return remove_name(req, true);
}

/* ---- renaming ---- */

typedef struct {
    uint64_t parent;
    const char *name;
    size_t len;
    inode *dir;
    dentry *entry;
    inode *node; /* pinned once found */
} end;

static int find_end(request *req, end *e)
{
    int result = find_name(req, e->parent, e->name, e->len, true, &e->dir, &e->entry, &e->node);
    if (result == 0) {
        meta_pin(e->dir);
        if (e->entry != NULL) {
            meta_pin(e->node);
        } else {
            e->node = NULL;
        }
        pthread_mutex_unlock(&req->r->meta.lock);
    } else {
        e->dir = e->node = NULL;
    }
    return result;
}

static int check_rename(const end *from, const end *to, uint32_t flags)
{
    const inode *moved = from->node;
    const inode *other = to->node;
    if (moved == NULL || ((flags & RENAME_EXCHANGE) != 0 && other == NULL) || to->dir->nlink == 0) {
        return -ENOENT;
    }
    if ((flags & RENAME_NOREPLACE) != 0 && other != NULL) {
        return -EEXIST;
    }
    if (moved->protection != to->dir->protection && (S_ISREG(moved->mode) || S_ISDIR(moved->mode))) {
        return -EXDEV;
    }
    if ((flags & RENAME_EXCHANGE) != 0) {
        return other->protection != from->dir->protection && (S_ISREG(other->mode) || S_ISDIR(other->mode)) ? -EXDEV : 0;
    }
    if (other == NULL || other == moved) {
        return 0;
    }
    if (S_ISDIR(other->mode) != S_ISDIR(moved->mode)) {
        return S_ISDIR(other->mode) ? -EISDIR : -ENOTDIR;
    }
    return 0;
}

/* Lock held, and given back for a moment to find out what a directory has in it. */
static int check_replaced(request *req, const end *from, const end *to, uint32_t flags)
{
    int result = check_rename(from, to, flags);
    bool replaced = result == 0 && (flags & RENAME_EXCHANGE) == 0 && to->node != NULL && to->node != from->node;
    if (replaced && S_ISDIR(to->node->mode)) {
        pthread_mutex_unlock(&req->r->meta.lock);
        result = check_empty(req, to->node);
        if (result != 0) {
            pthread_mutex_lock(&req->r->meta.lock);
        }
    }
    return result;
}

static void moved_to(request *req, inode *node, inode *from, inode *to, int64_t now)
{
    node->ctime = now > node->ctime ? now : node->ctime;
    if (S_ISDIR(node->mode)) {
        node->parent = to->ino;
        if (from != to) {
            from->nlink -= from->nlink > 2 ? 1 : 0;
            to->nlink++;
        }
        if (attr_stale_lock_held(node, req->in->pid)) {
            invalidate_later(req, node->ino);
        }
    }
    meta_dirty(&req->r->meta, node);
}

/* What overlayfs leaves where a file of a lower layer was: a character device 0:0. Lock held. */
static int leave_whiteout(request *req, end *from, int64_t now)
{
    inode *white = new_inode(req, from->dir, S_IFCHR, 0, 0, now);
    if (white == NULL) {
        return -ENOMEM;
    }
    from->entry->ino = white->ino;
    from->entry->type = type_of(white->mode);
    meta_name_dirty(&req->r->meta, from->entry);
    return 0;
}

/* The old name goes, or is left as a whiteout. Lock held. */
static int leave_old_name(request *req, end *from, uint32_t flags, int64_t now)
{
    if ((flags & RENAME_WHITEOUT) != 0) {
        return leave_whiteout(req, from, now);
    }
    return meta_remove_name(&req->r->meta, from->entry, true) ? 0 : -ENOMEM;
}

/* Lock held. The places were checked and found. */
static int do_rename(request *req, end *from, end *to, uint32_t flags)
{
    meta *m = &req->r->meta;
    int64_t now = now_ns();
    int result = 0;
    if ((flags & RENAME_EXCHANGE) != 0) {
        from->entry->ino = to->node->ino;
        from->entry->type = type_of(to->node->mode);
        to->entry->ino = from->node->ino;
        to->entry->type = type_of(from->node->mode);
        meta_name_dirty(m, from->entry);
        meta_name_dirty(m, to->entry);
        moved_to(req, from->node, from->dir, to->dir, now);
        moved_to(req, to->node, to->dir, from->dir, now);
    } else if (to->entry == NULL && from->dir == to->dir && (flags & RENAME_WHITEOUT) == 0) {
        from->entry = to->entry = meta_rename_name(m, from->entry, to->name, to->len);
        if (to->entry == NULL) {
            return -ENOMEM;
        }
        moved_to(req, from->node, from->dir, to->dir, now);
    } else {
        if (to->entry == NULL) {
            to->entry = meta_add_name(m, to->dir, atomic_fetch_add(&m->next_cookie, 1), to->name, to->len,
                                      from->node->ino, type_of(from->node->mode), false);
            if (to->entry == NULL) {
                return -ENOMEM;
            }
        } else { /* the name keeps its place in the directory */
            to->entry->ino = from->node->ino;
            to->entry->type = type_of(from->node->mode);
            if (S_ISDIR(to->node->mode)) {
                to->dir->nlink -= to->dir->nlink > 2 ? 1 : 0;
            }
            drop_link(m, to->node, now);
        }
        meta_name_dirty(m, to->entry);
        result = leave_old_name(req, from, flags, now);
        if (result != 0) {
            return result;
        }
        moved_to(req, from->node, from->dir, to->dir, now);
    }
    touch(req, from->dir, now);
    touch(req, to->dir, now);
    return 0;
}

static int rename_names(request *req, end *from, end *to, uint32_t flags)
{
    relay *r = req->r;
    meta *m = &r->meta;
    int result = check_change(req);
    if (result == 0) {
        result = find_end(req, from);
    }
    if (result == 0) {
        result = find_end(req, to);
    }
    bool same = result == 0 && from->node == to->node;
    bool data_first = false;
    bool both = false;
    if (result == 0) {
        pthread_mutex_lock(&m->lock);
        result = check_replaced(req, from, to, flags);
        data_first = result == 0 && !same && to->node != NULL && S_ISREG(from->node->mode);
        both = result == 0 && !same && (flags & RENAME_EXCHANGE) != 0 && S_ISREG(to->node->mode);
        pthread_mutex_unlock(&m->lock);
    }
    /* No commit may have the new name without the new data: programs replace files by rename without fsync. */
    if (data_first) {
        result = content_flush(r, from->node);
    }
    if (result == 0 && both) {
        result = content_flush(r, to->node);
    }
    pthread_mutex_lock(&m->lock);
    if (result == 0 && !same) {
        from->entry = meta_name(m, from->dir, from->name, from->len);
        to->entry = meta_name(m, to->dir, to->name, to->len);
        result = from->entry == NULL || (to->entry != NULL) != (to->node != NULL) ? -ESTALE
                                                                                  : do_rename(req, from, to, flags);
    }
    if (from->node != NULL) {
        meta_unpin(m, from->node);
    }
    if (from->dir != NULL) {
        meta_unpin(m, from->dir);
    }
    if (to->dir != NULL) {
        meta_unpin(m, to->dir);
    }
    if (to->node == NULL) {
        pthread_mutex_unlock(&m->lock);
        return result;
    }
    if (to->node->pins > 1 || to->node->gone) {
        meta_unpin(m, to->node);
        pthread_mutex_unlock(&m->lock);
    } else {
        to->node->pins--;
        delete_unused(r, to->node);
    }
    return result;
}

static int rename_request(request *req, uint64_t new_parent, uint32_t flags, size_t offset)
{
    end from = {.parent = req->in->nodeid};
    end to = {.parent = new_parent};
    int result = changed_name_at(req, offset, &from.name, &from.len);
    if (result == 0) {
        result = changed_name_at(req, offset + from.len + 1, &to.name, &to.len);
    }
    uint32_t known = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT;
    if (result == 0 && ((flags & ~known) != 0 || ((flags & RENAME_EXCHANGE) != 0 && flags != RENAME_EXCHANGE))) {
        result = -EINVAL;
    }
    if (result == 0 && (flags & RENAME_WHITEOUT) != 0 && req->r->meta.no_space) {
        result = -req->r->up.grow(req->r->up.context);
    }
    return result != 0 ? result : rename_names(req, &from, &to, flags);
}

int op_rename(request *req)
{
    struct fuse_rename_in in;
    memcpy(&in, req->arg, sizeof in);
    return rename_request(req, in.newdir, 0, sizeof in);
}

int op_rename2(request *req)
{
    struct fuse_rename2_in in;
    memcpy(&in, req->arg, sizeof in);
    return rename_request(req, in.newdir, in.flags, sizeof in);
}

/* ---- lookups given back ---- */

static void give_back(request *req, uint64_t ino, uint64_t count)
{
    relay *r = req->r;
    meta *m = &r->meta;
    pthread_mutex_lock(&m->lock);
    uint64_t packed = meta_lookups(m, ino);
    uint64_t all = packed >> 32;
    uint64_t theirs = packed & UINT32_MAX;
    if (all > count) { /* the control plane keeps its own until the last is given back */
        (void)meta_set_lookups(m, ino, (all - count) << 32 | theirs);
        pthread_mutex_unlock(&m->lock);
        return;
    }
    (void)meta_set_lookups(m, ino, 0);
    inode *node = meta_find(m, ino);
    if (node != NULL) {
        delete_unused(r, node);
    } else {
        pthread_mutex_unlock(&m->lock);
    }
    if (theirs > 0) {
        struct {
            struct fuse_in_header in;
            struct fuse_forget_in forget;
        } message = {.in = {.len = sizeof message, .opcode = FUSE_FORGET, .nodeid = ino}, .forget = {theirs}};
        relay_pass_forget(r, &message, sizeof message);
    }
}

int op_forget(request *req)
{
    struct fuse_forget_in in;
    memcpy(&in, req->arg, sizeof in);
    give_back(req, req->in->nodeid, in.nlookup);
    return NO_REPLY;
}

int op_batch_forget(request *req)
{
    struct fuse_batch_forget_in in;
    memcpy(&in, req->arg, sizeof in);
    size_t room = (req->arg_len - sizeof in) / sizeof(struct fuse_forget_one);
    for (size_t i = 0; i < in.count && i < room; i++) {
        struct fuse_forget_one one;
        memcpy(&one, req->arg + sizeof in + i * sizeof one, sizeof one);
        give_back(req, one.nodeid, one.nlookup);
    }
    return NO_REPLY;
}
