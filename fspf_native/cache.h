/* Opened, clean nodes, found by the whole 32-byte pointer. A pointer names one sealing for ever (nonces never repeat),
 * so an entry cannot be stale and is never invalidated, only evicted. Thread-safe. */
#ifndef FSPF_CACHE_H
#define FSPF_CACHE_H

#include "common.h"

#include <stdatomic.h>

typedef struct cache cache;

typedef struct cache_entry {
    uint8_t pointer[POINTER_LEN];
    struct cache_entry *chain;               /* same bucket */
    struct cache_entry *clock_next, *clock_prev;
    uint32_t pins;                           /* under the shard's lock */
    bool recent;
    bool listed;                             /* in the table */
    _Alignas(64) uint8_t data[];             /* chunk_size bytes */
} cache_entry;

cache *cache_new(size_t bytes, uint32_t chunk_size);
void cache_free(cache *c);
/* Pinned entry or NULL. */
cache_entry *cache_get(cache *c, const uint8_t *pointer);
/* A private entry to be filled and then given to cache_add; NULL when out of memory. */
cache_entry *cache_entry_new(cache *c, const uint8_t *pointer);
void cache_entry_drop(cache_entry *entry);
/* Publish a filled entry; the pinned one to use is returned (another thread's, if that was first). */
cache_entry *cache_add(cache *c, cache_entry *entry);
void cache_unpin(cache *c, cache_entry *entry);
void cache_stats(cache *c, uint64_t *bytes, uint64_t *hits, uint64_t *misses);

#endif
