/* See cache.h. Sharded mutexes, chained buckets, CLOCK eviction. */
#include "cache.h"

#include <pthread.h>
#include <stdlib.h>

#define MAX_SHARDS 16u

typedef struct {
    _Alignas(64) pthread_mutex_t lock;
    cache_entry **buckets;
    size_t bucket_count; /* power of two */
    cache_entry *hand;
    size_t entries;
    uint64_t hits, misses;
} shard;

struct cache {
    uint32_t chunk_size;
    uint32_t shard_count; /* power of two */
    size_t shard_entries; /* most that a shard keeps, pinned ones aside */
    shard shards[MAX_SHARDS];
};

/* The tag is as good as random, and was chosen by whoever has the key. */
static uint64_t hash_of(const uint8_t *pointer)
{
    return load_le64(pointer + 16);
}

cache *cache_new(size_t bytes, uint32_t chunk_size)
{
    cache *c = aligned_alloc(64, (sizeof *c + 63) / 64 * 64);
    if (c == NULL) {
        return NULL;
    }
    memset(c, 0, sizeof *c);
    size_t entries = bytes / chunk_size;
    c->chunk_size = chunk_size;
    c->shard_count = 1;
    while (c->shard_count < MAX_SHARDS && entries / c->shard_count > 128) {
        c->shard_count *= 2;
    }
    c->shard_entries = entries / c->shard_count;
    for (uint32_t i = 0; i < c->shard_count; i++) {
        shard *s = &c->shards[i];
        (void)pthread_mutex_init(&s->lock, NULL);
        s->bucket_count = 16;
        while (s->bucket_count < c->shard_entries) {
            s->bucket_count *= 2;
        }
        s->buckets = calloc(s->bucket_count, sizeof(cache_entry *));
        if (s->buckets == NULL) {
            cache_free(c);
            return NULL;
        }
    }
    return c;
}

void cache_free(cache *c)
{
    if (c == NULL) {
        return;
    }
    for (uint32_t i = 0; i < c->shard_count; i++) {
        shard *s = &c->shards[i];
        for (size_t b = 0; s->buckets != NULL && b < s->bucket_count; b++) {
            while (s->buckets[b] != NULL) {
                cache_entry *entry = s->buckets[b];
                s->buckets[b] = entry->chain;
                free(entry);
            }
        }
        free(s->buckets);
        (void)pthread_mutex_destroy(&s->lock);
    }
    free(c);
}

static shard *shard_of(cache *c, const uint8_t *pointer)
{
    return &c->shards[hash_of(pointer) & (c->shard_count - 1)];
}

static cache_entry **bucket_of(shard *s, const uint8_t *pointer)
{
    return &s->buckets[(hash_of(pointer) >> 8) & (s->bucket_count - 1)];
}

static cache_entry *find_lock_held(shard *s, const uint8_t *pointer)
{
    cache_entry *entry = *bucket_of(s, pointer);
    while (entry != NULL && memcmp(entry->pointer, pointer, POINTER_LEN) != 0) {
        entry = entry->chain;
    }
    return entry;
}

cache_entry *cache_get(cache *c, const uint8_t *pointer)
{
    shard *s = shard_of(c, pointer);
    pthread_mutex_lock(&s->lock);
    cache_entry *entry = find_lock_held(s, pointer);
    if (entry != NULL) {
        entry->pins++;
        entry->recent = true;
        s->hits++;
    } else {
        s->misses++;
    }
    pthread_mutex_unlock(&s->lock);
    return entry;
}

cache_entry *cache_entry_new(cache *c, const uint8_t *pointer)
{
    cache_entry *entry = aligned_alloc(64, sizeof *entry + c->chunk_size);
    if (entry != NULL) {
        memset(entry, 0, sizeof *entry);
        memcpy(entry->pointer, pointer, POINTER_LEN);
    }
    return entry;
}

void cache_entry_drop(cache_entry *entry)
{
    free(entry);
}

static void unlink_lock_held(shard *s, cache_entry *entry)
{
    cache_entry **link = bucket_of(s, entry->pointer);
    while (*link != entry) {
        link = &(*link)->chain;
    }
    *link = entry->chain;
    if (entry->clock_next == entry) {
        s->hand = NULL;
    } else {
        entry->clock_next->clock_prev = entry->clock_prev;
        entry->clock_prev->clock_next = entry->clock_next;
        if (s->hand == entry) {
            s->hand = entry->clock_next;
        }
    }
    entry->listed = false;
    s->entries--;
}

/* Give every entry one more round if it was used since the last; skip what is pinned. */
static void evict_lock_held(shard *s, size_t keep)
{
    for (size_t steps = 2 * s->entries; s->entries > keep && steps > 0; steps--) {
        cache_entry *entry = s->hand;
        s->hand = entry->clock_next;
        if (entry->pins > 0) {
            continue;
        }
        if (entry->recent) {
            entry->recent = false;
            continue;
        }
        unlink_lock_held(s, entry);
        free(entry);
    }
}

cache_entry *cache_add(cache *c, cache_entry *entry)
{
    shard *s = shard_of(c, entry->pointer);
    pthread_mutex_lock(&s->lock);
    cache_entry *present = find_lock_held(s, entry->pointer);
    if (present == NULL) {
        evict_lock_held(s, c->shard_entries > 0 ? c->shard_entries - 1 : 0);
        cache_entry **bucket = bucket_of(s, entry->pointer);
        entry->chain = *bucket;
        *bucket = entry;
        if (s->hand == NULL) {
            entry->clock_next = entry->clock_prev = entry;
            s->hand = entry;
        } else { /* just behind the hand: looked at last */
            entry->clock_next = s->hand;
            entry->clock_prev = s->hand->clock_prev;
            entry->clock_prev->clock_next = entry;
            s->hand->clock_prev = entry;
        }
        entry->listed = true;
        s->entries++;
        present = entry;
        entry = NULL;
    }
    present->pins++;
    pthread_mutex_unlock(&s->lock);
    cache_entry_drop(entry);
    return present;
}

void cache_unpin(cache *c, cache_entry *entry)
{
    if (entry == NULL) {
        return;
    }
    shard *s = shard_of(c, entry->pointer);
    bool drop = false;
    pthread_mutex_lock(&s->lock);
    entry->pins--;
    if (entry->pins == 0 && s->entries > c->shard_entries) {
        unlink_lock_held(s, entry);
        drop = true;
    }
    pthread_mutex_unlock(&s->lock);
    if (drop) {
        cache_entry_drop(entry);
    }
}

void cache_stats(cache *c, uint64_t *bytes, uint64_t *hits, uint64_t *misses)
{
    *bytes = *hits = *misses = 0;
    for (uint32_t i = 0; i < c->shard_count; i++) {
        shard *s = &c->shards[i];
        pthread_mutex_lock(&s->lock);
        *bytes += s->entries * (uint64_t)c->chunk_size;
        *hits += s->hits;
        *misses += s->misses;
        pthread_mutex_unlock(&s->lock);
    }
}
