// Whether the collectives compute what they should.
#include "check.h"

#include <string.h>

static const int types[] = {ncclInt8,   ncclUint8,   ncclInt32,   ncclUint32,  ncclInt64,
                            ncclUint64, ncclFloat16, ncclFloat32, ncclFloat64, ncclBfloat16};

static bool is_signed(int type) {
    return type != ncclUint8 && type != ncclUint32 && type != ncclUint64;
}

static bool is_whole(int type) { return type <= ncclUint64; }

// Small, so that every sum, product and average is exact in every type.
static double input(int rank, size_t index, int type) {
    double value = (double)((index * 7 + (size_t)rank * 3 + index / 5) % 4);
    return is_signed(type) ? value - 2 : value;
}

static double expected(size_t index, int type, int op) {
    double result = input(0, index, type);
    for (int rank = 1; rank < my_ranks; rank++) {
        double value = input(rank, index, type);
        switch (op) {
        case ncclProd: result *= value; break;
        case ncclMax: result = value > result ? value : result; break;
        case ncclMin: result = value < result ? value : result; break;
        default: result += value;
        }
    }
    if (op != ncclAvg) return result;
    return is_whole(type) ? (double)((long)result / my_ranks) : result / my_ranks;
}

// `blocks` blocks of `count`, of which each rank has its own values.
static char *filled(int rank, size_t count, int type) {
    char *host = malloc(count * 8 + 1);
    for (size_t i = 0; i < count; i++) encode(host, i, type, input(rank, i, type));
    char *device = upload(host, count * 8 + 1);
    free(host);
    return device;
}

static char *empty(size_t count) {
    CUdeviceptr memory;
    CUDA(cuMemAlloc_v2(&memory, count * 8 + 1));
    return (char *)(uintptr_t)memory;
}

static void drop(char *memory) { CUDA(cuMemFree_v2((CUdeviceptr)(uintptr_t)memory)); }

// `count` elements are those from `first` on of what all ranks together make.
static void compare(const char *device, size_t first, size_t count, int type, int op) {
    char *host = malloc(count * 8 + 1);
    download(host, device, count * width_of(type));
    for (size_t i = 0; i < count; i++) {
        double is = decode(host, i, type), wanted = expected(first + i, type, op);
        // A third is in no type.
        double slack = op == ncclAvg && my_ranks == 3 && !is_whole(type) ? 1.0 / 64 : 0;
        if (!(is >= wanted - slack && is <= wanted + slack)) {
            fprintf(stderr, "rank %d of %d, type %d, op %d, element %zu of %zu: %g, not %g\n",
                    my_rank, my_ranks, type, op, first + i, count, is, wanted);
            exit(1);
        }
    }
    free(host);
}

static void compare_inputs(const char *device, int rank, size_t count, int type) {
    char *host = malloc(count * 8 + 1);
    download(host, device, count * width_of(type));
    for (size_t i = 0; i < count; i++) CHECK(decode(host, i, type) == input(rank, i, type));
    free(host);
}

static void reductions(ncclComm_t comm, size_t count, int type, int op, bool in_place) {
    size_t many = count * (size_t)my_ranks, own = count * (size_t)my_rank;
    size_t width = width_of(type);
    int root = my_ranks - 1;
    char *from = filled(my_rank, count, type), *to = in_place ? from : empty(count);
    NCCL(ncclAllReduce(from, to, count, type, op, comm, stream));
    compare(to, 0, count, type, op);
    if (!in_place) compare_inputs(from, my_rank, count, type);
    drop(from);
    if (!in_place) drop(to);

    from = filled(my_rank, count, type);
    to = in_place ? from : empty(count);
    NCCL(ncclReduce(from, my_rank == root ? to : NULL, count, type, op, root, comm, stream));
    if (my_rank == root) compare(to, 0, count, type, op);
    CUDA(cuStreamSynchronize(stream));
    drop(from);
    if (!in_place) drop(to);

    from = filled(my_rank, many, type);
    to = in_place ? from + own * width : empty(count);
    NCCL(ncclReduceScatter(from, to, count, type, op, comm, stream));
    compare(to, own, count, type, op);
    drop(from);
    if (!in_place) drop(to);
}

static void copies(ncclComm_t comm, size_t count, int type, bool in_place) {
    size_t many = count * (size_t)my_ranks, width = width_of(type);
    char *from = filled(my_rank, count, type), *to = in_place ? from : empty(count);
    int root = my_ranks / 2;
    NCCL(ncclBroadcast(my_rank == root ? from : NULL, to, count, type, root, comm, stream));
    compare_inputs(to, root, count, type);
    if (!in_place) drop(to);
    drop(from);

    to = empty(many);
    from = filled(my_rank, count, type);
    if (in_place) {
        char *host = malloc(count * width + 1), *own = to + (size_t)my_rank * count * width;
        download(host, from, count * width);
        CUDA(cuMemcpyHtoD_v2((CUdeviceptr)(uintptr_t)own, host, count * width));
        free(host);
        NCCL(ncclAllGather(own, to, count, type, comm, stream));
    } else {
        NCCL(ncclAllGather(from, to, count, type, comm, stream));
    }
    CUDA(cuStreamSynchronize(stream));
    for (int rank = 0; rank < my_ranks; rank++) {
        compare_inputs(to + (size_t)rank * count * width, rank, count, type);
    }
    drop(from);
    drop(to);
}

void check_collectives(void) {
    use_device(my_rank);
    ncclComm_t comm = connect_world(1, 0);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        for (int in_place = 0; in_place < 2; in_place++) {
            for (int op = 0; op < ncclNumOps; op++) reductions(comm, 37, types[t], op, in_place);
            copies(comm, 37, types[t], in_place);
        }
    }
    // Several pieces, and an odd end.
    for (int in_place = 0; in_place < 2; in_place++) {
        reductions(comm, 300001, ncclFloat32, ncclSum, in_place);
        reductions(comm, 150001, ncclFloat16, ncclAvg, in_place);
        copies(comm, 150001, ncclInt64, in_place);
    }
    // Nothing at all, and two in a group in order.
    char *a = filled(my_rank, 5, ncclInt32), *b = empty(5), *c = empty(5);
    NCCL(ncclAllReduce(a, b, 0, ncclInt32, ncclSum, comm, stream));
    NCCL(ncclGroupStart());
    NCCL(ncclAllReduce(a, b, 5, ncclInt32, ncclSum, comm, stream));
    NCCL(ncclAllReduce(b, c, 5, ncclInt32, ncclAvg, comm, stream));
    NCCL(ncclGroupEnd());
    compare(c, 0, 5, ncclInt32, ncclSum);
    NCCL(ncclCommDestroy(comm));
}

// Each rank to all others, many pieces each, and to itself.
void check_pairs(void) {
    use_device(my_rank);
    ncclComm_t comm = connect_world(0, 0);
    size_t count = 100003;
    char *from[MAX_RANKS], *to[MAX_RANKS];
    NCCL(ncclGroupStart());
    for (int peer = 0; peer < my_ranks; peer++) {
        from[peer] = filled(my_rank * my_ranks + peer, count, ncclFloat32);
        to[peer] = empty(count);
        ncclSend(from[peer], count, ncclFloat32, peer, comm, stream);
        ncclRecv(to[peer], count, ncclFloat32, peer, comm, stream);
    }
    CHECK(ncclGroupEnd() == ncclInProgress);
    NCCL(settle(comm));
    for (int peer = 0; peer < my_ranks; peer++) {
        compare_inputs(to[peer], peer * my_ranks + my_rank, count, ncclFloat32);
    }
    // Along a chain, one call after another.
    if (my_rank > 0) {
        ncclRecv(to[0], count, ncclFloat32, my_rank - 1, comm, stream);
        NCCL(settle(comm));
        compare_inputs(to[0], 0, count, ncclFloat32);
    } else {
        to[0] = from[0];
    }
    if (my_rank < my_ranks - 1) {
        ncclSend(to[0], count, ncclFloat32, my_rank + 1, comm, stream);
        NCCL(settle(comm));
    }
    CUDA(cuStreamSynchronize(stream));
    // Alone it would wait for itself.
    ncclSend(from[0], 1, ncclFloat32, my_rank, comm, stream);
    CHECK(settle(comm) == ncclInvalidUsage);
    NCCL(ncclCommAbort(comm));
}

static void round_one(ncclComm_t comm, int type, int op, uint16_t a, uint16_t b, uint16_t wanted) {
    uint16_t value[2] = {my_rank == 0 ? a : b, 0};
    char *memory = upload(value, sizeof value);
    NCCL(ncclAllReduce(memory, memory, 1, type, op, comm, stream));
    download(value, memory, sizeof value);
    CHECK(value[0] == wanted);
    drop(memory);
}

// Two ranks; the bits are those that the types' definitions ask for.
void check_rounding(void) {
    use_device(my_rank);
    ncclComm_t comm = connect_world(1, 0);
    // 2048 + 1 and 2048 + 3: ties, to even.
    round_one(comm, ncclFloat16, ncclSum, 0x6800, 0x3c00, 0x6800);
    round_one(comm, ncclFloat16, ncclSum, 0x6800, 0x4200, 0x6802);
    // The largest one and its last place: too large. Half of that: not yet.
    round_one(comm, ncclFloat16, ncclSum, 0x7bff, 0x5000, 0x7c00);
    round_one(comm, ncclFloat16, ncclSum, 0x7bff, 0x4b00, 0x7bff);
    // Without a hidden bit, and over its edge.
    round_one(comm, ncclFloat16, ncclSum, 0x0001, 0x0002, 0x0003);
    round_one(comm, ncclFloat16, ncclSum, 0x03ff, 0x0001, 0x0400);
    round_one(comm, ncclFloat16, ncclProd, 0x0400, 0x3800, 0x0200);
    round_one(comm, ncclFloat16, ncclProd, 0x0001, 0x3800, 0x0000);
    // Below zero, infinite, no number.
    round_one(comm, ncclFloat16, ncclSum, 0xc000, 0x3c00, 0xbc00);
    round_one(comm, ncclFloat16, ncclSum, 0x7c00, 0x3c00, 0x7c00);
    round_one(comm, ncclFloat16, ncclSum, 0x7c00, 0xfc00, 0x7e00 | 0x8000);
    // 256 + 1 and 256 + 3.
    round_one(comm, ncclBfloat16, ncclSum, 0x4380, 0x3f80, 0x4380);
    round_one(comm, ncclBfloat16, ncclSum, 0x4380, 0x4040, 0x4382);
    round_one(comm, ncclBfloat16, ncclAvg, 0x3f80, 0x4040, 0x4000);
    NCCL(ncclCommDestroy(comm));
}
