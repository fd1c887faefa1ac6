/* Shared by module.c and the binding_*.c files: module state, exceptions, argument helpers. No algorithm here. */
#ifndef FSPF_BINDING_H
#define FSPF_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "store.h"
#include "tree.h"

typedef struct {
    PyObject *authentication_error;
    PyObject *chunk_error;
    PyObject *secret_type;
    PyObject *store_type;
    PyObject *tree_type;
    PyObject *relay_type;
} module_state;

typedef struct {
    PyObject_HEAD
    uint8_t *key; /* from secret_alloc */
} SecretObject;

typedef struct {
    PyObject_HEAD
    store *st;
} StoreObject;

extern PyType_Spec secret_spec;
extern PyType_Spec store_spec;
extern PyType_Spec tree_spec;
extern PyType_Spec relay_spec;

/* Set the exception that a status stands for; NULL, for `return raise_status(...)`. */
PyObject *raise_status(module_state *state, fspf_status status, const fspf_error *err);
PyObject *root_to_python(const content_root *root);
PyObject *captured_to_python(const captured *c, size_t chunk_size);
/* 0, or -1 with an exception. */
int root_from_python(PyObject *value, content_root *root);
int u64_from_python(PyObject *value, const char *what, uint64_t limit, uint64_t *out);
int protection_from_python(PyObject *value, protection_mode *out);
int check_arity(const char *name, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most);
/* The 32 bytes of a SecretKey, or NULL with TypeError. */
const uint8_t *secret_bytes(module_state *state, PyObject *value);
PyObject *secret_wrap_bytes(module_state *state, uint8_t *key);

#define METHOD(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, doc}

#endif
