// Groups: every call is in one, if only in its own. At the end of the outermost one its work is
// started, and where the communicators do not block, in a thread of its own.
#include "nccl.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct batch {
    struct batch *next;
    ncclComm_t comm;
    int count, room;
    struct call *calls;
};

struct group {
    struct job *jobs;
    struct batch *batches;
    bool blocking;
};

// A kernel's turn and its place in the stream are taken together.
static pthread_mutex_t launching = PTHREAD_MUTEX_INITIALIZER;

static _Thread_local int depth;
static _Thread_local ncclResult_t failed;
// Of the open group; -1 where it has no communicator yet.
static _Thread_local int blocking = -1;
static _Thread_local struct job *jobs;
static _Thread_local struct batch *batches;

void nccl_group_start(void) { depth++; }

void nccl_group_failed(ncclResult_t result) {
    if (depth > 0 && result != ncclSuccess && result != ncclInProgress) failed = result;
}

static ncclResult_t same_kind(ncclComm_t comm) {
    if (blocking == -1) blocking = comm->config.blocking;
    if (blocking == comm->config.blocking) return ncclSuccess;
    nccl_note("Blocking and nonblocking communicators are not allowed in the same group.");
    return ncclInvalidArgument;
}

ncclResult_t nccl_group_job(struct job *job) {
    ncclResult_t result = same_kind(job->comm);
    if (result != ncclSuccess) {
        free(job);
        return result;
    }
    struct job **end = &jobs;
    while (*end != NULL) end = &(*end)->next;
    *end = job;
    return ncclSuccess;
}

ncclResult_t nccl_group_call(ncclComm_t comm, const struct call *call) {
    ncclResult_t result = same_kind(comm);
    if (result != ncclSuccess) return result;
    struct batch **at = &batches;
    while (*at != NULL && (*at)->comm != comm) at = &(*at)->next;
    if (*at == NULL) {
        *at = calloc(1, sizeof **at);
        if (*at == NULL) return ncclSystemError;
        (*at)->comm = comm;
    }
    struct batch *batch = *at;
    if (batch->count == batch->room) {
        batch->room = batch->room * 2 + 4;
        batch->calls = realloc(batch->calls, (size_t)batch->room * sizeof *batch->calls);
        if (batch->calls == NULL) return ncclSystemError;
    }
    batch->calls[batch->count++] = *call;
    return ncclSuccess;
}

// As the real one connects: with all others at the first collective, and with one other at the
// first message to or from it. So a first call can wait for the peers, before anything is launched.
static ncclResult_t connect(ncclComm_t comm, const struct batch *batch) {
    const char *when = getenv("FAKE_NCCL_CONNECT");
    if (comm->ranks == 1 || (when != NULL && strcmp(when, "eager") == 0)) return ncclSuccess;
    struct world *world = comm->world;
    bool collective = false;
    for (int i = 0; i < batch->count; i++) {
        const struct call *call = &batch->calls[i];
        if (call->kind == SEND) world->pipes[comm->rank][call->root].sender_ready = true;
        else if (call->kind == RECEIVE) world->pipes[call->root][comm->rank].receiver_ready = true;
        else collective = true;
    }
    ncclResult_t result = ncclSuccess;
    for (int i = 0; i < batch->count && result == ncclSuccess; i++) {
        const struct call *call = &batch->calls[i];
        _Atomic bool *other = NULL;
        if (call->kind == SEND) other = &world->pipes[comm->rank][call->root].receiver_ready;
        if (call->kind == RECEIVE) other = &world->pipes[call->root][comm->rank].sender_ready;
        if (other != NULL) result = world_wait(comm, other);
    }
    if (result != ncclSuccess || !collective || comm->connected) return result;
    atomic_store(&world->members[comm->rank].connected, true);
    for (int rank = 0; rank < comm->ranks && result == ncclSuccess; rank++) {
        result = world_wait(comm, &world->members[rank].connected);
    }
    comm->connected = result == ncclSuccess;
    return result;
}

// A rank can send to itself only what it receives in the same group.
static ncclResult_t check_self(ncclComm_t comm, const struct batch *batch) {
    int balance = 0;
    for (int i = 0; i < batch->count; i++) {
        if (batch->calls[i].root != comm->rank) continue;
        balance += batch->calls[i].kind == SEND;
        balance -= batch->calls[i].kind == RECEIVE;
    }
    if (balance == 0) return ncclSuccess;
    nccl_note("Trying to %s to self without a matching %s", balance > 0 ? "send" : "recv",
              balance > 0 ? "recv" : "send");
    return ncclInvalidUsage;
}

// `later` waits for what is in `sooner` now.
static bool order(const struct driver *driver, CUstream sooner, CUstream later) {
    CUevent event;
    if (driver->event_create(&event, CU_EVENT_DISABLE_TIMING) != CUDA_SUCCESS) return false;
    bool done = driver->event_record(event, sooner) == CUDA_SUCCESS &&
                driver->stream_wait(later, event, 0) == CUDA_SUCCESS;
    driver->event_destroy(event);
    return done;
}

// One kernel in the first call's stream; all streams of the group wait for each other.
static ncclResult_t launch(const struct batch *batch) {
    ncclComm_t comm = batch->comm;
    const struct driver *driver = nccl_driver();
    size_t calls = (size_t)batch->count * sizeof *batch->calls;
    struct kernel *kernel = malloc(sizeof *kernel + calls);
    if (kernel == NULL) return ncclSystemError;
    kernel->comm = comm;
    kernel->count = batch->count;
    memcpy(kernel->calls, batch->calls, calls);
    CUstream first = batch->calls[0].stream;
    bool done = true;
    for (int i = 1; i < batch->count && done; i++) {
        if (batch->calls[i].stream != first) done = order(driver, batch->calls[i].stream, first);
    }
    if (done) {
        atomic_fetch_add(&comm->kernels, 1);
        pthread_mutex_lock(&launching);
        kernel->ticket = atomic_fetch_add(&comm->share->launched, 1);
        done = driver->enqueue(first, kernel_run, kernel) == CUDA_SUCCESS;
        pthread_mutex_unlock(&launching);
        if (!done) nccl_mistake("a stream is gone between the call and its launch");
    } else {
        free(kernel);
    }
    for (int i = 1; i < batch->count && done; i++) {
        if (batch->calls[i].stream != first) done = order(driver, first, batch->calls[i].stream);
    }
    return done ? ncclSuccess : ncclUnhandledCudaError;
}

// Signals are for the program's own threads.
static bool start_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(thread, NULL, run, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static void *run_job(void *argument) {
    struct job *job = argument;
    const struct driver *driver = nccl_driver();
    if (driver != NULL) driver->set_current(job->comm->context);
    job->result = job->run(job);
    return NULL;
}

// Jobs of several communicators need each other: they run at the same time.
static ncclResult_t run_jobs(struct job *first) {
    if (first == NULL) return ncclSuccess;
    pthread_t threads[MAX_RANKS * 2];
    int count = 0;
    for (struct job *job = first->next; job != NULL && count < MAX_RANKS * 2; job = job->next) {
        if (!start_thread(&threads[count++], run_job, job)) return ncclSystemError;
    }
    run_job(first);
    while (count > 0) pthread_join(threads[--count], NULL);
    for (struct job *job = first; job != NULL; job = job->next) {
        if (job->result != ncclSuccess) return job->result;
    }
    return ncclSuccess;
}

static ncclResult_t run_group(struct group *group) {
    const struct driver *driver = nccl_driver();
    CUcontext before = NULL;
    if (driver != NULL) driver->get_current(&before);
    ncclResult_t result = run_jobs(group->jobs);
    for (struct batch *b = group->batches; b != NULL && result == ncclSuccess; b = b->next) {
        driver->set_current(b->comm->context);
        result = check_self(b->comm, b);
        if (result == ncclSuccess) result = connect(b->comm, b);
    }
    for (struct batch *b = group->batches; b != NULL && result == ncclSuccess; b = b->next) {
        driver->set_current(b->comm->context);
        result = launch(b);
    }
    if (driver != NULL) driver->set_current(before);
    return result;
}

// The communicators are told last: then they may be destroyed.
static void end_group(struct group *group, ncclResult_t result) {
    while (group->jobs != NULL) {
        struct job *job = group->jobs;
        group->jobs = job->next;
        if (!group->blocking) atomic_store(&job->comm->state, result);
        atomic_fetch_sub(&job->comm->jobs, 1);
        free(job);
    }
    while (group->batches != NULL) {
        struct batch *batch = group->batches;
        group->batches = batch->next;
        if (!group->blocking) atomic_store(&batch->comm->state, result);
        atomic_fetch_sub(&batch->comm->jobs, 1);
        free(batch->calls);
        free(batch);
    }
    free(group);
}

static void *group_main(void *group) {
    end_group(group, run_group(group));
    return NULL;
}

ncclResult_t nccl_group_end(void) {
    if (depth == 0) {
        nccl_note("ncclGroupEnd: not in a group call.");
        return ncclInvalidUsage;
    }
    if (--depth > 0) return ncclSuccess;
    ncclResult_t result = failed;
    struct group *group = calloc(1, sizeof *group);
    if (group == NULL) return ncclSystemError;
    *group = (struct group){jobs, batches, blocking != 0};
    failed = ncclSuccess;
    blocking = -1;
    jobs = NULL;
    batches = NULL;
    bool empty = group->jobs == NULL && group->batches == NULL;
    int begun = group->blocking || result != ncclSuccess ? -1 : ncclInProgress;
    for (struct job *job = group->jobs; job != NULL; job = job->next) {
        atomic_fetch_add(&job->comm->jobs, 1);
        if (begun >= 0) atomic_store(&job->comm->state, begun);
    }
    for (struct batch *batch = group->batches; batch != NULL; batch = batch->next) {
        atomic_fetch_add(&batch->comm->jobs, 1);
        if (begun >= 0) atomic_store(&batch->comm->state, begun);
    }
    if (result == ncclSuccess && !empty && !group->blocking) {
        pthread_t thread;
        if (start_thread(&thread, group_main, group)) {
            pthread_detach(thread);
            return ncclInProgress;
        }
        result = ncclSystemError;
    }
    if (result == ncclSuccess) result = run_group(group);
    end_group(group, result);
    return result;
}

EXPORT ncclResult_t ncclGroupStart(void) {
    nccl_group_start();
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupEnd(void) { return nccl_group_end(); }
