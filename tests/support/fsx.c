/* Random operations on one file, every byte of which is compared with a copy in memory (after the idea of fsx).
 *
 *     exerciser [-s SEED] [-n STEPS] [-m SIZE] [-b BASE] [-i IN] [-o OUT] [-x CLASSES] [-r REPLAY] [-v] FILE
 *
 * The file is looked at through a window of SIZE bytes that begins at BASE; before it there is nothing but a hole. IN
 * and OUT keep the copy between two runs, so that the file system can be remounted in between. A failure prints the
 * operations that led to it, one a line; such lines in a file are done again with -r. One that fails is compared first
 * with plain ext4: if it fails there too, the error is here. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096u
#define LOG 400u
#define EXTENTS 2000 /* of one walk over data and holes */

enum kind {
    READ, READV, READ_OTHER, READ_MAP, READ_KEPT, READ_DIRECT,
    WRITE, WRITEV, APPEND, WRITE_MAP, WRITE_KEPT, WRITE_DIRECT,
    TRUNCATE, ALLOCATE, ALLOCATE_KEEP, PUNCH, ZERO, ZERO_KEEP, COPY,
    SYNC, DATASYNC, RANGE_SYNC, REOPEN, FORGET, AHEAD, SEEK, STAT, KINDS
};

/* A letter names a class for -x; the weight says how often. */
static const struct {
    const char *name;
    char class;
    unsigned weight;
} kinds[KINDS] = {
    [READ] = {"read", 'r', 10},           [READV] = {"readv", 'r', 3},
    [READ_OTHER] = {"read_other", 'r', 4}, [READ_MAP] = {"read_map", 'm', 5},
    [READ_KEPT] = {"read_kept", 'k', 5},  [READ_DIRECT] = {"read_direct", 'd', 5},
    [WRITE] = {"write", 'w', 12},         [WRITEV] = {"writev", 'w', 4},
    [APPEND] = {"append", 'w', 3},        [WRITE_MAP] = {"write_map", 'm', 5},
    [WRITE_KEPT] = {"write_kept", 'k', 5}, [WRITE_DIRECT] = {"write_direct", 'd', 6},
    [TRUNCATE] = {"truncate", 't', 8},    [ALLOCATE] = {"allocate", 'a', 3},
    [ALLOCATE_KEEP] = {"allocate_keep", 'a', 2}, [PUNCH] = {"punch", 'p', 5},
    [ZERO] = {"zero", 'p', 3},            [ZERO_KEEP] = {"zero_keep", 'p', 3},
    [COPY] = {"copy", 'c', 6},            [SYNC] = {"sync", 's', 1},
    [DATASYNC] = {"datasync", 's', 1},    [RANGE_SYNC] = {"range_sync", 's', 2},
    [REOPEN] = {"reopen", 'o', 2},        [FORGET] = {"forget", 'f', 4},
    [AHEAD] = {"ahead", 'f', 1},          [SEEK] = {"seek", 'l', 4},
    [STAT] = {"stat", 'l', 2},
};

typedef struct {
    enum kind kind;
    uint64_t at, len, arg; /* relative to the window; `arg`: where to copy to, or the seed of the data */
} step;

static const char *path;
static int fd = -1, other = -1, appender = -1, direct = -1;
static uint8_t *model, *buffer, *kept; /* `kept` stays mapped while operations go on */
static uint64_t size, most = 1 << 20, base, rng_state;
static step history[LOG];
static unsigned long long done;
static bool verbose;

static uint64_t rng(void)
{
    uint64_t z = rng_state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void print_step(FILE *out, const step *s)
{
    (void)fprintf(out, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", kinds[s->kind].name, s->at, s->len, s->arg);
}

static void fail(const char *format, ...)
{
    va_list list;
    int error = errno;
    va_start(list, format);
    (void)fprintf(stderr, "%s, step %llu: ", path, done);
    (void)vfprintf(stderr, format, list);
    va_end(list);
    (void)fprintf(stderr, " (errno %d %s)\nsize %" PRIu64 " base %" PRIu64 "; the last operations:\n", error,
                  strerror(error), size, base);
    for (unsigned long long i = done + 1 > LOG ? done + 1 - LOG : 0; i <= done; i++) {
        print_step(stderr, &history[i % LOG]);
    }
    exit(1);
}

static void compare(const char *what, const uint8_t *got, uint64_t at, uint64_t len)
{
    if (memcmp(got, model + at, len) == 0) {
        return;
    }
    uint64_t first = 0;
    while (got[first] == model[at + first]) {
        first++;
    }
    uint64_t wrong = 0;
    uint64_t last = first;
    for (uint64_t i = first; i < len; i++) {
        if (got[i] != model[at + i]) {
            wrong++;
            last = i;
        }
    }
    errno = 0;
    fail("%s of %" PRIu64 " at %" PRIu64 ": byte %" PRIu64 " is %02x instead of %02x; %" PRIu64 " wrong up to %" PRIu64,
         what, len, at, at + first, got[first], model[at + first], wrong, at + last);
}

static void fill(uint64_t seed, uint64_t len)
{
    uint64_t z = seed | 1;
    for (uint64_t i = 0; i < len; i++) {
        z = z * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        buffer[i] = (uint8_t)(z >> 56);
    }
}

static int open_again(int flags)
{
    int opened = open(path, O_RDWR | O_CLOEXEC | flags, 0644);
    if (opened < 0) {
        fail("open");
    }
    return opened;
}

static void open_all(void)
{
    fd = open_again(O_CREAT);
    other = open_again(0);
    appender = open_again(O_APPEND);
    direct = open(path, O_RDWR | O_CLOEXEC | O_DIRECT); /* a file system may have none */
    kept = mmap(NULL, most, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)base);
    if (kept == MAP_FAILED) {
        fail("mmap");
    }
}

static void close_all(void)
{
    if (munmap(kept, most) != 0 || close(fd) != 0 || close(other) != 0 || close(appender) != 0 ||
        (direct >= 0 && close(direct) != 0)) {
        fail("close");
    }
}

static void check_size(void)
{
    struct stat now;
    if (fstat(fd, &now) != 0) {
        fail("fstat");
    }
    if ((uint64_t)now.st_size != base + size) {
        errno = 0;
        fail("size %" PRId64 " instead of %" PRIu64, (int64_t)now.st_size, base + size);
    }
}

static void grow_to(uint64_t end)
{
    if (end > size) {
        memset(model + size, 0, end - size);
        size = end;
    }
}

static void all_read(const char *what, ssize_t got, uint64_t at, uint64_t len)
{
    uint64_t expected = at < size ? (len < size - at ? len : size - at) : 0;
    if (got < 0 || (uint64_t)got != expected) {
        fail("%s of %" PRIu64 " at %" PRIu64 ": %zd instead of %" PRIu64, what, len, at, got, expected);
    }
    compare(what, buffer, at, expected);
}

static void all_written(const char *what, ssize_t got, uint64_t at, uint64_t len)
{
    if (got < 0 || (uint64_t)got != len) {
        fail("%s of %" PRIu64 " at %" PRIu64 ": %zd", what, len, at, got);
    }
    grow_to(at + len);
    memcpy(model + at, buffer, len);
}

/* Data and holes as the file system tells them: they alternate, cover the file, and no hole has anything in it. */
static void check_extents(void)
{
    uint64_t end = base + size;
    uint64_t at = base;
    for (int count = 0; at < end && count < EXTENTS; count++) {
        off_t data = lseek(other, (off_t)at, SEEK_DATA);
        if (data < 0 && errno != ENXIO) {
            fail("SEEK_DATA from %" PRIu64, at);
        }
        uint64_t begin = data < 0 ? end : (uint64_t)data;
        if (begin < at || begin > end) {
            fail("SEEK_DATA from %" PRIu64 " gives %" PRIu64, at, begin);
        }
        for (uint64_t i = at; i < begin; i++) {
            if (model[i - base] != 0) {
                errno = 0;
                fail("a hole from %" PRIu64 " to %" PRIu64 " has data at %" PRIu64, at - base, begin - base, i - base);
            }
        }
        if (begin == end) {
            break;
        }
        off_t hole = lseek(other, (off_t)begin, SEEK_HOLE);
        if (hole < 0 || (uint64_t)hole <= begin || (uint64_t)hole > end) {
            fail("SEEK_HOLE from %" PRIu64 " gives %" PRId64, begin, (int64_t)hole);
        }
        at = (uint64_t)hole;
    }
    if (lseek(other, (off_t)end, SEEK_DATA) >= 0 || errno != ENXIO || lseek(other, (off_t)end, SEEK_HOLE) >= 0 ||
        errno != ENXIO) {
        fail("seeking from the end");
    }
}

static void map_range(uint64_t at, uint64_t len, bool write, uint64_t arg)
{
    uint64_t skip = at % PAGE;
    uint8_t *map = mmap(NULL, len + skip, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                        (off_t)(base + at - skip));
    if (map == MAP_FAILED) {
        fail("mmap of %" PRIu64 " at %" PRIu64, len, at);
    }
    if (write) {
        memcpy(map + skip, buffer, len);
        memcpy(model + at, buffer, len);
        if (arg % 3 != 0 && msync(map, len + skip, arg % 3 == 1 ? MS_SYNC : MS_ASYNC) != 0) {
            fail("msync");
        }
    } else {
        compare("mapped read", map + skip, at, len);
    }
    if (munmap(map, len + skip) != 0) {
        fail("munmap");
    }
}

static void allocate(int mode, uint64_t at, uint64_t len)
{
    if (fallocate(fd, mode, (off_t)(base + at), (off_t)len) != 0) {
        fail("fallocate");
    }
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
        uint64_t end = at + len < size ? at + len : size;
        if (at < end) {
            memset(model + at, 0, end - at);
        }
    }
    if ((mode & FALLOC_FL_KEEP_SIZE) == 0) {
        grow_to(at + len);
    }
}

static void copy(uint64_t at, uint64_t len, uint64_t to)
{
    uint64_t left = at < size ? (len < size - at ? len : size - at) : 0;
    if (at + len > to && to + len > at) {
        return; /* overlapping is refused */
    }
    while (left > 0) {
        off_t in = (off_t)(base + at);
        off_t out = (off_t)(base + to);
        ssize_t got = copy_file_range(fd, &in, other, &out, left, 0);
        if (got <= 0 || (uint64_t)got > left) {
            fail("copy_file_range of %" PRIu64 ": %zd", left, got);
        }
        grow_to(to + (uint64_t)got);
        memcpy(model + to, model + at, (size_t)got);
        at += (uint64_t)got;
        to += (uint64_t)got;
        left -= (uint64_t)got;
    }
}

static void run(const step *s)
{
    uint64_t at = s->at;
    uint64_t len = s->len;
    uint64_t inside = at < size ? (len < size - at ? len : size - at) : 0; /* for what must not go past the end */
    struct iovec parts[3] = {
        {buffer, len / 3}, {buffer + len / 3, len / 5}, {buffer + len / 3 + len / 5, len - len / 3 - len / 5}};
    switch (s->kind) {
    case READ:
        all_read("pread", pread(fd, buffer, len, (off_t)(base + at)), at, len);
        break;
    case READ_OTHER:
        if (lseek(other, (off_t)(base + at), SEEK_SET) < 0) {
            fail("lseek");
        }
        all_read("read", read(other, buffer, len), at, len);
        break;
    case READV:
        all_read("preadv", preadv(fd, parts, 3, (off_t)(base + at)), at, len);
        break;
    case READ_DIRECT:
        if (direct >= 0) {
            at -= at % PAGE;
            len = (len + PAGE - 1) / PAGE * PAGE;
            all_read("direct read", pread(direct, buffer, len, (off_t)(base + at)), at, len);
        }
        break;
    case WRITE:
        fill(s->arg, len);
        all_written("pwrite", pwrite(fd, buffer, len, (off_t)(base + at)), at, len);
        break;
    case WRITEV:
        fill(s->arg, len);
        all_written("pwritev", pwritev(other, parts, 3, (off_t)(base + at)), at, len);
        break;
    case APPEND:
        len = len < most - size ? len : most - size;
        fill(s->arg, len);
        all_written("append", write(appender, buffer, len), size, len);
        break;
    case WRITE_DIRECT:
        if (direct >= 0) {
            at -= at % PAGE;
            len = (len + PAGE - 1) / PAGE * PAGE;
            len = at + len > most ? most - at : len;
            fill(s->arg, len);
            all_written("direct write", pwrite(direct, buffer, len, (off_t)(base + at)), at, len);
        }
        break;
    case READ_MAP:
    case WRITE_MAP:
        if (inside > 0) {
            fill(s->arg, inside);
            map_range(at, inside, s->kind == WRITE_MAP, s->arg);
        }
        break;
    case READ_KEPT:
        if (inside > 0) {
            compare("read of the mapping", kept + at, at, inside);
            uint64_t end = (size + PAGE - 1) / PAGE * PAGE; /* beyond the end of the file a page is zero */
            for (uint64_t i = size; at + inside == size && i < end && i < most; i++) {
                if (kept[i] != 0) {
                    errno = 0;
                    fail("byte %" PRIu64 " behind the end is %02x", i, kept[i]);
                }
            }
        }
        break;
    case WRITE_KEPT:
        if (inside > 0) {
            fill(s->arg, inside);
            memcpy(kept + at, buffer, inside);
            memcpy(model + at, buffer, inside);
        }
        break;
    case TRUNCATE:
        if (ftruncate(fd, (off_t)(base + at)) != 0) {
            fail("ftruncate");
        }
        if (at > size) {
            grow_to(at);
        }
        size = at;
        break;
    case ALLOCATE:
        allocate(0, at, len);
        break;
    case ALLOCATE_KEEP:
        allocate(FALLOC_FL_KEEP_SIZE, at, len);
        break;
    case PUNCH:
        allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len);
        break;
    case ZERO:
        allocate(FALLOC_FL_ZERO_RANGE, at, len);
        break;
    case ZERO_KEEP:
        allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, len);
        break;
    case COPY:
        copy(at, len, s->arg);
        break;
    case SYNC:
    case DATASYNC:
        if ((s->kind == SYNC ? fsync(fd) : fdatasync(other)) != 0) {
            fail("fsync");
        }
        break;
    case RANGE_SYNC:
        if (sync_file_range(fd, (off_t)(base + at), (off_t)len,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) != 0) {
            fail("sync_file_range");
        }
        break;
    case REOPEN:
        close_all();
        open_all();
        break;
    case FORGET: /* what is clean leaves the page cache, so that the next read asks */
        (void)sync_file_range(fd, (off_t)(base + at), (off_t)len, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
        if (posix_fadvise(fd, (off_t)(base + at), (off_t)len, POSIX_FADV_DONTNEED) != 0) {
            fail("posix_fadvise");
        }
        break;
    case AHEAD:
        if (posix_fadvise(fd, (off_t)(base + at), (off_t)len, POSIX_FADV_WILLNEED) != 0) {
            fail("posix_fadvise");
        }
        break;
    case SEEK:
        check_extents();
        break;
    case STAT:
    case KINDS:
        break; /* the size is looked at after each step */
    }
    check_size();
}

static step choose(const char *without)
{
    unsigned total = 0;
    for (unsigned k = 0; k < KINDS; k++) {
        total += strchr(without, kinds[k].class) == NULL ? kinds[k].weight : 0;
    }
    uint64_t pick = rng() % total;
    step s = {.kind = KINDS};
    for (unsigned k = 0; k < KINDS && s.kind == KINDS; k++) {
        unsigned weight = strchr(without, kinds[k].class) == NULL ? kinds[k].weight : 0;
        if (pick < weight) {
            s.kind = (enum kind)k;
        }
        pick -= weight;
    }
    static const uint64_t lengths[] = {16, 600, 5000, 70000, 300000};
    uint64_t limit = lengths[rng() % 5];
    s.at = rng() % most;
    s.len = 1 + rng() % (limit < most ? limit : most);
    s.arg = rng();
    if (rng() % 4 == 0) { /* around what chunks and pages begin at */
        s.at = s.at / PAGE * PAGE + (rng() % 3 - 1);
        s.at = s.at > most ? 0 : s.at;
    }
    if (rng() % 4 == 0) {
        s.len = (s.len + PAGE - 1) / PAGE * PAGE;
    }
    if (rng() % 6 == 0) {
        s.at = size < most ? size : most - 1; /* at the end */
    }
    if (s.at >= most) {
        s.at = most - 1;
    }
    if (s.len > most - s.at) {
        s.len = most - s.at;
    }
    if (s.kind == COPY) {
        s.arg %= most - s.len + 1;
        s.arg = s.arg > PAGE && rng() % 3 == 0 ? s.arg / PAGE * PAGE + s.at % PAGE : s.arg;
        s.arg = s.arg + s.len > most ? most - s.len : s.arg;
    }
    return s;
}

static bool read_step(FILE *in, step *s)
{
    char name[32];
    if (fscanf(in, "%31s %" SCNu64 " %" SCNu64 " %" SCNu64, name, &s->at, &s->len, &s->arg) != 4) {
        return false;
    }
    for (unsigned k = 0; k < KINDS; k++) {
        if (strcmp(name, kinds[k].name) == 0) {
            s->kind = (enum kind)k;
            return s->at < most && s->len <= most - s->at;
        }
    }
    return false;
}

static void load(const char *name)
{
    FILE *in = fopen(name, "rb");
    if (in == NULL || fread(&size, sizeof size, 1, in) != 1 || size > most || fread(model, 1, size, in) != size) {
        fail("reading %s", name);
    }
    (void)fclose(in);
}

static void save(const char *name)
{
    FILE *out = fopen(name, "wb");
    if (out == NULL || fwrite(&size, sizeof size, 1, out) != 1 || fwrite(model, 1, size, out) != size ||
        fclose(out) != 0) {
        fail("writing %s", name);
    }
}

static void read_all(void)
{
    const step whole = {READ, 0, most, 0};
    history[done % LOG] = whole;
    run(&whole);
    check_extents();
}

int main(int argc, char **argv)
{
    unsigned long long seed = 1;
    unsigned long long steps = 1000;
    const char *in = NULL;
    const char *out = NULL;
    const char *replay = NULL;
    const char *without = "";
    int option;
    while ((option = getopt(argc, argv, "s:n:m:b:i:o:x:r:v")) != -1) {
        switch (option) {
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'n': steps = strtoull(optarg, NULL, 0); break;
        case 'm': most = strtoull(optarg, NULL, 0) / PAGE * PAGE; break;
        case 'b': base = strtoull(optarg, NULL, 0) / PAGE * PAGE; break;
        case 'i': in = optarg; break;
        case 'o': out = optarg; break;
        case 'x': without = optarg; break;
        case 'r': replay = optarg; break;
        case 'v': verbose = true; break;
        default: return 2;
        }
    }
    if (optind + 1 != argc || most == 0) {
        return 2;
    }
    path = argv[optind];
    rng_state = seed;
    model = calloc(1, most);
    buffer = aligned_alloc(PAGE, most + PAGE);
    if (model == NULL || buffer == NULL) {
        fail("memory");
    }
    (void)printf("%s: seed %llu, %llu steps, window of %" PRIu64 " at %" PRIu64 "\n", path, seed, steps, most, base);
    (void)fflush(stdout);
    FILE *list = replay != NULL ? fopen(replay, "r") : NULL;
    if (replay != NULL && list == NULL) {
        fail("reading %s", replay);
    }
    if (in != NULL) {
        load(in);
    }
    open_all();
    if (in == NULL && ftruncate(fd, (off_t)base) != 0) {
        fail("ftruncate");
    }
    check_size();
    read_all();
    for (; list != NULL || done < steps; done++) {
        step s;
        if (list == NULL) {
            s = choose(without);
        } else if (!read_step(list, &s)) {
            break;
        }
        history[done % LOG] = s;
        if (verbose) {
            print_step(stderr, &s);
        }
        run(&s);
    }
    read_all();
    close_all();
    if (out != NULL) {
        save(out);
    }
    return 0;
}
