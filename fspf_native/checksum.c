/* XXH3-64: finds torn and rotten bytes, protects against nobody. */
#include "common.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t checksum_xxh3_avx2(const void *data, size_t len);

uint64_t checksum_xxh3(const void *data, size_t len)
{
#if defined(__x86_64__)
    if (len > 512 && __builtin_cpu_supports("avx2")) {
        return checksum_xxh3_avx2(data, len);
    }
#endif
    return XXH3_64bits(data, len);
}

const char *damage_name(damage_kind kind)
{
    switch (kind) {
    case KIND_MISSING:
        return "missing";
    case KIND_TORN:
        return "torn";
    case KIND_STALE:
        return "stale";
    case KIND_TAMPERED:
        return "tampered";
    }
    return "tampered";
}
