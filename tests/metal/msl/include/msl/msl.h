/* msl.h: what a .metal file sees as <metal_stdlib> and its companions. */
#pragma once
#include "atomic.h"
#include "matrix.h"
#include "simdgroup_matrix.h"
#if MSL_COMPAT_BUILTINS
#include "compat_builtins.h"
#endif
#if MSL_CHECK
#include "check_ctors.h"
#endif
