/* matrix.h: <metal_matrix>: float4x4 and its kin, stored as columns. Only what kernels use them
 * for, a block of numbers with an element-wise conversion; no linear algebra. */
#pragma once
#include "vector.h"

namespace metal
{

template <class T, int Cols, int Rows> struct matrix {
    vec<T, Rows> columns[Cols];
    matrix() = default;
    template <class U> explicit MSL_FN matrix(const matrix<U, Cols, Rows> &from)
    {
        for (int i = 0; i < Cols; ++i) columns[i] = msl_make<vec<T, Rows>>(from.columns[i]);
    }
    /* The diagonal; everything else is 0. */
    explicit MSL_FN matrix(T value)
    {
        for (int i = 0; i < Cols; ++i)
            for (int j = 0; j < Rows; ++j) columns[i][j] = i == j ? value : T(0);
    }
    MSL_FN vec<T, Rows> &operator[](int i) { return columns[i]; }
    MSL_FN const vec<T, Rows> &operator[](int i) const { return columns[i]; }
};

} // namespace metal

#define MSL_MATRIX(T, C, R)                                                                        \
    typedef metal::matrix<T, C, R> T##C##x##R;                                                     \
    namespace metal                                                                                \
    {                                                                                              \
    using ::T##C##x##R;                                                                            \
    }
#define MSL_MATRICES(T, C)                                                                         \
    MSL_MATRIX(T, C, 2)                                                                            \
    MSL_MATRIX(T, C, 3)                                                                            \
    MSL_MATRIX(T, C, 4)
MSL_MATRICES(half, 2);
MSL_MATRICES(half, 3);
MSL_MATRICES(half, 4);
MSL_MATRICES(float, 2);
MSL_MATRICES(float, 3);
MSL_MATRICES(float, 4);
#undef MSL_MATRICES
#undef MSL_MATRIX
