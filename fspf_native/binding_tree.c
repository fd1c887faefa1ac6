/* Tree for Python. */
#include "binding.h"

#include "tree.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    PyObject *store;
    tree *tree;
} TreeObject;

static module_state *state_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
}

static tree *tree_of(PyObject *self)
{
    return ((TreeObject *)self)->tree;
}

static PyObject *tree_new_py(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"", "", "protection", "allocated", "metadata", "overlay", NULL};
    module_state *state = PyType_GetModuleState(type);
    PyObject *store_object = NULL;
    PyObject *root_object = NULL;
    PyObject *protection_object = NULL;
    long long allocated = 0;
    int metadata = 0;
    int overlay = 0;
    content_root root = {0};
    protection_mode protection = PROTECT_ENCRYPT;
    fspf_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|O$OLpp:Tree", keywords, state->store_type, &store_object,
                                     &root_object, &protection_object, &allocated, &metadata, &overlay) ||
        (root_object != NULL && root_from_python(root_object, &root) != 0) ||
        (protection_object != NULL && protection_from_python(protection_object, &protection) != 0)) {
        return NULL;
    }
    if (allocated < 0) {
        PyErr_SetString(PyExc_ValueError, "Tree: allocated is negative");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    TreeObject *self = (TreeObject *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    fspf_status status = tree_new(((StoreObject *)store_object)->st, &root, protection, (uint64_t)allocated, metadata,
                                  &self->tree, &err);
    if (status != ST_OK) {
        Py_DECREF(self);
        return raise_status(state, status, &err);
    }
    if (overlay) {
        tree_make_overlay(self->tree);
    }
    self->store = Py_NewRef(store_object);
    return (PyObject *)self;
}

static void tree_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    tree *t = tree_of(self);
    if (t != NULL) {
        Py_BEGIN_ALLOW_THREADS
        tree_free(t);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(((TreeObject *)self)->store);
    release(self);
    Py_DECREF(type);
}

static PyObject *tree_read_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    tree *t = tree_of(self);
    uint64_t offset = 0;
    uint64_t length = 0;
    size_t got = 0;
    fspf_error err = {0};
    if (check_arity("read", nargs, 2, 2) != 0 || u64_from_python(args[0], "offset", MAX_FILE_SIZE, &offset) != 0 ||
        u64_from_python(args[1], "length", MAX_FILE_SIZE, &length) != 0) {
        return NULL;
    }
    uint64_t size = tree_size(t);
    length = offset < size ? min_u64(length, size - offset) : 0;
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (result == NULL) {
        return NULL;
    }
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_read(t, offset, out, (size_t)length, &got, &err);
    Py_END_ALLOW_THREADS
    if (status != ST_OK) {
        Py_DECREF(result);
        return raise_status(state_of(self), status, &err);
    }
    if (got < length) { /* cut by another thread meanwhile */
        PyObject *shorter = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)got);
        Py_DECREF(result);
        return shorter;
    }
    return result;
}

static PyObject *tree_readinto_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    tree *t = tree_of(self);
    Py_buffer view = {0};
    uint64_t offset = 0;
    size_t got = 0;
    fspf_error err = {0};
    if (check_arity("readinto", nargs, 2, 2) != 0 ||
        u64_from_python(args[1], "offset", MAX_FILE_SIZE, &offset) != 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_WRITABLE) != 0) {
        return NULL;
    }
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_read(t, offset, view.buf, (size_t)view.len, &got, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return status == ST_OK ? PyLong_FromSize_t(got) : raise_status(state_of(self), status, &err);
}

static PyObject *tree_write_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    tree *t = tree_of(self);
    Py_buffer view = {0};
    uint64_t offset = 0;
    fspf_error err = {0};
    if (check_arity("write", nargs, 2, 2) != 0 || u64_from_python(args[1], "offset", MAX_FILE_SIZE, &offset) != 0 ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    Py_ssize_t length = view.len;
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_write(t, offset, view.buf, (size_t)view.len, &err);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return status == ST_OK ? PyLong_FromSsize_t(length) : raise_status(state_of(self), status, &err);
}

static PyObject *tree_truncate_py(PyObject *self, PyObject *size_object)
{
    tree *t = tree_of(self);
    uint64_t size = 0;
    fspf_error err = {0};
    if (u64_from_python(size_object, "size", MAX_FILE_SIZE, &size) != 0) {
        return NULL;
    }
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_truncate(t, size, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? Py_NewRef(Py_None) : raise_status(state_of(self), status, &err);
}

static PyObject *tree_punch_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    tree *t = tree_of(self);
    uint64_t offset = 0;
    uint64_t length = 0;
    fspf_error err = {0};
    if (check_arity("punch", nargs, 2, 2) != 0 || u64_from_python(args[0], "offset", MAX_FILE_SIZE, &offset) != 0 ||
        u64_from_python(args[1], "length", MAX_FILE_SIZE, &length) != 0) {
        return NULL;
    }
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_punch(t, offset, length, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? Py_NewRef(Py_None) : raise_status(state_of(self), status, &err);
}

static PyObject *seek(PyObject *self, PyObject *offset_object, bool data)
{
    tree *t = tree_of(self);
    uint64_t offset = 0;
    uint64_t found = 0;
    fspf_error err = {0};
    if (u64_from_python(offset_object, "offset", MAX_FILE_SIZE, &offset) != 0) {
        return NULL;
    }
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_seek(t, offset, data, &found, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? PyLong_FromUnsignedLongLong(found) : raise_status(state_of(self), status, &err);
}

static PyObject *tree_seek_data_py(PyObject *self, PyObject *offset)
{
    return seek(self, offset, true);
}

static PyObject *tree_seek_hole_py(PyObject *self, PyObject *offset)
{
    return seek(self, offset, false);
}

static PyObject *tree_flush_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    tree *t = tree_of(self);
    content_root root = {0};
    fspf_error err = {0};
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_flush(t, &root, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? root_to_python(&root) : raise_status(state_of(self), status, &err);
}

/* (size, cut or None, (offset, data, ...)) */
PyObject *captured_to_python(const captured *c, size_t chunk_size)
{
    PyObject *pieces = PyTuple_New(2 * (Py_ssize_t)c->count);
    for (unsigned i = 0; pieces != NULL && i < c->count; i++) {
        PyObject *offset = PyLong_FromUnsignedLongLong(c->offset[i]);
        PyObject *data = PyBytes_FromStringAndSize((const char *)c->data + i * chunk_size, (Py_ssize_t)c->length[i]);
        if (offset == NULL || data == NULL) {
            Py_XDECREF(offset);
            Py_XDECREF(data);
            Py_CLEAR(pieces);
            break;
        }
        (void)PyTuple_SetItem(pieces, 2 * (Py_ssize_t)i, offset);
        (void)PyTuple_SetItem(pieces, 2 * (Py_ssize_t)i + 1, data);
    }
    if (pieces == NULL) {
        return NULL;
    }
    return c->is_cut ? Py_BuildValue("(KKN)", (unsigned long long)c->size, (unsigned long long)c->cut, pieces)
                     : Py_BuildValue("(KON)", (unsigned long long)c->size, Py_None, pieces);
}

static PyObject *tree_capture_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    tree *t = tree_of(self);
    captured found;
    fspf_error err = {0};
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_capture(t, &found, &err);
    Py_END_ALLOW_THREADS
    PyObject *result = NULL;
    if (status != ST_OK) {
        result = raise_status(state_of(self), status, &err);
    } else if (!found.complete) {
        result = Py_NewRef(Py_None);
    } else {
        result = captured_to_python(&found, tree_chunk_size(t));
    }
    captured_clear(&found);
    return result;
}

static PyObject *tree_destroy_py(PyObject *self, PyObject *Py_UNUSED(unused))
{
    tree *t = tree_of(self);
    uint64_t lost = 0;
    fspf_error err = {0};
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_destroy(t, &lost, &err);
    Py_END_ALLOW_THREADS
    return status == ST_OK ? PyLong_FromUnsignedLongLong(lost) : raise_status(state_of(self), status, &err);
}

static PyObject *tree_verify_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    tree *t = tree_of(self);
    uint64_t limit = 1000;
    tree_finding *findings = NULL;
    size_t count = 0;
    fspf_error err = {0};
    if (check_arity("verify", nargs, 0, 1) != 0 ||
        (nargs > 0 && u64_from_python(args[0], "limit", 1u << 24, &limit) != 0)) {
        return NULL;
    }
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = tree_verify(t, (size_t)limit, &findings, &count, &err);
    Py_END_ALLOW_THREADS
    if (status != ST_OK) {
        return raise_status(state_of(self), status, &err);
    }
    PyObject *result = PyList_New(0);
    for (size_t i = 0; result != NULL && i < count; i++) {
        PyObject *item = Py_BuildValue("(KKsKi)", (unsigned long long)findings[i].offset,
                                       (unsigned long long)findings[i].length, damage_name(findings[i].kind),
                                       (unsigned long long)findings[i].slot, findings[i].level);
        if (item == NULL || PyList_Append(result, item) != 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(item);
    }
    free(findings);
    return result;
}

static PyObject *tree_get_size(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(tree_size(tree_of(self)));
}

static PyObject *tree_get_allocated(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(tree_allocated(tree_of(self)));
}

static PyObject *tree_get_dirty(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(tree_dirty(tree_of(self)));
}

static PyObject *tree_get_dirty_bytes(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(tree_dirty_bytes(tree_of(self)));
}

static PyMethodDef tree_methods[] = {
    METHOD("read", tree_read_py, "read($self, offset, length, /)\n--\n\nShort at the end. Raises ChunkError."),
    METHOD("readinto", tree_readinto_py, "readinto($self, buffer, offset, /)\n--\n\nBytes read."),
    METHOD("write", tree_write_py, "write($self, data, offset, /)\n--\n\nAll of it or an exception."),
    {"truncate", tree_truncate_py, METH_O, "truncate($self, size, /)\n--\n\nBoth ways."},
    METHOD("punch", tree_punch_py, "punch($self, offset, length, /)\n--\n\nMake a hole; the size stays."),
    {"seek_data", tree_seek_data_py, METH_O, "seek_data($self, offset, /)\n--\n\nOSError ENXIO past the last data."},
    {"seek_hole", tree_seek_hole_py, METH_O, "seek_hole($self, offset, /)\n--\n\nOSError ENXIO past the end."},
    {"flush", tree_flush_py, METH_NOARGS,
     "flush($self)\n--\n\nSeal all that is dirty; hand the frees to the store's next commit; the content root."},
    {"capture", tree_capture_py, METH_NOARGS,
     "capture($self)\n--\n\n(size, cut, (offset, data, ...)) since the last capture or flush; None: flush instead."},
    {"destroy", tree_destroy_py, METH_NOARGS,
     "destroy($self)\n--\n\nFree every slot; number of chunks lost behind damaged nodes."},
    METHOD("verify", tree_verify_py,
           "verify($self, limit=1000, /)\n--\n\nRead everything: (offset, length, kind, slot, level) per damage."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tree_getset[] = {
    {"size", tree_get_size, NULL, "Bytes.", NULL},
    {"allocated", tree_get_allocated, NULL, "Chunks that are not holes.", NULL},
    {"dirty", tree_get_dirty, NULL, "Something is not in the root that the last flush returned.", NULL},
    {"dirty_bytes", tree_get_dirty_bytes, NULL, "Bytes of chunks and nodes not yet sealed.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tree_slots[] = {
    {Py_tp_doc, (void *)"Tree(store, root=(0, 0, HOLE), /, *, protection=0, allocated=0, metadata=False, overlay=False)\n--\n\n"
                        "The content of one file. Thread-safe: readers share, writers exclude."},
    {Py_tp_new, (void *)tree_new_py},
    {Py_tp_dealloc, (void *)tree_dealloc},
    {Py_tp_methods, tree_methods},
    {Py_tp_getset, tree_getset},
    {0, NULL},
};

PyType_Spec tree_spec = {
    .name = "fspf_native._native.Tree",
    .basicsize = sizeof(TreeObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tree_slots,
};
