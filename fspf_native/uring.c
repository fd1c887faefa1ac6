/* See uring.h. The kernel's side is Documentation/filesystems/fuse-io-uring.rst and <linux/fuse.h> 7.42. */
#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define HEADROOM 4096u /* before the payload: the request's headers are put there, so that it is one message */
#define FIRST_THREADS 3u /* for each CPU */
#define FEW_IDLE 2 /* a request that finds none waits until another is answered, whoever comes meanwhile */
#define LARGE 65536u

struct wire_ring_header {
    char in_out[128]; /* fuse_in_header, then fuse_out_header */
    char op_in[128];
    uint64_t flags, commit_id;
    uint32_t payload_sz, padding;
    uint64_t reserved;
};

struct wire_ring_command {
    uint64_t flags, commit_id;
    uint16_t qid;
    uint8_t padding[6];
};

enum { COMMAND_REGISTER = 1, COMMAND_COMMIT_AND_FETCH = 2 };

typedef struct ring {
    worker w;
    relay *r;
    unsigned cpu;
    int fd;
    void *rings, *entries;
    size_t rings_len, entries_len;
    _Atomic unsigned *sq_tail, *cq_head, *cq_tail;
    unsigned sq_mask, cq_mask;
    struct io_uring_cqe *cqes;
    struct wire_ring_header *header;
    uint8_t *buffer; /* HEADROOM, then the payload */
    struct iovec iov[2];
    struct ring *next; /* waiting for the pool */
    size_t message_len;
    sem_t done;
} ring;

bool uring_available(void)
{
    char answer = 'N';
    FILE *file = fopen("/sys/module/fuse/parameters/enable_uring", "re");
    if (file != NULL) {
        answer = (char)fgetc(file);
        (void)fclose(file);
    }
    return answer == 'Y';
}

static void ring_close(ring *g)
{
    if (g == NULL) {
        return;
    }
    if (g->rings != NULL && g->rings != MAP_FAILED) {
        (void)munmap(g->rings, g->rings_len);
    }
    if (g->entries != NULL && g->entries != MAP_FAILED) {
        (void)munmap(g->entries, g->entries_len);
    }
    if (g->fd >= 0) {
        (void)close(g->fd);
    }
    free(g->header);
    free(g->buffer);
    free(g);
}

static ring *ring_open(relay *r, unsigned cpu, int *error)
{
    ring *g = calloc(1, sizeof *g);
    if (g == NULL) {
        *error = ENOMEM;
        return NULL;
    }
    g->r = r;
    g->cpu = cpu;
    g->fd = -1;
    (void)sem_init(&g->done, 0, 0);
    g->header = aligned_alloc(64, (sizeof *g->header + 63) / 64 * 64);
    g->buffer = aligned_alloc(4096, HEADROOM + RELAY_MAX_WRITE);
    struct io_uring_params p = {
        .flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
    };
    if (g->header == NULL || g->buffer == NULL) {
        *error = ENOMEM;
        ring_close(g);
        return NULL;
    }
    g->fd = (int)syscall(SYS_io_uring_setup, 2, &p);
    if (g->fd < 0 || (p.features & IORING_FEAT_SINGLE_MMAP) == 0) {
        *error = g->fd < 0 ? errno : EOPNOTSUPP;
        ring_close(g);
        return NULL;
    }
    size_t sq = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    g->rings_len = sq > cq ? sq : cq;
    g->entries_len = p.sq_entries * 128u;
    g->rings = mmap(NULL, g->rings_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, g->fd, IORING_OFF_SQ_RING);
    g->entries = mmap(NULL, g->entries_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, g->fd, IORING_OFF_SQES);
    if (g->rings == MAP_FAILED || g->entries == MAP_FAILED) {
        *error = errno;
        ring_close(g);
        return NULL;
    }
    char *base = g->rings;
    g->sq_tail = (_Atomic unsigned *)(void *)(base + p.sq_off.tail);
    g->cq_head = (_Atomic unsigned *)(void *)(base + p.cq_off.head);
    g->cq_tail = (_Atomic unsigned *)(void *)(base + p.cq_off.tail);
    memcpy(&g->sq_mask, base + p.sq_off.ring_mask, sizeof g->sq_mask);
    memcpy(&g->cq_mask, base + p.cq_off.ring_mask, sizeof g->cq_mask);
    g->cqes = (struct io_uring_cqe *)(void *)(base + p.cq_off.cqes);
    unsigned *array = (unsigned *)(void *)(base + p.sq_off.array);
    for (unsigned i = 0; i < p.sq_entries; i++) {
        array[i] = i;
    }
    g->iov[0] = (struct iovec){g->header, sizeof *g->header};
    g->iov[1] = (struct iovec){g->buffer + HEADROOM, RELAY_MAX_WRITE};
    return g;
}

/* Hand a command over and wait for the next request. 0, or an errno. */
static int ring_turn(ring *g, uint32_t command, uint64_t commit_id)
{
    unsigned tail = atomic_load_explicit(g->sq_tail, memory_order_relaxed);
    uint8_t *sqe = (uint8_t *)g->entries + (size_t)(tail & g->sq_mask) * 128;
    memset(sqe, 0, 128);
    struct io_uring_sqe *head = (struct io_uring_sqe *)(void *)sqe;
    head->opcode = IORING_OP_URING_CMD;
    head->fd = g->r->device;
    head->cmd_op = command;
    head->addr = (uint64_t)(uintptr_t)g->iov;
    head->len = 2;
    struct wire_ring_command body = {.commit_id = commit_id, .qid = (uint16_t)g->cpu};
    memcpy(sqe + offsetof(struct io_uring_sqe, cmd), &body, sizeof body);
    atomic_store_explicit(g->sq_tail, tail + 1, memory_order_release);
    unsigned to_submit = 1;
    for (;;) {
        long done = syscall(SYS_io_uring_enter, g->fd, to_submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        if (done < 0 && errno != EINTR) {
            return errno;
        }
        if (done > 0) {
            to_submit = 0;
        }
        if (g->r->stopping) {
            return ECANCELED;
        }
        unsigned at = atomic_load_explicit(g->cq_head, memory_order_relaxed);
        if (at != atomic_load_explicit(g->cq_tail, memory_order_acquire)) {
            int result = g->cqes[at & g->cq_mask].res;
            atomic_store_explicit(g->cq_head, at + 1, memory_order_release);
            return result < 0 ? -result : 0;
        }
    }
}

/* ---- large reads and writes: worth waking another CPU, while whoever asked goes on on this one ---- */

static bool is_large(const struct fuse_in_header *in, const char *op_in)
{
    if (in->opcode == FUSE_WRITE) {
        return in->len >= LARGE;
    }
    struct fuse_read_in body;
    memcpy(&body, op_in, sizeof body);
    return in->opcode == FUSE_READ && body.size >= LARGE;
}

static void *pool_loop(void *argument)
{
    relay *r = argument;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_mutex_lock(&r->pool_lock);
    while (!r->pool_ending || r->pool_first != NULL) {
        ring *g = r->pool_first;
        if (g == NULL) {
            pthread_cond_wait(&r->pool_work, &r->pool_lock);
            continue;
        }
        r->pool_first = g->next;
        if (r->pool_first == NULL) {
            r->pool_last = NULL;
        }
        pthread_mutex_unlock(&r->pool_lock);
        relay_serve(&g->w, g->message_len);
        (void)sem_post(&g->done);
        pthread_mutex_lock(&r->pool_lock);
    }
    pthread_mutex_unlock(&r->pool_lock);
    return NULL;
}

static void delegate(ring *g, size_t len)
{
    relay *r = g->r;
    g->message_len = len;
    g->next = NULL;
    pthread_mutex_lock(&r->pool_lock);
    if (r->pool_last != NULL) {
        r->pool_last->next = g;
    } else {
        r->pool_first = g;
    }
    r->pool_last = g;
    pthread_cond_signal(&r->pool_work);
    pthread_mutex_unlock(&r->pool_lock);
    while (sem_wait(&g->done) != 0) {
    }
}

static void serve_turn(ring *g)
{
    struct fuse_in_header in;
    memcpy(&in, g->header->in_out, sizeof in);
    size_t payload = g->header->payload_sz;
    if (in.len < sizeof in + payload || in.len - sizeof in - payload > sizeof g->header->op_in ||
        payload > RELAY_MAX_WRITE) {
        g->w.out_len = 0;
        g->w.error = -EINVAL;
        return;
    }
    size_t head = in.len - sizeof in - payload;
    uint8_t *start = g->buffer + HEADROOM - head - sizeof in;
    memcpy(start, &in, sizeof in);
    memcpy(start + sizeof in, g->header->op_in, head);
    g->w.in = start;
    if (is_large(&in, g->header->op_in)) {
        delegate(g, in.len);
    } else {
        relay_serve(&g->w, in.len);
    }
}

static void *ring_loop(void *argument)
{
    ring *g = argument;
    relay *r = g->r;
    unsigned cpu = g->cpu;
    sigset_t all;
    cpu_set_t cpus;
    int error = 0;
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGURG);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    CPU_ZERO(&cpus);
    CPU_SET(g->cpu, &cpus);
    (void)sched_setaffinity(0, sizeof cpus, &cpus); /* refused: it works all the same, only slower */
    pthread_mutex_lock(&r->lock);
    int place = r->ring_count++;
    r->ring_thread[place] = gettid();
    pthread_mutex_unlock(&r->lock);
    ring *made = ring_open(r, g->cpu, &error); /* by the thread that will use it, as SINGLE_ISSUER asks */
    free(g);
    g = made;
    uint32_t command = COMMAND_REGISTER;
    uint64_t commit_id = 0;
    while (g != NULL && !r->stopping) {
        g->w.r = r;
        g->w.ring = g;
        g->w.cpu = g->cpu;
        g->w.out = g->buffer + HEADROOM - sizeof(struct fuse_out_header);
        error = ring_turn(g, command, commit_id);
        if (error == EAGAIN && command == COMMAND_REGISTER) {
            (void)usleep(500); /* the kernel has not taken the answer to INIT yet */
            continue;
        }
        if (error != 0) {
            break;
        }
        struct fuse_in_header in;
        memcpy(&in, g->header->in_out, sizeof in);
        commit_id = g->header->commit_id;
        command = COMMAND_COMMIT_AND_FETCH;
        if (atomic_fetch_sub(&r->ring_idle[g->cpu], 1) <= FEW_IDLE) {
            uring_grow(r, g->cpu);
        }
        serve_turn(g);
        atomic_fetch_add(&r->ring_idle[g->cpu], 1);
        struct fuse_out_header out = {
            .len = (uint32_t)(sizeof out + g->w.out_len), .error = g->w.error, .unique = in.unique,
        };
        memcpy(g->header->in_out, &out, sizeof out);
        g->header->payload_sz = (uint32_t)g->w.out_len;
    }
    ring_close(g);
    atomic_fetch_sub(&r->ring_idle[cpu], 1);
    pthread_mutex_lock(&r->lock);
    r->ring_thread[place] = 0;
    r->ring_running--;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static int add_thread(relay *r, unsigned cpu)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int result = EAGAIN;
    pthread_mutex_lock(&r->lock);
    ring *seed = NULL;
    if (!r->stopping && r->ring_threads[cpu] < RELAY_MAX_THREADS && (seed = calloc(1, sizeof *seed)) != NULL) {
        seed->r = r;
        seed->cpu = cpu;
        (void)pthread_attr_init(&attributes);
        (void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        atomic_fetch_add(&r->ring_idle[cpu], 1);
        result = pthread_create(&thread, &attributes, ring_loop, seed);
        (void)pthread_attr_destroy(&attributes);
        if (result == 0) {
            r->ring_threads[cpu]++;
            r->ring_running++;
        } else {
            atomic_fetch_sub(&r->ring_idle[cpu], 1);
            free(seed);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return result;
}

void uring_grow(relay *r, unsigned cpu)
{
    (void)add_thread(r, cpu);
}

int uring_start(relay *r)
{
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    int result = cpus < 1 || cpus > RELAY_MAX_CPUS ? EOPNOTSUPP : 0;
    while (result == 0 && r->pool_count < RELAY_POOL) {
        result = pthread_create(&r->pool_threads[r->pool_count], NULL, pool_loop, r);
        r->pool_count += result == 0;
    }
    for (unsigned cpu = 0; result == 0 && cpu < (unsigned)cpus; cpu++) {
        for (unsigned i = 0; i < FIRST_THREADS && result == 0; i++) {
            result = add_thread(r, cpu);
        }
    }
    return result;
}

void uring_stop(relay *r)
{
    pthread_mutex_lock(&r->lock);
    while (r->ring_running > 0) {
        for (int i = 0; i < r->ring_count; i++) {
            if (r->ring_thread[i] != 0) {
                (void)syscall(SYS_tgkill, getpid(), r->ring_thread[i], SIGURG);
            }
        }
        struct timespec until;
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 20000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        (void)pthread_cond_timedwait(&r->changed, &r->lock, &until);
    }
    pthread_mutex_unlock(&r->lock);
    pthread_mutex_lock(&r->pool_lock);
    r->pool_ending = true; /* only now: no ring's thread is left that may give it something */
    pthread_cond_broadcast(&r->pool_work);
    pthread_mutex_unlock(&r->pool_lock);
    while (r->pool_count > 0) {
        (void)pthread_join(r->pool_threads[--r->pool_count], NULL);
    }
}
