/* Store for Python. */
#include "binding.h"

static module_state *state_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
}

static PyObject *store_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"", "chunk_size", "segment_slots", "writable", "cache_bytes", "reserve_slots",
                               "max_slots", NULL};
    module_state *state = PyType_GetModuleState(type);
    PyObject *directory = NULL;
    StoreObject *self = NULL;
    long long chunk_size = 4096;
    long long segment_slots = 16384;
    int writable = 0;
    long long cache_bytes = 32 << 20;
    long long reserve_slots = 512;
    long long max_slots = 0;
    fspf_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$LLpLLL:Store", keywords, PyUnicode_FSConverter, &directory,
                                     &chunk_size, &segment_slots, &writable, &cache_bytes, &reserve_slots,
                                     &max_slots)) {
        return NULL;
    }
    if (chunk_size < 0 || chunk_size > UINT32_MAX || segment_slots < 0 || segment_slots > UINT32_MAX ||
        cache_bytes < 0 || reserve_slots < 0 || max_slots < 0) {
        PyErr_SetString(PyExc_ValueError, "Store: a size or number is out of range");
        goto done;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    self = (StoreObject *)allocate(type, 0);
    if (self == NULL) {
        goto done;
    }
    fspf_status status;
    const char *path = PyBytes_AsString(directory);
    Py_BEGIN_ALLOW_THREADS
    status = store_open(path, (uint32_t)chunk_size, (uint32_t)segment_slots, writable, (size_t)cache_bytes,
                        (uint64_t)reserve_slots, (uint64_t)max_slots, &self->st, &err);
    Py_END_ALLOW_THREADS
    if (status != ST_OK) {
        Py_CLEAR(self);
        raise_status(state, status, &err);
    }

done:
    Py_XDECREF(directory);
    return (PyObject *)self;
}

static void store_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    store *st = ((StoreObject *)self)->st;
    Py_BEGIN_ALLOW_THREADS
    store_unref(st);
    Py_END_ALLOW_THREADS
    release(self);
    Py_DECREF(type);
}

static PyObject *add_epoch(PyObject *self, const char *name, PyObject *const *args, Py_ssize_t nargs, bool begin)
{
    uint64_t epoch = 0;
    fspf_error err = {0};
    const uint8_t *key = NULL;
    store *st = ((StoreObject *)self)->st;
    if (check_arity(name, nargs, 2, 2) != 0 || u64_from_python(args[0], "epoch", MAX_EPOCH, &epoch) != 0 ||
        (key = secret_bytes(state_of(self), args[1])) == NULL) {
        return NULL;
    }
    fspf_status status = store_enter(st, &err);
    if (status == ST_OK) {
        status = store_add_epoch(st, (uint32_t)epoch, key, begin, &err);
        store_leave(st);
    }
    return status == ST_OK ? Py_NewRef(Py_None) : raise_status(state_of(self), status, &err);
}

static PyObject *store_add_epoch_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return add_epoch(self, "add_epoch", args, nargs, false);
}

static PyObject *store_begin_epoch_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return add_epoch(self, "begin_epoch", args, nargs, true);
}

static PyObject *start(PyObject *self, const content_root *map, uint64_t end, bool unknown)
{
    store *st = ((StoreObject *)self)->st;
    fspf_error err = {0};
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = store_start(st, map, end, unknown, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? Py_NewRef(Py_None) : raise_status(state_of(self), status, &err);
}

static PyObject *store_start_empty(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return start(self, NULL, 0, false);
}

static PyObject *store_start_map(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    content_root root = {0};
    uint64_t end = 0;
    if (check_arity("start_map", nargs, 2, 2) != 0 || root_from_python(args[0], &root) != 0 ||
        u64_from_python(args[1], "end_of_slots", SLOT_LIMIT, &end) != 0) {
        return NULL;
    }
    return start(self, &root, end, false);
}

static PyObject *store_start_unknown(PyObject *self, PyObject *end_of_slots)
{
    uint64_t end = 0;
    if (u64_from_python(end_of_slots, "end_of_slots", SLOT_LIMIT, &end) != 0) {
        return NULL;
    }
    return start(self, NULL, end, true);
}

static PyObject *store_rebuild_mark_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    store *st = ((StoreObject *)self)->st;
    content_root root = {0};
    protection_mode protection = PROTECT_ENCRYPT;
    uint64_t chunks = 0;
    fspf_error err = {0};
    fspf_status status;
    if (check_arity("rebuild_mark", nargs, 1, 2) != 0 || root_from_python(args[0], &root) != 0 ||
        (nargs > 1 && protection_from_python(args[1], &protection) != 0)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = store_rebuild_mark(st, &root, protection, &chunks, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? PyLong_FromUnsignedLongLong(chunks) : raise_status(state_of(self), status, &err);
}

static fspf_status do_rebuild_finish(store *st, uint64_t *out, fspf_error *err)
{
    return slots_rebuild_finish(&st->slots, out, err);
}

static fspf_status do_sync(store *st, uint64_t *out, fspf_error *err)
{
    return segments_sync(&st->slots.files, out, err);
}

static fspf_status do_commit_begin(store *st, uint64_t *out, fspf_error *err)
{
    (void)err;
    return store_commit_begin(st, out);
}

static fspf_status do_trim(store *st, uint64_t *out, fspf_error *err)
{
    return slots_trim(&st->slots, out, err);
}

static fspf_status do_drop_reserve(store *st, uint64_t *out, fspf_error *err)
{
    (void)err;
    *out = slots_drop_reserve(&st->slots);
    return ST_OK;
}

static fspf_status do_refill_reserve(store *st, uint64_t *out, fspf_error *err)
{
    (void)err;
    *out = slots_fill_reserve(&st->slots);
    return ST_OK;
}

static fspf_status do_end(store *st, uint64_t *out, fspf_error *err)
{
    (void)err;
    *out = slots_end(&st->slots);
    return ST_OK;
}

static PyObject *number_of(PyObject *self, fspf_status (*function)(store *, uint64_t *, fspf_error *))
{
    store *st = ((StoreObject *)self)->st;
    uint64_t number = 0;
    fspf_error err = {0};
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = store_enter(st, &err);
    if (status == ST_OK) {
        status = function(st, &number, &err);
        store_leave(st);
    }
    Py_END_ALLOW_THREADS
    return status == ST_OK ? PyLong_FromUnsignedLongLong(number) : raise_status(state_of(self), status, &err);
}

static PyObject *store_rebuild_finish_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_rebuild_finish);
}

static PyObject *store_sync_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_sync);
}

static PyObject *store_commit_begin_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_commit_begin);
}

static PyObject *store_trim_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_trim);
}

static PyObject *store_drop_reserve_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_drop_reserve);
}

static PyObject *store_refill_reserve_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_refill_reserve);
}

static PyObject *store_end_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return number_of(self, do_end);
}

static PyObject *store_save_map_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    store *st = ((StoreObject *)self)->st;
    content_root root = {0};
    fspf_error err = {0};
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = store_save_map(st, &root, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? root_to_python(&root) : raise_status(state_of(self), status, &err);
}

static PyObject *store_commit_anchored_py(PyObject *self, PyObject *number_object)
{
    store *st = ((StoreObject *)self)->st;
    uint64_t number = 0;
    fspf_error err = {0};
    fspf_status status;
    if (u64_from_python(number_object, "number", INT64_MAX, &number) != 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = store_enter(st, &err);
    if (status == ST_OK) {
        status = store_commit_anchored(st, number, &err);
        store_leave(st);
    }
    Py_END_ALLOW_THREADS
    return status == ST_OK ? Py_NewRef(Py_None) : raise_status(state_of(self), status, &err);
}

static PyObject *store_stats_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    store *st = ((StoreObject *)self)->st;
    fspf_error err = {0};
    fspf_status status = store_enter(st, &err);
    if (status != ST_OK) {
        return raise_status(state_of(self), status, &err);
    }
    uint64_t cache_bytes = 0;
    uint64_t hits = 0;
    uint64_t misses = 0;
    cache_stats(st->cache, &cache_bytes, &hits, &misses);
    uint64_t used = st->slots.used_count;
    uint64_t pending = st->pending_count;
    pthread_mutex_lock(&st->slots.lock);
    uint64_t reserved = st->slots.reserve.slots;
    uint64_t segments = st->slots.segment_count;
    uint64_t total = segments * st->slots.segment_slots - (st->slots.rebuilding ? st->slots.boundary : 0);
    uint64_t in_use = used - (st->slots.rebuilding ? st->slots.marked_count : 0);
    bool rebuilding = st->slots.rebuilding;
    uint64_t stray = st->slots.stray_frees;
    pthread_mutex_unlock(&st->slots.lock);
    uint64_t end = slots_end(&st->slots);
    PyObject *result = Py_BuildValue(
        "{sKsKsKsKsKsKsKsKsKsKsKsKsKsKsKsKsKsKsi}", "slots_used",
        (unsigned long long)(used > pending + reserved ? used - pending - reserved : 0), "slots_free",
        (unsigned long long)(total > in_use ? total - in_use : 0), "slots_pending", (unsigned long long)pending,
        "slots_reserved", (unsigned long long)reserved, "segments", (unsigned long long)segments, "end_of_slots",
        (unsigned long long)end, "counter", (unsigned long long)st->counter, "epoch", (unsigned long long)st->epoch,
        "dirty_bytes", (unsigned long long)st->dirty_bytes, "cache_bytes", (unsigned long long)cache_bytes,
        "cache_hits", (unsigned long long)hits, "cache_misses", (unsigned long long)misses, "syncs",
        (unsigned long long)st->slots.files.syncs, "writes", (unsigned long long)st->slots.files.writes, "reads",
        (unsigned long long)st->slots.files.reads, "bytes_sealed", (unsigned long long)st->bytes_sealed,
        "bytes_opened", (unsigned long long)st->bytes_opened, "stray_frees", (unsigned long long)stray, "rebuilding",
        rebuilding ? 1 : 0);
    store_leave(st);
    return result;
}

static PyObject *store_close_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    store *st = ((StoreObject *)self)->st;
    Py_BEGIN_ALLOW_THREADS
    store_shut(st);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef store_methods[] = {
    METHOD("add_epoch", store_add_epoch_py, "add_epoch($self, epoch, key, /)\n--\n\nMake an epoch readable."),
    METHOD("begin_epoch", store_begin_epoch_py,
           "begin_epoch($self, epoch, key, /)\n--\n\nMake `epoch` the one that seals, its counter at 0. Once."),
    {"start_empty", store_start_empty, METH_NOARGS, "start_empty($self)\n--\n\nNo slot is in use."},
    METHOD("start_map", store_start_map,
           "start_map($self, space_map, end_of_slots, /)\n--\n\nLoad the bitmap of a clean close."),
    {"start_unknown", store_start_unknown, METH_O,
     "start_unknown($self, end_of_slots, /)\n--\n\nAfter a crash: use only new segments until rebuild_finish."},
    METHOD("rebuild_mark", store_rebuild_mark_py,
           "rebuild_mark($self, root, protection=0, /)\n--\n\nMark all that a tree reaches; chunks marked."),
    {"rebuild_finish", store_rebuild_finish_py, METH_NOARGS,
     "rebuild_finish($self)\n--\n\nMake everything unmarked available; slots gained."},
    {"save_map", store_save_map_py, METH_NOARGS, "save_map($self)\n--\n\nWrite the bitmap as a content tree."},
    {"sync", store_sync_py, METH_NOARGS,
     "sync($self)\n--\n\nfdatasync every segment written since the last sync; how many. After a failure it fails for "
     "ever: what was to be written may be lost."},
    {"commit_begin", store_commit_begin_py, METH_NOARGS,
     "commit_begin($self)\n--\n\nTake all frees handed over so far as those of one commit; its number."},
    {"commit_anchored", store_commit_anchored_py, METH_O,
     "commit_anchored($self, number, /)\n--\n\nFreed slots of that commit and all before it may be used again."},
    {"trim", store_trim_py, METH_NOARGS,
     "trim($self)\n--\n\nPunch out slots freed since the last trim; bytes given back."},
    {"drop_reserve", store_drop_reserve_py, METH_NOARGS,
     "drop_reserve($self)\n--\n\nGive the reserve up, before the last trim; slots."},
    {"refill_reserve", store_refill_reserve_py, METH_NOARGS,
     "refill_reserve($self)\n--\n\nFill the reserve as far as there is room; slots in it."},
    {"end_of_slots", store_end_py, METH_NOARGS, "end_of_slots($self)\n--\n\nOne above the highest slot in use."},
    {"stats", store_stats_py, METH_NOARGS, "stats($self)\n--\n\nNumbers."},
    {"close", store_close_py, METH_NOARGS, "close($self)\n--\n\nClose all files; later use raises RuntimeError."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, (void *)"Store(directory, /, *, chunk_size=4096, segment_slots=16384, writable=False, "
                        "cache_bytes=33554432, reserve_slots=512, max_slots=0)\n--\n\n"
                        "The slots of one volume: allocation, sealed I/O, the node cache. Thread-safe."},
    {Py_tp_new, (void *)store_new},
    {Py_tp_dealloc, (void *)store_dealloc},
    {Py_tp_methods, store_methods},
    {0, NULL},
};

PyType_Spec store_spec = {
    .name = "fspf_native._native.Store",
    .basicsize = sizeof(StoreObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};
