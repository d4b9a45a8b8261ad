// Keys and values into the cache, and attention over them: tiles of 32 positions inside segments of 512, folded in
// order (docs/arithmetic.md). A segment's result does not depend on who else is computed with it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/ref/float_math.h"
#include "kernels/ref/ref_kernels.h"
#include "tensor/float16.h"

namespace still::ref {

namespace {
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Where one position of one head lies.
struct KvSlot {
  const KvHeadView& kv;
  std::uint8_t* block;
  std::int64_t offset;  // in the block

  KvSlot(const KvHeadView& view, std::int64_t pos)
      : kv(view),
        block(view.base + view.block_table[pos / view.block_size] * view.block_bytes),
        offset(pos % view.block_size) {}

  std::int64_t key_idx(std::int32_t dim) const {
    return (offset / kKvTile * kv.head_dim + dim) * kKvTile + offset % kKvTile;
  }
  std::int64_t value_idx(std::int32_t dim) const { return offset * kv.head_dim + dim; }
  std::int64_t key_scale_idx(std::int32_t group) const {
    return (offset / kKvTile * n_groups() + group) * kKvTile + offset % kKvTile;
  }
  std::int64_t value_scale_idx(std::int32_t group) const { return offset * n_groups() + group; }
  std::int64_t n_groups() const { return kv.head_dim / kv_group(kv.head_dim); }

  float f16_at(std::int64_t part, std::int64_t idx) const {
    std::uint16_t bits;
    std::memcpy(&bits, block + part + 2 * idx, 2);
    return f16_to_f32(bits);
  }
  void put_f16(std::int64_t part, std::int64_t idx, float value) const {
    const std::uint16_t bits = f32_to_f16(value);
    std::memcpy(block + part + 2 * idx, &bits, 2);
  }
  // An element of a float cache.
  float float_at(std::int64_t part, std::int64_t idx) const {
    if (kv.type == KvType::kF16) return f16_at(part, idx);
    float value;
    std::memcpy(&value, block + part + 4 * idx, 4);
    return value;
  }
  void put_float(std::int64_t part, std::int64_t idx, float value) const {
    if (kv.type == KvType::kF16) return put_f16(part, idx, value);
    std::memcpy(block + part + 4 * idx, &value, 4);
  }
  float int8_at(std::int64_t part, std::int64_t idx) const {
    return static_cast<float>(static_cast<std::int8_t>(block[part + idx]));
  }
};

// One group of a key or value to int8; returns the scale as f32 (already rounded to f16).
float quantize_group(const float* x, std::int32_t n, std::int8_t* q) {
  float amax = 0;
  bool finite = true;
  for (std::int32_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    amax = std::fmax(amax, std::fabs(x[i]));
  }
  const float scale = finite ? f16_to_f32(f32_to_f16(amax / 127.0f)) : std::numeric_limits<float>::quiet_NaN();
  for (std::int32_t i = 0; i < n; ++i) {
    const bool zero = !finite || scale == 0.0f;
    const float scaled = zero ? 0.0f : std::nearbyintf(x[i] / scale);
    q[i] = static_cast<std::int8_t>(std::clamp(scaled, -127.0f, 127.0f));
  }
  return scale;
}

float score(const KvSlot& slot, const float* q, float scale) {
  const KvHeadView& kv = slot.kv;
  float acc = 0;
  if (kv.type != KvType::kInt8) {
    for (std::int32_t d = 0; d < kv.head_dim; ++d)
      acc = std::fma(q[d], slot.float_at(kv.k_offset, slot.key_idx(d)), acc);
    return acc * scale;
  }
  const std::int32_t group = kv_group(kv.head_dim);
  for (std::int32_t g = 0; g < kv.head_dim / group; ++g) {
    float sum = 0;
    for (std::int32_t d = g * group; d < (g + 1) * group; ++d)
      sum = std::fma(q[d], slot.int8_at(kv.k_offset, slot.key_idx(d)), sum);
    acc = std::fma(sum, slot.f16_at(kv.k_scale_offset, slot.key_scale_idx(g)), acc);
  }
  return acc * scale;
}

// o = fma(p, v, o)
void add_value(const KvSlot& slot, float p, float* o) {
  const KvHeadView& kv = slot.kv;
  const std::int32_t group = kv_group(kv.head_dim);
  for (std::int32_t d = 0; d < kv.head_dim; ++d) {
    if (kv.type != KvType::kInt8) {
      o[d] = std::fma(p, slot.float_at(kv.v_offset, slot.value_idx(d)), o[d]);
    } else {
      const float scaled = p * slot.f16_at(kv.v_scale_offset, slot.value_scale_idx(d / group));
      o[d] = std::fma(scaled, slot.int8_at(kv.v_offset, slot.value_idx(d)), o[d]);
    }
  }
}

// Running maximum, sum and output of one query head.
struct Softmax {
  float m = kMinusInfinity;
  float l = 0;
};

// The visible positions [begin, end) of one tile.
void attend_tile(const AttentionArgs& args, const float* q, std::int64_t begin, std::int64_t end, Softmax& state,
                 float* o) {
  float s[kKvTile];
  float max = state.m;
  for (std::int64_t pos = begin; pos < end; ++pos) {
    const float value = score(KvSlot(args.kv, pos), q, args.scale);
    s[pos % kKvTile] = value;
    max = value > max ? value : max;
  }
  const float correction = state.m == kMinusInfinity ? 0.0f : exp_f32(state.m - max);
  float partial[16] = {};
  for (std::int64_t pos = begin; pos < end; ++pos) {
    const std::int64_t j = pos % kKvTile;
    s[j] = exp_f32(s[j] - max);
    partial[j % 16] += s[j];
  }
  state.l = std::fma(state.l, correction, fold16(partial));
  state.m = max;
  for (std::int32_t d = 0; d < args.kv.head_dim; ++d) o[d] *= correction;
  for (std::int64_t pos = begin; pos < end; ++pos) add_value(KvSlot(args.kv, pos), s[pos % kKvTile], o);
}

// total += part; a part in which nothing was visible (l = 0) is skipped, the first other one is taken over.
void fold_segment(const Softmax& part, const float* part_o, std::int32_t head_dim, Softmax& total, float* o) {
  if (part.l == 0.0f) return;
  if (total.l == 0.0f) {
    total = part;
    std::copy(part_o, part_o + head_dim, o);
    return;
  }
  const float max = part.m > total.m ? part.m : total.m;
  const float a = exp_f32(total.m - max), b = exp_f32(part.m - max);
  total.l = std::fma(total.l, a, part.l * b);
  total.m = max;
  for (std::int32_t d = 0; d < head_dim; ++d) o[d] = std::fma(o[d], a, part_o[d] * b);
}
}  // namespace

void kv_write(const KvHeadView& kv, std::int64_t pos, const float* k, const float* v) {
  const KvSlot slot(kv, pos);
  if (kv.type != KvType::kInt8) {
    for (std::int32_t d = 0; d < kv.head_dim; ++d) {
      slot.put_float(kv.k_offset, slot.key_idx(d), k[d]);
      slot.put_float(kv.v_offset, slot.value_idx(d), v[d]);
    }
    return;
  }
  const std::int32_t group = kv_group(kv.head_dim);
  std::vector<std::int8_t> q(static_cast<std::size_t>(group));
  for (std::int32_t g = 0; g < kv.head_dim / group; ++g) {
    slot.put_f16(kv.k_scale_offset, slot.key_scale_idx(g), quantize_group(k + g * group, group, q.data()));
    for (std::int32_t i = 0; i < group; ++i)
      slot.block[kv.k_offset + slot.key_idx(g * group + i)] = static_cast<std::uint8_t>(q[static_cast<std::size_t>(i)]);
    slot.put_f16(kv.v_scale_offset, slot.value_scale_idx(g), quantize_group(v + g * group, group, q.data()));
    for (std::int32_t i = 0; i < group; ++i)
      slot.block[kv.v_offset + slot.value_idx(g * group + i)] =
          static_cast<std::uint8_t>(q[static_cast<std::size_t>(i)]);
  }
}

void attention(const AttentionArgs& args) {
  const std::int32_t head_dim = args.kv.head_dim;
  std::vector<float> segment_o(static_cast<std::size_t>(head_dim));
  for (std::int64_t i = 0; i < args.n_q; ++i) {
    const std::int64_t pos = args.q_pos + i;
    const std::int64_t first = args.window > 0 ? std::max<std::int64_t>(0, pos + 1 - args.window) : 0;
    const std::int64_t begin = std::max(first, args.kv_begin), end = std::min(pos + 1, args.kv_end);
    for (std::int32_t h = 0; h < args.group; ++h) {
      const float* q = args.q + i * args.q_stride + h * head_dim;
      float* o = args.out + i * args.out_stride + h * head_dim;
      Softmax total;
      std::fill(o, o + head_dim, 0.0f);
      for (std::int64_t segment = begin / kKvSegment * kKvSegment; segment < end; segment += kKvSegment) {
        Softmax part;
        std::fill(segment_o.begin(), segment_o.end(), 0.0f);
        const std::int64_t segment_end = std::min(segment + kKvSegment, end);
        for (std::int64_t tile = std::max(segment, begin) / kKvTile * kKvTile; tile < segment_end; tile += kKvTile) {
          attend_tile(args, q, std::max(tile, begin), std::min(tile + kKvTile, segment_end), part, segment_o.data());
        }
        fold_segment(part, segment_o.data(), head_dim, total, o);
      }
      if (args.finish) {
        for (std::int32_t d = 0; d < head_dim; ++d) o[d] /= total.l;
      } else {
        args.m[i * args.group + h] = total.m;
        args.l[i * args.group + h] = total.l;
      }
    }
  }
}

void attention_merge(const AttentionMergeArgs& args) {
  for (std::int64_t h = 0; h < args.n_heads; ++h) {
    Softmax total;
    float* out = args.out + h * args.head_dim;
    std::fill(out, out + args.head_dim, 0.0f);
    for (std::int64_t part = 0; part < args.n_parts; ++part) {
      const std::int64_t idx = part * args.n_heads + h;
      fold_segment({args.m[idx], args.l[idx]}, args.o + idx * args.head_dim, args.head_dim, total, out);
    }
    for (std::int32_t d = 0; d < args.head_dim; ++d) out[d] /= total.l;
  }
}

}  // namespace still::ref
