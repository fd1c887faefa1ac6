/* See secret.h. */
#include "secret.h"

#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- memory: pages of 64-byte cells between two guard pages ---- */

#define CELLS 64u /* one bit each in `taken` */

typedef struct arena {
    struct arena *next;
    uint8_t *cells;
    uint64_t taken;
} arena;

static pthread_mutex_t arena_lock = PTHREAD_MUTEX_INITIALIZER;
static arena *arenas;
static pthread_once_t arena_once = PTHREAD_ONCE_INIT;

static void before_fork(void)
{
    pthread_mutex_lock(&arena_lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&arena_lock);
}

/* Locks on memory are not inherited; a daemon forks after it has its keys. */
static void after_fork_child(void)
{
    for (arena *a = arenas; a != NULL; a = a->next) {
        (void)mlock(a->cells, CELLS * SECRET_LEN);
    }
    pthread_mutex_unlock(&arena_lock);
}

static void arena_init(void)
{
    (void)pthread_atfork(before_fork, after_fork, after_fork_child);
}

static arena *arena_new(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t body = (CELLS * SECRET_LEN + page - 1) / page * page;
    arena *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return NULL;
    }
    uint8_t *base = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        free(a);
        return NULL;
    }
    if (mprotect(base + page, body, PROT_READ | PROT_WRITE) != 0) {
        (void)munmap(base, body + 2 * page);
        free(a);
        return NULL;
    }
    /* Without leave to lock memory the key might reach swap: still better than no volume at all. */
    (void)mlock(base + page, body);
    (void)madvise(base + page, body, MADV_DONTDUMP);
    a->cells = base + page;
    a->next = arenas;
    arenas = a;
    return a;
}

uint8_t *secret_alloc(void)
{
    uint8_t *cell = NULL;
    (void)pthread_once(&arena_once, arena_init);
    pthread_mutex_lock(&arena_lock);
    arena *a = arenas;
    while (a != NULL && a->taken == UINT64_MAX) {
        a = a->next;
    }
    if (a == NULL) {
        a = arena_new();
    }
    if (a != NULL) {
        unsigned i = (unsigned)__builtin_ctzll(~a->taken);
        a->taken |= UINT64_C(1) << i;
        cell = a->cells + (size_t)i * SECRET_LEN;
    }
    pthread_mutex_unlock(&arena_lock);
    return cell; /* cells are wiped when freed, so this one is zero */
}

void secret_free(uint8_t *secret)
{
    if (secret == NULL) {
        return;
    }
    OPENSSL_cleanse(secret, SECRET_LEN);
    pthread_mutex_lock(&arena_lock);
    for (arena *a = arenas; a != NULL; a = a->next) {
        if (secret >= a->cells && secret < a->cells + CELLS * SECRET_LEN) {
            a->taken &= ~(UINT64_C(1) << ((size_t)(secret - a->cells) / SECRET_LEN));
            break;
        }
    }
    pthread_mutex_unlock(&arena_lock);
}

/* ---- algorithms ---- */

static pthread_once_t fetch_once = PTHREAD_ONCE_INIT;
static EVP_CIPHER *gcm_cipher;
static EVP_CIPHER *siv_cipher;

static void fetch_ciphers(void)
{
    gcm_cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    siv_cipher = EVP_CIPHER_fetch(NULL, "AES-256-SIV", NULL);
}

const EVP_CIPHER *secret_gcm_cipher(void)
{
    (void)pthread_once(&fetch_once, fetch_ciphers);
    return gcm_cipher;
}

fspf_status secret_random(uint8_t *out, size_t len)
{
    return RAND_priv_bytes(out, (int)len) == 1 ? ST_OK : ST_CRYPTO;
}

fspf_status secret_hkdf(const uint8_t *key, const uint8_t *salt, size_t salt_len, const uint8_t *info, size_t info_len,
                        uint8_t *out, size_t out_len)
{
    fspf_status status = ST_CRYPTO;
    uint8_t *prk = NULL; /* 32 bytes of PRK, then T(i) */
    uint8_t *block = NULL;
    size_t block_size = 32 + info_len + 1;

    if (salt_len > INT_MAX || info_len > INT_MAX - 64 || out_len > 64) {
        return ST_VALUE;
    }
    prk = secret_alloc();
    block = malloc(block_size);
    if (prk == NULL || block == NULL) {
        status = ST_NOMEM;
        goto done;
    }
    static const uint8_t no_salt[1];
    if (HMAC(EVP_sha256(), salt_len ? salt : no_salt, (int)salt_len, key, KEY_LEN, prk, NULL) == NULL) {
        goto done;
    }
    size_t previous = 0; /* T(0) is empty */
    for (uint8_t i = 1; out_len > 0; i++) {
        memcpy(block, prk + 32, previous);
        if (info_len > 0) {
            memcpy(block + previous, info, info_len);
        }
        block[previous + info_len] = i;
        if (HMAC(EVP_sha256(), prk, 32, block, previous + info_len + 1, prk + 32, NULL) == NULL) {
            goto done;
        }
        previous = 32;
        size_t n = out_len < 32 ? out_len : 32;
        memcpy(out, prk + 32, n);
        out += n;
        out_len -= n;
    }
    status = ST_OK;

done:
    if (block != NULL) {
        OPENSSL_cleanse(block, block_size);
        free(block);
    }
    secret_free(prk);
    return status;
}

static fspf_status siv_start(const uint8_t *key, const uint8_t *aad, size_t aad_len, size_t len, int sealing,
                             uint8_t *tag, EVP_CIPHER_CTX **out)
{
    static const uint8_t label[] = "fspf 1 siv";
    fspf_status status = ST_CRYPTO;
    uint8_t *siv_key = NULL;
    EVP_CIPHER_CTX *ctx = NULL;
    int n = 0;

    (void)pthread_once(&fetch_once, fetch_ciphers);
    if (siv_cipher == NULL) {
        return ST_CRYPTO;
    }
    if (aad_len > INT_MAX || len == 0 || len > INT_MAX) {
        return ST_VALUE; /* OpenSSL 3.0 does not do SIV of nothing */
    }
    siv_key = secret_alloc();
    ctx = EVP_CIPHER_CTX_new();
    if (siv_key == NULL || ctx == NULL) {
        status = ST_NOMEM;
        goto done;
    }
    status = secret_hkdf(key, NULL, 0, label, sizeof label - 1, siv_key, SECRET_LEN);
    if (status != ST_OK) {
        goto done;
    }
    status = ST_CRYPTO;
    if (EVP_CipherInit_ex(ctx, siv_cipher, NULL, siv_key, NULL, sealing) != 1 ||
        (!sealing && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, (int)SIV_LEN, tag) != 1) ||
        EVP_CipherUpdate(ctx, NULL, &n, aad, (int)aad_len) != 1) {
        goto done;
    }
    *out = ctx;
    ctx = NULL;
    status = ST_OK;

done:
    EVP_CIPHER_CTX_free(ctx);
    secret_free(siv_key);
    return status;
}

fspf_status secret_siv_seal(const uint8_t *key, const uint8_t *aad, size_t aad_len, const uint8_t *plain, size_t len,
                            uint8_t *out)
{
    EVP_CIPHER_CTX *ctx = NULL;
    int n = 0;
    fspf_status status = siv_start(key, aad, aad_len, len, 1, NULL, &ctx);
    if (status != ST_OK) {
        return status;
    }
    if (EVP_EncryptUpdate(ctx, out + SIV_LEN, &n, plain, (int)len) != 1 ||
        EVP_EncryptFinal_ex(ctx, out + SIV_LEN + len, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, (int)SIV_LEN, out) != 1) {
        status = ST_CRYPTO;
    }
    EVP_CIPHER_CTX_free(ctx);
    return status;
}

fspf_status secret_siv_open(const uint8_t *key, const uint8_t *aad, size_t aad_len, const uint8_t *sealed, size_t len,
                            uint8_t *out)
{
    EVP_CIPHER_CTX *ctx = NULL;
    uint8_t tag[SIV_LEN];
    int n = 0;
    if (len <= SIV_LEN) {
        return ST_AUTH; /* never sealed: there is no SIV of nothing here */
    }
    len -= SIV_LEN;
    memcpy(tag, sealed, SIV_LEN);
    fspf_status status = siv_start(key, aad, aad_len, len, 0, tag, &ctx);
    if (status != ST_OK) {
        return status;
    }
    if (EVP_DecryptUpdate(ctx, out, &n, sealed + SIV_LEN, (int)len) != 1 ||
        EVP_DecryptFinal_ex(ctx, out + len, &n) != 1) {
        OPENSSL_cleanse(out, len);
        status = ST_AUTH;
    }
    EVP_CIPHER_CTX_free(ctx);
    return status;
}

static fspf_status gcm_start(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len, size_t len,
                             int sealing, EVP_CIPHER_CTX **out)
{
    int n = 0;
    if (aad_len > INT_MAX || len > INT_MAX) {
        return ST_VALUE;
    }
    const EVP_CIPHER *cipher = secret_gcm_cipher();
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (cipher == NULL || ctx == NULL || EVP_CipherInit_ex(ctx, cipher, NULL, key, nonce, sealing) != 1 ||
        (aad_len > 0 && EVP_CipherUpdate(ctx, NULL, &n, aad, (int)aad_len) != 1)) {
        EVP_CIPHER_CTX_free(ctx);
        return ST_CRYPTO;
    }
    *out = ctx;
    return ST_OK;
}

fspf_status secret_gcm_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                            const uint8_t *plain, size_t len, uint8_t *out, uint8_t *tag)
{
    EVP_CIPHER_CTX *ctx = NULL;
    int n = 0;
    fspf_status status = gcm_start(key, nonce, aad, aad_len, len, 1, &ctx);
    if (status != ST_OK) {
        return status;
    }
    if ((len > 0 && EVP_EncryptUpdate(ctx, out, &n, plain, (int)len) != 1) ||
        EVP_EncryptFinal_ex(ctx, out + len, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, (int)TAG_LEN, tag) != 1) {
        status = ST_CRYPTO;
    }
    EVP_CIPHER_CTX_free(ctx);
    return status;
}

fspf_status secret_gcm_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                            const uint8_t *sealed, size_t len, const uint8_t *tag, uint8_t *out)
{
    EVP_CIPHER_CTX *ctx = NULL;
    uint8_t expected_tag[TAG_LEN];
    int n = 0;
    memcpy(expected_tag, tag, TAG_LEN);
    fspf_status status = gcm_start(key, nonce, aad, aad_len, len, 0, &ctx);
    if (status != ST_OK) {
        return status;
    }
    if ((len > 0 && EVP_DecryptUpdate(ctx, out, &n, sealed, (int)len) != 1) ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, (int)TAG_LEN, expected_tag) != 1) {
        status = ST_CRYPTO;
    } else if (EVP_DecryptFinal_ex(ctx, out + len, &n) != 1) {
        status = ST_AUTH;
    }
    if (status != ST_OK) {
        OPENSSL_cleanse(out, len); /* unauthenticated plaintext never leaves */
    }
    EVP_CIPHER_CTX_free(ctx);
    return status;
}
