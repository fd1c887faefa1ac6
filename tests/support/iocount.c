/* LD_PRELOAD: count reads, writes and syncs of files below $IOCOUNT_DIR, in the shared file $IOCOUNT_FILE. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READS, WRITES, SYNCS, OTHERS, KINDS };
static _Atomic uint64_t *counters;
static const char *below;
static size_t below_len;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("IOCOUNT_FILE");
    below = getenv("IOCOUNT_DIR");
    below_len = below != NULL ? strlen(below) : 0;
    int fd = path != NULL && below_len > 0 ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        counters = at != MAP_FAILED ? at : NULL;
        close(fd);
    }
}

static void count(int fd, int kind)
{
    char link[40];
    char path[PATH_MAX];
    if (counters == NULL) {
        return;
    }
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len > (ssize_t)below_len && memcmp(path, below, below_len) == 0) {
        atomic_fetch_add(&counters[kind], 1);
    }
}

#define WRAP(type, name, kind, parameters, arguments)                                                                  \
    type name parameters                                                                                               \
    {                                                                                                                  \
        static type(*_Atomic next) parameters;                                                                         \
        if (next == NULL) {                                                                                            \
            next = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                                        \
        }                                                                                                              \
        count(fd, kind);                                                                                               \
        return next arguments;                                                                                         \
    }

WRAP(ssize_t, read, READS, (int fd, void *data, size_t len), (fd, data, len))
WRAP(ssize_t, pread, READS, (int fd, void *data, size_t len, off_t at), (fd, data, len, at))
WRAP(ssize_t, pread64, READS, (int fd, void *data, size_t len, off64_t at), (fd, data, len, at))
WRAP(ssize_t, preadv, READS, (int fd, const struct iovec *iov, int n, off_t at), (fd, iov, n, at))
WRAP(ssize_t, preadv64, READS, (int fd, const struct iovec *iov, int n, off64_t at), (fd, iov, n, at))
WRAP(ssize_t, write, WRITES, (int fd, const void *data, size_t len), (fd, data, len))
WRAP(ssize_t, pwrite, WRITES, (int fd, const void *data, size_t len, off_t at), (fd, data, len, at))
WRAP(ssize_t, pwrite64, WRITES, (int fd, const void *data, size_t len, off64_t at), (fd, data, len, at))
WRAP(ssize_t, pwritev, WRITES, (int fd, const struct iovec *iov, int n, off_t at), (fd, iov, n, at))
WRAP(ssize_t, pwritev64, WRITES, (int fd, const struct iovec *iov, int n, off64_t at), (fd, iov, n, at))
WRAP(int, fsync, SYNCS, (int fd), (fd))
WRAP(int, fdatasync, SYNCS, (int fd), (fd))
WRAP(int, syncfs, SYNCS, (int fd), (fd))
WRAP(int, fallocate, OTHERS, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRAP(int, fallocate64, OTHERS, (int fd, int mode, off64_t at, off64_t len), (fd, mode, at, len))
WRAP(int, ftruncate, OTHERS, (int fd, off_t len), (fd, len))
WRAP(int, ftruncate64, OTHERS, (int fd, off64_t len), (fd, len))
