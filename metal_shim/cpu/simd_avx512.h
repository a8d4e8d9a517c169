/* simd_avx512.h: 16 lanes with AVX-512 F, BW, DQ, VL and VNNI. */
#include <immintrin.h>

#define V_LANES 16
typedef __m512 vf;
typedef __m512i vi;

static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf vf_set1(float a) { return _mm512_set1_ps(a); }
static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a * 2^n for a whole n in [-127, 0]; 2^-127 counts as 0. */
static inline vf vf_scale2(vf a, vf n)
{
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23)));
}
static inline float vf_reduce_max(vf a) { return _mm512_reduce_max_ps(a); }
static inline vf vf_keep_from(vf a, vf t)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, t, _CMP_GE_OQ), a);
}
static inline int vf_count_from(vf a, vf t)
{
    return __builtin_popcount(_mm512_cmp_ps_mask(a, t, _CMP_GE_OQ));
}
static inline vf vf_fraction(vf a)
{
    return _mm512_reduce_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline __m256 vf_fold(vf a)
{
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
static inline float vf_reduce_add(const vf a[1])
{
    __m256 x = vf_fold(a[0]);
    x = _mm256_hadd_ps(x, x);
    x = _mm256_hadd_ps(x, x);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
static inline void vf_reduce_add4(const vf a[4][1], float sums[4])
{
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(vf_fold(a[0][0]), vf_fold(a[1][0])),
                                  _mm256_hadd_ps(vf_fold(a[2][0]), vf_fold(a[3][0])));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void vf_store_i8(int8_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf vf_load_exponents(const uint8_t *p)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)),
            bits = _mm512_max_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_mask_set1_epi32(
        bits, _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255)), 0x7fc00000));
}
static inline vf vf_from_i32(vi a) { return _mm512_cvtepi32_ps(a); }

static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline vi vi_set1(int32_t a) { return _mm512_set1_epi32(a); }
static inline vi vi_low_nibbles(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline vi vi_high_nibbles(vi a)
{
    return _mm512_and_si512(_mm512_srli_epi32(a, 4), _mm512_set1_epi8(15));
}
static inline vi vi_or_bits(vi low, vi high, int from, int mask)
{
    __m128i left = _mm_cvtsi32_si128(from < 4 ? 4 - from : 0);
    __m128i right = _mm_cvtsi32_si128(from > 4 ? from - 4 : 0);
    vi moved = _mm512_srl_epi32(_mm512_sll_epi32(high, left), right);
    return _mm512_ternarylogic_epi32(low, moved, _mm512_set1_epi8((char)mask), 0xf8);
}
static inline vi vi_lookup(vi codes, const uint8_t *table16)
{
    __m128i table = _mm_loadu_si128((const __m128i *)table16);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
}
/* Bytes of rows side by side become rows of bytes, which are widened to halves. */
static inline void vf_from_e4m3(vi words, vf columns[4])
{
    const __m128i quad = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i order = _mm512_cvtepu8_epi32(quad), mask = _mm512_set1_epi16((short)0xbf80);
    __m512i bytes = _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(quad));
    bytes = _mm512_permutexvar_epi32(order, bytes);
    for (int i = 0; i < 2; i++) {
        __m256i two = i ? _mm512_extracti64x4_epi64(bytes, 1) : _mm512_castsi512_si256(bytes);
        __m512i halves = _mm512_slli_epi16(_mm512_cvtepi8_epi16(two), 7);
        halves = _mm512_and_si512(halves, mask);
        columns[2 * i] = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
        columns[2 * i + 1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
    }
}
static inline vf vf_look_up(vi words, int place, const float *table16)
{
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, (unsigned)place),
                                 _mm512_loadu_ps(table16));
}
static inline vi vi_dot4(vi a, vi u, vi s) { return _mm512_dpbusd_epi32(a, u, s); }
static inline vi vi_begin_off(int32_t minus_128_sum) { return vi_set1(minus_128_sum); }
static inline vi vi_dot4_off(vi a, vi u, vi s) { return _mm512_dpbusd_epi32(a, u, s); }
