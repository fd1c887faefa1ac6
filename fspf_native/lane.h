/* The lane: fsyncs that make a record of the intent log and its anchor durable without Python (docs/DATAPLANE.md, docs/COMMIT.md 9).
 *
 * Python lends it what a record and an entry of the CAS's ring need, as of one instant, and takes it back before it
 * commits anything itself. Every rule about who may write is Python's; here is only: the same as last time, once more. */
#ifndef FSPF_LANE_H
#define FSPF_LANE_H

#include "meta.h"

#include <time.h>

#define LANE_MOST_WAITING 64u
#define LANE_MOST_KEPT 256u
#define LANE_MOST_ROWS 512u /* of a record; as in fspf/volume/intent.py */
#define LANE_MOST_RECORDED 8192u /* rows that wait for the database */
#define HEADER_BYTES 4096u
#define PREFIX_BYTES 20u

typedef struct relay relay;
typedef struct log_piece log_piece;

typedef struct {
    uint64_t generation, version, place;
} lane_kept;

/* What is lent. Descriptors are duplicated, everything else is copied. */
typedef struct {
    /* the log: fspf/core/log.py */
    const uint8_t *log_key;
    uint32_t key_version, epoch;
    const uint8_t *volume_id, *header; /* 16 and HEADER_BYTES */
    int log_fd;
    uint64_t log_end, log_len;
    uint64_t generation;
    const uint8_t *tag;
    uint64_t silence_ns, contact_ns; /* CLOCK_BOOTTIME: how long the CAS may not have been heard of, and when it was */
    /* the CAS: fspf/cas/hot.py, fspf/cas/sealing.py */
    int hot_fd;
    uint64_t ring_len, end, changes, version;
    int64_t newest; /* place of the newest version; -1: none */
    const lane_kept *kept;
    size_t kept_count;
    const uint8_t *state_key;
    const uint8_t *aad, *before, *between, *after; /* of the sealed state: around generation, tag and the lease's end */
    size_t aad_len, before_len, between_len, after_len;
    uint64_t lease_ns, expires_ns; /* CLOCK_REALTIME */
    const char *database; /* has to be this file still */
    uint64_t device, inode;
} lane_orders;

typedef enum {
    LANE_CLEAN = 0,  /* all that was written is anchored */
    LANE_UNPROMISED, /* a record is in the log; it is neither synced nor anchored */
    LANE_ROOT_DUE,   /* what was taken is in no record */
    LANE_BROKEN,     /* the host refused a write or sync of the log */
} lane_outcome;

/* What is given back. */
typedef struct {
    lane_outcome outcome;
    int os_errno;
    uint64_t generation, log_end, anchor_generation, synced, count;
    uint8_t tag[TAG_LEN], anchor_tag[TAG_LEN];
    uint64_t version, expires_ns, end, contact_ns;
    int64_t newest;
    lane_kept kept[LANE_MOST_KEPT];
    size_t kept_count;
    uint64_t *inos; /* whose contents are in records though not in their roots; to be freed */
    size_t ino_count;
} lane_end;

typedef struct {
    uint8_t *data;
    size_t len, capacity;
    bool failed; /* out of memory */
} lane_buffer;

typedef struct lane {
    pthread_mutex_t lock; /* the tickets, and whether somebody leads; not the commit itself */
    pthread_cond_t done;
    bool lent, running;
    _Atomic bool armed;
    uint64_t tickets, served, refused; /* tickets up to `served` are; those up to `refused` perhaps not well */
    uint64_t waiting[LANE_MOST_WAITING];
    size_t waiting_count;
    _Atomic uint64_t contact_ns, anchored; /* when the CAS was reached last, and with which generation */
    _Atomic uint64_t records;              /* that were made durable here, ever */
    /* of whoever leads */
    uint8_t *log_key, *state_key;
    uint8_t aad[HEADER_BYTES + PREFIX_BYTES], volume_id[16];
    uint32_t key_version, epoch;
    int log_fd, hot_fd;
    uint64_t log_len, ring_len, silence_ns, changes, lease_ns, device, inode;
    uint8_t *fixed; /* aad, before, between, after */
    size_t aad_len, before_len, between_len, after_len;
    char *database;
    lane_end now;
    size_t ino_capacity;
    lane_buffer rows, plain, frame, entry, state;
} lane;

void lane_init(lane *l);
void lane_free(lane *l);
/* 0, -1 when out of memory or descriptors, or when a key is no use: nothing is lent. It must not be lent already. */
int lane_lend(lane *l, const lane_orders *orders);
/* Nothing more is taken; what is under way may end. `gate` is held for writing. */
void lane_pause_gate_held(lane *l);
/* Wait for what is under way and give everything back; false: nothing was lent. */
bool lane_take_back(lane *l, lane_end *out);
/* An fsync of a content (0: of rows only); false if it is the caller's to do. */
bool lane_fsync(relay *r, uint64_t ino);
/* The same, done by whoever can: the lane or an upcall. 0 or -errno. */
int lane_or_upcall(relay *r, uint64_t ino);

/* ---- lane_encode.c; by whoever leads ---- */

/* Encode the rows for the record; false when out of memory. */
bool lane_encode_rows(lane *l, const drained *rows);
/* 0, or -1: no memory, no randomness. l->frame has the record then, l->now.tag its tag. */
int lane_make_frame(relay *r, lane *l, bool has_rows, const log_piece *pieces, size_t piece_count);
/* The same of the entry that anchors it: l->entry. */
int lane_make_entry(lane *l, uint64_t expires_ns);
void lane_buffer_free(lane_buffer *b);
uint64_t lane_clock_ns(clockid_t which);

/* ---- for content.c ---- */

/* May it take something now? `gate` is held for writing. */
bool lane_may_take(const lane *l);

#endif
