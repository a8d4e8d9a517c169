/* builtins.cpp: the functions of Metal's library as Apple's compiler names them in AIR, made of our
 * stand-in's. Those of matrices have vectors of 64 floats, of which each lane's two are the first;
 * library.py takes them apart. */
#include "msl.h"
using namespace metal;

#define AIR(name) __asm__("air." name) __attribute__((visibility("hidden"), used, noinline))
#define ONE(id, type, name, expression)                                                            \
    type id(type) AIR(name);                                                                       \
    type id(type x) { return expression; }
#define TWO(id, type, name, expression)                                                            \
    type id(type, type) AIR(name);                                                                 \
    type id(type x, type y) { return expression; }
#define SHIFT(id, type, name, function)                                                            \
    type id(type, short) AIR(name);                                                                \
    type id(type x, short by) { return function(x, (ushort)by); }
#define CONVERT(id, to, from, name)                                                                \
    to id(from) AIR(name);                                                                         \
    to id(from x) { return (to)x; }

extern "C" {
ONE(sum_f32, float, "simd_sum.f32", simd_sum(x))
ONE(sum_f16, half, "simd_sum.f16", simd_sum(x))
ONE(max_f32, float, "simd_max.f32", simd_max(x))
ONE(max_f16, half, "simd_max.f16", simd_max(x))
SHIFT(down_f32, float, "simd_shuffle_down.f32", simd_shuffle_down)
SHIFT(xor_f32, float, "simd_shuffle_xor.f32", simd_shuffle_xor)
SHIFT(xor_f16, half, "simd_shuffle_xor.f16", simd_shuffle_xor)
ONE(rsqrt_f32, float, "rsqrt.f32", rsqrt(x))
ONE(fast_rsqrt_f32, float, "fast_rsqrt.f32", rsqrt(x))
ONE(exp_f32, float, "exp.f32", exp(x))
ONE(fast_exp_f32, float, "fast_exp.f32", exp(x))
ONE(exp2_f32, float, "exp2.f32", exp2(x))
ONE(fast_exp2_f32, float, "fast_exp2.f32", exp2(x))
ONE(log2_f32, float, "log2.f32", log2(x))
TWO(fmax_f32, float, "fmax.f32", fmax(x, y))
TWO(fast_fmax_f32, float, "fast_fmax.f32", fmax(x, y))
TWO(min_s32, int, "min.s.i32", min(x, y))
TWO(max_s32, int, "max.s.i32", max(x, y))
TWO(min_s16, short, "min.s.i16", min(x, y))
int clamp_s32(int, int, int) AIR("clamp.s.i32");
int clamp_s32(int x, int low, int high) { return clamp(x, low, high); }
CONVERT(f32_s32, float, int, "convert.f.f32.s.i32")
CONVERT(f32_u32, float, uint, "convert.f.f32.u.i32")
CONVERT(f32_u8, float, uchar, "convert.f.f32.u.i8")
CONVERT(f16_u8, half, uchar, "convert.f.f16.u.i8")
CONVERT(f16_u16, half, ushort, "convert.f.f16.u.i16")
CONVERT(f16_u32, half, uint, "convert.f.f16.u.i32")
CONVERT(f32_u16, float, ushort, "convert.f.f32.u.i16")
uchar uniform_i1(uchar) AIR("is_uniform.i1");
uchar uniform_i1(uchar) { return 0; }
uchar uniform_i32(int) AIR("is_uniform.i32");
uchar uniform_i32(int) { return 0; }
uchar predicate(uchar) AIR("normalize_function_constant_predicate.i8");
uchar predicate(uchar x) { return x & 1; }

void barrier(int, int) AIR("wg.barrier");
void barrier(int flags, int) { msl_rt_barrier(flags, 0); }
void simdgroup_meet(int, int) AIR("simdgroup.barrier");
void simdgroup_meet(int, int) { msl_rt_simdgroup_barrier(0); }

/* d = a b + c, of a lane's two elements each. */
void air_multiply_add(const float *a, const float *b, const float *c, float *d)
{
    float d0 = c[0], d1 = c[1];
    msl_multiply_add(d0, d1, a[0], a[1], b[0], b[1], 0);
    d[0] = d0, d[1] = d1;
}
}
