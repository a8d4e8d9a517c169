/* simdgroup_matrix.h: <metal_simdgroup_matrix>: 8 x 8 matrices spread over a SIMD-group. */
#pragma once
#include "simd.h"

namespace metal
{

template <class T, int Cols, int Rows> struct simdgroup_matrix {
    static_assert(Cols == 8 && Rows == 8, "only 8x8 matrices exist");
    static_assert(is_floating_point<T>::value, "simdgroup_matrix of half, bfloat or float");
    vec<T, 2> elements;
    simdgroup_matrix() = default;
    explicit MSL_FN simdgroup_matrix(T x) : elements(x) {}
    MSL_FN vec<T, 2> &thread_elements() { return elements; }
    MSL_FN const vec<T, 2> &thread_elements() const { return elements; }
};
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Cols, int Rows = Cols>
MSL_FN simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T value)
{
    return simdgroup_matrix<T, Cols, Rows>(value);
}

#if MSL_RACES
/* Metal does not say which lane moves which element. A runtime that looks for races sees the next
 * lane read each as well: a barrier counts even where the layout above gives two accesses to one
 * lane. */
template <class T>
MSL_FN void msl_read_of_next_lane(const T *from, ulong stride, bool transpose, uint lane)
{
    lane = (lane + 1) % MSL_SIMD_WIDTH;
    const ulong row = msl_matrix_row(lane), column = msl_matrix_column(lane);
    for (uint i = 0; i < 2; ++i) {
        const ulong at = transpose ? (column + i) * stride + row : row * stride + column + i;
        (void)*(const volatile T *)(from + at);
    }
}
#define MSL_ALSO_READ(from, stride, transpose, lane)                                               \
    msl_read_of_next_lane(from, stride, transpose, lane)
#else
#define MSL_ALSO_READ(from, stride, transpose, lane)
#endif

/* `stride` elements from a row to the next; `origin` is (column, row). */
#define MSL_LOAD_AND_STORE(space)                                                                  \
    template <class T>                                                                             \
    MSL_FN void simdgroup_load(simdgroup_matrix<T, 8, 8> &to, const space T *from,                 \
                               ulong stride = 8, ulong2 origin = 0, bool transpose = false,        \
                               MSL_LINE)                                                           \
    {                                                                                              \
        const uint lane = msl_lane_of("simdgroup_load", line);                                     \
        const ulong row = msl_matrix_row(lane), column = msl_matrix_column(lane);                  \
        from += origin[1] * stride + origin[0];                                                    \
        to.elements[0] = transpose ? from[column * stride + row] : from[row * stride + column];    \
        to.elements[1] =                                                                           \
            transpose ? from[(column + 1) * stride + row] : from[row * stride + column + 1];       \
        MSL_ALSO_READ(from, stride, transpose, lane);                                              \
    }                                                                                              \
    template <class T>                                                                             \
    MSL_FN void simdgroup_store(simdgroup_matrix<T, 8, 8> from, space T *to, ulong stride = 8,     \
                                ulong2 origin = 0, bool transpose = false, MSL_LINE)               \
    {                                                                                              \
        const uint lane = msl_lane_of("simdgroup_store", line);                                    \
        const ulong row = msl_matrix_row(lane), column = msl_matrix_column(lane);                  \
        to += origin[1] * stride + origin[0];                                                      \
        to[transpose ? column * stride + row : row * stride + column] = from.elements[0];          \
        to[transpose ? (column + 1) * stride + row : row * stride + column + 1] =                  \
            from.elements[1];                                                                      \
    }
#if MSL_CHECK
MSL_LOAD_AND_STORE(device);
MSL_LOAD_AND_STORE(threadgroup);
#else
MSL_LOAD_AND_STORE();
#endif
#undef MSL_LOAD_AND_STORE
#undef MSL_ALSO_READ

/* d = a b + c, summed in float. */
template <class D, class A, class B, class C>
MSL_FN void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c,
                                          MSL_LINE)
{
    float d0 = (float)c.elements[0], d1 = (float)c.elements[1];
    msl_multiply_add(d0, d1, (float)a.elements[0], (float)a.elements[1], (float)b.elements[0],
                     (float)b.elements[1], line);
    d.elements[0] = (D)d0;
    d.elements[1] = (D)d1;
}
template <class D, class A, class B>
MSL_FN void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, MSL_LINE)
{
    simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D, 8, 8>(D(0.0f)), line);
}

} // namespace metal
