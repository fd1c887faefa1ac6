/* SecretKey for Python. */
#include "binding.h"

#include "secret.h"

#include <openssl/crypto.h>
#include <stdio.h>

#define FINGERPRINT_LEN 8u

static module_state *state_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
}

const uint8_t *secret_bytes(module_state *state, PyObject *value)
{
    if (!PyObject_TypeCheck(value, (PyTypeObject *)state->secret_type)) {
        PyErr_Format(PyExc_TypeError, "expected a SecretKey, found %R", (PyObject *)Py_TYPE(value));
        return NULL;
    }
    return ((SecretObject *)value)->key;
}

/* Takes over `key`. */
PyObject *secret_wrap_bytes(module_state *state, uint8_t *key)
{
    PyTypeObject *type = (PyTypeObject *)state->secret_type;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    SecretObject *self = (SecretObject *)allocate(type, 0);
    if (self == NULL) {
        secret_free(key);
        return NULL;
    }
    self->key = key;
    return (PyObject *)self;
}

static void secret_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    secret_free(((SecretObject *)self)->key);
    release(self);
    Py_DECREF(type);
}

static PyObject *secret_generate(PyObject *type, PyObject *Py_UNUSED(unused))
{
    module_state *state = PyType_GetModuleState((PyTypeObject *)type);
    fspf_error err = {0};
    uint8_t *key = secret_alloc();
    if (key == NULL) {
        return PyErr_NoMemory();
    }
    fspf_status status = secret_random(key, KEY_LEN);
    if (status != ST_OK) {
        secret_free(key);
        return raise_status(state, status, &err);
    }
    return secret_wrap_bytes(state, key);
}

static PyObject *secret_from_bytes(PyObject *type, PyObject *data)
{
    module_state *state = PyType_GetModuleState((PyTypeObject *)type);
    Py_buffer view = {0};
    PyObject *result = NULL;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    if (view.len != KEY_LEN) {
        PyErr_Format(PyExc_ValueError, "expected 32 bytes of key, found %zd", view.len);
    } else {
        uint8_t *key = secret_alloc();
        if (key == NULL) {
            PyErr_NoMemory();
        } else {
            memcpy(key, view.buf, KEY_LEN);
            result = secret_wrap_bytes(state, key);
        }
    }
    PyBuffer_Release(&view);
    return result;
}

static PyObject *secret_derive(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer info = {0};
    Py_buffer salt = {0};
    PyObject *result = NULL;
    if (check_arity("derive", nargs, 1, 2) != 0 || PyObject_GetBuffer(args[0], &info, PyBUF_SIMPLE) != 0 ||
        (nargs > 1 && PyObject_GetBuffer(args[1], &salt, PyBUF_SIMPLE) != 0)) {
        goto done;
    }
    uint8_t *key = secret_alloc();
    if (key == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    fspf_status status = secret_hkdf(((SecretObject *)self)->key, salt.buf, (size_t)salt.len, info.buf,
                                     (size_t)info.len, key, KEY_LEN);
    if (status == ST_OK) {
        result = secret_wrap_bytes(state_of(self), key);
    } else {
        secret_free(key);
        raise_status(state_of(self), status, &err);
    }

done:
    PyBuffer_Release(&salt);
    PyBuffer_Release(&info);
    return result;
}

static PyObject *secret_wrap(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer aad = {0};
    PyObject *result = NULL;
    const uint8_t *other = NULL;
    if (check_arity("wrap", nargs, 2, 2) != 0 || (other = secret_bytes(state_of(self), args[0])) == NULL ||
        PyObject_GetBuffer(args[1], &aad, PyBUF_SIMPLE) != 0) {
        return NULL;
    }
    uint8_t wrapped[KEY_LEN + SIV_LEN];
    fspf_status status =
        secret_siv_seal(((SecretObject *)self)->key, aad.buf, (size_t)aad.len, other, KEY_LEN, wrapped);
    if (status == ST_OK) {
        result = PyBytes_FromStringAndSize((const char *)wrapped, sizeof wrapped);
    } else {
        raise_status(state_of(self), status, &err);
    }
    PyBuffer_Release(&aad);
    return result;
}

static PyObject *secret_unwrap(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer wrapped = {0};
    Py_buffer aad = {0};
    PyObject *result = NULL;
    uint8_t *key = NULL;
    if (check_arity("unwrap", nargs, 2, 2) != 0 || PyObject_GetBuffer(args[0], &wrapped, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[1], &aad, PyBUF_SIMPLE) != 0) {
        goto done;
    }
    if (wrapped.len != KEY_LEN + SIV_LEN) {
        PyErr_Format(PyExc_ValueError, "expected 48 bytes, found %zd", wrapped.len);
        goto done;
    }
    key = secret_alloc();
    if (key == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    fspf_status status = secret_siv_open(((SecretObject *)self)->key, aad.buf, (size_t)aad.len, wrapped.buf,
                                         (size_t)wrapped.len, key);
    if (status == ST_OK) {
        result = secret_wrap_bytes(state_of(self), key);
        key = NULL;
    } else {
        raise_status(state_of(self), status, &err);
    }

done:
    secret_free(key);
    PyBuffer_Release(&aad);
    PyBuffer_Release(&wrapped);
    return result;
}

static PyObject *secret_siv_seal_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer plain = {0};
    Py_buffer aad = {0};
    PyObject *result = NULL;
    if (check_arity("siv_seal", nargs, 2, 2) != 0 || PyObject_GetBuffer(args[0], &plain, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[1], &aad, PyBUF_SIMPLE) != 0) {
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, plain.len + (Py_ssize_t)SIV_LEN);
    if (result == NULL) {
        goto done;
    }
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = secret_siv_seal(((SecretObject *)self)->key, aad.buf, (size_t)aad.len, plain.buf, (size_t)plain.len, out);
    Py_END_ALLOW_THREADS
    if (status != ST_OK) {
        Py_CLEAR(result);
        raise_status(state_of(self), status, &err);
    }

done:
    PyBuffer_Release(&aad);
    PyBuffer_Release(&plain);
    return result;
}

static PyObject *secret_siv_open_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer sealed = {0};
    Py_buffer aad = {0};
    PyObject *result = NULL;
    if (check_arity("siv_open", nargs, 2, 2) != 0 || PyObject_GetBuffer(args[0], &sealed, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[1], &aad, PyBUF_SIMPLE) != 0) {
        goto done;
    }
    if (sealed.len <= (Py_ssize_t)SIV_LEN) {
        raise_status(state_of(self), ST_AUTH, &err);
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, sealed.len - (Py_ssize_t)SIV_LEN);
    if (result == NULL) {
        goto done;
    }
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status =
        secret_siv_open(((SecretObject *)self)->key, aad.buf, (size_t)aad.len, sealed.buf, (size_t)sealed.len, out);
    Py_END_ALLOW_THREADS
    if (status != ST_OK) {
        Py_CLEAR(result);
        raise_status(state_of(self), status, &err);
    }

done:
    PyBuffer_Release(&aad);
    PyBuffer_Release(&sealed);
    return result;
}

static int check_nonce(const Py_buffer *nonce)
{
    if (nonce->len != 12) {
        PyErr_Format(PyExc_ValueError, "expected a nonce of 12 bytes, found %zd", nonce->len);
        return -1;
    }
    return 0;
}

static PyObject *secret_gcm_seal_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer nonce = {0};
    Py_buffer plain = {0};
    Py_buffer aad = {0};
    PyObject *sealed = NULL;
    PyObject *result = NULL;
    if (check_arity("gcm_seal", nargs, 3, 3) != 0 || PyObject_GetBuffer(args[0], &nonce, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[1], &plain, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[2], &aad, PyBUF_SIMPLE) != 0 || check_nonce(&nonce) != 0) {
        goto done;
    }
    sealed = PyBytes_FromStringAndSize(NULL, plain.len);
    if (sealed == NULL) {
        goto done;
    }
    uint8_t tag[TAG_LEN];
    uint8_t *out = (uint8_t *)PyBytes_AsString(sealed);
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = secret_gcm_seal(((SecretObject *)self)->key, nonce.buf, aad.buf, (size_t)aad.len, plain.buf,
                             (size_t)plain.len, out, tag);
    Py_END_ALLOW_THREADS
    result = status == ST_OK ? Py_BuildValue("(Oy#)", sealed, (const char *)tag, (Py_ssize_t)TAG_LEN)
                             : raise_status(state_of(self), status, &err);

done:
    Py_XDECREF(sealed);
    PyBuffer_Release(&aad);
    PyBuffer_Release(&plain);
    PyBuffer_Release(&nonce);
    return result;
}

static PyObject *secret_gcm_open_py(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    fspf_error err = {0};
    Py_buffer nonce = {0};
    Py_buffer sealed = {0};
    Py_buffer tag = {0};
    Py_buffer aad = {0};
    PyObject *result = NULL;
    if (check_arity("gcm_open", nargs, 4, 4) != 0 || PyObject_GetBuffer(args[0], &nonce, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[1], &sealed, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[2], &tag, PyBUF_SIMPLE) != 0 || PyObject_GetBuffer(args[3], &aad, PyBUF_SIMPLE) != 0 ||
        check_nonce(&nonce) != 0) {
        goto done;
    }
    if (tag.len != TAG_LEN) {
        PyErr_Format(PyExc_ValueError, "expected a tag of 16 bytes, found %zd", tag.len);
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, sealed.len);
    if (result == NULL) {
        goto done;
    }
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    fspf_status status;
    Py_BEGIN_ALLOW_THREADS
    status = secret_gcm_open(((SecretObject *)self)->key, nonce.buf, aad.buf, (size_t)aad.len, sealed.buf,
                             (size_t)sealed.len, tag.buf, out);
    Py_END_ALLOW_THREADS
    if (status != ST_OK) {
        Py_CLEAR(result);
        raise_status(state_of(self), status, &err);
    }

done:
    PyBuffer_Release(&aad);
    PyBuffer_Release(&tag);
    PyBuffer_Release(&sealed);
    PyBuffer_Release(&nonce);
    return result;
}

static fspf_status fingerprint_of(PyObject *self, uint8_t out[FINGERPRINT_LEN])
{
    static const uint8_t label[] = "fspf 1 fingerprint";
    return secret_hkdf(((SecretObject *)self)->key, NULL, 0, label, sizeof label - 1, out, FINGERPRINT_LEN);
}

static int fingerprint_text(PyObject *self, char text[2 * FINGERPRINT_LEN + 1])
{
    uint8_t raw[FINGERPRINT_LEN];
    fspf_error err = {0};
    fspf_status status = fingerprint_of(self, raw);
    if (status != ST_OK) {
        raise_status(state_of(self), status, &err);
        return -1;
    }
    for (size_t i = 0; i < FINGERPRINT_LEN; i++) {
        (void)snprintf(text + 2 * i, 3, "%02x", (unsigned)raw[i]);
    }
    return 0;
}

static PyObject *secret_fingerprint(PyObject *self, void *Py_UNUSED(closure))
{
    char text[2 * FINGERPRINT_LEN + 1];
    return fingerprint_text(self, text) == 0 ? PyUnicode_FromString(text) : NULL;
}

static PyObject *secret_repr(PyObject *self)
{
    char text[2 * FINGERPRINT_LEN + 1];
    return fingerprint_text(self, text) == 0 ? PyUnicode_FromFormat("<SecretKey %s>", text) : NULL;
}

static Py_hash_t secret_hash(PyObject *self)
{
    uint8_t raw[FINGERPRINT_LEN];
    fspf_error err = {0};
    fspf_status status = fingerprint_of(self, raw);
    if (status != ST_OK) {
        raise_status(state_of(self), status, &err);
        return -1;
    }
    Py_hash_t value = (Py_hash_t)load_le64(raw);
    return value == -1 ? -2 : value;
}

static PyObject *secret_compare(PyObject *self, PyObject *other, int operation)
{
    module_state *state = state_of(self);
    if ((operation != Py_EQ && operation != Py_NE) ||
        !PyObject_TypeCheck(other, (PyTypeObject *)state->secret_type)) {
        return Py_NewRef(Py_NotImplemented);
    }
    int same = CRYPTO_memcmp(((SecretObject *)self)->key, ((SecretObject *)other)->key, KEY_LEN) == 0;
    return PyBool_FromLong(operation == Py_EQ ? same : !same);
}

static PyMethodDef secret_methods[] = {
    {"generate", secret_generate, METH_NOARGS | METH_CLASS, "generate()\n--\n\nA fresh random key."},
    {"from_bytes", secret_from_bytes, METH_O | METH_CLASS, "from_bytes(data, /)\n--\n\nA key of 32 given bytes."},
    METHOD("derive", secret_derive, "derive($self, info, salt=b'', /)\n--\n\nHKDF-SHA256, 32 bytes."),
    METHOD("wrap", secret_wrap, "wrap($self, key, aad, /)\n--\n\nThe key sealed with AES-256-SIV; 48 bytes."),
    METHOD("unwrap", secret_unwrap,
           "unwrap($self, wrapped, aad, /)\n--\n\nRaises AuthenticationError; ValueError if not 48 bytes."),
    METHOD("siv_seal", secret_siv_seal_py, "siv_seal($self, plain, aad, /)\n--\n\nAES-256-SIV: IV and ciphertext."),
    METHOD("siv_open", secret_siv_open_py, "siv_open($self, sealed, aad, /)\n--\n\nRaises AuthenticationError."),
    METHOD("gcm_seal", secret_gcm_seal_py,
           "gcm_seal($self, nonce, plain, aad, /)\n--\n\n(ciphertext, 16-byte tag); nonce 12 bytes."),
    METHOD("gcm_open", secret_gcm_open_py,
           "gcm_open($self, nonce, sealed, tag, aad, /)\n--\n\nRaises AuthenticationError."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef secret_getset[] = {
    {"fingerprint", secret_fingerprint, NULL, "16 hex digits of a one-way derivation. Safe to print.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot secret_slots[] = {
    {Py_tp_doc, (void *)"32 secret bytes: locked in memory, out of core dumps, wiped; no way to get them out except "
                        "wrapped."},
    {Py_tp_dealloc, (void *)secret_dealloc},
    {Py_tp_repr, (void *)secret_repr},
    {Py_tp_hash, (void *)secret_hash},
    {Py_tp_richcompare, (void *)secret_compare},
    {Py_tp_methods, secret_methods},
    {Py_tp_getset, secret_getset},
    {0, NULL},
};

PyType_Spec secret_spec = {
    .name = "fspf_native._native.SecretKey",
    .basicsize = sizeof(SecretObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = secret_slots,
};
