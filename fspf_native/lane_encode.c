/* The lane's bytes: msgpack in the shortest encoding, records of the log as fspf/core/log.py reads them, entries of the
 * ring as fspf/cas/hot.py does. What is written where, and when, is lane.c's business. */
#include "relay.h"
#include "secret.h"

#include <stdlib.h>
#include <time.h>

#define PAGE 4096u
#define NONCE_BYTES 12u
#define FRAME_HEAD 64u
#define ENTRY_HEAD 40u

/* ---- bytes ---- */

static uint8_t *more(lane_buffer *b, size_t len)
{
    if (b->failed || len > SIZE_MAX / 4 - b->len) {
        b->failed = true;
        return NULL;
    }
    if (b->len + len > b->capacity) {
        size_t capacity = 2 * (b->len + len) + 4096;
        uint8_t *data = malloc(capacity); /* not realloc: what is left behind is wiped */
        if (data == NULL) {
            b->failed = true;
            return NULL;
        }
        if (b->data != NULL) {
            memcpy(data, b->data, b->len);
            explicit_bzero(b->data, b->len);
            free(b->data);
        }
        b->data = data;
        b->capacity = capacity;
    }
    uint8_t *at = b->data + b->len;
    b->len += len;
    return at;
}

static void put(lane_buffer *b, const void *data, size_t len)
{
    uint8_t *at = more(b, len);
    if (at != NULL && len > 0) {
        memcpy(at, data, len);
    }
}

static void begin(lane_buffer *b)
{
    b->len = 0;
    b->failed = false;
}

static void wipe(lane_buffer *b)
{
    if (b->data != NULL) {
        explicit_bzero(b->data, b->len);
    }
    b->len = 0;
}

void lane_buffer_free(lane_buffer *b)
{
    wipe(b);
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* ---- msgpack, in the shortest encoding ---- */

static void put_big_endian(lane_buffer *b, uint8_t first, uint64_t value, unsigned bytes)
{
    uint8_t *at = more(b, 1 + bytes);
    if (at != NULL) {
        *at++ = first;
        for (unsigned i = bytes; i > 0; i--) {
            *at++ = (uint8_t)(value >> (8 * (i - 1)));
        }
    }
}

static void pack_unsigned(lane_buffer *b, uint64_t value)
{
    if (value < 128) {
        put_big_endian(b, (uint8_t)value, 0, 0);
    } else if (value <= UINT8_MAX) {
        put_big_endian(b, 0xcc, value, 1);
    } else if (value <= UINT16_MAX) {
        put_big_endian(b, 0xcd, value, 2);
    } else if (value <= UINT32_MAX) {
        put_big_endian(b, 0xce, value, 4);
    } else {
        put_big_endian(b, 0xcf, value, 8);
    }
}

static void pack_signed(lane_buffer *b, int64_t value)
{
    if (value >= 0) {
        pack_unsigned(b, (uint64_t)value);
    } else if (value >= -32) {
        put_big_endian(b, (uint8_t)value, 0, 0);
    } else if (value >= INT8_MIN) {
        put_big_endian(b, 0xd0, (uint64_t)value, 1);
    } else if (value >= INT16_MIN) {
        put_big_endian(b, 0xd1, (uint64_t)value, 2);
    } else if (value >= INT32_MIN) {
        put_big_endian(b, 0xd2, (uint64_t)value, 4);
    } else {
        put_big_endian(b, 0xd3, (uint64_t)value, 8);
    }
}

static void pack_array(lane_buffer *b, size_t count)
{
    if (count < 16) {
        put_big_endian(b, (uint8_t)(0x90 | count), 0, 0);
    } else if (count <= UINT16_MAX) {
        put_big_endian(b, 0xdc, count, 2);
    } else {
        put_big_endian(b, 0xdd, count, 4);
    }
}

static void pack_bytes(lane_buffer *b, const void *data, size_t len)
{
    if (len <= UINT8_MAX) {
        put_big_endian(b, 0xc4, len, 1);
    } else if (len <= UINT16_MAX) {
        put_big_endian(b, 0xc5, len, 2);
    } else {
        put_big_endian(b, 0xc6, len, 4);
    }
    put(b, data, len);
}

static void pack_nil(lane_buffer *b)
{
    put_big_endian(b, 0xc0, 0, 0);
}

static void pack_row(lane_buffer *b, const drained_inode *d)
{
    pack_array(b, 17);
    pack_unsigned(b, d->ino);
    pack_unsigned(b, d->mode);
    pack_unsigned(b, d->uid);
    pack_unsigned(b, d->gid);
    pack_unsigned(b, d->rdev);
    pack_unsigned(b, d->nlink);
    pack_signed(b, d->atime);
    pack_signed(b, d->mtime);
    pack_signed(b, d->ctime);
    pack_signed(b, d->btime);
    pack_unsigned(b, d->protection);
    pack_unsigned(b, d->size);
    pack_signed(b, d->depth);
    if (pointer_is_hole(d->pointer)) {
        pack_nil(b);
    } else {
        pack_bytes(b, d->pointer, POINTER_LEN);
    }
    pack_unsigned(b, d->chunks);
    if (d->parent != 0) {
        pack_unsigned(b, d->parent);
    } else {
        pack_nil(b);
    }
    if (d->target != NULL) {
        pack_bytes(b, d->target, d->target_len);
    } else {
        pack_nil(b);
    }
}

bool lane_encode_rows(lane *l, const drained *rows)
{
    lane_buffer *b = &l->rows;
    size_t reflushed = 0;
    begin(b);
    pack_array(b, 9);
    pack_array(b, rows->inode_count);
    for (size_t i = 0; i < rows->inode_count; i++) {
        pack_row(b, &rows->inodes[i]);
        reflushed += rows->inodes[i].reflushed;
    }
    pack_array(b, rows->name_count);
    for (size_t i = 0; i < rows->name_count; i++) {
        const drained_name *name = &rows->names[i];
        pack_array(b, 4);
        pack_unsigned(b, name->parent);
        pack_unsigned(b, name->cookie);
        pack_bytes(b, rows->text + name->at, name->len);
        pack_unsigned(b, name->ino);
    }
    pack_array(b, rows->removed_count);
    for (size_t i = 0; i < rows->removed_count; i++) {
        pack_array(b, 2);
        pack_unsigned(b, rows->removed[i].parent);
        pack_unsigned(b, rows->removed[i].cookie);
    }
    pack_array(b, rows->deleted_count);
    for (size_t i = 0; i < rows->deleted_count; i++) {
        pack_array(b, 2);
        pack_unsigned(b, rows->deleted[i].ino);
        put_big_endian(b, rows->deleted[i].xattrs ? 0xc3 : 0xc2, 0, 0);
    }
    pack_signed(b, rows->files_delta);
    pack_signed(b, rows->bytes_delta);
    pack_unsigned(b, rows->next_ino);
    pack_unsigned(b, rows->next_cookie);
    pack_array(b, reflushed);
    for (size_t i = 0; i < rows->inode_count; i++) {
        if (rows->inodes[i].reflushed) {
            pack_unsigned(b, rows->inodes[i].ino);
        }
    }
    return !b->failed;
}

static void pack_piece(lane_buffer *b, const log_piece *piece, size_t chunk_size)
{
    const captured *what = &piece->what;
    pack_array(b, 4);
    pack_unsigned(b, piece->ino);
    pack_unsigned(b, what->size);
    if (what->is_cut) {
        pack_unsigned(b, what->cut);
    } else {
        pack_nil(b);
    }
    pack_array(b, 2 * (size_t)what->count);
    for (unsigned i = 0; i < what->count; i++) {
        pack_unsigned(b, what->offset[i]);
        pack_bytes(b, what->data + i * chunk_size, what->length[i]);
    }
}

uint64_t lane_clock_ns(clockid_t which)
{
    struct timespec now;
    (void)clock_gettime(which, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* ---- a record of the log ---- */

static void store_le32(uint8_t *to, uint32_t value)
{
    value = htole32(value);
    memcpy(to, &value, sizeof value);
}

static void pad_to_page(lane_buffer *b)
{
    size_t rest = (PAGE - b->len % PAGE) % PAGE;
    uint8_t *at = more(b, rest);
    if (at != NULL) {
        memset(at, 0, rest);
    }
}

/* What follows the head, and its head before it with `check` at its end: checksummed as if `check` were not there. */
static void seal_head(uint8_t *whole, const uint8_t *head, size_t head_len, size_t body_len)
{
    memcpy(whole + 8, head, head_len - 8); /* next to the body */
    uint64_t check = checksum_xxh3(whole + 8, head_len - 8 + body_len);
    memcpy(whole, head, head_len - 8);
    store_le64(whole + head_len - 8, check);
}

int lane_make_frame(relay *r, lane *l, bool has_rows, const log_piece *pieces, size_t piece_count)
{
    lane_buffer *b = &l->plain;
    begin(b);
    pack_array(b, 11);
    pack_unsigned(b, 1); /* version of the record */
    pack_bytes(b, l->volume_id, sizeof l->volume_id);
    pack_unsigned(b, l->now.generation + 1);
    pack_unsigned(b, l->epoch);
    pack_bytes(b, l->now.tag, TAG_LEN);
    pack_unsigned(b, l->now.anchor_generation);
    pack_bytes(b, l->now.anchor_tag, TAG_LEN);
    pack_unsigned(b, slots_end(&r->st->slots));
    pack_array(b, has_rows ? 1 : 0);
    if (has_rows) {
        put(b, l->rows.data, l->rows.len);
    }
    pack_array(b, piece_count);
    for (size_t i = 0; i < piece_count; i++) {
        pack_piece(b, &pieces[i], r->chunk_size);
    }
    pack_unsigned(b, lane_clock_ns(CLOCK_REALTIME));

    uint8_t head[FRAME_HEAD] = "FSPF-LOG";
    int result = -1;
    begin(&l->frame);
    uint8_t *frame = b->failed || b->len > UINT32_MAX ? NULL : more(&l->frame, FRAME_HEAD + b->len);
    if (frame != NULL) {
        store_le32(head + 8, l->key_version);
        store_le32(head + 12, l->epoch);
        store_le32(head + 16, (uint32_t)b->len);
        memcpy(l->aad + HEADER_BYTES, head, PREFIX_BYTES);
        if (secret_random(head + 20, NONCE_BYTES) == ST_OK &&
            secret_gcm_seal(l->log_key, head + 20, l->aad, sizeof l->aad, b->data, b->len, frame + FRAME_HEAD,
                            head + 32) == ST_OK) {
            seal_head(frame, head, FRAME_HEAD, b->len);
            pad_to_page(&l->frame);
            memcpy(l->now.tag, head + 32, TAG_LEN);
            result = l->frame.failed ? -1 : 0;
        }
    }
    wipe(b);
    wipe(&l->rows);
    return result;
}

/* ---- an entry of the ring ---- */

int lane_make_entry(lane *l, uint64_t expires_ns)
{
    uint64_t version = l->now.version + 1;
    const uint8_t *fixed = l->fixed + l->aad_len;
    lane_buffer *b = &l->state;
    begin(b);
    put(b, l->fixed, l->aad_len);
    uint8_t *at = more(b, 8);
    if (at != NULL) {
        store_le64(at, version);
    }
    size_t aad_len = b->len;
    put(b, fixed, l->before_len);
    pack_unsigned(b, l->now.generation);
    pack_bytes(b, l->now.tag, TAG_LEN);
    put(b, fixed + l->before_len, l->between_len);
    pack_unsigned(b, expires_ns);
    put(b, fixed + l->before_len + l->between_len, l->after_len);
    if (b->failed) {
        return -1;
    }
    size_t plain_len = b->len - aad_len;
    size_t sealed_len = plain_len + SIV_LEN;
    uint8_t head[ENTRY_HEAD] = "FSPC-ENT";
    begin(&l->entry);
    uint8_t *entry = more(&l->entry, ENTRY_HEAD + sealed_len + l->frame.len);
    if (entry == NULL ||
        secret_siv_seal(l->state_key, b->data, aad_len, b->data + aad_len, plain_len, entry + ENTRY_HEAD) != ST_OK) {
        return -1;
    }
    memcpy(entry + ENTRY_HEAD + sealed_len, l->frame.data, l->frame.len);
    store_le64(head + 8, version);
    store_le64(head + 16, (l->now.kept_count > 0 ? l->now.kept[0].version : version) - 1);
    store_le32(head + 24, (uint32_t)sealed_len);
    store_le32(head + 28, (uint32_t)l->frame.len);
    seal_head(entry, head, ENTRY_HEAD, sealed_len + l->frame.len);
    pad_to_page(&l->entry);
    return l->entry.failed ? -1 : 0;
}
