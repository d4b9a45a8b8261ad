#include "kernels/testing.h"

#include <cmath>
#include <cstring>
#include <numbers>

#include "base/check.h"
#include "kernels/packing.h"
#include "kernels/ref/ref_kernels.h"
#include "quant/blocks.h"
#include "tensor/float16.h"

namespace still::testing {

AlignedBytes::AlignedBytes(std::int64_t size) : size_((size + 63) / 64 * 64) {
  if (size_ == 0) return;
  data_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(64, static_cast<std::size_t>(size_))));
  STILL_CHECK(data_ != nullptr);
  std::memset(data_.get(), 0, static_cast<std::size_t>(size_));
}

std::vector<float> random_floats(Rng& rng, std::int64_t n, float deviation) {
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) {  // Box and Muller 1958
    const double radius = std::sqrt(-2 * std::log(1 - rng.uniform()));
    value = deviation * static_cast<float>(radius * std::cos(2 * std::numbers::pi * rng.uniform()));
  }
  return values;
}

namespace {
// A block of random bits; the caller then sets its f16 fields.
template <class Block>
Block random_block(Rng& rng) {
  Block block;
  auto* bytes = reinterpret_cast<unsigned char*>(&block);
  for (std::size_t i = 0; i < sizeof(Block); ++i) bytes[i] = static_cast<unsigned char>(rng.next() >> 40);
  return block;
}
std::uint16_t random_scale(Rng& rng, float size) {
  return f32_to_f16(static_cast<float>(0.5 + rng.uniform()) * size);
}
template <class Block>
void write_symmetric(Rng& rng, std::vector<std::uint8_t>& rows, float size) {
  for (std::size_t at = 0; at < rows.size(); at += sizeof(Block)) {
    Block block = random_block<Block>(rng);
    block.d = random_scale(rng, rng.below(2) == 0 ? size : -size);
    std::memcpy(&rows[at], &block, sizeof(Block));
  }
}
template <class Block>
void write_with_m(Rng& rng, std::vector<std::uint8_t>& rows, float size, float m) {
  for (std::size_t at = 0; at < rows.size(); at += sizeof(Block)) {
    Block block = random_block<Block>(rng);
    block.d = random_scale(rng, size);
    block.m = random_scale(rng, m);
    std::memcpy(&rows[at], &block, sizeof(Block));
  }
}
template <class Block>
void write_with_dmin(Rng& rng, std::vector<std::uint8_t>& rows, float size, float dmin) {
  for (std::size_t at = 0; at < rows.size(); at += sizeof(Block)) {
    Block block = random_block<Block>(rng);
    block.d = random_scale(rng, size);
    block.dmin = random_scale(rng, dmin);
    std::memcpy(&rows[at], &block, sizeof(Block));
  }
}
}  // namespace

std::vector<std::uint8_t> random_file_rows(Rng& rng, PackedFormat format, std::int64_t n_rows, std::int64_t k,
                                           float deviation) {
  STILL_CHECK(k % packed_tile_k(format) == 0);
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(dtype_bytes(packed_dtype(format), n_rows * k)));
  switch (format) {
    case PackedFormat::kF32:
    case PackedFormat::kF16:
    case PackedFormat::kBF16: {
      const std::vector<float> values = random_floats(rng, n_rows * k, deviation);
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (format == PackedFormat::kF32) {
          std::memcpy(&rows[4 * i], &values[i], 4);
        } else {
          const std::uint16_t bits = format == PackedFormat::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
          std::memcpy(&rows[2 * i], &bits, 2);
        }
      }
      break;
    }
    // The divisors are the root mean squares of random quants (times random sub-block scales).
    case PackedFormat::kQ4_0:
      write_symmetric<BlockQ4_0>(rng, rows, deviation / 4.6f);
      break;
    case PackedFormat::kQ5_0:
      write_symmetric<BlockQ5_0>(rng, rows, deviation / 9.2f);
      break;
    case PackedFormat::kQ8_0:
      write_symmetric<BlockQ8_0>(rng, rows, deviation / 74.0f);
      break;
    case PackedFormat::kIQ4_NL:
      write_symmetric<BlockIQ4_NL>(rng, rows, deviation / 70.0f);
      break;
    case PackedFormat::kQ4_1:
      write_with_m<BlockQ4_1>(rng, rows, deviation / 4.6f, -7.5f * deviation / 4.6f);
      break;
    case PackedFormat::kQ5_1:
      write_with_m<BlockQ5_1>(rng, rows, deviation / 9.2f, -15.5f * deviation / 9.2f);
      break;
    case PackedFormat::kQ2_K:
      write_with_dmin<BlockQ2_K>(rng, rows, deviation / 10, 1.5f * deviation / 10);
      break;
    case PackedFormat::kQ4_K:
      write_with_dmin<BlockQ4_K>(rng, rows, deviation / 168, 7.5f * deviation / 168);
      break;
    case PackedFormat::kQ5_K:
      write_with_dmin<BlockQ5_K>(rng, rows, deviation / 336, 15.5f * deviation / 336);
      break;
    case PackedFormat::kQ3_K:
      write_symmetric<BlockQ3_K>(rng, rows, deviation / 42);
      break;
    case PackedFormat::kQ6_K:
      write_symmetric<BlockQ6_K>(rng, rows, deviation / 1370);
      break;
    case PackedFormat::kIQ4_XS:
      write_symmetric<BlockIQ4_XS>(rng, rows, deviation / 1300);
      break;
  }
  return rows;
}

PackedMatrix random_packed_matrix(Rng& rng, PackedFormat format, std::int64_t n_out, std::int64_t k, float deviation) {
  PackedMatrix matrix{
      format, n_out, k, packed_panel_bytes(format, k), random_file_rows(rng, format, n_out, k, deviation), {}};
  matrix.packed = AlignedBytes(packed_bytes(format, n_out, k));
  kRefKernels.pack[static_cast<int>(format)]({.source = matrix.file_rows.data(),
                                              .row_map = nullptr,
                                              .row_bytes = matrix.row_bytes(),
                                              .n_out = n_out,
                                              .k = k,
                                              .panel_begin = 0,
                                              .panel_end = matrix.n_panels(),
                                              .packed = matrix.packed.data(),
                                              .panel_bytes = matrix.panel_bytes});
  return matrix;
}

std::vector<float> PackedMatrix::decoded_row(std::int64_t row) const {
  std::vector<float> values(static_cast<std::size_t>(k));
  decode_packed_row(format, packed.data(), panel_bytes, k, row, values.data());
  return values;
}

QuantizedActivations quantize_activations(const std::vector<float>& x, std::int64_t n_rows, std::int64_t k,
                                          std::int32_t block) {
  QuantizedActivations result;
  result.n_rows = n_rows;
  result.k = k;
  result.block = block;
  result.q.resize(static_cast<std::size_t>(n_rows * k));
  result.scale.resize(static_cast<std::size_t>(n_rows * k / block));
  result.sums.resize(static_cast<std::size_t>(n_rows * k / 16));
  kRefKernels.quantize_rows(x.data(), k, n_rows, k, block, result.q.data(), result.scale.data(), result.sums.data());
  return result;
}

}  // namespace still::testing
