/* Sealing and opening of chunks and nodes under epoch keys (FORMAT.md 6): one key schedule per context, contexts
 * pooled per key, only the nonce changes per block. Knows nothing of slots or files. */
#ifndef FSPF_AEAD_H
#define FSPF_AEAD_H

#include "common.h"

typedef struct aead_key aead_key;
typedef struct aead_ctx aead_ctx;

typedef enum {
    AEAD_SEAL = 0,
    AEAD_OPEN = 1,
} aead_direction;

/* Copies the 32 bytes into locked memory; NULL when out of memory. */
aead_key *aead_key_new(const uint8_t *key);
void aead_key_free(aead_key *key);
bool aead_key_equal(const aead_key *key, const uint8_t *other);

/* A context belongs to one thread between borrow and give_back. */
aead_ctx *aead_borrow(aead_key *key, aead_direction direction);
void aead_give_back(aead_key *key, aead_ctx *ctx);

/* plain and sealed may be the same buffer. len is at most 2^30. */
fspf_status aead_seal(aead_ctx *ctx, uint64_t counter, protection_mode protection, const uint8_t *plain,
                      uint8_t *sealed, size_t len, uint8_t *tag);
/* ST_AUTH when the tag does not fit; `plain` is wiped then. */
fspf_status aead_open(aead_ctx *ctx, uint64_t counter, protection_mode protection, const uint8_t *sealed,
                      uint8_t *plain, size_t len, const uint8_t *tag);

fspf_status aead_seal_batch(aead_key *key, uint64_t first_counter, protection_mode protection, const uint8_t *plain,
                            uint8_t *sealed, uint8_t *tags, size_t chunk_size, size_t chunks);
/* All or nothing: on ST_AUTH the whole of `plain` is zero. */
fspf_status aead_open_batch(aead_key *key, uint64_t first_counter, protection_mode protection, const uint8_t *sealed,
                            uint8_t *plain, const uint8_t *tags, size_t chunk_size, size_t chunks);

#endif
