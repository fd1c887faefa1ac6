/* iotrace: record, in order, what a process does to the files below one directory, and make chosen calls fail.
 * It does not rebuild disks from what it records: tests/support/iotrace.py does.
 *
 * LD_PRELOAD library.  Build: gcc -shared -fPIC -O2 iotrace.c -o iotrace.so -pthread
 *
 *   FSPF_TRACE_ROOT   directory; calls on files below it are seen (by resolved path, so any route to the file counts)
 *   FSPF_TRACE_FILE   frames are appended here; must not lie below the root.  Without it only faults are injected.
 *   FSPF_FAULT        rules, see iotrace_fault()
 *
 * Every call is carried out by a raw system call, so nothing here can recurse.  Calls that change something are
 * carried out and recorded under one lock: the order in the trace is an order that happened.  fsync and fdatasync run
 * outside the lock, between a SYNC_BEGIN and a SYNC_END frame: only what stands before the former is made durable.
 * Not seen: mmap stores, stdio's own writes, io_uring, raw syscall().  A writable shared mapping (but of SQLite's
 * -shm), O_TMPFILE, copy_file_range, sendfile and splice are recorded as UNSUPPORTED, and the parser refuses such a
 * trace.
 */
#define _GNU_SOURCE
/* Both the plain and the …64 names are defined here, so neither may be an alias of the other. */
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAGIC 0x52544f49u /* "IOTR" */

enum op { /* the numbers are in iotrace.py too */
    OP_WRITE = 1,    /* offset, data */
    OP_TRUNCATE,     /* offset = new size */
    OP_FALLOCATE,    /* offset, arg = length, flags = mode */
    OP_SYNC_BEGIN,   /* arg = number of the sync */
    OP_SYNC_END,     /* arg = the same number; result 0 or -1 */
    OP_CREATE,       /* a file that was not there: ino, path, arg = mode */
    OP_MKDIR,
    OP_RENAME,       /* path -> path2, flags; ino of what moved */
    OP_UNLINK,
    OP_RMDIR,
    OP_LINK,         /* path2 is the new name of ino */
    OP_SYMLINK,      /* path2 holds the target */
    OP_SYNC_ALL,     /* sync, syncfs */
    OP_MARK,         /* path holds the label */
    OP_FAULT,        /* a rule fired: path = file, arg = errno, path2 = rule */
    OP_UNSUPPORTED,  /* path2 says what */
};

struct frame {
    uint32_t magic;
    uint16_t op;
    uint16_t path_len;
    uint16_t path2_len;
    uint16_t flags;
    uint32_t pid;
    uint64_t ino;
    int64_t offset;
    uint64_t arg;
    uint64_t data_len;
    uint64_t time_ns; /* CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct frame) == 56, "frame layout is shared with iotrace.py");

/* ------------------------------------------------------------------------------------------------ state */

#define MAX_RULES 16

struct rule {
    char op[24];
    char path[256];
    long nth;       /* the nth matching call fires, counted from 1 */
    int error;      /* errno; 0 with short_len >= 0: a short write */
    int sticky;     /* every later matching call fires too */
    int die;        /* 1: SIGKILL, 2: _exit(99) */
    int after;      /* the call is carried out first */
    long short_len; /* -1: no short write */
    long hits;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* orders calls and frames; guards everything below */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char root[PATH_MAX];
static size_t root_len;
static int trace_fd = -1;
static uint64_t sync_number;
static struct rule rules[MAX_RULES];
static int rule_count;
static int reads_matter; /* some rule is about reads: otherwise reads are not even looked at */

static void lock_before_fork(void) { pthread_mutex_lock(&lock); }
static void unlock_after_fork(void) { pthread_mutex_unlock(&lock); }

static int set_rules_lock_held(const char *spec);

static void start(void)
{
    const char *directory = getenv("FSPF_TRACE_ROOT");
    const char *file = getenv("FSPF_TRACE_FILE");
    const char *fault = getenv("FSPF_FAULT");
    if (directory != NULL && realpath(directory, root) != NULL) {
        root_len = strlen(root);
    }
    if (file != NULL && *file != '\0') {
        /* A high number: programs that close or count low descriptors are not disturbed. */
        int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd >= 0) {
            trace_fd = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 700);
            if (trace_fd < 0) {
                trace_fd = fd;
            } else {
                syscall(SYS_close, fd);
            }
        }
    }
    if (fault != NULL && set_rules_lock_held(fault) < 0) {
        fprintf(stderr, "iotrace: FSPF_FAULT is not understood: %s\n", fault);
        _exit(98);
    }
    pthread_atfork(lock_before_fork, unlock_after_fork, unlock_after_fork);
}

static inline void ready(void) { pthread_once(&once, start); }

/* ------------------------------------------------------------------------------------------------ paths */

/* Path relative to the root, "" for the root itself; NULL if it lies elsewhere. */
static const char *below(const char *path)
{
    if (root_len == 0 || strncmp(path, root, root_len) != 0) {
        return NULL;
    }
    if (path[root_len] == '\0') {
        return path + root_len;
    }
    return path[root_len] == '/' ? path + root_len + 1 : NULL;
}

/* Where an open descriptor leads; buffer holds PATH_MAX. */
static const char *fd_path(int fd, char *buffer)
{
    char link[32];
    if (root_len == 0 || fd < 0 || fd == trace_fd) {
        return NULL;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (n <= 0) {
        return NULL;
    }
    buffer[n] = '\0';
    return below(buffer);
}

/* Where a path leads, its last component left as it is; buffer holds PATH_MAX. */
static const char *name_path(int dirfd, const char *path, char *buffer)
{
    char parent[PATH_MAX];
    char resolved[PATH_MAX];
    if (root_len == 0 || path == NULL) {
        return NULL;
    }
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') {
        len--;
    }
    if (len == 0 || len >= sizeof parent) {
        return NULL;
    }
    memcpy(parent, path, len);
    parent[len] = '\0';
    char *slash = strrchr(parent, '/');
    const char *last = path;
    size_t last_len = len;
    const char *directory = ".";
    if (slash != NULL) {
        last = path + (slash - parent) + 1;
        last_len = len - (size_t)(slash - parent) - 1;
        *slash = '\0';
        directory = slash == parent ? "/" : parent;
    }
    int fd = (int)syscall(SYS_openat, dirfd, directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) {
        return NULL;
    }
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, resolved, sizeof resolved - 1);
    syscall(SYS_close, fd);
    if (n <= 0 || (size_t)n + 1 + last_len >= PATH_MAX) {
        return NULL;
    }
    resolved[n] = '\0';
    size_t at = n == 1 ? 0 : (size_t)n; /* "/" itself ends in the separator already */
    memcpy(buffer, resolved, at);
    buffer[at] = '/';
    memcpy(buffer + at + 1, last, last_len);
    buffer[at + 1 + last_len] = '\0';
    return below(buffer);
}

static uint64_t ino_of_fd(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 ? (uint64_t)st.st_ino : 0;
}

static uint64_t ino_of_name(int dirfd, const char *path)
{
    struct stat st;
    return fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 ? (uint64_t)st.st_ino : 0;
}

/* ------------------------------------------------------------------------------------------------ frames */

static void put_all(const struct iovec *parts, int count)
{
    size_t total = 0;
    for (int i = 0; i < count; i++) {
        total += parts[i].iov_len;
    }
    ssize_t n = syscall(SYS_writev, trace_fd, parts, count);
    if (n != (ssize_t)total) {
        fprintf(stderr, "iotrace: the trace could not be written\n"); /* a trace with a gap proves nothing */
        _exit(98);
    }
}

static void record_lock_held(enum op op, const char *path, const char *path2, uint64_t ino, int64_t offset, uint64_t arg,
                             uint16_t flags, const struct iovec *data, int data_count, size_t data_len)
{
    struct iovec parts[3 + 64];
    struct timespec now;
    if (trace_fd < 0) {
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct frame frame = {
        .magic = MAGIC,
        .op = (uint16_t)op,
        .path_len = (uint16_t)strlen(path),
        .path2_len = (uint16_t)(path2 != NULL ? strlen(path2) : 0),
        .flags = flags,
        .pid = (uint32_t)getpid(),
        .ino = ino,
        .offset = offset,
        .arg = arg,
        .data_len = data_len,
        .time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
    };
    char *joined = NULL;
    int count = 0;
    parts[count++] = (struct iovec){&frame, sizeof frame};
    parts[count++] = (struct iovec){(void *)path, frame.path_len};
    parts[count++] = (struct iovec){(void *)path2, frame.path2_len};
    size_t left = data_len; /* of a short write only what was written */
    if (data_count <= 64) {
        for (int i = 0; i < data_count && left > 0; i++) {
            size_t take = data[i].iov_len < left ? data[i].iov_len : left;
            parts[count++] = (struct iovec){data[i].iov_base, take};
            left -= take;
        }
    } else {
        joined = malloc(data_len);
        size_t at = 0;
        for (int i = 0; joined != NULL && i < data_count && left > 0; i++) {
            size_t take = data[i].iov_len < left ? data[i].iov_len : left;
            memcpy(joined + at, data[i].iov_base, take);
            at += take;
            left -= take;
        }
        parts[count++] = (struct iovec){joined, at};
    }
    put_all(parts, count);
    free(joined);
}

static void record_path_lock_held(enum op op, const char *path, const char *path2, uint64_t ino, uint64_t arg, uint16_t flags)
{
    record_lock_held(op, path, path2, ino, 0, arg, flags, NULL, 0, 0);
}

/* ------------------------------------------------------------------------------------------------ faults */

static const struct {
    const char *name;
    int number;
} ERRORS[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS},   {"EACCES", EACCES}, {"EPERM", EPERM},
              {"EINTR", EINTR},   {"EMFILE", EMFILE}, {"ENFILE", ENFILE}, {"ENOMEM", ENOMEM}, {"EFBIG", EFBIG},   {"ENOENT", ENOENT},
              {"EAGAIN", EAGAIN}, {"EINVAL", EINVAL}, {"ESTALE", ESTALE}, {"EOPNOTSUPP", EOPNOTSUPP}};

static int parse_error(const char *text, struct rule *rule)
{
    if (strcmp(text, "kill") == 0 || strcmp(text, "KILL") == 0) {
        rule->die = 1;
        return 0;
    }
    if (strcmp(text, "exit") == 0 || strcmp(text, "EXIT") == 0) {
        rule->die = 2;
        return 0;
    }
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++) {
        if (strcmp(text, ERRORS[i].name) == 0) {
            rule->error = ERRORS[i].number;
            return 0;
        }
    }
    rule->error = atoi(text);
    return rule->error > 0 ? 0 : -1;
}

static int set_rules_lock_held(const char *spec)
{
    static const char *const OPS[] = {"write", "fsync", "truncate", "fallocate", "open", "create", "rename",
                                      "unlink", "mkdir", "link", "read", "any"};
    char copy[4096];
    char *outer = NULL;
    struct rule parsed[MAX_RULES];
    int count = 0;
    if (spec == NULL) {
        spec = "";
    }
    if (strlen(spec) >= sizeof copy) {
        return -1;
    }
    strcpy(copy, spec);
    for (char *text = strtok_r(copy, ";", &outer); text != NULL; text = strtok_r(NULL, ";", &outer)) {
        struct rule rule = {.nth = 1, .short_len = -1};
        char *inner = NULL;
        if (count == MAX_RULES) {
            return -1;
        }
        for (char *item = strtok_r(text, ",", &inner); item != NULL; item = strtok_r(NULL, ",", &inner)) {
            if (strncmp(item, "op=", 3) == 0 && strlen(item + 3) < sizeof rule.op) {
                strcpy(rule.op, item + 3);
            } else if (strncmp(item, "path=", 5) == 0 && strlen(item + 5) < sizeof rule.path) {
                strcpy(rule.path, item + 5);
            } else if (strncmp(item, "nth=", 4) == 0 && atol(item + 4) > 0) {
                rule.nth = atol(item + 4);
            } else if (strncmp(item, "short=", 6) == 0 && atol(item + 6) >= 0) {
                rule.short_len = atol(item + 6);
            } else if (strcmp(item, "sticky") == 0) {
                rule.sticky = 1;
            } else if (strcmp(item, "after") == 0) {
                rule.after = 1;
            } else if (strncmp(item, "errno=", 6) != 0 || parse_error(item + 6, &rule) != 0) {
                return -1;
            }
        }
        int known = 0;
        for (size_t i = 0; i < sizeof OPS / sizeof *OPS; i++) {
            known |= strcmp(rule.op, OPS[i]) == 0;
        }
        if (!known || (rule.error == 0 && rule.die == 0 && rule.short_len < 0) || (rule.after && rule.die == 0)) {
            return -1;
        }
        parsed[count++] = rule;
    }
    reads_matter = 0;
    for (int i = 0; i < count; i++) {
        rules[i] = parsed[i];
        reads_matter |= strcmp(parsed[i].op, "read") == 0;
    }
    rule_count = count;
    return count;
}

static void die(int how)
{
    if (how == 1) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) {
            pause();
        }
    }
    _exit(99);
}

/* What shall happen to this call: 0 nothing, else an errno; a short length through *short_len (-1 none); *after: die
 * once it is done. */
static int fault_lock_held(const char *op, const char *path, long *short_len, int *after)
{
    int error = 0;
    *short_len = -1;
    *after = 0;
    for (int i = 0; i < rule_count; i++) {
        struct rule *rule = &rules[i];
        int any = strcmp(rule->op, "any") == 0 && strcmp(op, "read") != 0;
        if ((!any && strcmp(rule->op, op) != 0) || (rule->path[0] != '\0' && strstr(path, rule->path) == NULL)) {
            continue;
        }
        rule->hits++;
        if (error != 0 || !(rule->sticky ? rule->hits >= rule->nth : rule->hits == rule->nth)) {
            continue;
        }
        record_path_lock_held(OP_FAULT, path, rule->op, 0, (uint64_t)rule->error, (uint16_t)rule->die);
        if (rule->die != 0 && rule->after) {
            *after = rule->die;
        } else if (rule->die != 0 && rule->short_len < 0) {
            die(rule->die);
        } else if (rule->short_len >= 0) {
            *short_len = rule->short_len; /* with kill: that much is written, then the end */
            *after = rule->die;
            if (rule->die == 0 && rule->error != 0) {
                error = rule->error;
                *short_len = -1;
            }
        } else {
            error = rule->error;
        }
    }
    return error;
}

/* ------------------------------------------------------------------------------------------------ exported to tests */

EXPORT int iotrace_mark(const char *label)
{
    ready();
    pthread_mutex_lock(&lock);
    record_path_lock_held(OP_MARK, label, NULL, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return trace_fd >= 0;
}

/* Set rules, separated by ';':  op=write,nth=17,errno=ENOSPC[,sticky][,path=SUBSTRING][,short=BYTES][,after]
 *   op     write fsync truncate fallocate open create rename unlink mkdir link read any (all but reads)
 *   errno  a name, a number, kill (SIGKILL) or exit (_exit(99)); with `after` once the call is done
 *   short  write only so many bytes (and then die, if errno=kill)
 * Counts start again.  "" or NULL: none.  The number of rules, or -1: not understood, nothing changed. */
EXPORT int iotrace_fault(const char *spec)
{
    ready();
    pthread_mutex_lock(&lock);
    int result = set_rules_lock_held(spec);
    pthread_mutex_unlock(&lock);
    return result;
}

/* How many calls rule `index` has matched, fired or not. */
EXPORT long iotrace_hits(int index)
{
    ready();
    pthread_mutex_lock(&lock);
    long hits = index >= 0 && index < rule_count ? rules[index].hits : -1;
    pthread_mutex_unlock(&lock);
    return hits;
}

/* ------------------------------------------------------------------------------------------------ reading: faults only */

static int read_fault(int fd)
{
    char buffer[PATH_MAX];
    long short_len = -1;
    int after = 0;
    int error = 0;
    ready();
    if (!__atomic_load_n(&reads_matter, __ATOMIC_RELAXED)) {
        return 0;
    }
    const char *path = fd_path(fd, buffer);
    if (path != NULL) {
        pthread_mutex_lock(&lock);
        error = fault_lock_held("read", path, &short_len, &after);
        pthread_mutex_unlock(&lock);
    }
    return error;
}

#define READ(fd, call)                                                                                                  \
    do {                                                                                                                \
        int error = read_fault(fd);                                                                                     \
        if (error != 0) {                                                                                               \
            errno = error;                                                                                              \
            return -1;                                                                                                  \
        }                                                                                                               \
        return call;                                                                                                    \
    } while (0)

EXPORT ssize_t read(int fd, void *data, size_t len) { READ(fd, syscall(SYS_read, fd, data, len)); }
EXPORT ssize_t pread(int fd, void *data, size_t len, off_t at) { READ(fd, syscall(SYS_pread64, fd, data, len, at)); }
EXPORT ssize_t pread64(int fd, void *data, size_t len, off64_t at) { READ(fd, syscall(SYS_pread64, fd, data, len, at)); }
EXPORT ssize_t readv(int fd, const struct iovec *v, int n) { READ(fd, syscall(SYS_readv, fd, v, n)); }
EXPORT ssize_t preadv(int fd, const struct iovec *v, int n, off_t at) { READ(fd, syscall(SYS_preadv, fd, v, n, at, 0)); }
EXPORT ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t at) { READ(fd, syscall(SYS_preadv, fd, v, n, at, 0)); }
EXPORT ssize_t preadv2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    READ(fd, syscall(SYS_preadv2, fd, v, n, at, 0, flags));
}
EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t at, int flags)
{
    READ(fd, syscall(SYS_preadv2, fd, v, n, at, 0, flags));
}

/* ------------------------------------------------------------------------------------------------ writing */

/* Carry out a write of `count` parts at `at` (-1: at the file's own position), record what was written. */
static ssize_t do_write(int fd, const struct iovec *v, int count, off64_t at, int flags)
{
    char buffer[PATH_MAX];
    struct iovec cut[64];
    long short_len = -1;
    int after = 0;
    ready();
    const char *path = fd_path(fd, buffer);
    if (path == NULL) {
        return flags != 0 ? syscall(SYS_pwritev2, fd, v, count, at, 0, flags)
                          : at < 0 ? syscall(SYS_writev, fd, v, count) : syscall(SYS_pwritev, fd, v, count, at, 0);
    }
    pthread_mutex_lock(&lock);
    int error = fault_lock_held("write", path, &short_len, &after);
    if (error != 0) {
        pthread_mutex_unlock(&lock);
        errno = error;
        return -1;
    }
    if (short_len >= 0) {
        size_t left = (size_t)short_len;
        int n = 0;
        for (; n < count && n < 64 && left > 0; n++) {
            cut[n] = v[n];
            if (cut[n].iov_len > left) {
                cut[n].iov_len = left;
            }
            left -= cut[n].iov_len;
        }
        v = cut;
        count = n;
    }
    ssize_t n = 0;
    if (count > 0) {
        n = flags != 0 ? syscall(SYS_pwritev2, fd, v, count, at, 0, flags)
                       : at < 0 ? syscall(SYS_writev, fd, v, count) : syscall(SYS_pwritev, fd, v, count, at, 0);
    }
    int saved = errno;
    if (n > 0) {
        struct stat st;
        memset(&st, 0, sizeof st);
        fstat(fd, &st);
        if (S_ISREG(st.st_mode)) {
            off64_t where = at;
            long mode = syscall(SYS_fcntl, fd, F_GETFL);
            if (at >= 0 && (mode & O_APPEND) != 0) {
                where = st.st_size - n; /* Linux: O_APPEND wins over the offset of pwrite */
            } else if (at < 0) {
                where = syscall(SYS_lseek, fd, 0, SEEK_CUR) - n;
            }
            record_lock_held(OP_WRITE, path, NULL, (uint64_t)st.st_ino, where, 0, 0, v, count, (size_t)n);
            if ((mode & (O_SYNC | O_DSYNC)) != 0 || (flags & (RWF_SYNC | RWF_DSYNC)) != 0) {
                uint64_t number = ++sync_number;
                record_path_lock_held(OP_SYNC_BEGIN, path, NULL, (uint64_t)st.st_ino, number, 0);
                record_path_lock_held(OP_SYNC_END, path, NULL, (uint64_t)st.st_ino, number, 0);
            }
        }
    }
    if (after != 0) {
        die(after);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return n;
}

EXPORT ssize_t write(int fd, const void *data, size_t len)
{
    struct iovec v = {(void *)data, len};
    ready();
    if (root_len == 0) {
        return syscall(SYS_write, fd, data, len);
    }
    return do_write(fd, &v, 1, -1, 0);
}
EXPORT ssize_t pwrite(int fd, const void *data, size_t len, off_t at)
{
    struct iovec v = {(void *)data, len};
    if (at < 0) {
        errno = EINVAL;
        return -1;
    }
    return do_write(fd, &v, 1, at, 0);
}
EXPORT ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at)
{
    struct iovec v = {(void *)data, len};
    if (at < 0) {
        errno = EINVAL;
        return -1;
    }
    return do_write(fd, &v, 1, at, 0);
}
EXPORT ssize_t writev(int fd, const struct iovec *v, int n) { return do_write(fd, v, n, -1, 0); }
EXPORT ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return do_write(fd, v, n, at, 0); }
EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) { return do_write(fd, v, n, at, 0); }
EXPORT ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int flags) { return do_write(fd, v, n, at, flags); }
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t at, int flags) { return do_write(fd, v, n, at, flags); }

static void unsupported(const char *path, const char *what)
{
    pthread_mutex_lock(&lock);
    record_path_lock_held(OP_UNSUPPORTED, path, what, 0, 0, 0);
    pthread_mutex_unlock(&lock);
}

EXPORT ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = fd_path(out, buffer);
    if (path != NULL) {
        unsupported(path, "copy_file_range");
    }
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, len, flags);
}

static ssize_t do_sendfile(int out, int in, off64_t *at, size_t len)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = fd_path(out, buffer);
    if (path != NULL) {
        unsupported(path, "sendfile");
    }
    return syscall(SYS_sendfile, out, in, at, len);
}
EXPORT ssize_t sendfile(int out, int in, off_t *at, size_t len) { return do_sendfile(out, in, (off64_t *)at, len); }
EXPORT ssize_t sendfile64(int out, int in, off64_t *at, size_t len) { return do_sendfile(out, in, at, len); }

EXPORT ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = fd_path(out, buffer);
    if (path != NULL) {
        unsupported(path, "splice");
    }
    return syscall(SYS_splice, in, in_at, out, out_at, len, flags);
}

static void *do_mmap(void *address, size_t len, int protection, int flags, int fd, off64_t at)
{
    char buffer[PATH_MAX];
    if (fd >= 0 && (flags & MAP_TYPE) != MAP_PRIVATE && (protection & PROT_WRITE) != 0) {
        ready();
        const char *path = fd_path(fd, buffer);
        size_t length = path != NULL ? strlen(path) : 0;
        /* SQLite's wal-index is rebuilt from the log after a crash: what it holds does not matter. */
        if (path != NULL && (length < 4 || strcmp(path + length - 4, "-shm") != 0)) {
            unsupported(path, "mmap");
        }
    }
    return (void *)syscall(SYS_mmap, address, len, protection, flags, fd, at);
}
EXPORT void *mmap(void *address, size_t len, int protection, int flags, int fd, off_t at)
{
    return do_mmap(address, len, protection, flags, fd, at);
}
EXPORT void *mmap64(void *address, size_t len, int protection, int flags, int fd, off64_t at)
{
    return do_mmap(address, len, protection, flags, fd, at);
}

/* ------------------------------------------------------------------------------------------------ sync */

static int do_sync(int fd, long number_of_call)
{
    char buffer[PATH_MAX];
    long short_len = -1;
    int after = 0;
    ready();
    const char *path = fd_path(fd, buffer);
    if (path == NULL) {
        return (int)syscall(number_of_call, fd);
    }
    pthread_mutex_lock(&lock);
    int error = fault_lock_held("fsync", path, &short_len, &after);
    if (error != 0) {
        pthread_mutex_unlock(&lock);
        errno = error;
        return -1;
    }
    uint64_t ino = ino_of_fd(fd);
    uint64_t number = ++sync_number;
    record_path_lock_held(OP_SYNC_BEGIN, path, NULL, ino, number, 0);
    pthread_mutex_unlock(&lock);

    int result = (int)syscall(number_of_call, fd); /* others may write meanwhile: it does not cover them */

    int saved = errno;
    pthread_mutex_lock(&lock);
    record_lock_held(OP_SYNC_END, path, NULL, ino, result, number, 0, NULL, 0, 0);
    if (after != 0) {
        die(after);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
EXPORT int fsync(int fd) { return do_sync(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

/* sync_file_range promises nothing about metadata or the disk's cache: seen, injected into, not a barrier. */
EXPORT int sync_file_range(int fd, off64_t at, off64_t len, unsigned flags)
{
    char buffer[PATH_MAX];
    long short_len = -1;
    int after = 0;
    ready();
    const char *path = fd_path(fd, buffer);
    if (path != NULL) {
        pthread_mutex_lock(&lock);
        int error = fault_lock_held("fsync", path, &short_len, &after);
        pthread_mutex_unlock(&lock);
        if (error != 0) {
            errno = error;
            return -1;
        }
    }
    return (int)syscall(SYS_sync_file_range, fd, at, len, flags);
}

EXPORT int syncfs(int fd)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = fd_path(fd, buffer);
    int result = (int)syscall(SYS_syncfs, fd);
    if (path != NULL && result == 0) {
        pthread_mutex_lock(&lock);
        record_path_lock_held(OP_SYNC_ALL, path, NULL, 0, 0, 0);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

EXPORT void sync(void)
{
    ready();
    syscall(SYS_sync);
    pthread_mutex_lock(&lock);
    record_path_lock_held(OP_SYNC_ALL, "", NULL, 0, 0, 0);
    pthread_mutex_unlock(&lock);
}

/* ------------------------------------------------------------------------------------------------ size */

static int do_ftruncate(int fd, off64_t size)
{
    char buffer[PATH_MAX];
    long short_len = -1;
    int after = 0;
    ready();
    const char *path = fd_path(fd, buffer);
    if (path == NULL) {
        return (int)syscall(SYS_ftruncate, fd, size);
    }
    pthread_mutex_lock(&lock);
    int error = fault_lock_held("truncate", path, &short_len, &after);
    int result = -1;
    if (error == 0) {
        result = (int)syscall(SYS_ftruncate, fd, size);
        error = errno;
        if (result == 0) {
            record_lock_held(OP_TRUNCATE, path, NULL, ino_of_fd(fd), size, 0, 0, NULL, 0, 0);
        }
        if (after != 0) {
            die(after);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
EXPORT int ftruncate(int fd, off_t size) { return do_ftruncate(fd, size); }
EXPORT int ftruncate64(int fd, off64_t size) { return do_ftruncate(fd, size); }

static int do_truncate(const char *name, off64_t size)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    int result = do_ftruncate(fd, size);
    int saved = errno;
    syscall(SYS_close, fd);
    errno = saved;
    return result;
}
EXPORT int truncate(const char *name, off_t size) { return do_truncate(name, size); }
EXPORT int truncate64(const char *name, off64_t size) { return do_truncate(name, size); }

static int do_fallocate(int fd, int mode, off64_t at, off64_t len)
{
    char buffer[PATH_MAX];
    long short_len = -1;
    int after = 0;
    ready();
    const char *path = fd_path(fd, buffer);
    if (path == NULL) {
        return (int)syscall(SYS_fallocate, fd, mode, at, len);
    }
    pthread_mutex_lock(&lock);
    int error = fault_lock_held("fallocate", path, &short_len, &after);
    int result = -1;
    if (error == 0) {
        result = (int)syscall(SYS_fallocate, fd, mode, at, len);
        error = errno;
        if (result == 0) {
            record_lock_held(OP_FALLOCATE, path, NULL, ino_of_fd(fd), at, (uint64_t)len, (uint16_t)mode, NULL, 0, 0);
        }
        if (after != 0) {
            die(after);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
EXPORT int fallocate(int fd, int mode, off_t at, off_t len) { return do_fallocate(fd, mode, at, len); }
EXPORT int fallocate64(int fd, int mode, off64_t at, off64_t len) { return do_fallocate(fd, mode, at, len); }
EXPORT int posix_fallocate(int fd, off_t at, off_t len) { return do_fallocate(fd, 0, at, len) == 0 ? 0 : errno; }
EXPORT int posix_fallocate64(int fd, off64_t at, off64_t len) { return do_fallocate(fd, 0, at, len) == 0 ? 0 : errno; }

/* ------------------------------------------------------------------------------------------------ opening */

static int do_open(int dirfd, const char *name, int flags, unsigned mode)
{
    char buffer[PATH_MAX];
    long short_len = -1;
    int after = 0;
    ready();
    if (root_len == 0 || ((flags & (O_CREAT | O_TRUNC)) == 0 && rule_count == 0 && (flags & O_TMPFILE) != O_TMPFILE)) {
        return (int)syscall(SYS_openat, dirfd, name, flags, mode);
    }
    const char *path = name_path(dirfd, name, buffer);
    if (path == NULL) {
        return (int)syscall(SYS_openat, dirfd, name, flags, mode);
    }
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        unsupported(path, "O_TMPFILE");
    }
    pthread_mutex_lock(&lock);
    int existed = ino_of_name(dirfd, name) != 0;
    int creates = (flags & O_CREAT) != 0 && !existed;
    int error = fault_lock_held("open", path, &short_len, &after);
    if (error == 0 && creates) {
        error = fault_lock_held("create", path, &short_len, &after);
    }
    int fd = -1;
    if (error == 0) {
        fd = (int)syscall(SYS_openat, dirfd, name, flags, mode);
        error = errno;
        if (fd >= 0 && creates) {
            record_path_lock_held(OP_CREATE, path, NULL, ino_of_fd(fd), mode, 0);
        } else if (fd >= 0 && (flags & O_TRUNC) != 0) {
            char real[PATH_MAX]; /* the name may have been a symbolic link */
            const char *target = fd_path(fd, real);
            if (target != NULL) {
                record_lock_held(OP_TRUNCATE, target, NULL, ino_of_fd(fd), 0, 0, 0, NULL, 0, 0);
            }
        }
        if (after != 0) {
            die(after);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE_OF(flags)                                                                                                  \
    unsigned mode = 0;                                                                                                  \
    if (((flags) & O_CREAT) != 0 || ((flags) & O_TMPFILE) == O_TMPFILE) {                                               \
        va_list list;                                                                                                   \
        va_start(list, flags);                                                                                          \
        mode = va_arg(list, unsigned);                                                                                  \
        va_end(list);                                                                                                   \
    }

EXPORT int open(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return do_open(AT_FDCWD, name, flags, mode);
}
EXPORT int open64(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return do_open(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
EXPORT int openat(int dirfd, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return do_open(dirfd, name, flags, mode);
}
EXPORT int openat64(int dirfd, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return do_open(dirfd, name, flags | O_LARGEFILE, mode);
}
EXPORT int creat(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int __open_2(const char *name, int flags) { return do_open(AT_FDCWD, name, flags, 0); }
EXPORT int __open64_2(const char *name, int flags) { return do_open(AT_FDCWD, name, flags, 0); }
EXPORT int __openat_2(int dirfd, const char *name, int flags) { return do_open(dirfd, name, flags, 0); }
EXPORT int __openat64_2(int dirfd, const char *name, int flags) { return do_open(dirfd, name, flags, 0); }

/* ------------------------------------------------------------------------------------------------ names */

/* One frame for a call on a name; `call` is evaluated under the lock unless a rule forbids it. */
#define NAMED(op_name, op, path, path2, ino, arg, flags, call)                                                          \
    do {                                                                                                                \
        long short_len = -1;                                                                                            \
        int after = 0;                                                                                                  \
        int result = -1;                                                                                                \
        pthread_mutex_lock(&lock);                                                                                      \
        uint64_t number = (ino);                                                                                        \
        int error = fault_lock_held(op_name, path, &short_len, &after);                                                 \
        if (error == 0) {                                                                                               \
            result = (int)(call);                                                                                       \
            error = errno;                                                                                              \
            if (result == 0) {                                                                                          \
                record_path_lock_held(op, path, path2, number, arg, flags);                                             \
            }                                                                                                           \
            if (after != 0) {                                                                                           \
                die(after);                                                                                             \
            }                                                                                                           \
        }                                                                                                               \
        pthread_mutex_unlock(&lock);                                                                                    \
        errno = error;                                                                                                  \
        return result;                                                                                                  \
    } while (0)

static int do_rename(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    char buffer[PATH_MAX];
    char buffer2[PATH_MAX];
    ready();
    const char *path = name_path(from_fd, from, buffer);
    const char *path2 = name_path(to_fd, to, buffer2);
    if (path == NULL && path2 == NULL) {
        return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    }
    if (path == NULL || path2 == NULL) {
        unsupported(path != NULL ? path : path2, "rename across the root");
        return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    }
    NAMED("rename", OP_RENAME, path, path2, ino_of_name(from_fd, from), 0, (uint16_t)flags,
          syscall(SYS_renameat2, from_fd, from, to_fd, to, flags));
}
EXPORT int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
EXPORT int renameat(int f, const char *from, int t, const char *to) { return do_rename(f, from, t, to, 0); }
EXPORT int renameat2(int f, const char *from, int t, const char *to, unsigned flags) { return do_rename(f, from, t, to, flags); }

static int do_unlink(int dirfd, const char *name, int flags)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = name_path(dirfd, name, buffer);
    if (path == NULL) {
        return (int)syscall(SYS_unlinkat, dirfd, name, flags);
    }
    NAMED("unlink", (flags & AT_REMOVEDIR) != 0 ? OP_RMDIR : OP_UNLINK, path, NULL, ino_of_name(dirfd, name), 0, 0,
          syscall(SYS_unlinkat, dirfd, name, flags));
}
EXPORT int unlink(const char *name) { return do_unlink(AT_FDCWD, name, 0); }
EXPORT int unlinkat(int dirfd, const char *name, int flags) { return do_unlink(dirfd, name, flags); }
EXPORT int rmdir(const char *name) { return do_unlink(AT_FDCWD, name, AT_REMOVEDIR); }
EXPORT int remove(const char *name)
{
    int result = do_unlink(AT_FDCWD, name, 0);
    return result != 0 && errno == EISDIR ? do_unlink(AT_FDCWD, name, AT_REMOVEDIR) : result;
}

static int do_mkdir(int dirfd, const char *name, mode_t mode)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = name_path(dirfd, name, buffer);
    if (path == NULL) {
        return (int)syscall(SYS_mkdirat, dirfd, name, mode);
    }
    long short_len = -1;
    int after = 0;
    int result = -1;
    pthread_mutex_lock(&lock);
    int error = fault_lock_held("mkdir", path, &short_len, &after);
    if (error == 0) {
        result = (int)syscall(SYS_mkdirat, dirfd, name, mode);
        error = errno;
        if (result == 0) {
            record_path_lock_held(OP_MKDIR, path, NULL, ino_of_name(dirfd, name), mode, 0);
        }
        if (after != 0) {
            die(after);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}
EXPORT int mkdir(const char *name, mode_t mode) { return do_mkdir(AT_FDCWD, name, mode); }
EXPORT int mkdirat(int dirfd, const char *name, mode_t mode) { return do_mkdir(dirfd, name, mode); }

static int do_link(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    char buffer[PATH_MAX];
    char buffer2[PATH_MAX];
    ready();
    const char *path2 = name_path(to_fd, to, buffer2);
    if (path2 == NULL) {
        return (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    }
    const char *path = name_path(from_fd, from, buffer);
    if (path == NULL || flags != 0) {
        unsupported(path2, "link from elsewhere");
        return (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    }
    NAMED("link", OP_LINK, path, path2, ino_of_name(from_fd, from), 0, 0, syscall(SYS_linkat, from_fd, from, to_fd, to, flags));
}
EXPORT int link(const char *from, const char *to) { return do_link(AT_FDCWD, from, AT_FDCWD, to, 0); }
EXPORT int linkat(int f, const char *from, int t, const char *to, int flags) { return do_link(f, from, t, to, flags); }

static int do_symlink(const char *target, int dirfd, const char *name)
{
    char buffer[PATH_MAX];
    ready();
    const char *path = name_path(dirfd, name, buffer);
    if (path == NULL) {
        return (int)syscall(SYS_symlinkat, target, dirfd, name);
    }
    NAMED("link", OP_SYMLINK, path, target, 0, 0, 0, syscall(SYS_symlinkat, target, dirfd, name));
}
EXPORT int symlink(const char *target, const char *name) { return do_symlink(target, AT_FDCWD, name); }
EXPORT int symlinkat(const char *target, int dirfd, const char *name) { return do_symlink(target, dirfd, name); }
