/* simd_scalar.h: one lane in plain C: any machine, and the tests' second oracle. */
#define V_LANES 1
typedef float vf;
typedef union {
    int32_t word;
    uint8_t bytes[4];
} vi;

static inline vf vf_load(const float *p) { return *p; }
static inline void vf_store(float *p, vf a) { *p = a; }
static inline vf vf_set1(float a) { return a; }
static inline vf vf_zero(void) { return 0.0f; }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_max(vf a, vf b) { return a > b ? a : b; }
static inline vf vf_fma(vf a, vf b, vf c) { return fmaf(a, b, c); }
static inline vf vf_abs(vf a) { return fabsf(a); }
static inline vf vf_round(vf a) { return nearbyintf(a); }
static inline vf vf_scale2(vf a, vf n)
{
    return n <= -127.0f ? 0.0f : n > -127.0f ? ldexpf(a, (int)n) : n; /* NaN */
}
static inline float vf_reduce_add(const vf a[16])
{
    float f[8];
    for (int i = 0; i < 8; i++) f[i] = a[i] + a[i + 8];
    return ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
}
static inline float vf_reduce_max(vf a) { return a; }
static inline vf vf_keep_from(vf a, vf t) { return a >= t ? a : 0.0f; }
static inline int vf_count_from(vf a, vf t) { return a >= t; }
static inline vf vf_fraction(vf a) { return a - nearbyintf(a); }
static inline void vf_reduce_add4(const vf a[4][16], float sums[4])
{
    for (int i = 0; i < 4; i++) sums[i] = vf_reduce_add(a[i]);
}
static inline float f32_from_f16(uint16_t h);
static inline float f32_from_exponent(uint8_t e);
static inline float f32_from_e4m3(uint8_t code);
static inline float f32_from_bits(uint32_t bits);
static inline vf vf_load_f16(const uint16_t *p) { return f32_from_f16(*p); }
static inline vf vf_load_bf16(const uint16_t *p) { return f32_from_bits((uint32_t)*p << 16); }
static inline void vf_store_i8(int8_t *p, vf a) { *p = (int8_t)nearbyintf(a); }
static inline vf vf_load_i8(const int8_t *p) { return (float)*p; }
static inline vf vf_load_exponents(const uint8_t *p) { return f32_from_exponent(*p); }
static inline vf vf_from_i32(vi a) { return (float)a.word; }

static inline vi vi_load(const void *p)
{
    vi a;
    memcpy(&a, p, 4);
    return a;
}
static inline vi vi_set1(int32_t a) { return (vi){.word = a}; }
static inline vi vi_low_nibbles(vi a) { return (vi){.word = a.word & 0x0f0f0f0f}; }
static inline vi vi_high_nibbles(vi a) { return (vi){.word = a.word >> 4 & 0x0f0f0f0f}; }
static inline vi vi_or_bits(vi low, vi high, int from, int mask)
{
    for (int i = 0; i < 4; i++) low.bytes[i] |= (uint8_t)(high.bytes[i] << 4 >> from & mask);
    return low;
}
static inline vi vi_lookup(vi codes, const uint8_t *table16)
{
    for (int i = 0; i < 4; i++) codes.bytes[i] = table16[codes.bytes[i]];
    return codes;
}
static inline void vf_from_e4m3(vi words, vf columns[4])
{
    for (int i = 0; i < 4; i++) columns[i] = f32_from_e4m3(words.bytes[i]) * 0x1p-8f;
}
static inline vf vf_look_up(vi words, int place, const float *table16)
{
    return table16[(uint32_t)words.word >> place & 15];
}
static inline vi vi_dot4(vi a, vi u, vi s)
{
    for (int i = 0; i < 4; i++) a.word += (int32_t)u.bytes[i] * (int8_t)s.bytes[i];
    return a;
}
static inline vi vi_begin_off(int32_t minus_128_sum)
{
    (void)minus_128_sum;
    return vi_set1(0);
}
static inline vi vi_dot4_off(vi a, vi u, vi s)
{
    for (int i = 0; i < 4; i++) a.word += ((int32_t)u.bytes[i] - 128) * (int8_t)s.bytes[i];
    return a;
}
