/* libFuzzer target: messages to the relay, as a kernel that lost its mind would send them, and replies of a control plane
 * that lost its own. Each message is answered exactly once, or is one that has no reply; what is passed on is whole.
 *
 * The input is a list of messages: opcode, inode, length, argument. */
#include "table.h"

#include <fcntl.h>
#include <signal.h>

static char directory[64];

typedef struct {
    const uint8_t *at;
    size_t left;
} input;

static unsigned take(input *in)
{
    unsigned value = in->left > 0 ? *in->at : 0;
    in->at += in->left > 0;
    in->left -= in->left > 0;
    return value;
}

typedef struct {
    table names;
    relay *r;
    worker w;
    int device, control;
    uint64_t unique;
} rig;

static uint8_t reply[RELAY_MAX_WRITE + 65536];

static uint64_t number(unsigned which)
{
    static const uint64_t odd[] = {0, 1ull << 32, INT64_MAX, 1ull << 63, UINT64_MAX - 1, UINT64_MAX, 4096, 65536};
    return which < 32 ? which : odd[which & 7];
}

static void check_ends(const struct fuse_in_header *in, const uint8_t *arg, size_t len)
{
    unsigned names = in->opcode == FUSE_SYMLINK ? 2 : 1;
    if (in->opcode == FUSE_GETXATTR || in->opcode == FUSE_SETXATTR) {
        arg += 8;
        len -= 8;
    } else if (in->opcode != FUSE_SYMLINK && in->opcode != FUSE_REMOVEXATTR && in->opcode != FUSE_LOOKUP) {
        return;
    }
    while (names-- > 0) {
        const uint8_t *end = memchr(arg, 0, len);
        CHECK(end != NULL);
        len -= (size_t)(end - arg) + 1;
        arg = end + 1;
    }
}

/* What the control plane got is answered with bytes of the input, made to be about this request. */
static void answer(rig *g, input *in, uint32_t opcode)
{
    uint8_t body[160] = {0};
    struct fuse_out_header out = {.unique = g->unique};
    size_t len = opcode == FUSE_INIT ? sizeof(struct fuse_init_out) : take(in) % sizeof body;
    out.error = take(in) < 128 || opcode == FUSE_INIT ? 0 : -(int)take(in);
    out.len = (uint32_t)(sizeof out + len) - (take(in) == 1);
    for (size_t i = 0; i < len && opcode != FUSE_INIT; i++) {
        body[i] = (uint8_t)take(in);
    }
    struct iovec parts[2] = {{&out, sizeof out}, {body, len}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    CHECK(sendmsg(g->control, &message, MSG_NOSIGNAL) > 0);
}

/* One message; arg_len bytes behind the header are in w.in. */
static void serve(rig *g, input *more, uint32_t opcode, uint64_t ino, size_t arg_len, uint32_t lie)
{
    struct fuse_in_header in = {
        .len = (uint32_t)(sizeof in + arg_len) + lie, .opcode = opcode, .nodeid = ino, .unique = ++g->unique,
    };
    memcpy(g->w.in, &in, sizeof in);
    relay_serve(&g->w, sizeof in + arg_len);
    ssize_t got;
    unsigned replies = 0;
    static uint8_t passed[RELAY_MAX_WRITE + 65536];
    while ((got = recv(g->control, passed, sizeof passed, MSG_DONTWAIT)) > 0) {
        struct fuse_in_header there;
        memcpy(&there, passed, sizeof there);
        CHECK(there.len == (size_t)got);
        check_ends(&there, passed + sizeof there, (size_t)got - sizeof there);
        if (there.opcode != FUSE_FORGET) {
            CHECK(there.unique == g->unique && replies == 0);
            answer(g, more, there.opcode);
            do {
                do {
                    got = recv(g->device, reply, sizeof reply, 0); /* a notification may come first */
                } while (got < 0 && errno == EINTR); /* the fuzzer's own clock */
                CHECK(got >= (ssize_t)sizeof(struct fuse_out_header));
            } while (((struct fuse_out_header *)(void *)reply)->unique == 0);
            replies++;
        }
    }
    while ((got = recv(g->device, reply, sizeof reply, MSG_DONTWAIT)) > 0) {
        struct fuse_out_header out;
        memcpy(&out, reply, sizeof out);
        CHECK(out.len == (size_t)got);
        CHECK(out.unique == 0 ? out.error > 0 : out.error <= 0 && out.error > -4096); /* a notification's code */
        CHECK(out.unique == 0 || out.unique == g->unique);
        CHECK(out.error == 0 || out.unique == 0 || out.len == sizeof out);
        replies += out.unique != 0;
    }
    bool silent = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
    CHECK(replies == (silent && lie == 0 ? 0 : 1));
}

static void set_up(rig *g)
{
    int device[2], control[2];
    fspf_error err = {0};
    uint8_t key[KEY_LEN] = {1};
    content_root no_map = {0};
    store *st = NULL;
    uint64_t made = 0;
    memset(g, 0, sizeof *g);
    for (unsigned i = 0; i < 64; i++) {
        char path[96];
        (void)snprintf(path, sizeof path, "%s/%08x", directory, i);
        if (unlink(path) != 0) {
            break;
        }
    }
    CHECK(store_open(directory, 4096, 64, true, 64 * 1024, 8, 0, &st, &err) == ST_OK);
    CHECK(store_add_epoch(st, 1, key, true, &err) == ST_OK);
    CHECK(store_start(st, &no_map, 0, false, &err) == ST_OK);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, device) == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, control) == 0);
    int size = 4 << 20;
    for (unsigned i = 0; i < 2; i++) {
        (void)setsockopt(device[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    }
    g->device = device[0];
    g->control = control[0];
    table_init(&g->names, false);
    g->r = table_relay(&g->names, st, device[1], control[1], 4096, 0);
    store_unref(st); /* the relay has it */
    CHECK(relay_start(g->r, &err) == ST_OK); /* with no thread that reads: we are that one */
    g->w = (worker){.fd = device[1], .r = g->r, .in = malloc(REQUEST_BYTES), .out = malloc(REQUEST_BYTES)};
    CHECK(g->w.in != NULL && g->w.out != NULL);
    CHECK(table_make(&g->names, 1, "d", 1, S_IFDIR | 0755, NULL, false, &made) == 0);
    CHECK(table_make(&g->names, 1, "f", 1, S_IFREG | 06755, NULL, false, &made) == 0);
    CHECK(table_make(&g->names, 1, "x", 1, S_IFREG | 0644, NULL, true, &made) == 0);
    CHECK(table_make(&g->names, 1, "l", 1, S_IFLNK | 0777, "target", false, &made) == 0);
    CHECK(table_make(&g->names, 2, "e", 1, S_IFDIR | 0755, NULL, true, &made) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    rig g;
    if (directory[0] == 0) {
        (void)snprintf(directory, sizeof directory, "/dev/shm/fspf-fuzz-relay-%d", (int)getpid());
        (void)mkdir(directory, 0700);
        (void)signal(SIGPIPE, SIG_IGN);
    }
    set_up(&g);
    unsigned flags = take(&in);
    struct fuse_init_in init = {.major = 7, .minor = flags & 64 ? 45 : flags, .max_readahead = 4096};
    init.flags = FUSE_INIT_EXT | (flags & 1 ? FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT : 0);
    memcpy(g.w.in + sizeof(struct fuse_in_header), &init, sizeof init);
    serve(&g, &in, FUSE_INIT, 0, sizeof init, 0);
    while (in.left > 2) {
        unsigned kind = take(&in);
        uint32_t opcode = kind % 56;
        uint64_t ino = number(take(&in));
        size_t len = 0;
        unsigned words = take(&in) % 14;
        uint8_t *arg = g.w.in + sizeof(struct fuse_in_header);
        for (unsigned i = 0; i < words; i++, len += 8) { /* fields are mostly small numbers or at a limit */
            uint64_t value = number(take(&in));
            memcpy(arg + len, &value, 8);
        }
        for (unsigned tail = take(&in) % 40; tail > 0 && in.left > 0; tail--) {
            arg[len++] = (uint8_t)take(&in);
        }
        if (opcode != FUSE_INIT) {
            serve(&g, &in, opcode, ino, len, kind == 255 ? take(&in) + 1 : 0);
        }
        if (kind > 200) {
            (void)up_fsync(&g.names, 0, false);
        }
    }
    relay_free(g.r);
    table_clear(&g.names);
    free(g.w.in);
    free(g.w.out);
    (void)close(g.device);
    (void)close(g.control);
    return 0;
}
