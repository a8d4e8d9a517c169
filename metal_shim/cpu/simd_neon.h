/* simd_neon.h: 4 lanes with NEON and its dot product; i8mm adds 2 x 8 by 8 x 2 products. */
#include <arm_neon.h>

#define V_LANES 4
typedef float32x4_t vf;
typedef int32x4_t vi;

static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }
static inline vf vf_set1(float a) { return vdupq_n_f32(a); }
static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_abs(vf a) { return vabsq_f32(a); }
static inline vf vf_round(vf a) { return vrndnq_f32(a); }
static inline vf vf_scale2(vf a, vf n)
{
    int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
}
static inline float vf_reduce_add(const vf a[4])
{
    float32x4_t low = vaddq_f32(a[0], a[2]), high = vaddq_f32(a[1], a[3]);
    float32x4_t pairs = vpaddq_f32(low, high), fours = vpaddq_f32(pairs, pairs);
    return vgetq_lane_f32(fours, 0) + vgetq_lane_f32(fours, 1);
}
static inline float vf_reduce_max(vf a) { return vmaxvq_f32(a); }
static inline vf vf_keep_from(vf a, vf t)
{
    return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(a, t), vreinterpretq_u32_f32(a)));
}
static inline int vf_count_from(vf a, vf t)
{
    return (int)vaddvq_u32(vshrq_n_u32(vcgeq_f32(a, t), 31));
}
static inline vf vf_fraction(vf a) { return vf_sub(a, vf_round(a)); }
static inline void vf_reduce_add4(const vf a[4][4], float sums[4])
{
    for (int i = 0; i < 4; i++) sums[i] = vf_reduce_add(a[i]);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void vf_store_i8(int8_t *p, vf a)
{
    int16x4_t words = vmovn_s32(vcvtnq_s32_f32(a));
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    memcpy(p, &four, 4);
}
static inline vf vf_load_exponents(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    uint32x4_t e = vmovl_u16(vget_low_u16(words)),
               bits = vmaxq_u32(vshlq_n_u32(e, 23), vdupq_n_u32(0x00400000)),
               none = vandq_u32(vceqq_u32(e, vdupq_n_u32(255)), vdupq_n_u32(0x7fc00000));
    return vreinterpretq_f32_u32(vorrq_u32(bits, none));
}
static inline vf vf_load_i8(const int8_t *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
static inline vf vf_from_i32(vi a) { return vcvtq_f32_s32(a); }

static inline vi vi_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
static inline vi vi_set1(int32_t a) { return vdupq_n_s32(a); }
static inline vi vi_low_nibbles(vi a)
{
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(a), vdupq_n_u8(15)));
}
static inline vi vi_high_nibbles(vi a)
{
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), 4));
}
static inline vi vi_or_bits(vi low, vi high, int from, int mask)
{
    uint8x16_t moved = vshlq_u8(vreinterpretq_u8_s32(high), vdupq_n_s8((int8_t)(4 - from)));
    moved = vandq_u8(moved, vdupq_n_u8((uint8_t)mask));
    return vreinterpretq_s32_u8(vorrq_u8(vreinterpretq_u8_s32(low), moved));
}
static inline vi vi_lookup(vi codes, const uint8_t *table16)
{
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table16), vreinterpretq_u8_s32(codes)));
}
static inline void vf_from_e4m3(vi words, vf columns[4])
{
    static const uint8_t quad[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    int8x16_t bytes = vqtbl1q_s8(vreinterpretq_s8_s32(words), vld1q_u8(quad));
    for (int i = 0; i < 2; i++) {
        int16x8_t wide = vmovl_s8(i ? vget_high_s8(bytes) : vget_low_s8(bytes));
        uint16x8_t halves =
            vandq_u16(vreinterpretq_u16_s16(vshlq_n_s16(wide, 7)), vdupq_n_u16(0xbf80));
        columns[2 * i] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(halves)));
        columns[2 * i + 1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(halves)));
    }
}
/* The four bytes of a number lie side by side in the table. */
static inline vf vf_look_up(vi words, int place, const float *table16)
{
    const uint8_t *p = (const uint8_t *)table16;
    uint8x16x4_t table = {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
    uint32x4_t at = vshlq_u32(vreinterpretq_u32_s32(words), vdupq_n_s32(-place));
    at = vmulq_u32(vandq_u32(at, vdupq_n_u32(15)), vdupq_n_u32(0x04040404));
    at = vaddq_u32(at, vdupq_n_u32(0x03020100));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(at)));
}
static inline vi vi_dot4(vi a, vi u, vi s)
{
    return vdotq_s32(a, vreinterpretq_s8_s32(u), vreinterpretq_s8_s32(s));
}
static inline vi vi_begin_off(int32_t minus_128_sum)
{
    (void)minus_128_sum;
    return vdupq_n_s32(0);
}
static inline vi vi_dot4_off(vi a, vi u, vi s)
{
    int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(u), vdupq_n_u8(128)));
    return vdotq_s32(a, w, vreinterpretq_s8_s32(s));
}

#if defined(MARLIN_ISA_I8MM)
/* Bytes stored with 128 added become signed. */
static inline vi vi_remove_off(vi a)
{
    return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(a), vdupq_n_u8(128)));
}
static inline vi vi_zip_low(vi a, vi b) { return vzip1q_s32(a, b); }
static inline vi vi_zip_high(vi a, vi b) { return vzip2q_s32(a, b); }
static inline vi vi_even(vi a, vi b) { return vuzp1q_s32(a, b); }
static inline vi vi_odd(vi a, vi b) { return vuzp2q_s32(a, b); }
static inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi vi_load_halves(const int8_t *low, const int8_t *high)
{
    return vreinterpretq_s32_s8(vcombine_s8(vld1_s8(low), vld1_s8(high)));
}
/* a[2i + j] + sum over l < 8 of w[8i + l] * x[8j + l], all signed bytes. */
static inline vi vi_mmla(vi a, vi w, vi x)
{
    return vmmlaq_s32(a, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
#endif
