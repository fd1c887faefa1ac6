/* A list of slot ranges, for pending frees and reserves: neighbouring ranges added one after another are joined. */
#ifndef FSPF_RUNS_H
#define FSPF_RUNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t start;
    uint64_t length;
} slot_run;

typedef struct {
    slot_run *runs;
    size_t count;
    size_t capacity;
    uint64_t slots;
} run_list;

void runs_clear(run_list *list);
bool runs_add(run_list *list, uint64_t start, uint64_t length);
/* Room for `more` further runs; after true, that many runs_add cannot fail. */
bool runs_reserve(run_list *list, size_t more);
/* Append all of `from`, which is empty afterwards; false (nothing moved) when out of memory. */
bool runs_move(run_list *to, run_list *from);

#endif
