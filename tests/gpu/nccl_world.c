// How processes find each other: a unique id is the path, within /proc, of shared memory that the
// process which made the id holds open. Nothing is ever on a disk, and as with the real one nobody
// can join once that process has ended.
#include "nccl.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// Memory of this process that others still have to find.
struct offer {
    struct offer *next;
    int fd;
    char path[64];
};

static const char mark[] = "fake nccl";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct offer *offers;

static ncclResult_t offer(char path[64]) {
    // As others see this process, also where it has process ids of its own.
    char self[32];
    ssize_t length = readlink("/proc/self", self, sizeof self - 1);
    struct offer *made = calloc(1, sizeof *made);
    if (length < 0 || made == NULL) {
        free(made);
        return ncclSystemError;
    }
    self[length] = 0;
    made->fd = memfd_create("fake-nccl", MFD_CLOEXEC);
    if (made->fd < 0 || ftruncate(made->fd, (off_t)sizeof(struct world)) != 0) {
        nccl_note("no shared memory: %s", strerror(errno));
        if (made->fd >= 0) close(made->fd);
        free(made);
        return ncclSystemError;
    }
    snprintf(path, 64, "/proc/%s/fd/%d", self, made->fd);
    snprintf(made->path, sizeof made->path, "%s", path);
    pthread_mutex_lock(&lock);
    made->next = offers;
    offers = made;
    pthread_mutex_unlock(&lock);
    return ncclSuccess;
}

// All have found it.
static void withdraw(const char *path) {
    pthread_mutex_lock(&lock);
    for (struct offer **at = &offers; *at != NULL; at = &(*at)->next) {
        struct offer *made = *at;
        if (strcmp(made->path, path) != 0) continue;
        *at = made->next;
        close(made->fd);
        free(made);
        break;
    }
    pthread_mutex_unlock(&lock);
}

ncclResult_t world_new_id(ncclUniqueId *id) {
    char path[64];
    ncclResult_t result = offer(path);
    if (result != ncclSuccess) return result;
    memset(id, 0, sizeof *id);
    memcpy(id->internal, mark, sizeof mark);
    memcpy(id->internal + sizeof mark, path, sizeof path);
    return ncclSuccess;
}

ncclResult_t world_of_id(const ncclUniqueId *id, char path[64]) {
    if (memcmp(id->internal, mark, sizeof mark) != 0) {
        nccl_note("this unique id is not from ncclGetUniqueId");
        return ncclInvalidArgument;
    }
    memcpy(path, id->internal + sizeof mark, 64);
    path[63] = 0;
    return ncclSuccess;
}

// A lock that a process loses only by its end, wherever it runs.
static struct flock byte_of(int rank, short type) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1};
}

static bool is_gone(ncclComm_t comm, int rank) {
    const struct member *member = &comm->world->members[rank];
    if (rank == comm->rank || !atomic_load(&member->joined) || atomic_load(&member->left)) {
        return false;
    }
    struct flock byte = byte_of(rank, F_WRLCK);
    return fcntl(comm->fd, F_OFD_GETLK, &byte) == 0 && byte.l_type == F_UNLCK;
}

bool world_lost_one(ncclComm_t comm, int tries) {
    // Not each time: it is a system call for each rank.
    if (tries % 64 != 0 || nccl_setting("FAKE_NCCL_REMOTE_ERROR", 0) == 0) return false;
    for (int rank = 0; rank < comm->ranks; rank++) {
        if (!is_gone(comm, rank)) continue;
        nccl_note("connection closed by rank %d", rank);
        return true;
    }
    return false;
}

// The machine as NCCL knows it.
static uint64_t host_hash(void) {
    char text[512] = "";
    const char *given = getenv("NCCL_HOSTID");
    if (given != NULL) {
        snprintf(text, sizeof text, "%s", given);
    } else {
        gethostname(text, 256);
        FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
        if (file != NULL) {
            size_t length = strlen(text);
            length += fread(text + length, 1, sizeof text - length - 1, file);
            text[length] = 0;
            fclose(file);
        }
    }
    uint64_t hash = 14695981039346656037u;
    for (const char *c = text; *c != 0; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    return hash;
}

static int bus_of(int device) {
    char text[32] = "";
    unsigned bus = 0;
    nccl_driver()->bus_id(text, sizeof text, device);
    return sscanf(text, "%*x:%x", &bus) == 1 ? (int)bus : -1;
}

// One step of waiting for a peer: an error where there is no more use in it.
static ncclResult_t step(ncclComm_t comm, int *tries) {
    if (!nccl_wait(comm, tries)) return ncclInternalError;
    return world_lost_one(comm, *tries) ? ncclRemoteError : ncclSuccess;
}

ncclResult_t world_wait(ncclComm_t comm, _Atomic bool *flag) {
    ncclResult_t result = ncclSuccess;
    // As the real one: it never sleeps, however long that takes.
    for (int tries = 0; result == ncclSuccess && !atomic_load(flag); tries = 0) {
        result = step(comm, &tries);
    }
    return result;
}

static ncclResult_t attach(ncclComm_t comm, const char *path) {
    comm->fd = open(path, O_RDWR | O_CLOEXEC);
    if (comm->fd < 0) {
        nccl_note("the process that made the unique id is gone: %s: %s", path, strerror(errno));
        return ncclRemoteError;
    }
    size_t bytes = sizeof(struct world);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, comm->fd, 0);
    if (memory == MAP_FAILED) return ncclSystemError;
    comm->world = memory;
    int ranks = 0;
    if (!atomic_compare_exchange_strong(&comm->world->ranks, &ranks, comm->ranks) &&
        ranks != comm->ranks) {
        nccl_note("%d ranks, but %d by what another rank says", comm->ranks, ranks);
        return ncclInternalError;
    }
    struct flock byte = byte_of(comm->rank, F_WRLCK);
    if (fcntl(comm->fd, F_OFD_SETLK, &byte) != 0 ||
        atomic_load(&comm->world->members[comm->rank].joined)) {
        nccl_note("rank %d has joined before with this unique id", comm->rank);
        return ncclInvalidUsage;
    }
    return ncclSuccess;
}

ncclResult_t world_join(ncclComm_t comm, const char *path) {
    ncclResult_t result = attach(comm, path);
    if (result != ncclSuccess) return result;
    struct member *members = comm->world->members;
    struct member *mine = &members[comm->rank];
    mine->host = host_hash();
    mine->bus = bus_of(comm->device);
    atomic_store(&mine->joined, true);
    for (int rank = 0; rank < comm->ranks; rank++) {
        result = world_wait(comm, &members[rank].joined);
        if (result != ncclSuccess) return result;
    }
    withdraw(path);
    for (int rank = 0; rank < comm->ranks; rank++) {
        if (rank == comm->rank || members[rank].host != mine->host) continue;
        if (members[rank].bus != mine->bus) continue;
        nccl_note("Duplicate GPU detected : rank %d and rank %d both on CUDA device %x000",
                  comm->rank, rank, (unsigned)mine->bus);
        return ncclInvalidUsage;
    }
    return ncclSuccess;
}

// Whether a rank comes before another in the new communicator.
static bool before(const struct wish *a, int rank_a, const struct wish *b, int rank_b) {
    return a->key < b->key || (a->key == b->key && rank_a < rank_b);
}

ncclResult_t world_split(ncclComm_t comm, struct job *job) {
    long number = ++comm->splits;
    struct wish *wishes[MAX_RANKS];
    for (int rank = 0; rank < comm->ranks; rank++) {
        wishes[rank] = &comm->world->members[rank].wishes[number % 2];
    }
    struct wish *mine = wishes[comm->rank];
    mine->color = job->color;
    mine->key = job->key;
    atomic_store(&mine->number, number);
    int ranks = 0, rank = 0, first = comm->rank;
    for (int other = 0; other < comm->ranks; other++) {
        for (int tries = 0; atomic_load(&wishes[other]->number) < number;) {
            ncclResult_t result = step(comm, &tries);
            if (result != ncclSuccess) return result;
        }
        if (wishes[other]->color != job->color) continue;
        ranks++;
        if (before(wishes[other], other, mine, comm->rank)) rank++;
        if (before(wishes[other], other, wishes[first], first)) first = other;
    }
    // Who wants no communicator had to be here only to say so.
    if (job->child == NULL) return ncclSuccess;
    job->child->ranks = ranks;
    job->child->rank = rank;
    if (first == comm->rank) {
        ncclResult_t result = offer(mine->path);
        if (result != ncclSuccess) return result;
        atomic_store(&mine->path_number, number);
    }
    for (int tries = 0; atomic_load(&wishes[first]->path_number) < number;) {
        ncclResult_t result = step(comm, &tries);
        if (result != ncclSuccess) return result;
    }
    memcpy(job->path, wishes[first]->path, sizeof job->path);
    return ncclSuccess;
}

void world_leave(ncclComm_t comm) {
    if (comm->world != NULL) {
        atomic_store(&comm->world->members[comm->rank].left, true);
        munmap(comm->world, sizeof(struct world));
        comm->world = NULL;
    }
    if (comm->fd >= 0) close(comm->fd);
    comm->fd = -1;
}
