/* Threads, descriptors and routing of the relay. What requests mean is in ops_*.c. */
#include "relay.h"
#include "uring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define CONTROL_BYTES (RELAY_MAX_WRITE + 65536u)
#define READ_AHEAD (4u << 20)
#define FEW_IDLE 1
#define KEEP_IDLE 2
#define FORGET_PAUSE_US 5000
#define PATIENCE_NS 250000000 /* without a write, when all wait for one */

/* ---- talking to the kernel ---- */

static bool write_reply(relay *r, int fd, const void *data, size_t len)
{
    for (;;) {
        ssize_t written = write(fd, data, len);
        if (written >= 0) {
            return true;
        }
        if (errno != EINTR) {
            if (errno != ENOENT) { /* the request was given up */
                atomic_fetch_add_explicit(&r->stats.errors, 1, memory_order_relaxed);
            }
            return false;
        }
    }
}

static void reply_error(relay *r, int fd, uint64_t unique, int error)
{
    struct fuse_out_header out = {.len = sizeof out, .error = error, .unique = unique};
    (void)write_reply(r, fd, &out, sizeof out);
}

static void notify_inode(int device, uint64_t ino, int64_t offset)
{
    struct {
        struct fuse_out_header header;
        struct fuse_notify_inval_inode_out body;
    } out = {.header = {.len = sizeof out, .error = FUSE_NOTIFY_INVAL_INODE}, .body = {.ino = ino, .off = offset}};
    (void)!write(device, &out, sizeof out); /* ENOENT: the kernel does not know it */
}

void relay_invalidate(relay *r, uint64_t ino)
{
    notify_inode(r->device, ino, -1);
}

typedef struct {
    int device;
    uint64_t ino;
    sem_t done;
    _Atomic int users;
} write_back;

static void write_back_let_go(write_back *w)
{
    if (atomic_fetch_sub(&w->users, 1) == 1) {
        (void)close(w->device);
        (void)sem_destroy(&w->done);
        free(w);
    }
}

static void *write_back_run(void *argument)
{
    write_back *w = argument;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    notify_inode(w->device, w->ino, 0);
    (void)sem_post(&w->done);
    write_back_let_go(w);
    return NULL;
}

bool relay_write_back(relay *r, uint64_t ino)
{
    pthread_t thread;
    pthread_attr_t attributes;
    write_back *w = calloc(1, sizeof *w);
    if (w == NULL || (w->device = fcntl(r->device, F_DUPFD_CLOEXEC, 0)) < 0) {
        free(w);
        return false;
    }
    w->ino = ino;
    w->users = 2;
    (void)sem_init(&w->done, 0, 0);
    (void)pthread_attr_init(&attributes);
    (void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    bool done = pthread_create(&thread, &attributes, write_back_run, w) == 0;
    (void)pthread_attr_destroy(&attributes);
    if (!done) {
        write_back_let_go(w);
    }
    /* The kernel gives a waiting request to a thread only when that one has answered another: with every thread in
     * here, the writes that all wait for would never come. */
    for (bool going_on = done; going_on;) {
        uint64_t writes = r->stats.requests[FUSE_WRITE];
        struct timespec until;
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += PATIENCE_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        int result;
        while ((result = sem_timedwait(&w->done, &until)) != 0 && errno == EINTR) {
        }
        done = result == 0;
        going_on = !done && !r->stopping && r->stats.requests[FUSE_WRITE] != writes;
    }
    write_back_let_go(w);
    return done;
}

/* ---- slow requests ---- */

typedef struct {
    uint32_t opcode;
    int fd;
    worker *ring; /* the thread that waits for the answer, or NULL */
} slow_request;

/* 0 or -errno. */
static int remember_slow(request *req)
{
    relay *r = req->r;
    int result = 0;
    slow_request *slow = malloc(sizeof *slow);
    if (slow == NULL) {
        return -ENOMEM;
    }
    *slow = (slow_request){req->in->opcode, req->w->fd, req->w->ring != NULL ? req->w : NULL};
    pthread_mutex_lock(&r->lock);
    if (r->control_gone) {
        result = -EIO;
    } else if (req->in->unique == MAP64_EMPTY || map64_get(&r->slow, req->in->unique) != NULL) {
        result = -EINVAL; /* no kernel numbers its requests so */
    } else if (!map64_reserve(&r->slow)) {
        result = -ENOMEM;
    } else {
        req->w->waiting = slow->ring != NULL;
        map64_put(&r->slow, req->in->unique, slow);
    }
    pthread_mutex_unlock(&r->lock);
    if (result != 0) {
        free(slow);
    }
    return result;
}

/* Opcode 0: nobody waits for it. */
static slow_request take_slow(relay *r, uint64_t unique)
{
    pthread_mutex_lock(&r->lock);
    slow_request *found = map64_remove(&r->slow, unique);
    pthread_mutex_unlock(&r->lock);
    slow_request slow = found != NULL ? *found : (slow_request){0};
    free(found);
    return slow;
}

/* Give an answer to whoever has the request: the kernel, or the thread that keeps it. */
static void settle(relay *r, const slow_request *slow, uint8_t *message, size_t len)
{
    const struct fuse_out_header *out = (const struct fuse_out_header *)(const void *)message;
    worker *w = slow->ring;
    if (w == NULL) {
        (void)write_reply(r, slow->fd, message, len);
        return;
    }
    size_t body = len - sizeof *out;
    if (body > RELAY_MAX_WRITE) {
        body = 0;
    }
    memcpy(w->out + sizeof *out, message + sizeof *out, body);
    w->out_len = body;
    w->error = out->error;
    pthread_mutex_lock(&r->lock);
    w->waiting = false;
    pthread_cond_broadcast(&r->answered);
    pthread_mutex_unlock(&r->lock);
}

static void settle_error(relay *r, const slow_request *slow, uint64_t unique, int error)
{
    struct fuse_out_header out = {.len = sizeof out, .error = error, .unique = unique};
    settle(r, slow, (uint8_t *)&out, sizeof out);
}

static void pass_on(request *req)
{
    relay *r = req->r;
    const struct fuse_in_header *in = req->in;
    uint64_t unique = in->unique;
    worker *w = req->w;
    atomic_fetch_add_explicit(&r->stats.passed[in->opcode < OPCODES ? in->opcode : 0], 1, memory_order_relaxed);
    int result = remember_slow(req);
    if (result != 0) {
        slow_request lost = {in->opcode, w->fd, w->ring != NULL ? w : NULL};
        settle_error(r, &lost, unique, result);
        return;
    }
    bool sent;
    do {
        sent = send(r->control, in, in->len, MSG_NOSIGNAL) >= 0;
    } while (!sent && errno == EINTR);
    if (!sent) {
        slow_request slow = take_slow(r, unique);
        if (slow.opcode != 0) {
            settle_error(r, &slow, unique, -EIO); /* the control plane has ended */
        }
    }
    if (w->ring != NULL) {
        pthread_mutex_lock(&r->lock);
        while (w->waiting) {
            pthread_cond_wait(&r->answered, &r->lock);
        }
        pthread_mutex_unlock(&r->lock);
    }
}

void relay_pass_forget(relay *r, const void *message, size_t len)
{
    while (send(r->control, message, len, MSG_NOSIGNAL) < 0 && errno == EINTR) {
    }
}

/* ---- INIT ---- */

static void edit_init_request(relay *r, uint8_t *message)
{
    struct fuse_in_header *in = (struct fuse_in_header *)(void *)message;
    struct fuse_init_in *init = (struct fuse_init_in *)(void *)(message + sizeof *in);
    uint64_t offered = init->flags;
    if (in->len >= sizeof *in + sizeof *init && (init->flags & FUSE_INIT_EXT)) {
        offered |= (uint64_t)init->flags2 << 32;
    }
    uint64_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
                      FUSE_HANDLE_KILLPRIV_V2 | FUSE_POSIX_ACL | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
                      FUSE_NO_OPENDIR_SUPPORT | FUSE_NO_OPEN_SUPPORT | FUSE_EXPLICIT_INVAL_DATA | FUSE_DO_READDIRPLUS |
                      FUSE_READDIRPLUS_AUTO | FUSE_INIT_EXT | FUSE_WRITEBACK_CACHE | FUSE_EXPORT_SUPPORT |
                      FUSE_DIRECT_IO_ALLOW_MMAP;
    r->init_flags = offered & wanted;
    r->uring = r->options.uring && (offered & FUSE_OVER_IO_URING) != 0 && uring_available();
    if (r->uring) {
        r->init_flags |= FUSE_OVER_IO_URING;
    }
    r->no_open = (offered & FUSE_NO_OPEN_SUPPORT) != 0;
    r->no_opendir = (offered & FUSE_NO_OPENDIR_SUPPORT) != 0;
    r->minor = init->minor < 42 ? init->minor : 42;
    r->max_readahead = init->max_readahead;
    /* What the socket is not: a device that one can splice from. */
    init->flags &= ~(uint32_t)(FUSE_SPLICE_READ | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_INIT_EXT);
}

static size_t make_init_reply(relay *r, uint8_t *message, size_t len)
{
    struct fuse_out_header *out = (struct fuse_out_header *)(void *)message;
    if (out->error != 0 || len < sizeof *out + FUSE_COMPAT_22_INIT_OUT_SIZE) {
        return len;
    }
    struct fuse_init_out init = {
        .major = FUSE_KERNEL_VERSION,
        .minor = r->minor,
        .max_readahead = r->max_readahead > READ_AHEAD ? r->max_readahead : READ_AHEAD,
        .flags = (uint32_t)r->init_flags,
        .flags2 = (uint32_t)(r->init_flags >> 32),
        .max_background = 64,
        .congestion_threshold = 48,
        .max_write = RELAY_MAX_WRITE,
        .time_gran = 1,
        .max_pages = RELAY_MAX_WRITE / 4096,
    };
    memcpy(message + sizeof *out, &init, sizeof init);
    out->len = (uint32_t)(sizeof *out + (r->minor < 23 ? (size_t)FUSE_COMPAT_22_INIT_OUT_SIZE : sizeof init));
    r->initialised = true;
    return out->len;
}

/* ---- replies of the control plane ---- */

static bool makes_entry(uint32_t opcode)
{
    return opcode == FUSE_LOOKUP || opcode == FUSE_SYMLINK || opcode == FUSE_MKNOD || opcode == FUSE_MKDIR ||
           opcode == FUSE_LINK;
}

/* The control plane knows neither what is in memory nor the view. Counts what is a lookup. */
static void correct_attributes(relay *r, uint32_t opcode, uint8_t *message, size_t len)
{
    const struct fuse_out_header *out = (const struct fuse_out_header *)(const void *)message;
    bool entry = opcode != FUSE_SETATTR;
    size_t at = sizeof *out + (entry ? offsetof(struct fuse_entry_out, attr) : offsetof(struct fuse_attr_out, attr));
    struct fuse_attr attr;
    meta *m = &r->meta;
    if (out->error != 0 || len < at + sizeof attr) {
        return;
    }
    memcpy(&attr, message + at, sizeof attr);
    uint64_t ino = attr.ino;
    if (entry) {
        memcpy(&ino, message + sizeof *out + offsetof(struct fuse_entry_out, nodeid), sizeof ino);
    }
    if (ino == 0) {
        return;
    }
    pthread_mutex_lock(&m->lock);
    inode *node = map64_get(&m->inodes, ino);
    if (node != NULL && node->valid) {
        attr_told_lock_held(node, 0);
        fill_attr(r, node, &attr);
    } else {
        view_attr(r, &attr);
    }
    if (entry) {
        (void)meta_set_lookups(m, ino, meta_lookups(m, ino) + (UINT64_C(1) << 32) + 1);
    }
    pthread_mutex_unlock(&m->lock);
    memcpy(message + at, &attr, sizeof attr);
}

static void from_control(relay *r, uint8_t *message, size_t len)
{
    struct fuse_out_header *out = (struct fuse_out_header *)(void *)message;
    if (len < sizeof *out) {
        return;
    }
    bool whole = out->len == len;
    if (out->unique == 0) {
        if (whole) {
            (void)write_reply(r, r->device, message, len); /* a notification */
        }
        return;
    }
    slow_request slow = take_slow(r, out->unique);
    if (slow.opcode == 0) {
        return; /* answered already */
    }
    if (!whole || (out->error != 0 && len != sizeof *out) || out->error > 0) { /* the kernel would not take it */
        settle_error(r, &slow, out->unique, -EIO);
        return;
    }
    if (slow.opcode == FUSE_INIT) {
        len = make_init_reply(r, message, len);
    } else if (makes_entry(slow.opcode) || slow.opcode == FUSE_SETATTR) {
        correct_attributes(r, slow.opcode, message, len);
    }
    settle(r, &slow, message, len);
    if (slow.opcode == FUSE_INIT && r->uring && uring_start(r) != 0) {
        r->uring = false; /* no ring is complete: the kernel goes on with the device */
    }
}

static void fail_slow(relay *r)
{
    for (;;) {
        uint64_t unique = MAP64_EMPTY;
        pthread_mutex_lock(&r->lock);
        r->control_gone = true;
        for (size_t i = 0; i < r->slow.capacity && unique == MAP64_EMPTY; i++) {
            unique = r->slow.keys[i];
        }
        pthread_mutex_unlock(&r->lock);
        if (unique == MAP64_EMPTY) {
            return;
        }
        slow_request slow = take_slow(r, unique);
        if (slow.opcode != 0) {
            settle_error(r, &slow, unique, -EIO);
        }
    }
}

static void *control_loop(void *argument)
{
    relay *r = argument;
    uint8_t *message = malloc(CONTROL_BYTES);
    while (message != NULL) {
        ssize_t got = recv(r->control, message, CONTROL_BYTES, 0);
        if (got > 0) {
            from_control(r, message, (size_t)got);
        } else if (got == 0 || errno != EINTR) {
            break;
        }
    }
    fail_slow(r);
    free(message);
    return NULL;
}

/* ---- workers ---- */

static void *work(void *argument);

static int clone_device(const relay *r)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        uint32_t master = (uint32_t)r->device;
        if (ioctl(fd, FUSE_DEV_IOC_CLONE, &master) == 0) {
            return fd;
        }
        (void)close(fd);
    }
    return fcntl(r->device, F_DUPFD_CLOEXEC, 0); /* readers of one queue */
}

static int add_worker(relay *r)
{
    int result = 0;
    pthread_mutex_lock(&r->lock);
    if (r->thread_count < RELAY_MAX_THREADS && !r->stopping) {
        worker *w = calloc(1, sizeof *w);
        int fd = -1;
        if (w == NULL || (w->in = malloc(REQUEST_BYTES)) == NULL ||
            (w->out = malloc(REQUEST_BYTES)) == NULL || (fd = clone_device(r)) < 0) {
            result = w == NULL || w->in == NULL || w->out == NULL ? ENOMEM : errno;
        } else {
            w->fd = fd;
            w->r = r;
            r->worker_fds[r->thread_count] = fd;
            atomic_fetch_add(&r->running, 1);
            atomic_fetch_add(&r->idle, 1);
            result = pthread_create(&r->threads[r->thread_count], NULL, work, w);
            if (result == 0) {
                r->thread_count++;
            } else {
                atomic_fetch_sub(&r->running, 1);
                atomic_fetch_sub(&r->idle, 1);
                (void)close(fd);
            }
        }
        if (result != 0 && w != NULL) {
            free(w->in);
            free(w->out);
            free(w);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return result;
}

void invalidate_later(request *req, uint64_t ino)
{
    if (req->invalidate_count < MAX_INVALIDATE) {
        req->invalidate[req->invalidate_count++] = ino;
    }
}

static void answer(request *req, int result)
{
    relay *r = req->r;
    struct fuse_out_header *out = (struct fuse_out_header *)(void *)req->w->out;
    for (unsigned i = 0; i < req->invalidate_count; i++) {
        relay_invalidate(r, req->invalidate[i]);
    }
    if (req->w->ring != NULL) {
        req->w->error = result < 0 ? result : 0;
        req->w->out_len = result < 0 ? 0 : req->out_len;
        return;
    }
    out->unique = req->in->unique;
    out->error = result < 0 ? result : 0;
    out->len = (uint32_t)(sizeof *out + (result < 0 ? 0 : req->out_len));
    (void)write_reply(r, req->w->fd, out, out->len);
}

void relay_serve(worker *w, size_t len)
{
    relay *r = w->r;
    struct fuse_in_header *in = (struct fuse_in_header *)(void *)w->in;
    if (len < sizeof *in || in->len != len) {
        atomic_fetch_add_explicit(&r->stats.errors, 1, memory_order_relaxed);
        if (len >= sizeof *in && in->unique != 0) {
            reply_error(r, w->fd, in->unique, -EINVAL);
        }
        return;
    }
    request req = {
        .r = r, .w = w, .in = in, .arg = w->in + sizeof *in, .arg_len = len - sizeof *in,
        .out = w->out + sizeof(struct fuse_out_header),
    };
    spin_tick(&r->spin);
    uint32_t opcode = in->opcode;
    const operation *known = opcode < OPCODES ? &operations[opcode] : NULL;
    atomic_fetch_add_explicit(&r->stats.requests[opcode < OPCODES ? opcode : 0], 1, memory_order_relaxed);
    int result;
    if (opcode == FUSE_INIT) {
        if (req.arg_len < 16) {
            result = -EINVAL;
        } else {
            edit_init_request(r, w->in);
            result = PASS;
        }
    } else if (!r->initialised) {
        result = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT ? NO_REPLY : -EIO;
    } else if (known == NULL || known->name == NULL) {
        result = -ENOSYS;
    } else if (req.arg_len < known->least || in->nodeid > INT64_MAX) {
        bool silent = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
        result = silent ? NO_REPLY : req.arg_len < known->least ? -EINVAL : -ENOENT;
    } else {
        result = known->run == NULL ? PASS : known->run(&req);
    }
    if (result == PASS) {
        pass_on(&req);
    } else if (result != NO_REPLY) {
        answer(&req, result);
    }
}

/* Another thread must read: one that waits for that, or a new one. */
static void more_readers(relay *r)
{
    bool woken = false;
    pthread_mutex_lock(&r->lock);
    if (r->parked > r->unparking) {
        r->unparking++;
        woken = true;
        pthread_cond_signal(&r->unpark);
    }
    pthread_mutex_unlock(&r->lock);
    if (!woken) {
        (void)add_worker(r);
    }
}

/* Few threads in turn keep the CPUs' caches warm; the others wait. */
static void park(relay *r)
{
    pthread_mutex_lock(&r->lock);
    if (r->idle > KEEP_IDLE && !r->stopping && !r->kernel_gone) {
        r->idle--;
        r->parked++;
        while (r->unparking == 0 && !r->stopping && !r->kernel_gone) {
            pthread_cond_wait(&r->unpark, &r->lock);
        }
        r->unparking -= r->unparking > 0;
        r->parked--;
        r->idle++;
    }
    pthread_mutex_unlock(&r->lock);
}

static void *work(void *argument)
{
    worker *w = argument;
    relay *r = w->r;
    sigset_t all;
    (void)sigfillset(&all);
    (void)sigdelset(&all, SIGURG);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        ssize_t got = read(w->fd, w->in, REQUEST_BYTES);
        if (r->stopping) {
            break;
        }
        if (got > 0) {
            if (atomic_fetch_sub(&r->idle, 1) <= FEW_IDLE && r->initialised && !r->uring) {
                more_readers(r);
            }
            relay_serve(w, (size_t)got);
            atomic_fetch_add(&r->idle, 1);
            if (!r->uring) {
                park(r);
            } else if (r->initialised) {
                (void)usleep(FORGET_PAUSE_US); /* only FORGET comes this way: let the kernel gather some */
            }
        } else if (got == 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT)) {
            break; /* ENODEV: unmounted */
        }
    }
    free(w->in);
    free(w->out);
    free(w);
    pthread_mutex_lock(&r->lock);
    r->kernel_gone = true;
    pthread_cond_broadcast(&r->unpark);
    r->running--;
    if (r->running == 0) {
        uint64_t one = 1;
        r->ended = true;
        (void)!write(r->wake, &one, sizeof one);
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- life ---- */

fspf_status relay_new(store *st, int device, int control, size_t limit, const relay_options *options,
                      const upcalls *up, relay **out, fspf_error *err)
{
    relay *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return ST_NOMEM;
    }
    r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->wake < 0 || meta_init(&r->meta, st, limit) != 0) {
        int number = errno;
        if (r->wake >= 0) {
            (void)close(r->wake);
        }
        free(r);
        return fail_os(err, number, "the relay could not be made");
    }
    r->device = device;
    r->control = control;
    r->st = st;
    r->chunk_size = st->chunk_size;
    r->options = *options;
    r->up = *up;
    (void)pthread_mutex_init(&r->lock, NULL);
    (void)pthread_cond_init(&r->changed, NULL);
    (void)pthread_cond_init(&r->answered, NULL);
    (void)pthread_cond_init(&r->unpark, NULL);
    (void)pthread_cond_init(&r->pool_work, NULL);
    (void)pthread_mutex_init(&r->pool_lock, NULL);
    lane_init(&r->lane);
    store_commit_marking(st, true);
    *out = r;
    return ST_OK;
}

static void wake_up(int signal_number)
{
    (void)signal_number;
}

fspf_status relay_start(relay *r, fspf_error *err)
{
    struct sigaction action = {.sa_handler = wake_up}; /* without SA_RESTART */
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGURG, &action, NULL);
    int result = pthread_create(&r->control_thread, NULL, control_loop, r);
    if (result != 0) {
        return fail_os(err, result, "no thread for the relay");
    }
    r->control_started = true;
    if (r->options.spin && r->options.uring && uring_available() && spin_pays()) {
        spin_start(&r->spin);
    }
    for (uint32_t i = 0; i < r->options.threads && result == 0; i++) {
        result = add_worker(r);
    }
    return result == 0 ? ST_OK : fail_os(err, result, "no thread for the relay");
}

void relay_stop(relay *r)
{
    if (r->device < 0) {
        return;
    }
    r->stopping = true;
    spin_stop(&r->spin);
    pthread_mutex_lock(&r->lock);
    int count = r->thread_count;
    pthread_mutex_unlock(&r->lock);
    (void)shutdown(r->device, SHUT_RDWR); /* a socket, in tests */
    (void)shutdown(r->control, SHUT_RDWR);
    uring_stop(r);
    pthread_mutex_lock(&r->lock);
    pthread_cond_broadcast(&r->unpark);
    while (r->running > 0) {
        for (int i = 0; i < count; i++) {
            (void)pthread_kill(r->threads[i], SIGURG); /* nothing else wakes a read(2) of a device that others have too */
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
    if (r->control_started) { /* before the descriptors are closed: it fails what still waits, on them */
        (void)pthread_join(r->control_thread, NULL);
        r->control_started = false;
    }
    for (int i = 0; i < r->thread_count; i++) {
        (void)pthread_join(r->threads[i], NULL);
        (void)close(r->worker_fds[i]);
    }
    r->thread_count = 0;
    (void)close(r->control);
    (void)close(r->device);
    r->device = r->control = -1;
}

void relay_free(relay *r)
{
    if (r == NULL) {
        return;
    }
    relay_stop(r);
    lane_free(&r->lane);
    meta_destroy(&r->meta);
    map64_clear(&r->slow);
    (void)close(r->wake);
    (void)pthread_mutex_destroy(&r->lock);
    (void)pthread_cond_destroy(&r->changed);
    (void)pthread_cond_destroy(&r->answered);
    (void)pthread_cond_destroy(&r->unpark);
    (void)pthread_cond_destroy(&r->pool_work);
    (void)pthread_mutex_destroy(&r->pool_lock);
    free(r);
}
