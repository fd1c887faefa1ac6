/* FUSE over io_uring (Linux 6.14): a thread that is given requests of one CPU through a ring of its own, and is bound
 * to that CPU: no request wakes another one. */
#ifndef FSPF_URING_H
#define FSPF_URING_H

#include "relay.h"

/* Can the kernel do it here and now? */
bool uring_available(void);
/* Start the threads of every CPU, after INIT was answered. 0 or an errno; then requests keep coming the other way. */
int uring_start(relay *r);
/* One more thread for a CPU whose threads may all wait. */
void uring_grow(relay *r, unsigned cpu);
void uring_stop(relay *r);

#endif
