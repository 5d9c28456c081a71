// How communicators begin and end, also when a rank is stuck, dead or mistaken.
#include "check.h"

#include <string.h>
#include <unistd.h>

static char *ones(void) {
    float value[4] = {1, 1, 1, 1};
    return upload(value, sizeof value);
}

static ncclResult_t sum(ncclComm_t comm, char *memory) {
    return ncclAllReduce(memory, memory, 4, ncclFloat32, ncclSum, comm, stream);
}

// It may be through already.
static bool begun(ncclResult_t result) {
    return result == ncclSuccess || result == ncclInProgress;
}

// Not only because its thread has not started yet.
static void stays_in_progress(ncclComm_t comm) {
    ncclResult_t state;
    for (int i = 0; i < 20; i++) {
        NCCL(ncclCommGetAsyncError(comm, &state));
        CHECK(state == ncclInProgress);
        usleep(200);
    }
}

static void warm_up(ncclComm_t comm, char *memory) {
    CHECK(begun(sum(comm, memory)));
    NCCL(settle(comm));
    CUDA(cuStreamSynchronize(stream));
}

// Two ranks: what is begun while a peer is not there yet.
void check_progress(void) {
    use_device(my_rank);
    ncclConfig_t how = config(0, 0);
    ncclComm_t comm;
    ncclResult_t state;
    if (my_rank == 0) {
        CHECK(begin_world(&comm, &how) == ncclInProgress);
        stays_in_progress(comm);
        int count;
        CHECK(ncclCommCount(comm, &count) == ncclInvalidArgument);
        CHECK(strstr(ncclGetLastError(comm), "previous operation") != NULL);
        CHECK(ncclCommDestroy(comm) == ncclInvalidArgument);
        meet();
    } else {
        meet();
        begin_world(&comm, &how);
    }
    NCCL(settle(comm));
    // A split is complete once all are there, and has no result before.
    ncclComm_t child = NULL;
    if (my_rank == 0) {
        NCCL(ncclCommSplit(comm, 0, 1, &child, NULL));
        stays_in_progress(comm);
        CHECK(__atomic_load_n(&child, __ATOMIC_ACQUIRE) == NULL);
        meet();
    } else {
        meet();
        NCCL(ncclCommSplit(comm, 0, 0, &child, NULL));
    }
    NCCL(settle(comm));
    int rank;
    NCCL(ncclCommUserRank(child, &rank));
    // By key.
    CHECK(rank == 1 - my_rank);
    // The first call connects, and is in progress until the peer calls too.
    char *memory = ones();
    if (my_rank == 0) {
        CHECK(sum(child, memory) == ncclInProgress);
        stays_in_progress(child);
        CHECK(sum(child, memory) == ncclInvalidArgument);
        meet();
    } else {
        meet();
        sum(child, memory);
    }
    // What was mistaken in between shows until the first call is through.
    do NCCL(ncclCommGetAsyncError(child, &state));
    while (state != ncclSuccess);
    float values[4];
    download(values, memory, sizeof values);
    CHECK(values[3] == 2);
    CHECK(begun(ncclCommFinalize(child)));
    NCCL(settle(child));
    NCCL(ncclCommDestroy(child));
    NCCL(ncclCommDestroy(comm));
}

// One rank: what never ends, but for an abort.
void check_hangs(void) {
    setenv("FAKE_NCCL_SPLIT_HANGS", "1", 1);
    use_device(0);
    ncclComm_t parent = connect_world(0, 0), child = NULL;
    NCCL(ncclCommSplit(parent, 0, 0, &child, NULL));
    stays_in_progress(parent);
    NCCL(ncclCommAbort(parent));
    setenv("FAKE_NCCL_INIT_HANGS", "1", 1);
    ncclConfig_t how = config(0, 0);
    CHECK(begin_world(&parent, &how) == ncclInProgress);
    stays_in_progress(parent);
    NCCL(ncclCommAbort(parent));
}

// Two ranks: a kernel whose peer does not come ends by an abort, which the peer does not notice.
void check_stuck(void) {
    use_device(my_rank);
    ncclComm_t comm = connect_world(0, 0);
    char *memory = ones();
    warm_up(comm, memory);
    ncclResult_t state;
    if (my_rank == 0) {
        CHECK(begun(sum(comm, memory)));
        NCCL(settle(comm));
        for (int i = 0; i < 20; i++) {
            CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
            NCCL(ncclCommGetAsyncError(comm, &state));
            NCCL(state);
            usleep(500);
        }
        NCCL(ncclCommAbort(comm));
        CUDA(cuStreamSynchronize(stream));
        meet();
    } else {
        meet();
        NCCL(ncclCommGetAsyncError(comm, &state));
        NCCL(state);
        // Two pieces of the other are still there; the third never comes.
        for (int i = 0; i < 3; i++) {
            sum(comm, memory);
            NCCL(settle(comm));
        }
        CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
        NCCL(ncclCommAbort(comm));
        CUDA(cuStreamSynchronize(stream));
    }
}

// Two ranks: a child that shares with its parent ends with it, and one that does not, does not.
void check_share(void) {
    use_device(my_rank);
    for (int share = 0; share < 2; share++) {
        meet();
        atomic_store(&shared->has_id, false);
        meet();
        ncclComm_t parent = connect_world(0, share), child = NULL;
        NCCL(ncclCommSplit(parent, 0, my_rank, &child, NULL));
        NCCL(settle(parent));
        char *memory = ones();
        warm_up(child, memory);
        if (my_rank == 0) {
            sum(child, memory);
            NCCL(settle(child));
            CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
            NCCL(ncclCommAbort(parent));
            if (share) {
                CUDA(cuStreamSynchronize(stream));
                // It is still there, and whatever it is given ends.
                sum(child, memory);
                NCCL(settle(child));
                CUDA(cuStreamSynchronize(stream));
            } else {
                usleep(2000);
                CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
            }
        } else {
            NCCL(ncclCommAbort(parent));
        }
        meet();
        NCCL(ncclCommAbort(child));
        CUDA(cuStreamSynchronize(stream));
    }
}

// Four ranks: two communicators and one rank without, of a parent that blocks.
void check_colors(void) {
    use_device(my_rank);
    ncclComm_t parent = connect_world(1, 0), child = (ncclComm_t)&parent;
    int color = my_rank == 3 ? NCCL_SPLIT_NOCOLOR : my_rank % 2;
    NCCL(ncclCommSplit(parent, color, -my_rank, &child, NULL));
    CHECK((child == NULL) == (my_rank == 3));
    if (child != NULL) {
        int rank, count;
        NCCL(ncclCommCount(child, &count));
        NCCL(ncclCommUserRank(child, &rank));
        CHECK(count == (my_rank == 1 ? 1 : 2));
        CHECK(rank == (my_rank == 0 ? 1 : 0));
        char *memory = ones();
        warm_up(child, memory);
        float values[4];
        download(values, memory, sizeof values);
        CHECK(values[0] == (float)count);
        NCCL(ncclCommDestroy(child));
    }
    for (int i = 0; i < 5; i++) {
        NCCL(ncclCommSplit(parent, 0, 0, &child, NULL));
        NCCL(ncclCommDestroy(child));
    }
    NCCL(ncclCommDestroy(parent));
}

static ncclComm_t survive(char **memory) {
    use_device(my_rank);
    ncclComm_t comm = connect_world(0, 0);
    *memory = ones();
    warm_up(comm, *memory);
    meet();
    if (my_rank == 1) _exit(0);
    CHECK(begun(sum(comm, *memory)));
    return comm;
}

// Two ranks, of which one dies: the other waits for it.
void check_dead(void) {
    char *memory;
    ncclComm_t comm = survive(&memory);
    NCCL(settle(comm));
    for (int i = 0; i < 20; i++) {
        NCCL(settle(comm));
        CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
        usleep(500);
    }
    NCCL(ncclCommAbort(comm));
    CUDA(cuStreamSynchronize(stream));
}

// The same where a test wants it to be noticed.
void check_noticed(void) {
    setenv("FAKE_NCCL_REMOTE_ERROR", "1", 1);
    char *memory;
    ncclResult_t state;
    ncclComm_t comm = survive(&memory);
    do NCCL(ncclCommGetAsyncError(comm, &state));
    while (state == ncclSuccess || state == ncclInProgress);
    CHECK(state == ncclRemoteError);
    CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
    CHECK(sum(comm, memory) == ncclRemoteError);
    NCCL(ncclCommAbort(comm));
    CUDA(cuStreamSynchronize(stream));
}

// Two ranks: the errors that a test asks for.
void check_errors(void) {
    setenv("FAKE_NCCL_CALL_ERROR", "1:3:2", 1);
    setenv("FAKE_NCCL_ASYNC_ERROR", "0:2:3", 1);
    setenv("FAKE_NCCL_CONNECT", "eager", 1);
    use_device(my_rank);
    ncclComm_t comm = connect_world(0, 0);
    char *memory = ones();
    ncclResult_t state;
    warm_up(comm, memory);
    if (my_rank == 1) {
        CHECK(sum(comm, memory) == ncclInternalError);
        CHECK(strstr(ncclGetLastError(comm), "1:3:2") != NULL);
        NCCL(ncclCommAbort(comm));
        return;
    }
    // The second call's peer does not come, but a piece can be sent ahead.
    char *more = ones();
    CHECK(begun(ncclBroadcast(memory, more, 4, ncclFloat32, 0, comm, stream)));
    NCCL(settle(comm));
    ncclBroadcast(memory, more, 4, ncclFloat32, 0, comm, stream);
    do NCCL(ncclCommGetAsyncError(comm, &state));
    while (state == ncclSuccess || state == ncclInProgress);
    CHECK(state == ncclSystemError);
    NCCL(ncclCommAbort(comm));
    CUDA(cuStreamSynchronize(stream));
}

// Two ranks on one GPU, and the same on what the environment says are two hosts.
void check_duplicate(void) {
    use_device(0);
    for (int blocking = 0; blocking < 2; blocking++) {
        ncclComm_t comm;
        ncclConfig_t how = config(blocking, 0);
        ncclResult_t result = begin_world(&comm, &how);
        if (!blocking) result = settle(comm);
        CHECK(result == ncclInvalidUsage);
        CHECK(strstr(ncclGetLastError(NULL), "Duplicate GPU detected") != NULL);
        NCCL(ncclCommAbort(comm));
        meet();
        atomic_store(&shared->has_id, false);
        meet();
    }
    setenv("NCCL_HOSTID", my_rank == 0 ? "first" : "second", 1);
    ncclComm_t comm = connect_world(1, 0);
    warm_up(comm, ones());
    NCCL(ncclCommDestroy(comm));
}

static void refused(ncclConfig_t how, ncclResult_t wanted) {
    ncclComm_t comm = (ncclComm_t)&how;
    ncclUniqueId id;
    NCCL(ncclGetUniqueId(&id));
    CHECK(ncclCommInitRankConfig(&comm, 1, id, 0, &how) == wanted);
    CHECK(comm == NULL);
}

// One rank.
void check_configs(void) {
    int version;
    NCCL(ncclGetVersion(&version));
    CHECK(version == 22809);
    setenv("FAKE_NCCL_VERSION", "21403", 1);
    NCCL(ncclGetVersion(&version));
    CHECK(version == 21403);
    use_device(0);
    ncclConfig_t how = config(0, 0);
    how.magic = 1;
    refused(how, ncclInvalidArgument);
    how = config(2, 0);
    refused(how, ncclInvalidArgument);
    how = config(0, 7);
    refused(how, ncclInvalidArgument);
    how = config(0, 0);
    how.minCTAs = 4;
    how.maxCTAs = 2;
    refused(how, ncclInvalidArgument);
    how = config(0, 0);
    how.size = 8;
    refused(how, ncclInvalidArgument);

    ncclComm_t comm;
    ncclUniqueId id, none = {{0}};
    CHECK(ncclCommInitRankConfig(&comm, 1, none, 0, NULL) == ncclInvalidArgument);
    NCCL(ncclGetUniqueId(&id));
    CHECK(ncclCommInitRankConfig(&comm, 2, id, 2, NULL) == ncclInvalidArgument);
    // An old config is one that does not know of what came later: it blocks by its version.
    how = config(0, 0);
    how.version = 21000;
    NCCL(ncclCommInitRankConfig(&comm, 1, id, 0, &how));
    char *memory = ones();
    NCCL(sum(comm, memory));
    CHECK(ncclBroadcast(memory, memory, 4, ncclFloat32, 1, comm, stream) == ncclInvalidArgument);
    CHECK(ncclAllReduce(memory, memory, 4, 77, ncclSum, comm, stream) == ncclInvalidArgument);
    CHECK(ncclAllReduce(memory, memory, 4, ncclInt8, 9, comm, stream) == ncclInvalidArgument);
    CHECK(sum(NULL, memory) == ncclInvalidArgument);
    CHECK(ncclGroupEnd() == ncclInvalidUsage);
    // An id is good once.
    ncclComm_t again;
    how = config(1, 0);
    CHECK(ncclCommInitRankConfig(&again, 1, id, 0, &how) == ncclRemoteError);
    // Communicators that block and such that do not are not for one group.
    ncclUniqueId other;
    NCCL(ncclGetUniqueId(&other));
    how = config(0, 0);
    ncclComm_t loose;
    ncclCommInitRankConfig(&loose, 1, other, 0, &how);
    NCCL(settle(loose));
    NCCL(ncclGroupStart());
    sum(comm, memory);
    sum(loose, memory);
    CHECK(ncclGroupEnd() == ncclInvalidArgument);
    NCCL(ncclCommAbort(loose));
    CUDA(cuStreamSynchronize(stream));
    NCCL(ncclCommDestroy(comm));
}

// Two ranks: a process whose stream is stuck can still end.
void check_exit(void) {
    use_device(my_rank);
    ncclComm_t comm = connect_world(1, 0);
    char *memory = ones();
    warm_up(comm, memory);
    if (my_rank == 0) NCCL(sum(comm, memory));
    meet();
}
