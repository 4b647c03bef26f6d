// Integer dot products on quads: rows of 15-bit integers against lanes of 8-bit ones.
//
// A row is narrowed once and used against many quads. With VNNI its integers are split in two
// bytes, x = 128 * hi + lo, so that stored bytes need no widening; elsewhere they are 16-bit and
// stored bytes are widened to 16 bits.
#pragma once

#include "formats.h"

namespace {

constexpr int LANES = GRANULE;  // of a quad
constexpr float NARROW_MOST = 16383;

// [N] numbers x as integers, x = step * integer.
template <int N>
struct Narrow {
  float step;
#if defined(__AVX512VNNI__)
  alignas(64) int8_t hi[N];
  alignas(64) int8_t lo[N];
#else
  alignas(64) int16_t x[N];
#endif

  // Rounds n numbers, a multiple of the vector width. Not for NaN.
  void set(const float* from, int n) {
    vf most = {};
    for (int i = 0; i < n; i += W) most = vmax(most, vmax(load(from + i), -load(from + i)));
    const float largest = hmax(most);
    step = largest / NARROW_MOST;
    const float inverse = largest > 0 ? NARROW_MOST / largest : 0;
    const vf magic = splat(12582912.0f);  // adding and taking it away rounds to an integer
    for (int i = 0; i < n; i += W) {
      vi q = __builtin_convertvector((load(from + i) * inverse + magic) - magic, vi);
#if defined(__AVX512VNNI__)
      _mm_storeu_si128((__m128i*)(hi + i), _mm512_cvtepi32_epi8((__m512i)(q >> 7)));
      _mm_storeu_si128((__m128i*)(lo + i), _mm512_cvtepi32_epi8((__m512i)(q & 127)));
#elif defined(__AVX2__)
      const __m256i y = (__m256i)q;
      _mm_store_si128((__m128i*)(x + i),
                      _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
#else
      for (int k = 0; k < W; ++k) x[i + k] = int16_t(q[k]);
#endif
    }
  }

  int32_t sum(int n) const {
    int32_t total = 0;
    for (int i = 0; i < n; ++i) {
#if defined(__AVX512VNNI__)
      total += 128 * hi[i] + lo[i];
#else
      total += x[i];
#endif
    }
    return total;
  }
};

// out[r][lane] = sum over quads and the 4 elements of a lane of row[r] * stored. Asks memory for what
// lies at `next` in the same steps.
template <class F, bool is_value, int R, int N>
inline void quad_dot(const Narrow<N>* rows, const uint8_t* quad, const uint8_t* next,
                     int64_t quad_step, int quads, int32_t (*out)[LANES]) {
  constexpr bool packed = F::quad_bytes == 64;  // two lanes' elements share a byte
#if defined(__AVX512VNNI__)
  __m512i hi[R][2], lo[R][2];
  for (int r = 0; r < R; ++r)
    for (int half = 0; half < 2; ++half) hi[r][half] = lo[r][half] = _mm512_setzero_si512();
  for (int n = 0; n < quads; ++n, quad += quad_step, next += quad_step) {
    __builtin_prefetch(next, 0, 2);
    if (!packed) __builtin_prefetch(next + 64, 0, 2);
    __m512i x[2] = {_mm512_loadu_si512(quad), _mm512_loadu_si512(quad + (packed ? 0 : 64))};
    if (packed) {
      x[0] = _mm512_and_si512(x[0], _mm512_set1_epi8(15));
      x[1] = _mm512_and_si512(_mm512_srli_epi16(x[1], 4), _mm512_set1_epi8(15));
    }
    for (int r = 0; r < R; ++r) {
      int32_t a, b;
      std::memcpy(&a, rows[r].hi + 4 * n, 4);
      std::memcpy(&b, rows[r].lo + 4 * n, 4);
      const __m512i y = _mm512_set1_epi32(a), z = _mm512_set1_epi32(b);
      for (int half = 0; half < 2; ++half)
        if constexpr (is_value) {
          hi[r][half] = _mm512_dpbusd_epi32(hi[r][half], y, x[half]);
          lo[r][half] = _mm512_dpbusd_epi32(lo[r][half], z, x[half]);
        } else {
          hi[r][half] = _mm512_dpbusd_epi32(hi[r][half], x[half], y);
          lo[r][half] = _mm512_dpbusd_epi32(lo[r][half], x[half], z);
        }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int half = 0; half < 2; ++half)
      _mm512_storeu_si512(out[r] + 16 * half,
                          _mm512_add_epi32(_mm512_slli_epi32(hi[r][half], 7), lo[r][half]));
#elif defined(__AVX2__)
  for (int half = 0; half < 2; ++half) {
    const uint8_t* from = quad + (packed ? 0 : 64 * half);
    const uint8_t* ahead = next + (packed ? 0 : 64 * half);
    __m256i sum[R][4];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < 4; ++p) sum[r][p] = _mm256_setzero_si256();
    for (int n = 0; n < quads; ++n, from += quad_step, ahead += quad_step) {
      __builtin_prefetch(ahead, 0, 2);
      for (int p = 0; p < 4; ++p) {
        __m128i bytes = _mm_loadu_si128((const __m128i*)(from + 16 * p));
        if (packed)
          bytes = _mm_and_si128(half ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
        const __m256i x =
            is_value && !packed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
        for (int r = 0; r < R; ++r) {
          int64_t y;
          std::memcpy(&y, rows[r].x + 4 * n, 8);
          sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(x, _mm256_set1_epi64x(y)));
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < 4; p += 2) {
        const __m256i pairs = _mm256_hadd_epi32(sum[r][p], sum[r][p + 1]);
        _mm256_storeu_si256((__m256i*)(out[r] + 16 * half + 4 * p),
                            _mm256_permute4x64_epi64(pairs, 0xd8));
      }
  }
#else
  (void)next;
  for (int r = 0; r < R; ++r)
    for (int lane = 0; lane < LANES; ++lane) out[r][lane] = 0;
  for (int n = 0; n < quads; ++n, quad += quad_step)
    for (int r = 0; r < R; ++r)
      for (int lane = 0; lane < LANES; ++lane)
        for (int k = 0; k < 4; ++k) {
          const uint8_t byte = quad[4 * (packed ? lane % 16 : lane) + k];
          const int x = packed ? (lane < 16 ? byte & 15 : byte >> 4) : is_value ? int8_t(byte) : byte;
          out[r][lane] += x * rows[r].x[4 * n + k];
        }
#endif
}

// The same for any number of rows; `use` takes a row's index and its LANES sums.
template <class F, bool is_value, int N, class Use>
inline void quad_dots(const Narrow<N>* rows, int num_rows, const uint8_t* quad,
                      const uint8_t* next, int64_t quad_step, int quads, Use use) {
  constexpr int MOST = W == 16 ? 6 : 3;
  alignas(64) int32_t sums[MOST][LANES];
  int r = 0;
  auto pass = [&](auto count) {
    constexpr int R = decltype(count)::value;
    for (; r + R <= num_rows; r += R) {
      quad_dot<F, is_value, R>(rows + r, quad, next, quad_step, quads, sums);
      for (int i = 0; i < R; ++i) use(r + i, sums[i]);
    }
  };
  if constexpr (MOST > 4) pass(std::integral_constant<int, 6>{});
  if constexpr (MOST > 4) pass(std::integral_constant<int, 4>{});
  pass(std::integral_constant<int, 3>{});
  pass(std::integral_constant<int, 2>{});
  pass(std::integral_constant<int, 1>{});
}

}  // namespace
