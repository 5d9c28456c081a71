// Kernels that were compiled for the host: what is known of each, and how a block of one is run.
#ifndef EMULATED_KERNEL_H
#define EMULATED_KERNEL_H

#include <cstddef>
#include <type_traits>
#include <utility>

struct Index {
    unsigned x, y, z;
};

// Where the running thread is; all blocks of all kernels of a process take turns.
extern Index emulated_thread, emulated_block, emulated_block_size, emulated_grid_size;

struct Kernel {
    const char *name;
    // Calls it with the parameters at `from`, 8 bytes each.
    void (*call)(const Kernel *, const char *from);
    void (*function)();
    // Its threads wait for each other, so that each needs a stack of its own.
    bool meets;
    int parameters;
    const size_t *sizes;
    const bool *are_pointers;
    Kernel *next;
};

enum { MOST_PARAMETERS = 16, MOST_THREADS = 1024 };

// block.cc

// Runs the threads of the block that `emulated_block` names.
void run_block(const Kernel *kernel, const char *parameters);
// What threads do in it: wait for all of the block, and swap values within a warp.
void emulated_barrier();
void emulated_shuffle(void *value, size_t bytes, int mask);

// launch.cc

void add_kernel(Kernel *kernel);

// The sizes of a kernel's parameters follow from its type.
template <class... P> struct Parameters {
    static constexpr size_t sizes[] = {sizeof(P)...};
    static constexpr bool are_pointers[] = {std::is_pointer_v<P>...};
    static_assert(sizeof...(P) <= MOST_PARAMETERS && ((sizeof(P) <= 8) && ...));

    static void call(const Kernel *kernel, const char *from) {
        auto function = reinterpret_cast<void (*)(P...)>(kernel->function);
        spread(function, from, std::index_sequence_for<P...>{});
    }

    template <size_t... I>
    static void spread(void (*function)(P...), const char *from, std::index_sequence<I...>) {
        function(*reinterpret_cast<const std::remove_const_t<P> *>(from + 8 * I)...);
    }
};

struct Registered {
    Kernel kernel;

    template <class... P> Registered(const char *name, bool meets, void (*function)(P...)) {
        kernel = {name,
                  Parameters<P...>::call,
                  reinterpret_cast<void (*)()>(function),
                  meets,
                  sizeof...(P),
                  Parameters<P...>::sizes,
                  Parameters<P...>::are_pointers,
                  nullptr};
        add_kernel(&kernel);
    }
};

#endif
