// What the look-alike of NCCL has in common with itself and with check.c. Names, numbers and the
// layout of the config are NCCL's own; everything else is ours.
#ifndef FAKE_NCCL_H
#define FAKE_NCCL_H

#include "cuda.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[128];
} ncclUniqueId;

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
    ncclTimeout = 8,
    ncclNumResults = 9,
} ncclResult_t;

typedef enum { ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg, ncclNumOps } ncclRedOp_t;

typedef enum {
    ncclInt8,
    ncclUint8,
    ncclInt32,
    ncclUint32,
    ncclInt64,
    ncclUint64,
    ncclFloat16,
    ncclFloat32,
    ncclFloat64,
    ncclBfloat16,
    // Those of 8 bits follow in the real one.
    ncclNumTypes,
} ncclDataType_t;

#define NCCL_CONFIG_UNDEF_INT INT_MIN
#define NCCL_SPLIT_NOCOLOR (-1)
#define NCCL_API_MAGIC 0xcafebeefu

// That of 2.28.
typedef struct {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
    int cgaClusterSize;
    int minCTAs;
    int maxCTAs;
    const char *netName;
    int splitShare;
    int trafficClass;
    const char *commName;
    int collnetEnable;
    int CTAPolicy;
    int shrinkShare;
    int nvlsCTAs;
    int nChannelsPerNetPeer;
    int nvlinkCentricSched;
} ncclConfig_t;

enum {
    MAX_RANKS = 16,
    // Pieces that may be on their way from one rank.
    SLOTS = 2,
    // Bytes of a piece that all ranks read, and of one that a single rank reads.
    PUBLISHED = 256 << 10,
    SENT = 64 << 10,
};

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE, SEND, RECEIVE };

// What a rank was asked to do.
struct call {
    enum kind kind;
    int type, op;
    // Or the peer.
    int root;
    size_t count;
    // The how manieth of the process in this world, from 1.
    long number;
    const void *from;
    void *to;
    CUstream stream;
};

// What lies beside the data, so that calls that do not belong together are found.
struct label {
    int kind, type, op, root;
    uint64_t count;
};

// Shared memory: what a rank says to all others.
struct publisher {
    _Atomic uint64_t published;
    _Atomic uint64_t consumed[MAX_RANKS];
    struct label labels[SLOTS];
    char data[SLOTS][PUBLISHED];
};

// Shared memory: what a rank sends to one other.
struct pipe {
    _Atomic uint64_t written, read;
    _Atomic bool sender_ready, receiver_ready;
    struct label labels[SLOTS];
    char data[SLOTS][SENT];
};

// Shared memory: what a rank wants to become in a split.
struct wish {
    _Atomic long number;
    // The same once the path is there.
    _Atomic long path_number;
    int color, key;
    char path[64];
};

// Shared memory: who a rank is.
struct member {
    _Atomic bool joined, connected, left;
    uint64_t host;
    int bus;
    // Split n uses n % 2: a rank can be one ahead, and no more.
    struct wish wishes[2];
};

struct world {
    _Atomic int ranks;
    struct member members[MAX_RANKS];
    struct publisher publishers[MAX_RANKS];
    struct pipe pipes[MAX_RANKS][MAX_RANKS];
};

// What communicators have in common that were split with splitShare.
struct share {
    _Atomic int holders;
    _Atomic bool aborted;
    // Kernels run in the order of their launch, whatever their streams.
    _Atomic long launched, ended;
};

// What communicators have in common that came from one unique id.
struct family {
    _Atomic int holders;
    int rank;
    _Atomic long calls;
};

struct ncclComm {
    struct ncclComm *next;
    // Threads in calls; `busy` is one that may be alone only.
    int inside;
    bool busy;
    // What ended it, or NULL. It stays in the list, so that later calls are found.
    const char *gone;
    bool usable, finalized, connected;

    int rank, ranks, device;
    CUcontext context;
    ncclConfig_t config;
    struct share *share;
    // While it is split off: the parent's, which ends it too.
    struct share *parent;
    struct family *family;
    // The state of the last operation, and what happened besides.
    _Atomic int state, failure;
    // Threads and kernels that still use it.
    _Atomic int jobs, kernels;
    long splits;

    int fd;
    struct world *world;
    // The next piece to be read from each rank.
    uint64_t next_piece[MAX_RANKS];
};

// nccl.c

_Noreturn void nccl_mistake(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Leaves what ncclGetLastError says.
void nccl_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
long nccl_setting(const char *name, long otherwise);

// The driver, as it was loaded.
struct driver {
    int (*enqueue)(CUstream, cuda_job, void *);
    int (*stream_device)(CUstream);
    int (*holds)(const void *, size_t, int);
    int (*current_device)(void);
    CUresult (*get_current)(CUcontext *);
    CUresult (*set_current)(CUcontext);
    CUresult (*retain)(CUcontext *, CUdevice);
    CUresult (*bus_id)(char *, int, CUdevice);
    CUresult (*event_create)(CUevent *, unsigned);
    CUresult (*event_record)(CUevent, CUstream);
    CUresult (*event_destroy)(CUevent);
    CUresult (*stream_wait)(CUstream, CUevent, unsigned);
};
// NULL where there is none.
const struct driver *nccl_driver(void);

// nccl_group.c

// What is to be done outside of the caller's thread, or at the end of the group.
struct job {
    struct job *next;
    ncclComm_t comm;
    ncclResult_t (*run)(struct job *);
    ncclResult_t result;
    // Of an initialisation.
    char path[64];
    // Of a split.
    ncclComm_t child;
    ncclComm_t *out;
    int color, key;
};

void nccl_group_start(void);
ncclResult_t nccl_group_end(void);
// An error inside of a group ends the whole group.
void nccl_group_failed(ncclResult_t result);
// Take the job over; append the call to those of the communicator.
ncclResult_t nccl_group_job(struct job *job);
ncclResult_t nccl_group_call(ncclComm_t comm, const struct call *call);

// nccl_life.c

// Finds the communicator, or says who was mistaken; `alone` for calls that no other may meet.
void nccl_enter(ncclComm_t comm, const char *function, bool alone);
void nccl_leave(ncclComm_t comm, bool alone);
// What a caller is told where an operation failed or only began.
ncclResult_t nccl_outcome(ncclComm_t comm, ncclResult_t result);
// That nothing is in progress, and what went wrong.
ncclResult_t nccl_ready(ncclComm_t comm);
// Whether to go on waiting: sleeps a little, longer with more tries.
bool nccl_wait(ncclComm_t comm, int *tries);

// nccl_world.c

ncclResult_t world_new_id(ncclUniqueId *id);
// Where the world of this id is to be found.
ncclResult_t world_of_id(const ncclUniqueId *id, char path[64]);
// Joins, and waits for all others.
ncclResult_t world_join(ncclComm_t comm, const char *path);
// Finds out what becomes of this rank; the path of its new world, which the lowest one makes.
ncclResult_t world_split(ncclComm_t comm, struct job *job);
void world_leave(ncclComm_t comm);
// Waits for a peer to raise its flag, until an abort.
ncclResult_t world_wait(ncclComm_t comm, _Atomic bool *flag);
// Where a test wants it found: whether the process of a rank is gone that has not left.
bool world_lost_one(ncclComm_t comm, int tries);

// nccl_kernels.c

// The work of one group on one communicator, from the stream's thread.
struct kernel {
    ncclComm_t comm;
    long ticket;
    int count;
    struct call calls[];
};
void kernel_run(void *kernel);
size_t kernel_type_size(int type);
// Whether the error that a test asks for has come: after so many calls.
bool kernel_struck(ncclComm_t comm, long calls);

// nccl_reduce.c

// to = to op from; the first time to = from.
void reduce_step(void *to, const void *from, size_t count, int type, int op, bool first, int ranks);
// What is left to do once all have been added.
void reduce_end(void *to, size_t count, int type, int op, int ranks);

#endif
