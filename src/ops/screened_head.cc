#include "ops/screened_head.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <string_view>

#include "base/check.h"
#include "kernels/packing.h"
#include "ops/linear.h"

namespace still {

namespace {
constexpr PackedFormat kCopy = PackedFormat::kQ4_0;
constexpr std::int64_t kBlock = 32;
// Smaller heads gained nothing (docs/cpu-kernels.md).
constexpr std::int64_t kLeastHeadBytes = std::int64_t{64} << 20;
// Of wider rows the sums of squares might lose more than kNormSlack makes up for.
constexpr std::int64_t kMostK = 8192;
// A step that is left with more panels than this saves little: beyond it on average, kRestSteps go the full way.
constexpr double kMostLeft = 0.25;
constexpr std::int64_t kRestSteps = 64;
// Norms are computed in double and rounded, or from sums of squares in f32: at most 32 terms of a block one after the
// other, then kMostK / 32 blocks, each addition within 2^-24. What they may have lost, and more.
constexpr double kNormSlack = 1 + 0x1p-12;
// More than what squares too small for an f32 may have lost of a norm.
constexpr double kUnderflow = 0x1p-60;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

float norm_of(double sum_of_squares) {
  return static_cast<float>(std::sqrt(sum_of_squares) * kNormSlack + kUnderflow);
}

// Rows whose logit is surely below the threshold. Inlined, so that a whole panel's are counted in vectors.
inline int count_below(const float* values, const float* norms, float factor, float around, float threshold,
                       std::int64_t n) {
  int n_below = 0;
  for (std::int64_t i = 0; i < n; ++i) n_below += values[i] + (norms[i] * factor + around) < threshold ? 1 : 0;
  return n_below;
}

std::int64_t copy_k(std::int64_t k) {
  return k + ScreenedHead::twice_columns(k);
}

std::string_view wanted_screen() {
  const char* wanted = std::getenv("STILL_SCREEN");
  return wanted != nullptr ? wanted : "";
}
}  // namespace

// Formats without minimums, whose terms are products of two vectors' blocks: the bound of their rounding is the row's
// norm times the activations'.
bool ScreenedHead::can_screen(PackedFormat format, std::int64_t k) {
  switch (format) {
    case PackedFormat::kF32:
    case PackedFormat::kF16:
    case PackedFormat::kBF16:
    case PackedFormat::kQ8_0:
    case PackedFormat::kQ6_K:
      return k % kBlock == 0 && k >= twice_columns(k) && k <= kMostK;
    default:
      return false;
  }
}

bool ScreenedHead::pays(PackedFormat format, std::int64_t n_out, std::int64_t k) {
  if (wanted_screen() == "off" || !can_screen(format, k)) return false;
  return wanted_screen() == "on" || packed_bytes(format, n_out, k) >= kLeastHeadBytes;
}

std::int64_t ScreenedHead::bytes(std::int64_t n_out, std::int64_t k) {
  const std::int64_t n_panels = (n_out + kPanelRows - 1) / kPanelRows, f32 = sizeof(float);
  return Arena::rounded(packed_bytes(kCopy, n_out, copy_k(k))) + Arena::rounded(n_out * f32) +
         Arena::rounded(n_panels * static_cast<std::int64_t>(sizeof(PanelNorms))) +
         Arena::rounded(kMaxRows * copy_k(k) * f32) +
         Arena::rounded(n_panels * static_cast<std::int64_t>(sizeof(std::int32_t)));
}

Result<ScreenedHead> ScreenedHead::create(std::int64_t n_out, std::int64_t k) {
  ScreenedHead head;
  STILL_TRY(head.arena_, Arena::create(bytes(n_out, k), "the output head's coarse copy"));
  head.n_out_ = n_out;
  head.k_ = k;
  head.n_twice_ = twice_columns(k);
  if (wanted_screen() == "on") head.n_waited_ = kWaitSteps;
  head.packed_ = reinterpret_cast<std::uint8_t*>(head.arena_.allocate(packed_bytes(kCopy, n_out, copy_k(k))));
  head.row_norms_ = head.arena_.allocate_array<float>(n_out);
  head.panel_norms_ = head.arena_.allocate_array<PanelNorms>(head.n_panels());
  head.extended_ = head.arena_.allocate_array<float>(kMaxRows * copy_k(k));
  head.survivors_ = head.arena_.allocate_array<std::int32_t>(head.n_panels());
  head.copy_ = {.name = "coarse head",
                .format = kCopy,
                .n_out = n_out,
                .k = copy_k(k),
                .packed = head.packed_,
                .panel_bytes = packed_panel_bytes(kCopy, copy_k(k))};
  return head;
}

void ScreenedHead::begin_build(TensorView norm) {
  // Any choice of columns is right; the norm's largest factors make those that take most of the bound.
  std::vector<std::int32_t> order(static_cast<std::size_t>(k_));
  std::iota(order.begin(), order.end(), 0);
  if (norm) {
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      const float x = std::fabs(norm.f32()[a]), y = std::fabs(norm.f32()[b]);
      return (std::isnan(x) ? 0 : x) > (std::isnan(y) ? 0 : y);
    });
  }
  std::copy_n(order.begin(), n_twice_, columns_);
  std::iota(places_, places_ + n_twice_, 0);
  std::sort(places_, places_ + n_twice_, [&](std::int32_t a, std::int32_t b) { return columns_[a] < columns_[b]; });
  for (std::int64_t i = 0; i < n_twice_; ++i) ascending_[i] = columns_[places_[i]];
}

void ScreenedHead::build_panel(const CpuKernels& kernels, const Weight& head, std::int64_t panel) const {
  CoarseSums sums;
  kernels.coarse[static_cast<int>(head.format)]({.panel = head.packed + panel * head.panel_bytes,
                                                 .k = k_,
                                                 .n_twice = static_cast<std::int32_t>(n_twice_),
                                                 .columns = ascending_,
                                                 .places = places_,
                                                 .copy = packed_ + panel * copy_.panel_bytes,
                                                 .sums = &sums});
  const std::int64_t n_rows = std::min<std::int64_t>(kPanelRows, n_out_ - panel * kPanelRows);
  PanelNorms norms{};
  for (std::int64_t r = 0; r < n_rows; ++r) {
    row_norms_[panel * kPanelRows + r] = norm_of(sums.left[r]);
    const float here[] = {norm_of(sums.twice_left[r]), norm_of(sums.second[r]),
                          norm_of(std::max(sums.row[r], sums.copy[r] + sums.second[r]))};
    float* most[] = {&norms.left, &norms.second, &norms.row};
    // Weights that are not finite: the panel is always multiplied.
    for (int i = 0; i < 3; ++i)
      *most[i] = std::max(*most[i], std::isnan(here[i]) ? std::numeric_limits<float>::infinity() : here[i]);
  }
  panel_norms_[panel] = norms;
}

void ScreenedHead::build_panels(Exec& exec, const Weight& head, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kTask = 16;
  std::atomic<std::int64_t> next{begin};
  exec.threads().run([&](int) {
    for (std::int64_t at = next.fetch_add(kTask); at < end; at = next.fetch_add(kTask))
      for (std::int64_t panel = at; panel < std::min(at + kTask, end); ++panel)
        build_panel(exec.kernels(), head, panel);
  });
}

void ScreenedHead::build(Exec& exec, const Weight& head, TensorView norm) {
  begin_build(norm);
  build_panels(exec, head, 0, n_panels());
  n_built_ = n_panels();
}

void ScreenedHead::multiply_coarse(Exec& exec, TensorView y, TensorView x) {
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    float* row = extended_ + r * copy_k(k_);
    std::memcpy(row, x.f32() + r * k_, static_cast<std::size_t>(k_) * sizeof(float));
    for (std::int64_t i = 0; i < n_twice_; ++i) row[k_ + i] = row[columns_[i]];
  }
  linear(exec, {extended_, DType::kF32, {x.rows(), copy_k(k_)}}, {{.y = y, .w = &copy_, .bias = {}}});
}

// Call after multiply_coarse: its quantised activations are looked at. Leaves those of 256-wide heads where their
// kernel wants them.
ScreenedHead::Factors ScreenedHead::factors_of(Exec& exec, const float* x, const Weight& head, std::int64_t row) const {
  const ActivationBuffers& coarse = exec.activations(kBlock);
  const std::int8_t* q = coarse.q + row * copy_k(k_);
  const float* scale = coarse.scale + row * (copy_k(k_) / kBlock);
  const auto seen = [&](std::int64_t i) { return static_cast<double>(q[i]) * static_cast<double>(scale[i / kBlock]); };
  const std::int32_t block = activation_block(head.format);
  const ActivationBuffers& exact = exec.activations(256);
  if (block == 256) {
    exec.kernels().quantize_rows(x, k_, 1, k_, block, exact.q + row * k_, exact.scale + row * (k_ / block),
                                 exact.sums + row * (k_ / 16));
  }
  const auto exactly = [&](std::int64_t i) {
    if (block == kBlock) return seen(i);
    if (block == 0) return static_cast<double>(x[i]);
    return static_cast<double>(exact.q[row * k_ + i]) * static_cast<double>(exact.scale[(row * k_ + i) / block]);
  };
  double all = 0, all_exact = 0, difference = 0, twice = 0, second_error = 0, second = 0;
  for (std::int64_t i = 0; i < k_; ++i) {
    const double a = seen(i), b = exactly(i);
    all += a * a;
    all_exact += b * b;
    difference += (a - b) * (a - b);
  }
  for (std::int64_t i = 0; i < n_twice_; ++i) {
    const double a = seen(columns_[i]), b = seen(k_ + i);
    twice += a * a;
    second += b * b;
    second_error += (a - b) * (a - b);
  }
  // Terms of each product's float sum, and what rounding their factors and the bound itself adds: each at most 2^-24 of
  // the sum of the terms' sizes; counted twice.
  const double n_exact = static_cast<double>(block == 0 ? k_ : k_ / block), n_coarse = static_cast<double>(k_ / kBlock);
  const double rounding =
      0x1p-23 * ((n_exact + 192) * std::sqrt(all_exact) + (n_coarse + 64) * (std::sqrt(all) + std::sqrt(second)));
  return {.row = norm_of(all - twice > 0 ? all - twice : 0),
          .left = norm_of(twice),
          .second = norm_of(second_error),
          .all = static_cast<float>((std::sqrt(difference) + rounding) * kNormSlack)};
}

void ScreenedHead::coarse(Exec& exec, TensorView y, TensorView x, const Weight& head, float* bounds) {
  multiply_coarse(exec, y, x);
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    const Factors factors = factors_of(exec, x.f32() + r * k_, head, r);
    for (std::int64_t i = 0; i < n_out_; ++i)
      bounds[r * n_out_ + i] = row_norms_[i] * factors.row + slack(i / kPanelRows, factors);
  }
}

void ScreenedHead::multiply_exact(Exec& exec, float* y, TensorView x, const Weight& head, std::int64_t begin,
                                  std::int64_t end, std::int64_t row, std::int64_t n_rows, int thread_idx) const {
  LinearArgs args{.weights = head.packed,
                  .panel_bytes = head.panel_bytes,
                  .panel_begin = begin,
                  .panel_end = end,
                  .n_out = n_out_,
                  .k = k_,
                  .x = {},
                  .x_f32 = x.f32() + row * k_,
                  .x_stride = k_,
                  .n_rows = n_rows,
                  // The kernel adds the element's index in the whole matrix.
                  .y = y - begin * kPanelRows,
                  .y_stride = n_out_,
                  .scratch = exec.thread_scratch(thread_idx)};
  if (const std::int32_t block = activation_block(head.format); block != 0) {
    const ActivationBuffers& buffers = exec.activations(block);
    args.x = {buffers.q + row * k_, buffers.scale + row * (k_ / block), buffers.sums + row * (k_ / 16), k_, block};
  }
  exec.kernels().linear[static_cast<int>(head.format)](args);
}

bool ScreenedHead::best_only(Exec& exec, TensorView y, TensorView x, const Weight& head, TensorView norm,
                             const BestOnly& best) {
  const std::int64_t n_rows = x.rows();
  STILL_DCHECK(head.n_out == n_out_ && head.k == k_ && y.rows() == n_rows && y.row_size() == n_out_);
  STILL_DCHECK(static_cast<std::int64_t>(best.banned_begin.size()) == n_rows + 1);
  const auto full = [&] {
    stats_.n_full += n_rows;
    return false;
  };
  if (n_rows > kMaxRows) return full();
  if (n_built_ < n_panels()) {
    if (n_waited_ < kWaitSteps) {
      ++n_waited_;
      return full();
    }
    if (n_built_ == 0) begin_build(norm);
    const std::int64_t end = std::min(n_panels(), n_built_ + (n_panels() + kBuildSteps - 1) / kBuildSteps);
    build_panels(exec, head, n_built_, end);
    n_built_ = end;
    return full();
  }
  if (n_rest_ > 0) {
    --n_rest_;
    return full();
  }
  for (std::int64_t i = 0; i < n_rows * k_; ++i)
    if (!std::isfinite(x.f32()[i])) return full();

  multiply_coarse(exec, y, x);
  for (std::int64_t r = 0; r < n_rows; ++r)
    for (std::int32_t i = best.banned_begin[static_cast<std::size_t>(r)];
         i < best.banned_begin[static_cast<std::size_t>(r + 1)]; ++i)
      if (const std::int32_t id = best.banned[static_cast<std::size_t>(i)]; id >= 0 && id < n_out_)
        y.f32()[r * n_out_ + id] = kMinusInfinity;

  const int n_threads = exec.n_threads();
  Factors factors[kMaxRows];
  float thresholds[kMaxRows];
  std::atomic<bool> is_known{true};
  std::atomic<std::int64_t> next{0};
  counts_.assign(static_cast<std::size_t>(n_threads), 0);
  tops_.assign(static_cast<std::size_t>(n_threads * kMaxRows), 0);
  const auto first_of = [&](std::int64_t thread_idx) { return n_panels() * thread_idx / n_threads; };
  exec.threads().run([&](int thread_idx) {
    const std::int64_t first = first_of(thread_idx), last = first_of(thread_idx + 1);
    for (std::int64_t r = 0; r < n_rows && first < last; ++r) {
      const std::int64_t begin = first * kPanelRows, end = std::min(last * kPanelRows, n_out_);
      tops_[static_cast<std::size_t>(thread_idx * kMaxRows + r)] =
          begin + exec.kernels().argmax(y.f32() + r * n_out_ + begin, end - begin);
    }
    for (std::int64_t r = thread_idx; r < n_rows; r += n_threads)
      factors[r] = factors_of(exec, x.f32() + r * k_, head, r);
    exec.threads().barrier();
    // What the coarse product saw of the activations is looked at no more: the head's kernel may have its place.
    for (std::int64_t r = thread_idx; r < n_rows; r += n_threads) {
      if (activation_block(head.format) == kBlock) {
        const ActivationBuffers& buffers = exec.activations(kBlock);
        exec.kernels().quantize_rows(x.f32() + r * k_, k_, 1, k_, kBlock, buffers.q + r * k_,
                                     buffers.scale + r * (k_ / kBlock), buffers.sums + r * (k_ / 16));
      }
      // The exact logit of one allowed row is a lower bound of the largest.
      const float* row = y.f32() + r * n_out_;
      std::int64_t top = tops_[static_cast<std::size_t>(r)];
      for (std::int64_t t = 1; t < n_threads; ++t)
        if (const std::int64_t other = tops_[static_cast<std::size_t>(t * kMaxRows + r)];
            row[other] > row[top] || std::isnan(row[top]))
          top = other;
      float values[kPanelRows];
      const std::int64_t panel = top / kPanelRows;
      multiply_exact(exec, values, x, head, panel, panel + 1, r, 1, thread_idx);
      thresholds[r] = values[top % kPanelRows];
      if (!std::isfinite(row[top])) is_known = false;
    }
    exec.threads().barrier();
    if (!is_known) return;
    std::int64_t n_left = 0;
    for (std::int64_t panel = first; panel < last; ++panel) {
      const std::int64_t begin = panel * kPanelRows, width = std::min<std::int64_t>(kPanelRows, n_out_ - begin);
      bool is_left = false;
      for (std::int64_t r = 0; r < n_rows; ++r) {
        const float* values = y.f32() + r * n_out_ + begin;
        const float around = slack(panel, factors[r]), threshold = thresholds[r], factor = factors[r].row;
        const float* norms = row_norms_ + begin;
        const int n_below = width == kPanelRows ? count_below(values, norms, factor, around, threshold, kPanelRows)
                                                : count_below(values, norms, factor, around, threshold, width);
        is_left = is_left || n_below < width;
      }
      if (is_left) {
        survivors_[first + n_left++] = static_cast<std::int32_t>(panel);
        continue;
      }
      for (std::int64_t r = 0; r < n_rows; ++r) std::fill_n(y.f32() + r * n_out_ + begin, width, kMinusInfinity);
    }
    counts_[static_cast<std::size_t>(thread_idx)] = n_left;
    exec.threads().barrier();
    // The lists of all threads, some panels at a time; those that follow one another together.
    constexpr std::int64_t kTask = 8;
    const std::int64_t n_all = std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0});
    for (std::int64_t at = next.fetch_add(kTask); at < n_all; at = next.fetch_add(kTask)) {
      std::int64_t owner = 0, offset = at, begin = 0, end = 0;
      const auto multiply = [&] {
        if (begin < end) multiply_exact(exec, y.f32() + begin * kPanelRows, x, head, begin, end, 0, n_rows, thread_idx);
      };
      for (std::int64_t i = at; i < std::min(at + kTask, n_all); ++i, ++offset) {
        while (offset >= counts_[static_cast<std::size_t>(owner)]) offset -= counts_[static_cast<std::size_t>(owner++)];
        const std::int64_t panel = survivors_[first_of(owner) + offset];
        if (panel != end) {
          multiply();
          begin = panel;
        }
        end = panel + 1;
      }
      multiply();
    }
  });
  if (!is_known) return full();
  const std::int64_t n_left = std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0});
  stats_.n_screened += n_rows;
  stats_.n_panels += n_panels();
  stats_.n_exact_panels += n_left;
  share_left_ += (static_cast<double>(n_left) / static_cast<double>(n_panels()) - share_left_) / 8;
  if (share_left_ > kMostLeft) {
    n_rest_ = kRestSteps;
    share_left_ = kMostLeft / 2;
  }
  return true;
}

}  // namespace still
