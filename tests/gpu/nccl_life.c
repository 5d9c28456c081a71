// The life of a communicator: made from a unique id or split off, asked how it is, and ended.
#include "nccl.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// All that there ever were: they are small, and a call on one that is gone must be found.
static struct ncclComm *comms;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void nccl_enter(ncclComm_t comm, const char *function, bool alone) {
    pthread_mutex_lock(&lock);
    struct ncclComm *found = comms;
    while (found != NULL && found != comm) found = found->next;
    if (found == NULL) nccl_mistake("%s: %p is no communicator", function, (void *)comm);
    if (comm->gone != NULL) nccl_mistake("%s after %s", function, comm->gone);
    if (alone && comm->busy) {
        nccl_mistake("%s while another thread is inside a call of this communicator", function);
    }
    comm->inside++;
    if (alone) comm->busy = true;
    pthread_mutex_unlock(&lock);
}

void nccl_leave(ncclComm_t comm, bool alone) {
    pthread_mutex_lock(&lock);
    comm->inside--;
    if (alone) comm->busy = false;
    pthread_mutex_unlock(&lock);
}

// The end of it: nobody else may be inside, and nobody may come in any more.
static void enter_last(ncclComm_t comm, const char *function) {
    nccl_enter(comm, function, false);
    pthread_mutex_lock(&lock);
    if (--comm->inside > 0) {
        nccl_mistake("%s while another thread is inside a call of this communicator", function);
    }
    comm->gone = function;
    pthread_mutex_unlock(&lock);
}

bool nccl_wait(ncclComm_t comm, int *tries) {
    if (atomic_load(&comm->share->aborted)) return false;
    if (comm->parent != NULL && atomic_load(&comm->parent->aborted)) return false;
    // More processes than cores: the others have to get on too.
    if ((*tries)++ < 20) {
        sched_yield();
    } else {
        struct timespec pause = {0, *tries < 1000 ? 50000 : 500000};
        nanosleep(&pause, NULL);
    }
    return true;
}

static ncclResult_t state_of(ncclComm_t comm) {
    int state = atomic_load(&comm->state);
    return (ncclResult_t)(state == ncclSuccess ? atomic_load(&comm->failure) : state);
}

ncclResult_t nccl_ready(ncclComm_t comm) {
    if (atomic_load(&comm->share->aborted)) {
        while (atomic_load(&comm->jobs) > 0) sched_yield();
        return ncclSuccess;
    }
    ncclResult_t state = state_of(comm);
    if (state == ncclInProgress) {
        nccl_note("Attempt to use communicator before the previous operation returned ncclSuccess");
        return ncclInvalidArgument;
    }
    return state;
}

ncclResult_t nccl_outcome(ncclComm_t comm, ncclResult_t result) {
    nccl_group_failed(result);
    if (result != ncclSuccess && !comm->config.blocking) atomic_store(&comm->state, result);
    ncclResult_t end = nccl_group_end();
    if (!comm->config.blocking) {
        if (end != ncclSuccess && end != ncclInProgress) return end;
        return state_of(comm);
    }
    return end != ncclSuccess ? end : result;
}

static ncclResult_t refuse(const char *attribute, int value) {
    nccl_note("Invalid config %s attribute value %d", attribute, value);
    return ncclInvalidArgument;
}

static bool is_flag(int value) {
    return value == NCCL_CONFIG_UNDEF_INT || value == 0 || value == 1;
}

static ncclResult_t read_config(ncclConfig_t *own, const ncclConfig_t *given) {
    static const ncclConfig_t none = {
        sizeof(ncclConfig_t), NCCL_API_MAGIC,        22809,
        NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT,
        NCCL_CONFIG_UNDEF_INT, NULL,                  NCCL_CONFIG_UNDEF_INT,
        NCCL_CONFIG_UNDEF_INT, NULL,                  NCCL_CONFIG_UNDEF_INT,
        NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT,
        NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT,
    };
    *own = none;
    if (given != NULL) {
        // Of an older or newer one, what both know.
        own->magic = 0;
        memcpy(own, given, given->size < sizeof *own ? given->size : sizeof *own);
        if (own->magic != NCCL_API_MAGIC) {
            nccl_note("ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
            return ncclInvalidArgument;
        }
        if (own->version < 21400) own->blocking = none.blocking;
        if (own->version < 21700) {
            own->cgaClusterSize = own->minCTAs = own->maxCTAs = NCCL_CONFIG_UNDEF_INT;
            own->netName = NULL;
        }
    }
    if (!is_flag(own->blocking)) return refuse("blocking", own->blocking);
    if (own->cgaClusterSize != NCCL_CONFIG_UNDEF_INT && own->cgaClusterSize < 0) {
        return refuse("cgaClusterSize", own->cgaClusterSize);
    }
    bool min = own->minCTAs != NCCL_CONFIG_UNDEF_INT, max = own->maxCTAs != NCCL_CONFIG_UNDEF_INT;
    if ((min && own->minCTAs <= 0) || (max && own->maxCTAs <= 0) || own->minCTAs > own->maxCTAs) {
        return refuse("min/max channels", own->minCTAs);
    }
    if (!is_flag(own->splitShare)) return refuse("splitShare", own->splitShare);
    if (own->blocking == NCCL_CONFIG_UNDEF_INT) own->blocking = 1;
    if (own->splitShare == NCCL_CONFIG_UNDEF_INT) own->splitShare = 0;
    return ncclSuccess;
}

static ncclComm_t new_comm(struct share *share, struct family *family) {
    ncclComm_t comm = calloc(1, sizeof *comm);
    if (comm == NULL) return NULL;
    comm->fd = -1;
    comm->share = share != NULL ? share : calloc(1, sizeof *comm->share);
    comm->family = family != NULL ? family : calloc(1, sizeof *comm->family);
    if (comm->share == NULL || comm->family == NULL) abort();
    atomic_fetch_add(&comm->share->holders, 1);
    atomic_fetch_add(&comm->family->holders, 1);
    return comm;
}

static void let_go(ncclComm_t comm) {
    world_leave(comm);
    if (atomic_fetch_sub(&comm->share->holders, 1) == 1) free(comm->share);
    if (atomic_fetch_sub(&comm->family->holders, 1) == 1) free(comm->family);
}

static void enlist(ncclComm_t comm) {
    pthread_mutex_lock(&lock);
    comm->next = comms;
    comms = comm;
    pthread_mutex_unlock(&lock);
}

static void hang(ncclComm_t comm, const char *setting) {
    if (nccl_setting(setting, 0) == 0) return;
    for (int tries = 0; nccl_wait(comm, &tries);) {
    }
}

static ncclResult_t init_job(struct job *job) {
    hang(job->comm, "FAKE_NCCL_INIT_HANGS");
    ncclResult_t result = world_join(job->comm, job->path);
    job->comm->usable = result == ncclSuccess;
    if (job->comm->usable) kernel_struck(job->comm, 0);
    return result;
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                           ncclConfig_t *config) {
    const struct driver *driver = nccl_driver();
    if (driver == NULL) return ncclUnhandledCudaError;
    if (driver->current_device() < 0) {
        nccl_mistake("%s: this thread has no CUDA context; the real one takes device 0", __func__);
    }
    if (out == NULL) return ncclInvalidArgument;
    *out = NULL;
    struct job *job = calloc(1, sizeof *job);
    ncclComm_t comm = new_comm(NULL, NULL);
    if (job == NULL || comm == NULL) return ncclSystemError;
    ncclResult_t result = read_config(&comm->config, config);
    if (result == ncclSuccess && (ranks < 1 || rank < 0 || rank >= ranks || ranks > MAX_RANKS)) {
        nccl_note("Invalid rank requested : %d/%d", rank, ranks);
        result = ncclInvalidArgument;
    }
    if (result == ncclSuccess) result = world_of_id(&id, job->path);
    if (result != ncclSuccess) {
        let_go(comm);
        free(comm);
        free(job);
        return result;
    }
    comm->rank = comm->family->rank = rank;
    comm->ranks = ranks;
    comm->device = driver->current_device();
    // As the runtime that the real one brings: it never lets go of it.
    driver->retain(&comm->context, comm->device);
    enlist(comm);
    nccl_enter(comm, __func__, true);
    nccl_group_start();
    job->comm = comm;
    job->run = init_job;
    // Before it is ready: an abort needs it.
    *out = comm;
    result = nccl_outcome(comm, nccl_group_job(job));
    nccl_leave(comm, true);
    return result;
}

static ncclResult_t split_job(struct job *job) {
    hang(job->comm, "FAKE_NCCL_SPLIT_HANGS");
    ncclComm_t child = job->child;
    ncclResult_t result = world_split(job->comm, job);
    if (child != NULL) {
        if (result == ncclSuccess) result = world_join(child, job->path);
        child->parent = NULL;
        child->usable = result == ncclSuccess;
    }
    // Also where it failed, as with the real one: then it can only be aborted.
    __atomic_store_n(job->out, child, __ATOMIC_RELEASE);
    return result;
}

static ncclResult_t start_split(ncclComm_t comm, int color, int key, ncclComm_t *out,
                                const ncclConfig_t *config) {
    ncclComm_t child = NULL;
    if (color != NCCL_SPLIT_NOCOLOR) {
        child = new_comm(comm->config.splitShare ? comm->share : NULL, comm->family);
        if (child == NULL) return ncclSystemError;
        child->config = comm->config;
        ncclResult_t result = config == NULL ? ncclSuccess : read_config(&child->config, config);
        if (result != ncclSuccess) {
            let_go(child);
            free(child);
            return result;
        }
        child->device = comm->device;
        child->context = comm->context;
        child->parent = comm->share;
        enlist(child);
    }
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL) return ncclSystemError;
    *job = (struct job){.comm = comm, .run = split_job, .child = child, .out = out, .color = color,
                        .key = key};
    return nccl_group_job(job);
}

EXPORT ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                                  ncclConfig_t *config) {
    if (comm == NULL || out == NULL) return ncclInvalidArgument;
    nccl_enter(comm, __func__, true);
    nccl_group_start();
    ncclResult_t result = nccl_ready(comm);
    if (result == ncclSuccess) {
        if (!comm->usable) nccl_mistake("%s on a communicator that failed", __func__);
        *out = NULL;
        result = start_split(comm, color, key, out, config);
    }
    nccl_group_failed(result);
    ncclResult_t end = nccl_group_end();
    nccl_leave(comm, true);
    // The real one says ncclSuccess here, also where the split has only begun.
    return end != ncclSuccess && end != ncclInProgress ? end : result;
}

static ncclResult_t finalize_job(struct job *job) {
    for (int tries = 0; atomic_load(&job->comm->kernels) > 0;) {
        if (!nccl_wait(job->comm, &tries)) break;
    }
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (comm == NULL) return ncclSuccess;
    nccl_enter(comm, __func__, true);
    nccl_group_start();
    ncclResult_t result = nccl_ready(comm);
    if (result == ncclSuccess && comm->finalized) result = ncclInvalidArgument;
    struct job *job = result == ncclSuccess ? calloc(1, sizeof *job) : NULL;
    if (job != NULL) {
        comm->finalized = true;
        job->comm = comm;
        job->run = finalize_job;
        result = nccl_group_job(job);
    }
    result = nccl_outcome(comm, result);
    nccl_leave(comm, true);
    return result;
}

static void reclaim(ncclComm_t comm) {
    struct timespec pause = {0, 50000};
    while (atomic_load(&comm->jobs) > 0 || atomic_load(&comm->kernels) > 0) nanosleep(&pause, NULL);
    let_go(comm);
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (comm == NULL) return ncclSuccess;
    enter_last(comm, __func__);
    ncclResult_t result = nccl_ready(comm);
    if (result != ncclSuccess) {
        comm->gone = NULL;
        return result;
    }
    int kernels = atomic_load(&comm->kernels);
    if (kernels > 0 && !comm->finalized && !atomic_load(&comm->share->aborted)) {
        nccl_mistake("%s with %d calls outstanding", __func__, kernels);
    }
    reclaim(comm);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t comm) {
    if (comm == NULL) return ncclSuccess;
    enter_last(comm, __func__);
    atomic_store(&comm->share->aborted, true);
    reclaim(comm);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result) {
    if (comm == NULL || result == NULL) return ncclInvalidArgument;
    nccl_enter(comm, __func__, false);
    *result = state_of(comm);
    nccl_leave(comm, false);
    return ncclSuccess;
}

static ncclResult_t ask(ncclComm_t comm, const char *function, const int *field, int *out) {
    if (comm == NULL || out == NULL) return ncclInvalidArgument;
    nccl_enter(comm, function, false);
    ncclResult_t result = nccl_ready(comm);
    if (result == ncclSuccess) *out = *field;
    nccl_leave(comm, false);
    return result;
}

EXPORT ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
    return ask(comm, __func__, comm == NULL ? NULL : &comm->ranks, count);
}

EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
    return ask(comm, __func__, comm == NULL ? NULL : &comm->rank, rank);
}

EXPORT ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
    return ask(comm, __func__, comm == NULL ? NULL : &comm->device, device);
}
