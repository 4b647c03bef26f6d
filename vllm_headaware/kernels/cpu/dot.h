// Integer dot products on quads: rows of 8-bit (queries) or about 16-bit integers (weights) against
// lanes of 8-bit ones.
//
// A row is narrowed once and used against many quads. With VNNI a weight is split in two bytes, so
// that stored bytes need no widening; elsewhere rows are 16-bit and stored bytes are widened.
#pragma once

#include <algorithm>
#include <type_traits>

#include "formats.h"

namespace {

constexpr int LANES = GRANULE;  // of a quad

// What a row of integers is. Queries are rotated as keys are, which leaves them no large channels, and
// 8 bits cost them less than 8 bits cost the keys. Weights multiply values and are >= 0; one large
// weight must not round the many small ones beside it to nothing, so they have about 16 bits, and 8
// where all of them are small beside the row's other weights.
enum class Row { query, weight, small_weight };

// What is added to small weights before they are cut to whole numbers, so that of many weights below
// one step as many become one step as makes their sum right.
// A function, since nothing may run in this file when the library is loaded: the machine may lack its
// instructions.
inline vf dither() {
  vf x;
  for (int i = 0; i < W; ++i) x[i] = ((i * 7 % 16) + 0.5f) / 16;
  return x;
}

// [N] numbers x as integers, x = step * integer.
template <int N, Row kind>
struct Narrow {
  static constexpr bool is_query = kind == Row::query;
  float step;     // above 0
  int32_t total;  // of the integers
#if defined(__AVX512VNNI__)
  // A weight of 16 bits is 256 * hi + lo, both unsigned; small ones are hi alone, as are queries, signed.
  static constexpr bool two_bytes = kind == Row::weight;
  static constexpr int most = is_query ? 127 : two_bytes ? 65535 : 255;
  alignas(64) int8_t hi[N], lo[two_bytes ? N : 1];  // N is a multiple of 64
#else
  static constexpr bool two_bytes = false;
  static constexpr int most = is_query ? 127 : 32767;
  alignas(64) int16_t x[N];
#endif

  // Rounds n numbers, a multiple of the vector width, none above `largest`. Not for NaN.
  void set(const float* from, int n, float largest) {
    step = std::max(largest / most, 1e-37f);
    const float inverse = largest > 0 ? most / largest : 0;
    vi sum = {};
    auto integers = [&](int i) {
      const vf x = load(from + i) * inverse;
      const vi q = kind == Row::small_weight ? whole_part(x + dither()) : nearest(x);
      sum += q;
      return q;
    };
#if defined(__AVX512VNNI__)
    for (int i = 0; i < n; i += 4 * W) {
      __m512i q[4] = {};
      for (int j = 0; j < 4 && i + j * W < n; ++j) q[j] = (__m512i)integers(i + j * W);
      if (two_bytes) {
        const __m512i a = _mm512_packus_epi32(q[0], q[1]), b = _mm512_packus_epi32(q[2], q[3]);
        const __m512i low = _mm512_set1_epi16(255);
        put(hi + i, _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8)));
        put(lo + i, _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low)));
      } else {
        const __m512i a = _mm512_packs_epi32(q[0], q[1]), b = _mm512_packs_epi32(q[2], q[3]);
        put(hi + i, is_query ? _mm512_packs_epi16(a, b) : _mm512_packus_epi16(a, b));
      }
    }
#else
    for (int i = 0; i < n; i += W) {
      const vi q = integers(i);
#if defined(__AVX2__)
      const __m256i y = (__m256i)q;
      _mm_store_si128((__m128i*)(x + i),
                      _mm_packs_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)));
#else
      for (int k = 0; k < W; ++k) x[i + k] = int16_t(q[k]);
#endif
    }
#endif
    total = 0;
    for (int i = 0; i < W; ++i) total += sum[i];
  }

#if defined(__AVX512VNNI__)
  // Bytes of four vectors that were packed in pairs, which interleaves their quarters.
  static void put(int8_t* to, __m512i bytes) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, bytes));
  }
#endif
};

#if defined(__AVX512VNNI__)
// Adds to every lane of sum the products of its 4 unsigned and 4 signed bytes. Not the intrinsic: GCC
// copies its sum to another register and back.
inline __m512i add_dots(__m512i sum, __m512i of_unsigned, __m512i of_signed) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(of_unsigned), "v"(of_signed));
  return sum;
}
#endif

// Runs of quads, one after the other: where each begins, and what to ask memory for meanwhile.
struct Runs {
  const uint8_t* const* begin;
  const uint8_t* const* next;
  int count;
  int64_t offset;     // of the first quad in every run
  int64_t quad_step;  // bytes from quad to quad
  int quads;          // of every run

  // `use` takes the number of a quad, its place and the place to ask memory for.
  template <class Use>
  void each(Use use) const {
    int n = 0;
    for (int run = 0; run < count; ++run) {
      const uint8_t* quad = begin[run] + offset;
      const uint8_t* ahead = next[run] + offset;
      for (const int end = n + quads; n < end; ++n, quad += quad_step, ahead += quad_step)
        use(n, quad, ahead);
    }
  }
};

// GCC keeps arrays in registers only where it unrolls the loops over them early.
#define HA_UNROLL _Pragma("GCC unroll 16")

// out[r][lane] = sum over quads and the 4 elements of a lane of row[r] * stored, where keys are what is
// stored less key_offset, and values less value_offset. A function of its own, because its sums need
// all registers.
template <class F, bool fetch, int R, int N, Row kind>
__attribute__((noinline)) void quad_dot(const Narrow<N, kind>* rows, const Runs& runs,
                                        int32_t (*out)[LANES]) {
  constexpr bool is_value = kind != Row::query;
  constexpr bool packed = F::quad_bytes == 64;  // two lanes' elements share a byte
  auto offset = [&](int r) { return -(is_value ? F::value_offset : F::key_offset) * rows[r].total; };
#if defined(__AVX512VNNI__)
  constexpr bool two_bytes = Narrow<N, kind>::two_bytes;
  __m512i hi[R][2], lo[two_bytes ? R : 1][2];
  HA_UNROLL for (int r = 0; r < R; ++r)
    HA_UNROLL for (int half = 0; half < 2; ++half) {
      hi[r][half] = two_bytes ? _mm512_setzero_si512() : _mm512_set1_epi32(offset(r));
      if (two_bytes) lo[r][half] = _mm512_set1_epi32(offset(r));
    }
  runs.each([&](int n, const uint8_t* quad, const uint8_t* ahead) {
    if (fetch) __builtin_prefetch(ahead, 0, 2);
    if (fetch && !packed) __builtin_prefetch(ahead + 64, 0, 2);
    __m512i x[2] = {_mm512_loadu_si512(quad), _mm512_loadu_si512(quad + (packed ? 0 : 64))};
    if (packed) {
      x[0] = _mm512_and_si512(x[0], _mm512_set1_epi8(15));
      x[1] = _mm512_and_si512(_mm512_srli_epi16(x[1], 4), _mm512_set1_epi8(15));
    }
    HA_UNROLL for (int r = 0; r < R; ++r) {
      int32_t a, b;
      std::memcpy(&a, rows[r].hi + 4 * n, 4);
      const __m512i y = _mm512_set1_epi32(a);
      HA_UNROLL for (int half = 0; half < 2; ++half)
        hi[r][half] = is_value ? add_dots(hi[r][half], y, x[half]) : add_dots(hi[r][half], x[half], y);
      if (two_bytes) {
        std::memcpy(&b, rows[r].lo + 4 * n, 4);
        const __m512i z = _mm512_set1_epi32(b);
        HA_UNROLL for (int half = 0; half < 2; ++half) lo[r][half] = add_dots(lo[r][half], z, x[half]);
      }
    }
  });
  HA_UNROLL for (int r = 0; r < R; ++r)
    HA_UNROLL for (int half = 0; half < 2; ++half)
      _mm512_storeu_si512(out[r] + 16 * half,
                          two_bytes ? _mm512_add_epi32(_mm512_slli_epi32(hi[r][half], 8), lo[r][half])
                                    : hi[r][half]);
#elif defined(__AVX2__)
  for (int half = 0; half < 2; ++half) {
    const int from = packed ? 0 : 64 * half;
    __m256i sum[R][4];
    HA_UNROLL for (int r = 0; r < R; ++r)
      HA_UNROLL for (int p = 0; p < 4; ++p) sum[r][p] = _mm256_setzero_si256();
    runs.each([&](int n, const uint8_t* quad, const uint8_t* ahead) {
      if (fetch) __builtin_prefetch(ahead + from, 0, 2);
      HA_UNROLL for (int p = 0; p < 4; ++p) {
        __m128i bytes = _mm_loadu_si128((const __m128i*)(quad + from + 16 * p));
        if (packed)
          bytes = _mm_and_si128(half ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
        const __m256i x =
            is_value && !packed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
        HA_UNROLL for (int r = 0; r < R; ++r) {
          int64_t y;
          std::memcpy(&y, rows[r].x + 4 * n, 8);
          sum[r][p] = _mm256_add_epi32(sum[r][p], _mm256_madd_epi16(x, _mm256_set1_epi64x(y)));
        }
      }
    });
    HA_UNROLL for (int r = 0; r < R; ++r)
      HA_UNROLL for (int p = 0; p < 4; p += 2) {
        const __m256i pairs = _mm256_hadd_epi32(sum[r][p], sum[r][p + 1]);
        _mm256_storeu_si256((__m256i*)(out[r] + 16 * half + 4 * p),
                            _mm256_add_epi32(_mm256_permute4x64_epi64(pairs, 0xd8),
                                             _mm256_set1_epi32(offset(r))));
      }
  }
#else
  for (int r = 0; r < R; ++r)
    for (int lane = 0; lane < LANES; ++lane) out[r][lane] = offset(r);
  runs.each([&](int n, const uint8_t* quad, const uint8_t*) {
    for (int r = 0; r < R; ++r)
      for (int lane = 0; lane < LANES; ++lane)
        for (int k = 0; k < 4; ++k) {
          const uint8_t byte = quad[4 * (packed ? lane % 16 : lane) + k];
          const int x = packed ? (lane < 16 ? byte & 15 : byte >> 4) : is_value ? int8_t(byte) : byte;
          out[r][lane] += x * rows[r].x[4 * n + k];
        }
  });
#endif
}

// The same for any number of rows; `use` takes a row's index and its LANES sums. With `fetch`, memory is
// asked for once, by the first rows.
template <class F, int N, Row kind, class Use>
inline void quad_dots(const Narrow<N, kind>* rows, int num_rows, const Runs& runs, bool fetch,
                      Use use) {
  // What registers hold the sums of.
  constexpr int MOST = W < 16 ? 3 : kind == Row::weight ? 6 : 12;
  alignas(64) int32_t sums[MOST][LANES];
  int r = 0;
  auto pass = [&](auto count, auto fetching) {
    constexpr int R = decltype(count)::value;
    if (r + R > num_rows) return false;
    quad_dot<F, decltype(fetching)::value, R>(rows + r, runs, sums);
    for (int i = 0; i < R; ++i) use(r + i, sums[i]);
    r += R;
    return true;
  };
  auto widest = [&](auto fetching) {
    return pass(std::integral_constant<int, MOST>{}, fetching) ||
           (MOST > 6 && pass(std::integral_constant<int, 6>{}, fetching)) ||
           (MOST > 3 && pass(std::integral_constant<int, 3>{}, fetching)) ||
           pass(std::integral_constant<int, 2>{}, fetching) ||
           pass(std::integral_constant<int, 1>{}, fetching);
  };
  if (fetch && num_rows) widest(std::true_type{});
  while (r < num_rows) widest(std::false_type{});
}

}  // namespace
