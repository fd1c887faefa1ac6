/* See segments.h. */
#include "segments.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MAX_OPEN 512u
#define MAX_SEGMENT UINT32_MAX
/* Segments are made one after another; a crash can lose some names of the last few. What lies beyond is not ours. */
#define STRAY_GAP 1024u
#define MAX_IOV_CALL 64
#define STREAM_WRITE (256u << 10) /* so much at once belongs to a stream, which will be synced, or is too large to be kept back */

struct segment {
    uint64_t number;
    segment *newer, *older;
    int fd; /* -1: closed */
    uint32_t users;
    bool dirty;
    bool sized; /* has its full length */
};

static uint64_t file_length(const segments *s)
{
    return (uint64_t)s->segment_slots * (s->chunk_size + ENTRY_LEN);
}

static uint64_t entry_offset(const segments *s, uint64_t slot)
{
    return (uint64_t)s->segment_slots * s->chunk_size + (slot & (s->segment_slots - 1)) * ENTRY_LEN;
}

static uint64_t slot_offset(const segments *s, uint64_t slot)
{
    return (slot & (s->segment_slots - 1)) * s->chunk_size;
}

static void name_of(uint64_t number, char name[16])
{
    (void)snprintf(name, 16, "%08x", (unsigned)number);
}

fspf_status segments_open(segments *s, const char *directory, uint32_t chunk_size, uint32_t segment_slots,
                          bool writable, fspf_error *err)
{
    memset(s, 0, sizeof *s);
    s->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (s->directory < 0) {
        return fail_os(err, errno, "segments directory");
    }
    s->chunk_size = chunk_size;
    s->segment_slots = segment_slots;
    s->writable = writable;
    struct rlimit limit;
    s->open_limit = MAX_OPEN;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur / 4 < s->open_limit) {
        s->open_limit = limit.rlim_cur / 4 < 8 ? 8 : (size_t)(limit.rlim_cur / 4);
    }
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_mutex_init(&s->sync_lock, NULL);
    return ST_OK;
}

void segments_close(segments *s)
{
    if (s->directory < 0) {
        return;
    }
    for (size_t i = 0; i < s->table.capacity; i++) {
        if (s->table.keys[i] != MAP64_EMPTY) {
            segment *seg = s->table.values[i];
            if (seg->fd >= 0) {
                (void)close(seg->fd);
            }
            free(seg);
        }
    }
    map64_clear(&s->table);
    s->newest = NULL;
    s->open_count = 0;
    (void)close(s->directory);
    s->directory = -1;
    (void)pthread_mutex_destroy(&s->lock);
    (void)pthread_mutex_destroy(&s->sync_lock);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static bool parse_name(const char *name, uint64_t *number)
{
    *number = 0;
    for (int i = 0; i < 8; i++) {
        char ch = name[i];
        unsigned digit;
        if (ch >= '0' && ch <= '9') {
            digit = (unsigned)(ch - '0');
        } else if (ch >= 'a' && ch <= 'f') {
            digit = (unsigned)(ch - 'a') + 10;
        } else {
            return false;
        }
        *number = *number << 4 | digit;
    }
    return name[8] == '\0';
}

fspf_status segments_scan(segments *s, uint64_t expected, uint64_t *end, fspf_error *err)
{
    fspf_status status = ST_OK;
    uint64_t *numbers = NULL;
    size_t count = 0;
    size_t capacity = 0;
    int fd = openat(s->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        int saved = errno;
        if (fd >= 0) {
            (void)close(fd);
        }
        return fail_os(err, saved, "segments directory");
    }
    for (;;) {
        errno = 0;
        struct dirent *item = readdir(dir);
        uint64_t number;
        if (item == NULL) {
            if (errno != 0) {
                status = fail_os(err, errno, "segments directory");
            }
            break;
        }
        if (!parse_name(item->d_name, &number)) {
            continue;
        }
        if (count == capacity) {
            capacity = capacity ? capacity * 2 : 64;
            uint64_t *bigger = realloc(numbers, capacity * sizeof *bigger);
            if (bigger == NULL) {
                status = ST_NOMEM;
                break;
            }
            numbers = bigger;
        }
        numbers[count++] = number;
    }
    if (status == ST_OK) {
        *end = expected;
        if (count > 0) {
            qsort(numbers, count, sizeof *numbers, compare_u64);
        }
        for (size_t i = 0; i < count && numbers[i] < *end + STRAY_GAP; i++) {
            *end = max_u64(*end, numbers[i] + 1);
        }
    }
    free(numbers);
    (void)closedir(dir);
    return status;
}

/* ---- descriptors ---- */

static void ring_remove_lock_held(segments *s, segment *seg)
{
    if (seg->newer == seg) {
        s->newest = NULL;
    } else {
        seg->newer->older = seg->older;
        seg->older->newer = seg->newer;
        if (s->newest == seg) {
            s->newest = seg->older;
        }
    }
}

static void ring_push_lock_held(segments *s, segment *seg)
{
    if (s->newest == NULL) {
        seg->newer = seg->older = seg;
    } else { /* the ring: newest -> older -> ... -> oldest -> newest */
        seg->older = s->newest;
        seg->newer = s->newest->newer;
        seg->newer->older = seg;
        s->newest->newer = seg;
    }
    s->newest = seg;
}

static void forget_lock_held(segments *s, segment *seg)
{
    if (seg->fd < 0 && !seg->dirty && seg->users == 0) {
        (void)map64_remove(&s->table, seg->number);
        free(seg);
    }
}

/* Close the least recently used one that nobody uses; false if there is none. */
static bool close_one_lock_held(segments *s)
{
    if (s->newest == NULL) {
        return false;
    }
    segment *oldest = s->newest->newer;
    for (segment *seg = oldest;; seg = seg->newer) {
        if (seg->users == 0) {
            ring_remove_lock_held(s, seg);
            (void)close(seg->fd);
            seg->fd = -1;
            s->open_count--;
            forget_lock_held(s, seg);
            return true;
        }
        if (seg->newer == oldest) {
            return false;
        }
    }
}

static int open_file_lock_held(segments *s, uint64_t number, bool create)
{
    char name[16];
    int flags = (s->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    bool raised = false;
    name_of(number, name);
    for (;;) {
        int fd = openat(s->directory, name, flags);
        if (fd < 0 && errno == ENOENT && create) {
            fd = openat(s->directory, name, flags | O_CREAT | O_EXCL, 0600);
            if (fd >= 0) {
                s->directory_dirty = true;
            } else if (errno == EEXIST) {
                continue;
            }
        }
        if (fd >= 0 || (errno != EMFILE && errno != ENFILE && errno != EINTR)) {
            return fd;
        }
        int saved = errno;
        if (saved == EINTR || close_one_lock_held(s)) {
            continue;
        }
        struct rlimit limit;
        if (saved != EMFILE || raised || getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) {
            errno = saved;
            return -1;
        }
        limit.rlim_cur = limit.rlim_max;
        raised = true;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
            errno = saved;
            return -1;
        }
    }
}

/* The host's answers that mean: somebody took the file away. */
static bool means_missing(int os_errno)
{
    return os_errno == ENOENT || os_errno == ELOOP || os_errno == EISDIR || os_errno == ENXIO || os_errno == ENOTDIR;
}

static fspf_status acquire_lock_held(segments *s, uint64_t number, bool write, segment **out, fspf_error *err)
{
    segment *seg = map64_get(&s->table, number);
    if (number > MAX_SEGMENT) {
        err->kind = KIND_MISSING;
        return fail_with(err, ST_DAMAGED, "no such segment");
    }
    if (seg == NULL) {
        if (!map64_reserve(&s->table) || (seg = calloc(1, sizeof *seg)) == NULL) {
            return ST_NOMEM;
        }
        seg->number = number;
        seg->fd = -1;
        map64_put(&s->table, number, seg);
    }
    if (seg->fd < 0) {
        seg->users++; /* keeps it while others are closed */
        while (s->open_count >= s->open_limit && close_one_lock_held(s)) {
        }
        int fd = open_file_lock_held(s, number, write);
        int saved = errno;
        struct stat st;
        seg->users--;
        if (fd >= 0 && (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))) {
            (void)close(fd);
            fd = -1;
            saved = ENXIO;
        }
        if (fd < 0) {
            forget_lock_held(s, seg);
            if (means_missing(saved) && !write) {
                err->kind = KIND_MISSING;
                return fail_with(err, ST_DAMAGED, "the segment file is missing");
            }
            return fail_os(err, saved, "segment file");
        }
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* twice the read-ahead; what is read alone has none */
        seg->fd = fd;
        seg->sized = false;
        ring_push_lock_held(s, seg);
        s->open_count++;
    } else if (s->newest != seg) {
        ring_remove_lock_held(s, seg);
        ring_push_lock_held(s, seg);
    }
    if (write && !seg->sized) {
        struct stat st;
        if (fstat(seg->fd, &st) != 0 ||
            ((uint64_t)st.st_size < file_length(s) && ftruncate(seg->fd, (off_t)file_length(s)) != 0)) {
            return fail_os(err, errno, "segment file");
        }
        seg->sized = true;
        seg->dirty = true;
    }
    seg->users++;
    *out = seg;
    return ST_OK;
}

static fspf_status acquire(segments *s, uint64_t slot, bool write, segment **out, fspf_error *err)
{
    pthread_mutex_lock(&s->lock);
    fspf_status status = acquire_lock_held(s, slot / s->segment_slots, write, out, err);
    pthread_mutex_unlock(&s->lock);
    return status;
}

static void release(segments *s, segment *seg, bool wrote)
{
    pthread_mutex_lock(&s->lock);
    seg->users--;
    if (wrote) {
        seg->dirty = true;
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- I/O ---- */

static void iov_advance(struct iovec **iov, int *count, size_t n)
{
    while (*count > 0 && n >= (*iov)->iov_len) {
        n -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (n > 0) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
        (*iov)->iov_len -= n;
    }
}

static int read_all(segments *s, int fd, uint64_t offset, struct iovec *iov, int count, size_t *got)
{
    *got = 0;
    while (count > 0) {
        ssize_t n = count == 1 ? pread(fd, iov->iov_base, iov->iov_len, (off_t)(offset + *got))
                               : preadv(fd, iov, count < MAX_IOV_CALL ? count : MAX_IOV_CALL, (off_t)(offset + *got));
        atomic_fetch_add_explicit(&s->reads, 1, memory_order_relaxed);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno;
        }
        if (n == 0) {
            break;
        }
        *got += (size_t)n;
        iov_advance(&iov, &count, (size_t)n);
    }
    return 0;
}

static int write_all(segments *s, int fd, uint64_t offset, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = pwrite(fd, data, len, (off_t)offset);
        atomic_fetch_add_explicit(&s->writes, 1, memory_order_relaxed);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno;
        }
        if (n == 0) {
            return EIO;
        }
        data += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

fspf_status segments_read(segments *s, uint64_t slot, struct iovec *iov, int iov_count, size_t *got, fspf_error *err)
{
    segment *seg = NULL;
    *got = 0;
    fspf_status status = acquire(s, slot, false, &seg, err);
    if (status != ST_OK) {
        return status;
    }
    int failed = read_all(s, seg->fd, slot_offset(s, slot), iov, iov_count, got);
    release(s, seg, false);
    return failed ? fail_os(err, failed, "read of a segment") : ST_OK;
}

fspf_status segments_write(segments *s, uint64_t slot, size_t count, const uint8_t *data, const uint8_t *entries,
                           fspf_error *err)
{
    segment *seg = NULL;
    fspf_status status = acquire(s, slot, true, &seg, err);
    if (status != ST_OK) {
        return status;
    }
    int failed = write_all(s, seg->fd, slot_offset(s, slot), data, count * s->chunk_size);
    if (failed == 0) {
        failed = write_all(s, seg->fd, entry_offset(s, slot), entries, count * ENTRY_LEN);
    }
    if (failed == 0 && count * s->chunk_size >= STREAM_WRITE) { /* the disk works while the next blocks are sealed */
        (void)sync_file_range(seg->fd, (off_t)slot_offset(s, slot), (off_t)(count * s->chunk_size), SYNC_FILE_RANGE_WRITE);
    }
    release(s, seg, true);
    return failed ? fail_os(err, failed, "write to a segment") : ST_OK;
}

fspf_status segments_read_entry(segments *s, uint64_t slot, uint8_t *entry, fspf_error *err)
{
    segment *seg = NULL;
    size_t got = 0;
    memset(entry, 0, ENTRY_LEN);
    fspf_status status = acquire(s, slot, false, &seg, err);
    if (status != ST_OK) {
        return status;
    }
    struct iovec iov = {entry, ENTRY_LEN};
    int failed = read_all(s, seg->fd, entry_offset(s, slot), &iov, 1, &got);
    release(s, seg, false);
    if (failed == 0 && got < ENTRY_LEN) {
        memset(entry, 0, ENTRY_LEN);
    }
    return failed ? fail_os(err, failed, "read of a segment") : ST_OK;
}

static int zero_range(segments *s, int fd, uint64_t offset, uint64_t len)
{
    static const uint8_t zeros[4096];
    while (len > 0) {
        size_t n = (size_t)min_u64(len, sizeof zeros);
        int failed = write_all(s, fd, offset, zeros, n);
        if (failed) {
            return failed;
        }
        offset += n;
        len -= n;
    }
    return 0;
}

static int punch(segments *s, int fd, uint64_t offset, uint64_t len)
{
    if (s->punch_unsupported) {
        return EOPNOTSUPP;
    }
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len) != 0) {
        if (errno == EINTR) {
            continue;
        }
        if (errno == EOPNOTSUPP || errno == ENOSYS) {
            s->punch_unsupported = true;
            return EOPNOTSUPP;
        }
        return errno;
    }
    return 0;
}

fspf_status segments_punch(segments *s, uint64_t slot, uint64_t count, uint64_t *bytes, fspf_error *err)
{
    segment *seg = NULL;
    pthread_mutex_lock(&s->lock);
    fspf_status status = acquire_lock_held(s, slot / s->segment_slots, false, &seg, err);
    pthread_mutex_unlock(&s->lock);
    if (status == ST_DAMAGED) {
        return ST_OK; /* no file: nothing to give back */
    }
    if (status != ST_OK) {
        return status;
    }
    int failed = punch(s, seg->fd, slot_offset(s, slot), count * s->chunk_size);
    if (failed == 0) {
        *bytes += count * s->chunk_size;
    }
    if (failed == 0 || failed == EOPNOTSUPP) {
        failed = punch(s, seg->fd, entry_offset(s, slot), count * ENTRY_LEN);
        if (failed == EOPNOTSUPP) {
            failed = zero_range(s, seg->fd, entry_offset(s, slot), count * ENTRY_LEN);
        }
    }
    release(s, seg, true);
    return failed ? fail_os(err, failed, "punching a segment") : ST_OK;
}

fspf_status segments_allocate(segments *s, uint64_t slot, uint64_t count, fspf_error *err)
{
    segment *seg = NULL;
    fspf_status status = acquire(s, slot, true, &seg, err);
    if (status != ST_OK) {
        return status;
    }
    int failed = 0;
    if (fallocate(seg->fd, 0, (off_t)slot_offset(s, slot), (off_t)(count * s->chunk_size)) != 0 ||
        fallocate(seg->fd, 0, (off_t)entry_offset(s, slot), (off_t)(count * ENTRY_LEN)) != 0) {
        failed = errno;
    }
    release(s, seg, true);
    return failed && failed != EOPNOTSUPP && failed != ENOSYS ? fail_os(err, failed, "fallocate") : ST_OK;
}

fspf_status segments_sync(segments *s, uint64_t *synced, fspf_error *err)
{
    fspf_status status = ST_OK;
    uint64_t *numbers = NULL;
    size_t count = 0;
    bool directory;

    *synced = 0;
    pthread_mutex_lock(&s->sync_lock);
    if (s->sync_errno) {
        status = fail_os(err, s->sync_errno, "an earlier fdatasync failed");
        pthread_mutex_unlock(&s->sync_lock);
        return status;
    }
    pthread_mutex_lock(&s->lock);
    directory = s->directory_dirty;
    if (s->table.count > 0) {
        numbers = malloc(s->table.count * sizeof *numbers);
        if (numbers == NULL) {
            status = ST_NOMEM;
        }
    }
    if (numbers != NULL) {
        for (size_t i = 0; i < s->table.capacity; i++) {
            if (s->table.keys[i] != MAP64_EMPTY && ((segment *)s->table.values[i])->dirty) {
                numbers[count++] = s->table.keys[i];
            }
        }
    }
    if (status == ST_OK) {
        s->directory_dirty = false;
    }
    pthread_mutex_unlock(&s->lock);
    if (count > 0) {
        qsort(numbers, count, sizeof *numbers, compare_u64);
    }
    for (size_t i = 0; i < count && status == ST_OK; i++) {
        segment *seg = NULL;
        pthread_mutex_lock(&s->lock);
        status = acquire_lock_held(s, numbers[i], true, &seg, err);
        if (status == ST_OK) {
            seg->dirty = false; /* a write that ends after this sets it again */
        }
        pthread_mutex_unlock(&s->lock);
        if (status != ST_OK) {
            break;
        }
        int failed;
        do {
            failed = fdatasync(seg->fd) == 0 ? 0 : errno;
        } while (failed == EINTR);
        atomic_fetch_add_explicit(&s->syncs, 1, memory_order_relaxed);
        release(s, seg, failed != 0);
        if (failed) {
            s->sync_errno = failed;
            status = fail_os(err, failed, "fdatasync of a segment");
        } else {
            ++*synced;
        }
    }
    if (status == ST_OK && directory && fsync(s->directory) != 0) {
        s->sync_errno = errno;
        status = fail_os(err, errno, "fsync of the segments directory");
    }
    if (status != ST_OK && directory) {
        pthread_mutex_lock(&s->lock);
        s->directory_dirty = true;
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_unlock(&s->sync_lock);
    free(numbers);
    return status;
}

uint64_t segments_host_free(segments *s)
{
    struct statvfs st;
    if (fstatvfs(s->directory, &st) != 0) {
        return UINT64_MAX;
    }
    return (uint64_t)st.f_bavail * (uint64_t)st.f_frsize;
}
