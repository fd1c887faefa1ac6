/* The same XXH3-64 compiled for AVX2; checksum.c decides at run time whether the processor has it. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#define __AVX2__ 1
#else
#pragma GCC target("avx2")
#endif
#define XXH_INLINE_ALL
#define XXH_VECTOR 2 /* XXH_AVX2 */
#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

uint64_t checksum_xxh3_avx2(const void *data, size_t len);

uint64_t checksum_xxh3_avx2(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int checksum_avx2_is_empty;
#endif
