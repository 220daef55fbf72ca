/* cuda/blas.h on cuBLAS and cuSOLVER, opened at run time: their ABI is that of the headers that this was compiled with.
 */
#include "cuda/blas.h"
#include "cuda/device.h"

#include <cstdlib>

#if __has_include(<cublas_v2.h>) && __has_include(<cusolverDn.h>)

#include <cublas_v2.h>
#include <cusolverDn.h>
#include <dlfcn.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcublas.so." TEXT(CUBLAS_VER_MAJOR)
#define SOLVER_LIBRARY "libcusolver.so." TEXT(CUSOLVER_VER_MAJOR)

struct solver {
    void *library; /* nullptr: not open */
    cusolverDnHandle_t handle;
    decltype(&cusolverDnDestroy) destroy;
    decltype(&cusolverDnSetStream) set_stream;
    decltype(&cusolverDnSpotrf_bufferSize) buffer_size;
    decltype(&cusolverDnSpotrf) factor;
};

struct cuda_blas {
    solver factors;
    void *library;
    cublasHandle_t handle;
    decltype(&cublasDestroy_v2) destroy;
    decltype(&cublasSetStream_v2) set_stream;
    decltype(&cublasGetStatusString) status_string;
    decltype(&cublasGetVersion_v2) get_version;
    cublasStatus_t (*gemm_ex)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                              const void *, cudaDataType, int, const void *, cudaDataType, int, const void *, void *,
                              cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);
};

template <class F> static bool find(void *library, const char *name, F *out) {
    *out = reinterpret_cast<F>(dlsym(library, name));
    return *out != nullptr;
}

llmq_status cuda_blas_create(cuda_blas **out, llmq_err *err) {
    *out = nullptr;
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s is not there (%s)", LIBRARY, dlerror());
    decltype(&cublasCreate_v2) create;
    cuda_blas found = {};
    found.library = library;
    if (!find(library, "cublasCreate_v2", &create) || !find(library, "cublasDestroy_v2", &found.destroy) ||
        !find(library, "cublasSetStream_v2", &found.set_stream) ||
        !find(library, "cublasGetStatusString", &found.status_string) ||
        !find(library, "cublasGetVersion_v2", &found.get_version) || !find(library, "cublasGemmEx", &found.gemm_ex)) {
        dlclose(library);
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s lacks functions that llmq calls", LIBRARY);
    }
    const cublasStatus_t status = create(&found.handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        llmq_status failed = llmq_fail(err, status == CUBLAS_STATUS_ALLOC_FAILED ? LLMQ_E_MEMORY : LLMQ_E_IO,
                                       "cuBLAS does not start: %s", found.status_string(status));
        dlclose(library);
        return failed;
    }
    *out = static_cast<cuda_blas *>(malloc(sizeof found));
    if (!*out) {
        found.destroy(found.handle);
        dlclose(library);
        return llmq_fail(err, LLMQ_E_MEMORY, "no memory for cuBLAS");
    }
    **out = found;
    return LLMQ_OK;
}

/* One product as cuBLAS counts, by columns: c (m, n) = alpha * op(a) (m, k) * op(b) (k, n) + beta * c, sums f32. */
struct product {
    cublasOperation_t op_a, op_b;
    int64_t m, n, k;
    cudaDataType type; /* of a and b */
    const void *a;
    int64_t lda;
    const void *b;
    int64_t ldb;
    float *c;
    int64_t ldc;
    float alpha, beta;
};

static llmq_status multiply(cuda_blas *blas, gpu_stream *stream, const product &p, llmq_err *err) {
    cublasStatus_t status = blas->set_stream(blas->handle, reinterpret_cast<cudaStream_t>(stream));
    if (status == CUBLAS_STATUS_SUCCESS)
        status = blas->gemm_ex(blas->handle, p.op_a, p.op_b, static_cast<int>(p.m), static_cast<int>(p.n),
                               static_cast<int>(p.k), &p.alpha, p.a, p.type, static_cast<int>(p.lda), p.b, p.type,
                               static_cast<int>(p.ldb), &p.beta, p.c, CUDA_R_32F, static_cast<int>(p.ldc),
                               CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_SUCCESS) return LLMQ_OK;
    cudaGetLastError(); /* what it left there is no error of launches to come */
    return llmq_fail(err, status == CUBLAS_STATUS_ALLOC_FAILED ? LLMQ_E_MEMORY : LLMQ_E_IO, "GPU: cuBLAS: %s",
                     blas->status_string(status));
}

/* Our rows are its columns: our y (n, ldy) is its (m, n), our a (m, lda) its (k, m). */
llmq_status cuda_blas_gemm_f16(cuda_blas *blas, gpu_stream *stream, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                               int64_t lda, const uint16_t *b, int64_t ldb, float *y, int64_t ldy, llmq_err *err) {
    const product p = {CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, CUDA_R_16F, a, lda, b, ldb, y, ldy, 1, 0};
    return multiply(blas, stream, p, err);
}

llmq_status cuda_blas_gemm_sub(cuda_blas *blas, gpu_stream *stream, int64_t m, int64_t n, int64_t k, const float *a,
                               int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, llmq_err *err) {
    const product p = {CUBLAS_OP_N, CUBLAS_OP_N, n, m, k, CUDA_R_32F, b, ldb, a, lda, c, ldc, -1, 1};
    return multiply(blas, stream, p, err);
}

llmq_status cuda_blas_gram(cuda_blas *blas, gpu_stream *stream, const uint16_t *x, int64_t n_tok, int64_t cols,
                           bool add, float *gram, llmq_err *err) {
    const float beta = add ? 1.0f : 0.0f;
    const product p = {CUBLAS_OP_N, CUBLAS_OP_T, cols, cols, n_tok, CUDA_R_16BF, x, cols, x, cols, gram, cols, 1, beta};
    return multiply(blas, stream, p, err);
}

/* ---- cuSOLVER: opened by the first factorization */

static llmq_status solver_open(solver *s, llmq_err *err) {
    decltype(&cusolverDnCreate) create;
    cusolverStatus_t status = CUSOLVER_STATUS_SUCCESS;
    *s = {};
    s->library = dlopen(SOLVER_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!s->library) return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s is not there (%s)", SOLVER_LIBRARY, dlerror());
    if (find(s->library, "cusolverDnCreate", &create) && find(s->library, "cusolverDnDestroy", &s->destroy) &&
        find(s->library, "cusolverDnSetStream", &s->set_stream) &&
        find(s->library, "cusolverDnSpotrf_bufferSize", &s->buffer_size) &&
        find(s->library, "cusolverDnSpotrf", &s->factor) && (status = create(&s->handle)) == CUSOLVER_STATUS_SUCCESS)
        return LLMQ_OK;
    dlclose(s->library);
    *s = {};
    if (status == CUSOLVER_STATUS_SUCCESS)
        return llmq_fail(err, LLMQ_E_UNSUPPORTED, "%s lacks functions that llmq calls", SOLVER_LIBRARY);
    return llmq_fail(err, status == CUSOLVER_STATUS_ALLOC_FAILED ? LLMQ_E_MEMORY : LLMQ_E_IO,
                     "cuSOLVER does not start: status %d", static_cast<int>(status));
}

static void solver_close(solver *s) {
    if (!s->library) return;
    s->destroy(s->handle);
    dlclose(s->library);
}

/* Our lower triangle by rows is its upper one by columns. work: what buffer_size asked for, then the info. */
static llmq_status factor(const solver *s, gpu_stream *stream, int n, float *a, int lda, llmq_err *err) {
    int floats = 0, info = 0;
    void *work = nullptr;
    if (s->set_stream(s->handle, reinterpret_cast<cudaStream_t>(stream)) != CUSOLVER_STATUS_SUCCESS ||
        s->buffer_size(s->handle, CUBLAS_FILL_MODE_UPPER, n, a, lda, &floats) != CUSOLVER_STATUS_SUCCESS)
        return llmq_fail(err, LLMQ_E_IO, "GPU: cuSOLVER: no size of its scratch");
    LLMQ_TRY(gpu_alloc("a Cholesky factorization", static_cast<size_t>(floats) * 4 + sizeof info, &work, err));
    int *info_on_gpu = static_cast<int *>(work) + floats;
    llmq_status status = LLMQ_OK;
    if (s->factor(s->handle, CUBLAS_FILL_MODE_UPPER, n, a, lda, static_cast<float *>(work), floats, info_on_gpu) !=
        CUSOLVER_STATUS_SUCCESS)
        status = llmq_fail(err, LLMQ_E_IO, "GPU: cuSOLVER: the factorization failed");
    if (status == LLMQ_OK) status = gpu_wait(err);
    if (status == LLMQ_OK) status = gpu_download(&info, info_on_gpu, sizeof info, err);
    if (status == LLMQ_OK && info != 0) status = llmq_fail(err, LLMQ_E_NUMERIC, "not positive definite");
    gpu_free(work);
    return status;
}

llmq_status cuda_blas_cholesky(cuda_blas *blas, gpu_stream *stream, int64_t n, float *a, int64_t lda, llmq_err *err) {
    if (!blas->factors.library) LLMQ_TRY(solver_open(&blas->factors, err));
    return factor(&blas->factors, stream, static_cast<int>(n), a, static_cast<int>(lda), err);
}

void cuda_blas_destroy(cuda_blas *blas) {
    if (!blas) return;
    solver_close(&blas->factors);
    blas->destroy(blas->handle);
    dlclose(blas->library);
    free(blas);
}

int cuda_blas_version(const cuda_blas *blas) {
    int version = 0;
    return blas->get_version(blas->handle, &version) == CUBLAS_STATUS_SUCCESS ? version : 0;
}

#else /* compiled without their headers */

static llmq_status fail_absent(llmq_err *err) {
    return llmq_fail(err, LLMQ_E_UNSUPPORTED, "this llmq was built without cuBLAS");
}
llmq_status cuda_blas_create(cuda_blas **out, llmq_err *err) {
    *out = nullptr;
    return fail_absent(err);
}
void cuda_blas_destroy(cuda_blas *) {}
llmq_status cuda_blas_gemm_f16(cuda_blas *, gpu_stream *, int64_t, int64_t, int64_t, const uint16_t *, int64_t,
                               const uint16_t *, int64_t, float *, int64_t, llmq_err *err) {
    return fail_absent(err);
}
llmq_status cuda_blas_gemm_sub(cuda_blas *, gpu_stream *, int64_t, int64_t, int64_t, const float *, int64_t,
                               const float *, int64_t, float *, int64_t, llmq_err *err) {
    return fail_absent(err);
}
llmq_status cuda_blas_gram(cuda_blas *, gpu_stream *, const uint16_t *, int64_t, int64_t, bool, float *,
                           llmq_err *err) {
    return fail_absent(err);
}
llmq_status cuda_blas_cholesky(cuda_blas *, gpu_stream *, int64_t, float *, int64_t, llmq_err *err) {
    return fail_absent(err);
}

int cuda_blas_version(const cuda_blas *) {
    return 0;
}

#endif
