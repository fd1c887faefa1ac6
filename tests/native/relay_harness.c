/* Drives relay, meta and ops without Python, under sanitizers: a kernel and a control plane as threads, a table in place
 * of the database.
 *
 *   relay_harness kernel SEED ROUNDS DIRECTORY   applications that keep the kernel's rules; everything is checked
 *   relay_harness wild SEED ROUNDS DIRECTORY     requests that keep none: no crash, and each is answered once
 *   relay_harness leave SEED ROUNDS DIRECTORY    as kernel, but either side goes away in the middle
 */
#include "table.h"

#include <poll.h>
#include <signal.h>
#include <time.h>

#define CLIENTS 6u
#define DIRECTORIES 5u
#define NAMES 10u
#define MOST_INOS 65536u

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

/* ---- the kernel ---- */

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t answered;
    uint64_t unique; /* waited for; 0 = none */
    int error;
    size_t len;
    uint8_t body[RELAY_MAX_WRITE + 64];
} mailbox;

typedef struct {
    table names;
    store *st;
    relay *r;
    int device, control; /* our ends */
    uint64_t seed, rounds;
    bool wild;
    mailbox boxes[CLIENTS + 1];
    _Atomic uint64_t sequence;
    pthread_mutex_t lock; /* counts and users */
    uint32_t counts[MOST_INOS], users[MOST_INOS];
    pthread_mutex_t directory_locks[DIRECTORIES + 2];
    uint64_t directories[DIRECTORIES + 1]; /* the last one is the root */
    _Atomic bool gone, over;
    _Atomic uint64_t answered;
} world;

static world the;

static bool makes_an_entry(uint32_t opcode)
{
    return opcode == FUSE_LOOKUP || opcode == FUSE_SYMLINK || opcode == FUSE_MKNOD || opcode == FUSE_MKDIR ||
           opcode == FUSE_LINK || opcode == FUSE_TMPFILE;
}

static void count_lookup(uint64_t ino, bool use)
{
    if (ino == 0 || ino >= MOST_INOS) {
        return;
    }
    pthread_mutex_lock(&the.lock);
    the.counts[ino]++;
    the.users[ino] += use;
    pthread_mutex_unlock(&the.lock);
}

static void *take_replies(void *ignored)
{
    static uint8_t message[RELAY_MAX_WRITE + 65536];
    (void)ignored;
    for (;;) {
        ssize_t got = recv(the.device, message, sizeof message, 0);
        if (got <= 0) {
            break;
        }
        struct fuse_out_header out;
        CHECK((size_t)got >= sizeof out);
        memcpy(&out, message, sizeof out);
        CHECK(out.len == (size_t)got);
        if (out.unique == 0) {
            continue; /* a notification */
        }
        uint64_t client = out.unique & 15;
        CHECK(client <= CLIENTS && out.error <= 0 && out.error > -4096);
        mailbox *box = &the.boxes[client];
        pthread_mutex_lock(&box->lock);
        CHECK(box->unique == out.unique); /* asked for, and not answered yet */
        box->unique = 0;
        box->error = -out.error;
        box->len = (size_t)got - sizeof out;
        CHECK(box->len <= sizeof box->body);
        memcpy(box->body, message + sizeof out, box->len);
        the.answered++;
        pthread_cond_signal(&box->answered);
        pthread_mutex_unlock(&box->lock);
    }
    the.gone = true;
    for (unsigned i = 0; i <= CLIENTS; i++) {
        pthread_mutex_lock(&the.boxes[i].lock);
        pthread_cond_signal(&the.boxes[i].answered);
        pthread_mutex_unlock(&the.boxes[i].lock);
    }
    return NULL;
}

/* One request; 0 or an errno, ENODEV when there is nobody any more. */
static int ask(unsigned client, uint32_t opcode, uint64_t ino, const void *arg, size_t arg_len, const void *more,
               size_t more_len)
{
    mailbox *box = &the.boxes[client];
    struct fuse_in_header in = {
        .len = (uint32_t)(sizeof in + arg_len + more_len), .opcode = opcode, .nodeid = ino, .pid = 1,
        .unique = (atomic_fetch_add(&the.sequence, 1) + 1) << 4 | client,
    };
    struct iovec parts[3] = {{&in, sizeof in}, {(void *)(uintptr_t)arg, arg_len}, {(void *)(uintptr_t)more, more_len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    int error = ENODEV;
    pthread_mutex_lock(&box->lock);
    box->unique = in.unique;
    pthread_mutex_unlock(&box->lock);
    bool sent = sendmsg(the.device, &message, MSG_NOSIGNAL) >= 0;
    pthread_mutex_lock(&box->lock);
    while (sent && box->unique == in.unique && !the.gone) {
        pthread_cond_wait(&box->answered, &box->lock);
    }
    if (sent && box->unique != in.unique) {
        error = box->error;
        if (error == 0 && makes_an_entry(opcode)) {
            struct fuse_entry_out entry;
            CHECK(box->len >= sizeof entry);
            memcpy(&entry, box->body, sizeof entry);
            count_lookup(entry.nodeid, true); /* before anybody can forget it */
        }
    }
    box->unique = 0;
    pthread_mutex_unlock(&box->lock);
    return error;
}

static void tell(uint32_t opcode, uint64_t ino, const void *arg, size_t arg_len)
{
    struct fuse_in_header in = {.len = (uint32_t)(sizeof in + arg_len), .opcode = opcode, .nodeid = ino};
    struct iovec parts[2] = {{&in, sizeof in}, {(void *)(uintptr_t)arg, arg_len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    (void)sendmsg(the.device, &message, MSG_NOSIGNAL);
}

static uint64_t entry_of(unsigned client)
{
    struct fuse_entry_out entry;
    memcpy(&entry, the.boxes[client].body, sizeof entry);
    return entry.nodeid;
}

static void let_go(uint64_t ino)
{
    if (ino > 0 && ino < MOST_INOS) {
        pthread_mutex_lock(&the.lock);
        the.users[ino]--;
        pthread_mutex_unlock(&the.lock);
    }
}

static void forget_some(bool all)
{
    struct {
        struct fuse_batch_forget_in head;
        struct fuse_forget_one one[64];
    } batch = {0};
    pthread_mutex_lock(&the.lock);
    uint64_t start = all ? 0 : below(MOST_INOS);
    for (uint64_t i = 0; i < MOST_INOS && batch.head.count < 64; i++) {
        uint64_t ino = (start + i) % MOST_INOS;
        if (the.counts[ino] > 0 && the.users[ino] == 0 && ino != ROOT_INO && (all || below(3) == 0)) {
            batch.one[batch.head.count++] = (struct fuse_forget_one){ino, the.counts[ino]};
            the.counts[ino] = 0;
        }
    }
    pthread_mutex_unlock(&the.lock);
    if (batch.head.count == 1) {
        struct fuse_forget_in one = {batch.one[0].nlookup};
        tell(FUSE_FORGET, batch.one[0].nodeid, &one, sizeof one);
    } else if (batch.head.count > 0) {
        tell(FUSE_BATCH_FORGET, 0, &batch, sizeof batch.head + batch.head.count * sizeof batch.one[0]);
    }
}

/* ---- the control plane ---- */

static void reply_control(uint64_t unique, int error, const void *body, size_t len)
{
    struct fuse_out_header out = {.len = (uint32_t)(sizeof out + len), .error = -error, .unique = unique};
    struct iovec parts[2] = {{&out, sizeof out}, {(void *)(uintptr_t)body, len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    (void)sendmsg(the.control, &message, MSG_NOSIGNAL);
}

static void answer_symlink(const struct fuse_in_header *in, const char *names)
{
    uint64_t made = 0;
    const char *target = names + strlen(names) + 1;
    int error = table_make(&the.names, in->nodeid, names, strlen(names), S_IFLNK | 0777, target, false, &made);
    struct fuse_entry_out entry = {.nodeid = made, .attr = {.ino = made, .mode = S_IFLNK | 0777, .nlink = 1}};
    reply_control(in->unique, error, &entry, error == 0 ? sizeof entry : 0);
}

static void *control_plane(void *ignored)
{
    static uint8_t message[RELAY_MAX_WRITE + 65536];
    (void)ignored;
    for (;;) {
        ssize_t got = recv(the.control, message, sizeof message, 0);
        if (got <= 0) {
            return NULL;
        }
        struct fuse_in_header in;
        CHECK((size_t)got >= sizeof in);
        memcpy(&in, message, sizeof in);
        CHECK(in.len == (size_t)got);
        if (in.opcode == FUSE_INIT) {
            struct fuse_init_out init = {.major = 7, .minor = 34, .max_write = 131072};
            reply_control(in.unique, 0, &init, sizeof init);
        } else if (in.opcode == FUSE_SYMLINK) {
            answer_symlink(&in, (const char *)message + sizeof in);
        } else if (in.opcode == FUSE_STATFS) {
            struct fuse_statfs_out space = {.st = {.blocks = 1}};
            reply_control(in.unique, 0, &space, sizeof space);
        } else if (in.opcode != FUSE_FORGET) {
            reply_control(in.unique, ENOSYS, NULL, 0);
        }
    }
}

/* ---- applications ---- */

static void lock_directories(size_t a, size_t b)
{
    pthread_mutex_lock(&the.directory_locks[a < b ? a : b]);
    if (a != b) {
        pthread_mutex_lock(&the.directory_locks[a < b ? b : a]);
    }
}

static void unlock_directories(size_t a, size_t b)
{
    pthread_mutex_unlock(&the.directory_locks[a]);
    if (a != b) {
        pthread_mutex_unlock(&the.directory_locks[b]);
    }
}

static size_t pick_name(char *name)
{
    return (size_t)snprintf(name, 16, "%s%u", below(8) == 0 ? "d" : "f", (unsigned)below(NAMES)) + 1;
}

static bool fits(int error, int a, int b)
{
    return the.wild || error == 0 || error == a || error == b || error == ENODEV;
}

/* Look a name up, holding its directory; the inode, in use by us, or 0. */
static uint64_t look_up(unsigned client, size_t dir, const char *name, size_t len)
{
    int error = ask(client, FUSE_LOOKUP, the.directories[dir], name, len, NULL, 0);
    CHECK(fits(error, ENODEV, ENODEV));
    return error == 0 ? entry_of(client) : 0;
}

static void use_content(unsigned client, uint64_t ino)
{
    uint8_t data[9000];
    uint64_t offset = below(4) == 0 ? below(1u << 20) : below(20000);
    int error = 0;
    switch (below(9)) {
    case 0:
    case 1: {
        struct fuse_write_in in = {.offset = offset, .size = (uint32_t)below(sizeof data) + 1,
                                   .write_flags = below(2) ? FUSE_WRITE_CACHE : 0};
        memset(data, (int)(ino & 127) + 1, sizeof data);
        error = ask(client, FUSE_WRITE, ino, &in, sizeof in, data, in.size);
        break;
    }
    case 2:
    case 3: {
        struct fuse_read_in in = {.offset = offset, .size = (uint32_t)below(sizeof data) + 1};
        error = ask(client, FUSE_READ, ino, &in, sizeof in, NULL, 0);
        for (size_t i = 0; error == 0 && i < the.boxes[client].len; i++) {
            CHECK(the.wild || the.boxes[client].body[i] == 0 || the.boxes[client].body[i] == (ino & 127) + 1);
        }
        break;
    }
    case 4: {
        struct fuse_setattr_in in = {.valid = FATTR_SIZE | (below(2) ? FATTR_MODE : 0), .size = offset, .mode = 0640};
        error = ask(client, FUSE_SETATTR, ino, &in, sizeof in, NULL, 0);
        break;
    }
    case 5: {
        struct fuse_fsync_in in = {0};
        error = ask(client, FUSE_FSYNC, ino, &in, sizeof in, NULL, 0);
        break;
    }
    case 6: {
        struct fuse_fallocate_in in = {.offset = offset, .length = 1 + below(30000), .mode = below(2) ? 3 : 0};
        error = ask(client, FUSE_FALLOCATE, ino, &in, sizeof in, NULL, 0);
        break;
    }
    case 7: {
        struct fuse_lseek_in in = {.offset = 0, .whence = below(2) ? SEEK_DATA : SEEK_HOLE};
        error = ask(client, FUSE_LSEEK, ino, &in, sizeof in, NULL, 0);
        error = error == ENXIO ? 0 : error;
        break;
    }
    default: {
        struct fuse_getattr_in in = {0};
        error = ask(client, FUSE_GETATTR, ino, &in, sizeof in, NULL, 0);
        break;
    }
    }
    CHECK(fits(error, EISDIR, ENODEV) || error == EINVAL || error == ENOSPC); /* it may be a directory or a link */
}

static void list(unsigned client, size_t dir)
{
    struct fuse_read_in in = {.size = 400 + (uint32_t)below(4000)};
    int error = 0;
    do {
        error = ask(client, FUSE_READDIRPLUS, the.directories[dir], &in, sizeof in, NULL, 0);
        size_t len = error == 0 ? the.boxes[client].len : 0;
        for (size_t at = 0; at < len;) {
            struct fuse_direntplus entry;
            memcpy(&entry, the.boxes[client].body + at, FUSE_NAME_OFFSET_DIRENTPLUS);
            in.offset = entry.dirent.off;
            count_lookup(entry.entry_out.nodeid, false);
            at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + entry.dirent.namelen);
        }
        error = len == 0 ? 1 : error;
    } while (error == 0);
}

static void change_names(unsigned client, size_t dir, const char *name, size_t len)
{
    size_t other = below(DIRECTORIES + 1);
    char second[16];
    size_t second_len = pick_name(second);
    uint64_t parent = the.directories[dir];
    int error = 0;
    lock_directories(dir, other);
    switch (below(8)) {
    case 0:
    case 1: {
        struct fuse_mknod_in in = {.mode = S_IFREG | 0644};
        error = ask(client, FUSE_MKNOD, parent, &in, sizeof in, name, len);
        CHECK(fits(error, EEXIST, ENODEV));
        break;
    }
    case 2: {
        struct fuse_mkdir_in in = {.mode = 0755};
        error = ask(client, FUSE_MKDIR, parent, &in, sizeof in, name, len);
        CHECK(fits(error, EEXIST, ENODEV));
        break;
    }
    case 3:
        error = ask(client, FUSE_SYMLINK, parent, name, len, "target", 7);
        CHECK(fits(error, EEXIST, EIO));
        break;
    case 4: {
        struct fuse_link_in in = {.oldnodeid = look_up(client, dir, name, len)};
        if (in.oldnodeid != 0) {
            error = ask(client, FUSE_LINK, the.directories[other], &in, sizeof in, second, second_len);
            CHECK(fits(error, EEXIST, EPERM));
            let_go(in.oldnodeid);
        } else {
            error = 1;
        }
        break;
    }
    case 5:
        error = ask(client, below(4) ? FUSE_UNLINK : FUSE_RMDIR, parent, name, len, NULL, 0);
        CHECK(fits(error, ENOENT, EISDIR) || error == ENOTDIR);
        return unlock_directories(dir, other);
    default: {
        struct fuse_rename2_in in = {.newdir = the.directories[other], .flags = (uint32_t)below(3)};
        char both[32];
        memcpy(both, name, len);
        memcpy(both + len, second, second_len);
        error = ask(client, FUSE_RENAME2, parent, &in, sizeof in, both, len + second_len);
        CHECK(fits(error, ENOENT, EEXIST) || error == EISDIR || error == ENOTDIR);
        return unlock_directories(dir, other);
    }
    }
    if (error == 0) {
        let_go(entry_of(client));
    }
    unlock_directories(dir, other);
}

static void nameless(unsigned client, size_t dir)
{
    struct fuse_create_in in = {.mode = S_IFREG | 0600};
    int error = ask(client, FUSE_TMPFILE, the.directories[dir], &in, sizeof in, "/", 2);
    CHECK(fits(error, ENODEV, ENODEV));
    if (error == 0) {
        uint64_t ino = entry_of(client);
        use_content(client, ino);
        let_go(ino);
    }
}

static void live(unsigned client)
{
    char name[16];
    size_t len = pick_name(name);
    size_t dir = below(DIRECTORIES + 1);
    switch (below(8)) {
    case 0:
    case 1:
        change_names(client, dir, name, len);
        break;
    case 2:
        list(client, dir);
        break;
    case 3:
        forget_some(false);
        break;
    case 4:
        if (below(4) == 0) {
            nameless(client, dir);
        } else {
            (void)ask(client, FUSE_STATFS, ROOT_INO, NULL, 0, NULL, 0);
        }
        break;
    default: {
        pthread_mutex_lock(&the.directory_locks[dir]);
        uint64_t ino = look_up(client, dir, name, len);
        pthread_mutex_unlock(&the.directory_locks[dir]);
        if (ino != 0) {
            use_content(client, ino);
            let_go(ino);
        }
    }
    }
    if (below(20) == 0) {
        struct fuse_interrupt_in in = {below(1000000)};
        tell(FUSE_INTERRUPT, 0, &in, sizeof in);
    }
}

static void wild(unsigned client)
{
    uint8_t arg[256];
    static const uint64_t values[] = {0, 1, 2, 3, 4, 5, 8, 4096, 1u << 20, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX};
    static const char *tails[] = {"", "f1", "f1\0f2", "d1\0f1", "..", ".", "a/b", "f1\0target"};
    static const size_t tail_lens[] = {0, 3, 6, 6, 3, 2, 4, 10};
    size_t len = below(12) * 8;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t value = below(3) ? below(40) : values[below(13)];
        memcpy(arg + i, &value, 8);
    }
    size_t tail = below(8);
    uint32_t opcode = (uint32_t)below(56);
    if (opcode == FUSE_INIT) {
        return;
    }
    bool silent = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
    uint64_t ino = below(3) ? below(40) : values[below(13)];
    if (silent) {
        tell(opcode, ino, arg, len);
    } else {
        (void)ask(client, opcode, ino, arg, len, tails[tail], tail_lens[tail]);
    }
}

static void *application(void *argument)
{
    unsigned client = (unsigned)(uintptr_t)argument;
    random_state = the.seed * 1000003 + client * 7919 + 1;
    for (uint64_t i = 0; i < the.rounds && !the.gone; i++) {
        if (the.wild && below(3) == 0) {
            wild(client);
        } else {
            live(client);
        }
    }
    return NULL;
}

/* What the volume's threads do meanwhile. */
static void *background(void *ignored)
{
    (void)ignored;
    random_state = the.seed * 31 + 5;
    while (!the.over) {
        switch (below(5)) {
        case 0:
            (void)content_flush_all(the.r);
            break;
        case 1:
            content_relieve(the.r, 4096);
            break;
        case 2: {
            pthread_mutex_lock(&the.r->meta.lock);
            inode *node = map64_get(&the.r->meta.inodes, below(40));
            bool used = node != NULL && meta_in_use(&the.r->meta, node);
            (void)used;
            pthread_mutex_unlock(&the.r->meta.lock);
            break;
        }
        case 3: {
            uint64_t inos[8];
            for (unsigned i = 0; i < 8; i++) {
                inos[i] = below(the.r->meta.next_ino);
            }
            table_log(&the.names, inos, 1 + below(8));
            break;
        }
        default:
            (void)up_apply(&the.names);
        }
        struct timespec moment = {.tv_nsec = (long)below(2000000)};
        (void)nanosleep(&moment, NULL);
    }
    return NULL;
}

static void socket_pair(int ends[2])
{
    int size = 4 << 20;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    for (int i = 0; i < 2; i++) {
        (void)setsockopt(ends[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
        (void)setsockopt(ends[i], SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    }
}

static void set_up(const char *directory)
{
    int device[2];
    int control[2];
    fspf_error err = {0};
    uint8_t key[KEY_LEN] = {1};
    content_root no_map = {0};
    random_state = the.seed * 13 + 7;
    socket_pair(device);
    socket_pair(control);
    the.device = device[0];
    the.control = control[0];
    CHECK(store_open(directory, 4096, 65536, true, 1 << 20, 8, 0, &the.st, &err) == ST_OK);
    CHECK(store_add_epoch(the.st, 1, key, true, &err) == ST_OK);
    CHECK(store_start(the.st, &no_map, 0, false, &err) == ST_OK);
    table_init(&the.names, !the.wild);
    the.r = table_relay(&the.names, the.st, device[1], control[1], 4096 << below(8), 2);
    for (unsigned i = 0; i <= CLIENTS; i++) {
        (void)pthread_mutex_init(&the.boxes[i].lock, NULL);
        (void)pthread_cond_init(&the.boxes[i].answered, NULL);
    }
    (void)pthread_mutex_init(&the.lock, NULL);
    for (unsigned i = 0; i <= DIRECTORIES; i++) {
        (void)pthread_mutex_init(&the.directory_locks[i], NULL);
        char name[8];
        size_t len = (size_t)snprintf(name, sizeof name, "dir%u", i);
        the.directories[i] = ROOT_INO;
        if (i < DIRECTORIES) { /* the last but one may have a default access list */
            CHECK(table_make(&the.names, ROOT_INO, name, len, S_IFDIR | 0755, NULL, i == DIRECTORIES - 1,
                             &the.directories[i]) == 0);
        }
    }
}

int main(int argc, char **argv)
{
    pthread_t threads[CLIENTS], receiver, controller, other;
    fspf_error err = {0};
    if (argc != 5) {
        (void)fprintf(stderr, "usage: relay_harness kernel|wild|leave SEED ROUNDS DIRECTORY\n");
        return 2;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    the.wild = strcmp(argv[1], "wild") == 0;
    bool leave = strcmp(argv[1], "leave") == 0;
    the.seed = strtoull(argv[2], NULL, 10);
    the.rounds = strtoull(argv[3], NULL, 10);
    set_up(argv[4]);
    CHECK(relay_start(the.r, &err) == ST_OK);
    CHECK(pthread_create(&receiver, NULL, take_replies, NULL) == 0);
    CHECK(pthread_create(&controller, NULL, control_plane, NULL) == 0);
    struct fuse_init_in init = {.major = 7, .minor = 45, .flags = FUSE_INIT_EXT | FUSE_WRITEBACK_CACHE |
                                FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT | FUSE_DO_READDIRPLUS};
    CHECK(ask(CLIENTS, FUSE_INIT, 0, &init, sizeof init, NULL, 0) == 0);
    for (unsigned i = 0; i < DIRECTORIES; i++) { /* as an application's working directory is known */
        char name[8];
        size_t len = (size_t)snprintf(name, sizeof name, "dir%u", i) + 1;
        CHECK(ask(CLIENTS, FUSE_LOOKUP, ROOT_INO, name, len, NULL, 0) == 0);
    }
    CHECK(pthread_create(&other, NULL, background, NULL) == 0);
    for (unsigned i = 0; i < CLIENTS; i++) {
        CHECK(pthread_create(&threads[i], NULL, application, (void *)(uintptr_t)i) == 0);
    }
    if (leave) {
        while (the.answered < the.rounds) {
            struct timespec moment = {.tv_nsec = 200000};
            (void)nanosleep(&moment, NULL);
        }
        (void)shutdown(below(2) ? the.control : the.device, SHUT_RDWR);
        if (below(2)) {
            relay_stop(the.r);
        }
    }
    for (unsigned i = 0; i < CLIENTS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    the.over = true;
    (void)pthread_join(other, NULL);
    if (!leave) {
        memset(the.users, 0, sizeof the.users);
        bool left = true;
        while (left) {
            forget_some(true);
            left = false;
            for (unsigned i = 0; i < MOST_INOS; i++) {
                left = left || (the.counts[i] > 0 && i != ROOT_INO);
            }
        }
    }
    (void)shutdown(the.device, SHUT_WR);
    struct pollfd ended = {.fd = the.r->wake, .events = POLLIN};
    CHECK(poll(&ended, 1, 60000) == 1); /* what was sent is served before the end is seen */
    relay_stop(the.r);
    (void)pthread_join(receiver, NULL);
    (void)pthread_join(controller, NULL);
    CHECK(content_flush_all(the.r) == 0 || the.wild);
    table_take_back(&the.names);
    (void)up_apply(&the.names);
    CHECK(the.wild || leave || the.rounds < 1000 || the.names.by_lane > 0);
    if (!leave && !the.wild) {
        table_check(&the.names);
    }
    relay_free(the.r);
    table_clear(&the.names);
    store_shut(the.st);
    store_unref(the.st);
    (void)close(the.device);
    (void)close(the.control);
    return 0;
}
