/* Drives the C files of fspf_native without Python, under sanitizers.
 *
 *   harness ops SEED STEPS DIRECTORY      random operations against a plain array
 *   harness faults SEED STEPS DIRECTORY   the same while reads are short, writes fail, are short or interrupted
 *   harness threads SEED MS DIRECTORY     many threads on the same and on different trees
 *
 * It defines pread, pwrite, preadv and fallocate itself, so that they can fail.
 */
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            (void)fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);   \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

/* ---- faults ---- */

static _Atomic unsigned write_failures; /* per mille */
static _Atomic unsigned oddities;       /* short or interrupted calls, per mille */
static _Thread_local uint64_t random_state = 88172645463325252u;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * UINT64_C(0x2545F4914F6CDD1D) >> 11;
}

static uint64_t below(uint64_t n)
{
    return next_random() % n;
}

static bool strikes(unsigned per_mille)
{
    return per_mille > 0 && below(1000) < per_mille;
}

static _Atomic bool sync_fails;

int fdatasync(int fd)
{
    if (sync_fails) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static int failure(void)
{
    return below(2) ? ENOSPC : EIO;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t offset)
{
    if (strikes(write_failures)) {
        errno = failure();
        return -1;
    }
    if (strikes(oddities)) {
        if (below(2)) {
            errno = EINTR;
            return -1;
        }
        len = 1 + below(len);
    }
    return syscall(SYS_pwrite64, fd, data, len, offset);
}

ssize_t pread(int fd, void *data, size_t len, off_t offset)
{
    if (strikes(oddities)) {
        if (below(2)) {
            errno = EINTR;
            return -1;
        }
        len = 1 + below(len);
    }
    return syscall(SYS_pread64, fd, data, len, offset);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    if (strikes(oddities)) {
        return pread(fd, iov[0].iov_base, iov[0].iov_len, offset);
    }
    return syscall(SYS_preadv, fd, iov, count, offset, 0);
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    if (strikes(write_failures)) {
        errno = ENOSPC;
        return -1;
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

/* ---- one tree against an array ---- */

#define MODEL_MAX (3u << 20)

static uint8_t model[MODEL_MAX];
static uint8_t scratch_bytes[MODEL_MAX];
static uint8_t read_back[MODEL_MAX + 4096];
static uint64_t model_size;

static store *open_store(const char *directory, uint32_t epoch, uint32_t chunk_size)
{
    store *st = NULL;
    fspf_error err = {0};
    uint8_t key[KEY_LEN];
    CHECK(store_open(directory, chunk_size, 64, true, below(3) * 100000, 64, 0, &st, &err) == ST_OK);
    for (uint32_t e = 1; e <= epoch; e++) {
        memset(key, (int)e, sizeof key);
        CHECK(store_add_epoch(st, e, key, e == epoch, &err) == ST_OK);
    }
    return st;
}

static void compare(tree *t)
{
    fspf_error err = {0};
    size_t got = 0;
    CHECK(tree_size(t) == model_size);
    CHECK(tree_read(t, 0, read_back, sizeof read_back, &got, &err) == ST_OK);
    CHECK(got == model_size && memcmp(read_back, model, got) == 0);
}

static bool host_error(fspf_status status, const fspf_error *err)
{
    return status == ST_OS && (err->os_errno == ENOSPC || err->os_errno == EIO);
}

static void step_write(tree *t, bool faults)
{
    fspf_error err = {0};
    size_t got = 0;
    uint64_t offset = below(model_size + 20000);
    uint64_t len = below(4) ? below(9000) : below(300000);
    if (below(2)) {
        offset &= ~UINT64_C(4095);
    }
    offset = min_u64(offset, MODEL_MAX - 300000);
    for (uint64_t i = 0; i < len; i++) {
        scratch_bytes[i] = (uint8_t)next_random();
    }
    fspf_status status = tree_write(t, offset, scratch_bytes, len, &err);
    if (status == ST_OK) {
        if (len > 0 && offset + len > model_size) {
            memset(model + model_size, 0, offset + len - model_size);
            model_size = offset + len;
        }
        memcpy(model + offset, scratch_bytes, len);
        return;
    }
    CHECK(faults && host_error(status, &err));
    CHECK(tree_size(t) == model_size);
    CHECK(tree_read(t, 0, read_back, sizeof read_back, &got, &err) == ST_OK && got == model_size);
    for (uint64_t i = 0; i < model_size; i++) { /* each byte is the old or the new one */
        bool in = i >= offset && i < offset + len;
        CHECK(read_back[i] == model[i] || (in && read_back[i] == scratch_bytes[i - offset]));
    }
    memcpy(model, read_back, model_size);
}

static void run_ops(uint64_t steps, const char *directory, bool faults)
{
    fspf_error err = {0};
    uint32_t epoch = 1;
    uint32_t chunk_size = below(3) ? 4096 : 8192;
    protection_mode protection = below(3) ? PROTECT_ENCRYPT : PROTECT_AUTHENTICATE;
    store *st = open_store(directory, epoch, chunk_size);
    CHECK(store_start(st, NULL, 0, false, &err) == ST_OK);
    content_root root = {0};
    uint64_t root_allocated = 0;
    tree *t = NULL;
    uint64_t number = 0;
    uint64_t bytes = 0;
    CHECK(tree_new(st, &root, protection, 0, below(2), &t, &err) == ST_OK);
    for (uint64_t i = 0; i < steps; i++) {
        fspf_status status = ST_OK;
        err = (fspf_error){0};
        if (faults) {
            write_failures = below(3) ? 0 : 100;
            oddities = 100;
        }
        switch (below(12)) {
        case 0: {
            uint64_t size = min_u64(below(model_size + 30000), MODEL_MAX);
            status = tree_truncate(t, size, &err);
            CHECK(status == ST_OK || faults);
            if (status == ST_OK) {
                if (size > model_size) {
                    memset(model + model_size, 0, size - model_size);
                }
                model_size = size;
            }
            break;
        }
        case 1: {
            uint64_t offset = below(model_size + 10);
            uint64_t len = below(100000);
            status = tree_punch(t, offset, len, &err);
            CHECK(status == ST_OK || faults);
            if (offset < model_size) {
                memset(model + offset, 0, min_u64(len, model_size - offset));
            }
            if (status != ST_OK) { /* done, or not at all */
                CHECK(host_error(status, &err));
                size_t got = 0;
                CHECK(tree_read(t, 0, read_back, sizeof read_back, &got, &err) == ST_OK && got == model_size);
                memcpy(model, read_back, model_size);
            }
            break;
        }
        case 2:
        case 3: {
            content_root flushed;
            status = tree_flush(t, &flushed, &err);
            CHECK(status == ST_OK || (faults && host_error(status, &err)));
            if (status != ST_OK) {
                write_failures = 0;
                CHECK(tree_dirty(t));
                compare(t);
                CHECK(tree_flush(t, &flushed, &err) == ST_OK);
            }
            root = flushed;
            root_allocated = tree_allocated(t);
            CHECK(store_commit_begin(st, &number) == ST_OK);
            CHECK(store_commit_anchored(st, number, &err) == ST_OK);
            if (below(2)) {
                tree_free(t);
                CHECK(tree_new(st, &root, protection, root_allocated, below(2), &t, &err) == ST_OK);
            }
            break;
        }
        case 4:
            status = slots_trim(&st->slots, &bytes, &err);
            CHECK(status == ST_OK || faults);
            break;
        case 5: {
            uint64_t found = 0;
            uint64_t offset = below(model_size + 10);
            status = tree_seek(t, offset, below(2), &found, &err);
            CHECK(status == ST_OK ? found >= offset && found <= model_size : err.os_errno == ENXIO);
            break;
        }
        case 6:
            if (epoch < 200 && below(5) == 0) { /* a crash: back to the last commit */
                tree *old = NULL;
                size_t got = 0;
                uint64_t gained = 0;
                uint64_t end = slots_end(&st->slots);
                tree_free(t);
                store_unref(st);
                write_failures = 0;
                epoch++;
                st = open_store(directory, epoch, chunk_size);
                CHECK(store_start(st, NULL, end, true, &err) == ST_OK);
                CHECK(tree_new(st, &root, protection, root_allocated, false, &old, &err) == ST_OK);
                CHECK(tree_read(old, 0, model, sizeof model, &got, &err) == ST_OK && got == root.size);
                model_size = got;
                t = old;
                step_write(t, false);
                CHECK(store_rebuild_mark(st, &root, protection, &bytes, &err) == ST_OK);
                CHECK(slots_rebuild_finish(&st->slots, &gained, &err) == ST_OK);
            }
            break;
        case 7:
            compare(t);
            break;
        default:
            step_write(t, faults);
            break;
        }
    }
    write_failures = 0;
    tree_finding *findings = NULL;
    size_t count = 0;
    uint64_t lost = 0;
    compare(t);
    CHECK(tree_verify(t, 10, &findings, &count, &err) == ST_OK && count == 0);
    free(findings);
    CHECK(tree_destroy(t, &lost, &err) == ST_OK && lost == 0);
    tree_free(t);
    CHECK(store_commit_begin(st, &number) == ST_OK && store_commit_anchored(st, number, &err) == ST_OK);
    CHECK(st->slots.used_count == st->slots.reserve.slots);
    CHECK(st->slots.stray_frees == 0 && st->dirty_bytes == 0 && st->pending_count == 0);
    CHECK(st->dirty_chunk_bytes == 0 && st->dirty_blocks == 0);
    if (faults) { /* pages of a failed sync may be gone: no later one may claim that all is well */
        CHECK(segments_sync(&st->slots.files, &bytes, &err) == ST_OK);
        CHECK(tree_new(st, &(content_root){0}, protection, 0, false, &t, &err) == ST_OK);
        CHECK(tree_write(t, 0, model, 100000, &err) == ST_OK);
        sync_fails = true;
        CHECK(segments_sync(&st->slots.files, &bytes, &err) == ST_OS && err.os_errno == EIO);
        sync_fails = false;
        CHECK(segments_sync(&st->slots.files, &bytes, &err) == ST_OS && err.os_errno == EIO);
        tree_free(t);
    }
    store_unref(st);
}

/* ---- threads ---- */

#define TREES 6u
#define THREADS 6u
#define TREE_CHUNKS 600u

static store *shared;
static tree *shared_trees[TREES];
static pthread_rwlock_t gates[TREES]; /* held exclusively only to put another tree in its place */
static _Atomic bool stop_threads;
static _Atomic uint64_t seeds;

/* A chunk says who it is, all over: a torn or misplaced one would show. */
static void fill(uint8_t *chunk, uint64_t index, uint64_t version)
{
    for (size_t i = 0; i < 4096; i += 16) {
        store_le64(chunk + i, index + 1);
        store_le64(chunk + i + 8, version);
    }
}

static void check_chunk(const uint8_t *chunk, uint64_t index)
{
    uint64_t who = load_le64(chunk);
    uint64_t version = load_le64(chunk + 8);
    CHECK(who == index + 1 || (who == 0 && version == 0));
    for (size_t i = 0; i < 4096; i += 16) {
        CHECK(load_le64(chunk + i) == who && load_le64(chunk + i + 8) == version);
    }
}

static void *work(void *unused)
{
    (void)unused;
    random_state = 1 + atomic_fetch_add(&seeds, 7919);
    uint8_t *buffer = malloc(64 * 4096);
    while (!stop_threads) {
        fspf_error err = {0};
        size_t which = below(TREES);
        uint64_t first = below(TREE_CHUNKS);
        uint64_t count = 1 + below(below(4) ? 4 : 40);
        fspf_status status = ST_OK;
        content_root root;
        uint64_t number = 0;
        uint64_t found = 0;
        size_t got = 0;
        unsigned what = (unsigned)below(40);
        if (what == 0) {
            pthread_rwlock_wrlock(&gates[which]);
            if (below(2)) {
                CHECK(tree_destroy(shared_trees[which], &found, &err) == ST_OK && found == 0);
            } else { /* close and open again */
                CHECK(tree_flush(shared_trees[which], &root, &err) == ST_OK);
                uint64_t allocated = tree_allocated(shared_trees[which]);
                tree_free(shared_trees[which]);
                CHECK(tree_new(shared, &root, which & 1 ? PROTECT_AUTHENTICATE : PROTECT_ENCRYPT, allocated, false,
                               &shared_trees[which], &err) == ST_OK);
            }
            pthread_rwlock_unlock(&gates[which]);
            continue;
        }
        pthread_rwlock_rdlock(&gates[which]);
        tree *t = shared_trees[which];
        if (what < 14) {
            uint64_t version = next_random();
            for (uint64_t i = 0; i < count; i++) {
                fill(buffer + i * 4096, first + i, version);
            }
            status = tree_write(t, first * 4096, buffer, count * 4096, &err);
        } else if (what < 32) {
            status = tree_read(t, first * 4096, buffer, count * 4096, &got, &err);
            for (size_t i = 0; (i + 1) * 4096 <= got; i++) {
                check_chunk(buffer + i * 4096, first + i);
            }
        } else if (what == 32) {
            status = tree_truncate(t, first * 4096, &err);
        } else if (what == 33) {
            status = tree_punch(t, first * 4096, count * 4096, &err);
        } else if (what == 34) {
            status = tree_seek(t, first * 4096, below(2), &found, &err);
            status = status == ST_OS && err.os_errno == ENXIO ? ST_OK : status;
        } else if (what == 35) {
            tree_finding *findings = NULL;
            status = tree_verify(t, 10, &findings, &got, &err);
            CHECK(status != ST_OK || got == 0);
            free(findings);
        } else if (what == 36) {
            status = slots_trim(&shared->slots, &found, &err);
        } else {
            status = tree_flush(t, &root, &err);
            if (status == ST_OK) {
                status = store_commit_begin(shared, &number);
            }
            if (status == ST_OK) {
                status = segments_sync(&shared->slots.files, &found, &err);
            }
            if (status == ST_OK) {
                status = store_commit_anchored(shared, number, &err);
            }
        }
        CHECK(status == ST_OK);
        pthread_rwlock_unlock(&gates[which]);
    }
    free(buffer);
    return NULL;
}

static void run_threads(uint64_t milliseconds, const char *directory)
{
    fspf_error err = {0};
    content_root empty = {0};
    pthread_t threads[THREADS];
    uint64_t number = 0;
    uint64_t lost = 0;
    shared = open_store(directory, 1, 4096);
    shared->slots.files.open_limit = 4; /* descriptors come and go */
    CHECK(store_start(shared, NULL, 0, false, &err) == ST_OK);
    for (size_t i = 0; i < TREES; i++) {
        (void)pthread_rwlock_init(&gates[i], NULL);
        CHECK(tree_new(shared, &empty, i & 1 ? PROTECT_AUTHENTICATE : PROTECT_ENCRYPT, 0, i == 0, &shared_trees[i],
                       &err) == ST_OK);
    }
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    }
    struct timespec wait = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000};
    (void)nanosleep(&wait, NULL);
    stop_threads = true;
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    for (size_t i = 0; i < TREES; i++) {
        tree_finding *findings = NULL;
        size_t count = 0;
        CHECK(tree_verify(shared_trees[i], 10, &findings, &count, &err) == ST_OK && count == 0);
        free(findings);
        CHECK(tree_destroy(shared_trees[i], &lost, &err) == ST_OK && lost == 0);
        tree_free(shared_trees[i]);
    }
    CHECK(store_commit_begin(shared, &number) == ST_OK && store_commit_anchored(shared, number, &err) == ST_OK);
    CHECK(shared->slots.used_count == shared->slots.reserve.slots);
    CHECK(shared->slots.stray_frees == 0 && shared->dirty_bytes == 0);
    store_unref(shared);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        (void)fprintf(stderr, "usage: harness ops|faults|threads SEED STEPS DIRECTORY\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[2], NULL, 10);
    uint64_t amount = strtoull(argv[3], NULL, 10);
    random_state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    seeds = seed;
    if (strcmp(argv[1], "threads") == 0) {
        run_threads(amount, argv[4]);
    } else {
        run_ops(amount, argv[4], strcmp(argv[1], "faults") == 0);
    }
    return 0;
}
