// The C interface of the CPU kernels: plain structs, no Python, no torch.
// library.py mirrors every struct here with ctypes.
#pragma once

#include <cstdint>

enum HaDtype : int32_t { HA_FLOAT32, HA_BFLOAT16, HA_FLOAT16, HA_INT8, HA_INT4, HA_K8V4 };

// One head class of one layer. Strides are in bytes; `cache` points at block 0, head 0.
struct HaClass {
  uint8_t* cache;
  int64_t block_stride;
  int64_t head_stride;
  const int32_t* kv_heads;  // indices of its heads in the layer
  int32_t num_kv_heads;
  int32_t block_tokens;
  int32_t dtype;
  int32_t sink;    // visible first tokens, a multiple of block_tokens
  int32_t window;  // visible last tokens before rounding out; 0 or less: all from token -window on
  int32_t exact;   // 1: the window is the model's own and is not rounded out
};

struct HaLayer {
  const HaClass* classes;
  int32_t num_classes;
  int32_t num_query_heads;
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t io_dtype;  // of query, key, value and output
  float scale;
  float soft_cap;  // logits become cap x tanh(logits / cap); 0: they stay
  const float* sink_logits;  // [num_query_heads], logits that no value belongs to; or null
};

// What one class needs to know of a step: requests, their queries, their blocks.
struct HaStep {
  const int32_t* query_start;  // [num_requests + 1]
  const int32_t* seq_lens;     // [num_requests], this step's queries included
  const int32_t* block_table;  // [num_requests][table_stride]
  int64_t table_stride;
  int32_t num_requests;
  const int32_t* windows;  // [num_requests], as HaClass::window; null: the class's for all
  const int32_t* reading_windows;  // [num_requests], for queries of a prompt; null: as windows
  const int32_t* prompt_lens;  // [num_requests], earlier queries are of the prompt; null: none is
  float* mass;             // [num_requests][table_stride] attention mass per block, added to; or null
};

// [num_tokens, heads, head_size], heads and elements dense; stride in elements.
struct HaRows {
  void* data;
  int64_t stride;
};

struct HaCall {
  const HaLayer* layer;
  const HaStep* const* steps;  // one per class
  HaRows query, key, value, output;
};
