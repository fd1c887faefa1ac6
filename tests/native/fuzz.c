/* libFuzzer target: trees made by somebody who has the key but not our code, and sequences of operations.
 *
 * First byte even: the input describes blocks, sealed as they are said to be, whose pointers lead to each other or
 * nowhere; then everything that reads or changes a tree, and the loader of space maps, is let loose on them.
 * First byte odd: the input is a list of operations on one tree, compared with an array.
 */
#include "tree.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHUNK 4096u
#define MAX_BLOCKS 24u
#define MODEL_MAX (1u << 20)

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            (void)fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);   \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

typedef struct {
    const uint8_t *at;
    size_t left;
} input;

static char directory[64];

static uint64_t take(input *in, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && in->left > 0; i++, in->at++, in->left--) {
        value |= (uint64_t)*in->at << (8 * i);
    }
    return value;
}

static store *fresh_store(void)
{
    store *st = NULL;
    fspf_error err = {0};
    uint8_t key[KEY_LEN] = {1};
    for (unsigned i = 0; i < 64; i++) {
        char path[96];
        (void)snprintf(path, sizeof path, "%s/%08x", directory, i);
        if (unlink(path) != 0) {
            break;
        }
    }
    CHECK(store_open(directory, CHUNK, 64, true, 64 * 1024, 8, 0, &st, &err) == ST_OK);
    CHECK(store_add_epoch(st, 1, key, true, &err) == ST_OK);
    return st;
}

/* Blocks of the input, at slot 0 and on; pointers[] are those that open them. */
static unsigned make_blocks(store *st, input *in, uint8_t pointers[MAX_BLOCKS][POINTER_LEN])
{
    static uint8_t block[CHUNK];
    uint8_t key[KEY_LEN] = {1};
    aead_key *sealing = aead_key_new(key);
    aead_ctx *ctx = aead_borrow(sealing, AEAD_SEAL);
    unsigned count = 1 + (unsigned)take(in, 1) % MAX_BLOCKS;
    for (unsigned i = 0; i < count; i++) {
        uint8_t entry[ENTRY_LEN] = {0};
        fspf_error err = {0};
        memset(block, 0, sizeof block);
        for (unsigned n = (unsigned)take(in, 1) % 5; n > 0; n--) {
            uint8_t *place = block + (take(in, 1) & 127) * POINTER_LEN;
            unsigned which = (unsigned)take(in, 1);
            if (i > 0 && which < 200) {
                memcpy(place, pointers[which % i], POINTER_LEN);
                if (which % 7 == 0) {
                    place[take(in, 1) & 31] ^= (uint8_t)take(in, 1);
                }
            } else {
                store_le64(place, take(in, 8));
                store_le64(place + 8, take(in, 5));
                store_le64(place + 16, take(in, 2));
            }
        }
        pointer_make(pointers[i], i, 1, 1000 + i);
        CHECK(aead_seal(ctx, 1000 + i, PROTECT_ENCRYPT, block, block, CHUNK, pointers[i] + 16) == ST_OK);
        CHECK(segments_write(&st->slots.files, i, 1, block, entry, &err) == ST_OK);
    }
    aead_give_back(sealing, ctx);
    aead_key_free(sealing);
    return count;
}

static void hostile(input *in)
{
    static uint8_t buffer[40000];
    uint8_t pointers[MAX_BLOCKS][POINTER_LEN];
    fspf_error err = {0};
    tree *t = NULL;
    store *st = fresh_store();
    unsigned count = make_blocks(st, in, pointers);
    content_root root = {0};
    root.size = take(in, 8) >> (take(in, 1) & 63);
    root.depth = take(in, 1) == 1 ? (int)take(in, 1) : store_depth_of(st, root.size & MAX_FILE_SIZE);
    memcpy(root.pointer, pointers[count - 1], POINTER_LEN);
    uint64_t chunks = 0;
    uint64_t how = take(in, 1);
    if (how % 3 == 0) {
        if (store_start(st, &root, take(in, 3), false, &err) != ST_OK) {
            CHECK(store_start(st, NULL, 0, true, &err) == ST_OK);
        }
    } else {
        CHECK(store_start(st, NULL, how, how % 3 == 1, &err) == ST_OK);
        (void)store_rebuild_mark(st, &root, PROTECT_ENCRYPT, &chunks, &err);
    }
    if (tree_new(st, &root, take(in, 1) == 3 ? PROTECT_AUTHENTICATE : PROTECT_ENCRYPT, take(in, 1), false, &t, &err) !=
        ST_OK) {
        store_unref(st);
        return;
    }
    for (unsigned i = 0; i < 12; i++) {
        size_t got = 0;
        uint64_t found = 0;
        tree_finding *findings = NULL;
        uint64_t offset = take(in, 8) >> (take(in, 1) & 63);
        offset = take(in, 1) & 1 ? offset : offset % (tree_size(t) + 1);
        uint64_t what = take(in, 1);
        switch (what % 9) {
        case 0:
        case 1:
            (void)tree_read(t, offset, buffer, (size_t)take(in, 2) % sizeof buffer, &got, &err);
            break;
        case 2:
            (void)tree_seek(t, offset, what & 16, &found, &err);
            break;
        case 3:
            if (tree_verify(t, 50, &findings, &got, &err) == ST_OK) {
                free(findings);
            }
            break;
        case 4:
            (void)tree_truncate(t, offset, &err);
            break;
        case 5:
            (void)tree_punch(t, offset, take(in, 8) >> (take(in, 1) & 63), &err);
            break;
        case 6:
            (void)tree_write(t, offset, buffer, (size_t)take(in, 2) % sizeof buffer, &err);
            break;
        case 7:
            (void)tree_flush(t, &root, &err);
            break;
        default:
            (void)tree_destroy(t, &found, &err);
            break;
        }
    }
    tree_free(t);
    (void)slots_rebuild_finish(&st->slots, &chunks, &err);
    store_unref(st);
}

static void operations(input *in)
{
    static uint8_t model[MODEL_MAX];
    static uint8_t data[70000];
    static uint8_t out[MODEL_MAX + 1];
    fspf_error err = {0};
    content_root root = {0};
    uint64_t size = 0;
    uint64_t number = 0;
    uint64_t lost = 0;
    size_t got = 0;
    tree *t = NULL;
    store *st = fresh_store();
    CHECK(store_start(st, NULL, 0, false, &err) == ST_OK);
    protection_mode protection = in->left & 1 ? PROTECT_AUTHENTICATE : PROTECT_ENCRYPT;
    CHECK(tree_new(st, &root, protection, 0, false, &t, &err) == ST_OK);
    for (unsigned steps = 0; in->left > 0 && steps < 60; steps++) {
        unsigned what = (unsigned)take(in, 1);
        uint64_t offset = take(in, 3) % (MODEL_MAX - sizeof data);
        size_t len = (size_t)take(in, 3) % sizeof data;
        if (what & 64) {
            offset &= ~UINT64_C(4095);
        }
        switch (what % 6) {
        case 0:
        case 1:
            memset(data, (int)steps + 1, len);
            CHECK(tree_write(t, offset, data, len, &err) == ST_OK);
            if (len > 0 && offset + len > size) {
                memset(model + size, 0, offset + len - size);
                size = offset + len;
            }
            memcpy(model + offset, data, len);
            break;
        case 2:
            CHECK(tree_truncate(t, offset, &err) == ST_OK);
            if (offset > size) {
                memset(model + size, 0, offset - size);
            }
            size = offset;
            break;
        case 3:
            CHECK(tree_punch(t, offset, len, &err) == ST_OK);
            if (offset < size) {
                memset(model + offset, 0, min_u64(len, size - offset));
            }
            break;
        case 4:
            CHECK(tree_flush(t, &root, &err) == ST_OK);
            CHECK(store_commit_begin(st, &number) == ST_OK);
            CHECK(store_commit_anchored(st, number, &err) == ST_OK);
            if (what & 128) { /* close and open again */
                uint64_t allocated = tree_allocated(t);
                tree_free(t);
                CHECK(tree_new(st, &root, protection, allocated, false, &t, &err) == ST_OK);
            }
            break;
        default:
            break;
        }
        CHECK(tree_size(t) == size);
        CHECK(tree_read(t, 0, out, sizeof out, &got, &err) == ST_OK && got == size);
        CHECK(memcmp(out, model, size) == 0);
    }
    CHECK(tree_destroy(t, &lost, &err) == ST_OK && lost == 0);
    CHECK(store_commit_begin(st, &number) == ST_OK && store_commit_anchored(st, number, &err) == ST_OK);
    CHECK(st->slots.used_count == st->slots.reserve.slots && st->slots.stray_frees == 0);
    tree_free(t);
    store_unref(st);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void remove_directory(void)
{
    for (unsigned i = 0; i < 1024; i++) {
        char path[96];
        (void)snprintf(path, sizeof path, "%s/%08x", directory, i);
        (void)unlink(path);
    }
    (void)rmdir(directory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    (void)snprintf(directory, sizeof directory, "%s/fspf-fuzz-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    CHECK(mkdtemp(directory) != NULL);
    (void)atexit(remove_directory);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    input in = {bytes, len};
    if (len == 0) {
        return 0;
    }
    if (take(&in, 1) & 1) {
        operations(&in);
    } else {
        hostile(&in);
    }
    return 0;
}
