/* See slots.h. */
#include "slots.h"

#include <errno.h>
#include <stdlib.h>

#define RESERVE_BYTES (UINT64_C(4) << 20) /* most that the reserve takes */

static bool bit_get(const uint64_t *bits, uint64_t i)
{
    return (bits[i / 64] >> (i % 64)) & 1;
}

static void bits_set(uint64_t *bits, uint64_t start, uint64_t count)
{
    while (count > 0) {
        uint64_t n = min_u64(64 - start % 64, count);
        uint64_t mask = n == 64 ? UINT64_MAX : ((UINT64_C(1) << n) - 1) << (start % 64);
        bits[start / 64] |= mask;
        start += n;
        count -= n;
    }
}

static void bits_clear(uint64_t *bits, uint64_t start, uint64_t count)
{
    while (count > 0) {
        uint64_t n = min_u64(64 - start % 64, count);
        uint64_t mask = n == 64 ? UINT64_MAX : ((UINT64_C(1) << n) - 1) << (start % 64);
        bits[start / 64] &= ~mask;
        start += n;
        count -= n;
    }
}

/* First bit of the wanted value in [from, end), or end. */
static uint64_t bits_find(const uint64_t *bits, uint64_t from, uint64_t end, bool wanted)
{
    while (from < end) {
        uint64_t word = wanted ? bits[from / 64] : ~bits[from / 64];
        word >>= from % 64;
        if (word != 0) {
            return min_u64(end, from + (uint64_t)__builtin_ctzll(word));
        }
        from += 64 - from % 64;
    }
    return end;
}

fspf_status slots_open(slots *s, const char *directory, uint32_t chunk_size, uint32_t segment_slots, bool writable,
                       uint64_t reserve_slots, uint64_t max_slots, fspf_error *err)
{
    memset(s, 0, sizeof *s);
    fspf_status status = segments_open(&s->files, directory, chunk_size, segment_slots, writable, err);
    if (status != ST_OK) {
        return status;
    }
    s->chunk_size = chunk_size;
    s->segment_slots = segment_slots;
    s->max_slots = max_slots;
    /* Small volumes and small segments keep a small reserve. */
    reserve_slots = min_u64(reserve_slots, segment_slots / 2);
    reserve_slots = min_u64(reserve_slots, RESERVE_BYTES / chunk_size);
    if (max_slots) {
        reserve_slots = min_u64(reserve_slots, max_slots / 8);
    }
    s->reserve_target = reserve_slots;
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_mutex_init(&s->trim_lock, NULL);
    return ST_OK;
}

void slots_close(slots *s)
{
    segments_close(&s->files);
    free(s->used);
    free(s->freed);
    free(s->segment_free);
    free(s->marked);
    free(s->unmarked);
    s->used = s->freed = s->marked = s->unmarked = NULL;
    s->segment_free = NULL;
    s->segment_count = s->segment_capacity = 0;
    runs_clear(&s->reserve);
    (void)pthread_mutex_destroy(&s->lock);
    (void)pthread_mutex_destroy(&s->trim_lock);
}

static uint64_t known_slots(const slots *s)
{
    return s->segment_count * s->segment_slots;
}

static bool resize(uint64_t **bits, uint64_t words)
{
    uint64_t *bigger = realloc(*bits, words * sizeof **bits);
    if (bigger != NULL) {
        *bits = bigger;
    }
    return bigger != NULL;
}

static fspf_status grow_lock_held(slots *s, uint64_t segments_wanted, fspf_error *err)
{
    uint64_t words = s->segment_slots / 64;
    if (segments_wanted > SLOT_LIMIT / s->segment_slots || segments_wanted > (uint64_t)UINT32_MAX + 1) {
        return fail_os(err, ENOSPC, "no segment number left");
    }
    if (segments_wanted > s->segment_capacity) {
        uint64_t capacity = max_u64(segments_wanted, s->segment_capacity + s->segment_capacity / 2 + 4);
        uint32_t *bigger;
        if (!resize(&s->used, capacity * words) || !resize(&s->freed, capacity * words) ||
            (bigger = realloc(s->segment_free, capacity * sizeof *bigger)) == NULL) {
            return ST_NOMEM;
        }
        s->segment_free = bigger;
        s->segment_capacity = capacity;
    }
    for (uint64_t i = s->segment_count; i < segments_wanted; i++) {
        memset(s->used + i * words, 0, words * sizeof *s->used);
        memset(s->freed + i * words, 0, words * sizeof *s->freed);
        s->segment_free[i] = s->segment_slots;
    }
    s->segment_count = max_u64(s->segment_count, segments_wanted);
    return ST_OK;
}

fspf_status slots_start(slots *s, uint64_t end_of_slots, bool unknown, fspf_error *err)
{
    uint64_t end = 0;
    if (end_of_slots > SLOT_LIMIT) {
        return fail_with(err, ST_VALUE, "end_of_slots is beyond the format's limit");
    }
    fspf_status status =
        segments_scan(&s->files, (end_of_slots + s->segment_slots - 1) / s->segment_slots, &end, err);
    if (status != ST_OK) {
        return status;
    }
    pthread_mutex_lock(&s->lock);
    status = grow_lock_held(s, end, err);
    if (status == ST_OK && unknown && end > 0) {
        uint64_t words = known_slots(s) / 64;
        s->marked = calloc(words, sizeof *s->marked);
        s->unmarked = calloc(words, sizeof *s->unmarked);
        if (s->marked == NULL || s->unmarked == NULL) {
            status = ST_NOMEM;
        } else {
            s->rebuilding = true;
            s->boundary = known_slots(s);
            s->cursor = s->boundary;
            memset(s->used, 0xff, words * sizeof *s->used);
            memset(s->segment_free, 0, end * sizeof *s->segment_free);
        }
    }
    s->started = status == ST_OK;
    pthread_mutex_unlock(&s->lock);
    return status;
}

void slots_reset(slots *s)
{
    pthread_mutex_lock(&s->lock);
    s->started = false;
    s->segment_count = 0;
    s->used_count = 0;
    s->cursor = 0;
    pthread_mutex_unlock(&s->lock);
}

fspf_status slots_load_bits(slots *s, uint64_t first, const uint8_t *bits, size_t bytes, fspf_error *err)
{
    fspf_status status = ST_OK;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < bytes && status == ST_OK; i++) {
        for (unsigned b = 0; bits[i] >> b; b++) {
            uint64_t slot = first + i * 8 + b;
            if (!((bits[i] >> b) & 1)) {
                continue;
            }
            if (slot >= known_slots(s)) {
                status = fail_with(err, ST_VALUE, "the space map goes beyond end_of_slots");
                break;
            }
            if (!bit_get(s->used, slot)) {
                bits_set(s->used, slot, 1);
                s->segment_free[slot / s->segment_slots]--;
                s->used_count++;
            }
        }
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

bool slots_mark_used(slots *s, uint64_t slot)
{
    pthread_mutex_lock(&s->lock);
    bool known = slot < known_slots(s);
    if (known && !bit_get(s->used, slot)) {
        bits_set(s->used, slot, 1);
        s->segment_free[slot / s->segment_slots]--;
        s->used_count++;
    }
    pthread_mutex_unlock(&s->lock);
    return known;
}

/* ---- allocation ---- */

static uint64_t floor_of(const slots *s)
{
    return s->rebuilding ? s->boundary : 0;
}

/* First free slot at or after `from`, or the end. */
static uint64_t find_free_lock_held(const slots *s, uint64_t from)
{
    uint64_t end = known_slots(s);
    while (from < end) {
        uint64_t segment = from / s->segment_slots;
        uint64_t segment_end = (segment + 1) * s->segment_slots;
        if (s->segment_free[segment] > 0) {
            uint64_t found = bits_find(s->used, from, segment_end, false);
            if (found < segment_end) {
                return found;
            }
        }
        from = segment_end;
    }
    return end;
}

/* One run of up to `want` slots inside one segment. */
static fspf_status allocate_run_lock_held(slots *s, uint64_t want, slot_run *out, fspf_error *err)
{
    if (s->max_slots) {
        uint64_t used = s->used_count;
        if (used >= s->max_slots) {
            return fail_os(err, ENOSPC, "the volume's quota is used up");
        }
        want = min_u64(want, s->max_slots - used);
    }
    uint64_t end = known_slots(s);
    uint64_t start = find_free_lock_held(s, s->cursor);
    if (start == end) {
        uint64_t low = floor_of(s);
        uint64_t total = end - low;
        uint64_t used = s->used_count - (s->rebuilding ? s->marked_count : 0);
        if (total > used && (total - used) * 4 >= total) {
            start = find_free_lock_held(s, low);
        }
        if (start == end) {
            fspf_status status = grow_lock_held(s, s->segment_count + 1, err);
            if (status != ST_OK) {
                return status;
            }
        }
    }
    uint64_t segment_end = (start / s->segment_slots + 1) * s->segment_slots;
    uint64_t run_end = bits_find(s->used, start, min_u64(segment_end, start + want), true);
    bits_set(s->used, start, run_end - start);
    s->segment_free[start / s->segment_slots] -= (uint32_t)(run_end - start);
    s->used_count += run_end - start;
    s->cursor = run_end;
    *out = (slot_run){start, run_end - start};
    return ST_OK;
}

static void free_lock_held(slots *s, uint64_t start, uint64_t count)
{
    if (s->rebuilding && start < s->boundary) {
        uint64_t n = min_u64(count, s->boundary - start);
        bits_set(s->unmarked, start, n);
        start += n;
        count -= n;
    }
    while (count > 0) {
        uint64_t segment = start / s->segment_slots;
        uint64_t n = min_u64(count, (segment + 1) * s->segment_slots - start);
        if (segment >= s->segment_count) {
            s->stray_frees += count;
            return;
        }
        if (bits_find(s->used, start, start + n, false) < start + n) {
            /* Something is freed twice: our own bug, or a tree made by whoever has the key. Count only what is used. */
            for (uint64_t i = start; i < start + n; i++) {
                if (bit_get(s->used, i)) {
                    free_lock_held(s, i, 1);
                } else {
                    s->stray_frees++;
                }
            }
        } else {
            bits_clear(s->used, start, n);
            bits_set(s->freed, start, n);
            s->segment_free[segment] += (uint32_t)n;
            s->used_count -= n;
        }
        start += n;
        count -= n;
    }
}

fspf_status slots_allocate(slots *s, uint64_t count, run_list *out, fspf_error *err)
{
    fspf_status status = ST_OK;
    pthread_mutex_lock(&s->lock);
    if (!s->started) {
        status = fail_with(err, ST_MISUSE, "write before start_empty, start_map or start_unknown");
    }
    while (count > 0 && status == ST_OK) {
        slot_run run = {0, 0};
        if (!runs_reserve(out, 1)) {
            status = ST_NOMEM;
            break;
        }
        status = allocate_run_lock_held(s, count, &run, err);
        if (status == ST_OK) {
            /* Runs of two segments are kept apart: each is one write. */
            out->runs[out->count++] = run;
            out->slots += run.length;
            count -= run.length;
        }
    }
    if (status != ST_OK) {
        for (size_t i = 0; i < out->count; i++) {
            free_lock_held(s, out->runs[i].start, out->runs[i].length);
        }
        out->count = 0;
        out->slots = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

void slots_free(slots *s, uint64_t start, uint64_t count)
{
    pthread_mutex_lock(&s->lock);
    free_lock_held(s, start, count);
    pthread_mutex_unlock(&s->lock);
}

void slots_free_runs(slots *s, run_list *list)
{
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < list->count; i++) {
        free_lock_held(s, list->runs[i].start, list->runs[i].length);
    }
    pthread_mutex_unlock(&s->lock);
    list->count = 0;
    list->slots = 0;
}

/* ---- reserve ---- */

fspf_status slots_take_reserve(slots *s, uint64_t count, run_list *out, fspf_error *err)
{
    fspf_status status = ST_OK;
    pthread_mutex_lock(&s->lock);
    if (s->reserve.slots < count) {
        status = fail_os(err, ENOSPC, "no space left, not even in the reserve");
    } else if (!runs_reserve(out, s->reserve.count)) {
        status = ST_NOMEM;
    }
    while (status == ST_OK && count > 0) {
        slot_run *last = &s->reserve.runs[s->reserve.count - 1];
        uint64_t n = min_u64(count, last->length);
        out->runs[out->count++] = (slot_run){last->start, n};
        out->slots += n;
        last->start += n;
        last->length -= n;
        s->reserve.slots -= n;
        count -= n;
        if (last->length == 0) {
            s->reserve.count--;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

uint64_t slots_drop_reserve(slots *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t dropped = s->reserve.slots;
    for (size_t i = 0; i < s->reserve.count; i++) {
        free_lock_held(s, s->reserve.runs[i].start, s->reserve.runs[i].length);
    }
    runs_clear(&s->reserve);
    s->reserve_target = 0;
    pthread_mutex_unlock(&s->lock);
    return dropped;
}

static void fill_reserve(slots *s)
{
    for (;;) {
        fspf_error err = {0};
        slot_run run = {0, 0};
        fspf_status status = ST_MISUSE;
        pthread_mutex_lock(&s->lock);
        if (s->started && s->reserve.slots < s->reserve_target && runs_reserve(&s->reserve, 1)) {
            uint64_t want = s->reserve_target - s->reserve.slots;
            uint64_t free_slots = s->max_slots > s->used_count ? s->max_slots - s->used_count : 0;
            /* Never the last slots of a quota: whoever writes data needs them more. */
            if (!s->max_slots || free_slots > want) {
                status = allocate_run_lock_held(s, want, &run, &err);
            }
        }
        pthread_mutex_unlock(&s->lock);
        if (status != ST_OK) {
            return;
        }
        status = segments_allocate(&s->files, run.start, run.length, &err);
        pthread_mutex_lock(&s->lock);
        if (status == ST_OK && runs_reserve(&s->reserve, 1)) {
            s->reserve.runs[s->reserve.count++] = run;
            s->reserve.slots += run.length;
        } else {
            free_lock_held(s, run.start, run.length);
            status = ST_NOMEM;
        }
        pthread_mutex_unlock(&s->lock);
        if (status != ST_OK) {
            return;
        }
    }
}

uint64_t slots_fill_reserve(slots *s)
{
    fill_reserve(s);
    pthread_mutex_lock(&s->lock);
    uint64_t reserved = s->reserve.slots;
    pthread_mutex_unlock(&s->lock);
    return reserved;
}

/* ---- rebuilding, trimming ---- */

void slots_mark(slots *s, uint64_t slot)
{
    pthread_mutex_lock(&s->lock);
    if (s->rebuilding && slot < s->boundary && !bit_get(s->marked, slot)) {
        bits_set(s->marked, slot, 1);
        s->marked_count++;
        s->used_count++;
    }
    pthread_mutex_unlock(&s->lock);
}

fspf_status slots_rebuild_finish(slots *s, uint64_t *gained, fspf_error *err)
{
    *gained = 0;
    pthread_mutex_lock(&s->lock);
    if (!s->rebuilding) {
        bool started = s->started;
        pthread_mutex_unlock(&s->lock);
        return started ? ST_OK : fail_with(err, ST_MISUSE, "rebuild_finish without start_unknown");
    }
    uint64_t words_per_segment = s->segment_slots / 64;
    uint64_t boundary_segments = s->boundary / s->segment_slots;
    s->used_count -= s->marked_count;
    for (uint64_t segment = 0; segment < boundary_segments; segment++) {
        uint32_t in_use = 0;
        for (uint64_t w = segment * words_per_segment; w < (segment + 1) * words_per_segment; w++) {
            s->used[w] = s->marked[w] & ~s->unmarked[w];
            s->freed[w] = ~s->used[w];
            in_use += (uint32_t)__builtin_popcountll(s->used[w]);
        }
        s->segment_free[segment] = s->segment_slots - in_use;
        s->used_count += in_use;
        *gained += s->segment_free[segment];
    }
    s->rebuilding = false;
    s->boundary = 0;
    s->marked_count = 0;
    free(s->marked);
    free(s->unmarked);
    s->marked = s->unmarked = NULL;
    pthread_mutex_unlock(&s->lock);
    uint64_t bytes = 0;
    return slots_trim(s, &bytes, err);
}

fspf_status slots_trim(slots *s, uint64_t *bytes, fspf_error *err)
{
    fspf_status status = ST_OK;
    *bytes = 0;
    if (!s->started) {
        return fail_with(err, ST_MISUSE, "trim before the first start");
    }
    pthread_mutex_lock(&s->trim_lock);
    pthread_mutex_lock(&s->lock);
    uint64_t at = 0;
    while (status == ST_OK && at < known_slots(s)) {
        uint64_t segment_end = (at / s->segment_slots + 1) * s->segment_slots;
        uint64_t start = bits_find(s->freed, at, segment_end, true);
        if (start == segment_end || (s->rebuilding && start < s->boundary)) {
            at = segment_end;
            continue;
        }
        uint64_t end = bits_find(s->freed, start, segment_end, false);
        at = end;
        bits_clear(s->freed, start, end - start);
        /* Of this range, what is free now. While it is punched it counts as used, so that nobody writes into it. */
        while (start < end && status == ST_OK) {
            uint64_t run = bits_find(s->used, start, end, false);
            uint64_t run_end = bits_find(s->used, run, end, true);
            start = run_end;
            if (run == run_end) {
                continue;
            }
            bits_set(s->used, run, run_end - run);
            s->segment_free[run / s->segment_slots] -= (uint32_t)(run_end - run);
            pthread_mutex_unlock(&s->lock);
            status = segments_punch(&s->files, run, run_end - run, bytes, err);
            pthread_mutex_lock(&s->lock);
            bits_clear(s->used, run, run_end - run);
            s->segment_free[run / s->segment_slots] += (uint32_t)(run_end - run);
            if (status != ST_OK) {
                bits_set(s->freed, run, run_end - run);
                bits_set(s->freed, start, end - start);
            }
        }
    }
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->trim_lock);
    return status;
}

/* ---- views ---- */

fspf_status slots_snapshot(slots *s, uint64_t **bits, uint64_t *words)
{
    fspf_status status = ST_OK;
    pthread_mutex_lock(&s->trim_lock); /* a trim under way shows free slots as used */
    pthread_mutex_lock(&s->lock);
    *words = known_slots(s) / 64;
    *bits = malloc(*words ? *words * sizeof **bits : 1);
    if (*bits == NULL) {
        status = ST_NOMEM;
    } else {
        if (*words) {
            memcpy(*bits, s->used, *words * sizeof **bits);
        }
        for (size_t i = 0; i < s->reserve.count; i++) {
            bits_clear(*bits, s->reserve.runs[i].start, s->reserve.runs[i].length);
        }
    }
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->trim_lock);
    return status;
}

uint64_t slots_end(slots *s)
{
    uint64_t end = 0;
    pthread_mutex_lock(&s->lock);
    for (uint64_t w = known_slots(s) / 64; w > 0; w--) {
        if (s->used[w - 1] != 0) {
            end = w * 64 - (uint64_t)__builtin_clzll(s->used[w - 1]);
            break;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return end;
}
