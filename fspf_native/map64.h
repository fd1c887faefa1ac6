/* A hash table from 64-bit keys to pointers: open addressing, linear probing, no tombstones. */
#ifndef FSPF_MAP64_H
#define FSPF_MAP64_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAP64_EMPTY UINT64_MAX /* not a key */

typedef struct {
    uint64_t *keys;
    void **values;
    size_t capacity; /* 0 or a power of two */
    size_t count;
} map64;

void map64_clear(map64 *map);
void *map64_get(const map64 *map, uint64_t key);
/* Makes room for one more key; after true, map64_put of any key but MAP64_EMPTY cannot fail. */
bool map64_reserve(map64 *map);
void map64_put(map64 *map, uint64_t key, void *value);
void *map64_remove(map64 *map, uint64_t key);

#endif
