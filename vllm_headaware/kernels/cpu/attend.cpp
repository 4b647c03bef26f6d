// Write this step's K and V into their blocks, then attend: all head classes of a layer at once.
// Compiled once per instruction set; HA_ENTRY names the result.
//
// Work is cut into items: the rows (query token x query head) of one KV head of one request,
// against one range of its visible tokens. Ranges are cut at fixed places (flash-decoding,
// arXiv 2311.01282), so how a request is computed does not depend on what else is in the batch or
// on the number of threads, and their results are merged in order.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "dot.h"

namespace {

constexpr int RANGE_TILES = 16;       // 512 tokens: key range of one item when decoding
constexpr int LONG_RANGE_TILES = 64;  // of one item with many rows
constexpr int PANEL_TILES = 8;        // tiles whose scores are kept before the softmax goes on
constexpr int PANEL = PANEL_TILES * GRANULE;
constexpr int FETCH_BYTES = 8192;     // how far ahead of use memory is asked for
constexpr int MAX_ROWS = 64;          // rows of one item
constexpr int FEW_ROWS = 8;           // with more rows, make floats of a 16-bit tile first
constexpr int MAX_HEAD = 512;
constexpr int SMALL = 7;  // weights below 2^-7 of what a row has in all are small
constexpr float LOG2E = 1.4426950408889634f;
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// acc[r] += sum over k < n of a[r][k] * b[k], for R rows of a and granules b. Asks memory for what
// lies at `next` in the same steps.
template <class F, int R>
inline void rows_times_granules(const float* a, int a_stride, const uint8_t* b, const uint8_t* next,
                                int b_step, int n, float* acc, int acc_stride) {
  vf sum[R][NV];
  HA_UNROLL for (int r = 0; r < R; ++r)
    HA_UNROLL for (int j = 0; j < NV; ++j) sum[r][j] = load(acc + r * acc_stride + j * W);
  for (int k = 0; k < n; ++k, b += b_step, next += b_step) {
    for (int line = 0; line < F::granule_bytes; line += 64) __builtin_prefetch(next + line, 0, 2);
    vf x[NV];
    HA_UNROLL for (int j = 0; j < NV; ++j) x[j] = F::read(b, j);
    HA_UNROLL for (int r = 0; r < R; ++r) {
      vf y = splat(a[r * a_stride + k]);
      HA_UNROLL for (int j = 0; j < NV; ++j) sum[r][j] += y * x[j];
    }
  }
  HA_UNROLL for (int r = 0; r < R; ++r)
    HA_UNROLL for (int j = 0; j < NV; ++j) store(acc + r * acc_stride + j * W, sum[r][j]);
}

// The same for any number of rows: as many at once as there are registers for.
template <class F>
inline void multiply(const float* a, int a_stride, const uint8_t* b, const uint8_t* next, int b_step,
                     int n, float* acc, int acc_stride, int rows) {
  constexpr int MOST = W == 16 ? 12 : W == 8 ? 3 : 1;
  int r = 0;
  auto pass = [&](auto count) {
    constexpr int R = decltype(count)::value;
    for (; r + R <= rows; r += R)
      rows_times_granules<F, R>(a + r * a_stride, a_stride, b, next, b_step, n,
                                acc + r * acc_stride, acc_stride);
  };
  pass(std::integral_constant<int, MOST>{});
  if constexpr (MOST > 6) pass(std::integral_constant<int, 6>{});
  if constexpr (MOST > 4) pass(std::integral_constant<int, 4>{});
  if constexpr (MOST > 3) pass(std::integral_constant<int, 3>{});
  if constexpr (MOST > 2) pass(std::integral_constant<int, 2>{});
  if constexpr (MOST > 1) pass(std::integral_constant<int, 1>{});
}

// Hadamard transform over runs of the largest power of two that divides n; its own inverse.
// Spreads outlier channels before rounding to few bits (QuaRot, arXiv 2404.00456).
inline void rotate(float* x, int n) {
  const int run = n & -n;  // at least GRANULE
  const float norm = 1.0f / std::sqrt(float(run));
  for (int i = 0; i < n; i += W)
    store(x + i, butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(x + i) * norm)))));
  for (int h = W; h < run; h *= 2)
    for (int i = 0; i < n; i += 2 * h)
      for (int j = i; j < i + h; j += W) {
        const vf a = load(x + j), b = load(x + j + h);
        store(x + j, a + b);
        store(x + j + h, a - b);
      }
}

inline void read_row(const HaRows& rows, int32_t dtype, int64_t token, int head, int n, float* out) {
  const int64_t at = token * rows.stride + int64_t(head) * n;
  if (dtype == HA_FLOAT32) {
    std::memcpy(out, static_cast<const float*>(rows.data) + at, n * sizeof(float));
    return;
  }
  const uint16_t* p = static_cast<const uint16_t*>(rows.data) + at;
  if (dtype == HA_BFLOAT16)
    for (int i = 0; i < n; ++i) out[i] = from_bf16(p[i]);
  else
    for (int i = 0; i < n; ++i) out[i] = from_f16(p[i]);
}

inline void write_row(const HaRows& rows, int32_t dtype, int64_t token, int head, int n,
                      const float* x) {
  const int64_t at = token * rows.stride + int64_t(head) * n;
  if (dtype == HA_FLOAT32) {
    std::memcpy(static_cast<float*>(rows.data) + at, x, n * sizeof(float));
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(rows.data) + at;
  if (dtype == HA_BFLOAT16)
    for (int i = 0; i < n; ++i) p[i] = to_bf16(x[i]);
  else
    for (int i = 0; i < n; ++i) p[i] = to_f16(x[i]);
}

// Integers of a row and what gives them back: value = low + scale * q.
template <class F>
inline void quantise(float* x, int n, int32_t* q, uint16_t* scale, uint16_t* low) {
  rotate(x, n);
  vf largest = load(x), least = largest;
  for (int i = W; i < n; i += W) {
    largest = vmax(largest, load(x + i));
    least = vmin(least, load(x + i));
  }
  const float most = hmax(largest), fewest = -hmax(-least);
  float step, base = 0;
  if constexpr (F::lowest == 0) {
    *low = to_bf16(fewest);
    base = from_bf16(*low);
    step = (most - base) / F::highest;
  } else {
    step = std::max(most, -fewest) / F::highest;
  }
  *scale = to_bf16(step);
  step = from_bf16(*scale);
  const float inverse = step > 0 ? 1 / step : 0;
  const vf from = splat(F::lowest), to = splat(F::highest);
  for (int i = 0; i < n; i += W)
    *reinterpret_cast<vi_loose*>(q + i) =
        nearest(vmin(vmax((load(x + i) - base) * inverse, from), to));
}

// ---- one head class ------------------------------------------------------------------------------

struct Item {
  int class_index, head, request;
  int first, last;            // query tokens of the request's step
  int tile_begin, tile_end;   // range of visible tiles
  int64_t partial;            // row of the partial results, or -1: the only range
  int64_t cost;
};

// The visible tiles of some query tokens: the sinks', then those from the window's start on.
struct Visible {
  int rounding, window, reading_window, num_prompt, sink_tiles, hidden_tiles, count;

  Visible(const HaClass& c, const HaStep& step, int request, int first_position, int last_position)
      : rounding(c.exact ? 1 : c.block_tokens),
        window(step.windows ? step.windows[request] : c.window),
        reading_window(step.reading_windows ? step.reading_windows[request] : window),
        num_prompt(step.prompt_lens ? step.prompt_lens[request] : 0) {
    const int tiles = last_position / GRANULE + 1;
    const int start = first_visible(first_position) / GRANULE;
    sink_tiles = c.sink / GRANULE;
    hidden_tiles = std::max(start - sink_tiles, 0);
    count = tiles - hidden_tiles;
  }
  int tile(int index) const { return index < sink_tiles ? index : index + hidden_tiles; }

  // Where the panel that begins at an index ends. Panels are cut at fixed places of the sequence, so
  // that how weights are rounded does not depend on which queries are computed together.
  int panel_end(int index, int end) const {
    const int panel = tile(index) / PANEL_TILES;
    while (index < end && tile(index) / PANEL_TILES == panel) ++index;
    return index;
  }

  // Where a range of whole panels ends that has at most so many tiles.
  int range_end(int index, int most) const {
    int end = index;
    for (int next = index; next < count; end = next)
      if ((next = panel_end(next, count)) - index > most) break;
    return end;
  }

  // First token the query at a position sees by its window.
  int first_visible(int position) const {
    const int own = position < num_prompt ? reading_window : window;
    const int oldest = own > 0 ? std::max(position - own + 1, 0) : -own;
    return oldest - oldest % rounding;
  }
};

struct Softmax {
  float most, sum;  // the largest score in units of log2, and the sum of weights relative to it
};

// What a panel did to a row: the factor its earlier output took, and its largest weight's log2.
struct Softened {
  float keep, largest;
};

// The V of a panel, quantised: scale and lowest value of every token, and where each tile begins.
struct PanelValues {
  alignas(64) float scale[PANEL], low[PANEL];
  const uint8_t *begin[PANEL_TILES], *next[PANEL_TILES];
  int64_t quad_step;
};

// The query rows of an item, scaled, and room for one tile made floats.
struct Queries {
  alignas(64) float rows[MAX_ROWS * MAX_HEAD];
  // Quantised only: the rows as integers, and the sums of the rows in their steps.
  Narrow<MAX_HEAD, Row::query> narrow[MAX_ROWS];
  float sums[MAX_ROWS];
  alignas(64) mutable float unpacked[MAX_HEAD * GRANULE];
};

// The weights of a panel as integers, and which rows they are of.
template <Row kind>
struct PanelWeights {
  Narrow<PANEL, kind> narrow[MAX_ROWS];
  int row[MAX_ROWS], count;

  void add(int of, const float* weights, int n, float largest) {
    row[count] = of;
    narrow[count++].set(weights, n, largest);
  }
};

template <class F>
struct Head;

// The tiles of an item in the order they are read, to ask memory for them in time: K of a panel,
// V of the panel, K of the next.
template <class F>
struct Tiles {
  const Head<F>& head;
  const Visible& visible;
  int request, end;

  // Tiles between asking and reading.
  static constexpr int ahead() {
    constexpr int tile_bytes = GRANULE * element_bits<typename F::Key>() * 8;  // for 64 channels
    return std::max(FETCH_BYTES / tile_bytes, 1);
  }

  // What is read ahead() tiles after tile `at` of a panel: K first, then V, then K of the next. Its
  // scales are asked for here, the rest by whoever gets the place.
  const uint8_t* after(int panel, int at, int count) const {
    at += ahead();
    if (at < count) return place(panel + at, false);
    if (at < 2 * count) return place(panel + at - count, true);
    return place(panel + at - count, false);
  }

  const uint8_t* place(int index, bool values) const {
    const int token = visible.tile(std::min(index, end - 1)) * GRANULE;
    const int at = token % head.c.block_tokens;
    const Region<F> r = head.region(request, token);
    if constexpr (F::quantised) {
      __builtin_prefetch((values ? r.value_scale() : r.key_scale()) + at);
      if (values ? has_low<typename F::Value>() : has_low<typename F::Key>())
        __builtin_prefetch((values ? r.value_low() : r.key_low()) + at);
    }
    return values ? r.values() + at * r.value_bytes() : r.key_tile(at / GRANULE);
  }
};

template <class F>
struct Head {
  using Key = typename F::Key;
  using Value = typename F::Value;
  const HaLayer& layer;
  const HaClass& c;
  const HaStep& step;
  int head;  // index in the class

  Region<F> region(int request, int token) const {
    const int64_t block = step.block_table[request * step.table_stride + token / c.block_tokens];
    return {c.cache + block * c.block_stride + head * c.head_stride, c.block_tokens,
            layer.head_size};
  }

  void write(const HaCall& call, int request, int first, int last) const {
    const int D = layer.head_size, own = c.kv_heads[head];
    const int start = step.query_start[request];
    const int context = step.seq_lens[request] - (step.query_start[request + 1] - start);
    float row[MAX_HEAD];
    int32_t q[MAX_HEAD];
    for (int t = first; t < last; ++t) {
      const Region<F> r = region(request, context + t);
      const int at = (context + t) % c.block_tokens;
      const auto put = [&](auto part, const HaRows& rows, uint16_t* scale, uint16_t* low,
                           auto write) {
        read_row(rows, layer.io_dtype, start + t, own, D, row);
        if constexpr (F::quantised) {
          quantise<decltype(part)>(row, D, q, scale + at, low + at);
          for (int i = 0; i < D; ++i) write(i, q[i]);
        } else {
          for (int i = 0; i < D; ++i) write(i, row[i]);
        }
      };
      put(Key{}, call.key, r.key_scale(), r.key_low(),
          [&](int i, auto x) { r.write_key(at, i, x); });
      put(Value{}, call.value, r.value_scale(), r.value_low(),
          [&](int i, auto x) { r.write_value(at, i, x); });
    }
  }

  // Scores of all rows against one tile, in units of log2 times the step of a quantised query.
  void score(const Region<F>& r, int tile, const Queries& q, int rows, float* scores,
             const uint8_t* next) const {
    const int D = layer.head_size;
    if constexpr (F::quantised) {
      vf scale[NV], low[NV];
      key_scales(r, tile, scale, low);
      const uint8_t* quads = r.key_tile(tile);
      quad_dots<Key>(
          q.narrow, rows, {&quads, &next, 1, 0, Key::quad_bytes, D / 4}, true,
          [&](int i, const int32_t* sums) {
            for (int j = 0; j < NV; ++j) {
              vi x = *reinterpret_cast<const vi_loose*>(sums + j * W);
              vf dot = __builtin_convertvector(x, vf) * scale[j];
              if constexpr (has_low<Key>()) dot += low[j] * q.sums[i];
              store(scores + i * PANEL + j * W, dot);
            }
          });
      return;
    } else if (!std::is_same_v<Key, Float32> && rows > FEW_ROWS) {
      for (int k = 0; k < D; ++k)
        for (int j = 0; j < NV; ++j) store(q.unpacked + k * GRANULE + j * W, r.read_keys(tile, k, j));
    } else {
      clear(scores, rows);
      multiply<Key>(q.rows, D, r.key_tile(tile), next, Key::granule_bytes, D, scores, PANEL, rows);
      return;
    }
    clear(scores, rows);
    const uint8_t* unpacked = reinterpret_cast<uint8_t*>(q.unpacked);
    multiply<Float32>(q.rows, D, unpacked, unpacked, Float32::granule_bytes, D, scores, PANEL, rows);
  }

  static void clear(float* scores, int rows) {
    for (int i = 0; i < rows; ++i) std::memset(scores + i * PANEL, 0, GRANULE * sizeof(float));
  }

  static void key_scales(const Region<F>& r, int tile, vf* scale, vf* low) {
    for (int j = 0; j < NV; ++j) {
      const int at = tile * GRANULE + j * W;
      scale[j] = BFloat16::read(reinterpret_cast<const uint8_t*>(r.key_scale() + at), 0);
      low[j] = vf{};
      if constexpr (has_low<Key>())
        low[j] = BFloat16::read(reinterpret_cast<const uint8_t*>(r.key_low() + at), 0);
    }
  }

  void find_values(const Item& item, const Visible& visible, int panel, int count, int last,
                   const Tiles<F>& tiles, PanelValues& values) const {
    for (int i = 0; i < count; ++i) {
      const int token = visible.tile(panel + i) * GRANULE, at = token % c.block_tokens;
      const Region<F> r = region(item.request, token);
      value_scales(r, at, std::min(GRANULE, last + 1 - token), values.scale + i * GRANULE,
                   values.low + i * GRANULE);
      values.begin[i] = r.values() + at * r.value_bytes();
      values.next[i] = tiles.after(panel, count + i, count);
      values.quad_step = 4 * r.value_bytes();
    }
  }

  // Scores of one row become weights as in soften(), the lowest values of V are added to its output,
  // and the weights are multiplied by the scales of V. `largest` is the largest of the products.
  static Softened soften_and_scale(float* scores, int count, float unit, Softmax& state, float* out,
                                   int D, float* mass, const PanelValues& values,
                                   float& largest) {
    vf most = {}, lows = {};
    const Softened softened =
        soften(scores, count, unit, state, out, D, mass, [&](int t, vf weight) {
          const vf scale = load(values.scale + t);
          if constexpr (has_low<Value>())
            lows += weight * (load(values.low + t) + scale * float(Value::value_offset));
          weight *= scale;
          most = vmax(most, weight);
          return weight;
        });
    largest = hmax(most);
    if constexpr (has_low<Value>()) {
      const float sum = hsum(lows);
      for (int k = 0; k < D; k += W) store(out + k, load(out + k) + sum);
    }
    return softened;
  }

  // out[row] += weights[row] x V over the `count` tiles of a panel, in integers. Weights of tokens
  // that a row does not see are 0.
  template <Row kind>
  void accumulate_narrow(const PanelWeights<kind>& weights, const PanelValues& values, int count,
                         bool fetch, float* out) const {
    const int D = layer.head_size;
    for (int i = 0; i < D; i += LANES)
      quad_dots<Value>(weights.narrow, weights.count,
                       {values.begin, values.next, count, i / GRANULE * Value::quad_bytes,
                        values.quad_step, GRANULE / 4},
                       fetch, [&](int n, const int32_t* sums) {
                         float* p = out + weights.row[n] * D + i;
                         for (int k = 0; k < LANES; k += W) {
                           vi x = *reinterpret_cast<const vi_loose*>(sums + k);
                           store(p + k, load(p + k) + __builtin_convertvector(x, vf) *
                                                          weights.narrow[n].step);
                         }
                       });
  }

  // out[row] += weights[row] x V over the first `count` tokens of one tile, in floats.
  void accumulate(const Region<F>& r, int tile, int count, const Queries& q, const float* weights,
                  int rows, float* out, const uint8_t* next) const {
    const int D = layer.head_size, first = tile * GRANULE;
    if (!std::is_same_v<Value, Float32> && rows > FEW_ROWS) {
      for (int t = 0; t < count; ++t)
        for (int i = 0; i < D; i += W) store(q.unpacked + t * D + i, r.read_values(first + t, i));
    } else {
      for (int i = 0; i < D; i += GRANULE)
        multiply<Value>(weights, PANEL,
                        r.values() + first * r.value_bytes() + i / GRANULE * Value::granule_bytes,
                        next + i / GRANULE * Value::granule_bytes, r.value_bytes(), count, out + i,
                        D, rows);
      return;
    }
    for (int i = 0; i < D; i += GRANULE) {
      const uint8_t* unpacked = reinterpret_cast<uint8_t*>(q.unpacked + i);
      multiply<Float32>(weights, PANEL, unpacked, unpacked, D * int(sizeof(float)), count, out + i,
                        D, rows);
    }
  }

  // Scales of tokens that are not there yet may be anything: they become 0.
  static void value_scales(const Region<F>& r, int first, int count, float* scale, float* low) {
    auto read = [&](const uint16_t* from, float* to) {
      for (int j = 0; j < NV; ++j)
        store(to + j * W, BFloat16::read(reinterpret_cast<const uint8_t*>(from + first), j));
      for (int t = count; t < GRANULE; ++t) to[t] = 0;
    };
    read(r.value_scale(), scale);
    if constexpr (has_low<Value>())
      read(r.value_low(), low);
    else
      std::memset(low, 0, GRANULE * sizeof(float));
  }

  // Rows against the item's range: unnormalised output and softmax state per row; where `mass` is
  // not null, also unnormalised sums of weights per row and tile, [rows][LONG_RANGE_TILES].
  void attend(const HaCall& call, const Item& item, float* out, Softmax* state, float* mass) const {
    const int D = layer.head_size, own = c.kv_heads[head];
    const int group = layer.num_query_heads / layer.num_kv_heads;
    const int rows = (item.last - item.first) * group;
    const int start = step.query_start[item.request];
    const int context =
        step.seq_lens[item.request] - (step.query_start[item.request + 1] - start);
    const int first = context + item.first, last = context + item.last - 1;
    const Visible visible(c, step, item.request, first, last);

    static thread_local Queries q;
    alignas(64) static thread_local float scores[MAX_ROWS * PANEL];
    static thread_local PanelWeights<Row::weight> weights;
    static thread_local PanelWeights<Row::small_weight> small_weights;
    PanelValues values;
    for (int i = 0; i < rows; ++i) {
      float* row = q.rows + i * D;
      read_row(call.query, layer.io_dtype, start + item.first + i / group, own * group + i % group,
               D, row);
      if constexpr (F::quantised) rotate(row, D);
      vf sum = {}, largest = {};
      for (int k = 0; k < D; k += W) {
        const vf x = load(row + k) * (layer.scale * LOG2E);
        store(row + k, x);
        sum += x;
        largest = vmax(largest, vmax(x, -x));
      }
      if constexpr (F::quantised) {
        q.narrow[i].set(row, D, hmax(largest));
        q.sums[i] = hsum(sum) / q.narrow[i].step;
      }
      state[i] = {NEVER, 0};
    }
    std::memset(out, 0, sizeof(float) * rows * D);

    const Tiles<F> tiles{*this, visible, item.request, item.tile_end};
    for (int panel = item.tile_begin, count; panel < item.tile_end; panel += count) {
      count = visible.panel_end(panel, item.tile_end) - panel;
      for (int i = 0; i < count; ++i) {
        const int token = visible.tile(panel + i) * GRANULE;
        score(region(item.request, token), token % c.block_tokens / GRANULE, q, rows,
              scores + i * GRANULE, tiles.after(panel, i, count));
        if (layer.soft_cap > 0) cap(q, rows, scores + i * GRANULE);
        hide(visible, token, first, last, group, rows, scores + i * GRANULE);
      }
      if constexpr (F::quantised) find_values(item, visible, panel, count, last, tiles, values);
      weights.count = small_weights.count = 0;
      for (int i = 0; i < rows; ++i) {
        float *row = scores + i * PANEL, *row_out = out + i * D;
        Softened softened;
        float* row_mass = mass ? mass + i * LONG_RANGE_TILES : nullptr;
        const int done = panel - item.tile_begin;
        float* tile_mass = mass ? row_mass + done : nullptr;
        if constexpr (F::quantised) {
          float largest;
          softened = soften_and_scale(row, count, q.narrow[i].step, state[i], row_out, D, tile_mass,
                                      values, largest);
          const bool small = softened.largest < exponent(state[i].sum) - SMALL;
          // The weights of int4 values keep their 16 bits.
          if (small && Narrow<PANEL, Row::weight>::two_bytes && !has_low<Value>())
            small_weights.add(i, row, count * GRANULE, largest);
          else
            weights.add(i, row, count * GRANULE, largest);
        } else
          softened = soften(row, count, 1, state[i], row_out, D, tile_mass,
                            [](int, vf weight) { return weight; });
        for (int t = 0; mass && t < done; ++t) row_mass[t] *= softened.keep;
      }
      if constexpr (F::quantised) {
        accumulate_narrow(weights, values, count, true, out);
        accumulate_narrow(small_weights, values, count, weights.count == 0, out);
      } else {
        for (int i = 0; i < count; ++i) {
          const int token = visible.tile(panel + i) * GRANULE;
          accumulate(region(item.request, token), token % c.block_tokens / GRANULE,
                     std::min(GRANULE, last + 1 - token), q, scores + i * GRANULE, rows, out,
                     tiles.after(panel, count + i, count));
        }
      }
    }
  }

  // cap x tanh(logits / cap), in the units of scores.
  void cap(const Queries& q, int rows, float* scores) const {
    const float most = layer.soft_cap * LOG2E;
    for (int i = 0; i < rows; ++i) {
      float unit = 1;
      if constexpr (F::quantised) unit = q.narrow[i].step;
      for (int t = 0; t < GRANULE; t += W) {
        float* at = scores + i * PANEL + t;
        const vf x = load(at) * (unit / most), size = vmax(x, -x);
        const vf e = exp2_nonpositive<false>(size * (-2 * LOG2E));
        const vf tanh = (1.0f - e) / (1.0f + e) * (most / unit);
        store(at, x < splat(0) ? -tanh : tanh);
      }
    }
  }

  // Scores of tokens a row does not see become -infinity.
  void hide(const Visible& visible, int token, int first, int last, int group, int rows,
            float* scores) const {
    const bool all_past = token + GRANULE - 1 <= first;
    const bool all_in_window = token < c.sink || token >= visible.first_visible(last);
    if (all_past && all_in_window) return;
    for (int i = 0; i < rows; ++i) {
      const int position = first + i / group;
      const int oldest = token < c.sink ? 0 : visible.first_visible(position);
      const int begin = std::min(std::max(oldest - token, 0), GRANULE);
      const int end = std::min(std::max(position + 1 - token, begin), GRANULE);
      for (int t = 0; t < begin; ++t) scores[i * PANEL + t] = NEVER;
      for (int t = end; t < GRANULE; ++t) scores[i * PANEL + t] = NEVER;
    }
  }

  // Scores of one row against the `count` tiles of a panel become weights relative to the largest
  // score so far; earlier output is brought along. `use` takes the place of a vector of weights and
  // the weights, and returns what is to be kept of them; `mass`, if not null, gets the sum of the
  // weights of each tile.
  template <class Use>
  static Softened soften(float* scores, int count, float unit, Softmax& state, float* out, int D,
                         float* mass, Use use) {
    vf most = load(scores);
    for (int t = W; t < count * GRANULE; t += W) most = vmax(most, load(scores + t));
    const float highest = hmax(most) * unit, now = std::max(state.most, highest);
    if (now == NEVER) {  // nothing visible yet
      std::memset(scores, 0, sizeof(float) * count * GRANULE);
      if (mass) std::memset(mass, 0, sizeof(float) * count);
      return {1, NEVER};
    }
    vf sum = {};
    for (int i = 0; i < count; ++i) {
      vf of_tile = {};
      for (int t = i * GRANULE; t < (i + 1) * GRANULE; t += W) {
        const vf weight = exp2_nonpositive<F::quantised>(load(scores + t) * unit - now);
        of_tile += weight;
        store(scores + t, use(t, weight));
      }
      sum += of_tile;
      if (mass) mass[i] = hsum(of_tile);
    }
    const float keep = state.most == NEVER ? 0.0f : std::exp2(state.most - now);
    if (keep != 1.0f && state.most != NEVER)
      for (int k = 0; k < D; k += W) store(out + k, load(out + k) * keep);
    state = {now, state.sum * keep + hsum(sum)};
    return {keep, highest - now};
  }

  // The weight of a row's sink logit, relative to the row's largest score.
  float sink_weight(int row, float most) const {
    if (!layer.sink_logits) return 0;
    const int group = layer.num_query_heads / layer.num_kv_heads;
    return std::exp2(layer.sink_logits[c.kv_heads[head] * group + row % group] * LOG2E - most);
  }

  void finish(const HaCall& call, const Item& item, float* out, const float* sums) const {
    const int D = layer.head_size, own = c.kv_heads[head];
    const int group = layer.num_query_heads / layer.num_kv_heads;
    for (int i = 0; i < (item.last - item.first) * group; ++i) {
      float* row = out + i * D;
      const float inverse = 1 / sums[i];
      for (int k = 0; k < D; ++k) row[k] *= inverse;
      if constexpr (F::quantised) rotate(row, D);
      write_row(call.output, layer.io_dtype, step.query_start[item.request] + item.first + i / group,
                own * group + i % group, D, row);
    }
  }
};

template <class Use>
inline void with_head(const HaCall& call, int class_index, int head, Use use) {
  const HaLayer& layer = *call.layer;
  const HaClass& c = layer.classes[class_index];
  const HaStep& step = *call.steps[class_index];
  switch (c.dtype) {
    case HA_FLOAT32: return use(Head<Kept<Float32>>{layer, c, step, head});
    case HA_BFLOAT16: return use(Head<Kept<BFloat16>>{layer, c, step, head});
    case HA_FLOAT16: return use(Head<Kept<Float16>>{layer, c, step, head});
    case HA_INT8: return use(Head<Kept<Int8>>{layer, c, step, head});
    case HA_INT4: return use(Head<Kept<Int4>>{layer, c, step, head});
    case HA_K8V4: return use(Head<Kept<Int8, Int4>>{layer, c, step, head});
  }
}

// ---- all classes of a layer ----------------------------------------------------------------------

struct Group {  // items of the same rows, whose ranges are merged
  int first_item, num_items;
};

struct Write {
  int class_index, head, request, first, last;
};

struct Schedule {
  std::vector<Write> writes;
  std::vector<Item> items;
  std::vector<int> order;  // of items: dear ones first
  std::vector<Group> groups;
  int64_t partial_rows = 0;
  bool wants_mass = false;

  void plan(const HaCall& call) {
    writes.clear();
    items.clear();
    groups.clear();
    partial_rows = 0;
    wants_mass = false;
    const HaLayer& layer = *call.layer;
    const int group = layer.num_query_heads / layer.num_kv_heads;
    const int most_tokens = std::max(MAX_ROWS / group, 1);
    for (int k = 0; k < layer.num_classes; ++k) {
      const HaClass& c = layer.classes[k];
      const HaStep& step = *call.steps[k];
      wants_mass |= step.mass != nullptr;
      for (int request = 0; request < step.num_requests; ++request) {
        const int count = step.query_start[request + 1] - step.query_start[request];
        const int context = step.seq_lens[request] - count;
        for (int head = 0; head < c.num_kv_heads; ++head) {
          // Tiles are written by one thread each: tokens of a tile may share a byte.
          for (int at = 0, next; at < count; at = next) {
            next = std::min(count, (context + at) / GRANULE * GRANULE + GRANULE - context);
            writes.push_back({k, head, request, at, next});
          }
          for (int at = 0; at < count; at += most_tokens)
            add_rows(c, step, {k, head, request, at, std::min(at + most_tokens, count), 0, 0, -1, 0},
                     context, group);
        }
      }
    }
    order.resize(items.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = int(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return items[a].cost > items[b].cost; });
  }

  void add_rows(const HaClass& c, const HaStep& step, Item item, int context, int group) {
    const Visible visible(c, step, item.request, context + item.first, context + item.last - 1);
    const int rows = (item.last - item.first) * group;
    const int range = item.last - item.first == 1 ? RANGE_TILES : LONG_RANGE_TILES;
    const int first_item = int(items.size());
    const bool whole = visible.count <= range;
    for (int tile = 0; tile < visible.count; tile = item.tile_end) {
      item.tile_begin = tile;
      item.tile_end = visible.range_end(tile, range);
      item.cost = int64_t(item.tile_end - tile) * rows;
      if (!whole) {
        item.partial = partial_rows;
        partial_rows += rows;
      }
      items.push_back(item);
    }
    if (!whole) groups.push_back({first_item, int(items.size()) - first_item});
  }
};

// What an item's rows give to each of its tiles: [items][LONG_RANGE_TILES], then added up per block.
inline void add_mass(const float* row_mass, float factor, int tiles, float* item_mass) {
  for (int t = 0; t < tiles; ++t) item_mass[t] += row_mass[t] * factor;
}

void merge(const HaCall& call, const Schedule& schedule, const Group& group, float* outputs,
           const Softmax* states, const float* row_mass, float* item_mass) {
  const int D = call.layer->head_size;
  const Item& item = schedule.items[group.first_item];
  const int rows =
      (item.last - item.first) * call.layer->num_query_heads / call.layer->num_kv_heads;
  float* out = outputs + item.partial * D;  // the first range takes up the others
  float sums[MAX_ROWS];
  for (int i = 0; i < rows; ++i) {
    float most = NEVER;
    for (int n = 0; n < group.num_items; ++n)
      most = std::max(most, states[item.partial + n * rows + i].most);
    float sum = 0;
    for (int n = 0; n < group.num_items; ++n) {
      const int64_t row = item.partial + n * rows + i;
      const float keep = states[row].most == NEVER ? 0.0f : std::exp2(states[row].most - most);
      sum += states[row].sum * keep;
      for (int k = 0; k < D; k += W) {
        vf x = load(outputs + row * D + k) * keep;
        store(out + i * D + k, n == 0 ? x : load(out + i * D + k) + x);
      }
    }
    with_head(call, item.class_index, item.head,
              [&](const auto& head) { sum += head.sink_weight(i, most); });
    sums[i] = sum;
    for (int n = 0; schedule.wants_mass && n < group.num_items; ++n) {
      const int64_t row = item.partial + n * rows + i;
      const Item& part = schedule.items[group.first_item + n];
      add_mass(row_mass + row * LONG_RANGE_TILES, std::exp2(states[row].most - most) / sum,
               part.tile_end - part.tile_begin,
               item_mass + (group.first_item + n) * LONG_RANGE_TILES);
    }
  }
  with_head(call, item.class_index, item.head,
            [&](const auto& head) { head.finish(call, item, out, sums); });
}

// The mass of all items, in their order, to the blocks of their requests.
void give_mass(const HaCall& call, const Schedule& schedule, const float* item_mass) {
  for (size_t n = 0; n < schedule.items.size(); ++n) {
    const Item& item = schedule.items[n];
    const HaClass& c = call.layer->classes[item.class_index];
    const HaStep& step = *call.steps[item.class_index];
    if (!step.mass) continue;
    const int context = step.seq_lens[item.request] -
                        (step.query_start[item.request + 1] - step.query_start[item.request]);
    const Visible visible(c, step, item.request, context + item.first, context + item.last - 1);
    for (int t = item.tile_begin; t < item.tile_end; ++t)
      step.mass[item.request * step.table_stride + visible.tile(t) * GRANULE / c.block_tokens] +=
          item_mass[n * LONG_RANGE_TILES + t - item.tile_begin];
  }
}

}  // namespace

extern "C" void HA_ENTRY(const HaCall* call_pointer) {
  const HaCall& call = *call_pointer;
  const int D = call.layer->head_size;
  static thread_local Schedule schedule;
  static thread_local std::vector<float> outputs;
  static thread_local std::vector<Softmax> states;
  static thread_local std::vector<float> row_mass, item_mass;
  schedule.plan(call);
  outputs.resize(schedule.partial_rows * D);
  states.resize(schedule.partial_rows);
  if (schedule.wants_mass) {
    row_mass.resize(schedule.partial_rows * LONG_RANGE_TILES);
    item_mass.assign(schedule.items.size() * LONG_RANGE_TILES, 0);
  }
  const Schedule& work = schedule;
  float* partial_outputs = outputs.data();
  Softmax* partial_states = states.data();
  float* partial_mass = row_mass.data();  // null as long as no request was cut in ranges
  float* all_mass = item_mass.data();
  std::atomic<int> next_item{0};

#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (size_t i = 0; i < work.writes.size(); ++i) {
      const Write& w = work.writes[i];
      with_head(call, w.class_index, w.head,
                [&](const auto& head) { head.write(call, w.request, w.first, w.last); });
    }
    alignas(64) static thread_local float own_output[MAX_ROWS * MAX_HEAD];
    Softmax own_state[MAX_ROWS];
    static thread_local float own_mass[MAX_ROWS * LONG_RANGE_TILES];
    for (size_t n; (n = size_t(next_item++)) < work.order.size();) {
      const Item& item = work.items[work.order[n]];
      const bool whole = item.partial < 0;
      float* out = whole ? own_output : partial_outputs + item.partial * D;
      Softmax* state = whole ? own_state : partial_states + item.partial;
      with_head(call, item.class_index, item.head, [&](const auto& head) {
        float* mass = !work.wants_mass ? nullptr
                      : whole          ? own_mass
                                       : partial_mass + item.partial * LONG_RANGE_TILES;
        head.attend(call, item, out, state, mass);
        if (!whole) return;
        float sums[MAX_ROWS];
        const int rows =
            (item.last - item.first) * call.layer->num_query_heads / call.layer->num_kv_heads;
        for (int i = 0; i < rows; ++i) {
          sums[i] = own_state[i].sum + head.sink_weight(i, own_state[i].most);
          if (mass)
            add_mass(mass + i * LONG_RANGE_TILES, 1 / sums[i], item.tile_end - item.tile_begin,
                     all_mass + work.order[n] * LONG_RANGE_TILES);
        }
        head.finish(call, item, out, sums);
      });
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (size_t i = 0; i < work.groups.size(); ++i)
      merge(call, work, work.groups[i], partial_outputs, partial_states, partial_mass, all_mass);
  }
  if (work.wants_mass) give_mass(call, work, all_mass);
}
