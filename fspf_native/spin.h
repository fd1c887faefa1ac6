/* Keeping idle CPUs awake while requests come close upon each other. In a virtual machine waking a halted CPU costs more
 * than a whole request; a thread of the lowest class that spins for a moment takes nothing from anybody else. */
#ifndef FSPF_SPIN_H
#define FSPF_SPIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SPIN_MAX_CPUS 4 /* larger machines have idle CPUs enough */

typedef struct {
    _Atomic uint64_t ticks; /* requests so far */
    _Atomic int64_t last;   /* when the last sixteen had come, ns */
    _Atomic bool asleep, stopping;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t threads[SPIN_MAX_CPUS];
    unsigned next_cpu;
    int count;
    bool ready;
} spinners;

/* Is this a virtual machine, small, whose idle CPUs halt at once? */
bool spin_pays(void);
void spin_start(spinners *s);
void spin_stop(spinners *s);
void spin_wake(spinners *s);

static inline void spin_tick(spinners *s)
{
    uint64_t n = atomic_fetch_add_explicit(&s->ticks, 1, memory_order_relaxed);
    if ((n & 15) == 0 && atomic_load_explicit(&s->asleep, memory_order_relaxed)) {
        spin_wake(s);
    }
}

#endif
