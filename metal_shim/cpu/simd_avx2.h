/* simd_avx2.h: 8 lanes with AVX2, FMA and F16C. */
#include <immintrin.h>

#define V_LANES 8
typedef __m256 vf;
typedef __m256i vi;

static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf vf_set1(float a) { return _mm256_set1_ps(a); }
static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_scale2(vf a, vf n)
{
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
static inline __m256 vf_fold(const vf a[2]) { return _mm256_add_ps(a[0], a[1]); }
static inline float vf_reduce_add(const vf a[2])
{
    __m256 x = vf_fold(a);
    x = _mm256_hadd_ps(x, x);
    x = _mm256_hadd_ps(x, x);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
static inline float vf_reduce_max(vf a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline vf vf_keep_from(vf a, vf t)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, t, _CMP_GE_OQ), a);
}
static inline int vf_count_from(vf a, vf t)
{
    return __builtin_popcount(_mm256_movemask_ps(_mm256_cmp_ps(a, t, _CMP_GE_OQ)));
}
static inline vf vf_fraction(vf a) { return vf_sub(a, vf_round(a)); }
static inline void vf_reduce_add4(const vf a[4][2], float sums[4])
{
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(vf_fold(a[0]), vf_fold(a[1])),
                                  _mm256_hadd_ps(vf_fold(a[2]), vf_fold(a[3])));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline void vf_store_i8(int8_t *p, vf a)
{
    __m256i whole = _mm256_cvtps_epi32(a);
    __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf vf_load_exponents(const uint8_t *p)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)),
            bits = _mm256_max_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000)),
            none = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255));
    return _mm256_castsi256_ps(
        _mm256_or_si256(bits, _mm256_and_si256(none, _mm256_set1_epi32(0x7fc00000))));
}
static inline vf vf_from_i32(vi a) { return _mm256_cvtepi32_ps(a); }

static inline vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
static inline vi vi_low_nibbles(vi a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
static inline vi vi_high_nibbles(vi a)
{
    return _mm256_and_si256(_mm256_srli_epi32(a, 4), _mm256_set1_epi8(15));
}
static inline vi vi_or_bits(vi low, vi high, int from, int mask)
{
    __m128i left = _mm_cvtsi32_si128(from < 4 ? 4 - from : 0);
    __m128i right = _mm_cvtsi32_si128(from > 4 ? from - 4 : 0);
    vi moved = _mm256_srl_epi32(_mm256_sll_epi32(high, left), right);
    return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8((char)mask)));
}
static inline vi vi_lookup(vi codes, const uint8_t *table16)
{
    __m128i table = _mm_loadu_si128((const __m128i *)table16);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes);
}
static inline void vf_from_e4m3(vi words, vf columns[4])
{
    const __m128i quad = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i bytes = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(quad));
    bytes = _mm256_permutevar8x32_epi32(bytes, order);
    for (int i = 0; i < 2; i++) {
        __m128i two = i ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
        __m256i halves = _mm256_slli_epi16(_mm256_cvtepi8_epi16(two), 7);
        halves = _mm256_and_si256(halves, _mm256_set1_epi16((short)0xbf80));
        columns[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        columns[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    }
}
/* Each half of the table is looked at, and bit 3 chooses. */
static inline vf vf_look_up(vi words, int place, const float *table16)
{
    __m256i at = _mm256_srli_epi32(words, place);
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table16), at),
           high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table16 + 8), at);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
/* u <= 127 keeps each sum of two products within int16. */
static inline vi vi_dot4(vi a, vi u, vi s)
{
    __m256i pairs = _mm256_maddubs_epi16(u, s);
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline vi vi_begin_off(int32_t minus_128_sum)
{
    (void)minus_128_sum;
    return _mm256_setzero_si256();
}
/* |w| <= 128 and |s| <= 127: two products are at most 32,512. */
static inline vi vi_dot4_off(vi a, vi u, vi s)
{
    __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(s, w));
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
