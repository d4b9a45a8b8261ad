// What the tests of operators share: an Exec of any kernel table and thread count, f32 tensors that own their memory.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/packing.h"
#include "kernels/testing.h"
#include "ops/exec.h"
#include "ops/weight.h"

namespace still::testing {

inline std::unique_ptr<Exec> make_exec(const CpuKernels* kernels, int n_threads, ExecOptions options = {}) {
  options.kernels = kernels;
  options.n_threads = n_threads;
  if (options.max_k == 0) options.max_k = 4096;
  auto exec = Exec::create(options);
  STILL_CHECK(exec.has_value());
  return std::move(*exec);
}

// An Exec of every kernel table of this machine with 1, 2 and 3 threads; the first is the reference with one thread.
inline std::vector<std::unique_ptr<Exec>> all_execs(const ExecOptions& options = {}) {
  std::vector<std::unique_ptr<Exec>> execs;
  for (const std::string& isa : available_isas())
    for (int n_threads : {1, 2, 3}) execs.push_back(make_exec(*select_cpu_kernels(isa), n_threads, options));
  return execs;
}

struct FloatTensor {
  std::vector<float> values;
  Shape shape;

  FloatTensor(std::vector<float> data, Shape dims) : values(std::move(data)), shape(dims) {}
  explicit FloatTensor(Shape dims, float value = 0.0f)
      : values(static_cast<std::size_t>(dims.n_elements()), value), shape(dims) {}
  TensorView view() { return {values.data(), DType::kF32, shape}; }
  float at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * (shape.n_elements() / shape[0]) + column)];
  }
};

inline FloatTensor random_tensor(Rng& rng, Shape shape, float deviation = 1.0f) {
  return FloatTensor(random_floats(rng, shape.n_elements(), deviation), shape);
}

inline Weight weight_of(const PackedMatrix& matrix) {
  return {.name = "test",
          .format = matrix.format,
          .n_out = matrix.n_out,
          .k = matrix.k,
          .packed = matrix.packed.data(),
          .panel_bytes = matrix.panel_bytes};
}

inline ::testing::AssertionResult same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " elements";
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0)
      return ::testing::AssertionFailure() << "element " << i << ": " << a[i] << " and " << b[i];
  }
  return ::testing::AssertionSuccess();
}

}  // namespace still::testing
