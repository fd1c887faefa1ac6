/* A FUSE file system that keeps nothing: writes vanish, reads give zeros. It is the limit of what any FUSE daemon can reach.
 *
 * Low-level libfuse, many threads on cloned descriptors, writeback cache, 1 MiB requests, attributes cached for an hour.
 * One flat directory of at most MAX_FILES names, kept in memory. Built by assets.py, mounted by systems.py: nullfs -f MOUNTPOINT. */

#define FUSE_USE_VERSION 312
#define _GNU_SOURCE

#include <errno.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FILES = 64, MAX_NAME = 200, REQUEST_LEN = 1 << 20 };
static const double HOUR_S = 3600.0;

struct file {
    char name[MAX_NAME]; /* empty: free */
    off_t size;
    mode_t mode;
    struct timespec mtime;
};

static struct file files[MAX_FILES]; /* inode number - 2 is the index */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char zeros[REQUEST_LEN];

static struct file *file_of(fuse_ino_t ino)
{
    return ino >= 2 && ino < 2 + MAX_FILES ? &files[ino - 2] : NULL;
}

static fuse_ino_t find_lock_held(const char *name)
{
    for (size_t i = 0; i < MAX_FILES; i++) {
        if (strcmp(files[i].name, name) == 0) {
            return i + 2;
        }
    }
    return 0;
}

static struct stat attributes(fuse_ino_t ino)
{
    struct stat st = {.st_ino = ino, .st_nlink = 1, .st_blksize = 4096};
    const struct file *file = file_of(ino);
    if (file == NULL) {
        st.st_mode = S_IFDIR | 0755;
        st.st_nlink = 2;
    } else {
        st.st_mode = file->mode;
        st.st_size = file->size;
        st.st_blocks = (file->size + 511) / 512;
        st.st_mtim = file->mtime;
    }
    return st;
}

static struct fuse_entry_param entry(fuse_ino_t ino)
{
    return (struct fuse_entry_param){
        .ino = ino, .attr = attributes(ino), .attr_timeout = HOUR_S, .entry_timeout = HOUR_S};
}

static void null_init(void *data, struct fuse_conn_info *conn)
{
    (void)data;
    conn->want |= conn->capable & (FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS |
                                   FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_ASYNC_DIO);
    conn->max_write = REQUEST_LEN;
    conn->max_readahead = 4 << 20;
    conn->max_background = 64;
    conn->congestion_threshold = 48;
}

static void null_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent;
    pthread_mutex_lock(&lock);
    fuse_ino_t ino = find_lock_held(name);
    pthread_mutex_unlock(&lock);
    if (ino == 0) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    struct fuse_entry_param e = entry(ino);
    fuse_reply_entry(req, &e);
}

static void null_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st = attributes(ino);
    fuse_reply_attr(req, &st, HOUR_S);
}

static void null_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    (void)fi;
    struct file *file = file_of(ino);
    if (file != NULL && (to_set & FUSE_SET_ATTR_SIZE)) {
        file->size = attr->st_size;
    }
    if (file != NULL && (to_set & FUSE_SET_ATTR_MTIME)) {
        file->mtime = attr->st_mtim;
    }
    struct stat st = attributes(ino);
    fuse_reply_attr(req, &st, HOUR_S);
}

static void null_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    (void)parent;
    if (strlen(name) >= MAX_NAME) {
        fuse_reply_err(req, ENAMETOOLONG);
        return;
    }
    pthread_mutex_lock(&lock);
    fuse_ino_t ino = find_lock_held(name);
    if (ino == 0) {
        ino = find_lock_held("");
        if (ino != 0) {
            files[ino - 2] = (struct file){.mode = S_IFREG | (mode & 07777)};
            strcpy(files[ino - 2].name, name);
        }
    }
    pthread_mutex_unlock(&lock);
    if (ino == 0) {
        fuse_reply_err(req, ENOSPC);
        return;
    }
    fi->keep_cache = 1;
    struct fuse_entry_param e = entry(ino);
    fuse_reply_create(req, &e, fi);
}

static void null_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent;
    pthread_mutex_lock(&lock);
    fuse_ino_t ino = find_lock_held(name);
    if (ino != 0) {
        files[ino - 2].name[0] = '\0';
    }
    pthread_mutex_unlock(&lock);
    fuse_reply_err(req, ino == 0 ? ENOENT : 0);
}

static void null_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->keep_cache = 1;
    fuse_reply_open(req, fi);
}

static void null_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)fi;
    const struct file *file = file_of(ino);
    off_t rest = file == NULL || off >= file->size ? 0 : file->size - off;
    size_t len = rest < (off_t)size ? (size_t)rest : size;
    fuse_reply_buf(req, zeros, len < sizeof zeros ? len : sizeof zeros);
}

static void null_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                       struct fuse_file_info *fi)
{
    (void)buf;
    (void)fi;
    struct file *file = file_of(ino);
    if (file != NULL) {
        pthread_mutex_lock(&lock);
        if (off + (off_t)size > file->size) {
            file->size = off + (off_t)size;
        }
        pthread_mutex_unlock(&lock);
    }
    fuse_reply_write(req, size);
}

static void null_done(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    fuse_reply_err(req, 0);
}

static void null_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)datasync;
    null_done(req, ino, fi);
}

static const struct fuse_lowlevel_ops operations = {
    .init = null_init,
    .lookup = null_lookup,
    .getattr = null_getattr,
    .setattr = null_setattr,
    .create = null_create,
    .unlink = null_unlink,
    .open = null_open,
    .read = null_read,
    .write = null_write,
    .flush = null_done,
    .release = null_done,
    .fsync = null_fsync,
};

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    struct fuse_cmdline_opts options = {0};
    struct fuse_session *session = NULL;
    struct fuse_loop_config *config = NULL;
    int status = 1;

    if (fuse_parse_cmdline(&args, &options) != 0 || options.mountpoint == NULL) {
        fprintf(stderr, "usage: nullfs -f MOUNTPOINT\n");
        goto done;
    }
    session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (session == NULL || fuse_set_signal_handlers(session) != 0 ||
        fuse_session_mount(session, options.mountpoint) != 0) {
        goto done;
    }
    config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, 8);
    status = fuse_session_loop_mt(session, config) == 0 ? 0 : 1;
    fuse_session_unmount(session);
done:
    if (config != NULL) {
        fuse_loop_cfg_destroy(config);
    }
    if (session != NULL) {
        fuse_session_destroy(session);
    }
    free(options.mountpoint);
    fuse_opt_free_args(&args);
    return status;
}
