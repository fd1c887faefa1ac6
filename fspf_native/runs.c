/* See runs.h. */
#include "runs.h"

#include <stdlib.h>
#include <string.h>

void runs_clear(run_list *list)
{
    free(list->runs);
    memset(list, 0, sizeof *list);
}

bool runs_reserve(run_list *list, size_t more)
{
    if (list->count + more <= list->capacity) {
        return true;
    }
    size_t capacity = list->capacity ? list->capacity : 8;
    while (capacity < list->count + more) {
        capacity *= 2;
    }
    slot_run *bigger = realloc(list->runs, capacity * sizeof *bigger);
    if (bigger == NULL) {
        return false;
    }
    list->runs = bigger;
    list->capacity = capacity;
    return true;
}

bool runs_add(run_list *list, uint64_t start, uint64_t length)
{
    slot_run *last = list->count ? &list->runs[list->count - 1] : NULL;
    if (last != NULL && last->start + last->length == start) {
        last->length += length;
    } else if (last != NULL && start + length == last->start) {
        last->start = start;
        last->length += length;
    } else {
        if (!runs_reserve(list, 1)) {
            return false;
        }
        list->runs[list->count++] = (slot_run){start, length};
    }
    list->slots += length;
    return true;
}

bool runs_move(run_list *to, run_list *from)
{
    if (to->count == 0) {
        run_list empty = *to;
        *to = *from;
        *from = empty;
        return true;
    }
    if (!runs_reserve(to, from->count)) {
        return false;
    }
    for (size_t i = 0; i < from->count; i++) {
        (void)runs_add(to, from->runs[i].start, from->runs[i].length);
    }
    from->count = 0;
    from->slots = 0;
    return true;
}
