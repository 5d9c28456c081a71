// What the stand-in for the driver lacks for a program with kernels: modules, in which candle's
// kernels are found by name, and launches, which run on a stream of the stand-in's.
#include "kernel.h"
#include "stand_in.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_HANDLE = 400 };

struct Launch {
    const Kernel *kernel;
    Index grid, block;
    int device;
    alignas(16) char parameters[8 * MOST_PARAMETERS];
};

static Kernel *kernels;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

void add_kernel(Kernel *kernel) {
    kernel->next = kernels;
    kernels = kernel;
}

EXPORT int cuModuleLoad(void **module, const char *) {
    *module = &kernels;
    return SUCCESS;
}

EXPORT int cuModuleLoadData(void **module, const void *) {
    *module = &kernels;
    return SUCCESS;
}

EXPORT int cuModuleUnload(void *) { return SUCCESS; }

EXPORT int cuCtxDestroy_v2(void *) { return SUCCESS; }

EXPORT int cuModuleGetFunction(void **function, void *, const char *name) {
    for (Kernel *kernel = kernels; kernel != nullptr; kernel = kernel->next) {
        if (strcmp(kernel->name, name) != 0) continue;
        *function = kernel;
        return SUCCESS;
    }
    fprintf(stderr, "emulated: there is no kernel %s\n", name);
    abort();
}

// At the time of the run: what was freed meanwhile is a mistake, too.
static void check_pointers(const Launch *launch) {
    const Kernel *kernel = launch->kernel;
    for (int i = 0; i < kernel->parameters; i++) {
        void *pointer;
        memcpy(&pointer, launch->parameters + 8 * i, sizeof pointer);
        if (!kernel->are_pointers[i] || pointer == nullptr) continue;
        if (fake_cuda_holds(pointer, 1, launch->device)) continue;
        fprintf(stderr, "emulated: parameter %d of kernel %s is no memory of device %d\n", i,
                kernel->name, launch->device);
        abort();
    }
}

static void run(void *argument) {
    Launch *launch = (Launch *)argument;
    check_pointers(launch);
    const Index &grid = launch->grid;
    pthread_mutex_lock(&turn);
    emulated_grid_size = grid;
    emulated_block_size = launch->block;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                emulated_block = {x, y, z};
                run_block(launch->kernel, launch->parameters);
            }
        }
    }
    pthread_mutex_unlock(&turn);
    delete launch;
}

static bool is_empty(const Index &size) { return size.x == 0 || size.y == 0 || size.z == 0; }

EXPORT int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                          void *stream, void **parameters, void **extra) {
    const Kernel *kernel = (const Kernel *)function;
    Index grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
    // The limits of the real one.
    if (is_empty(grid) || is_empty(block) || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if ((size_t)block_x * block_y * block_z > MOST_THREADS) return INVALID_VALUE;
    if (shared > 48 << 10 || extra != nullptr) return INVALID_VALUE;
    int device = fake_cuda_stream_device(stream);
    if (device < 0 || fake_cuda_current_device() != device) return INVALID_HANDLE;
    Launch *launch = new Launch{kernel, grid, block, device, {}};
    for (int i = 0; i < kernel->parameters; i++) {
        memcpy(launch->parameters + 8 * i, parameters[i], kernel->sizes[i]);
    }
    int result = fake_cuda_enqueue(stream, run, launch);
    if (result != SUCCESS) delete launch;
    return result;
}
