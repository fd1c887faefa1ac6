/* Read or write files front to back, one thread each, and say how long it took: where Python's own time would blur the result.
 *
 *   stream write|overwrite|read BLOCK BYTES LIMIT buffered|direct FILE...
 *
 * Prints "bytes seconds seconds_with_fsync". `write` creates the files anew; BYTES are per file, those printed of all files.
 * Ends early after LIMIT seconds, if that is not 0. */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

struct job {
    const char *path;
    size_t block;
    size_t bytes;
    double end; /* 0: never */
    int flags;
    int descriptor;
    char *buffer;
    pthread_t thread;
};

static void die(const char *what, const char *path)
{
    fprintf(stderr, "stream: %s: %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *move(void *argument)
{
    struct job *job = argument;
    const int writing = (job->flags & O_ACCMODE) != O_RDONLY;
    size_t done = 0;
    for (size_t calls = 0; done < job->bytes; calls++) {
        if (job->end > 0 && calls % 16 == 0 && now() > job->end) {
            break;
        }
        ssize_t n = writing ? write(job->descriptor, job->buffer, job->block)
                            : read(job->descriptor, job->buffer, job->block);
        if (n <= 0) {
            if (n == 0) {
                errno = ENODATA;
            }
            die(writing ? "write" : "read", job->path);
        }
        done += (size_t)n;
    }
    job->bytes = done;
    return NULL;
}

static void *sync_one(void *argument)
{
    struct job *job = argument;
    if (fsync(job->descriptor) != 0) {
        die("fsync", job->path);
    }
    return NULL;
}

static void each(struct job *jobs, int count, void *(*action)(void *))
{
    if (count == 1) {
        action(jobs);
        return;
    }
    for (int i = 0; i < count; i++) {
        if (pthread_create(&jobs[i].thread, NULL, action, &jobs[i]) != 0) {
            die("thread", jobs[i].path);
        }
    }
    for (int i = 0; i < count; i++) {
        pthread_join(jobs[i].thread, NULL);
    }
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: stream write|overwrite|read BLOCK BYTES LIMIT buffered|direct FILE...\n");
        return 2;
    }
    const int direct = strcmp(argv[5], "direct") == 0 ? O_DIRECT : 0;
    const int flags = strcmp(argv[1], "write") == 0  ? O_WRONLY | O_CREAT | O_TRUNC
                      : strcmp(argv[1], "read") == 0 ? O_RDONLY
                                                     : O_WRONLY;
    const int count = argc - 6;
    struct job *jobs = calloc((size_t)count, sizeof *jobs);
    if (jobs == NULL) {
        return 1;
    }
    for (int i = 0; i < count; i++) {
        struct job *job = &jobs[i];
        *job = (struct job){.path = argv[6 + i], .block = strtoul(argv[2], NULL, 10), .flags = flags};
        job->bytes = strtoul(argv[3], NULL, 10);
        if (posix_memalign((void **)&job->buffer, 4096, job->block) != 0) {
            die("memory", job->path);
        }
        for (size_t at = 0; at < job->block; at += 256) {
            const size_t len = job->block - at < 256 ? job->block - at : 256;
            if (getrandom(job->buffer + at, len, 0) != (ssize_t)len) {
                die("random", job->path);
            }
        }
        job->descriptor = open(job->path, flags | direct | O_CLOEXEC, 0644);
        if (job->descriptor < 0) {
            die("open", job->path);
        }
    }
    const double limit = strtod(argv[4], NULL);
    const double begin = now();
    for (int i = 0; i < count; i++) {
        jobs[i].end = limit > 0 ? begin + limit : 0;
    }
    each(jobs, count, move);
    const double moved = now();
    if (flags != O_RDONLY) {
        each(jobs, count, sync_one);
    }
    const double synced = now();
    size_t total = 0;
    for (int i = 0; i < count; i++) {
        total += jobs[i].bytes;
    }
    printf("%zu %.9f %.9f\n", total, moved - begin, synced - begin);
    return 0;
}
