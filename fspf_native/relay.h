/* The relay owns the kernel's end of a mount: it reads requests on several threads, answers what it can from `meta`
 * and the content trees, and passes the rest to the control plane over a SEQPACKET socket (docs/DATAPLANE.md).
 * No Python here: what only the control plane can do is asked for through `upcalls`. */
#ifndef FSPF_RELAY_H
#define FSPF_RELAY_H

#include "fuse_wire.h"
#include "lane.h"
#include "meta.h"
#include "spin.h"

#define RELAY_MAX_WRITE (1u << 20)
#define RELAY_MAX_THREADS 48
#define RELAY_MAX_CPUS 64
#define RELAY_POOL 4
#define REQUEST_BYTES (RELAY_MAX_WRITE + 8192u)
#define OPCODES 64u

/* What a handler may return instead of 0 (reply with `out`) or -errno. */
#define PASS 1     /* to the control plane, as it came */
#define NO_REPLY 2

/* Called on the relay's threads with no lock held. They return 0 or an errno. */
typedef struct {
    void *context;
    int (*load_inode)(void *context, uint64_t ino);
    int (*load_directory)(void *context, uint64_t ino);
    /* Make an inode where access lists have a say. */
    int (*make)(void *context, const struct fuse_in_header *in, const char *name, size_t len, uint32_t mode,
                uint32_t rdev, uint32_t umask);
    /* Give an inode without a name the list and mode that the directory's default list wants. */
    int (*inherit)(void *context, uint64_t dir, uint64_t ino, uint32_t mode);
    int (*drain)(void *context);
    int (*grow)(void *context);
    /* Negative, only if `may_return`: the lane can do it now. */
    int (*fsync)(void *context, uint64_t ino, bool may_return);
    int (*drop_capability)(void *context, uint64_t ino);
    /* May an attribute be set with these flags of setxattr(2)? */
    int (*check_xattr)(void *context, uint64_t ino, const char *name, uint32_t flags);
    /* Turn what happened to a content into an errno, and tell somebody. */
    int (*failed)(void *context, const char *handler, uint64_t ino, fspf_status status, const fspf_error *err);
} upcalls;

typedef struct {
    bool read_only, atime, diratime, view, uring, spin;
    uint32_t view_uid, view_gid, view_umask; /* UINT32_MAX: as stored */
    uint32_t threads;
} relay_options;

typedef struct {
    _Atomic uint64_t requests[OPCODES], passed[OPCODES], upcalls_made;
    _Atomic uint64_t bytes_read, bytes_written, errors;
} relay_stats;

struct ring;

#define MAX_INVALIDATE 4u /* a rename: both directories and what moves */

typedef struct worker {
    int fd;
    uint8_t *in;  /* REQUEST_BYTES */
    uint8_t *out; /* fuse_out_header, then what a handler fills in */
    relay *r;
    struct ring *ring; /* NULL: it reads the device */
    unsigned cpu;
    /* of a ring: what is to be handed over */
    int error;
    size_t out_len;
    bool waiting; /* for the control plane */
} worker;

typedef struct {
    relay *r;
    worker *w;
    const struct fuse_in_header *in;
    const uint8_t *arg;
    size_t arg_len;
    uint8_t *out;    /* after the header */
    size_t out_len;
    uint64_t invalidate[MAX_INVALIDATE]; /* inodes whose attributes the kernel is to forget */
    unsigned invalidate_count;
} request;

struct relay {
    meta meta;
    lane lane;
    store *st;
    upcalls up;
    relay_options options;
    relay_stats stats;
    spinners spin;
    int device, control;
    uint32_t chunk_size;
    _Atomic bool initialised, stopping, ended, no_open, no_opendir;
    _Atomic int running, idle;
    uint32_t minor, max_readahead;
    uint64_t init_flags;
    pthread_mutex_t lock; /* threads, slow requests */
    pthread_cond_t changed;
    pthread_t threads[RELAY_MAX_THREADS];
    _Atomic int thread_count;
    pthread_t control_thread;
    bool control_started, control_gone, kernel_gone;
    map64 slow; /* unique -> slow_request */
    pthread_cond_t answered;
    int ring_threads[RELAY_MAX_CPUS];
    _Atomic int ring_idle[RELAY_MAX_CPUS];
    _Atomic int ring_running;
    int ring_count;
    pid_t ring_thread[RELAY_MAX_CPUS * RELAY_MAX_THREADS];
    _Atomic bool uring; /* requests come through rings */
    pthread_mutex_t pool_lock;
    pthread_cond_t pool_work;
    struct ring *pool_first, *pool_last;
    pthread_t pool_threads[RELAY_POOL];
    int pool_count;
    bool pool_ending;
    int parked; /* threads that wait for all others to be busy */
    pthread_cond_t unpark;
    int unparking;
    int worker_fds[RELAY_MAX_THREADS];
    int wake; /* eventfd that becomes readable when the kernel's side has ended */
};

/* Takes both descriptors over. No thread is started. */
fspf_status relay_new(store *st, int device, int control, size_t limit, const relay_options *options,
                      const upcalls *up, relay **out, fspf_error *err);
fspf_status relay_start(relay *r, fspf_error *err);
/* Close the device, end all threads. Nothing is answered any more. */
void relay_stop(relay *r);
void relay_free(relay *r);
/* Handle one message in w->in. */
void relay_serve(worker *w, size_t len);
/* Tell the kernel to forget the attributes of an inode. */
void relay_invalidate(relay *r, uint64_t ino);
/* The kernel is to forget the attributes of an inode, before the request is answered. */
void invalidate_later(request *req, uint64_t ino);
/* Let it write back, and drop, what it has cached of a file. Its writes come while this waits; false if they do not. */
bool relay_write_back(relay *r, uint64_t ino);

typedef int (*handler)(request *req);
typedef struct {
    handler run;
    size_t least; /* bytes of the argument */
    const char *name;
} operation;
extern const operation operations[OPCODES];

void relay_pass_forget(relay *r, const void *message, size_t len);

/* ---- shared by the handlers: nodes.c ---- */

/* Have memory filled from the database, by the control plane. 0 or an errno. No lock is held. */
int load_inode(relay *r, uint64_t ino);
int load_directory(relay *r, uint64_t ino);
/* The inode with known attributes, pinned; loads it if need be. 0 or -errno. The lock is not held before or after. */
int node_get(request *req, uint64_t ino, inode **out);
/* Make attributes what the mount's view shows. */
void view_attr(const relay *r, struct fuse_attr *attr);
/* The last one to let go of an inode without names and lookups deletes it. */
void node_put(relay *r, inode *node);
/* With the lock held: pin an inode, known or not, so that it stays once it is loaded (NULL: out of memory); unpin it,
 * and drop it if it was not loaded. */
inode *node_hold(relay *r, uint64_t ino);
void node_let_go(relay *r, inode *node);
/* Delete an inode that has neither name nor user; lock held, given back. `node` is not pinned by the caller. */
void delete_unused(relay *r, inode *node);
void fill_attr(const relay *r, const inode *node, struct fuse_attr *out);
void fill_entry(const relay *r, const inode *node, struct fuse_entry_out *out);
int64_t now_ns(void);
static inline uint8_t type_of(uint32_t mode)
{
    return (uint8_t)((mode >> 12) & 15);
}
/* 0, or -errno when nothing can be changed. */
int check_change(request *req);

/* ---- contents: content.c ---- */

/* The tree of a pinned regular file, made if need be. */
int content_tree(relay *r, inode *node, tree **out);
/* Seal what is dirty, note the root. 0 or -errno. */
int content_flush(relay *r, inode *node);
/* Leave what changed to the intent log if it is little; otherwise flush. 0 or -errno. */
int content_prepare_log(relay *r, inode *node);

/* What the intent log is to have of one content: everything since it, or a flush, last had it. */
struct log_piece {
    uint64_t ino;
    captured what;
};
/* Take the changes of these contents and everything that the database does not have, as of one instant. *complete:
 * not when some content changed too much; it must be flushed then. 0, or -1 when out of memory: what was taken of
 * contents is lost to the log, and flushing them makes up for it. */
int content_take_log(relay *r, const uint64_t *inos, size_t count, log_piece *pieces, size_t *piece_count,
                     bool *complete, drained *rows);
/* The same for a record that the lane writes, if it may take something and all of it is told by rows and pieces. */
typedef enum {
    TAKE_NOTHING = 0, /* it is the caller's to do */
    TAKE_ALL,         /* pieces are the caller's to clear; rows are encoded in the lane, and kept for the next drain */
    TAKE_LOST,        /* what was taken is not whole: only a root record has it all */
} taking;
taking content_take_for_lane(relay *r, const uint64_t *inos, size_t count, log_piece *pieces, size_t *piece_count,
                             bool *has_rows);
/* Flush these contents; the first errno, negative. */
int content_flush_these(relay *r, const uint64_t *inos, size_t count);
/* All that changed; the first errno, negative. */
int content_flush_all(relay *r);
/* Flush contents while more than `bytes` are dirty in all. */
void content_relieve(relay *r, uint64_t bytes);
/* Free every slot of an inode that is deleted; `node` is pinned. `gate` is held for reading. */
void content_destroy(relay *r, inode *node);
/* Clear set-user-id and set-group-id as a write, truncation or change of owner by this caller does. Lock held. */
/* Attributes of a directory go to the kernel, for thread `pid` (0: not known). The kernel takes them over when that thread
 * runs again; if the directory changes before, and is changed by another thread, they would stay there for an hour. So who
 * changes it looks whether somebody was told of late, and then has the kernel forget: DATAPLANE.md. Lock held. */
void attr_told_lock_held(inode *node, uint32_t pid);
/* Is the kernel to forget what it was told? Asked at a change by thread `pid`. Lock held. */
bool attr_stale_lock_held(inode *node, uint32_t pid);
bool kill_privileges(request *req, inode *node);
/* A change of content or names; ctime never goes back. */
void set_times(inode *node, int64_t now);
/* May it have security.capability? Lock held. */
static inline bool capability_due_lock_held(const inode *node)
{
    return !node->no_xattrs && !node->no_capability;
}
void drop_capability(request *req, inode *node);
/* Is it a regular file? That never changes. */
bool node_is_file(relay *r, const inode *node);
void touch_atime_lock_held(relay *r, inode *node);

#endif
