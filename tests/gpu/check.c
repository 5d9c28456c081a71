// Checks the look-alikes with real processes: `check NAME RANKS` starts so many, and ends with 0
// where all of them found what they expected.
#include "check.h"

#include <math.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int my_rank, my_ranks;
struct shared *shared;
CUstream stream;

void meet(void) {
    int stage = atomic_load(&shared->stage);
    if (atomic_fetch_add(&shared->arrived, 1) == my_ranks - 1) {
        atomic_store(&shared->arrived, 0);
        atomic_store(&shared->stage, stage + 1);
    }
    while (atomic_load(&shared->stage) == stage) usleep(50);
}

void use_device(int device) {
    CUcontext context;
    CUDA(cuInit(0));
    CUDA(cuDevicePrimaryCtxRetain(&context, device));
    CUDA(cuCtxSetCurrent(context));
    CUDA(cuStreamCreate(&stream, 1));
}

ncclConfig_t config(int blocking, int split_share) {
    int none = NCCL_CONFIG_UNDEF_INT;
    return (ncclConfig_t){sizeof(ncclConfig_t), NCCL_API_MAGIC, 22809, blocking, none, none, none,
                          NULL, split_share, none, NULL, none, none, none, none, none, none};
}

ncclResult_t begin_world(ncclComm_t *comm, ncclConfig_t *how) {
    if (my_rank == 0) {
        NCCL(ncclGetUniqueId(&shared->id));
        atomic_store(&shared->has_id, true);
    }
    while (!atomic_load(&shared->has_id)) usleep(50);
    return ncclCommInitRankConfig(comm, my_ranks, shared->id, my_rank, how);
}

ncclResult_t settle(ncclComm_t comm) {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress) {
        NCCL(ncclCommGetAsyncError(comm, &state));
        usleep(20);
    }
    return state;
}

ncclComm_t connect_world(int blocking, int split_share) {
    ncclComm_t comm;
    ncclConfig_t how = config(blocking, split_share);
    ncclResult_t result = begin_world(&comm, &how);
    CHECK(result == ncclSuccess || (!blocking && result == ncclInProgress));
    NCCL(settle(comm));
    return comm;
}

char *upload(const void *from, size_t bytes) {
    CUdeviceptr to;
    CUDA(cuMemAlloc_v2(&to, bytes));
    CUDA(cuMemcpyHtoD_v2(to, from, bytes));
    return (char *)(uintptr_t)to;
}

void download(void *to, const char *from, size_t bytes) {
    CUDA(cuStreamSynchronize(stream));
    CUDA(cuMemcpyDtoH_v2(to, (CUdeviceptr)(uintptr_t)from, bytes));
}

size_t width_of(int type) {
    static const size_t widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return widths[type];
}

// Only for values that the type has.
void encode(void *to, size_t index, int type, double value) {
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, 4);
    switch (type) {
    case ncclInt8: ((int8_t *)to)[index] = (int8_t)value; break;
    case ncclUint8: ((uint8_t *)to)[index] = (uint8_t)value; break;
    case ncclInt32: ((int32_t *)to)[index] = (int32_t)value; break;
    case ncclUint32: ((uint32_t *)to)[index] = (uint32_t)value; break;
    case ncclInt64: ((int64_t *)to)[index] = (int64_t)value; break;
    case ncclUint64: ((uint64_t *)to)[index] = (uint64_t)value; break;
    case ncclFloat32: ((float *)to)[index] = single; break;
    case ncclFloat64: ((double *)to)[index] = value; break;
    case ncclBfloat16: ((uint16_t *)to)[index] = (uint16_t)(bits >> 16); break;
    case ncclFloat16: {
        // Zero, or a number with a hidden bit.
        int exponent = (int)(bits >> 23 & 0xff) - 127 + 15;
        uint16_t half = value == 0 ? 0 : (uint16_t)(exponent << 10 | (bits >> 13 & 0x3ff));
        ((uint16_t *)to)[index] = (uint16_t)(half | (bits >> 16 & 0x8000));
        break;
    }
    }
}

double decode(const void *from, size_t index, int type) {
    switch (type) {
    case ncclInt8: return ((const int8_t *)from)[index];
    case ncclUint8: return ((const uint8_t *)from)[index];
    case ncclInt32: return ((const int32_t *)from)[index];
    case ncclUint32: return ((const uint32_t *)from)[index];
    case ncclInt64: return (double)((const int64_t *)from)[index];
    case ncclUint64: return (double)((const uint64_t *)from)[index];
    case ncclFloat32: return ((const float *)from)[index];
    case ncclFloat64: return ((const double *)from)[index];
    case ncclBfloat16: {
        uint32_t bits = (uint32_t)((const uint16_t *)from)[index] << 16;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    default: {
        uint16_t half = ((const uint16_t *)from)[index];
        int exponent = half >> 10 & 0x1f;
        double size = exponent == 0 ? ldexp(half & 0x3ff, -24)
                                    : ldexp((half & 0x3ff) | 0x400, exponent - 25);
        return half & 0x8000 ? -size : size;
    }
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} checks[] = {
    {"collectives", check_collectives}, {"pairs", check_pairs},
    {"rounding", check_rounding},       {"streams", check_streams},
    {"visible", check_visible},         {"memory", check_memory},
    {"progress", check_progress},       {"stuck", check_stuck},
    {"share", check_share},             {"colors", check_colors},
    {"dead", check_dead},               {"errors", check_errors},
    {"duplicate", check_duplicate},     {"configs", check_configs},
    {"exit", check_exit},               {"mistakes", check_mistakes},
    {"hangs", check_hangs},             {"noticed", check_noticed},
    {"mismatch", check_mismatch},
};

int main(int count, char **arguments) {
    CHECK(count == 3);
    void (*run)(void) = NULL;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        if (strcmp(checks[i].name, arguments[1]) == 0) run = checks[i].run;
    }
    CHECK(run != NULL);
    my_ranks = atoi(arguments[2]);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    // A device for each rank.
    setenv("FAKE_CUDA_DEVICES", "16", 0);
    for (my_rank = 0; my_rank < my_ranks; my_rank++) {
        pid_t process = fork();
        CHECK(process >= 0);
        if (process != 0) continue;
        run();
        return 0;
    }
    int failed = 0, status;
    while (wait(&status) > 0) failed |= status != 0;
    return failed;
}
