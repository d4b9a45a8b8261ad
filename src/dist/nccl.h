// NCCL, loaded at run time: the ranks of one process, one GPU each.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"

namespace still {

class Nccl {
 public:
  // kUnavailable where the library is not installed or does not start; takes seconds.
  static Result<std::unique_ptr<Nccl>> create(std::span<const std::int32_t> devices);
  virtual ~Nccl() = default;
  // Each rank from its own thread, on its own stream, all in the same order.
  virtual Status sum(std::int32_t rank, void* stream, float* y, std::int64_t n) = 0;
  // What rank r has at `from`, n[r] floats, comes to to[r] of all others.
  virtual Status exchange(std::int32_t rank, void* stream, const float* from, std::span<float* const> to,
                          std::span<const std::int64_t> n) = 0;
};

}  // namespace still
