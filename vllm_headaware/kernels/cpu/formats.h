// How elements lie in a block.
//
// Unquantised formats work on granules: 32 elements side by side. Quantised formats work on quads:
// 32 lanes of 4 elements each, the shape of integer dot products. Where K is stored a lane is a
// token and the 4 are channels; where V is stored a lane is a channel and the 4 are tokens. Scales
// lie apart.
#pragma once

#include "abi.h"
#include "vec.h"

namespace {

struct Float32 {
  static constexpr int granule_bytes = 128;
  static constexpr bool quantised = false;
  static vf read(const uint8_t* granule, int j) {
    return load(reinterpret_cast<const float*>(granule) + j * W);
  }
  static void write(uint8_t* granule, int i, float x) { std::memcpy(granule + 4 * i, &x, 4); }
};

struct BFloat16 {
  static constexpr int granule_bytes = 64;
  static constexpr bool quantised = false;
  static vf read(const uint8_t* granule, int j) {
    vi wide = __builtin_convertvector(*reinterpret_cast<const vu16*>(granule + 2 * W * j), vi) << 16;
    return (vf)wide;
  }
  static void write(uint8_t* granule, int i, float x) {
    uint16_t half = to_bf16(x);
    std::memcpy(granule + 2 * i, &half, 2);
  }
};

struct Float16 {
  static constexpr int granule_bytes = 64;
  static constexpr bool quantised = false;
  static vf read(const uint8_t* granule, int j) {
    const uint8_t* p = granule + 2 * W * j;
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__) && HA_WIDTH == 8
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    vf x;
    for (int i = 0; i < W; ++i) {
      uint16_t half;
      std::memcpy(&half, p + 2 * i, 2);
      x[i] = from_f16(half);
    }
    return x;
#endif
  }
  static void write(uint8_t* granule, int i, float x) {
    const float largest = 65504.0f;  // a value out of range must not become infinite
    uint16_t half = to_f16(x > largest ? largest : x < -largest ? -largest : x);
    std::memcpy(granule + 2 * i, &half, 2);
  }
};

// Both are rotated, which spreads outlier channels before rounding (see attend.cpp). Symmetric: value =
// scale * q, q in -127..127. K is stored as q + 128, V as q: what u8 x s8 dot
// products take.
struct Int8 {
  static constexpr int quad_bytes = 128;
  static constexpr bool quantised = true;
  static constexpr int lowest = -127, highest = 127;
  static constexpr int key_offset = 128, value_offset = 0;

  template <bool is_value>
  static void write(uint8_t* quad, int lane, int k, int q) {
    quad[lane * 4 + k] = uint8_t(is_value ? q : q + key_offset);
  }
};

// Asymmetric: value = low + scale * q, q in 0..15. Lanes i and i + 16 share bytes. Values are read as
// (low + 8 scale) + scale * (q - 8): were all integers of one sign, what a weight is rounded by would
// shift all channels alike, and the rotation back would gather that in one of them.
struct Int4 {
  static constexpr int quad_bytes = 64;
  static constexpr bool quantised = true;
  static constexpr int lowest = 0, highest = 15;
  static constexpr int key_offset = 0, value_offset = 8;

  template <bool is_value>
  static void write(uint8_t* quad, int lane, int k, int q) {
    uint8_t& byte = quad[lane % 16 * 4 + k];
    byte = lane < 16 ? uint8_t((byte & 0xf0) | q) : uint8_t((byte & 0x0f) | q << 4);
  }
};

template <class Part>
constexpr int element_bits() {
  if constexpr (Part::quantised)
    return Part::quad_bytes / 16;
  else
    return Part::granule_bytes / 4;
}
template <class Part>
constexpr bool has_low() {
  if constexpr (Part::quantised) return Part::lowest == 0;
  return false;
}

// How a class stores K and V; quantised are both or neither.
template <class K, class V = K>
struct Kept {
  using Key = K;
  using Value = V;
  static constexpr bool quantised = K::quantised;
  static_assert(K::quantised == V::quantised);
};

// Where the parts of one head's share of a block lie:
//   K  [block_tokens / 32] tiles of [head_size] granules, a granule = a channel of 32 tokens
//      quantised: of [head_size / 4] quads
//   V  [block_tokens] rows of [head_size / 32] granules
//      quantised: [block_tokens / 4] rows of [head_size / 32] quads
//   quantised only: bfloat16 [block_tokens] each of K scale, V scale and, where they are
//      asymmetric, K low, V low
template <class F>
struct Region {
  using Key = typename F::Key;
  using Value = typename F::Value;
  uint8_t* base;
  int block_tokens, head_size;

  int key_bytes() const { return head_size * element_bits<Key>() / 8; }  // of one token
  int value_bytes() const { return head_size * element_bits<Value>() / 8; }
  uint8_t* key_tile(int tile) const { return base + int64_t(tile) * GRANULE * key_bytes(); }
  uint8_t* values() const { return base + int64_t(block_tokens) * key_bytes(); }
  uint16_t* scales() const {
    return reinterpret_cast<uint16_t*>(values() + block_tokens * value_bytes());
  }
  uint16_t* key_scale() const { return scales(); }
  uint16_t* value_scale() const { return scales() + block_tokens; }
  uint16_t* key_low() const { return scales() + 2 * block_tokens; }
  uint16_t* value_low() const { return scales() + (has_low<Key>() ? 3 : 2) * block_tokens; }

  // Channel i of a token, as its format's write wants it: a number, or the integer it was quantised to.
  template <class Element>
  void write_key(int token, int i, Element x) const {
    uint8_t* tile = key_tile(token / GRANULE);
    if constexpr (F::quantised)
      Key::template write<false>(tile + i / 4 * Key::quad_bytes, token % GRANULE, i % 4, x);
    else
      Key::write(tile + i * Key::granule_bytes, token % GRANULE, x);
  }
  template <class Element>
  void write_value(int token, int i, Element x) const {
    if constexpr (F::quantised)
      Value::template write<true>(
          values() + token / 4 * 4 * value_bytes() + i / GRANULE * Value::quad_bytes, i % GRANULE,
          token % 4, x);
    else
      Value::write(values() + token * value_bytes() + i / GRANULE * Value::granule_bytes,
                   i % GRANULE, x);
  }
  // Unquantised only. Numbers of W tokens' channel i, from token `tile * 32 + j * W` on.
  vf read_keys(int tile, int i, int j) const {
    return Key::read(key_tile(tile) + i * Key::granule_bytes, j);
  }
  // Unquantised only. Numbers of W channels of a token, from channel i on.
  vf read_values(int token, int i) const {
    return Value::read(values() + token * value_bytes() + i / GRANULE * Value::granule_bytes,
                       i % GRANULE / W);
  }
};

}  // namespace
