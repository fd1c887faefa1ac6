/* Several processes that do random things to one tree, without regard for each other (after the idea of fsstress).
 *
 *     stress [-s SEED] [-n STEPS] [-p PROCESSES] [-u] [-h] DIRECTORY
 *
 * Most calls may fail, for names come and go; what must never come back is an error that says that the file system
 * itself is in trouble. The tree that is left is for the caller to look at. -u: nothing that only root may do.
 * -h: no files of gigabytes, however sparse. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define HELD 8
#define MOST_BYTES 200000u
#define PATH_BYTES 96

static uint64_t rng_state;
static bool privileged = true;
static bool huge = true;
static int held[HELD]; /* files that stay open, also when their last name goes */
static const char *doing = "";
static uint64_t counts[2]; /* calls that worked, that did not */
static uint8_t data[MOST_BYTES];

static uint64_t rng(void)
{
    uint64_t z = rng_state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Count a result; end the process where it tells of trouble. */
static bool done(long result)
{
    counts[result < 0]++;
    if (result >= 0) {
        return true;
    }
    switch (errno) {
    case EIO: case ESTALE: case ENOTCONN: case ENOSYS: case EFAULT: case ENOMEM: case EBADF: case EPROTO: case ENOSPC:
    case EUCLEAN: case ETIMEDOUT: case EINTR: case EAGAIN: case ECONNABORTED: case EMFILE: case ENFILE: case EROFS:
        (void)fprintf(stderr, "%s: %s\n", doing, strerror(errno));
        _exit(1);
    default:
        return false;
    }
}

static const char *directory(char out[PATH_BYTES])
{
    switch (rng() % 6) {
    case 0: return strcpy(out, ".");
    case 1: case 2: (void)snprintf(out, PATH_BYTES, "d%u", (unsigned)(rng() % 4)); break;
    case 3: case 4: (void)snprintf(out, PATH_BYTES, "d%u/e%u", (unsigned)(rng() % 4), (unsigned)(rng() % 3)); break;
    default:
        (void)snprintf(out, PATH_BYTES, "d%u/e%u/g%u", (unsigned)(rng() % 4), (unsigned)(rng() % 3), (unsigned)(rng() % 2));
    }
    return out;
}

static const char *name(char out[PATH_BYTES])
{
    char dir[PATH_BYTES];
    (void)snprintf(out, PATH_BYTES, "%.60s/f%u", directory(dir), (unsigned)(rng() % 24));
    return out;
}

/* A file or, sometimes, a directory. */
static const char *any(char out[PATH_BYTES])
{
    return rng() % 5 == 0 ? directory(out) : name(out);
}

static int open_some(int flags)
{
    char path[PATH_BYTES];
    if (rng() % 6 == 0) {
        int fd = held[rng() % HELD];
        return fd >= 0 ? dup(fd) : -1;
    }
    int fd = open(name(path), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
    struct stat is;
    (void)done(fd);
    if (fd >= 0 && (fstat(fd, &is) != 0 || !S_ISREG(is.st_mode))) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

static void random_data(size_t len)
{
    uint64_t z = rng() | 1;
    for (size_t i = 0; i < len; i++) {
        z = z * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        data[i] = (uint8_t)(z >> 56);
    }
}

static void write_some(unsigned how)
{
    size_t len = 1 + rng() % (rng() % 3 ? 9000 : MOST_BYTES - 1);
    off_t at = (off_t)(rng() % (rng() % 20 || !huge ? 300000 : UINT64_C(6) << 30));
    int fd = open_some(O_RDWR | O_CREAT | (how == 1 ? O_APPEND : 0) | (how == 2 ? O_TRUNC : 0));
    if (fd < 0) {
        return;
    }
    random_data(len);
    struct iovec parts[2] = {{data, len / 2}, {data + len / 2, len - len / 2}};
    switch (how) {
    case 1:
    case 2: (void)done(write(fd, data, len)); break;
    case 3: (void)done(pwritev(fd, parts, 2, at)); break;
    default: (void)done(pwrite(fd, data, len, at));
    }
    (void)done(close(fd));
}

static void map_some(void)
{
    int fd = open_some(O_RDWR);
    struct stat is;
    if (fd >= 0 && fstat(fd, &is) == 0 && is.st_size == 0) {
        (void)done(ftruncate(fd, 8192));
    }
    if (fd >= 0 && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR) {
        uint8_t *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        /* Only a file that nobody else cuts meanwhile could be written to without SIGBUS: through a child. */
        if (map != MAP_FAILED) {
            pid_t child = fork();
            if (child == 0) {
                memset(map + rng() % 4096, (int)(rng() & 255), 1 + rng() % 4096);
                _exit(0);
            }
            (void)waitpid(child, NULL, 0);
            (void)done(msync(map, 8192, rng() % 2 ? MS_SYNC : MS_ASYNC));
            (void)munmap(map, 8192);
        }
    }
    if (fd >= 0) {
        (void)done(close(fd));
    }
}

static void read_some(void)
{
    int fd = open_some(O_RDONLY);
    if (fd < 0) {
        return;
    }
    struct stat before;
    ssize_t got = pread(fd, data, MOST_BYTES, (off_t)(rng() % 300000));
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_WRONLY) {
        (void)done(got);
    }
    (void)done(fstat(fd, &before));
    (void)done(lseek(fd, 0, SEEK_DATA));
    (void)done(lseek(fd, 0, SEEK_HOLE));
    (void)done(close(fd));
}

static void allocate_some(void)
{
    static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
                                FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    int fd = open_some(O_RDWR);
    if (fd >= 0) {
        (void)done(fallocate(fd, modes[rng() % 5], (off_t)(rng() % 300000), (off_t)(1 + rng() % 100000)));
        (void)done(close(fd));
    }
}

static void copy_some(void)
{
    int in = open_some(O_RDONLY);
    int out = open_some(O_RDWR | O_CREAT);
    if (in >= 0 && out >= 0) {
        off_t from = (off_t)(rng() % 100000);
        off_t to = (off_t)(rng() % 300000);
        if ((fcntl(in, F_GETFL) & O_ACCMODE) != O_WRONLY && (fcntl(out, F_GETFL) & O_APPEND) == 0) {
            (void)done(copy_file_range(in, &from, out, &to, 1 + rng() % MOST_BYTES, 0));
        }
    }
    if (in >= 0) {
        (void)done(close(in));
    }
    if (out >= 0) {
        (void)done(close(out));
    }
}

static void sync_some(void)
{
    int fd = open_some(O_RDWR);
    if (fd < 0) {
        return;
    }
    (void)done(rng() % 2 ? fsync(fd) : fdatasync(fd));
    if (rng() % 20 == 0) {
        (void)done(syncfs(fd));
    }
    (void)done(close(fd));
}

static void attribute(void)
{
    static const char *const prefixes[] = {"user.", "trusted.", "security.some-"};
    char path[PATH_BYTES];
    char attr[64];
    char list[4096];
    (void)any(path);
    (void)snprintf(attr, sizeof attr, "%s%u", prefixes[privileged ? rng() % 3 : 0], (unsigned)(rng() % 6));
    size_t len = rng() % (rng() % 4 ? 60 : 900);
    switch (rng() % 6) {
    case 0: case 1: case 2:
        random_data(len);
        (void)done(lsetxattr(path, attr, data, len, rng() % 4 == 0 ? XATTR_CREATE : rng() % 4 == 0 ? XATTR_REPLACE : 0));
        break;
    case 3: (void)done(lremovexattr(path, attr)); break;
    case 4: (void)done(llistxattr(path, list, sizeof list)); break;
    default: (void)done(lgetxattr(path, attr, list, sizeof list));
    }
}

static void access_list(void)
{
    struct {
        uint32_t version;
        struct {
            uint16_t tag, perm;
            uint32_t id;
        } entries[5];
    } list = {2, {{1, 7, UINT32_MAX}, {2, (uint16_t)(rng() % 8), 1000 + (uint32_t)(rng() % 3)}, {4, 5, UINT32_MAX},
                  {16, (uint16_t)(rng() % 8), UINT32_MAX}, {32, (uint16_t)(rng() % 8), UINT32_MAX}}};
    char path[PATH_BYTES];
    if (rng() % 3 == 0) {
        (void)done(removexattr(any(path), rng() % 2 ? "system.posix_acl_access" : "system.posix_acl_default"));
    } else if (rng() % 4 == 0) {
        (void)done(setxattr(directory(path), "system.posix_acl_default", &list, sizeof list, 0));
    } else {
        (void)done(setxattr(any(path), "system.posix_acl_access", &list, sizeof list, 0));
    }
}

static void unnamed(void)
{
    char path[PATH_BYTES];
    char link_path[64];
    int fd = open(directory(path), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (!done(fd)) {
        return;
    }
    size_t len = 1 + rng() % 20000;
    random_data(len);
    (void)done(write(fd, data, len));
    if (rng() % 2) {
        (void)snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", fd);
        (void)done(linkat(AT_FDCWD, link_path, AT_FDCWD, name(path), AT_SYMLINK_FOLLOW));
    }
    (void)done(close(fd));
}

static void hold(void)
{
    char path[PATH_BYTES];
    size_t place = rng() % HELD;
    if (held[place] >= 0) {
        (void)done(close(held[place]));
    }
    held[place] = open(name(path), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640);
    struct stat is;
    if (held[place] >= 0 && (fstat(held[place], &is) != 0 || !S_ISREG(is.st_mode))) {
        (void)close(held[place]);
        held[place] = -1;
    }
}

static void list_some(void)
{
    char path[PATH_BYTES];
    DIR *dir = opendir(directory(path));
    if (dir == NULL) {
        return;
    }
    const struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        struct stat is;
        if (rng() % 3 == 0) {
            (void)done(fstatat(dirfd(dir), entry->d_name, &is, AT_SYMLINK_NOFOLLOW));
        }
    }
    (void)closedir(dir);
}

static void attributes_of(void)
{
    char path[PATH_BYTES];
    struct timespec times[2] = {{(time_t)(rng() % 4000000000) - 1000000000, (long)(rng() % 1000000000)}, {0, UTIME_OMIT}};
    times[1].tv_nsec = rng() % 2 ? UTIME_OMIT : UTIME_NOW;
    switch (rng() % 3) {
    case 0: (void)done(chmod(any(path), (mode_t)(0700 | rng() % 07777))); break;
    case 1: (void)done(privileged ? lchown(any(path), (uid_t)(rng() % 3) * 1000, (gid_t)(rng() % 3) * 1000) : 0); break;
    default: (void)done(utimensat(AT_FDCWD, any(path), times, AT_SYMLINK_NOFOLLOW));
    }
}

static void step(void)
{
    char one[PATH_BYTES];
    char two[PATH_BYTES];
    char link_target[PATH_BYTES];
    struct stat is;
    struct statvfs fs;
    uint64_t pick = rng() % 100;
#define DO(weight, label) if (pick < (weight) && (doing = (label)) != NULL)
#define NEXT(weight) pick = pick < (weight) ? 1000 : pick - (weight)
    DO(5, "creat") { int fd = open(name(one), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666); if (done(fd)) { (void)done(close(fd)); } } NEXT(5);
    DO(5, "mkdir") { (void)done(mkdir(directory(one), 0755)); } NEXT(5);
    DO(5, "rename") { (void)done(rename(any(one), any(two))); } NEXT(5);
    DO(3, "rename noreplace") { (void)done(renameat2(AT_FDCWD, any(one), AT_FDCWD, any(two), RENAME_NOREPLACE)); } NEXT(3);
    DO(3, "rename exchange") { (void)done(renameat2(AT_FDCWD, any(one), AT_FDCWD, any(two), RENAME_EXCHANGE)); } NEXT(3);
    DO(4, "link") { (void)done(link(name(one), name(two))); } NEXT(4);
    DO(3, "symlink") { (void)done(symlink(any(one), name(two))); } NEXT(3);
    DO(8, "unlink") { (void)done(unlink(name(one))); } NEXT(8);
    DO(2, "rmdir") { (void)done(rmdir(directory(one))); } NEXT(2);
    DO(3, "truncate") { (void)done(truncate(name(one), (off_t)(rng() % 300000))); } NEXT(3);
    DO(10, "write") { write_some(0); } NEXT(10);
    DO(3, "append") { write_some(1); } NEXT(3);
    DO(3, "overwrite") { write_some(2); } NEXT(3);
    DO(3, "writev") { write_some(3); } NEXT(3);
    DO(2, "mmap") { map_some(); } NEXT(2);
    DO(6, "read") { read_some(); } NEXT(6);
    DO(5, "attributes") { attributes_of(); } NEXT(5);
    DO(6, "xattr") { attribute(); } NEXT(6);
    DO(2, "acl") { access_list(); } NEXT(2);
    DO(4, "fallocate") { allocate_some(); } NEXT(4);
    DO(3, "copy") { copy_some(); } NEXT(3);
    DO(1, "sync") { sync_some(); } NEXT(1);
    DO(2, "readdir") { list_some(); } NEXT(2);
    DO(1, "statfs") { (void)done(statvfs(".", &fs)); } NEXT(1);
    DO(2, "mknod") { (void)done(mknod(name(one), privileged && rng() % 2 ? S_IFCHR | 0600 : S_IFIFO | 0644, makedev(1, 3))); } NEXT(2);
    DO(3, "tmpfile") { unnamed(); } NEXT(3);
    DO(2, "hold") { hold(); } NEXT(2);
    DO(1, "readlink") { (void)done(readlink(name(one), link_target, sizeof link_target)); } NEXT(1);
    DO(100, "stat") { (void)done(lstat(any(one), &is)); }
}

int main(int argc, char **argv)
{
    unsigned long long seed = 1;
    unsigned long long steps = 1000;
    unsigned processes = 4;
    int option;
    while ((option = getopt(argc, argv, "s:n:p:uh")) != -1) {
        switch (option) {
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'n': steps = strtoull(optarg, NULL, 0); break;
        case 'p': processes = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'u': privileged = false; break;
        case 'h': huge = false; break;
        default: return 2;
        }
    }
    if (optind + 1 != argc || chdir(argv[optind]) != 0) {
        return 2;
    }
    (void)printf("seed %llu, %u processes, %llu steps each\n", seed, processes, steps);
    (void)fflush(stdout);
    for (unsigned p = 0; p < processes; p++) {
        pid_t child = fork();
        if (child == 0) {
            rng_state = seed * 1000 + p;
            for (int i = 0; i < HELD; i++) {
                held[i] = -1;
            }
            for (unsigned long long i = 0; i < steps; i++) {
                step();
            }
            (void)printf("process %u: %llu calls worked, %llu were refused\n", p, (unsigned long long)counts[0],
                         (unsigned long long)counts[1]);
            return fflush(stdout) == 0 ? 0 : 1;
        }
        if (child < 0) {
            return 2;
        }
    }
    int bad = 0;
    int status;
    while (wait(&status) > 0) {
        bad |= status;
    }
    return bad != 0 ? 1 : 0;
}
