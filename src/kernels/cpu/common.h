// What every instruction set's files share: loops that are certainly unrolled, so that arrays of vectors stay in
// registers. Everything here and in the headers beside it is in an anonymous namespace: each file that includes it
// compiles its own copy for its own instruction set.
#pragma once

// g++ 12 takes the undefined pass-through operands inside its own intrinsics for uninitialised variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "kernels/kernel_table.h"

#define STILL_INLINE inline __attribute__((always_inline))
#define STILL_UNROLLED __attribute__((always_inline))

namespace still {
namespace {

using std::int16_t;
using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// body(Int<0>), body(Int<1>), ... body(Int<N - 1>). Written out, since what is inlined is copied, and a recursion's
// last bodies would be inlined through all its levels.
template <int N, int I = 0, class Body>
STILL_INLINE void repeat(const Body& body) {
  if constexpr (I + 0 < N) body(Int<I + 0>{});
  if constexpr (I + 1 < N) body(Int<I + 1>{});
  if constexpr (I + 2 < N) body(Int<I + 2>{});
  if constexpr (I + 3 < N) body(Int<I + 3>{});
  if constexpr (I + 4 < N) body(Int<I + 4>{});
  if constexpr (I + 5 < N) body(Int<I + 5>{});
  if constexpr (I + 6 < N) body(Int<I + 6>{});
  if constexpr (I + 7 < N) body(Int<I + 7>{});
  if constexpr (I + 8 < N) repeat<N, I + 8>(body);
}

constexpr int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

}  // namespace
}  // namespace still
