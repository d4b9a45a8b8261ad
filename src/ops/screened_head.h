// ScreenedHead: the largest logit of a row without reading the whole output head. A coarse copy of the head (Q4_0)
// gives every logit within a proven bound; only panels of rows that could hold the largest are multiplied exactly, by
// the same kernels, so the largest logit and whatever equals it are the full product's bit by bit, and all others
// become -infinity (docs/cpu-kernels.md has the proof). The copy is made in steps that could have used it, after the
// first 16.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "ops/attention.h"
#include "ops/exec.h"
#include "ops/weight.h"
#include "tensor/arena.h"

namespace still {

// Rows of logits; of those that were screened, panels of the head in all and those that were multiplied exactly.
struct ScreenStats {
  std::int64_t n_screened = 0, n_full = 0;
  std::int64_t n_panels = 0, n_exact_panels = 0;
};

class ScreenedHead {
 public:
  static constexpr std::int64_t kMaxRows = 12;
  // Steps that could use the copy before it is begun, so that short answers do not pay for it, and in which it is made,
  // so many that one takes less than twice its time mostly (docs/cpu-kernels.md).
  static constexpr std::int64_t kWaitSteps = 16, kBuildSteps = 8;
  // Columns that the coarse copy has twice, the second time what the first left of them. Of short rows the bound is
  // wider beside the logits.
  static constexpr std::int64_t kMostTwice = kCoarseMostTwice;
  static constexpr std::int64_t twice_columns(std::int64_t k) { return k < 768 ? kMostTwice : 32; }

  // Whether the copy can be made and is small beside the head; false where STILL_SCREEN=off, true wherever it can be
  // made where STILL_SCREEN=on.
  static bool pays(PackedFormat format, std::int64_t n_out, std::int64_t k);
  static bool can_screen(PackedFormat format, std::int64_t k);
  // What create() reserves.
  static std::int64_t bytes(std::int64_t n_out, std::int64_t k);
  static Result<ScreenedHead> create(std::int64_t n_out, std::int64_t k);
  ScreenedHead() = default;
  explicit operator bool() const { return n_out_ > 0; }

  // y: [n_rows, n_out], x: [n_rows, k] f32 of head's rows. False: nothing was done and the full product is to be
  // computed, since there are many rows, x is not finite, too many rows would be left, or the copy is not complete yet
  // (a part of it is made). norm [k]: the factors of the norm that gave x, which tell of the columns that are large.
  bool best_only(Exec& exec, TensorView y, TensorView x, const Weight& head, TensorView norm, const BestOnly& best);

  const ScreenStats& stats() const { return stats_; }
  // For tests: the copy at once; an upper bound of |y - what the coarse copy says| for each row of the head, that too.
  void build(Exec& exec, const Weight& head, TensorView norm);
  void coarse(Exec& exec, TensorView y, TensorView x, const Weight& head, float* bounds);

 private:
  // Of a panel, the largest of its rows: l2 norms of what is left of the columns that are there twice, of their second
  // copy, and of the row itself and of its coarse copy.
  struct PanelNorms {
    float left, second, row;
  };
  // Of a row of activations: what the row's and the panel's norms are multiplied with.
  struct Factors {
    float row, left, second, all;
  };
  void begin_build(TensorView norm);
  void build_panels(Exec& exec, const Weight& head, std::int64_t begin, std::int64_t end);
  void build_panel(const CpuKernels& kernels, const Weight& head, std::int64_t panel) const;
  void multiply_coarse(Exec& exec, TensorView y, TensorView x);
  Factors factors_of(Exec& exec, const float* x, const Weight& head, std::int64_t row) const;
  float slack(std::int64_t panel, const Factors& f) const {
    const PanelNorms& norms = panel_norms_[panel];
    return norms.left * f.left + norms.second * f.second + norms.row * f.all + 1e-30f;
  }
  // Panels [begin, end); y: of their first element of row `row`; rows [row, row + n_rows) of x, which are quantised
  // already.
  void multiply_exact(Exec& exec, float* y, TensorView x, const Weight& head, std::int64_t begin, std::int64_t end,
                      std::int64_t row, std::int64_t n_rows, int thread_idx) const;
  std::int64_t n_panels() const { return (n_out_ + kPanelRows - 1) / kPanelRows; }

  Arena arena_;
  std::int64_t n_out_ = 0, k_ = 0, n_twice_ = 0, n_built_ = 0;  // n_built_: panels
  Weight copy_;
  std::uint8_t* packed_ = nullptr;
  float* row_norms_ = nullptr;  // [n_out]: of what the copy leaves, but of the columns that are there twice
  PanelNorms* panel_norms_ = nullptr;
  float* extended_ = nullptr;          // [kMaxRows, k + twice_columns(k)]
  std::int32_t* survivors_ = nullptr;  // [n_panels]
  std::int32_t columns_[kMostTwice] = {};
  // The same columns in ascending order, and where they stand in columns_.
  std::int32_t ascending_[kMostTwice] = {}, places_[kMostTwice] = {};
  // The share of panels that were left lately; above kMostLeft it rests for kRestSteps.
  double share_left_ = 0;
  std::int64_t n_waited_ = 0;
  std::vector<std::int64_t> counts_;  // of panels left, by thread
  std::vector<std::int64_t> tops_;    // [n_threads, kMaxRows]: of a thread's panels the row with the best coarse logit
  std::int64_t n_rest_ = 0;
  ScreenStats stats_;
};

}  // namespace still
