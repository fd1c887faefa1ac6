/* See spin.h. */
#include "spin.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CLOSE_NS 1000000 /* sixteen requests within this are a burst */
#define PATIENCE_NS 250000 /* so long after the last request spinning goes on */

static int64_t monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool in_virtual_machine(void)
{
    char line[8192];
    bool found = false;
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        found = strncmp(line, "flags", 5) == 0 && strstr(line, " hypervisor") != NULL;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return found;
}

bool spin_pays(void)
{
    long poll_ns = 0;
    FILE *file = fopen("/sys/module/haltpoll/parameters/guest_halt_poll_ns", "re");
    if (file != NULL) {
        if (fscanf(file, "%ld", &poll_ns) != 1) {
            poll_ns = 0;
        }
        (void)fclose(file);
    }
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return cpus >= 2 && cpus <= SPIN_MAX_CPUS && poll_ns == 0 && in_virtual_machine();
}

static void *spin(void *argument)
{
    spinners *s = argument;
    sigset_t all;
    cpu_set_t cpus;
    struct sched_param lowest = {0};
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_mutex_lock(&s->lock);
    unsigned cpu = s->next_cpu++;
    pthread_mutex_unlock(&s->lock);
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) != 0 || sched_setscheduler(0, SCHED_IDLE, &lowest) != 0) {
        return NULL; /* at another priority it would be in the way */
    }
    while (!s->stopping) {
        pthread_mutex_lock(&s->lock);
        while (s->asleep && !s->stopping) {
            pthread_cond_wait(&s->wake, &s->lock);
        }
        pthread_mutex_unlock(&s->lock);
        uint64_t seen = s->ticks;
        int64_t since = monotonic_ns();
        while (!s->stopping && !s->asleep) {
            for (int i = 0; i < 64; i++) {
                __builtin_ia32_pause();
            }
            int64_t now = monotonic_ns();
            uint64_t ticks = s->ticks;
            if (ticks != seen) {
                seen = ticks;
                since = now;
            } else if (now - since > PATIENCE_NS) {
                s->asleep = true; /* all of them */
            }
        }
    }
    return NULL;
}

void spin_wake(spinners *s)
{
    int64_t now = monotonic_ns();
    int64_t last = atomic_exchange(&s->last, now);
    if (now - last > CLOSE_NS) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->asleep = false;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void spin_start(spinners *s)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_cond_init(&s->wake, NULL);
    s->ready = true;
    s->asleep = true;
    while (s->count < cpus && s->count < SPIN_MAX_CPUS && pthread_create(&s->threads[s->count], NULL, spin, s) == 0) {
        s->count++;
    }
}

void spin_stop(spinners *s)
{
    if (!s->ready) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    while (s->count > 0) {
        (void)pthread_join(s->threads[--s->count], NULL);
    }
    (void)pthread_mutex_destroy(&s->lock);
    (void)pthread_cond_destroy(&s->wake);
    s->asleep = false;
    s->ready = false;
}
