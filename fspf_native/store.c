/* See store.h. */
#include "store.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <unistd.h>

#define IDLE_SCRATCH 8u
#define HOST_MARGIN (INT64_C(4) << 20)
#define HOST_STEP (INT64_C(8) << 20) /* ask the host again after so many bytes */

fspf_status store_open(const char *directory, uint32_t chunk_size, uint32_t segment_slots, bool writable,
                       size_t cache_bytes, uint64_t reserve_slots, uint64_t max_slots, store **out, fspf_error *err)
{
    if (chunk_size < MIN_CHUNK_SIZE || chunk_size > MAX_CHUNK_SIZE || (chunk_size & (chunk_size - 1)) != 0) {
        return fail_with(err, ST_VALUE, "chunk_size must be a power of two, 4096 to 65536");
    }
    if (segment_slots < 64 || segment_slots > (1u << 20) || (segment_slots & (segment_slots - 1)) != 0) {
        return fail_with(err, ST_VALUE, "segment_slots must be a power of two, 64 to 1048576");
    }
    store *st = calloc(1, sizeof *st);
    if (st == NULL) {
        return ST_NOMEM;
    }
    st->chunk_size = chunk_size;
    st->arity_shift = (unsigned)__builtin_ctz(chunk_size / POINTER_LEN);
    st->writable = writable;
    st->references = 1;
    st->reserve_wanted = true;
    fspf_status status =
        slots_open(&st->slots, directory, chunk_size, segment_slots, writable, reserve_slots, max_slots, err);
    if (status != ST_OK) {
        free(st);
        return status;
    }
    (void)pthread_mutex_init(&st->epoch_lock, NULL);
    (void)pthread_mutex_init(&st->commit_lock, NULL);
    (void)pthread_mutex_init(&st->scratch_lock, NULL);
    st->cache = cache_new(cache_bytes, chunk_size);
    if (st->cache == NULL) {
        store_unref(st);
        return ST_NOMEM;
    }
    *out = st;
    return ST_OK;
}

static void drop_closed(store *st)
{
    while (st->closed != NULL) {
        closed_commit *c = st->closed;
        st->closed = c->next;
        runs_clear(&c->frees);
        free(c);
    }
}

void store_shut(store *st)
{
    if (atomic_exchange(&st->closed_down, true)) {
        return;
    }
    while (atomic_load(&st->inside) > 0) {
        (void)usleep(200);
    }
    slots_close(&st->slots);
    for (size_t i = 0; i < 4096; i++) {
        _Atomic(aead_key *) *page = atomic_exchange(&st->epochs[i], NULL);
        for (size_t j = 0; page != NULL && j < 4096; j++) {
            aead_key_free(page[j]);
        }
        free(page);
    }
    runs_clear(&st->accumulating);
    runs_clear(&st->marked);
    runs_clear(&st->map_slots);
    drop_closed(st);
    cache_free(st->cache);
    st->cache = NULL;
    while (st->idle_scratch != NULL) {
        scratch *s = st->idle_scratch;
        st->idle_scratch = s->next;
        free(s);
    }
}

store *store_ref(store *st)
{
    atomic_fetch_add(&st->references, 1);
    return st;
}

void store_unref(store *st)
{
    if (st == NULL || atomic_fetch_sub(&st->references, 1) != 1) {
        return;
    }
    store_shut(st);
    (void)pthread_mutex_destroy(&st->epoch_lock);
    (void)pthread_mutex_destroy(&st->commit_lock);
    (void)pthread_mutex_destroy(&st->scratch_lock);
    free(st);
}

fspf_status store_enter(store *st, fspf_error *err)
{
    atomic_fetch_add(&st->inside, 1);
    if (atomic_load(&st->closed_down)) {
        atomic_fetch_sub(&st->inside, 1);
        return fail_with(err, ST_MISUSE, "the store is closed");
    }
    return ST_OK;
}

void store_leave(store *st)
{
    atomic_fetch_sub(&st->inside, 1);
}

/* ---- epochs ---- */

static aead_key *find_epoch(store *st, uint32_t epoch)
{
    if (epoch == 0 || epoch > MAX_EPOCH) {
        return NULL;
    }
    _Atomic(aead_key *) *page = atomic_load_explicit(&st->epochs[epoch >> 12], memory_order_acquire);
    return page ? atomic_load_explicit(&page[epoch & 4095], memory_order_acquire) : NULL;
}

fspf_status store_add_epoch(store *st, uint32_t epoch, const uint8_t *key, bool begin, fspf_error *err)
{
    fspf_status status = ST_OK;
    if (epoch == 0 || epoch > MAX_EPOCH) {
        return fail_with(err, ST_VALUE, "an epoch is 1 to 2^24-1");
    }
    pthread_mutex_lock(&st->epoch_lock);
    aead_key *present = find_epoch(st, epoch);
    if (begin && st->epoch != 0) {
        status = fail_with(err, ST_MISUSE, "begin_epoch: this store has an epoch already");
    } else if (begin && !st->writable) {
        status = fail_with(err, ST_MISUSE, "begin_epoch: the store is read-only");
    } else if (present != NULL) {
        if (!aead_key_equal(present, key)) {
            status = fail_with(err, ST_MISUSE, "this epoch has another key already");
        }
    } else {
        _Atomic(aead_key *) *page = st->epochs[epoch >> 12];
        aead_key *added = aead_key_new(key);
        if (page == NULL && added != NULL) {
            page = calloc(4096, sizeof *page);
            if (page != NULL) {
                atomic_store_explicit(&st->epochs[epoch >> 12], page, memory_order_release);
            }
        }
        if (page == NULL || added == NULL) {
            aead_key_free(added);
            status = ST_NOMEM;
        } else {
            atomic_store_explicit(&page[epoch & 4095], added, memory_order_release);
        }
    }
    if (status == ST_OK && begin) {
        st->counter = 0;
        st->owner = getpid();
        st->epoch = epoch;
    }
    pthread_mutex_unlock(&st->epoch_lock);
    return status;
}

fspf_status store_check_process(const store *st, fspf_error *err)
{
    return st->owner == getpid() ? ST_OK : fail_with(err, ST_MISUSE, "the store was opened before a fork: open it again");
}

fspf_status store_take_counters(store *st, uint64_t count, uint64_t *first, fspf_error *err)
{
    /* A forked child has the same epoch key and the same next counter. */
    fspf_status status = store_check_process(st, err);
    if (status != ST_OK) {
        return status;
    }
    *first = atomic_fetch_add(&st->counter, count);
    if (*first + count > COUNTER_LIMIT) {
        return fail_os(err, EOVERFLOW, "the epoch's counters are used up");
    }
    return ST_OK;
}

/* ---- opening ---- */

void opener_init(opener *o, store *st, protection_mode protection)
{
    memset(o, 0, sizeof *o);
    o->st = st;
    o->protection = protection;
}

void opener_end(opener *o)
{
    if (o->ctx != NULL) {
        aead_give_back(o->key, o->ctx);
        o->ctx = NULL;
    }
}

static void describe(const uint8_t *pointer, fspf_error *err)
{
    err->slot = pointer_slot(pointer);
    err->epoch = pointer_epoch(pointer);
    err->counter = pointer_counter(pointer);
}

fspf_status opener_missing(const uint8_t *pointer, fspf_error *err)
{
    describe(pointer, err);
    err->kind = KIND_MISSING;
    return fail_with(err, ST_DAMAGED, "the segment file ends before the slot");
}

/* Find out what became of a slot whose tag is wrong; nothing read here is ever returned as data. */
static fspf_status classify(store *st, const uint8_t *pointer, fspf_error *err)
{
    uint8_t entry[ENTRY_LEN];
    size_t got = 0;
    uint64_t slot = pointer_slot(pointer);
    describe(pointer, err);
    err->kind = KIND_TAMPERED;
    err->message = "the checksum is right, the tag is not";
    uint8_t *claimed = malloc(st->chunk_size);
    if (claimed == NULL) {
        return ST_DAMAGED;
    }
    struct iovec iov = {claimed, st->chunk_size};
    fspf_error ignored = {0};
    if (segments_read(&st->slots.files, slot, &iov, 1, &got, &ignored) != ST_OK || got < st->chunk_size ||
        segments_read_entry(&st->slots.files, slot, entry, &ignored) != ST_OK) {
        err->kind = KIND_MISSING;
        err->message = "the slot could not be read";
    } else {
        bool empty_entry = load_le64(entry) == 0 && load_le64(entry + 8) == 0;
        bool empty_slot = claimed[0] == 0 && memcmp(claimed, claimed + 1, st->chunk_size - 1) == 0;
        uint64_t hint = load_le64(entry + 8); /* epoch in the low 24 bits, then 40 bits of counter */
        uint32_t hint_epoch = (uint32_t)(hint & MAX_EPOCH);
        uint64_t hint_counter = hint >> 24;
        if (empty_entry && empty_slot) {
            err->kind = KIND_MISSING;
            err->message = "the slot was never written or has been wiped";
        } else if (load_le64(entry) != checksum_xxh3(claimed, st->chunk_size)) {
            err->kind = KIND_TORN;
            err->message = "the checksum is wrong";
        } else if (hint_epoch < err->epoch || (hint_epoch == err->epoch && hint_counter < err->counter)) {
            err->kind = KIND_STALE;
            err->message = "the slot holds an older block";
        }
    }
    free(claimed);
    return ST_DAMAGED;
}

fspf_status opener_open(opener *o, const uint8_t *pointer, const uint8_t *sealed, uint8_t *plain, fspf_error *err)
{
    uint32_t epoch = pointer_epoch(pointer);
    if (o->ctx == NULL || epoch != o->epoch) {
        opener_end(o);
        o->key = find_epoch(o->st, epoch);
        if (o->key == NULL) {
            OPENSSL_cleanse(plain, o->st->chunk_size);
            describe(pointer, err);
            err->kind = KIND_MISSING;
            return fail_with(err, ST_DAMAGED, "the key of the epoch is not known");
        }
        o->epoch = epoch;
        o->ctx = aead_borrow(o->key, AEAD_OPEN);
        if (o->ctx == NULL) {
            OPENSSL_cleanse(plain, o->st->chunk_size);
            return ST_CRYPTO;
        }
    }
    atomic_fetch_add_explicit(&o->st->bytes_opened, o->st->chunk_size, memory_order_relaxed);
    fspf_status status = aead_open(o->ctx, pointer_counter(pointer), o->protection, sealed, plain, o->st->chunk_size,
                                   pointer + 16);
    return status == ST_AUTH ? classify(o->st, pointer, err) : status;
}

fspf_status opener_read(opener *o, const uint8_t *pointer, uint8_t *plain, fspf_error *err)
{
    struct iovec iov = {plain, o->st->chunk_size};
    size_t got = 0;
    fspf_status status = segments_read(&o->st->slots.files, pointer_slot(pointer), &iov, 1, &got, err);
    if (status == ST_DAMAGED) {
        describe(pointer, err);
    } else if (status == ST_OK && got < o->st->chunk_size) {
        status = opener_missing(pointer, err);
    }
    if (status == ST_OK) {
        return opener_open(o, pointer, plain, plain, err);
    }
    OPENSSL_cleanse(plain, o->st->chunk_size);
    return status;
}

fspf_status store_get_node(store *st, const uint8_t *pointer, protection_mode protection, cache_entry **out,
                           fspf_error *err)
{
    cache_entry *entry = cache_get(st->cache, pointer);
    if (entry == NULL) {
        opener o;
        entry = cache_entry_new(st->cache, pointer);
        if (entry == NULL) {
            return ST_NOMEM;
        }
        opener_init(&o, st, protection);
        fspf_status status = opener_read(&o, pointer, entry->data, err);
        opener_end(&o);
        if (status != ST_OK) {
            cache_entry_drop(entry);
            return status;
        }
        entry = cache_add(st->cache, entry);
    }
    *out = entry;
    return ST_OK;
}

/* ---- scratch ---- */

size_t store_scratch_chunks(const store *st)
{
    return SCRATCH_BYTES / st->chunk_size;
}

scratch *store_scratch_get(store *st)
{
    pthread_mutex_lock(&st->scratch_lock);
    scratch *s = st->idle_scratch;
    if (s != NULL) {
        st->idle_scratch = s->next;
        st->idle_scratch_count--;
    }
    pthread_mutex_unlock(&st->scratch_lock);
    return s ? s : aligned_alloc(64, sizeof *s + SCRATCH_BYTES);
}

void store_scratch_put(store *st, scratch *s)
{
    if (s == NULL) {
        return;
    }
    pthread_mutex_lock(&st->scratch_lock);
    if (st->idle_scratch_count < IDLE_SCRATCH) {
        s->next = st->idle_scratch;
        st->idle_scratch = s;
        st->idle_scratch_count++;
        s = NULL;
    }
    pthread_mutex_unlock(&st->scratch_lock);
    free(s);
}

/* ---- frees and commits ---- */

fspf_status store_hand_over(store *st, run_list *frees, bool metadata)
{
    fspf_status status = ST_OK;
    uint64_t count = frees->slots;
    pthread_mutex_lock(&st->commit_lock);
    if (runs_move(metadata && st->marking ? &st->marked : &st->accumulating, frees)) {
        st->pending_count += count;
    } else {
        status = ST_NOMEM;
    }
    pthread_mutex_unlock(&st->commit_lock);
    return status;
}

static void mark_lock_held(store *st)
{
    if (!runs_move(&st->marked, &st->accumulating)) {
        return; /* out of memory: they are freed a commit later */
    }
}

void store_commit_mark(store *st)
{
    pthread_mutex_lock(&st->commit_lock);
    mark_lock_held(st);
    pthread_mutex_unlock(&st->commit_lock);
}

void store_commit_marking(store *st, bool on)
{
    pthread_mutex_lock(&st->commit_lock);
    mark_lock_held(st);
    st->marking = on;
    pthread_mutex_unlock(&st->commit_lock);
}

fspf_status store_commit_begin(store *st, uint64_t *number)
{
    closed_commit *commit = calloc(1, sizeof *commit);
    if (commit == NULL) {
        return ST_NOMEM;
    }
    pthread_mutex_lock(&st->commit_lock);
    commit->number = ++st->last_commit;
    if (!st->marking) {
        mark_lock_held(st);
    }
    commit->frees = st->marked;
    /* A map saved before is named by this commit's root or, if it was not used, by none: the next one frees it. */
    st->marked = st->map_slots;
    memset(&st->map_slots, 0, sizeof st->map_slots);
    closed_commit **link = &st->closed;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = commit;
    *number = commit->number;
    pthread_mutex_unlock(&st->commit_lock);
    return ST_OK;
}

fspf_status store_commit_anchored(store *st, uint64_t number, fspf_error *err)
{
    pthread_mutex_lock(&st->commit_lock);
    if (number > st->last_commit) {
        pthread_mutex_unlock(&st->commit_lock);
        return fail_with(err, ST_VALUE, "no such commit");
    }
    while (st->closed != NULL && st->closed->number <= number) {
        closed_commit *commit = st->closed;
        st->closed = commit->next;
        st->pending_count -= commit->frees.slots;
        slots_free_runs(&st->slots, &commit->frees);
        runs_clear(&commit->frees);
        free(commit);
    }
    pthread_mutex_unlock(&st->commit_lock);
    if (!st->reserve_wanted && st->epoch != 0) {
        (void)slots_fill_reserve(&st->slots);
    }
    return ST_OK;
}

fspf_status store_may_dirty(store *st, bool *tight, fspf_error *err)
{
    uint64_t quota = st->slots.max_slots;
    if (quota && atomic_load(&st->slots.used_count) + atomic_load(&st->dirty_blocks) + 1 > quota) {
        return fail_os(err, ENOSPC, "the volume's quota is used up");
    }
    int64_t left = atomic_fetch_sub_explicit(&st->host_budget, st->chunk_size, memory_order_relaxed);
    if (left < (int64_t)st->chunk_size) {
        uint64_t host = segments_host_free(&st->slots.files);
        uint64_t pledged = atomic_load(&st->dirty_bytes) + (uint64_t)HOST_MARGIN;
        if (host < pledged) {
            atomic_store(&st->host_budget, 0);
            *tight = true;
        } else {
            atomic_store(&st->host_budget, (int64_t)min_u64((uint64_t)HOST_STEP, (host - pledged) / 2));
        }
    }
    return ST_OK;
}

/* ---- geometry ---- */

int store_depth_of(const store *st, uint64_t size)
{
    uint64_t chunks = size / st->chunk_size + (size % st->chunk_size != 0);
    int depth = 0;
    for (uint64_t reach = 1; reach < chunks; reach = reach << st->arity_shift) {
        depth++;
    }
    return depth;
}

fspf_status store_check_root(const store *st, const content_root *root, fspf_error *err)
{
    if (root->size > MAX_FILE_SIZE) {
        return fail_with(err, ST_VALUE, "content root: size beyond 2^63-1");
    }
    if (root->depth != store_depth_of(st, root->size)) {
        return fail_with(err, ST_VALUE, "content root: depth does not fit the size");
    }
    if (pointer_is_hole(root->pointer)) {
        return ST_OK;
    }
    if (root->size == 0 || pointer_epoch(root->pointer) == 0 || pointer_counter(root->pointer) >= COUNTER_LIMIT) {
        return fail_with(err, ST_VALUE, "content root: not a pointer");
    }
    return ST_OK;
}

void store_locate(const store *st, int level, uint64_t index, uint64_t size, fspf_error *err)
{
    unsigned shift = (unsigned)__builtin_ctz(st->chunk_size) + (unsigned)level * st->arity_shift;
    uint64_t start = shift >= 64 ? 0 : index << shift;
    uint64_t length = shift >= 63 ? MAX_FILE_SIZE : UINT64_C(1) << shift;
    err->level = level;
    err->offset = start;
    err->length = start < size ? min_u64(length, size - start) : 0;
}
