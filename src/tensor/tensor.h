// TensorView: memory somebody else owns, with a type and a shape. Row-major, outermost dimension first, contiguous but
// for the rows of some activations on a GPU. The memory is the device's that the operators run on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace still {

using TokenId = std::int32_t;

// Up to four dimensions, outermost first; rank 0 is an absent tensor.
struct Shape {
  static constexpr int kMaxRank = 4;
  std::int64_t dims[kMaxRank] = {0, 0, 0, 0};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes) {
    STILL_CHECK(sizes.size() <= kMaxRank);
    for (std::int64_t size : sizes) dims[rank++] = size;
  }
  std::int64_t operator[](int axis) const { return dims[axis]; }
  std::int64_t n_elements() const {
    std::int64_t n = rank > 0 ? 1 : 0;
    for (int axis = 0; axis < rank; ++axis) n *= dims[axis];
    return n;
  }
  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank != b.rank) return false;
    for (int axis = 0; axis < a.rank; ++axis)
      if (a.dims[axis] != b.dims[axis]) return false;
    return true;
  }
};

std::string to_string(const Shape& shape);  // "[4864, 896]"

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  std::int64_t row_stride = 0;  // elements from row to row; 0: row_size(). Others only on a GPU, for q, k and v

  explicit operator bool() const { return data != nullptr; }
  float* f32() const {
    STILL_DCHECK(dtype == DType::kF32);
    return static_cast<float*>(data);
  }
  std::int64_t rows() const { return shape[0]; }
  // Elements of one row: the product of all dimensions but the first.
  std::int64_t row_size() const { return shape.rank == 0 || shape[0] == 0 ? 0 : shape.n_elements() / shape[0]; }
  std::int64_t stride() const { return row_stride != 0 ? row_stride : row_size(); }
};

}  // namespace still
