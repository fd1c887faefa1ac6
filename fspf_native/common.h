/* Status codes, error details, pointers and small helpers shared by the C files of fspf_native.
 * No Python here; the binding turns a status into an exception. */
#ifndef FSPF_COMMON_H
#define FSPF_COMMON_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KEY_LEN 32u
#define TAG_LEN 16u
#define POINTER_LEN 32u
#define ENTRY_LEN 16u /* checksum table, FORMAT.md 5 */
#define MAX_EPOCH ((1u << 24) - 1u)
#define COUNTER_LIMIT ((uint64_t)1 << 40)
#define SLOT_LIMIT ((uint64_t)1 << 40)
#define MAX_FILE_SIZE ((uint64_t)INT64_MAX)
#define MIN_CHUNK_SIZE 4096u
#define MAX_CHUNK_SIZE 65536u

typedef enum {
    ST_OK = 0,
    ST_OS,      /* the host said no: error.os_errno */
    ST_AUTH,    /* a tag did not fit */
    ST_DAMAGED, /* a block is not what was written: error.kind and the rest */
    ST_NOMEM,
    ST_CRYPTO, /* libcrypto failed for a reason other than a tag */
    ST_MISUSE, /* the caller broke the protocol: error.message */
    ST_VALUE,  /* an argument is out of range: error.message */
} fspf_status;

typedef enum {
    KIND_MISSING = 0,
    KIND_TORN,
    KIND_STALE,
    KIND_TAMPERED,
} damage_kind;

typedef enum {
    PROTECT_ENCRYPT = 0,
    PROTECT_AUTHENTICATE = 1,
} protection_mode;

typedef struct {
    const char *message; /* static text or NULL */
    int os_errno;
    damage_kind kind;
    int level;
    uint32_t epoch;
    uint64_t slot;
    uint64_t counter;
    uint64_t offset;
    uint64_t length;
} fspf_error;

static inline fspf_status fail_os(fspf_error *err, int os_errno, const char *message)
{
    err->os_errno = os_errno;
    err->message = message;
    return ST_OS;
}

static inline fspf_status fail_with(fspf_error *err, fspf_status status, const char *message)
{
    err->message = message;
    return status;
}

/* Pointers are kept as their 32 bytes on disk (FORMAT.md 6). */

static inline uint64_t load_le64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return le64toh(value);
}

static inline void store_le64(uint8_t *to, uint64_t value)
{
    value = htole64(value);
    memcpy(to, &value, sizeof value);
}

static inline uint64_t pointer_slot(const uint8_t *p)
{
    return load_le64(p) & (SLOT_LIMIT - 1);
}

static inline uint32_t pointer_epoch(const uint8_t *p)
{
    return (uint32_t)(load_le64(p) >> 40);
}

static inline uint64_t pointer_counter(const uint8_t *p)
{
    return load_le64(p + 8);
}

static inline bool pointer_is_hole(const uint8_t *p)
{
    uint64_t w[4];
    memcpy(w, p, sizeof w);
    return (w[0] | w[1] | w[2] | w[3]) == 0;
}

static inline void pointer_make(uint8_t *p, uint64_t slot, uint32_t epoch, uint64_t counter)
{
    store_le64(p, slot | ((uint64_t)epoch << 40));
    store_le64(p + 8, counter);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Which kind of damage, as the words of ChunkError.kind. */
const char *damage_name(damage_kind kind);

/* XXH3-64, seed 0. */
uint64_t checksum_xxh3(const void *data, size_t len);

#endif
