// Empty: include/msl/msl.h has the declarations. The pragma outlives preprocessing.
#pragma msl_include simd / simd.h
