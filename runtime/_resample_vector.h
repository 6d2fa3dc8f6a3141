/* The vector code of one instruction set: _resample.c includes this once per set, with the set's own macros. */


#define PARTS (16 / LANES) /* vectors that 16 lanes take */

TARGET static void
NAME(expand)(int16_t *out, const uint8_t *const *rows, int step, int32_t from, int32_t to, int32_t width) {
    int32_t pair = from, safe = readable_pairs(step, width);
    safe = safe < to ? safe : to;
#if LANES == 4
#define LAY(a, b, words, shift)                                                                     \
    do {                                                                                            \
        __m128i mixed = _mm_unpacklo_epi8(                                                          \
            _mm_loadl_epi64((const __m128i *)(const void *)(a)),                                    \
            _mm_loadl_epi64((const __m128i *)(const void *)(b)));                                   \
        mixed = _mm_unpacklo_epi8(mixed, _mm_srli_si128(mixed, shift));                             \
        _mm_storeu_si128((__m128i *)(words), _mm_unpacklo_epi8(mixed, _mm_setzero_si128()));        \
        _mm_storeu_si128((__m128i *)(words) + 1, _mm_unpackhi_epi8(mixed, _mm_setzero_si128()));    \
    } while (0)
#define LAY_ALL(shift)                                                                              \
    for (; pair < safe; pair++, out += RECORD) {                                                    \
        ptrdiff_t at = (ptrdiff_t)pair * 2 * step;                                                  \
        LAY(rows[0] + at, rows[1] + at, out, shift);                                                \
        LAY(rows[2] + at, rows[3] + at, out + 16, shift);                                           \
    }
#else
#define HALF_ROW(p) _mm_loadl_epi64((const __m128i *)(const void *)(p))
#define ROWS(p, q) _mm256_inserti128_si256(_mm256_castsi128_si256(HALF_ROW(p)), HALF_ROW(q), 1)
#if LANES == 16
#define LAY_STORE(v) _mm512_storeu_si512((void *)out, _mm512_cvtepu8_epi16(v))
#else
#define LAY_STORE(v)                                                                                \
    do {                                                                                            \
        _mm256_storeu_si256((__m256i *)out, _mm256_cvtepu8_epi16(_mm256_castsi256_si128(v)));       \
        _mm256_storeu_si256((__m256i *)out + 1, _mm256_cvtepu8_epi16(_mm256_extracti128_si256(v, 1))); \
    } while (0)
#endif
#define LAY_ALL(shift)                                                                              \
    for (; pair < safe; pair++, out += RECORD) {                                                    \
        ptrdiff_t at = (ptrdiff_t)pair * 2 * step;                                                  \
        __m256i mixed = _mm256_unpacklo_epi8(                                                       \
            ROWS(rows[0] + at, rows[2] + at), ROWS(rows[1] + at, rows[3] + at));                    \
        mixed = _mm256_unpacklo_epi8(mixed, _mm256_srli_si256(mixed, shift));                       \
        LAY_STORE(mixed);                                                                           \
    }
#endif
    /* The fourth channel of a three-byte pixel is whatever follows; its results are written over. */
    if (step == 3) {
        LAY_ALL(6)
    } else {
        LAY_ALL(8)
    }
    for (; pair < to; pair++, out += RECORD) {
        expand_one(out, rows, step, pair, width);
    }
#undef LAY
#undef LAY_ALL
#undef LAY_STORE
#undef ROWS
#undef HALF_ROW
}

/* A constant `pairs` unrolls the loop over taps; every output then takes the same, predictable way. */
TARGET static inline __attribute__((always_inline)) void
NAME(horizontal_pairs)(
    const plan *x, const int16_t *block, int32_t from, uint8_t *even, uint8_t *odd, const int32_t pairs
) {
    const int16_t *taps = x->taps;
    int32_t i, p;
    int k;
    for (i = 0; i < x->count; i++, even += 6, odd += 6) {
        const int16_t *pixels = block + (ptrdiff_t)(x->first[i] - from) * RECORD;
        VEC low[PARTS], high[PARTS];
        for (k = 0; k < PARTS; k++) {
            low[k] = SPLAT(HALF);
            high[k] = SPLAT(0);
        }
        for (p = 0; p < pairs; p++, pixels += RECORD, taps += 4) {
            int32_t words[2];
            VEC low_taps, high_taps;
            memcpy(words, taps, sizeof(words));
            low_taps = SPLAT(words[0]);
            high_taps = SPLAT(words[1]);
            for (k = 0; k < PARTS; k++) {
                VEC values = LOAD(pixels + k * LANES * 2);
                low[k] = MADD(low[k], values, low_taps);
                high[k] = MADD(high[k], values, high_taps);
            }
        }
        for (k = 0; k < PARTS; k++) {
            low[k] = FINISH(low[k], high[k]);
        }
        {
            __m128i bytes = PACK16(low);
            /* Eight bytes, of which the next pixel writes over the last two. */
            _mm_storel_epi64((__m128i *)(void *)even, bytes);
            _mm_storel_epi64((__m128i *)(void *)odd, _mm_unpackhi_epi64(bytes, bytes));
        }
    }
}

TARGET static void
NAME(horizontal)(const plan *x, const int16_t *block, int32_t from, uint8_t *even, uint8_t *odd) {
    switch (x->pairs) {
        case 2: NAME(horizontal_pairs)(x, block, from, even, odd, 2); break;
        case 3: NAME(horizontal_pairs)(x, block, from, even, odd, 3); break;
        case 4: NAME(horizontal_pairs)(x, block, from, even, odd, 4); break;
        case 5: NAME(horizontal_pairs)(x, block, from, even, odd, 5); break;
        case 6: NAME(horizontal_pairs)(x, block, from, even, odd, 6); break;
        default: NAME(horizontal_pairs)(x, block, from, even, odd, x->pairs);
    }
}

TARGET static void
NAME(vertical)(const plan *y, const ring *rows, int32_t size, uint8_t *out, int32_t row) {
    const int16_t *all = y->taps + (ptrdiff_t)row * y->pairs * 4;
    int32_t first = y->first[row], used = y->used[row], from, p;
    int k;
    for (from = 0; from < size; from += 4 * LANES) {
        const int16_t *taps = all;
        VEC low[4], high[4];
        for (k = 0; k < 4; k++) {
            low[k] = SPLAT(HALF);
            high[k] = SPLAT(0);
        }
        for (p = 0; p < used; p++, taps += 4) {
            const uint8_t *bytes = rows->bytes + ((first + p) & rows->mask) * rows->stride + (size_t)from * 2;
            int32_t words[2];
            VEC low_taps, high_taps;
            memcpy(words, taps, sizeof(words));
            low_taps = SPLAT(words[0]);
            high_taps = SPLAT(words[1]);
            for (k = 0; k < 4; k++) {
                VEC values = WIDEN(bytes + k * LANES * 2);
                low[k] = MADD(low[k], values, low_taps);
                high[k] = MADD(high[k], values, high_taps);
            }
        }
        for (k = 0; k < 4; k++) {
            low[k] = FINISH(low[k], high[k]);
        }
        if (size - from >= 4 * LANES) {
            STORE_GROUP(out + from, low);
        } else {
            uint8_t rest[4 * LANES];
            STORE_GROUP(rest, low);
            memcpy(out + from, rest, (size_t)(size - from));
        }
    }
}

#undef PARTS
#undef SUFFIX
#undef TARGET
#undef LANES
#undef VEC
#undef SPLAT
#undef LOAD
#undef MADD
#undef WIDEN
#undef FINISH
#undef STORE_GROUP
#undef PACK16
