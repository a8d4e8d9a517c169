/* cpu_pool.c: the worker threads of the CPU device and how they meet. Knows nothing of kernels.
 *
 * A meeting spins for a short while, because a step has hundreds of them a microsecond apart, and
 * then sleeps, because handler threads want the same cores. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "cpu/cpu.h"

/* Spins before sleeping: about 30 microseconds of pauses, longer than the gap between two
 * dispatches. */
#define SPINS_AT_BARRIER 2000
/* Calls of idle() before plain spinning: what it has to do is done well before. */
#define IDLE_CALLS 200
/* Between steps Python schedules and samples: about 100 microseconds. */
#define SPINS_BETWEEN_JOBS 6000

#if defined(__x86_64__)
#define CPU_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define CPU_PAUSE() __asm__ volatile("isb")
#else
#define CPU_PAUSE() ((void)0)
#endif

typedef struct {
    marlin_pool *pool;
    int index;
} pool_worker;

struct marlin_pool {
    int size;
    pthread_t *threads;
    pool_worker *workers;
    marlin_pool_job job;
    void *context;
    int stopping;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    _Alignas(64) atomic_int num_sleeping;
    _Alignas(64) atomic_int job_number;     /* raised by each start */
    _Alignas(64) atomic_int num_running;    /* workers [1, size) still in the job */
    _Alignas(64) atomic_int num_arrived;    /* at the current barrier */
    _Alignas(64) atomic_int barrier_number; /* raised by the last to arrive */
};

static void wait_while(marlin_pool *pool, atomic_int *value, int unwanted, int num_spins)
{
    for (int i = 0; i < num_spins; i++) {
        if (atomic_load_explicit(value, memory_order_acquire) != unwanted) return;
        CPU_PAUSE();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->num_sleeping, 1);
    while (atomic_load(value) == unwanted) pthread_cond_wait(&pool->changed, &pool->mutex);
    atomic_fetch_sub(&pool->num_sleeping, 1);
    pthread_mutex_unlock(&pool->mutex);
}

/* Called after a value that others wait on has changed. The sleeper raises num_sleeping before it
 * looks at the value for the last time, both sequentially consistent, so one of the two sees the
 * other. Values are changed by an exchange or an addition, never by a plain store: qemu, which runs
 * the tests of the ARM library, lets a later load pass one. */
static void wake_sleepers(marlin_pool *pool)
{
    if (atomic_load(&pool->num_sleeping) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
}

void marlin_pool_barrier(marlin_pool *pool, marlin_pool_idle idle, void *context, int worker)
{
    if (pool->size == 1) return;
    int number = atomic_load(&pool->barrier_number);
    if (atomic_fetch_add(&pool->num_arrived, 1) == pool->size - 1) {
        atomic_store(&pool->num_arrived, 0);
        atomic_fetch_add(&pool->barrier_number, 1);
        wake_sleepers(pool);
        return;
    }
    for (int i = 0; i < IDLE_CALLS; i++) {
        if (atomic_load_explicit(&pool->barrier_number, memory_order_acquire) != number) return;
        idle(context, worker);
    }
    wait_while(pool, &pool->barrier_number, number, SPINS_AT_BARRIER);
}

static void *work(void *argument)
{
    pool_worker *worker = argument;
    marlin_pool *pool = worker->pool;
    for (int seen = 0;; seen++) {
        wait_while(pool, &pool->job_number, seen, SPINS_BETWEEN_JOBS);
        if (pool->stopping) return NULL;
        pool->job(pool->context, worker->index);
        if (atomic_fetch_sub(&pool->num_running, 1) == 1) wake_sleepers(pool);
    }
}

int marlin_pool_size(const marlin_pool *pool) { return pool->size; }

void marlin_pool_start(marlin_pool *pool, marlin_pool_job job, void *context)
{
    pool->job = job;
    pool->context = context;
    atomic_store(&pool->num_running, pool->size - 1);
    atomic_fetch_add(&pool->job_number, 1);
    wake_sleepers(pool);
}

void marlin_pool_finish(marlin_pool *pool)
{
    pool->job(pool->context, 0);
    for (;;) {
        int running = atomic_load(&pool->num_running);
        if (running == 0) return;
        wait_while(pool, &pool->num_running, running, SPINS_AT_BARRIER);
    }
}

void marlin_pool_destroy(marlin_pool *pool)
{
    if (!pool) return;
    pool->stopping = 1;
    atomic_fetch_add(&pool->job_number, 1);
    wake_sleepers(pool);
    for (int i = 1; i < pool->size; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool->workers);
    free(pool);
}

marlin_pool *marlin_pool_create(int num_threads)
{
    marlin_pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool) return NULL;
    *pool = (marlin_pool){.size = 1};
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->changed, NULL);
    pool->threads = calloc((size_t)num_threads, sizeof *pool->threads);
    pool->workers = calloc((size_t)num_threads, sizeof *pool->workers);
    if (!pool->threads || !pool->workers) {
        marlin_pool_destroy(pool);
        return NULL;
    }
    for (int i = 1; i < num_threads; i++) {
        pool->workers[i] = (pool_worker){.pool = pool, .index = i};
        if (pthread_create(&pool->threads[i], NULL, work, &pool->workers[i]) != 0) {
            marlin_pool_destroy(pool);
            return NULL;
        }
        pool->size = i + 1;
    }
    return pool;
}
