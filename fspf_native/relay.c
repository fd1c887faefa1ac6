/* Threads, descriptors and routing of the relay. What requests mean is in ops_*.c. */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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

static void notify_inode(relay *r, uint64_t ino, int64_t offset)
{
    struct {
        struct fuse_out_header header;
        struct fuse_notify_inval_inode_out body;
    } out = {.header = {.len = sizeof out, .error = FUSE_NOTIFY_INVAL_INODE}, .body = {.ino = ino, .off = offset}};
    (void)!write(r->device, &out, sizeof out); /* ENOENT: the kernel does not know it */
}

void relay_invalidate(relay *r, uint64_t ino)
{
    notify_inode(r, ino, -1);
}

void relay_write_back(relay *r, uint64_t ino)
{
    notify_inode(r, ino, 0);
}

/* ---- slow requests ---- */

static bool remember_slow(relay *r, uint64_t unique, uint32_t opcode, int fd)
{
    pthread_mutex_lock(&r->lock);
    bool room = map64_reserve(&r->slow);
    if (room) {
        map64_put(&r->slow, unique, (void *)(((uintptr_t)opcode << 32) | (uintptr_t)(unsigned)fd));
    }
    pthread_mutex_unlock(&r->lock);
    return room;
}

static bool take_slow(relay *r, uint64_t unique, uint32_t *opcode, int *fd)
{
    pthread_mutex_lock(&r->lock);
    uintptr_t found = (uintptr_t)map64_remove(&r->slow, unique);
    pthread_mutex_unlock(&r->lock);
    *opcode = (uint32_t)(found >> 32);
    *fd = (int)(found & 0x7fffffff);
    return found != 0;
}

static void pass_on(request *req)
{
    relay *r = req->r;
    const struct fuse_in_header *in = req->in;
    if (in->opcode < OPCODES) {
        atomic_fetch_add_explicit(&r->stats.passed[in->opcode], 1, memory_order_relaxed);
    }
    if (in->opcode != FUSE_FORGET && !remember_slow(r, in->unique, in->opcode, req->w->fd)) {
        reply_error(r, req->w->fd, in->unique, -ENOMEM);
        return;
    }
    for (;;) {
        if (send(r->control, in, in->len, MSG_NOSIGNAL) >= 0) {
            return;
        }
        if (errno != EINTR) {
            break;
        }
    }
    uint32_t opcode = 0;
    int fd = -1;
    if (take_slow(r, in->unique, &opcode, &fd)) {
        reply_error(r, fd, in->unique, -EIO); /* the control plane has ended */
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
    r->no_open = (offered & FUSE_NO_OPEN_SUPPORT) != 0;
    r->no_opendir = (offered & FUSE_NO_OPENDIR_SUPPORT) != 0;
    r->minor = init->minor < 40 ? init->minor : 40;
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
    out->len = (uint32_t)(sizeof *out + sizeof init);
    r->initialised = true;
    return out->len;
}

/* ---- replies of the control plane ---- */

static bool makes_entry(uint32_t opcode)
{
    return opcode == FUSE_LOOKUP || opcode == FUSE_SYMLINK || opcode == FUSE_MKNOD || opcode == FUSE_MKDIR ||
           opcode == FUSE_LINK;
}

static void count_slow_lookup(relay *r, const uint8_t *message, size_t len)
{
    const struct fuse_out_header *out = (const struct fuse_out_header *)(const void *)message;
    struct fuse_entry_out entry;
    if (out->error != 0 || len < sizeof *out + sizeof entry) {
        return;
    }
    memcpy(&entry, message + sizeof *out, sizeof entry);
    if (entry.nodeid != 0) {
        pthread_mutex_lock(&r->meta.lock);
        (void)meta_set_lookups(&r->meta, entry.nodeid, meta_lookups(&r->meta, entry.nodeid) + (UINT64_C(1) << 32) + 1);
        pthread_mutex_unlock(&r->meta.lock);
    }
}

static void from_control(relay *r, uint8_t *message, size_t len)
{
    struct fuse_out_header *out = (struct fuse_out_header *)(void *)message;
    uint32_t opcode = 0;
    int fd = r->device;
    if (len < sizeof *out || out->len != len) {
        return;
    }
    if (out->unique != 0 && !take_slow(r, out->unique, &opcode, &fd)) {
        return; /* answered already */
    }
    if (opcode == FUSE_INIT) {
        len = make_init_reply(r, message, len);
    } else if (makes_entry(opcode)) {
        count_slow_lookup(r, message, len);
    }
    (void)write_reply(r, fd, message, len);
}

static void fail_slow(relay *r)
{
    for (;;) {
        pthread_mutex_lock(&r->lock);
        uint64_t unique = 0;
        int fd = -1;
        for (size_t i = 0; i < r->slow.capacity && fd < 0; i++) {
            if (r->slow.keys[i] != MAP64_EMPTY) {
                unique = r->slow.keys[i];
                fd = (int)((uintptr_t)r->slow.values[i] & 0x7fffffff);
            }
        }
        if (fd >= 0) {
            (void)map64_remove(&r->slow, unique);
        }
        pthread_mutex_unlock(&r->lock);
        if (fd < 0) {
            return;
        }
        reply_error(r, fd, unique, -EIO);
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

static void answer(request *req, int result)
{
    relay *r = req->r;
    struct fuse_out_header *out = (struct fuse_out_header *)(void *)req->w->out;
    if (req->invalidate != 0) {
        relay_invalidate(r, req->invalidate);
    }
    out->unique = req->in->unique;
    out->error = result < 0 ? result : 0;
    out->len = (uint32_t)(sizeof *out + (result < 0 ? 0 : req->out_len));
    (void)write_reply(r, req->w->fd, out, out->len);
}

static void serve(worker *w, size_t len)
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
    } else if (req.arg_len < known->least) {
        result = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET ? NO_REPLY : -EINVAL;
    } else {
        result = known->run == NULL ? PASS : known->run(&req);
    }
    if (result == PASS) {
        pass_on(&req);
    } else if (result != NO_REPLY) {
        answer(&req, result);
    }
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
            if (atomic_fetch_sub(&r->idle, 1) <= FEW_IDLE && r->initialised) {
                (void)add_worker(r);
            }
            serve(w, (size_t)got);
            atomic_fetch_add(&r->idle, 1);
        } else if (got == 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT)) {
            break; /* ENODEV: unmounted */
        }
    }
    free(w->in);
    free(w->out);
    free(w);
    pthread_mutex_lock(&r->lock);
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
    pthread_mutex_lock(&r->lock);
    int count = r->thread_count;
    pthread_mutex_unlock(&r->lock);
    (void)shutdown(r->device, SHUT_RDWR); /* a socket, in tests */
    (void)shutdown(r->control, SHUT_RDWR);
    pthread_mutex_lock(&r->lock);
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
    for (int i = 0; i < r->thread_count; i++) {
        (void)pthread_join(r->threads[i], NULL);
        (void)close(r->worker_fds[i]);
    }
    r->thread_count = 0;
    if (r->control_started) {
        (void)pthread_join(r->control_thread, NULL);
        r->control_started = false;
    }
    (void)close(r->control);
    (void)close(r->device);
    r->device = r->control = -1;
    store_commit_marking(r->st, false);
}

void relay_free(relay *r)
{
    if (r == NULL) {
        return;
    }
    relay_stop(r);
    meta_destroy(&r->meta);
    map64_clear(&r->slow);
    (void)close(r->wake);
    (void)pthread_mutex_destroy(&r->lock);
    (void)pthread_cond_destroy(&r->changed);
    free(r);
}
