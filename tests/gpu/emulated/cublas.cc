// The functions of cuBLAS that candle calls: products of f32 and f64 matrices, column by column.
#include "stand_in.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13 };
enum { TYPE_F32 = 0, COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };

struct Handle {
    void *stream;
    int device;
};

EXPORT int cublasCreate_v2(Handle **handle) {
    int device = fake_cuda_current_device();
    if (device < 0) return NOT_INITIALIZED;
    *handle = new Handle{nullptr, device};
    return SUCCESS;
}

EXPORT int cublasDestroy_v2(Handle *handle) {
    delete handle;
    return SUCCESS;
}

EXPORT int cublasSetStream_v2(Handle *handle, void *stream) {
    handle->stream = stream;
    return SUCCESS;
}

// As many matrices as a call has; each column lies `lead` behind the one before.
template <class T> struct Matrices {
    T *start;
    int rows, columns, lead;
    long long stride;

    bool is_valid() const { return rows >= 0 && columns >= 0 && lead >= (rows > 1 ? rows : 1); }

    bool are_of(int device, int count) const {
        size_t last = (size_t)(columns - 1) * lead + rows + (size_t)(count - 1) * stride;
        return fake_cuda_holds(start, last * sizeof(T), device);
    }
};

// c = alpha * a * b + beta * c, with a and b transposed or not, `count` times.
template <class T> struct Product {
    bool transpose_a, transpose_b;
    int depth;
    T alpha, beta;
    Matrices<T> a, b, c;
    int count, device;

    static void run(void *argument) {
        Product *product = (Product *)argument;
        product->check();
        for (int i = 0; i < product->count; i++) product->multiply(i);
        delete product;
    }

    void check() const {
        if (c.rows == 0 || c.columns == 0 || depth == 0 || count == 0) return;
        if (a.are_of(device, count) && b.are_of(device, count) && c.are_of(device, count)) return;
        fprintf(stderr, "emulated: a product of memory that is not device %d's\n", device);
        abort();
    }

    void multiply(int which) const {
        const T *in_a = a.start + which * a.stride, *in_b = b.start + which * b.stride;
        T *out = c.start + which * c.stride;
        // In the order in which it is read, so that the sums are of neighbours.
        std::vector<T> packed((size_t)c.rows * depth), sums(c.rows);
        for (int k = 0; k < depth; k++) {
            for (int row = 0; row < c.rows; row++) {
                packed[(size_t)k * c.rows + row] =
                    transpose_a ? in_a[(size_t)row * a.lead + k] : in_a[(size_t)k * a.lead + row];
            }
        }
        for (int column = 0; column < c.columns; column++, out += c.lead) {
            T *sum = sums.data();
            for (int row = 0; row < c.rows; row++) sum[row] = 0;
            for (int k = 0; k < depth; k++) {
                const T *from = packed.data() + (size_t)k * c.rows;
                T by = transpose_b ? in_b[(size_t)k * b.lead + column]
                                   : in_b[(size_t)column * b.lead + k];
                for (int row = 0; row < c.rows; row++) sum[row] += from[row] * by;
            }
            // By 0 also what is no number.
            for (int row = 0; row < c.rows; row++) {
                out[row] = alpha * sum[row] + (beta == 0 ? 0 : beta * out[row]);
            }
        }
    }
};

template <class T>
static int start(Handle *handle, int transpose_a, int transpose_b, int m, int n, int k,
                 const void *alpha, const void *a, int lda, long long stride_a, const void *b,
                 int ldb, long long stride_b, const void *beta, void *c, int ldc,
                 long long stride_c, int count) {
    bool ta = transpose_a != 0, tb = transpose_b != 0;
    Matrices<T> left = {(T *)a, ta ? k : m, ta ? m : k, lda, stride_a};
    Matrices<T> right = {(T *)b, tb ? n : k, tb ? k : n, ldb, stride_b};
    Matrices<T> out = {(T *)c, m, n, ldc, stride_c};
    if (count < 0 || !left.is_valid() || !right.is_valid() || !out.is_valid()) return INVALID_VALUE;
    auto *product = new Product<T>{
        ta, tb, k, *(const T *)alpha, *(const T *)beta, left, right, out, count, handle->device};
    if (fake_cuda_enqueue(handle->stream, Product<T>::run, product) == 0) return SUCCESS;
    delete product;
    return EXECUTION_FAILED;
}

EXPORT int cublasGemmStridedBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k,
                                      const void *alpha, const void *a, int type_a, int lda,
                                      long long stride_a, const void *b, int type_b, int ldb,
                                      long long stride_b, const void *beta, void *c, int type_c,
                                      int ldc, long long stride_c, int count, int compute, int) {
    bool is_f32 = type_a == TYPE_F32 && type_b == TYPE_F32 && type_c == TYPE_F32;
    if (!is_f32 || (compute != COMPUTE_32F && compute != COMPUTE_32F_FAST_TF32)) {
        fprintf(stderr, "emulated: there is no product of types %d, %d, %d, computed as %d\n",
                type_a, type_b, type_c, compute);
        abort();
    }
    return start<float>(handle, ta, tb, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c,
                        ldc, stride_c, count);
}

EXPORT int cublasDgemmStridedBatched(Handle *handle, int ta, int tb, int m, int n, int k,
                                     const void *alpha, const void *a, int lda, long long stride_a,
                                     const void *b, int ldb, long long stride_b, const void *beta,
                                     void *c, int ldc, long long stride_c, int count) {
    return start<double>(handle, ta, tb, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b, beta,
                         c, ldc, stride_c, count);
}
