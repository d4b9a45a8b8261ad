// Inputs for the tests and benchmarks of kernels and operators: random matrices in any format, packed, and random
// activations, quantised. Everything follows from a seed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/rng.h"
#include "kernels/kernel_table.h"

namespace still::testing {

// 64-byte aligned memory, zeroed; what kernels ask of scratch and packed weights.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::int64_t size);
  std::uint8_t* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::uint8_t* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<std::uint8_t, Free> data_;
  std::int64_t size_ = 0;
};

// n values, normal with the given standard deviation.
std::vector<float> random_floats(Rng& rng, std::int64_t n, float deviation = 1.0f);

// Rows of a file in `format`: every bit of quants and sub-block scales random, the f16 scales finite, so that a weight
// is about `deviation` large. k: a multiple of packed_tile_k(format).
std::vector<std::uint8_t> random_file_rows(Rng& rng, PackedFormat format, std::int64_t n_rows, std::int64_t k,
                                           float deviation = 0.05f);

// Such a matrix, packed by the reference kernels.
struct PackedMatrix {
  PackedFormat format;
  std::int64_t n_out, k, panel_bytes;
  std::vector<std::uint8_t> file_rows;
  AlignedBytes packed;

  std::int64_t row_bytes() const { return static_cast<std::int64_t>(file_rows.size()) / n_out; }
  std::int64_t n_panels() const { return (n_out + kPanelRows - 1) / kPanelRows; }
  std::vector<float> decoded_row(std::int64_t row) const;
};
PackedMatrix random_packed_matrix(Rng& rng, PackedFormat format, std::int64_t n_out, std::int64_t k,
                                  float deviation = 0.05f);

// Activations quantised by the reference kernels.
struct QuantizedActivations {
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  std::vector<std::int16_t> sums;
  std::int64_t n_rows, k;
  std::int32_t block;

  QuantizedRows view() const { return {q.data(), scale.data(), sums.data(), k, block}; }
  float value(std::int64_t row, std::int64_t i) const {
    return static_cast<float>(q[static_cast<std::size_t>(row * k + i)]) *
           scale[static_cast<std::size_t>((row * k + i) / block)];
  }
};
QuantizedActivations quantize_activations(const std::vector<float>& x, std::int64_t n_rows, std::int64_t k,
                                          std::int32_t block);

}  // namespace still::testing
