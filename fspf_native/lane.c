/* See lane.h. */
#include "lane.h"

#include "relay.h"
#include "secret.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define RING_HEAD 24u
#define LEAST_IN_A_RING 4u
#define MOST_TRIES 4u
#define MOST_RECORD (128u << 10) /* in the ring */
/* ---- writing ---- */

/* 0 or an errno. */
static int write_all(int fd, const uint8_t *data, size_t len, uint64_t offset)
{
    while (len > 0) {
        ssize_t written = pwrite(fd, data, len, (off_t)offset);
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno;
        }
        data += written;
        len -= (size_t)written;
        offset += (uint64_t)written;
    }
    return 0;
}

/* ---- the ring ---- */

static int64_t find_place(const lane *l, size_t length)
{
    const lane_end *now = &l->now;
    int64_t limit = now->kept_count > 0 ? (int64_t)now->kept[0].place : now->newest;
    if (length > l->ring_len / LEAST_IN_A_RING) {
        return -1;
    }
    if (limit >= (int64_t)now->end) {
        return now->end + length <= (uint64_t)limit ? (int64_t)now->end : -1;
    }
    if (now->end + length <= l->ring_len) {
        return (int64_t)now->end;
    }
    return limit < 0 || PAGE + length <= (uint64_t)limit ? (int64_t)PAGE : -1;
}

/* Is everything still as it was lent? The file is locked. */
static bool is_unchanged(const lane *l)
{
    uint8_t head[RING_HEAD];
    struct stat status;
    return pread(l->hot_fd, head, sizeof head, 0) == (ssize_t)sizeof head && memcmp(head, "FSPC-RNG", 8) == 0 &&
           load_le64(head + 8) == l->changes && stat(l->database, &status) == 0 && status.st_dev == l->device &&
           status.st_ino == l->inode;
}

/* The file is locked. False: it is not, or perhaps not, durable. */
static bool write_entry(lane *l)
{
    lane_end *now = &l->now;
    uint64_t expires_ns = lane_clock_ns(CLOCK_REALTIME) + l->lease_ns;
    if (!is_unchanged(l) || lane_make_entry(l, expires_ns) != 0) {
        return false;
    }
    int64_t place = now->kept_count < LANE_MOST_KEPT ? find_place(l, l->entry.len) : -1;
    if (place < 0) { /* the log takes over what the ring has */
        if (fdatasync(l->log_fd) != 0) {
            now->outcome = LANE_BROKEN;
            now->os_errno = errno;
            return false;
        }
        now->synced = now->generation;
        now->kept_count = 0;
        place = lane_make_entry(l, expires_ns) == 0 ? find_place(l, l->entry.len) : -1;
    }
    if (place < 0 || write_all(l->hot_fd, l->entry.data, l->entry.len, (uint64_t)place) != 0 ||
        fdatasync(l->hot_fd) != 0) {
        return false;
    }
    now->version++;
    now->newest = place;
    now->end = (uint64_t)place + l->entry.len;
    now->kept[now->kept_count++] = (lane_kept){now->generation, now->version, (uint64_t)place};
    now->anchor_generation = now->generation;
    memcpy(now->anchor_tag, now->tag, TAG_LEN);
    now->expires_ns = expires_ns;
    now->outcome = LANE_CLEAN;
    return true;
}

static bool anchor(lane *l)
{
    if (l->frame.len > MOST_RECORD) {
        return false;
    }
    int result;
    while ((result = flock(l->hot_fd, LOCK_EX)) != 0 && errno == EINTR) {
    }
    if (result != 0) {
        return false;
    }
    bool done = write_entry(l);
    (void)flock(l->hot_fd, LOCK_UN);
    return done;
}

/* ---- one commit, of whoever leads ---- */

/* Room to note them all, so that nothing can be lost of what is taken. */
static bool reserve_inos(lane *l, size_t count)
{
    lane_end *now = &l->now;
    if (now->ino_count + count > l->ino_capacity) {
        size_t capacity = 2 * l->ino_capacity + count + 16;
        uint64_t *grown = realloc(now->inos, capacity * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        now->inos = grown;
        l->ino_capacity = capacity;
    }
    return true;
}

static void note_ino(lane *l, uint64_t ino)
{
    lane_end *now = &l->now;
    for (size_t i = now->ino_count; i > 0; i--) {
        if (now->inos[i - 1] == ino) {
            return;
        }
    }
    now->inos[now->ino_count++] = ino;
}

/* What was taken is written, or Python is told that it is not. */
static bool commit_taken(relay *r, lane *l, bool has_rows, const log_piece *pieces, size_t piece_count)
{
    lane_end *now = &l->now;
    for (size_t i = 0; i < piece_count; i++) {
        note_ino(l, pieces[i].ino);
    }
    now->outcome = LANE_ROOT_DUE;
    uint8_t before[TAG_LEN];
    memcpy(before, now->tag, TAG_LEN);
    if (lane_make_frame(r, l, has_rows, pieces, piece_count) != 0 || now->log_end + l->frame.len > l->log_len) {
        memcpy(now->tag, before, TAG_LEN);
        return false;
    }
    int error = write_all(l->log_fd, l->frame.data, l->frame.len, now->log_end);
    if (error != 0) {
        memcpy(now->tag, before, TAG_LEN);
        now->outcome = LANE_BROKEN;
        now->os_errno = error;
        return false;
    }
    now->generation++;
    now->log_end += l->frame.len;
    now->count++;
    now->outcome = LANE_UNPROMISED;
    if (!anchor(l)) {
        return false;
    }
    uint64_t heard_ns = lane_clock_ns(CLOCK_BOOTTIME);
    now->contact_ns = heard_ns;
    atomic_store(&l->contact_ns, heard_ns);
    atomic_store(&l->anchored, now->generation);
    atomic_fetch_add(&l->records, 1);
    return true;
}

static bool commit_once(relay *r, lane *l, const uint64_t *inos, size_t count)
{
    if (r->meta.blocked != 0 || r->meta.no_space || lane_clock_ns(CLOCK_BOOTTIME) - l->now.contact_ns > l->silence_ns ||
        l->now.ino_count > LANE_MOST_ROWS) {
        return false;
    }
    log_piece *pieces = reserve_inos(l, count) ? malloc((count + 1) * sizeof *pieces) : NULL;
    if (pieces == NULL) {
        return false;
    }
    size_t piece_count = 0;
    bool has_rows = false;
    bool done = false;
    switch (content_take_for_lane(r, inos, count, pieces, &piece_count, &has_rows)) {
    case TAKE_NOTHING:
        break;
    case TAKE_ALL:
        done = (!has_rows && piece_count == 0) || commit_taken(r, l, has_rows, pieces, piece_count);
        break;
    case TAKE_LOST: /* the next root has to flush them all */
        for (size_t i = 0; i < count; i++) {
            note_ino(l, inos[i]);
        }
        l->now.outcome = LANE_ROOT_DUE;
        break;
    }
    for (size_t i = 0; i < piece_count; i++) {
        captured_clear(&pieces[i].what);
    }
    free(pieces);
    if (l->now.outcome != LANE_CLEAN) {
        atomic_store(&l->armed, false);
    }
    return done;
}

bool lane_fsync(relay *r, uint64_t ino)
{
    lane *l = &r->lane;
    uint64_t inos[LANE_MOST_WAITING];
    if (!atomic_load(&l->armed)) {
        return false;
    }
    pthread_mutex_lock(&l->lock);
    if (!atomic_load(&l->armed) || l->waiting_count == LANE_MOST_WAITING) {
        pthread_mutex_unlock(&l->lock);
        return false;
    }
    uint64_t mine = ++l->tickets;
    if (ino != 0) {
        l->waiting[l->waiting_count++] = ino;
    }
    while (l->running) {
        pthread_cond_wait(&l->done, &l->lock);
        if (l->served >= mine) {
            bool well = mine > l->refused;
            pthread_mutex_unlock(&l->lock);
            return well;
        }
    }
    if (!atomic_load(&l->armed)) {
        pthread_mutex_unlock(&l->lock);
        return false;
    }
    l->running = true;
    uint64_t serves = l->tickets;
    size_t count = l->waiting_count;
    memcpy(inos, l->waiting, count * sizeof *inos);
    l->waiting_count = 0;
    pthread_mutex_unlock(&l->lock);

    bool done = commit_once(r, l, inos, count);

    pthread_mutex_lock(&l->lock);
    l->running = false;
    l->served = serves;
    if (!done) {
        l->refused = serves;
    }
    pthread_cond_broadcast(&l->done);
    pthread_mutex_unlock(&l->lock);
    return done;
}

int lane_or_upcall(relay *r, uint64_t ino)
{
    /* Who waited for a commit of Python's that did not serve him comes back: the lane was lent again by it. Else all who
     * came during one of Python's would make up the next one, and so on. */
    for (unsigned tries = 0;; tries++) {
        if (lane_fsync(r, ino)) {
            return 0;
        }
        int error = r->up.fsync(r->up.context, ino, tries < MOST_TRIES);
        if (error >= 0) {
            return -error;
        }
    }
}

/* ---- lending ---- */

void lane_init(lane *l)
{
    memset(l, 0, sizeof *l);
    l->log_fd = l->hot_fd = -1;
    (void)pthread_mutex_init(&l->lock, NULL);
    (void)pthread_cond_init(&l->done, NULL);
}

static void let_go(lane *l)
{
    secret_free(l->log_key);
    secret_free(l->state_key);
    l->log_key = l->state_key = NULL;
    if (l->log_fd >= 0) {
        (void)close(l->log_fd);
    }
    if (l->hot_fd >= 0) {
        (void)close(l->hot_fd);
    }
    l->log_fd = l->hot_fd = -1;
    free(l->fixed);
    free(l->database);
    free(l->now.inos);
    l->fixed = NULL;
    l->database = NULL;
    l->now.inos = NULL;
    l->now.ino_count = l->ino_capacity = 0;
}

void lane_free(lane *l)
{
    let_go(l);
    lane_buffer_free(&l->rows);
    lane_buffer_free(&l->plain);
    lane_buffer_free(&l->frame);
    lane_buffer_free(&l->entry);
    lane_buffer_free(&l->state);
    (void)pthread_mutex_destroy(&l->lock);
    (void)pthread_cond_destroy(&l->done);
}

static uint8_t *copy_key(const uint8_t *key)
{
    uint8_t *own = secret_alloc();
    if (own != NULL) {
        memcpy(own, key, KEY_LEN);
    }
    return own;
}

static bool take_orders(lane *l, const lane_orders *o)
{
    let_go(l);
    if (o->kept_count > LANE_MOST_KEPT) {
        return false;
    }
    l->log_key = copy_key(o->log_key);
    l->state_key = copy_key(o->state_key);
    l->log_fd = fcntl(o->log_fd, F_DUPFD_CLOEXEC, 0);
    l->hot_fd = fcntl(o->hot_fd, F_DUPFD_CLOEXEC, 0);
    l->database = strdup(o->database);
    l->fixed = malloc(o->aad_len + o->before_len + o->between_len + o->after_len + 1);
    if (l->log_key == NULL || l->state_key == NULL || l->log_fd < 0 || l->hot_fd < 0 || l->database == NULL ||
        l->fixed == NULL) {
        return false;
    }
    memcpy(l->aad, o->header, HEADER_BYTES);
    memcpy(l->volume_id, o->volume_id, sizeof l->volume_id);
    uint8_t *at = l->fixed;
    const struct {
        const uint8_t *data;
        size_t len;
    } parts[] = {{o->aad, o->aad_len}, {o->before, o->before_len}, {o->between, o->between_len}, {o->after, o->after_len}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        memcpy(at, parts[i].data, parts[i].len);
        at += parts[i].len;
    }
    l->aad_len = o->aad_len;
    l->before_len = o->before_len;
    l->between_len = o->between_len;
    l->after_len = o->after_len;
    l->key_version = o->key_version;
    l->epoch = o->epoch;
    l->log_len = o->log_len;
    l->ring_len = o->ring_len;
    l->silence_ns = o->silence_ns;
    l->changes = o->changes;
    l->lease_ns = o->lease_ns;
    l->device = o->device;
    l->inode = o->inode;
    l->now = (lane_end){
        .generation = o->generation, .log_end = o->log_end, .anchor_generation = o->generation, .synced = 0,
        .version = o->version, .expires_ns = o->expires_ns, .end = o->end, .newest = o->newest,
        .contact_ns = o->contact_ns, .kept_count = o->kept_count,
    };
    memcpy(l->now.tag, o->tag, TAG_LEN);
    memcpy(l->now.anchor_tag, o->tag, TAG_LEN);
    if (o->kept_count > 0) {
        memcpy(l->now.kept, o->kept, o->kept_count * sizeof *o->kept);
    }
    return true;
}

int lane_lend(lane *l, const lane_orders *orders)
{
    int result = -1;
    pthread_mutex_lock(&l->lock);
    if (!l->lent && !l->running) {
        if (take_orders(l, orders)) {
            l->lent = true;
            l->waiting_count = 0;
            atomic_store(&l->contact_ns, orders->contact_ns);
            atomic_store(&l->anchored, orders->generation);
            atomic_store(&l->armed, true);
            result = 0;
        } else {
            let_go(l);
        }
    }
    pthread_mutex_unlock(&l->lock);
    return result;
}

void lane_pause_gate_held(lane *l)
{
    atomic_store(&l->armed, false);
}

bool lane_may_take(const lane *l)
{
    return atomic_load(&l->armed);
}

bool lane_take_back(lane *l, lane_end *out)
{
    pthread_mutex_lock(&l->lock);
    atomic_store(&l->armed, false);
    while (l->running) {
        pthread_cond_wait(&l->done, &l->lock);
    }
    bool lent = l->lent;
    if (lent) {
        *out = l->now;
        l->now.inos = NULL;
        let_go(l);
        l->lent = false;
    }
    pthread_mutex_unlock(&l->lock);
    return lent;
}
