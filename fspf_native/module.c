/* The module fspf_native._native: exceptions, constants, batch sealing. Types are in binding_*.c. */
#include "binding.h"

#include "aead.h"

static const char *const DAMAGE_DOC =
    "A chunk or node could not be read as it was written.\n\n"
    "kind: missing, torn, stale or tampered. offset, length: plain byte range of the file. slot, level, epoch, counter.";

static int set_number(PyObject *object, const char *name, unsigned long long value)
{
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int failed = number == NULL ? -1 : PyObject_SetAttrString(object, name, number);
    Py_XDECREF(number);
    return failed;
}

static void raise_damage(module_state *state, const fspf_error *err)
{
    PyObject *message = PyUnicode_FromFormat(
        "%s %s: bytes %llu to %llu, slot %llu, sealed as %u/%llu: %s", damage_name(err->kind),
        err->level == 0 ? "chunk" : "node", (unsigned long long)err->offset,
        (unsigned long long)(err->offset + err->length), (unsigned long long)err->slot, err->epoch,
        (unsigned long long)err->counter, err->message ? err->message : "not as it was written");
    PyObject *error = message ? PyObject_CallFunctionObjArgs(state->chunk_error, message, NULL) : NULL;
    PyObject *kind = PyUnicode_FromString(damage_name(err->kind));
    if (error != NULL && kind != NULL && PyObject_SetAttrString(error, "kind", kind) == 0 &&
        set_number(error, "offset", err->offset) == 0 && set_number(error, "length", err->length) == 0 &&
        set_number(error, "slot", err->slot) == 0 && set_number(error, "level", (unsigned)err->level) == 0 &&
        set_number(error, "epoch", err->epoch) == 0 && set_number(error, "counter", err->counter) == 0) {
        PyErr_SetObject(state->chunk_error, error);
    }
    Py_XDECREF(kind);
    Py_XDECREF(error);
    Py_XDECREF(message);
}

static void raise_os(const fspf_error *err)
{
    PyObject *text = err->message ? PyUnicode_FromFormat("%s: %s", strerror(err->os_errno), err->message)
                                  : PyUnicode_FromString(strerror(err->os_errno));
    PyObject *arguments = text ? Py_BuildValue("(iO)", err->os_errno, text) : NULL;
    if (arguments != NULL) {
        PyErr_SetObject(PyExc_OSError, arguments);
    }
    Py_XDECREF(arguments);
    Py_XDECREF(text);
}

PyObject *raise_status(module_state *state, fspf_status status, const fspf_error *err)
{
    switch (status) {
    case ST_OK:
        PyErr_SetString(PyExc_SystemError, "raise_status without an error");
        break;
    case ST_OS:
        raise_os(err);
        break;
    case ST_AUTH:
        PyErr_SetString(state->authentication_error, "the tag does not fit: expected the sealed data, found other data");
        break;
    case ST_DAMAGED:
        raise_damage(state, err);
        break;
    case ST_NOMEM:
        PyErr_NoMemory();
        break;
    case ST_CRYPTO:
        PyErr_SetString(PyExc_RuntimeError, "libcrypto failed");
        break;
    case ST_MISUSE:
        PyErr_SetString(PyExc_RuntimeError, err->message ? err->message : "misuse");
        break;
    case ST_VALUE:
        PyErr_SetString(PyExc_ValueError, err->message ? err->message : "an argument is out of range");
        break;
    }
    return NULL;
}

/* ---- arguments ---- */

int check_arity(const char *name, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most)
{
    if (given >= least && given <= most) {
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments (%zd given)", name, least, most, given);
    return -1;
}

int u64_from_python(PyObject *value, const char *what, uint64_t limit, uint64_t *out)
{
    int overflow = 0;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (number == -1 && overflow == 0 && PyErr_Occurred()) {
        return -1;
    }
    if (overflow != 0 || number < 0 || (uint64_t)number > limit) {
        PyErr_Format(PyExc_ValueError, "%s: expected 0 to %llu, found %R", what, (unsigned long long)limit, value);
        return -1;
    }
    *out = (uint64_t)number;
    return 0;
}

int protection_from_python(PyObject *value, protection_mode *out)
{
    uint64_t number = 0;
    if (u64_from_python(value, "protection", PROTECT_AUTHENTICATE, &number) != 0) {
        return -1;
    }
    *out = (protection_mode)number;
    return 0;
}

PyObject *root_to_python(const content_root *root)
{
    return Py_BuildValue("(Kiy#)", (unsigned long long)root->size, root->depth, (const char *)root->pointer,
                         (Py_ssize_t)POINTER_LEN);
}

int root_from_python(PyObject *value, content_root *root)
{
    uint64_t depth = 0;
    if (!PyTuple_Check(value) || PyTuple_Size(value) != 3) {
        PyErr_SetString(PyExc_TypeError, "a content root is a tuple (size, depth, pointer)");
        return -1;
    }
    PyObject *pointer = PyTuple_GetItem(value, 2);
    if (u64_from_python(PyTuple_GetItem(value, 0), "size", MAX_FILE_SIZE, &root->size) != 0 ||
        u64_from_python(PyTuple_GetItem(value, 1), "depth", MAX_DEPTH, &depth) != 0) {
        return -1;
    }
    root->depth = (int)depth;
    if (!PyBytes_Check(pointer) || PyBytes_Size(pointer) != POINTER_LEN) {
        PyErr_SetString(PyExc_ValueError, "a pointer is 32 bytes");
        return -1;
    }
    memcpy(root->pointer, PyBytes_AsString(pointer), POINTER_LEN);
    return 0;
}

/* ---- functions ---- */

typedef fspf_status (*batch_function)(aead_key *key, uint64_t first_counter, protection_mode protection,
                                      const uint8_t *in, uint8_t *out, uint8_t *tags, size_t chunk_size,
                                      size_t chunks);

static fspf_status open_batch(aead_key *key, uint64_t first_counter, protection_mode protection, const uint8_t *in,
                              uint8_t *out, uint8_t *tags, size_t chunk_size, size_t chunks)
{
    return aead_open_batch(key, first_counter, protection, in, out, tags, chunk_size, chunks);
}

static PyObject *run_batch(PyObject *module, const char *name, PyObject *const *args, Py_ssize_t nargs,
                           batch_function function, PyObject *in_arg, PyObject *out_arg, PyObject *tags_arg,
                           int tags_flags)
{
    module_state *state = PyModule_GetState(module);
    PyObject *result = NULL;
    Py_buffer in = {0};
    Py_buffer out = {0};
    Py_buffer tags = {0};
    uint64_t counter = 0;
    uint64_t chunk_size = 0;
    protection_mode protection = PROTECT_ENCRYPT;
    fspf_error err = {0};

    const uint8_t *secret = secret_bytes(state, args[0]);
    if (secret == NULL || u64_from_python(args[1], "first_counter", COUNTER_LIMIT - 1, &counter) != 0 ||
        u64_from_python(args[5], "chunk_size", 1u << 30, &chunk_size) != 0 ||
        (nargs > 6 && protection_from_python(args[6], &protection) != 0)) {
        return NULL;
    }
    if (PyObject_GetBuffer(in_arg, &in, PyBUF_SIMPLE) != 0 || PyObject_GetBuffer(out_arg, &out, PyBUF_WRITABLE) != 0 ||
        PyObject_GetBuffer(tags_arg, &tags, tags_flags) != 0) {
        goto done;
    }
    if (chunk_size == 0 || (uint64_t)in.len % chunk_size != 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected a whole number of chunks, found %zd bytes", name, in.len);
        goto done;
    }
    uint64_t chunks = (uint64_t)in.len / chunk_size;
    if (out.len != in.len || (uint64_t)tags.len != chunks * TAG_LEN || chunks > COUNTER_LIMIT - counter) {
        PyErr_Format(PyExc_ValueError, "%s: lengths do not fit: %zd in, %zd out, %zd of tags", name, in.len, out.len,
                     tags.len);
        goto done;
    }
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    aead_key *key = aead_key_new(secret);
    status = key == NULL ? ST_NOMEM
                         : function(key, counter, protection, in.buf, out.buf, tags.buf, (size_t)chunk_size,
                                    (size_t)chunks);
    aead_key_free(key);
    Py_END_ALLOW_THREADS
    result = status == ST_OK ? Py_NewRef(Py_None) : raise_status(state, status, &err);

done:
    PyBuffer_Release(&tags);
    PyBuffer_Release(&out);
    PyBuffer_Release(&in);
    return result;
}

static PyObject *seal_chunks_py(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arity("seal_chunks", nargs, 6, 7) != 0) {
        return NULL;
    }
    return run_batch(module, "seal_chunks", args, nargs, aead_seal_batch, args[2], args[3], args[4], PyBUF_WRITABLE);
}

static PyObject *open_chunks_py(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arity("open_chunks", nargs, 6, 7) != 0) {
        return NULL;
    }
    return run_batch(module, "open_chunks", args, nargs, open_batch, args[2], args[4], args[3], PyBUF_SIMPLE);
}

static PyObject *xxh3_py(PyObject *module, PyObject *data)
{
    (void)module;
    Py_buffer view = {0};
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    uint64_t value;
    Py_BEGIN_ALLOW_THREADS
    value = checksum_xxh3(view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(value);
}

static PyMethodDef functions[] = {
    METHOD("seal_chunks", seal_chunks_py,
           "seal_chunks($module, key, first_counter, plain, sealed, tags, chunk_size, protection=0, /)\n--\n\n"
           "Seal a batch; `sealed` (len(plain)) and `tags` (16 each) are filled."),
    METHOD("open_chunks", open_chunks_py,
           "open_chunks($module, key, first_counter, sealed, tags, plain, chunk_size, protection=0, /)\n--\n\n"
           "Open a batch. Raises AuthenticationError and leaves `plain` all zeros if any tag is wrong."),
    {"xxh3", xxh3_py, METH_O, "xxh3($module, data, /)\n--\n\nXXH3-64, seed 0."},
    {NULL, NULL, 0, NULL},
};

/* ---- module ---- */

static int add_type(PyObject *module, PyType_Spec *spec, const char *name, PyObject **slot)
{
    *slot = PyType_FromModuleAndSpec(module, spec, NULL);
    return *slot == NULL ? -1 : PyModule_AddObjectRef(module, name, *slot);
}

static int add_exception(PyObject *module, const char *name, const char *full_name, const char *doc, PyObject **slot)
{
    *slot = PyErr_NewExceptionWithDoc(full_name, doc, NULL, NULL);
    return *slot == NULL ? -1 : PyModule_AddObjectRef(module, name, *slot);
}

static int module_exec(PyObject *module)
{
    static const char zeros[POINTER_LEN];
    module_state *state = PyModule_GetState(module);
    if (add_exception(module, "AuthenticationError", "fspf_native.AuthenticationError",
                      "A tag did not fit; nothing was released.", &state->authentication_error) != 0 ||
        add_exception(module, "ChunkError", "fspf_native.ChunkError", DAMAGE_DOC, &state->chunk_error) != 0 ||
        add_type(module, &secret_spec, "SecretKey", &state->secret_type) != 0 ||
        add_type(module, &store_spec, "Store", &state->store_type) != 0 ||
        add_type(module, &tree_spec, "Tree", &state->tree_type) != 0 ||
        add_type(module, &relay_spec, "Relay", &state->relay_type) != 0 ||
        PyModule_AddIntConstant(module, "ENCRYPTED", PROTECT_ENCRYPT) != 0 ||
        PyModule_AddIntConstant(module, "AUTHENTICATED", PROTECT_AUTHENTICATE) != 0) {
        return -1;
    }
    PyObject *hole = PyBytes_FromStringAndSize(zeros, POINTER_LEN);
    int failed = hole == NULL ? -1 : PyModule_AddObjectRef(module, "HOLE", hole);
    Py_XDECREF(hole);
    return failed;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->authentication_error);
    Py_VISIT(state->chunk_error);
    Py_VISIT(state->secret_type);
    Py_VISIT(state->store_type);
    Py_VISIT(state->tree_type);
    Py_VISIT(state->relay_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->authentication_error);
    Py_CLEAR(state->chunk_error);
    Py_CLEAR(state->secret_type);
    Py_CLEAR(state->store_type);
    Py_CLEAR(state->tree_type);
    Py_CLEAR(state->relay_type);
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear((PyObject *)module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fspf_native._native",
    .m_doc = "Sealing, content trees and slots of FSPF, in C.",
    .m_size = sizeof(module_state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
