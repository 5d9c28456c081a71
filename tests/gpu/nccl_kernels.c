// What a collective does once its turn comes in the stream: wait for the peers, and move data
// through the shared memory. Ends at once where the communicator is aborted.
#include "nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *names[] = {"AllReduce", "ReduceScatter", "AllGather", "Broadcast",
                              "Reduce",    "Send",          "Recv"};

size_t kernel_type_size(int type) {
    switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32: return 4;
    default: return 8;
    }
}

static struct label label_of(const struct call *call) {
    bool pair = call->kind == SEND || call->kind == RECEIVE;
    return (struct label){pair ? SEND : call->kind, call->type, call->op, pair ? 0 : call->root,
                          call->count};
}

// False once aborted. A peer that is gone is for the caller to find out: nothing ends before that.
static bool wait(ncclComm_t comm, int *tries) {
    if (world_lost_one(comm, *tries)) atomic_store(&comm->failure, ncclRemoteError);
    return nccl_wait(comm, tries);
}

// The real one waits for ever or mixes up the data: a test that is about this asks for the first,
// for all others it is a mistake.
static bool compare(ncclComm_t comm, int peer, const struct label *theirs,
                    const struct call *call) {
    struct label mine = label_of(call);
    if (memcmp(&mine, theirs, sizeof mine) == 0) return true;
    if (nccl_setting("FAKE_NCCL_MISMATCH_HANGS", 0)) {
        int tries = 0;
        while (wait(comm, &tries)) {
        }
        return false;
    }
    nccl_mistake("rank %d calls %s (count %zu, type %d, op %d, root %d), but what rank %d calls is "
                 "%s (count %llu, type %d, op %d, root %d)",
                 comm->rank, names[call->kind], call->count, call->type, call->op, call->root, peer,
                 names[theirs->kind], (unsigned long long)theirs->count, theirs->type, theirs->op,
                 theirs->root);
    return false;
}

static bool publish(ncclComm_t comm, const struct call *call, const void *from, size_t bytes) {
    struct publisher *mine = &comm->world->publishers[comm->rank];
    uint64_t piece = atomic_load(&mine->published);
    for (int reader = 0; reader < comm->ranks; reader++) {
        int tries = 0;
        while (piece >= atomic_load(&mine->consumed[reader]) + SLOTS) {
            if (!wait(comm, &tries)) return false;
        }
    }
    mine->labels[piece % SLOTS] = label_of(call);
    memcpy(mine->data[piece % SLOTS], from, bytes);
    atomic_store(&mine->published, piece + 1);
    return true;
}

// The next piece of a rank; NULL where aborted.
static const void *next_of(ncclComm_t comm, const struct call *call, int peer) {
    struct publisher *theirs = &comm->world->publishers[peer];
    uint64_t piece = comm->next_piece[peer];
    int tries = 0;
    while (atomic_load(&theirs->published) <= piece) {
        if (!wait(comm, &tries)) return NULL;
    }
    if (!compare(comm, peer, &theirs->labels[piece % SLOTS], call)) return NULL;
    return theirs->data[piece % SLOTS];
}

static void done_with(ncclComm_t comm, int peer) {
    uint64_t read = ++comm->next_piece[peer];
    atomic_store(&comm->world->publishers[peer].consumed[comm->rank], read);
}

static bool publishes(const struct call *call, int rank) {
    return call->kind != BROADCAST || rank == call->root;
}

static bool wants(const struct call *call, int rank, int block) {
    switch (call->kind) {
    case REDUCE_SCATTER: return block == rank;
    case REDUCE: return call->root == rank;
    default: return true;
    }
}

// One piece of the same size from each rank. Every rank goes through the same ones.
static bool piece(ncclComm_t comm, const struct call *call, int block, size_t offset, size_t count,
                  char *sum) {
    size_t width = kernel_type_size(call->type);
    const char *from = call->from;
    char *to = (char *)call->to;
    if (publishes(call, comm->rank) &&
        !publish(comm, call, from + ((size_t)block * call->count + offset) * width,
                 count * width)) {
        return false;
    }
    bool wanted = wants(call, comm->rank, block), first = true;
    bool reduces = call->kind != ALL_GATHER && call->kind != BROADCAST;
    for (int peer = 0; peer < comm->ranks; peer++) {
        if (!publishes(call, peer)) continue;
        if (wanted) {
            const void *data = next_of(comm, call, peer);
            if (data == NULL) return false;
            if (reduces) {
                reduce_step(sum, data, count, call->type, call->op, first, comm->ranks);
            } else {
                size_t place = call->kind == ALL_GATHER ? (size_t)peer * call->count : 0;
                memcpy(to + (place + offset) * width, data, count * width);
            }
            first = false;
        }
        done_with(comm, peer);
    }
    if (wanted && reduces) {
        reduce_end(sum, count, call->type, call->op, comm->ranks);
        memcpy(to + offset * width, sum, count * width);
    }
    return true;
}

static bool collective(ncclComm_t comm, const struct call *call) {
    size_t width = kernel_type_size(call->type), most = PUBLISHED / width;
    int blocks = call->kind == REDUCE_SCATTER ? comm->ranks : 1;
    char *sum = malloc(PUBLISHED);
    bool going = sum != NULL;
    for (size_t offset = 0; going && offset < call->count; offset += most) {
        size_t count = call->count - offset < most ? call->count - offset : most;
        for (int block = 0; going && block < blocks; block++) {
            going = piece(comm, call, block, offset, count, sum);
        }
    }
    free(sum);
    return going;
}

struct transfer {
    const struct call *call;
    size_t bytes, moved;
    bool done;
};

// Moves one piece, where the peer lets it.
static bool move(ncclComm_t comm, struct transfer *transfer) {
    const struct call *call = transfer->call;
    bool sends = call->kind == SEND;
    struct pipe *pipe = sends ? &comm->world->pipes[comm->rank][call->root]
                              : &comm->world->pipes[call->root][comm->rank];
    uint64_t written = atomic_load(&pipe->written), read = atomic_load(&pipe->read);
    if (sends ? written - read == SLOTS : written == read) return false;
    size_t left = transfer->bytes - transfer->moved, bytes = left < SENT ? left : SENT;
    if (sends) {
        memcpy(pipe->data[written % SLOTS], (const char *)call->from + transfer->moved, bytes);
        pipe->labels[written % SLOTS] = label_of(call);
        atomic_store(&pipe->written, written + 1);
    } else {
        if (!compare(comm, call->root, &pipe->labels[read % SLOTS], call)) return false;
        memcpy((char *)call->to + transfer->moved, pipe->data[read % SLOTS], bytes);
        atomic_store(&pipe->read, read + 1);
    }
    transfer->moved += bytes;
    transfer->done = transfer->moved == transfer->bytes;
    return true;
}

// All of a group at once; those between the same two ranks one after another.
static bool transfers(ncclComm_t comm, const struct kernel *kernel) {
    struct transfer *all = calloc((size_t)kernel->count, sizeof *all);
    int count = 0;
    for (int i = 0; i < kernel->count; i++) {
        const struct call *call = &kernel->calls[i];
        if (call->kind != SEND && call->kind != RECEIVE) continue;
        size_t bytes = call->count * kernel_type_size(call->type);
        all[count++] = (struct transfer){call, bytes, 0, false};
    }
    bool going = true;
    for (int left = count, tries = 0; going && left > 0;) {
        bool moved = false;
        bool blocked[2][MAX_RANKS] = {{false}};
        for (int i = 0; i < count; i++) {
            if (all[i].done) continue;
            bool *before = &blocked[all[i].call->kind == SEND][all[i].call->root];
            if (!*before) moved |= move(comm, &all[i]);
            if (all[i].done) left--;
            else *before = true;
        }
        if (moved) tries = 0;
        else going = wait(comm, &tries);
    }
    free(all);
    return going;
}

static size_t times(const struct call *call, bool from, int ranks) {
    bool many = from ? call->kind == REDUCE_SCATTER : call->kind == ALL_GATHER;
    return many ? (size_t)ranks : 1;
}

// Memory can be freed between the call and its turn.
static void check_memory(ncclComm_t comm, const struct call *call) {
    size_t bytes = call->count * kernel_type_size(call->type);
    const struct driver *driver = nccl_driver();
    if (bytes > 0 && call->from != NULL &&
        !driver->holds(call->from, bytes * times(call, true, comm->ranks), comm->device)) {
        nccl_mistake("what %s reads was freed before its turn came", names[call->kind]);
    }
    if (bytes > 0 && call->to != NULL &&
        !driver->holds(call->to, bytes * times(call, false, comm->ranks), comm->device)) {
        nccl_mistake("what %s writes was freed before its turn came", names[call->kind]);
    }
}

// FAKE_NCCL_ASYNC_ERROR=RANK:RESULT:AFTER_CALLS
bool kernel_struck(ncclComm_t comm, long calls) {
    const char *text = getenv("FAKE_NCCL_ASYNC_ERROR");
    int rank, result;
    long after;
    if (text == NULL || sscanf(text, "%d:%d:%ld", &rank, &result, &after) != 3) return false;
    if (rank != comm->family->rank || calls < after) return false;
    if (atomic_exchange(&comm->failure, result) != result) {
        nccl_note("FAKE_NCCL_ASYNC_ERROR=%s", text);
    }
    return true;
}

void kernel_run(void *argument) {
    struct kernel *kernel = argument;
    ncclComm_t comm = kernel->comm;
    int tries = 0;
    bool going = true;
    while (going && atomic_load(&comm->share->ended) != kernel->ticket) {
        going = nccl_wait(comm, &tries);
    }
    long last = 0;
    bool pairs = false;
    for (int i = 0; i < kernel->count; i++) {
        const struct call *call = &kernel->calls[i];
        // As with the real one, nothing ends any more after an error.
        for (tries = 0; going && kernel_struck(comm, call->number - 1);) {
            going = nccl_wait(comm, &tries);
        }
        if (going) check_memory(comm, call);
        if (call->kind == SEND || call->kind == RECEIVE) pairs = true;
        else if (going) going = collective(comm, call);
        last = call->number;
    }
    if (going && pairs) going = transfers(comm, kernel);
    if (going) kernel_struck(comm, last);
    atomic_fetch_add(&comm->share->ended, 1);
    // The last thing: who aborts waits for this, and then takes it all away.
    atomic_fetch_sub(&comm->kernels, 1);
    free(kernel);
}
