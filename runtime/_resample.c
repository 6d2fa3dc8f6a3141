/* Pillow's antialiased resize, to the last bit, of a crop only, in vector code.

   What has to be reproduced (Pillow's Resample.c, 8 bits per channel): the coefficients of every output pixel
   of the whole resized image in double precision, normalised, then rounded to 22 fixed-point bits; a
   horizontal pass that rounds and clips to bytes; a vertical pass over those bytes. Pillow 13 turned the
   passes round where that saves work, so each job says which comes first.

   How it is done here:
   - A coefficient k is split as k = high * 2^15 + low with 0 <= low < 2^15, both 16-bit. Two 16-bit products
     of neighbouring taps are added by one multiply-add instruction (pmaddwd), so a pair of taps costs two of
     them. The sums wrap modulo 2^32, and so does their combination, which is exact because the true value
     fits into 32 bits.
   - Taps come in pairs that start at an even index; a tap that is not wanted has the coefficient zero.
   - Source rows are taken four at a time and laid out once for all jobs: per pair of columns 16 lanes
     [row / 2][channel][row % 2], each lane holding both columns as 16-bit words. A horizontal tap pair is then
     one load and no lane ever needs a shuffle.
   - Horizontal results go into a ring of row pairs, interleaved byte by byte, just deep enough for the
     vertical kernel: it stays in the first- or second-level cache, and a vertical tap pair is again one load.
   - Vertical first, the same parts are joined the other way round: source rows are interleaved into the ring,
     and four finished rows at a time are laid out for the horizontal kernel.

   Py_buffer entered the limited API with 3.11, so pixels are passed as addresses; vsa_rt.runtime.resample
   checks shapes, dtypes and strides first. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && defined(__x86_64__)
#define VSA_X86 1
#include <immintrin.h>
#endif

#define PRECISION_BITS 22
#define LOW_BITS 15
#define HALF (1u << (PRECISION_BITS - 1))

#define BLOCK_ROWS 4
#define RECORD 32 /* 16-bit words that one pair of columns takes in a laid-out block */
#define MAX_JOBS 64

/* How one axis is resampled. Lives in a bytes object, so that Python caches, shares and frees it. */
typedef struct {
    int32_t in_size;
    int32_t count; /* output pixels of the crop */
    int32_t pairs; /* tap pairs that any of them uses at most */
} plan_header;

typedef struct {
    int32_t in_size, count, pairs;
    const int32_t *first; /* first tap pair of each output, counted from the image's edge */
    const int32_t *used;  /* tap pairs of each output */
    const int16_t *taps;  /* [count][pairs][low even, low odd, high even, high odd] */
} plan;

/* Row pairs, interleaved byte by byte. */
typedef struct {
    uint8_t *bytes; /* [mask + 1][stride] */
    size_t stride;
    int32_t mask;
} ring;

typedef struct {
    plan x, y;
    uint8_t *out;
    ring rows;
    int32_t next;        /* the output row to write next */
    int32_t first_block; /* blocks of four source rows that the job needs */
    int32_t last_block;
    int32_t from, to;    /* pairs of columns that the job needs */
    int vertical_first;
    /* Vertical first only. */
    int32_t columns;
    uint8_t *strip;      /* four finished rows of `columns` pixels */
    uint8_t *two;        /* a row pair from the horizontal kernel */
} job;

typedef void (*expand_fn)(int16_t *, const uint8_t *const *, int, int32_t, int32_t, int32_t);
typedef void (*horizontal_fn)(const plan *, const int16_t *, int32_t, uint8_t *, uint8_t *);
typedef void (*vertical_fn)(const plan *, const ring *, int32_t, uint8_t *, int32_t);

typedef struct {
    const char *name;
    expand_fn expand;
    horizontal_fn horizontal;
    vertical_fn vertical;
} kernel;

/* One pair of columns, any layout, without reading past the row. */
static void
expand_one(int16_t *out, const uint8_t *const *rows, int step, int32_t pair, int32_t width) {
    int row, channel, tap;
    for (row = 0; row < BLOCK_ROWS; row++) {
        for (channel = 0; channel < 4; channel++) {
            for (tap = 0; tap < 2; tap++) {
                int32_t column = pair * 2 + tap;
                int value = channel < 3 && column < width ? rows[row][(ptrdiff_t)column * step + channel] : 0;
                out[((row / 2) * 8 + channel * 2 + row % 2) * 2 + tap] = (int16_t)value;
            }
        }
    }
}

static inline uint8_t
finish(uint32_t low, uint32_t high) {
    int32_t value = (int32_t)(low + (high << LOW_BITS)) >> PRECISION_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* Plain C: every other processor, and what the vector code is compared with. */

static void
expand_plain(int16_t *out, const uint8_t *const *rows, int step, int32_t from, int32_t to, int32_t width) {
    int32_t pair;
    for (pair = from; pair < to; pair++, out += RECORD) {
        expand_one(out, rows, step, pair, width);
    }
}

static void
horizontal_plain(const plan *x, const int16_t *block, int32_t from, uint8_t *even, uint8_t *odd) {
    int32_t i, p;
    int lane;
    for (i = 0; i < x->count; i++, even += 6, odd += 6) {
        const int16_t *pixels = block + (ptrdiff_t)(x->first[i] - from) * RECORD;
        const int16_t *taps = x->taps + (ptrdiff_t)i * x->pairs * 4;
        uint32_t low[16], high[16];
        for (lane = 0; lane < 16; lane++) {
            low[lane] = HALF;
            high[lane] = 0;
        }
        for (p = 0; p < x->used[i]; p++, pixels += RECORD, taps += 4) {
            for (lane = 0; lane < 16; lane++) {
                low[lane] += (uint32_t)(pixels[2 * lane] * taps[0] + pixels[2 * lane + 1] * taps[1]);
                high[lane] += (uint32_t)(pixels[2 * lane] * taps[2] + pixels[2 * lane + 1] * taps[3]);
            }
        }
        for (lane = 0; lane < 8; lane++) {
            even[lane] = finish(low[lane], high[lane]);
            odd[lane] = finish(low[lane + 8], high[lane + 8]);
        }
    }
}

static void
vertical_plain(const plan *y, const ring *rows, int32_t size, uint8_t *out, int32_t row) {
    const int16_t *all = y->taps + (ptrdiff_t)row * y->pairs * 4;
    int32_t first = y->first[row], used = y->used[row], from, p;
    int lane;
    for (from = 0; from < size; from += 16) {
        const int16_t *taps = all;
        uint32_t low[16], high[16];
        for (lane = 0; lane < 16; lane++) {
            low[lane] = HALF;
            high[lane] = 0;
        }
        for (p = 0; p < used; p++, taps += 4) {
            const uint8_t *bytes = rows->bytes + ((first + p) & rows->mask) * rows->stride + (size_t)from * 2;
            for (lane = 0; lane < 16; lane++) {
                low[lane] += (uint32_t)(bytes[2 * lane] * taps[0] + bytes[2 * lane + 1] * taps[1]);
                high[lane] += (uint32_t)(bytes[2 * lane] * taps[2] + bytes[2 * lane + 1] * taps[3]);
            }
        }
        for (lane = 0; lane < 16 && from + lane < size; lane++) {
            out[from + lane] = finish(low[lane], high[lane]);
        }
    }
}

/* Vector code: _resample_vector.h is included once per instruction set. target_clones would not do: GCC splits
   generic vectors for the default target before it makes the clones, and ifuncs do not exist everywhere. */

#ifdef VSA_X86

/* Pairs of columns that eight-byte loads may read: the last ones would reach past the row. Nor may the fourth
   byte of the last RGBX pixel be read: a view such as argb[..., 1:] ends before it. */
static int32_t
readable_pairs(int step, int32_t width) {
    int64_t bytes = (int64_t)(width - 1) * step + 3;
    return bytes < 8 ? 0 : (int32_t)((bytes - 8) / (2 * step)) + 1;
}

#define GLUE2(a, b) a##b
#define GLUE(a, b) GLUE2(a, b)
#define NAME(what) GLUE(what, SUFFIX)

#define SUFFIX _sse2
#define TARGET
#define LANES 4
#define VEC __m128i
#define SPLAT(value) _mm_set1_epi32(value)
#define LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define MADD(sum, a, b) _mm_add_epi32(sum, _mm_madd_epi16(a, b))
#define WIDEN(p) _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(p)), _mm_setzero_si128())
#define FINISH(low, high) \
    _mm_srai_epi32(_mm_add_epi32(low, _mm_slli_epi32(high, LOW_BITS)), PRECISION_BITS)
#define STORE_GROUP(p, v)                   \
    _mm_storeu_si128((__m128i *)(p),        \
        _mm_packus_epi16(_mm_packs_epi32(v[0], v[1]), _mm_packs_epi32(v[2], v[3])))
#define PACK16(v) _mm_packus_epi16(_mm_packs_epi32(v[0], v[1]), _mm_packs_epi32(v[2], v[3]))
#include "_resample_vector.h"

#define SUFFIX _avx2
#define TARGET __attribute__((target("avx2")))
#define LANES 8
#define VEC __m256i
#define SPLAT(value) _mm256_set1_epi32(value)
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define MADD(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define WIDEN(p) _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p)))
#define FINISH(low, high) \
    _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, LOW_BITS)), PRECISION_BITS)
#define STORE_GROUP(p, v)                                                                          \
    _mm256_storeu_si256((__m256i *)(p),                                                            \
        _mm256_permutevar8x32_epi32(                                                               \
            _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3])),   \
            _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)))
#define PACK16(v)                                                                                   \
    _mm_packus_epi16(                                                                               \
        _mm_packs_epi32(_mm256_castsi256_si128(v[0]), _mm256_extracti128_si256(v[0], 1)),           \
        _mm_packs_epi32(_mm256_castsi256_si128(v[1]), _mm256_extracti128_si256(v[1], 1)))
#include "_resample_vector.h"

#define AVX512_SPLAT(value) _mm512_set1_epi32(value)
#define AVX512_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define AVX512_WIDEN(p) _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(p)))
#define AVX512_FINISH(low, high) \
    _mm512_srai_epi32(_mm512_add_epi32(low, _mm512_slli_epi32(high, LOW_BITS)), PRECISION_BITS)
#define AVX512_STORE_GROUP(p, v)                                                                   \
    _mm512_storeu_si512((void *)(p),                                                               \
        _mm512_permutexvar_epi32(                                                                  \
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),               \
            _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]))))
#define AVX512_PACK16(v) _mm512_cvtusepi32_epi8(_mm512_max_epi32(v[0], _mm512_setzero_si512()))

#define SUFFIX _avx512
#define TARGET __attribute__((target("avx2,avx512f,avx512bw")))
#define LANES 16
#define VEC __m512i
#define SPLAT AVX512_SPLAT
#define LOAD AVX512_LOAD
#define MADD(sum, a, b) _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
#define WIDEN AVX512_WIDEN
#define FINISH AVX512_FINISH
#define STORE_GROUP AVX512_STORE_GROUP
#define PACK16 AVX512_PACK16
#include "_resample_vector.h"

#define SUFFIX _vnni
#define TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vnni")))
#define LANES 16
#define VEC __m512i
#define SPLAT AVX512_SPLAT
#define LOAD AVX512_LOAD
#define MADD(sum, a, b) _mm512_dpwssd_epi32(sum, a, b)
#define WIDEN AVX512_WIDEN
#define FINISH AVX512_FINISH
#define STORE_GROUP AVX512_STORE_GROUP
#define PACK16 AVX512_PACK16
#include "_resample_vector.h"

#endif /* VSA_X86 */

/* The kernels that this processor runs, fastest first. Filled once, when the module is made. */
static kernel kernels[5];
static int kernel_count;

static void
find_kernels(void) {
    int n = 0;
#ifdef VSA_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
        kernels[n++] = (kernel){"avx512vnni", expand_vnni, horizontal_vnni, vertical_vnni};
    }
    if (__builtin_cpu_supports("avx512bw")) {
        kernels[n++] = (kernel){"avx512bw", expand_avx512, horizontal_avx512, vertical_avx512};
    }
    if (__builtin_cpu_supports("avx2")) {
        kernels[n++] = (kernel){"avx2", expand_avx2, horizontal_avx2, vertical_avx2};
    }
    kernels[n++] = (kernel){"sse2", expand_sse2, horizontal_sse2, vertical_sse2};
#endif
    kernels[n++] = (kernel){"plain", expand_plain, horizontal_plain, vertical_plain};
    kernel_count = n;
}

/* Coefficients. The expressions are Pillow's, operation for operation: the order decides the last bit. */

static double
bicubic(double x) {
    const double a = -0.5;
    if (x < 0.0) {
        x = -x;
    }
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    }
    if (x < 2.0) {
        return (((x - 5) * x + 8) * x - 4) * a;
    }
    return 0.0;
}

static double
bilinear(double x) {
    if (x < 0.0) {
        x = -x;
    }
    if (x < 1.0) {
        return 1.0 - x;
    }
    return 0.0;
}

typedef struct {
    int32_t in_size;
    int cubic;
    double scale, filterscale, support;
} axis;

static double
taps_of(const axis *a, int32_t output, int32_t *xmin, int32_t *taps) {
    double center = 0.0 + (output + 0.5) * a->scale;
    int32_t low = (int32_t)(center - a->support + 0.5);
    int32_t high = (int32_t)(center + a->support + 0.5);
    *xmin = low < 0 ? 0 : low;
    *taps = (high > a->in_size ? a->in_size : high) - *xmin;
    return center;
}

static int32_t
pairs_of(int32_t xmin, int32_t taps) {
    return (xmin % 2 + taps + 1) / 2;
}

/* Fill a plan's arrays; `weights` has room for the taps of any one output. */
static void
fill_plan(
    const axis *a, int32_t offset, int32_t count, int32_t pairs, int32_t *first, int32_t *used, int16_t *rows,
    double *weights
) {
    double ss = 1.0 / a->filterscale;
    int32_t i, x, xmin, taps;

    for (i = 0; i < count; i++, rows += (ptrdiff_t)pairs * 4) {
        double center = taps_of(a, i + offset, &xmin, &taps);
        double ww = 0.0;
        for (x = 0; x < taps; x++) {
            double distance = (x + xmin - center + 0.5) * ss;
            double w = a->cubic ? bicubic(distance) : bilinear(distance);
            weights[x] = w;
            ww += w;
        }
        memset(rows, 0, (size_t)pairs * 4 * sizeof(int16_t));
        for (x = 0; x < taps; x++) {
            double w = ww != 0.0 ? weights[x] / ww : weights[x];
            int32_t k = (int32_t)((w < 0 ? -0.5 : 0.5) + w * (1 << PRECISION_BITS));
            int32_t tap = x + xmin % 2;
            rows[tap / 2 * 4 + tap % 2] = (int16_t)(k & ((1 << LOW_BITS) - 1));
            rows[tap / 2 * 4 + 2 + tap % 2] = (int16_t)(k >> LOW_BITS);
        }
        first[i] = xmin / 2;
        used[i] = pairs_of(xmin, taps);
    }
}

PyDoc_STRVAR(plan_doc, "plan(in_size, out_size, offset, count, cubic, /)\n--\n\n"
"Coefficients of one axis, for `count` outputs from `offset` on, as bytes for `resize`.");

static PyObject *
plan_new(PyObject *Py_UNUSED(module), PyObject *args) {
    int in_size, out_size, offset, count, cubic;
    int32_t i, xmin, taps, most = 1;
    int64_t size;
    axis a;
    plan_header header;
    double *weights;
    PyObject *result;
    char *bytes;

    if (!PyArg_ParseTuple(args, "iiiii:plan", &in_size, &out_size, &offset, &count, &cubic)) {
        return NULL;
    }
    if (in_size < 1 || out_size < 1 || offset < 0 || count < 1 || count > out_size - offset) {
        PyErr_SetString(PyExc_ValueError, "plan: the crop lies outside the resized axis");
        return NULL;
    }
    a.in_size = in_size;
    a.cubic = cubic;
    /* Pillow passes the box as float: above 2^24 pixels that rounds, and so it has to here. */
    a.scale = (double)(float)in_size / out_size;
    a.filterscale = a.scale < 1.0 ? 1.0 : a.scale;
    a.support = (cubic ? 2.0 : 1.0) * a.filterscale;

    header.in_size = in_size;
    header.count = count;
    header.pairs = 1;
    for (i = 0; i < count; i++) {
        int32_t pairs;
        taps_of(&a, i + offset, &xmin, &taps);
        pairs = pairs_of(xmin, taps);
        if (taps < 1) {
            PyErr_SetString(PyExc_ValueError, "plan: an output without a source pixel");
            return NULL;
        }
        header.pairs = pairs > header.pairs ? pairs : header.pairs;
        most = taps > most ? taps : most;
    }
    size = (int64_t)sizeof(header) + (int64_t)count * (8 + (int64_t)header.pairs * 8);
    if (size > INT_MAX) {
        return PyErr_NoMemory();
    }
    weights = PyMem_Malloc((size_t)most * sizeof(double));
    if (weights == NULL) {
        return PyErr_NoMemory();
    }
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    bytes = result == NULL ? NULL : PyBytes_AsString(result);
    if (bytes != NULL) {
        int32_t *first = (int32_t *)(void *)(bytes + sizeof(header));
        memcpy(bytes, &header, sizeof(header));
        fill_plan(
            &a, offset, count, header.pairs, first, first + count,
            (int16_t *)(void *)(first + 2 * (ptrdiff_t)count), weights
        );
    }
    PyMem_Free(weights);
    return result;
}

/* Read a plan and refuse anything that would let the kernels leave their buffers. */
static int
read_plan(PyObject *object, int32_t in_size, plan *out) {
    char *bytes;
    Py_ssize_t size;
    plan_header header;
    int32_t i;

    if (PyBytes_AsStringAndSize(object, &bytes, &size) < 0) {
        return -1;
    }
    if (size < (Py_ssize_t)sizeof(header)) {
        goto foreign;
    }
    memcpy(&header, bytes, sizeof(header));
    if (header.in_size != in_size || header.count < 1 || header.pairs < 1 ||
        (int64_t)size !=
            (int64_t)sizeof(header) + (int64_t)header.count * (8 + (int64_t)header.pairs * 8)) {
        goto foreign;
    }
    out->in_size = header.in_size;
    out->count = header.count;
    out->pairs = header.pairs;
    out->first = (const int32_t *)(const void *)(bytes + sizeof(header));
    out->used = out->first + header.count;
    out->taps = (const int16_t *)(const void *)(out->used + header.count);
    for (i = 0; i < header.count; i++) {
        if (out->first[i] < (i ? out->first[i - 1] : 0) || out->used[i] < 1 || out->used[i] > header.pairs ||
            (int64_t)out->first[i] + out->used[i] > ((int64_t)in_size + 1) / 2 ||
            (i && out->first[i] + out->used[i] < out->first[i - 1] + out->used[i - 1])) {
            goto foreign;
        }
    }
    return 0;
foreign:
    PyErr_SetString(PyExc_ValueError, "resize: a plan is damaged or made for another size");
    return -1;
}

static uint8_t *
slot(const ring *rows, int32_t pair) {
    return rows->bytes + (size_t)(pair & rows->mask) * rows->stride;
}

/* Output rows whose source rows have all arrived once `pairs` row pairs have. */
static int
row_ready(const job *task, int32_t pairs) {
    return task->next < task->y.count && task->y.first[task->next] + task->y.used[task->next] <= pairs;
}

static void
block_horizontal_first(const kernel *use, job *task, const int16_t *block, int32_t from, int32_t b) {
    use->horizontal(&task->x, block, from, slot(&task->rows, 2 * b), slot(&task->rows, 2 * b + 1));
    for (; row_ready(task, 2 * b + 2); task->next++) {
        uint8_t *out = task->out + (size_t)task->next * task->x.count * 3;
        use->vertical(&task->y, &task->rows, task->x.count * 3, out, task->next);
    }
}

static void
block_vertical_first(
    const kernel *use, job *task, int16_t *block, const uint8_t *const *rows, int step, int32_t b
) {
    int32_t size = task->columns * step, i;
    int r;
    for (r = 0; r < BLOCK_ROWS; r += 2) {
        const uint8_t *even = rows[r] + (ptrdiff_t)task->from * 2 * step;
        const uint8_t *odd = rows[r + 1] + (ptrdiff_t)task->from * 2 * step;
        uint8_t *to = slot(&task->rows, 2 * b + r / 2);
        /* Without the last pixel's fourth byte, which need not exist. */
        for (i = 0; i < size - (step == 4); i++) {
            to[2 * i] = even[i];
            to[2 * i + 1] = odd[i];
        }
    }
    while (row_ready(task, 2 * b + 2)) {
        int32_t at = task->next % BLOCK_ROWS;
        use->vertical(&task->y, &task->rows, size, task->strip + (size_t)at * size, task->next);
        task->next++;
        if (at == BLOCK_ROWS - 1 || task->next == task->y.count) {
            const uint8_t *strip[BLOCK_ROWS];
            int32_t first = task->next - 1 - at, width = task->x.count * 3;
            uint8_t *pairs[2] = {task->two, task->two + task->rows.stride};
            for (r = 0; r < BLOCK_ROWS; r++) {
                strip[r] = task->strip + (size_t)(r <= at ? r : at) * size;
            }
            use->expand(block, strip, step, 0, task->to - task->from, task->columns);
            use->horizontal(&task->x, block, task->from, pairs[0], pairs[1]);
            for (r = 0; r <= at; r++) {
                uint8_t *out = task->out + (size_t)(first + r) * width;
                const uint8_t *from = pairs[r / 2] + r % 2;
                for (i = 0; i < width; i++) {
                    out[i] = from[2 * i];
                }
            }
        }
    }
}

/* All jobs over one image, four source rows at a time. Runs without the interpreter lock. */
static void
resize_all(
    const kernel *use, const uint8_t *source, ptrdiff_t row_stride, int step, int32_t height, int32_t width,
    job *jobs, int count, int16_t *block, int16_t *spare, int32_t from, int32_t to
) {
    int32_t b, first = INT32_MAX, last = 0;
    int j, r;
    for (j = 0; j < count; j++) {
        first = jobs[j].first_block < first ? jobs[j].first_block : first;
        last = jobs[j].last_block > last ? jobs[j].last_block : last;
    }
    for (b = first; b <= last; b++) {
        const uint8_t *rows[BLOCK_ROWS];
        int laid_out = 0;
        for (r = 0; r < BLOCK_ROWS; r++) {
            /* Rows past the end meet zero coefficients only; any readable row serves. */
            int32_t y = b * BLOCK_ROWS + r;
            rows[r] = source + (ptrdiff_t)(y < height ? y : height - 1) * row_stride;
        }
        for (j = 0; j < count; j++) {
            job *task = &jobs[j];
            if (b < task->first_block || b > task->last_block) {
                continue;
            }
            if (task->vertical_first) {
                block_vertical_first(use, task, spare, rows, step, b);
                continue;
            }
            if (!laid_out) {
                use->expand(block, rows, step, from, to, width);
                laid_out = 1;
            }
            block_horizontal_first(use, task, block, from, b);
        }
    }
}

PyDoc_STRVAR(resize_doc, "resize(source, row_stride, pixel_stride, height, width, jobs, kernel='', /)\n--\n\n"
"Run every job (plan of x, plan of y, output address, vertical first) over one image of RGB or RGBX bytes.");

/* Bytes that a job needs besides the laid-out blocks; with `memory`, its buffers are placed there too. */
static uint64_t
job_memory(job *task, int step, uint8_t *memory) {
    uint64_t depth = 1, size, strip = 0, two = 0;
    /* Two pairs arrive at a time, and the oldest wanted one may share a block with an unwanted one. */
    while (depth < (uint64_t)task->y.pairs + 3) {
        depth *= 2;
    }
    size = (uint64_t)task->x.count * 6;
    if (task->vertical_first) {
        uint64_t columns = (uint64_t)task->columns * (uint64_t)step;
        size = columns * 2 > size ? columns * 2 : size;
        strip = (columns * BLOCK_ROWS + 63) / 64 * 64;
    }
    /* The last store and the last group of vector loads reach past the row's end. */
    size = (size + 63) / 64 * 64 + 192;
    if (task->vertical_first) {
        two = size * 2;
    }
    if (memory != NULL) {
        task->rows.bytes = memory;
        task->rows.stride = (size_t)size;
        task->rows.mask = (int32_t)(depth - 1);
        task->strip = memory + depth * size;
        task->two = task->strip + strip;
    }
    return depth * size + strip + two;
}

static PyObject *
resize(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned long long source, target;
    long long row_stride;
    int step, height, width, count, j, i;
    int32_t from = INT32_MAX, to = 0, spare = 0, slack = 0;
    const char *name = "";
    const kernel *use = NULL;
    PyObject *list;
    job jobs[MAX_JOBS];
    uint64_t total, block_size, spare_size;
    uint8_t *memory, *base, *place;

    if (!PyArg_ParseTuple(
            args, "KLiiiO!|s:resize", &source, &row_stride, &step, &height, &width, &PyTuple_Type, &list, &name
        )) {
        return NULL;
    }
    count = (int)PyTuple_Size(list);
    if (source == 0 || height < 1 || width < 1 || (step != 3 && step != 4) || count < 1 || count > MAX_JOBS) {
        PyErr_SetString(PyExc_ValueError, "resize: needs an RGB or RGBX image and 1 to 64 jobs");
        return NULL;
    }
    for (i = 0; i < kernel_count && use == NULL; i++) {
        if (!*name || strcmp(name, kernels[i].name) == 0) {
            use = &kernels[i];
        }
    }
    if (use == NULL) {
        PyErr_Format(PyExc_ValueError, "resize: this processor has no kernel %s", name);
        return NULL;
    }

    total = 0;
    for (j = 0; j < count; j++) {
        job *task = &jobs[j];
        const plan *ends = &task->x;
        PyObject *x, *y;
        if (!PyArg_ParseTuple(
                PyTuple_GetItem(list, j), "O!O!Kp:job", &PyBytes_Type, &x, &PyBytes_Type, &y, &target,
                &task->vertical_first
            ) ||
            read_plan(x, width, &task->x) < 0 || read_plan(y, height, &task->y) < 0) {
            return NULL;
        }
        task->out = (uint8_t *)(uintptr_t)target;
        task->next = 0;
        task->first_block = task->y.first[0] / 2;
        task->last_block = (task->y.first[task->y.count - 1] + task->y.used[task->y.count - 1] - 1) / 2;
        task->from = ends->first[0];
        task->to = ends->first[ends->count - 1] + ends->used[ends->count - 1];
        task->columns = (int64_t)task->to * 2 < width ? (task->to - task->from) * 2 : width - task->from * 2;
        if ((int64_t)task->columns * step > INT32_MAX / 2 || task->x.count > INT32_MAX / 12) {
            return PyErr_NoMemory();
        }
        if (task->vertical_first) {
            spare = task->to - task->from > spare ? task->to - task->from : spare;
        } else {
            from = task->from < from ? task->from : from;
            to = task->to > to ? task->to : to;
        }
        /* The vector code reads as many tap pairs for every output as for the longest one. */
        slack = task->x.pairs > slack ? task->x.pairs : slack;
        total += job_memory(task, step, NULL);
        if (total > PY_SSIZE_T_MAX / 4) {
            return PyErr_NoMemory();
        }
    }
    block_size = to ? ((uint64_t)(to - from) + (uint64_t)slack) * RECORD * sizeof(int16_t) : 0;
    spare_size = spare ? ((uint64_t)spare + (uint64_t)slack) * RECORD * sizeof(int16_t) : 0;
    total += block_size + spare_size + 64;
    if (total > PY_SSIZE_T_MAX / 2) {
        return PyErr_NoMemory();
    }
    memory = PyMem_Malloc((size_t)total);
    if (memory == NULL) {
        return PyErr_NoMemory();
    }
    base = memory + (64 - (uintptr_t)memory % 64) % 64;
    place = base + block_size + spare_size;
    for (j = 0; j < count; j++) {
        place += job_memory(&jobs[j], step, place);
    }

    Py_BEGIN_ALLOW_THREADS
    /* What is read before it is written meets zero coefficients only, or its results are never stored. */
    resize_all(
        use, (const uint8_t *)(uintptr_t)source, (ptrdiff_t)row_stride, step, height, width, jobs, count,
        (int16_t *)(void *)base, (int16_t *)(void *)(base + block_size), from, to
    );
    Py_END_ALLOW_THREADS

    PyMem_Free(memory);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(names_doc, "kernels()\n--\n\nNames of the kernels that this processor runs, fastest first.");

static PyObject *
names(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args)) {
    PyObject *result = PyTuple_New(kernel_count);
    int i;
    for (i = 0; result != NULL && i < kernel_count; i++) {
        PyObject *name = PyUnicode_FromString(kernels[i].name);
        if (name == NULL || PyTuple_SetItem(result, i, name) < 0) {
            Py_DECREF(result);
            return NULL;
        }
    }
    return result;
}

static PyMethodDef methods[] = {
    {"plan", plan_new, METH_VARARGS, plan_doc},
    {"resize", resize, METH_VARARGS, resize_doc},
    {"kernels", names, METH_NOARGS, names_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_resample", "Pillow's resize of a crop, to the last bit, in vector code.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__resample(void) {
    find_kernels();
    return PyModule_Create(&definition);
}
