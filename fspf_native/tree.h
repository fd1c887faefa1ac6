/* The content of one file: a tree of sealed chunks (FORMAT.md 6), written copy-on-write. Readers share, writers
 * exclude. Slots and keys come from the store; names and attributes of files are nobody's business here. */
#ifndef FSPF_TREE_H
#define FSPF_TREE_H

#include "store.h"

typedef struct tree tree;

typedef struct {
    uint64_t offset, length;
    damage_kind kind;
    uint64_t slot;
    int level;
} tree_finding;

/* Takes its own reference to the store. No I/O. */
fspf_status tree_new(store *st, const content_root *root, protection_mode protection, uint64_t allocated,
                     bool metadata, tree **out, fspf_error *err);
/* From now on changes stay in memory, also above a store that is open for reading; they cannot be flushed. */
void tree_make_overlay(tree *t);
/* What was not flushed is dropped, and its slots freed. */
void tree_free(tree *t);

uint32_t tree_chunk_size(const tree *t);
uint64_t tree_size(const tree *t);
uint64_t tree_allocated(const tree *t);
bool tree_dirty(const tree *t);
uint64_t tree_dirty_bytes(const tree *t);

/* *got is short at the end. On any error all of `out` is wiped. */
fspf_status tree_read(tree *t, uint64_t offset, uint8_t *out, size_t len, size_t *got, fspf_error *err);
fspf_status tree_write(tree *t, uint64_t offset, const uint8_t *data, size_t len, fspf_error *err);
fspf_status tree_truncate(tree *t, uint64_t size, fspf_error *err);
fspf_status tree_punch(tree *t, uint64_t offset, uint64_t length, fspf_error *err);
fspf_status tree_seek(tree *t, uint64_t offset, bool data, uint64_t *found, fspf_error *err);
fspf_status tree_flush(tree *t, content_root *out, fspf_error *err);
/* What was written since the last capture or flush, if that is little enough for a record of the intent log. */
#define CAPTURE_MOST 16u
typedef struct {
    bool complete; /* if not, the tree must be flushed */
    bool is_cut;
    uint64_t cut; /* cut to this size before the chunks were written */
    uint64_t size;
    unsigned count;
    uint64_t offset[CAPTURE_MOST];
    uint32_t length[CAPTURE_MOST];
    uint8_t *data; /* of piece i at i * chunk_size; to be wiped and freed */
    size_t data_len;
} captured;
fspf_status tree_capture(tree *t, captured *out, fspf_error *err);
/* Would a capture now be complete? */
bool tree_capturable(tree *t);
/* Wipe and free the data. */
void captured_clear(captured *c);
fspf_status tree_destroy(tree *t, uint64_t *lost, fspf_error *err);
/* Reads every block from the host, past the cache. At most `limit` findings; neighbours of one kind are joined. */
fspf_status tree_verify(tree *t, size_t limit, tree_finding **findings, size_t *count, fspf_error *err);

#endif
