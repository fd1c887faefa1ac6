/* Getting at inodes, and telling the kernel what they are. */
#include "relay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#define TOLD_NS INT64_C(10000000000) /* no thread waits longer for its turn */
#define VALID_S 3600u /* the mount is the volume's only writer: nothing changes behind the kernel's back */

int64_t now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME_COARSE, &now); /* the kernel's own: it stamps writes in its cache with it */
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int load_inode(relay *r, uint64_t ino)
{
    return ino > INT64_MAX ? ENOENT : r->up.load_inode(r->up.context, ino); /* the database's numbers are signed */
}

int load_directory(relay *r, uint64_t ino)
{
    return ino > INT64_MAX ? ENOENT : r->up.load_directory(r->up.context, ino);
}

inode *node_hold(relay *r, uint64_t ino)
{
    inode *node = meta_need(&r->meta, ino);
    if (node != NULL) {
        meta_pin(node);
    }
    return node;
}

void node_let_go(relay *r, inode *node)
{
    bool nothing = node->pins == 1 && !node->valid && !node->gone && node->live == 0 && node->tree == NULL;
    if (nothing) { /* there was nothing to be loaded */
        (void)meta_delete(&r->meta, node, false);
    }
    meta_unpin(&r->meta, node);
}

int node_get(request *req, uint64_t ino, inode **out)
{
    relay *r = req->r;
    int result = -EIO;
    pthread_mutex_lock(&r->meta.lock);
    inode *node = node_hold(r, ino); /* now, so that what is loaded stays */
    for (int tries = 0; tries < 8 && node != NULL; tries++) {
        if (node->valid && !node->gone) {
            pthread_mutex_unlock(&r->meta.lock);
            *out = node;
            return 0;
        }
        result = node->gone ? -ENOENT : 0;
        pthread_mutex_unlock(&r->meta.lock);
        if (result == 0) {
            result = -load_inode(r, ino);
        }
        pthread_mutex_lock(&r->meta.lock);
        if (result != 0) {
            break;
        }
        result = -EIO;
    }
    if (node != NULL) {
        node_let_go(r, node);
    } else {
        result = -ENOMEM;
    }
    pthread_mutex_unlock(&r->meta.lock);
    return result;
}

bool node_is_file(relay *r, const inode *node)
{
    pthread_mutex_lock(&r->meta.lock);
    bool is_file = S_ISREG(node->mode);
    pthread_mutex_unlock(&r->meta.lock);
    return is_file;
}

void node_put(relay *r, inode *node)
{
    meta *m = &r->meta;
    pthread_mutex_lock(&m->lock);
    if (node->pins == 1 && !node->gone && node->valid && node->nlink == 0 && node->ino != ROOT_INO &&
        meta_lookups(m, node->ino) == 0) { /* it lost its last user while we had it */
        node->pins--;
        delete_unused(r, node);
        return;
    }
    meta_unpin(m, node);
    pthread_mutex_unlock(&m->lock);
}

int check_change(request *req)
{
    int blocked = req->r->meta.blocked;
    if (req->r->options.read_only) {
        return -EROFS;
    }
    if (blocked != 0) {
        return -blocked;
    }
    if (req->r->meta.dirty_count > 200000) {
        return -req->r->up.drain(req->r->up.context);
    }
    return 0;
}

static void split_time(int64_t ns, uint64_t *seconds, uint32_t *rest)
{
    int64_t s = ns / 1000000000;
    int64_t n = ns % 1000000000;
    if (n < 0) {
        n += 1000000000;
        s--;
    }
    *seconds = (uint64_t)s;
    *rest = (uint32_t)n;
}

void view_attr(const relay *r, struct fuse_attr *attr)
{
    if (r->options.view) {
        attr->uid = r->options.view_uid != UINT32_MAX ? r->options.view_uid : attr->uid;
        attr->gid = r->options.view_gid != UINT32_MAX ? r->options.view_gid : attr->gid;
        if (r->options.view_umask != UINT32_MAX && !S_ISLNK(attr->mode)) {
            attr->mode = (attr->mode & S_IFMT) | (0777 & ~r->options.view_umask);
        }
    }
}

void fill_attr(const relay *r, const inode *node, struct fuse_attr *out)
{
    memset(out, 0, sizeof *out);
    uint64_t chunks = node->tree != NULL ? tree_allocated(node->tree) : node->chunks;
    out->ino = node->ino;
    out->size = node->target != NULL ? node->target_len : node->tree != NULL ? tree_size(node->tree) : node->root.size;
    out->blocks = chunks * (r->chunk_size / 512);
    split_time(node->atime, &out->atime, &out->atimensec);
    split_time(node->mtime, &out->mtime, &out->mtimensec);
    split_time(node->ctime, &out->ctime, &out->ctimensec);
    out->mode = node->mode;
    out->nlink = node->nlink;
    out->uid = node->uid;
    out->gid = node->gid;
    out->rdev = node->rdev;
    out->blksize = r->chunk_size;
    view_attr(r, out);
}

void fill_entry(const relay *r, const inode *node, struct fuse_entry_out *out)
{
    memset(out, 0, sizeof *out);
    out->nodeid = node->ino;
    out->entry_valid = VALID_S;
    out->attr_valid = VALID_S;
    fill_attr(r, node, &out->attr);
}

/* Is the caller in the group? The kernel tells us only its first one. */
static bool caller_in_group(const struct fuse_in_header *in, uint32_t gid)
{
    char path[64];
    char line[4096];
    bool found = in->gid == gid;
    (void)snprintf(path, sizeof path, "/proc/%u/status", in->pid);
    FILE *status = found ? NULL : fopen(path, "re");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        if (strncmp(line, "Groups:", 7) != 0) {
            continue;
        }
        char *rest = NULL;
        for (char *word = strtok_r(line + 7, " \t\n", &rest); word != NULL && !found;
             word = strtok_r(NULL, " \t\n", &rest)) {
            found = strtoul(word, NULL, 10) == gid;
        }
        break;
    }
    if (status != NULL) {
        (void)fclose(status);
    }
    return found;
}

bool kill_privileges(request *req, inode *node)
{
    uint32_t mode = node->mode;
    if (S_ISDIR(mode) || (mode & (S_ISUID | S_ISGID)) == 0) {
        return false;
    }
    mode &= ~(uint32_t)S_ISUID;
    if ((mode & S_ISGID) != 0 && ((mode & S_IXGRP) != 0 || !caller_in_group(req->in, node->gid))) {
        mode &= ~(uint32_t)S_ISGID;
    }
    if (mode == node->mode) {
        return false;
    }
    node->mode = mode;
    return true;
}

void attr_told_lock_held(inode *node, uint32_t pid)
{
    if (!S_ISDIR(node->mode)) {
        return; /* of regular files the kernel keeps times and sizes itself */
    }
    int64_t now = now_ns();
    uint32_t to = pid == 0 ? TOLD_MANY : pid;
    bool others = node->told_to != 0 && node->told_to != to && now - node->told_at < TOLD_NS;
    node->told_to = others ? TOLD_MANY : to;
    node->told_at = now;
}

bool attr_stale_lock_held(inode *node, uint32_t pid)
{
    /* A thread that asks for a change has taken over what it was told. */
    if (node->told_to == 0 || (node->told_to == pid && pid != 0)) {
        return false;
    }
    bool stale = now_ns() - node->told_at < TOLD_NS;
    node->told_to = 0;
    return stale;
}

void set_times(inode *node, int64_t now)
{
    /* Since Linux 6.13 the kernel's stamps may be some ms ahead of its coarse clock (the floor of multigrain timestamps): a
     * change that comes after one of them is not to be older. Nobody can set a ctime, so it tells. */
    node->ctime = now > node->ctime ? now : node->ctime;
    node->mtime = node->ctime;
}
