/* Relay for Python: life, filling from the database, draining into it, and the calls back. */
#include "binding.h"

#include "relay.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define ROW_FIELDS 17

typedef struct {
    PyObject_HEAD
    PyObject *store;
    PyObject *plane; /* whom to call back */
    relay *relay;
    module_state *state;
} RelayObject;

static relay *relay_of(PyObject *self)
{
    return ((RelayObject *)self)->relay;
}

/* ---- calls back: on the relay's threads, which have no GIL ---- */

static int finish_call(RelayObject *self, PyObject *result)
{
    long number = EIO;
    if (result != NULL) {
        number = PyLong_AsLong(result);
        Py_DECREF(result);
    }
    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable(self->plane); /* it catches what can happen */
        number = EIO;
    }
    return (int)number;
}

#define CALL_BACK(context, ...)                                                                                        \
    RelayObject *self = context;                                                                                       \
    atomic_fetch_add_explicit(&self->relay->stats.upcalls_made, 1, memory_order_relaxed);                              \
    PyGILState_STATE gil = PyGILState_Ensure();                                                                        \
    int number = finish_call(self, PyObject_CallMethod(self->plane, __VA_ARGS__));                                     \
    PyGILState_Release(gil);                                                                                           \
    return number;

static int call_load_inode(void *context, uint64_t ino)
{
    CALL_BACK(context, "load_inode", "(K)", (unsigned long long)ino)
}

static int call_load_directory(void *context, uint64_t ino)
{
    CALL_BACK(context, "load_directory", "(K)", (unsigned long long)ino)
}

static int call_make(void *context, const struct fuse_in_header *in, const char *name, size_t len, uint32_t mode,
                     uint32_t rdev, uint32_t umask)
{
    CALL_BACK(context, "make", "(Ky#IIIIII)", (unsigned long long)in->nodeid, name, (Py_ssize_t)len, mode, rdev, umask,
              in->uid, in->gid, in->pid)
}

static int call_inherit(void *context, uint64_t dir, uint64_t ino, uint32_t mode)
{
    CALL_BACK(context, "inherit", "(KKI)", (unsigned long long)dir, (unsigned long long)ino, mode)
}

static int call_drain(void *context)
{
    CALL_BACK(context, "apply", NULL)
}

static int call_grow(void *context)
{
    CALL_BACK(context, "grow", NULL)
}

static int call_fsync(void *context, uint64_t ino, bool may_return)
{
    CALL_BACK(context, "fsync", "(KO)", (unsigned long long)ino, may_return ? Py_True : Py_False)
}

static int call_drop_capability(void *context, uint64_t ino)
{
    CALL_BACK(context, "drop_capability", "(K)", (unsigned long long)ino)
}

static int call_check_xattr(void *context, uint64_t ino, const char *name, uint32_t flags)
{
    CALL_BACK(context, "check_xattr", "(KyI)", (unsigned long long)ino, name, flags)
}

static int call_failed(void *context, const char *handler, uint64_t ino, fspf_status status, const fspf_error *err)
{
    RelayObject *self = context;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *type = NULL;
    PyObject *value = NULL;
    PyObject *trace = NULL;
    (void)raise_status(self->state, status, err);
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    int number = finish_call(self, PyObject_CallMethod(self->plane, "failed", "(sKO)", handler,
                                                       (unsigned long long)ino, value ? value : Py_None));
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyGILState_Release(gil);
    return number;
}

/* ---- life ---- */

static PyObject *relay_new_py(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"", "", "", "", "cache_bytes", "atime", "diratime", "read_only", "threads", "uring", "spin",
                               "uid", "gid", "umask", NULL};
    module_state *state = PyType_GetModuleState(type);
    PyObject *store_object = NULL;
    PyObject *plane = NULL;
    int device = -1;
    int control = -1;
    unsigned long long cache_bytes = 32u << 20;
    int atime = 1;
    int diratime = 1;
    int read_only = 0;
    int uring = 0;
    int spin = 0;
    unsigned int threads = 2;
    long long uid = -1;
    long long gid = -1;
    long long umask = -1;
    fspf_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!iiO|$KpppIppLLL:Relay", keywords, state->store_type, &store_object,
                                     &device, &control, &plane, &cache_bytes, &atime, &diratime, &read_only, &threads, &uring, &spin, &uid, &gid,
                                     &umask)) {
        return NULL;
    }
    if (device < 0 || control < 0 || threads < 1 || threads > RELAY_MAX_THREADS) {
        PyErr_SetString(PyExc_ValueError, "Relay: descriptors and 1 to 48 threads are expected");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    RelayObject *self = (RelayObject *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    relay_options options = {
        .read_only = read_only, .atime = atime, .diratime = diratime, .threads = threads, .uring = uring, .spin = spin, .view = uid >= 0 || gid >= 0 || umask >= 0,
        .view_uid = uid >= 0 ? (uint32_t)uid : UINT32_MAX, .view_gid = gid >= 0 ? (uint32_t)gid : UINT32_MAX,
        .view_umask = umask >= 0 ? (uint32_t)umask : UINT32_MAX,
    };
    upcalls up = {
        .context = self, .load_inode = call_load_inode, .load_directory = call_load_directory, .make = call_make,
        .inherit = call_inherit, .drain = call_drain, .grow = call_grow, .fsync = call_fsync, .drop_capability = call_drop_capability,
        .check_xattr = call_check_xattr, .failed = call_failed,
    };
    self->state = state;
    fspf_status status = relay_new(((StoreObject *)store_object)->st, device, control, (size_t)cache_bytes, &options,
                                   &up, &self->relay, &err);
    if (status != ST_OK) {
        Py_DECREF(self);
        return raise_status(state, status, &err);
    }
    self->store = Py_NewRef(store_object);
    self->plane = Py_NewRef(plane);
    return (PyObject *)self;
}

static void relay_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    relay *r = relay_of(self);
    PyObject_GC_UnTrack(self);
    Py_BEGIN_ALLOW_THREADS
    relay_free(r);
    Py_END_ALLOW_THREADS
    Py_XDECREF(((RelayObject *)self)->store);
    Py_XDECREF(((RelayObject *)self)->plane);
    release(self);
    Py_DECREF(type);
}

static int relay_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((RelayObject *)self)->plane);
    Py_VISIT(((RelayObject *)self)->store);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyObject *relay_start_py(PyObject *self, PyObject *ignored)
{
    fspf_error err = {0};
    (void)ignored;
    fspf_status status = relay_start(relay_of(self), &err);
    if (status != ST_OK) {
        return raise_status(((RelayObject *)self)->state, status, &err);
    }
    return Py_NewRef(Py_None);
}

static PyObject *relay_stop_py(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    Py_BEGIN_ALLOW_THREADS
    relay_stop(relay_of(self));
    Py_END_ALLOW_THREADS
    return Py_NewRef(Py_None);
}

/* ---- filling ---- */

static int64_t field(PyObject *row, Py_ssize_t at)
{
    PyObject *value = PyTuple_GetItem(row, at);
    if (value == NULL || value == Py_None) {
        return 0;
    }
    return PyLong_AsLongLong(value);
}

/* Take a row over where memory does not know better. 0, or -1 with an exception. The lock is held. */
static int fill_row_lock_held(meta *m, PyObject *row, Py_ssize_t base, bool no_xattrs, inode **out)
{
    int64_t values[ROW_FIELDS];
    for (Py_ssize_t i = 0; i < ROW_FIELDS; i++) {
        values[i] = i == 13 || i == 16 ? 0 : field(row, base + i);
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    PyObject *pointer = PyTuple_GetItem(row, base + 13);
    PyObject *target = PyTuple_GetItem(row, base + 16);
    char *pointer_bytes = NULL;
    char *target_bytes = NULL;
    Py_ssize_t pointer_len = 0;
    Py_ssize_t target_len = 0;
    if ((pointer != Py_None && PyBytes_AsStringAndSize(pointer, &pointer_bytes, &pointer_len) != 0) ||
        (target != Py_None && PyBytes_AsStringAndSize(target, &target_bytes, &target_len) != 0)) {
        return -1;
    }
    if (pointer != Py_None && pointer_len != (Py_ssize_t)POINTER_LEN) {
        PyErr_SetString(PyExc_ValueError, "inode row: a pointer has 32 bytes");
        return -1;
    }
    inode *node = meta_need(m, (uint64_t)values[0]);
    if (node == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    *out = node;
    if (node->valid) {
        return 0;
    }
    node->mode = (uint32_t)values[1];
    node->uid = (uint32_t)values[2];
    node->gid = (uint32_t)values[3];
    node->rdev = (uint32_t)values[4];
    node->nlink = (uint32_t)values[5];
    node->atime = values[6];
    node->mtime = values[7];
    node->ctime = values[8];
    node->btime = values[9];
    node->protection = (uint8_t)values[10];
    if (node->tree == NULL) {
        node->root.size = (uint64_t)values[11];
        node->root.depth = (int)values[12];
        memset(node->root.pointer, 0, POINTER_LEN);
        if (pointer_bytes != NULL) {
            memcpy(node->root.pointer, pointer_bytes, POINTER_LEN);
        }
        node->chunks = (uint64_t)values[14];
    }
    node->parent = (uint64_t)values[15];
    if (target_bytes != NULL && node->target == NULL) {
        node->target = malloc((size_t)target_len + 1);
        if (node->target == NULL) {
            (void)PyErr_NoMemory();
            return -1;
        }
        memcpy(node->target, target_bytes, (size_t)target_len);
        node->target_len = (uint32_t)target_len;
        m->bytes += node->target_len;
    }
    node->no_xattrs = no_xattrs;
    node->stored = true;
    node->valid = true;
    return 0;
}

static PyObject *relay_fill_inode(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    relay *r = relay_of(self);
    if (check_arity("fill_inode", nargs, 2, 2) != 0) {
        return NULL;
    }
    if (!PyTuple_Check(args[0]) || PyTuple_Size(args[0]) != ROW_FIELDS) {
        PyErr_SetString(PyExc_TypeError, "fill_inode: a row of 17 columns is expected");
        return NULL;
    }
    inode *node = NULL;
    pthread_mutex_lock(&r->meta.lock);
    int result = fill_row_lock_held(&r->meta, args[0], 0, PyObject_IsTrue(args[1]) == 1, &node);
    pthread_mutex_unlock(&r->meta.lock);
    return result == 0 ? Py_NewRef(Py_None) : NULL;
}

static int fill_entry_lock_held(meta *m, inode *dir, PyObject *entry, bool none)
{
    char *name = NULL;
    Py_ssize_t len = 0;
    inode *node = NULL;
    if (!PyTuple_Check(entry) || PyTuple_Size(entry) != ROW_FIELDS + 3) {
        PyErr_SetString(PyExc_TypeError, "fill_directory: cookie, name, a row of 17 columns, and whether it has xattrs");
        return -1;
    }
    uint64_t cookie = (uint64_t)field(entry, 0);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(PyTuple_GetItem(entry, 1), &name, &len) != 0) {
        return -1;
    }
    if (len < 1 || len > (Py_ssize_t)NAME_MAX_BYTES) {
        PyErr_SetString(PyExc_ValueError, "fill_directory: a name has 1 to 255 bytes");
        return -1;
    }
    bool no_xattrs = none || PyTuple_GetItem(entry, ROW_FIELDS + 2) == Py_None;
    if (fill_row_lock_held(m, entry, 2, no_xattrs, &node) != 0) {
        return -1;
    }
    if (meta_name(m, dir, name, (size_t)len) == NULL &&
        meta_add_name(m, dir, cookie, name, (size_t)len, node->ino, type_of(node->mode), true) == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static PyObject *relay_fill_directory(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    relay *r = relay_of(self);
    meta *m = &r->meta;
    uint64_t ino = 0;
    if (check_arity("fill_directory", nargs, 4, 4) != 0 || u64_from_python(args[0], "ino", INT64_MAX, &ino) != 0) {
        return NULL;
    }
    bool none = PyObject_IsTrue(args[2]) == 1;
    bool last = PyObject_IsTrue(args[3]) == 1;
    if (!PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "fill_directory: a list of entries is expected");
        return NULL;
    }
    int result = 0;
    pthread_mutex_lock(&m->lock);
    inode *dir = meta_need(m, ino);
    if (dir == NULL) {
        (void)PyErr_NoMemory();
        result = -1;
    } else if (!dir->complete) {
        meta_pin(dir);
        for (Py_ssize_t i = 0; i < PyList_Size(args[1]) && result == 0; i++) {
            result = fill_entry_lock_held(m, dir, PyList_GetItem(args[1], i), none);
            if ((i & 63) == 0) {
                meta_shrink(m);
            }
        }
        if (result == 0 && last) {
            dir->complete = true;
        }
        meta_unpin(m, dir);
    }
    pthread_mutex_unlock(&m->lock);
    return result == 0 ? Py_NewRef(Py_None) : NULL;
}

/* ---- what Python changes itself: both sides are kept equal ---- */

static const struct {
    const char *name;
    size_t offset;
    bool wide;
} COLUMNS[] = {
    {"mode", offsetof(inode, mode), false},          {"uid", offsetof(inode, uid), false},
    {"gid", offsetof(inode, gid), false},            {"nlink", offsetof(inode, nlink), false},
    {"atime_ns", offsetof(inode, atime), true},      {"mtime_ns", offsetof(inode, mtime), true},
    {"ctime_ns", offsetof(inode, ctime), true},      {"parent", offsetof(inode, parent), true},
};

static PyObject *relay_changed(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    relay *r = relay_of(self);
    meta *m = &r->meta;
    uint64_t ino = 0;
    if (check_arity("changed", nargs, 2, 2) != 0 || u64_from_python(args[0], "ino", INT64_MAX, &ino) != 0) {
        return NULL;
    }
    int64_t values[sizeof COLUMNS / sizeof *COLUMNS];
    bool given[sizeof COLUMNS / sizeof *COLUMNS] = {false};
    for (size_t i = 0; i < sizeof COLUMNS / sizeof *COLUMNS; i++) {
        PyObject *value = PyDict_GetItemString(args[1], COLUMNS[i].name);
        if (value != NULL && value != Py_None) {
            values[i] = PyLong_AsLongLong(value);
            given[i] = true;
        }
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&m->lock);
    inode *node = map64_get(&m->inodes, ino);
    for (size_t i = 0; node != NULL && node->valid && i < sizeof COLUMNS / sizeof *COLUMNS; i++) {
        char *at = (char *)node + COLUMNS[i].offset;
        if (given[i] && COLUMNS[i].wide) {
            memcpy(at, &values[i], 8);
        } else if (given[i]) {
            uint32_t value = (uint32_t)values[i];
            memcpy(at, &value, 4);
        }
    }
    bool stale = node != NULL && node->valid && S_ISDIR(node->mode) && attr_stale_lock_held(node, 0);
    pthread_mutex_unlock(&m->lock);
    if (stale) {
        relay_invalidate(r, ino);
    }
    return Py_NewRef(Py_None);
}

static PyObject *relay_has_xattrs(PyObject *self, PyObject *ino_object)
{
    meta *m = &relay_of(self)->meta;
    uint64_t ino = 0;
    if (u64_from_python(ino_object, "ino", INT64_MAX, &ino) != 0) {
        return NULL;
    }
    pthread_mutex_lock(&m->lock);
    inode *node = map64_get(&m->inodes, ino);
    if (node != NULL) {
        node->no_xattrs = node->no_capability = false;
    }
    pthread_mutex_unlock(&m->lock);
    return Py_NewRef(Py_None);
}

static PyObject *relay_put_name(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    relay *r = relay_of(self);
    meta *m = &r->meta;
    uint64_t parent = 0;
    uint64_t cookie = 0;
    uint64_t ino = 0;
    uint64_t mode = 0;
    char *name = NULL;
    Py_ssize_t len = 0;
    if (check_arity("put_name", nargs, 5, 5) != 0 || u64_from_python(args[0], "parent", INT64_MAX, &parent) != 0 ||
        u64_from_python(args[1], "cookie", INT64_MAX, &cookie) != 0 ||
        PyBytes_AsStringAndSize(args[2], &name, &len) != 0 || u64_from_python(args[3], "ino", INT64_MAX, &ino) != 0 ||
        u64_from_python(args[4], "mode", UINT32_MAX, &mode) != 0) {
        return NULL;
    }
    pthread_mutex_lock(&m->lock);
    inode *dir = map64_get(&m->inodes, parent);
    if (dir != NULL && len <= (Py_ssize_t)NAME_MAX_BYTES) {
        dentry *known = meta_name(m, dir, name, (size_t)len);
        if (known != NULL) {
            known->ino = ino;
            known->type = type_of((uint32_t)mode);
        } else if (dir->complete && meta_add_name(m, dir, cookie, name, (size_t)len, ino, type_of((uint32_t)mode),
                                                  true) == NULL) {
            dir->complete = false; /* out of memory: it is read again */
        }
    }
    pthread_mutex_unlock(&m->lock);
    return Py_NewRef(Py_None);
}

/* The database has everything: whoever holds the volume's lock ends the marks, so that no commit is under way. */
static PyObject *relay_end_marks(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    store_commit_marking(relay_of(self)->st, false);
    return Py_NewRef(Py_None);
}

static PyObject *relay_take_ino(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(&relay_of(self)->meta.next_ino, 1));
}

static PyObject *relay_take_cookie(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(&relay_of(self)->meta.next_cookie, 1));
}

static PyObject *relay_set_numbers(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t ino = 0;
    uint64_t cookie = 0;
    if (check_arity("set_numbers", nargs, 2, 2) != 0 || u64_from_python(args[0], "next_ino", INT64_MAX, &ino) != 0 ||
        u64_from_python(args[1], "next_cookie", INT64_MAX, &cookie) != 0) {
        return NULL;
    }
    relay_of(self)->meta.next_ino = ino;
    relay_of(self)->meta.next_cookie = cookie;
    return Py_NewRef(Py_None);
}

static PyObject *relay_in_use(PyObject *self, PyObject *ino_object)
{
    meta *m = &relay_of(self)->meta;
    uint64_t ino = 0;
    if (u64_from_python(ino_object, "ino", INT64_MAX, &ino) != 0) {
        return NULL;
    }
    pthread_mutex_lock(&m->lock);
    inode *node = map64_get(&m->inodes, ino);
    bool used = node != NULL ? meta_in_use(m, node) : meta_lookups(m, ino) != 0;
    pthread_mutex_unlock(&m->lock);
    return PyBool_FromLong(used);
}

static PyObject *relay_set_blocked(PyObject *self, PyObject *number)
{
    uint64_t value = 0;
    if (u64_from_python(number, "errno", 4095, &value) != 0) {
        return NULL;
    }
    relay_of(self)->meta.blocked = (int)value;
    return Py_NewRef(Py_None);
}

static PyObject *relay_set_no_space(PyObject *self, PyObject *flag)
{
    relay_of(self)->meta.no_space = PyObject_IsTrue(flag) == 1;
    return Py_NewRef(Py_None);
}

/* ---- draining ---- */

static int set_item(PyObject *list, size_t at, PyObject *value)
{
    return value == NULL ? -1 : PyList_SetItem(list, (Py_ssize_t)at, value);
}

static PyObject *optional_bytes(const void *data, size_t len, bool there)
{
    return there ? PyBytes_FromStringAndSize(data, (Py_ssize_t)len) : Py_NewRef(Py_None);
}

static PyObject *inode_tuple(const drained_inode *d)
{
    PyObject *pointer = optional_bytes(d->pointer, POINTER_LEN, !pointer_is_hole(d->pointer));
    PyObject *target = optional_bytes(d->target, d->target_len, d->target != NULL);
    PyObject *parent = d->parent != 0 ? PyLong_FromUnsignedLongLong(d->parent) : Py_NewRef(Py_None);
    PyObject *result = NULL;
    if (pointer != NULL && target != NULL && parent != NULL) {
        result = Py_BuildValue("(KIIIIILLLLIKiOKOO)", (unsigned long long)d->ino, d->mode, d->uid, d->gid, d->rdev,
                               d->nlink, (long long)d->atime, (long long)d->mtime, (long long)d->ctime,
                               (long long)d->btime, (unsigned)d->protection, (unsigned long long)d->size, d->depth,
                               pointer, (unsigned long long)d->chunks, parent, target);
    }
    Py_XDECREF(pointer);
    Py_XDECREF(target);
    Py_XDECREF(parent);
    return result;
}

static PyObject *drained_to_python(const drained *d)
{
    PyObject *inodes = PyList_New((Py_ssize_t)d->inode_count);
    PyObject *names = PyList_New((Py_ssize_t)d->name_count);
    PyObject *removed = PyList_New((Py_ssize_t)d->removed_count);
    PyObject *deleted = PyList_New((Py_ssize_t)d->deleted_count);
    int failed = inodes == NULL || names == NULL || removed == NULL || deleted == NULL;
    for (size_t i = 0; i < d->inode_count && !failed; i++) {
        failed = set_item(inodes, i, inode_tuple(&d->inodes[i]));
    }
    for (size_t i = 0; i < d->name_count && !failed; i++) {
        failed = set_item(names, i,
                          Py_BuildValue("(KKy#K)", (unsigned long long)d->names[i].parent,
                                        (unsigned long long)d->names[i].cookie, d->text + d->names[i].at,
                                        (Py_ssize_t)d->names[i].len, (unsigned long long)d->names[i].ino));
    }
    for (size_t i = 0; i < d->removed_count && !failed; i++) {
        failed = set_item(removed, i, Py_BuildValue("(KK)", (unsigned long long)d->removed[i].parent,
                                                    (unsigned long long)d->removed[i].cookie));
    }
    for (size_t i = 0; i < d->deleted_count && !failed; i++) {
        failed = set_item(deleted, i, Py_BuildValue("(KO)", (unsigned long long)d->deleted[i].ino,
                                                    d->deleted[i].xattrs ? Py_True : Py_False));
    }
    PyObject *reflushed = PyList_New(0);
    failed = failed || reflushed == NULL;
    for (size_t i = 0; i < d->inode_count && !failed; i++) {
        if (d->inodes[i].reflushed) {
            PyObject *ino = PyLong_FromUnsignedLongLong(d->inodes[i].ino);
            failed = ino == NULL || PyList_Append(reflushed, ino) != 0;
            Py_XDECREF(ino);
        }
    }
    PyObject *result = NULL;
    if (!failed) {
        result = Py_BuildValue("(OOOOLLKKO)", inodes, names, removed, deleted, (long long)d->files_delta,
                               (long long)d->bytes_delta, (unsigned long long)d->next_ino,
                               (unsigned long long)d->next_cookie, reflushed);
    }
    Py_XDECREF(reflushed);
    Py_XDECREF(inodes);
    Py_XDECREF(names);
    Py_XDECREF(removed);
    Py_XDECREF(deleted);
    return result;
}

/* What the intent log has already, oldest first. */
static PyObject *recorded_to_python(const drained *d)
{
    PyObject *list = PyList_New(0);
    for (const drained *each = d->next; list != NULL && each != NULL; each = each->next) {
        PyObject *item = drained_to_python(each);
        if (item == NULL || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *relay_drain(PyObject *self, PyObject *ignored)
{
    drained d;
    int result;
    (void)ignored;
    Py_BEGIN_ALLOW_THREADS
    result = meta_drain(&relay_of(self)->meta, &d);
    Py_END_ALLOW_THREADS
    if (result != 0) {
        return PyErr_NoMemory();
    }
    PyObject *recorded = recorded_to_python(&d);
    PyObject *rows = recorded == NULL ? NULL : drained_to_python(&d);
    PyObject *answer = rows == NULL ? NULL : Py_BuildValue("(OO)", recorded, rows);
    Py_XDECREF(recorded);
    Py_XDECREF(rows);
    drained_clear(&d);
    return answer;
}

static PyObject *relay_pending(PyObject *self, void *closure)
{
    (void)closure;
    const meta *m = &relay_of(self)->meta;
    return PyLong_FromSize_t(m->dirty_count + (m->bytes_delta != 0) + m->recorded_rows);
}

static PyObject *relay_changed_contents(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(relay_of(self)->meta.changed_count);
}

static PyObject *relay_wake_fd(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(relay_of(self)->wake);
}

static PyObject *relay_wait_dirty(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    meta *m = &relay_of(self)->meta;
    uint64_t count = 0;
    double seconds = 0;
    if (check_arity("wait_dirty", nargs, 2, 2) != 0 || u64_from_python(args[0], "count", INT64_MAX, &count) != 0) {
        return NULL;
    }
    seconds = PyFloat_AsDouble(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    bool enough;
    Py_BEGIN_ALLOW_THREADS
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    int64_t end = (int64_t)until.tv_sec * 1000000000 + until.tv_nsec + (int64_t)(seconds * 1e9);
    until.tv_sec = end / 1000000000;
    until.tv_nsec = end % 1000000000;
    pthread_mutex_lock(&m->lock);
    if (m->dirty_count + m->recorded_rows < count) {
        (void)pthread_cond_timedwait(&m->much, &m->lock, &until);
    }
    enough = m->dirty_count + m->recorded_rows >= count;
    pthread_mutex_unlock(&m->lock);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(enough);
}

static PyObject *relay_flush_all(PyObject *self, PyObject *ignored)
{
    int result;
    (void)ignored;
    Py_BEGIN_ALLOW_THREADS
    result = content_flush_all(relay_of(self));
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(-result);
}

static PyObject *relay_relieve(PyObject *self, PyObject *bytes)
{
    uint64_t limit = 0;
    if (u64_from_python(bytes, "bytes", INT64_MAX, &limit) != 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    content_relieve(relay_of(self), limit);
    Py_END_ALLOW_THREADS
    return Py_NewRef(Py_None);
}

/* Inode numbers from a sequence; *count of them, to be freed. NULL with an exception. */
static uint64_t *inos_from_python(PyObject *sequence, size_t *count)
{
    Py_ssize_t size = PyList_Check(sequence) ? PyList_Size(sequence) : -1;
    if (size < 0) {
        PyErr_SetString(PyExc_TypeError, "a list of inode numbers is expected");
        return NULL;
    }
    uint64_t *inos = malloc(((size_t)size + 1) * sizeof *inos);
    if (inos == NULL) {
        (void)PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        if (u64_from_python(PyList_GetItem(sequence, i), "ino", INT64_MAX, &inos[i]) != 0) {
            free(inos);
            return NULL;
        }
    }
    *count = (size_t)size;
    return inos;
}

static PyObject *relay_flush_these(PyObject *self, PyObject *sequence)
{
    size_t count = 0;
    uint64_t *inos = inos_from_python(sequence, &count);
    if (inos == NULL) {
        return NULL;
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = content_flush_these(relay_of(self), inos, count);
    Py_END_ALLOW_THREADS
    free(inos);
    return PyLong_FromLong(-result);
}

static PyObject *pieces_to_python(const log_piece *pieces, size_t count, size_t chunk_size)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *what = captured_to_python(&pieces[i].what, chunk_size);
        PyObject *pair = what == NULL ? NULL : Py_BuildValue("(KN)", (unsigned long long)pieces[i].ino, what);
        if (set_item(list, i, pair) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *relay_take_log(PyObject *self, PyObject *sequence)
{
    size_t count = 0;
    size_t piece_count = 0;
    bool complete = true;
    drained rows = {0};
    PyObject *answer = NULL;
    relay *r = relay_of(self);
    uint64_t *inos = inos_from_python(sequence, &count);
    log_piece *pieces = inos == NULL ? NULL : malloc((count + 1) * sizeof *pieces);
    if (pieces == NULL) {
        free(inos);
        return inos == NULL ? NULL : PyErr_NoMemory();
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = content_take_log(r, inos, count, pieces, &piece_count, &complete, &rows);
    Py_END_ALLOW_THREADS
    if (result != 0) {
        (void)PyErr_NoMemory();
    } else {
        PyObject *recorded = recorded_to_python(&rows);
        PyObject *drained = recorded == NULL ? NULL : drained_to_python(&rows);
        PyObject *list = drained == NULL ? NULL : pieces_to_python(pieces, piece_count, r->chunk_size);
        if (list != NULL) {
            answer = Py_BuildValue("(OOOO)", recorded, drained, list, complete ? Py_True : Py_False);
        }
        Py_XDECREF(recorded);
        Py_XDECREF(list);
        Py_XDECREF(drained);
    }
    for (size_t i = 0; i < piece_count; i++) {
        captured_clear(&pieces[i].what);
    }
    drained_clear(&rows);
    free(pieces);
    free(inos);
    return answer;
}

/* ---- the lane ---- */

/* 0, or -1 with an exception. */
static int kept_from_python(PyObject *list, lane_kept *kept, size_t *count)
{
    Py_ssize_t size = PyList_Check(list) ? PyList_Size(list) : -1;
    if (size < 0 || size > (Py_ssize_t)LANE_MOST_KEPT) {
        PyErr_SetString(PyExc_ValueError, "lane_lend: a list of at most 256 records is expected");
        return -1;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned long long generation;
        unsigned long long version;
        unsigned long long place;
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "KKK", &generation, &version, &place)) {
            return -1;
        }
        kept[i] = (lane_kept){generation, version, place};
    }
    *count = (size_t)size;
    return 0;
}

static PyObject *relay_lane_lend(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    relay *r = relay_of(self);
    module_state *state = ((RelayObject *)self)->state;
    PyObject *log_key = NULL;
    PyObject *state_key = NULL;
    PyObject *list = NULL;
    unsigned int key_version;
    unsigned int epoch;
    const char *volume_id, *header, *tag, *aad, *before, *between, *after, *database;
    Py_ssize_t id_len, header_len, tag_len, aad_len, before_len, between_len, after_len;
    int log_fd;
    int hot_fd;
    unsigned long long log_end, log_len, generation, silence_ns, contact_ns;
    unsigned long long ring_len, end, changes, version, lease_ns, expires_ns, device, number;
    long long newest;
    if (check_arity("lane_lend", nargs, 2, 2) != 0 ||
        !PyArg_ParseTuple(args[0], "OIIy#y#iKKKy#KK:lane_lend", &log_key, &key_version, &epoch, &volume_id, &id_len,
                          &header, &header_len, &log_fd, &log_end, &log_len, &generation, &tag, &tag_len, &silence_ns,
                          &contact_ns) ||
        !PyArg_ParseTuple(args[1], "iKKLOKKOy#y#y#y#KKyKK:lane_lend", &hot_fd, &ring_len, &end, &newest, &list,
                          &changes, &version, &state_key, &aad, &aad_len, &before, &before_len, &between, &between_len,
                          &after, &after_len, &lease_ns, &expires_ns, &database, &device, &number)) {
        return NULL;
    }
    const uint8_t *log_secret = secret_bytes(state, log_key);
    const uint8_t *state_secret = log_secret == NULL ? NULL : secret_bytes(state, state_key);
    lane_kept kept[LANE_MOST_KEPT];
    size_t count = 0;
    if (state_secret == NULL || kept_from_python(list, kept, &count) != 0) {
        return NULL;
    }
    if (id_len != 16 || header_len != (Py_ssize_t)HEADER_BYTES || tag_len != (Py_ssize_t)TAG_LEN) {
        PyErr_SetString(PyExc_ValueError, "lane_lend: a volume id, a header and a tag are expected");
        return NULL;
    }
    lane_orders orders = {
        .log_key = log_secret, .key_version = key_version, .epoch = epoch, .volume_id = (const uint8_t *)volume_id,
        .header = (const uint8_t *)header, .log_fd = log_fd, .log_end = log_end, .log_len = log_len,
        .generation = generation, .tag = (const uint8_t *)tag, .silence_ns = silence_ns, .contact_ns = contact_ns,
        .hot_fd = hot_fd, .ring_len = ring_len, .end = end, .changes = changes, .version = version, .newest = newest,
        .kept = kept, .kept_count = count, .state_key = state_secret, .aad = (const uint8_t *)aad,
        .before = (const uint8_t *)before, .between = (const uint8_t *)between, .after = (const uint8_t *)after,
        .aad_len = (size_t)aad_len, .before_len = (size_t)before_len, .between_len = (size_t)between_len,
        .after_len = (size_t)after_len, .lease_ns = lease_ns, .expires_ns = expires_ns, .database = database,
        .device = device, .inode = number,
    };
    return PyBool_FromLong(lane_lend(&r->lane, &orders) == 0);
}

static PyObject *relay_lane_pause(PyObject *self, PyObject *ignored)
{
    relay *r = relay_of(self);
    (void)ignored;
    if (atomic_load(&r->lane.armed)) {
        Py_BEGIN_ALLOW_THREADS
        pthread_rwlock_wrlock(&r->meta.gate);
        lane_pause_gate_held(&r->lane);
        pthread_rwlock_unlock(&r->meta.gate);
        Py_END_ALLOW_THREADS
    }
    return Py_NewRef(Py_None);
}

static PyObject *lane_end_to_python(const lane_end *end)
{
    PyObject *kept = PyList_New((Py_ssize_t)end->kept_count);
    PyObject *inos = PyList_New((Py_ssize_t)end->ino_count);
    int failed = kept == NULL || inos == NULL;
    for (size_t i = 0; i < end->kept_count && !failed; i++) {
        failed = set_item(kept, i, Py_BuildValue("(KKK)", (unsigned long long)end->kept[i].generation,
                                                 (unsigned long long)end->kept[i].version,
                                                 (unsigned long long)end->kept[i].place));
    }
    for (size_t i = 0; i < end->ino_count && !failed; i++) {
        failed = set_item(inos, i, PyLong_FromUnsignedLongLong(end->inos[i]));
    }
    PyObject *result = NULL;
    if (!failed) {
        result = Py_BuildValue("((iiKy#KKy#KKK)(KKKLO)O)", (int)end->outcome, end->os_errno,
                               (unsigned long long)end->generation, end->tag, (Py_ssize_t)TAG_LEN,
                               (unsigned long long)end->log_end, (unsigned long long)end->anchor_generation,
                               end->anchor_tag, (Py_ssize_t)TAG_LEN, (unsigned long long)end->synced,
                               (unsigned long long)end->count, (unsigned long long)end->contact_ns,
                               (unsigned long long)end->version, (unsigned long long)end->expires_ns,
                               (unsigned long long)end->end, (long long)end->newest, kept, inos);
    }
    Py_XDECREF(kept);
    Py_XDECREF(inos);
    return result;
}

static PyObject *relay_lane_take_back(PyObject *self, PyObject *ignored)
{
    lane_end *end = calloc(1, sizeof *end);
    bool lent;
    (void)ignored;
    if (end == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    lent = lane_take_back(&relay_of(self)->lane, end);
    Py_END_ALLOW_THREADS
    PyObject *result = lent ? lane_end_to_python(end) : Py_NewRef(Py_None);
    free(end->inos);
    free(end);
    return result;
}

static PyObject *relay_lane_contact(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(relay_of(self)->lane.contact_ns);
}

static PyObject *relay_lane_anchored(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(relay_of(self)->lane.anchored);
}

static PyObject *relay_lane_is_armed(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(relay_of(self)->lane.armed);
}

static int add_count(PyObject *dict, const char *prefix, const char *name, uint64_t value)
{
    PyObject *key = PyUnicode_FromFormat("%s%s", prefix, name);
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int failed = key == NULL || number == NULL || PyDict_SetItem(dict, key, number) != 0;
    Py_XDECREF(key);
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

static PyObject *relay_stats_py(PyObject *self, PyObject *ignored)
{
    relay *r = relay_of(self);
    (void)ignored;
    PyObject *dict = PyDict_New();
    if (dict == NULL) {
        return NULL;
    }
    uint64_t all = 0;
    uint64_t passed = 0;
    int failed = 0;
    for (size_t i = 0; i < OPCODES && !failed; i++) {
        uint64_t count = r->stats.requests[i];
        uint64_t slow = r->stats.passed[i];
        all += count;
        passed += slow;
        if (operations[i].name != NULL) {
            failed = add_count(dict, "request_", operations[i].name, count) ||
                     add_count(dict, "passed_", operations[i].name, slow);
        }
    }
    pthread_mutex_lock(&r->meta.lock);
    uint64_t inodes = r->meta.inodes.count;
    uint64_t names = r->meta.name_total;
    uint64_t bytes = r->meta.bytes;
    uint64_t known = r->meta.counts.count;
    uint64_t dirty = r->meta.dirty_count;
    uint64_t evictions = r->meta.evictions;
    pthread_mutex_unlock(&r->meta.lock);
    failed = failed || add_count(dict, "requests", "", all) || add_count(dict, "passed", "", passed) ||
             add_count(dict, "upcalls", "", r->stats.upcalls_made) ||
             add_count(dict, "bytes_read", "", r->stats.bytes_read) ||
             add_count(dict, "bytes_written", "", r->stats.bytes_written) ||
             add_count(dict, "errors", "", r->stats.errors) || add_count(dict, "cached_inodes", "", inodes) ||
             add_count(dict, "cached_names", "", names) || add_count(dict, "cache_bytes", "", bytes) ||
             add_count(dict, "known_inodes", "", known) || add_count(dict, "pending", "", dirty) ||
             add_count(dict, "evictions", "", evictions) || add_count(dict, "lane_records", "", r->lane.records) ||
             add_count(dict, "threads", "", (uint64_t)r->thread_count) ||
             add_count(dict, "ring_threads", "", (uint64_t)r->ring_running);
    if (failed) {
        Py_DECREF(dict);
        return NULL;
    }
    return dict;
}

#define PLAIN(name, function, doc) {name, function, METH_NOARGS, doc}
#define ONE(name, function, doc) {name, function, METH_O, doc}

static PyMethodDef relay_methods[] = {
    PLAIN("start", relay_start_py, "start($self, /)\n--\n\nStart to answer."),
    PLAIN("stop", relay_stop_py, "stop($self, /)\n--\n\nEnd all threads, close both descriptors. Idempotent."),
    METHOD("fill_inode", relay_fill_inode, "fill_inode($self, row, no_xattrs, /)\n--\n\n"),
    METHOD("fill_directory", relay_fill_directory, "fill_directory($self, ino, entries, no_xattrs, last, /)\n--\n\n"),
    METHOD("changed", relay_changed, "changed($self, ino, columns, /)\n--\n\nThe database's row was changed so."),
    ONE("has_xattrs", relay_has_xattrs, "has_xattrs($self, ino, /)\n--\n\n"),
    METHOD("put_name", relay_put_name, "put_name($self, parent, cookie, name, ino, mode, /)\n--\n\n"),
    PLAIN("end_marks", relay_end_marks, "end_marks($self, /)\n--\n\nLet commits free what was handed over before them."),
    PLAIN("take_ino", relay_take_ino, "take_ino($self, /)\n--\n\n"),
    PLAIN("take_cookie", relay_take_cookie, "take_cookie($self, /)\n--\n\n"),
    METHOD("set_numbers", relay_set_numbers, "set_numbers($self, next_ino, next_cookie, /)\n--\n\n"),
    ONE("in_use", relay_in_use, "in_use($self, ino, /)\n--\n\n"),
    ONE("set_blocked", relay_set_blocked, "set_blocked($self, errno, /)\n--\n\n"),
    ONE("set_no_space", relay_set_no_space, "set_no_space($self, flag, /)\n--\n\n"),
    PLAIN("drain", relay_drain, "drain($self, /)\n--\n\n"),
    METHOD("wait_dirty", relay_wait_dirty, "wait_dirty($self, count, seconds, /)\n--\n\n"),
    PLAIN("flush_all", relay_flush_all, "flush_all($self, /)\n--\n\nSeal all contents; errno of the first failure or 0."),
    ONE("flush_these", relay_flush_these, "flush_these($self, inos, /)\n--\n\nSeal these contents; errno or 0."),
    ONE("take_log", relay_take_log, "take_log($self, inos, /)\n--\n\n(drained, [(ino, captured), ...], complete)"),
    METHOD("lane_lend", relay_lane_lend, "lane_lend($self, log, ring, /)\n--\n\nLet fsyncs write records by themselves; False: no."),
    PLAIN("lane_pause", relay_lane_pause, "lane_pause($self, /)\n--\n\nLet none take anything any more."),
    PLAIN("lane_take_back", relay_lane_take_back, "lane_take_back($self, /)\n--\n\nWhat has become of what was lent."),
    ONE("relieve", relay_relieve, "relieve($self, bytes, /)\n--\n\n"),
    PLAIN("stats", relay_stats_py, "stats($self, /)\n--\n\n"),
    {0},
};

static PyGetSetDef relay_attributes[] = {
    {"pending", relay_pending, NULL, "Rows and names that the database does not have.", NULL},
    {"changed_contents", relay_changed_contents, NULL, "Contents that may be ahead of their roots.", NULL},
    {"lane_contact_ns", relay_lane_contact, NULL, "When the lane last reached the CAS, by CLOCK_BOOTTIME.", NULL},
    {"lane_is_armed", relay_lane_is_armed, NULL, "Whether the lane may take something.", NULL},
    {"lane_anchored", relay_lane_anchored, NULL, "Generation that the CAS had then.", NULL},
    {"wake_fd", relay_wake_fd, NULL, "Becomes readable when the kernel's side has ended.", NULL},
    {0},
};

static PyType_Slot relay_slots[] = {
    {Py_tp_new, (void *)relay_new_py},
    {Py_tp_dealloc, (void *)relay_dealloc},
    {Py_tp_traverse, (void *)relay_traverse},
    {Py_tp_methods, relay_methods},
    {Py_tp_getset, relay_attributes},
    {Py_tp_doc, "The kernel's end of a mount."},
    {0, NULL},
};

PyType_Spec relay_spec = {
    .name = "fspf_native.Relay",
    .basicsize = sizeof(RelayObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = relay_slots,
};
