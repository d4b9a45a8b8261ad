// What the tests of the GPU's operators share: the fixture, which skips where there is no GPU, an Exec, tensors on the
// device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/cuda_exec.h"
#include "ops/exec.h"
#include "tensor/float16.h"

namespace still::testing {

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string reason;
    if (list_cuda_devices(&reason).empty()) GTEST_SKIP() << "no GPU: " << reason;
  }
};

inline CudaOptions cuda_options() {
  return {.max_tokens = 256,
          .max_seqs = 8,
          .max_rows = 256,
          .max_blocks = 32,
          .block_size = 32,
          .max_k = 4096,
          .max_gate = 2048,
          .max_matrix = 4096 * 2048,
          .n_heads = 28,
          .n_kv_heads = 4,
          .head_dim = 128,
          .vocab_size = 5000,
          .has_f32_activations = true};
}

inline std::unique_ptr<Exec> cuda_exec(CudaOptions options = cuda_options()) {
  ExecOptions exec;
  exec.cuda = options;
  auto made = Exec::create(exec);
  EXPECT_TRUE(made) << (made ? "" : made.error().message);
  return std::move(*made);
}

// Floats on the device and back.
struct OnDevice {
  CudaExec& exec;
  DeviceBuffer memory;
  Shape shape;
  DType dtype;

  OnDevice(CudaExec& e, Shape s, DType type = DType::kF32)
      : exec(e), memory(std::move(*DeviceBuffer::create(s.n_elements() * 4 + 64, "test"))), shape(s), dtype(type) {
    exec.stream().fill(memory.data(), 0xff, memory.size());  // NaN: what is not written shows
  }
  OnDevice(CudaExec& e, const std::vector<float>& values, Shape s) : OnDevice(e, s) {
    exec.stream().copy_to_device(memory.data(), values.data(), static_cast<std::int64_t>(values.size()) * 4);
    EXPECT_TRUE(exec.wait("test"));
  }
  TensorView view() { return {memory.data(), dtype, shape}; }
  std::vector<float> values() {
    const auto n = static_cast<std::size_t>(shape.n_elements());
    std::vector<float> result(n);
    if (dtype == DType::kF32) {
      exec.stream().copy_to_host(result.data(), memory.data(), static_cast<std::int64_t>(n) * 4);
    } else {
      std::vector<std::uint16_t> bits(n);
      exec.stream().copy_to_host(bits.data(), memory.data(), static_cast<std::int64_t>(n) * 2);
      const Status done = exec.wait("test");
      EXPECT_TRUE(done) << (done ? "" : done.error().message);
      for (std::size_t i = 0; i < n; ++i) result[i] = bf16_to_f32(bits[i]);
    }
    const Status done = exec.wait("test");
    EXPECT_TRUE(done) << (done ? "" : done.error().message);
    return result;
  }
};

// ||a - b|| / ||b||; NaN is infinitely far.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return INFINITY;
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

}  // namespace still::testing
