/* See map64.h. */
#include "map64.h"

#include <stdlib.h>
#include <string.h>

static size_t home_of(const map64 *map, uint64_t key)
{
    return (size_t)((key * UINT64_C(0x9E3779B97F4A7C15)) >> 20) & (map->capacity - 1);
}

void map64_clear(map64 *map)
{
    free(map->keys);
    free(map->values);
    memset(map, 0, sizeof *map);
}

void *map64_get(const map64 *map, uint64_t key)
{
    if (map->count == 0 || key == MAP64_EMPTY) {
        return NULL;
    }
    for (size_t i = home_of(map, key);; i = (i + 1) & (map->capacity - 1)) {
        if (map->keys[i] == key) {
            return map->values[i];
        }
        if (map->keys[i] == MAP64_EMPTY) {
            return NULL;
        }
    }
}

void map64_put(map64 *map, uint64_t key, void *value)
{
    size_t i = home_of(map, key);
    while (map->keys[i] != MAP64_EMPTY && map->keys[i] != key) {
        i = (i + 1) & (map->capacity - 1);
    }
    if (map->keys[i] == MAP64_EMPTY) {
        map->count++;
    }
    map->keys[i] = key;
    map->values[i] = value;
}

bool map64_reserve(map64 *map)
{
    if ((map->count + 1) * 4 <= map->capacity * 3) {
        return true;
    }
    map64 bigger = {.capacity = map->capacity ? map->capacity * 2 : 16};
    bigger.keys = malloc(bigger.capacity * sizeof *bigger.keys);
    bigger.values = malloc(bigger.capacity * sizeof *bigger.values);
    if (bigger.keys == NULL || bigger.values == NULL) {
        map64_clear(&bigger);
        return false;
    }
    memset(bigger.keys, 0xff, bigger.capacity * sizeof *bigger.keys);
    for (size_t i = 0; i < map->capacity; i++) {
        if (map->keys[i] != MAP64_EMPTY) {
            map64_put(&bigger, map->keys[i], map->values[i]);
        }
    }
    map64_clear(map);
    *map = bigger;
    return true;
}

void *map64_remove(map64 *map, uint64_t key)
{
    if (map->count == 0 || key == MAP64_EMPTY) {
        return NULL;
    }
    size_t mask = map->capacity - 1;
    size_t i = home_of(map, key);
    while (map->keys[i] != key) {
        if (map->keys[i] == MAP64_EMPTY) {
            return NULL;
        }
        i = (i + 1) & mask;
    }
    void *value = map->values[i];
    /* Close the gap: move back every entry that a probe could no longer reach. */
    for (size_t j = (i + 1) & mask; map->keys[j] != MAP64_EMPTY; j = (j + 1) & mask) {
        size_t home = home_of(map, map->keys[j]);
        if (((j - home) & mask) >= ((j - i) & mask)) {
            map->keys[i] = map->keys[j];
            map->values[i] = map->values[j];
            i = j;
        }
    }
    map->keys[i] = MAP64_EMPTY;
    map->count--;
    return value;
}
