/* What the mount knows of inodes and names, ahead of the namespace database: attributes, directory entries, lookup
 * counts, open contents, and which of it the database does not have yet (docs/DATAPLANE.md).
 *
 * It is filled from the database by the caller, changed by the kernel's requests, and drained into the database as
 * whole rows. No I/O, no rules of POSIX; thread-safe where a function says so. */
#ifndef FSPF_META_H
#define FSPF_META_H

#include "map64.h"
#include "store.h"
#include "tree.h"

#include <pthread.h>
#include <stdatomic.h>

#define ROOT_INO 1u
#define NAME_MAX_BYTES 255u
#define TOLD_MANY UINT32_MAX
#define TREE_COST 512u /* what a content costs while it is in use, about */

typedef struct inode inode;
typedef struct dentry dentry;

typedef struct {
    uint64_t cookie;
    dentry *name; /* NULL: removed */
} name_place;

struct inode {
    uint64_t ino;
    int64_t atime, mtime, ctime, btime; /* ns since 1970 */
    uint32_t mode, uid, gid, rdev, nlink;
    uint32_t pins; /* requests under way */
    uint32_t told_to; /* of a directory: the thread that was told the attributes; 0 nobody, TOLD_MANY several */
    int64_t told_at;  /* ns since 1970 */
    uint8_t protection;
    bool valid;      /* the attributes are known */
    bool stored;     /* the database has a row */
    bool dirty;      /* the row is not what is here */
    bool no_xattrs;  /* known to have none */
    bool no_capability; /* known not to have that one */
    bool gone;       /* deleted; freed with the last pin */
    bool changed;    /* the tree may be ahead of `root` */
    bool flushing;   /* by one thread: roots are noted in the order in which they were made */
    uint32_t changes; /* of the content, counted */
    bool complete;   /* of a directory: every name is here */
    bool reflushed;  /* `root` is another one than the last drain told */
    content_root root; /* as the row will have it */
    uint64_t chunks;
    uint64_t told_size; /* of the content, as the intent log or `root` has it */
    uint64_t parent; /* of a directory */
    uint8_t *target; /* of a symbolic link */
    uint32_t target_len;
    tree *tree; /* NULL until the content is used */
    name_place *names; /* of a directory: by cookie */
    size_t name_count, name_capacity, live, dirty_names;
    inode *next, *prev;             /* by last use */
    inode *dirty_next, *dirty_prev;
    inode *changed_next, *changed_prev;
};

struct dentry {
    dentry *chain;
    dentry *dirty_next, *dirty_prev;
    inode *dir;
    uint64_t cookie, ino;
    uint32_t hash;
    uint16_t len;
    uint8_t type; /* DT_... */
    bool stored;  /* the database has this cookie */
    bool dirty;
    char name[];
};

typedef struct {
    uint64_t parent, cookie;
} name_key;

typedef struct {
    uint64_t ino;
    bool xattrs;
} inode_key;

typedef struct meta {
    pthread_mutex_t lock;
    /* Readers: whoever flushes a content and notes its root, or destroys one. Writer: a drain, which must not see
     * slots handed over as free whose inode still names them. Taken before `lock`. */
    pthread_rwlock_t gate;
    pthread_cond_t much; /* much is dirty */
    pthread_cond_t flushed; /* some content is not `flushing` any more */
    store *st;
    map64 inodes; /* ino -> inode */
    map64 counts; /* ino -> lookups: all << 32 | those among them that the control plane gave */
    dentry **buckets;
    size_t bucket_count, name_total;
    uint64_t seed;
    inode *newest; /* ring by last use */
    inode *dirty_first;
    dentry *dirty_names;
    inode *changed_first, *changed_last; /* in the order in which they changed */
    name_key *removed; /* names that the database still has */
    size_t removed_count, removed_capacity;
    inode_key *deleted; /* rows that it still has */
    size_t deleted_count, deleted_capacity;
    _Atomic size_t dirty_count;   /* of rows and names, all kinds; read without the lock, too */
    _Atomic size_t changed_count; /* contents; the same */
    size_t bytes, limit;
    _Atomic uint64_t next_ino, next_cookie;
    int64_t files_delta; /* since the last drain */
    _Atomic int64_t bytes_delta; /* the same; read without the lock, too */
    _Atomic int blocked; /* errno for every change, 0 = none */
    _Atomic bool no_space;
    struct drained *recorded_first, *recorded_last; /* what only the intent log has, oldest first: see meta_take_recorded */
    _Atomic size_t recorded_rows;
    uint64_t evictions;
} meta;

int meta_init(meta *m, store *st, size_t limit);
void meta_destroy(meta *m);

/* All of these with `lock` held. */
inode *meta_find(meta *m, uint64_t ino);
/* The inode, made if need be without attributes; NULL when out of memory. Moves it to the front. */
inode *meta_need(meta *m, uint64_t ino);
void meta_pin(inode *node);
/* Frees it if it is gone and this was the last; may return its content to be destroyed. */
void meta_unpin(meta *m, inode *node);
void meta_dirty(meta *m, inode *node);
void meta_changed(meta *m, inode *node);
void meta_unchanged(meta *m, inode *node);
dentry *meta_name(meta *m, const inode *dir, const char *name, size_t len);
/* A new name; NULL when out of memory. */
dentry *meta_add_name(meta *m, inode *dir, uint64_t cookie, const char *name, size_t len, uint64_t ino, uint8_t type,
                      bool stored);
void meta_name_dirty(meta *m, dentry *name);
/* Give a name another text in its place, so that who reads the directory meets it once; the database is told. The new
 * one, or NULL when out of memory. */
dentry *meta_rename_name(meta *m, dentry *name, const char *text, size_t len);
/* Take a name away; the database is told with the next drain when `tell`. */
bool meta_remove_name(meta *m, dentry *name, bool tell);
/* First place in dir->names whose cookie is above. */
size_t meta_first_after(const inode *dir, uint64_t cookie);
/* The inode is deleted: its row goes with the next drain. The caller has taken its tree. */
bool meta_delete(meta *m, inode *node, bool tell);
void meta_drop_names(meta *m, inode *dir);
/* Let go of a content that nobody uses and that is flushed. */
void meta_drop_tree(meta *m, inode *node);
/* Let go of what was not used for long until the memory is below the limit. */
void meta_shrink(meta *m);

uint64_t meta_lookups(meta *m, uint64_t ino);
bool meta_set_lookups(meta *m, uint64_t ino, uint64_t packed);
bool meta_in_use(meta *m, const inode *node);

/* ---- draining: meta_drain.c ---- */

typedef struct {
    uint64_t ino, parent, chunks, size;
    int64_t atime, mtime, ctime, btime;
    uint32_t mode, uid, gid, rdev, nlink, target_len;
    int depth;
    uint8_t protection;
    bool stored, reflushed;
    uint8_t pointer[POINTER_LEN];
    uint8_t *target;
} drained_inode;

typedef struct {
    uint64_t parent, cookie, ino;
    bool stored; /* the database has this cookie already */
    uint16_t len;
    size_t at; /* of the name in `text` */
} drained_name;

typedef struct drained {
    struct drained *next; /* of a list that the intent log has already: all of it is older than this */
    drained_inode *inodes;
    drained_name *names;
    name_key *removed;
    inode_key *deleted;
    char *text;
    size_t inode_count, name_count, removed_count, deleted_count;
    int64_t files_delta, bytes_delta;
    uint64_t next_ino, next_cookie;
} drained;

/* Take everything that the database does not have, as of one instant, and mark the store's frees so far as belonging
 * to it; out->next is to be applied first. -1 when out of memory: nothing was taken. */
int meta_drain(meta *m, drained *out);
/* The same for a caller that has `gate` for writing. */
int meta_drain_gate_held(meta *m, drained *out);
/* Take it for the intent log: it is kept, for the next drain to begin with. *out is NULL if there is nothing, and may be
 * used while the caller has `gate` for writing. -1 when out of memory: nothing was taken. */
int meta_take_recorded_gate_held(meta *m, const drained **out);
/* Are there at most so many rows and names to take, and no new content root among them? The same. */
bool meta_is_little_gate_held(meta *m, size_t most);
size_t drained_rows(const drained *d);
void drained_clear(drained *d);

#endif
