/* Key material: memory that is locked, left out of core dumps and wiped, and the derivations from it.
 * Block sealing is in aead.h. */
#ifndef FSPF_SECRET_H
#define FSPF_SECRET_H

#include "common.h"

#include <openssl/evp.h>

#define SECRET_LEN 64u /* what secret_alloc gives: room for a SIV key */
#define SIV_LEN 16u

/* Zeroed, locked memory of SECRET_LEN bytes; NULL when there is none. */
uint8_t *secret_alloc(void);
void secret_free(uint8_t *secret);

/* The fetched algorithms, NULL when libcrypto lacks them. */
const EVP_CIPHER *secret_gcm_cipher(void);

fspf_status secret_random(uint8_t *out, size_t len);
/* HKDF-SHA256; out_len is at most 64. */
fspf_status secret_hkdf(const uint8_t *key, const uint8_t *salt, size_t salt_len, const uint8_t *info, size_t info_len,
                        uint8_t *out, size_t out_len);
/* AES-256-SIV under the key derived for it: out has SIV_LEN bytes more than plain. */
fspf_status secret_siv_seal(const uint8_t *key, const uint8_t *aad, size_t aad_len, const uint8_t *plain, size_t len,
                            uint8_t *out);
fspf_status secret_siv_open(const uint8_t *key, const uint8_t *aad, size_t aad_len, const uint8_t *sealed, size_t len,
                            uint8_t *out);
fspf_status secret_gcm_seal(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                            const uint8_t *plain, size_t len, uint8_t *out, uint8_t *tag);
fspf_status secret_gcm_open(const uint8_t *key, const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                            const uint8_t *sealed, size_t len, const uint8_t *tag, uint8_t *out);

#endif
