/* See aead.h. */
#include "aead.h"

#include "secret.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdlib.h>

#define NONCE_LEN 12u
#define POOLED 8u /* idle contexts kept per key and direction */

struct aead_ctx {
    EVP_CIPHER_CTX *evp;
    aead_ctx *next;
    aead_direction direction;
    uint8_t tag[TAG_LEN];
    OSSL_PARAM tag_param[2]; /* names `tag`: to fetch it after sealing, to give it before opening */
};

struct aead_key {
    uint8_t *key;
    pthread_mutex_t lock;
    aead_ctx *idle[2];
    unsigned idle_count[2];
};

aead_key *aead_key_new(const uint8_t *key)
{
    aead_key *k = calloc(1, sizeof *k);
    if (k == NULL) {
        return NULL;
    }
    k->key = secret_alloc();
    if (k->key == NULL) {
        free(k);
        return NULL;
    }
    memcpy(k->key, key, KEY_LEN);
    (void)pthread_mutex_init(&k->lock, NULL);
    return k;
}

static void ctx_free(aead_ctx *ctx)
{
    EVP_CIPHER_CTX_free(ctx->evp); /* wipes the key schedule */
    OPENSSL_cleanse(ctx->tag, sizeof ctx->tag);
    free(ctx);
}

void aead_key_free(aead_key *key)
{
    if (key == NULL) {
        return;
    }
    for (int d = 0; d < 2; d++) {
        while (key->idle[d] != NULL) {
            aead_ctx *ctx = key->idle[d];
            key->idle[d] = ctx->next;
            ctx_free(ctx);
        }
    }
    secret_free(key->key);
    (void)pthread_mutex_destroy(&key->lock);
    free(key);
}

bool aead_key_equal(const aead_key *key, const uint8_t *other)
{
    return CRYPTO_memcmp(key->key, other, KEY_LEN) == 0;
}

aead_ctx *aead_borrow(aead_key *key, aead_direction direction)
{
    pthread_mutex_lock(&key->lock);
    aead_ctx *ctx = key->idle[direction];
    if (ctx != NULL) {
        key->idle[direction] = ctx->next;
        key->idle_count[direction]--;
    }
    pthread_mutex_unlock(&key->lock);
    if (ctx != NULL) {
        return ctx;
    }

    const EVP_CIPHER *cipher = secret_gcm_cipher();
    ctx = calloc(1, sizeof *ctx);
    if (cipher == NULL || ctx == NULL) {
        free(ctx);
        return NULL;
    }
    ctx->direction = direction;
    ctx->tag_param[0] = OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, ctx->tag, TAG_LEN);
    ctx->tag_param[1] = OSSL_PARAM_construct_end();
    ctx->evp = EVP_CIPHER_CTX_new();
    if (ctx->evp == NULL ||
        EVP_CipherInit_ex(ctx->evp, cipher, NULL, key->key, NULL, direction == AEAD_SEAL ? 1 : 0) != 1) {
        ctx_free(ctx);
        return NULL;
    }
    return ctx;
}

void aead_give_back(aead_key *key, aead_ctx *ctx)
{
    if (ctx == NULL) {
        return;
    }
    bool keep = false;
    pthread_mutex_lock(&key->lock);
    if (key->idle_count[ctx->direction] < POOLED) {
        ctx->next = key->idle[ctx->direction];
        key->idle[ctx->direction] = ctx;
        key->idle_count[ctx->direction]++;
        keep = true;
    }
    pthread_mutex_unlock(&key->lock);
    if (!keep) {
        ctx_free(ctx);
    }
}

fspf_status aead_seal(aead_ctx *ctx, uint64_t counter, protection_mode protection, const uint8_t *plain,
                      uint8_t *sealed, size_t len, uint8_t *tag)
{
    uint8_t nonce[NONCE_LEN] = {0};
    int n = 0;
    store_le64(nonce, counter);
    if (EVP_EncryptInit_ex(ctx->evp, NULL, NULL, NULL, nonce) != 1) {
        return ST_CRYPTO;
    }
    if (protection == PROTECT_ENCRYPT) {
        if (EVP_EncryptUpdate(ctx->evp, sealed, &n, plain, (int)len) != 1) {
            return ST_CRYPTO;
        }
    } else {
        /* The tag is made over our copy: the caller's buffer could change under us. */
        if (sealed != plain) {
            memcpy(sealed, plain, len);
        }
        if (EVP_EncryptUpdate(ctx->evp, NULL, &n, sealed, (int)len) != 1) {
            return ST_CRYPTO;
        }
    }
    if (EVP_EncryptFinal_ex(ctx->evp, ctx->tag, &n) != 1 ||
        EVP_CIPHER_CTX_get_params(ctx->evp, ctx->tag_param) != 1) {
        return ST_CRYPTO;
    }
    memcpy(tag, ctx->tag, TAG_LEN);
    return ST_OK;
}

fspf_status aead_open(aead_ctx *ctx, uint64_t counter, protection_mode protection, const uint8_t *sealed,
                      uint8_t *plain, size_t len, const uint8_t *tag)
{
    uint8_t nonce[NONCE_LEN] = {0};
    uint8_t none[TAG_LEN];
    fspf_status status = ST_CRYPTO;
    int n = 0;
    store_le64(nonce, counter);
    if (EVP_DecryptInit_ex(ctx->evp, NULL, NULL, NULL, nonce) != 1) {
        goto done;
    }
    if (protection == PROTECT_ENCRYPT) {
        if (EVP_DecryptUpdate(ctx->evp, plain, &n, sealed, (int)len) != 1) {
            goto done;
        }
    } else {
        if (sealed != plain) {
            memcpy(plain, sealed, len);
        }
        if (EVP_DecryptUpdate(ctx->evp, NULL, &n, plain, (int)len) != 1) {
            goto done;
        }
    }
    memcpy(ctx->tag, tag, TAG_LEN);
    if (EVP_CIPHER_CTX_set_params(ctx->evp, ctx->tag_param) != 1) {
        goto done;
    }
    status = EVP_DecryptFinal_ex(ctx->evp, none, &n) == 1 ? ST_OK : ST_AUTH;

done:
    if (status != ST_OK) {
        OPENSSL_cleanse(plain, len); /* unauthenticated plaintext never leaves */
    }
    return status;
}

fspf_status aead_seal_batch(aead_key *key, uint64_t first_counter, protection_mode protection, const uint8_t *plain,
                            uint8_t *sealed, uint8_t *tags, size_t chunk_size, size_t chunks)
{
    fspf_status status = ST_OK;
    aead_ctx *ctx = aead_borrow(key, AEAD_SEAL);
    if (ctx == NULL) {
        return ST_CRYPTO;
    }
    for (size_t i = 0; i < chunks && status == ST_OK; i++) {
        status = aead_seal(ctx, first_counter + i, protection, plain + i * chunk_size, sealed + i * chunk_size,
                           chunk_size, tags + i * TAG_LEN);
    }
    aead_give_back(key, ctx);
    return status;
}

fspf_status aead_open_batch(aead_key *key, uint64_t first_counter, protection_mode protection, const uint8_t *sealed,
                            uint8_t *plain, const uint8_t *tags, size_t chunk_size, size_t chunks)
{
    fspf_status status = ST_OK;
    aead_ctx *ctx = aead_borrow(key, AEAD_OPEN);
    if (ctx == NULL) {
        status = ST_CRYPTO;
    }
    for (size_t i = 0; i < chunks && status == ST_OK; i++) {
        status = aead_open(ctx, first_counter + i, protection, sealed + i * chunk_size, plain + i * chunk_size,
                           chunk_size, tags + i * TAG_LEN);
    }
    if (status != ST_OK) {
        OPENSSL_cleanse(plain, chunks * chunk_size);
    }
    aead_give_back(key, ctx);
    return status;
}
