// y = W x over packed panels: integers inside a block, one fma chain between blocks (docs/arithmetic.md).
#include <cmath>

#include "kernels/packing.h"
#include "kernels/ref/packed_block.h"
#include "kernels/ref/ref_kernels.h"

namespace still::ref {

namespace {
// One block's contribution to the accumulator of one output element.
float accumulate_block(const PackedBlock& block, const std::int8_t* q, float s, const std::int16_t* sums, float acc) {
  std::int32_t dot = 0, min_dot = 0;
  for (int sub = 0; sub * block.sub_size < block.size; ++sub) {
    std::int32_t sub_dot = 0, sub_sum = 0;
    for (int i = 0; i < block.sub_size; ++i) sub_dot += block.w[sub * block.sub_size + i] * q[sub * block.sub_size + i];
    for (int i = 0; i < block.sub_size / 16; ++i) sub_sum += sums[sub * (block.sub_size / 16) + i];
    dot += block.scale[sub] * sub_dot;
    if (block.has_min) min_dot += block.size == 32 ? sub_sum : block.min[sub] * sub_sum;
  }
  acc = std::fma(block.d * s, static_cast<float>(dot), acc);
  if (!block.has_min) return acc;
  const float m = block.size == 32 ? block.m * s : -(block.m * s);
  return std::fma(m, static_cast<float>(min_dot), acc);
}

void linear_quantized(PackedFormat format, const LinearArgs& args, const std::uint8_t* panel, int lane,
                      std::int64_t out) {
  const std::int64_t n_blocks = args.k / args.x.block;
  for (std::int64_t row = 0; row < args.n_rows; ++row) args.y[row * args.y_stride + out] = 0.0f;
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    const PackedBlock block = unpack_block(format, panel, n_blocks, b, lane);
    for (std::int64_t row = 0; row < args.n_rows; ++row) {
      float& acc = args.y[row * args.y_stride + out];
      acc = accumulate_block(block, args.x.q + row * args.k + b * args.x.block, args.x.scale[row * n_blocks + b],
                             args.x.sums + (row * args.k + b * args.x.block) / 16, acc);
    }
  }
}

void linear_float(PackedFormat format, const LinearArgs& args, const std::uint8_t* panel, int lane, std::int64_t out) {
  for (std::int64_t row = 0; row < args.n_rows; ++row) {
    const float* x = args.x_f32 + row * args.x_stride;
    float acc = 0;
    for (std::int64_t i = 0; i < args.k; ++i) acc = std::fma(packed_float(format, panel, i, lane), x[i], acc);
    args.y[row * args.y_stride + out] = acc;
  }
}
}  // namespace

template <PackedFormat kFormat>
void linear(const LinearArgs& args) {
  for (std::int64_t p = args.panel_begin; p < args.panel_end; ++p) {
    const std::uint8_t* panel = args.weights + p * args.panel_bytes;
    for (int lane = 0; lane < kPanelRows && p * kPanelRows + lane < args.n_out; ++lane) {
      if constexpr (kFormat <= PackedFormat::kBF16) {
        linear_float(kFormat, args, panel, lane, p * kPanelRows + lane);
      } else {
        linear_quantized(kFormat, args, panel, lane, p * kPanelRows + lane);
      }
    }
  }
}

#define STILL_INSTANTIATE(format) template void linear<PackedFormat::format>(const LinearArgs& args);
STILL_INSTANTIATE(kF32)
STILL_INSTANTIATE(kF16)
STILL_INSTANTIATE(kBF16)
STILL_INSTANTIATE(kQ4_0)
STILL_INSTANTIATE(kQ4_1)
STILL_INSTANTIATE(kQ5_0)
STILL_INSTANTIATE(kQ5_1)
STILL_INSTANTIATE(kQ8_0)
STILL_INSTANTIATE(kIQ4_NL)
STILL_INSTANTIATE(kQ2_K)
STILL_INSTANTIATE(kQ3_K)
STILL_INSTANTIATE(kQ4_K)
STILL_INSTANTIATE(kQ5_K)
STILL_INSTANTIATE(kQ6_K)
STILL_INSTANTIATE(kIQ4_XS)

}  // namespace still::ref
