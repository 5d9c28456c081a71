// The threads of one block: one after another, or, where they wait for each other, as fibers that
// give way at barriers and shuffles. For x86-64.
#include "kernel.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

Index emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };

struct Fiber {
    void *stack;
    State state;
    Index index;
    char value[16], swapped[16];
    int mask;
};

enum { STACK = 32 << 10, WARP = 32 };

static Fiber fibers[MOST_THREADS];
static char *stacks;
static void *scheduler;
// Which fiber runs; -1 outside of all.
static int running = -1;
static const Kernel *kernel;
static const char *parameters;

// Saves the registers that a call keeps and the stack in `from`, and goes on with those of `to`.
extern "C" void emulated_switch(void **from, void *to);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, . - emulated_switch
)");

[[noreturn]] static void mistake(const char *what) {
    fprintf(stderr, "emulated: %s in kernel %s\n", what, kernel->name);
    abort();
}

static void give_way(State state) {
    if (running < 0) mistake("a barrier or a shuffle of threads that were not to meet");
    fibers[running].state = state;
    emulated_switch(&fibers[running].stack, scheduler);
}

void emulated_barrier() { give_way(AT_BARRIER); }

void emulated_shuffle(void *value, size_t bytes, int mask) {
    if (running < 0 || bytes > sizeof fibers[running].value) mistake("a shuffle");
    Fiber &fiber = fibers[running];
    memcpy(fiber.value, value, bytes);
    fiber.mask = mask;
    give_way(AT_SHUFFLE);
    memcpy(value, fiber.swapped, bytes);
}

static void fiber_main() {
    kernel->call(kernel, parameters);
    give_way(DONE);
    abort();
}

static Index index_of(unsigned thread) {
    const Index &size = emulated_block_size;
    return {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
}

static void prepare(int threads) {
    if (stacks == nullptr) {
        size_t bytes = (size_t)MOST_THREADS * STACK;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS;
        void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) mistake("no memory for stacks");
        stacks = (char *)memory;
    }
    for (int thread = 0; thread < threads; thread++) {
        // Not all at the same place of a page, which would be the same lines of the cache.
        char *end = stacks + (size_t)(thread + 1) * STACK - 64 - thread % 16 * 64;
        void **top = (void **)end;
        // Aligned as after a call.
        *--top = nullptr;
        *--top = (void *)fiber_main;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        fibers[thread].stack = top;
        fibers[thread].state = READY;
        fibers[thread].index = index_of((unsigned)thread);
    }
}

// A warp swaps its values once all of it is there.
static bool swap_values(int first, int end) {
    for (int thread = first; thread < end; thread++) {
        if (fibers[thread].state != AT_SHUFFLE) return false;
    }
    for (int thread = first; thread < end; thread++) {
        Fiber &fiber = fibers[thread];
        int other = first + ((thread - first) ^ fiber.mask);
        // Of a lane that is not there a GPU gives anything.
        memcpy(fiber.swapped, fibers[other < end ? other : thread].value, sizeof fiber.swapped);
        fiber.state = READY;
    }
    return true;
}

static void run_fibers(int threads) {
    prepare(threads);
    for (;;) {
        for (int thread = 0; thread < threads; thread++) {
            if (fibers[thread].state != READY) continue;
            running = thread;
            emulated_thread = fibers[thread].index;
            emulated_switch(&scheduler, fibers[thread].stack);
        }
        running = -1;
        bool swapped = false;
        for (int first = 0; first < threads; first += WARP) {
            swapped |= swap_values(first, first + WARP < threads ? first + WARP : threads);
        }
        if (swapped) continue;
        int done = 0, at_barrier = 0;
        for (int thread = 0; thread < threads; thread++) {
            done += fibers[thread].state == DONE;
            at_barrier += fibers[thread].state == AT_BARRIER;
        }
        if (done == threads) return;
        if (at_barrier == 0 || at_barrier + done != threads) mistake("threads wait for each other");
        for (int thread = 0; thread < threads; thread++) {
            if (fibers[thread].state == AT_BARRIER) fibers[thread].state = READY;
        }
    }
}

void run_block(const Kernel *which, const char *with) {
    kernel = which;
    parameters = with;
    const Index &size = emulated_block_size;
    int threads = (int)(size.x * size.y * size.z);
    if (kernel->meets) {
        run_fibers(threads);
        return;
    }
    for (int thread = 0; thread < threads; thread++) {
        emulated_thread = index_of((unsigned)thread);
        kernel->call(kernel, parameters);
    }
}
