// Vectors of whatever width this file is compiled for, in GCC's vector extension.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define HA_WIDTH 16
#elif defined(__AVX2__)
#define HA_WIDTH 8
#else
#define HA_WIDTH 4
#endif

namespace {

constexpr int W = HA_WIDTH;   // floats per vector
constexpr int GRANULE = 32;   // elements every loop works on
constexpr int NV = GRANULE / W;

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vf_loose __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t vi_loose __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint16_t vu16 __attribute__((vector_size(W * 2), aligned(2), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_loose*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf_loose*>(p) = x; }
inline vf splat(float x) { return vf{} + x; }
inline vf vmax(vf a, vf b) { return a > b ? a : b; }
inline vf vmin(vf a, vf b) { return a < b ? a : b; }

// Across a vector: halves onto each other until one number is left.
template <class Join>
inline float reduce(vf x, Join join) {
#if HA_WIDTH == 16
  __m256 y = join(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#elif HA_WIDTH == 8
  __m256 y = x;
#endif
#if HA_WIDTH >= 8
  __m128 z = join(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
#else
  vf z = x;
#endif
  typedef int32_t index __attribute__((vector_size(16)));
  z = join(z, __builtin_shuffle(z, index{2, 3, 0, 1}));
  z = join(z, __builtin_shuffle(z, index{1, 0, 3, 2}));
  return z[0];
}
inline float hmax(vf x) {
  return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}
inline float hsum(vf x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}

// Sums of the pairs of elements whose indices differ in the bit h, then their differences.
template <int h>
inline vf butterfly(vf x) {
  if constexpr (h >= W) return x;
  vi other;
  vf sign;
  for (int i = 0; i < W; ++i) {
    other[i] = i ^ h;
    sign[i] = i & h ? -1.0f : 1.0f;
  }
  return __builtin_shuffle(x, other) + x * sign;
}

// The nearest integers; |x| below 2^22.
inline vi nearest(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#else
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it and taking it away rounds
  return __builtin_convertvector((x + magic) - magic, vi);
#endif
}

inline vi whole_part(vf x) { return __builtin_convertvector(x, vi); }

// 2^x for x <= 0; 0 below -126. Relative error below 1e-7, or 8e-5 where a rough value will do
// (polynomials of degree 5 and 3 that are closest on [-0.5, 0.5]).
template <bool rough>
inline vf exp2_nonpositive(vf x) {
#if defined(__AVX512F__)
  vf whole = (vf)_mm512_roundscale_ps((__m512)x, 0);
#else
  const vi integer = nearest(x < splat(-126.0f) ? splat(-126.0f) : x);
  const vf whole = __builtin_convertvector(integer, vf);
#endif
  vf f = x - whole;
  vf p;
  if constexpr (rough) {
    p = f * 5.51716695e-2f + 2.42611125e-1f;
    p = p * f + 6.93260986e-1f;
    p = p * f + 9.99928073e-1f;
  } else {
    p = f * 1.32764606e-3f + 9.67554124e-3f;
    p = p * f + 5.55071331e-2f;
    p = p * f + 2.40221197e-1f;
    p = p * f + 6.93146967e-1f;
    p = p * f + 1.00000007f;
  }
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)splat(-126.0f), _CMP_GE_OQ),
                                    (__m512)p, (__m512)whole);
#else
  vi power = (integer + 127) << 23;
  vf y = p * (vf)power;
  return x < splat(-126.0f) ? vf{} : y;
#endif
}

inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Of a positive float: the largest whole number that is not above its log2.
inline int exponent(float x) { return int(bits_of(x) >> 23) - 127; }

inline float from_bf16(uint16_t x) { return float_of_bits(uint32_t(x) << 16); }

inline uint16_t to_bf16(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);  // NaN stays NaN
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__F16C__)
inline float from_f16(uint16_t x) { return _cvtsh_ss(x); }
inline uint16_t to_f16(float x) { return uint16_t(_cvtss_sh(x, 0)); }
#else
inline float from_f16(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = x & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // 2^112 moves the exponent, subnormals included.
  return float_of_bits(sign | bits_of(float_of_bits(magnitude << 13) * 0x1p112f));
}
inline uint16_t to_f16(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal: let the adder round
    const float rounded = float_of_bits(magnitude) + 0.5f;
    return uint16_t(sign | (bits_of(rounded) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}
#endif

}  // namespace
