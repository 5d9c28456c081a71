// The calls that move data: what they check before they are put into the group.
#include "nccl.h"

#include <stdio.h>
#include <stdlib.h>

static void overlap(const char *function, const void *from, size_t from_bytes, const void *to,
                    size_t to_bytes) {
    const char *a = from, *b = to;
    if (a < b + to_bytes && b < a + from_bytes) {
        nccl_mistake("%s: the buffers overlap, but not as in place", function);
    }
}

// What the real one leaves to the GPU, which would write into the wrong place or fault.
static void check_buffers(ncclComm_t comm, const char *function, const struct call *call) {
    size_t bytes = call->count * kernel_type_size(call->type);
    if (bytes == 0) return;
    size_t many = bytes * (size_t)comm->ranks, own = bytes * (size_t)comm->rank;
    size_t from_bytes = call->kind == REDUCE_SCATTER ? many : bytes;
    size_t to_bytes = call->kind == ALL_GATHER ? many : bytes;
    const struct driver *driver = nccl_driver();
    if (call->kind != RECEIVE && (call->kind != BROADCAST || call->root == comm->rank) &&
        !driver->holds(call->from, from_bytes, comm->device)) {
        nccl_mistake("%s: %zu bytes at %p are not memory of device %d", function, from_bytes,
                     call->from, comm->device);
    }
    if (call->kind != SEND && (call->kind != REDUCE || call->root == comm->rank) &&
        !driver->holds(call->to, to_bytes, comm->device)) {
        nccl_mistake("%s: %zu bytes at %p are not memory of device %d", function, to_bytes,
                     call->to, comm->device);
    }
    if (call->from == NULL || call->to == NULL) return;
    const char *from = call->from, *to = call->to;
    bool in_place = call->kind == ALL_GATHER       ? from == to + own
                    : call->kind == REDUCE_SCATTER ? to == from + own
                                                   : from == to;
    if (!in_place) overlap(function, from, from_bytes, to, to_bytes);
}

static ncclResult_t check_arguments(ncclComm_t comm, const char *function,
                                    const struct call *call) {
    if (call->root < 0 || call->root >= comm->ranks) {
        nccl_note("%s : invalid root %d (root should be in the 0..%d range)", function, call->root,
                  comm->ranks);
        return ncclInvalidArgument;
    }
    if (call->type < 0 || call->type >= ncclNumTypes) {
        nccl_note("%s : invalid type %d", function, call->type);
        return ncclInvalidArgument;
    }
    if (call->op < 0 || call->op >= ncclNumOps) {
        nccl_note("%s : reduction operation %d unknown to this communicator", function, call->op);
        return ncclInvalidArgument;
    }
    return ncclSuccess;
}

static ncclResult_t asked_error(ncclComm_t comm, long number) {
    const char *text = getenv("FAKE_NCCL_CALL_ERROR");
    int rank, result;
    long call;
    if (text == NULL || sscanf(text, "%d:%d:%ld", &rank, &result, &call) != 3) return ncclSuccess;
    if (rank != comm->family->rank || call != number) return ncclSuccess;
    nccl_note("FAKE_NCCL_CALL_ERROR=%s", text);
    return (ncclResult_t)result;
}

static void check_stream(ncclComm_t comm, const char *function, CUstream stream) {
    const struct driver *driver = nccl_driver();
    int current = driver->current_device();
    if (current != comm->device) {
        nccl_mistake("%s: the communicator's device is %d, but that of this thread's context is %d",
                     function, comm->device, current);
    }
    int device = driver->stream_device(stream);
    if (device != comm->device) {
        nccl_mistake("%s: the communicator's device is %d, but that of the stream is %d", function,
                     comm->device, device);
    }
    // It would be that of the thread which launches.
    if (!comm->config.blocking && stream == CU_STREAM_PER_THREAD) {
        nccl_mistake("%s: the stream of a thread on a communicator that does not block", function);
    }
    if (!comm->usable) nccl_mistake("%s on a communicator that failed", function);
    if (comm->finalized) nccl_mistake("%s after ncclCommFinalize", function);
}

static ncclResult_t issue(ncclComm_t comm, const char *function, struct call *call) {
    if (comm == NULL) {
        nccl_note("%s : comm argument is NULL", function);
        return ncclInvalidArgument;
    }
    nccl_enter(comm, function, true);
    nccl_group_start();
    ncclResult_t result = nccl_ready(comm);
    if (result == ncclSuccess) check_stream(comm, function, call->stream);
    if (result == ncclSuccess) result = check_arguments(comm, function, call);
    if (result == ncclSuccess) {
        call->number = atomic_fetch_add(&comm->family->calls, 1) + 1;
        result = asked_error(comm, call->number);
    }
    if (result == ncclSuccess) check_buffers(comm, function, call);
    // What only others need is not touched.
    if (call->kind == BROADCAST && call->root != comm->rank) call->from = NULL;
    if (call->kind == REDUCE && call->root != comm->rank) call->to = NULL;
    bool pair = call->kind == SEND || call->kind == RECEIVE;
    if (result == ncclSuccess && (call->count > 0 || pair)) result = nccl_group_call(comm, call);
    result = nccl_outcome(comm, result);
    nccl_leave(comm, true);
    return result;
}

EXPORT ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                                  ncclRedOp_t op, ncclComm_t comm, CUstream stream) {
    struct call call = {ALL_REDUCE, (int)type, (int)op, 0, count, 0, from, to, stream};
    return issue(comm, __func__, &call);
}

EXPORT ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count,
                                      ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                                      CUstream stream) {
    struct call call = {REDUCE_SCATTER, (int)type, (int)op, 0, count, 0, from, to, stream};
    return issue(comm, __func__, &call);
}

EXPORT ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                                  ncclComm_t comm, CUstream stream) {
    struct call call = {ALL_GATHER, (int)type, ncclSum, 0, count, 0, from, to, stream};
    return issue(comm, __func__, &call);
}

EXPORT ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type,
                                  int root, ncclComm_t comm, CUstream stream) {
    struct call call = {BROADCAST, (int)type, ncclSum, root, count, 0, from, to, stream};
    return issue(comm, __func__, &call);
}

EXPORT ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, int root, ncclComm_t comm, CUstream stream) {
    struct call call = {REDUCE, (int)type, (int)op, root, count, 0, from, to, stream};
    return issue(comm, __func__, &call);
}

EXPORT ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t comm, CUstream stream) {
    struct call call = {SEND, (int)type, ncclSum, peer, count, 0, from, NULL, stream};
    return issue(comm, __func__, &call);
}

EXPORT ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t comm, CUstream stream) {
    struct call call = {RECEIVE, (int)type, ncclSum, peer, count, 0, NULL, to, stream};
    return issue(comm, __func__, &call);
}
