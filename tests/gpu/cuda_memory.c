// Device memory, which here is host memory, and what is copied to and from it.
#include "cuda.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// A piece of memory that somebody allocated.
struct block {
    struct block *next;
    char *start;
    size_t bytes;
    // Of the host: page-locked, and every device may use it.
    bool host;
    int device;
};

struct copy {
    char *to;
    const char *from;
    size_t bytes;
    // Which ends are device memory.
    bool to_device, from_device;
    // The source is a copy that goes with this one.
    bool owned;
};

struct fill {
    char *to;
    unsigned value;
    size_t count, width;
};

enum {
    // Up to here memory is filled with a pattern, so that the rest of a large block costs nothing.
    POISONED = 16 << 20,
    // What the driver copies from pageable memory without waiting for the stream.
    STAGED = 64 << 10,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static size_t used[MAX_DEVICES];

EXPORT CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    if (cuda_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (available == NULL || total == NULL) return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    *available = cuda_device_memory - used[cuda_current()->device];
    pthread_mutex_unlock(&lock);
    *total = cuda_device_memory;
    return CUDA_SUCCESS;
}

// The block that has all of this, with the lock held.
static struct block *block_of(const void *start, size_t bytes) {
    const char *from = start;
    for (struct block *block = blocks; block != NULL; block = block->next) {
        if (from >= block->start && from <= block->start + block->bytes &&
            bytes <= (size_t)(block->start + block->bytes - from)) {
            return block;
        }
    }
    return NULL;
}

static bool holds(const void *start, size_t bytes, bool host) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(start, bytes);
    bool held = block != NULL && block->host == host;
    pthread_mutex_unlock(&lock);
    return held;
}

EXPORT int fake_cuda_holds(const void *start, size_t bytes, int device) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(start, bytes);
    bool held = block != NULL && (block->host || block->device == device);
    pthread_mutex_unlock(&lock);
    return held;
}

static CUresult allocate(void **start, size_t bytes, bool host) {
    if (start == NULL || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (cuda_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    struct block *block = malloc(sizeof *block);
    if (block == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *block = (struct block){NULL, NULL, bytes, host, cuda_current()->device};
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    bool fits = host || bytes <= cuda_device_memory - used[cuda_current()->device];
    if (fits && bytes < SIZE_MAX - 256) {
        block->start = aligned_alloc(256, (bytes + 255) / 256 * 256);
    }
    if (block->start != NULL) {
        // Nobody may rely on zeros.
        memset(block->start, 0xa5, bytes < POISONED ? bytes : POISONED);
        if (!host) used[cuda_current()->device] += bytes;
        block->next = blocks;
        blocks = block;
        *start = block->start;
        result = CUDA_SUCCESS;
    } else {
        free(block);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

// Takes a block out; false where there is none that starts here.
static bool release(void *start, bool host) {
    pthread_mutex_lock(&lock);
    struct block **at = &blocks;
    while (*at != NULL && ((*at)->start != start || (*at)->host != host)) at = &(*at)->next;
    struct block *block = *at;
    if (block != NULL) {
        *at = block->next;
        if (!host) used[block->device] -= block->bytes;
    }
    pthread_mutex_unlock(&lock);
    if (block == NULL) return false;
    memset(block->start, 0xdd, block->bytes < POISONED ? block->bytes : POISONED);
    free(block->start);
    free(block);
    return true;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *start, size_t bytes) {
    void *memory = NULL;
    CUresult result = start == NULL ? CUDA_ERROR_INVALID_VALUE : allocate(&memory, bytes, false);
    if (result == CUDA_SUCCESS) *start = (CUdeviceptr)(uintptr_t)memory;
    return result;
}

EXPORT CUresult cuMemAllocAsync(CUdeviceptr *start, size_t bytes, CUstream stream) {
    if (fake_cuda_stream_device(stream) < 0) return CUDA_ERROR_INVALID_HANDLE;
    if (start != NULL && bytes == 0) {
        *start = 0;
        return CUDA_SUCCESS;
    }
    return cuMemAlloc_v2(start, bytes);
}

// Waits for the whole device, as the real one does.
EXPORT CUresult cuMemFree_v2(CUdeviceptr start) {
    if (start == 0) return CUDA_SUCCESS;
    if (cuda_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    cuda_wait_for_all(cuda_current());
    return release((void *)(uintptr_t)start, false) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static void release_job(void *start) {
    if (!release(start, false)) cuda_mistake("device memory %p is freed twice", start);
}

EXPORT CUresult cuMemFreeAsync(CUdeviceptr start, CUstream stream) {
    if (start == 0) return CUDA_SUCCESS;
    if (!holds((void *)(uintptr_t)start, 0, false)) return CUDA_ERROR_INVALID_VALUE;
    return cuda_enqueue(stream, release_job, (void *)(uintptr_t)start);
}

EXPORT CUresult cuMemHostAlloc(void **start, size_t bytes, unsigned flags) {
    (void)flags;
    return allocate(start, bytes, true);
}

EXPORT CUresult cuMemAllocHost_v2(void **start, size_t bytes) {
    return allocate(start, bytes, true);
}

EXPORT CUresult cuMemFreeHost(void *start) {
    if (start == NULL) return CUDA_SUCCESS;
    if (cuda_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    cuda_wait_for_all(cuda_current());
    return release(start, true) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuPointerGetAttribute(void *out, int attribute, CUdeviceptr pointer) {
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    struct block *block = block_of((void *)(uintptr_t)pointer, 0);
    if (block == NULL) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        switch (attribute) {
        case 1: *(CUcontext *)out = cuda_context(block->device); break;
        case 2: *(unsigned *)out = block->host ? 1 : 2; break;
        case 3: *(CUdeviceptr *)out = pointer; break;
        case 9: *(int *)out = block->device; break;
        case 11: *(CUdeviceptr *)out = (CUdeviceptr)(uintptr_t)block->start; break;
        case 12: *(size_t *)out = block->bytes; break;
        default: result = CUDA_ERROR_INVALID_VALUE;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static void fill_job(void *argument) {
    struct fill *fill = argument;
    if (!holds(fill->to, fill->count * fill->width, false)) {
        cuda_mistake("a memset uses device memory %p after it was freed", (void *)fill->to);
    }
    if (fill->width == 1) memset(fill->to, (int)fill->value, fill->count);
    for (size_t i = 0; fill->width == 4 && i < fill->count; i++) {
        memcpy(fill->to + 4 * i, &fill->value, 4);
    }
    free(fill);
}

static CUresult start_fill(CUdeviceptr to, unsigned value, size_t count, size_t width,
                           CUstream stream) {
    if (!holds((void *)(uintptr_t)to, count * width, false)) return CUDA_ERROR_INVALID_VALUE;
    struct fill *fill = malloc(sizeof *fill);
    if (fill == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *fill = (struct fill){(char *)(uintptr_t)to, value, count, width};
    CUresult result = cuda_enqueue(stream, fill_job, fill);
    if (result != CUDA_SUCCESS) free(fill);
    return result;
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count,
                                CUstream stream) {
    return count == 0 ? CUDA_SUCCESS : start_fill(to, value, count, 1, stream);
}

EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    return count == 0 ? CUDA_SUCCESS : start_fill(to, value, count, 4, stream);
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    CUresult result = cuMemsetD8Async(to, value, count, NULL);
    return result == CUDA_SUCCESS ? cuda_wait(NULL) : result;
}

static void copy_job(void *argument) {
    struct copy *copy = argument;
    if ((copy->to_device && !holds(copy->to, copy->bytes, false)) ||
        (copy->from_device && !holds(copy->from, copy->bytes, false))) {
        cuda_mistake("a copy of %zu bytes uses device memory after it was freed", copy->bytes);
    }
    memmove(copy->to, copy->from, copy->bytes);
    if (copy->owned) free((void *)copy->from);
    free(copy);
}

// Only memory that is page-locked is really copied later: with any other the driver takes what
// it copies from before it returns, and returns only once it has filled what it copies to.
static CUresult start_copy(struct copy wanted, CUstream stream) {
    if (wanted.bytes == 0) return CUDA_SUCCESS;
    if ((wanted.to_device && !holds(wanted.to, wanted.bytes, false)) ||
        (wanted.from_device && !holds(wanted.from, wanted.bytes, false))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    bool from_pageable = !wanted.from_device && !holds(wanted.from, wanted.bytes, true);
    bool to_pageable = !wanted.to_device && !holds(wanted.to, wanted.bytes, true);
    struct copy *copy = malloc(sizeof *copy);
    if (copy == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *copy = wanted;
    bool waits = to_pageable;
    if (from_pageable && copy->bytes <= STAGED) {
        char *staged = malloc(copy->bytes);
        if (staged == NULL) {
            free(copy);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        memcpy(staged, copy->from, copy->bytes);
        copy->from = staged;
        copy->owned = true;
    } else if (from_pageable) {
        waits = true;
    }
    CUresult result = cuda_enqueue(stream, copy_job, copy);
    if (result != CUDA_SUCCESS) {
        if (copy->owned) free((void *)copy->from);
        free(copy);
        return result;
    }
    return waits ? cuda_wait(stream) : CUDA_SUCCESS;
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes,
                                     CUstream stream) {
    struct copy copy = {(char *)(uintptr_t)to, from, bytes, true, false, false};
    return start_copy(copy, stream);
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    struct copy copy = {to, (const char *)(uintptr_t)from, bytes, false, true, false};
    return start_copy(copy, stream);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream stream) {
    struct copy copy = {(char *)(uintptr_t)to, (const char *)(uintptr_t)from, bytes, true, true,
                        false};
    return start_copy(copy, stream);
}

EXPORT CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                                  CUcontext from_context, size_t bytes, CUstream stream) {
    (void)to_context;
    (void)from_context;
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    CUresult result = cuMemcpyHtoDAsync_v2(to, from, bytes, NULL);
    return result == CUDA_SUCCESS ? cuda_wait(NULL) : result;
}

EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    CUresult result = cuMemcpyDtoHAsync_v2(to, from, bytes, NULL);
    return result == CUDA_SUCCESS ? cuda_wait(NULL) : result;
}

EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    CUresult result = cuMemcpyDtoDAsync_v2(to, from, bytes, NULL);
    return result == CUDA_SUCCESS ? cuda_wait(NULL) : result;
}
