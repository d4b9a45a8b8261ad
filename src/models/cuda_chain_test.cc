// Products of bf16 weights with few rows, by the GPU's kernel of chains over k: against doubles, and bit by bit against
// the same rows among others, which cuBLASLt may multiply. Skipped, with the reason, where there is no GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/arithmetic.h"
#include "kernels/cuda_packing.h"
#include "models/cuda_testing.h"
#include "ops/rms_norm.h"
#include "ops/testing.h"

namespace still {
namespace {

using testing::cuda_exec;
using testing::cuda_options;
using testing::CudaTest;
using testing::distance;
using testing::OnDevice;
using testing::random_floats;
using testing::same_bits;

constexpr std::uint64_t kChainSeed = 30;
constexpr std::int32_t kChainRows = kCudaBf16ChainRows;
constexpr float kChainEps = 0.25f;  // so much that a norm without it is another one
constexpr const char* kNoChains = "chains of bf16 want compute capability 9.0";

// 2^-12 to 2^-4 large, so that thousands of products with normal values sum to about 1.
std::vector<std::uint16_t> random_bf16(Rng& rng, std::int64_t n) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(n));
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    bits = i % 4 == 0 ? rng.next() : bits >> 16;
    const std::uint64_t exponent = 127 - 12 + (bits >> 7 & 7);
    values[i] = static_cast<std::uint16_t>((bits & 0x807f) | exponent << 7);
  }
  return values;
}

std::vector<std::uint16_t> rounded_to_bf16(std::span<const float> values) {
  std::vector<std::uint16_t> result;
  for (const float v : values) result.push_back(f32_to_bf16(v));
  return result;
}

template <class T>
DeviceBuffer copied(CudaExec& exec, const std::vector<T>& values) {
  const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(T));
  DeviceBuffer result = std::move(*DeviceBuffer::create(bytes, "test"));
  exec.stream().copy_to_device(result.data(), values.data(), bytes);
  EXPECT_TRUE(exec.wait("test"));
  return result;
}

struct ChainShape {
  std::int64_t n_out, k;
};

// What a product of up to kChainRows rows may take. Two matrices behind one another: SwiGLU's, others take the first.
struct ChainData {
  std::int64_t n_out = 0, k = 0;
  std::vector<std::uint16_t> weights;      // [2 * n_out, k]
  std::vector<float> x;                    // [kChainRows, k]
  std::vector<float> norm, bias, old;      // [k], [n_out], [kChainRows, n_out]
  std::vector<std::uint16_t> x_bf16 = {};  // of x

  ChainData(Rng& rng, ChainShape shape)
      : n_out(shape.n_out),
        k(shape.k),
        weights(random_bf16(rng, 2 * n_out * k)),
        x(random_floats(rng, kChainRows * k)),
        norm(random_floats(rng, k)),
        bias(random_floats(rng, n_out)),
        old(random_floats(rng, kChainRows * n_out)),
        x_bf16(rounded_to_bf16(x)) {}

  // The product of columns [begin, end) of weights and rows.
  ChainData columns(std::int64_t begin, std::int64_t end) const {
    const auto cut = [&](const auto& rows) {
      std::remove_cvref_t<decltype(rows)> result;
      for (auto row = rows.begin(); row != rows.end(); row += k) result.insert(result.end(), row + begin, row + end);
      return result;
    };
    ChainData result = *this;
    result.k = end - begin;
    result.weights = cut(weights);
    result.x = cut(x);
    result.norm.assign(norm.begin() + begin, norm.begin() + end);
    result.x_bf16 = cut(x_bf16);
    return result;
  }
};

// In which form a single row is given; more are bf16.
enum class RowForm { kBf16, kF32, kBeforeNorm };

struct ChainCall {
  CudaEpilogue epilogue = CudaEpilogue::kStore;
  bool has_bias = false, y_is_bf16 = false;
  std::int32_t n_parts = 1, n_rows = 1, first_row = 0;
  RowForm form = RowForm::kBf16;
  std::int64_t weight_offset = 0;  // bytes by which the weights begin too late

  // As between cuBLASLt's products and silu; n_parts 0 need not have its bits.
  bool rounds_gates() const { return epilogue == CudaEpilogue::kSwiglu && n_parts > 0; }
};
const ChainCall kF32Results[] = {{.epilogue = CudaEpilogue::kStore},
                                 {.epilogue = CudaEpilogue::kStore, .has_bias = true},
                                 {.epilogue = CudaEpilogue::kAdd},
                                 {.epilogue = CudaEpilogue::kSwiglu}};
const ChainCall kBf16Results[] = {{.epilogue = CudaEpilogue::kStore, .y_is_bf16 = true},
                                  {.epilogue = CudaEpilogue::kStore, .has_bias = true, .y_is_bf16 = true},
                                  {.epilogue = CudaEpilogue::kSwiglu, .y_is_bf16 = true}};

class Chains {
 public:
  Chains(CudaExec& exec, const ChainData& data)
      : exec_(exec),
        data_(data),
        weights_(copied(exec, data.weights)),
        x_(copied(exec, data.x)),
        x_bf16_(copied(exec, data.x_bf16)),
        norm_(copied(exec, data.norm)),
        bias_(copied(exec, data.bias)),
        y_(std::move(*DeviceBuffer::create((kChainRows + 1) * stride() * 4, "test"))) {}

  // Results [n_rows, n_out]; none: the kernel refused. Nothing else is written.
  std::optional<std::vector<float>> multiply(const ChainCall& call) {
    SCOPED_TRACE(describe(call));
    const std::size_t element = call.y_is_bf16 ? 2 : 4, width = static_cast<std::size_t>(data_.n_out) * element,
                      pitch = static_cast<std::size_t>(stride()) * element,
                      n_rows = static_cast<std::size_t>(call.n_rows), first = static_cast<std::size_t>(call.first_row);
    // NaN: what is not written shows.
    std::vector<std::uint8_t> before((n_rows + 1) * pitch, 0xff);
    if (call.epilogue == CudaEpilogue::kAdd)
      for (std::size_t row = 0; row < n_rows; ++row)
        std::memcpy(&before[row * pitch], data_.old.data() + (first + row) * static_cast<std::size_t>(data_.n_out),
                    width);
    std::vector<std::uint8_t> after(before.size());
    const auto bytes = static_cast<std::int64_t>(before.size());
    exec_.stream().copy_to_device(y_.data(), before.data(), bytes);
    const bool is_done = exec_.kernels().linear_bf16_chain(exec_.stream().handle(), arguments(call), call.n_parts);
    exec_.stream().copy_to_host(after.data(), y_.data(), bytes);
    const Status status = exec_.wait("test");
    EXPECT_TRUE(status) << (status ? "" : status.error().message);
    if (!is_done) {
      EXPECT_TRUE(after == before) << "refused, but something was written";
      return std::nullopt;
    }
    std::vector<float> results(n_rows * static_cast<std::size_t>(data_.n_out));
    float* result = results.data();
    for (std::size_t row = 0; row < n_rows; ++row) {
      for (std::size_t at = row * pitch; at < row * pitch + width; at += element) {
        std::uint16_t half;
        std::memcpy(&half, &after[at], sizeof(half));
        std::memcpy(result, &after[at], element);
        if (call.y_is_bf16) *result = bf16_to_f32(half);
        ++result;
      }
      std::fill_n(after.begin() + static_cast<std::ptrdiff_t>(row * pitch), width, std::uint8_t{0xff});
    }
    EXPECT_TRUE(std::all_of(results.begin(), results.end(), [](float v) { return std::isfinite(v); }));
    EXPECT_TRUE(std::all_of(after.begin(), after.end(), [](std::uint8_t v) { return v == 0xff; }))
        << "something between the rows or behind them was written";
    return results;
  }

  // Where it must not refuse.
  std::vector<float> results(const ChainCall& call) {
    auto computed = multiply(call);
    EXPECT_TRUE(computed) << "refused: " << describe(call);
    if (computed) return std::move(*computed);
    return std::vector<float>(static_cast<std::size_t>(call.n_rows * data_.n_out), NAN);
  }

  // The first row behind its norm, by the kernel whose bits a product must have that takes the norm along.
  std::vector<std::uint16_t> normed_row() {
    std::vector<std::uint16_t> row(static_cast<std::size_t>(data_.k));
    const DeviceBuffer y = copied(exec_, row);
    exec_.kernels().rms_norm(exec_.stream().handle(), {.x = floats(x_),
                                                       .w = floats(norm_),
                                                       .y_bf16 = reinterpret_cast<std::uint16_t*>(y.data()),
                                                       .n_rows = 1,
                                                       .k = static_cast<std::int32_t>(data_.k),
                                                       .eps = kChainEps});
    exec_.stream().copy_to_host(row.data(), y.data(), y.size());
    EXPECT_TRUE(exec_.wait("test"));
    return row;
  }

  std::string describe(const ChainCall& call) const {
    const char* const epilogues[] = {"stored", "added", "gated"};
    const char* const forms[] = {"bf16", "f32", "f32 before its norm"};
    return fmt::format("{} x {}, {} parts, {} rows from {} on ({}), {}{}{}, seed {}", data_.n_out, data_.k,
                       call.n_parts, call.n_rows, call.first_row, forms[static_cast<int>(call.form)],
                       epilogues[static_cast<int>(call.epilogue)], call.has_bias ? " with a bias" : "",
                       call.y_is_bf16 ? " as bf16" : "", kChainSeed);
  }

 private:
  std::int64_t stride() const { return data_.n_out + 13; }
  static const float* floats(const DeviceBuffer& memory) { return reinterpret_cast<const float*>(memory.data()); }

  CudaLinearArgs arguments(const ChainCall& call) const {
    CudaLinearArgs args{.format = PackedFormat::kBF16,
                        .epilogue = call.epilogue,
                        .n_products = call.epilogue == CudaEpilogue::kSwiglu ? 2 : 1,
                        .y_is_bf16 = call.y_is_bf16,
                        .k = static_cast<std::int32_t>(data_.k),
                        .n_rows = call.n_rows};
    for (int i = 0; i < args.n_products; ++i)
      args.products[i] = {.weights = reinterpret_cast<const std::uint8_t*>(weights_.data()) + call.weight_offset +
                                     2 * i * data_.n_out * data_.k,
                          .n_out = static_cast<std::int32_t>(data_.n_out),
                          .y = y_.data(),
                          .y_stride = stride(),
                          .bias = call.has_bias ? floats(bias_) : nullptr};
    const std::int64_t first = call.first_row * data_.k;
    if (call.form == RowForm::kBf16) {
      args.x.bf16 = reinterpret_cast<const std::uint16_t*>(x_bf16_.data()) + first;
    } else {
      args.x.f32 = floats(x_) + first;
    }
    if (call.form == RowForm::kBeforeNorm) args.norm = floats(norm_), args.eps = kChainEps;
    return args;
  }

  CudaExec& exec_;
  const ChainData& data_;
  DeviceBuffer weights_, x_, x_bf16_, norm_, bias_, y_;
};

// Chunks of 64 of each part but the last, and whether then none is left empty.
std::int64_t part_chunks(std::int64_t k, std::int32_t n_parts) {
  return ceil_div(k / 64, n_parts);
}
bool can_cut(std::int64_t k, std::int32_t n_parts) {
  return k % 64 == 0 && (n_parts == 0 || (n_parts <= 4 && (n_parts - 1) * part_chunks(k, n_parts) < k / 64));
}

// Sums in double of the rows, and behind them of a normed one, by some outputs of both matrices: all at both ends,
// where a block's or a warp's last rows may be missing, and each hundredth or so between.
struct ChainReference {
  std::vector<std::int64_t> outputs;
  std::vector<double> gate, up;  // [kChainRows + 1, outputs]

  ChainReference(const ChainData& data, const std::vector<std::uint16_t>& normed) {
    for (std::int64_t o = 0; o < data.n_out; ++o)
      if (o < 33 || o >= data.n_out - 33 || o % 101 == 0) outputs.push_back(o);
    std::vector<std::uint16_t> rows = data.x_bf16;
    rows.insert(rows.end(), normed.begin(), normed.end());
    for (std::int64_t row = 0; row <= kChainRows; ++row) {
      const auto sum = [&](std::int64_t output) {
        const std::uint16_t *w = data.weights.data() + output * data.k, *x = rows.data() + row * data.k;
        double total = 0;
        for (std::int64_t i = 0; i < data.k; ++i) total += static_cast<double>(bf16_to_f32(w[i])) * bf16_to_f32(x[i]);
        return total;
      };
      for (const std::int64_t o : outputs) {
        gate.push_back(sum(o));
        up.push_back(sum(data.n_out + o));
      }
    }
  }

  double distance_of(const std::vector<float>& results, const ChainCall& call, const ChainData& data) const {
    std::vector<float> got, want;
    for (std::int64_t row = 0; row < call.n_rows; ++row) {
      const std::int64_t of = call.form == RowForm::kBeforeNorm ? kChainRows : call.first_row + row;
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        const std::size_t at = static_cast<std::size_t>(of) * outputs.size() + i;
        const auto output = static_cast<std::size_t>(outputs[i]);
        const auto sum = [&](const std::vector<double>& sums) {
          const auto single = static_cast<float>(sums[at]);
          return call.rounds_gates() ? bf16_to_f32(f32_to_bf16(single)) : sums[at];
        };
        double value = sum(gate);
        if (call.epilogue == CudaEpilogue::kSwiglu) value = value / (1 + std::exp(-value)) * sum(up);
        if (call.epilogue == CudaEpilogue::kAdd)
          value += data.old[static_cast<std::size_t>((call.first_row + row) * data.n_out) + output];
        if (call.has_bias) value += data.bias[output];
        got.push_back(results[static_cast<std::size_t>(row * data.n_out) + output]);
        want.push_back(static_cast<float>(value));
      }
    }
    return distance(got, want);
  }
};

// A step of 16 loses up to about 2^-23 of what the chain has come to, always towards zero: 2^-24 on average, of a sum
// that grows with the root of the steps: up to 1e-5 after the 516 steps of the longest chain here. A bf16 result is
// rounded by up to 2^-8. A gate that is near the middle between two bf16 may go to the other one, 2^-7 away: one of
// some hundreds, of short chains, which are exact enough, hardly any; none rounded would be 2e-3 away.
double most_distance(const ChainCall& call, std::int64_t k) {
  double most = 2e-5;
  if (call.y_is_bf16) most += 0x1p-8;
  if (call.rounds_gates()) most += k < 1000 ? 1.5e-3 : 4e-3;
  return most;
}

// Rows of a matrix that no unit of 16, or of 8, ends with; so many that three blocks share a multiprocessor (5003;
// gated 2501) or that blocks take unit after unit (20011); parts of unequal length, shorter than a stage of four chunks
// and longer; rows of more than 4,096, which are loaded in other ways, and of two turns of the norm's threads (8256).
TEST_F(CudaTest, Bf16ChainsEqualDoubles) {
  if (!cuda_kernels()->has_bf16_chains()) GTEST_SKIP() << kNoChains;
  Rng rng(kChainSeed);
  auto gpu = cuda_exec();
  std::vector<ChainCall> calls(std::begin(kF32Results), std::end(kF32Results));
  calls.insert(calls.end(), std::begin(kBf16Results), std::end(kBf16Results));
  for (const ChainShape shape : {ChainShape{41, 64},
                                 {41, 96},
                                 {100, 192},
                                 {44, 320},
                                 {44, 576},
                                 {20011, 192},
                                 {20011, 704},
                                 {5003, 704},
                                 {2501, 1536},
                                 {41, 1536},
                                 {44, 4096},
                                 {2501, 4480},
                                 {44, 8192},
                                 {100, 8256}}) {
    const ChainData data(rng, shape);
    Chains chains(*gpu->cuda(), data);
    const ChainReference reference(data, chains.normed_row());
    for (std::int32_t n_parts = 0; n_parts <= 5; ++n_parts) {
      for (const std::int32_t n_rows : {1, 2, 7, 8, 9, 16}) {
        for (const RowForm form : {RowForm::kBf16, RowForm::kF32, RowForm::kBeforeNorm}) {
          if (n_rows > 1 && form != RowForm::kBf16) continue;
          for (ChainCall call : calls) {
            call.n_parts = n_parts, call.n_rows = n_rows, call.form = form;
            SCOPED_TRACE(chains.describe(call));
            const auto results = chains.multiply(call);
            ASSERT_EQ(results.has_value(), can_cut(shape.k, n_parts));
            if (!results) continue;
            EXPECT_LE(reference.distance_of(*results, call, data), most_distance(call, shape.k));
          }
        }
      }
    }
    // The copy engine wants 16 bytes.
    for (const ChainCall& call : calls) {
      ChainCall uneven = call;
      uneven.weight_offset = 8;
      EXPECT_FALSE(chains.multiply(uneven)) << chains.describe(uneven) << ", weights at an odd multiple of 8";
    }
  }
}

TEST_F(CudaTest, Bf16ChainsDoNotDependOnTheNumberOfRows) {
  if (!cuda_kernels()->has_bf16_chains()) GTEST_SKIP() << kNoChains;
  Rng rng(kChainSeed);
  auto gpu = cuda_exec();
  for (const ChainShape shape :
       {ChainShape{41, 64}, {20011, 192}, {100, 704}, {5003, 576}, {2501, 1536}, {44, 4480}, {516, 8256}}) {
    const ChainData data(rng, shape);
    Chains chains(*gpu->cuda(), data);
    for (std::int32_t n_parts = 1; n_parts <= 4; ++n_parts) {
      if (!can_cut(shape.k, n_parts)) continue;
      for (ChainCall call : kF32Results) {
        call.n_parts = n_parts;
        std::vector<std::vector<float>> alone;
        for (call.first_row = 0; call.first_row < kChainRows; ++call.first_row) {
          call.form = RowForm::kBf16;
          alone.push_back(chains.results(call));
          call.form = RowForm::kF32;
          EXPECT_TRUE(same_bits(alone.back(), chains.results(call))) << chains.describe(call);
        }
        call.form = RowForm::kBf16, call.first_row = 0;
        for (const std::int32_t n_rows : {2, 7, 8, 9, 16}) {
          call.n_rows = n_rows;
          const std::vector<float> together = chains.results(call);
          for (std::int64_t row = 0; row < n_rows; ++row) {
            const auto from = together.begin() + row * shape.n_out;
            EXPECT_TRUE(same_bits(alone[static_cast<std::size_t>(row)], {from, from + shape.n_out}))
                << "row " << row << " of " << chains.describe(call);
          }
        }
      }
    }
  }
}

// A product in parts has the bits of products of the parts' columns, added in order, and then of bias or old value.
TEST_F(CudaTest, Bf16PartsAreAddedInOrder) {
  if (!cuda_kernels()->has_bf16_chains()) GTEST_SKIP() << kNoChains;
  Rng rng(kChainSeed);
  auto gpu = cuda_exec();
  for (const ChainShape shape :
       {ChainShape{100, 192}, {20011, 192}, {41, 704}, {5003, 704}, {520, 1536}, {44, 4480}, {100, 8256}}) {
    const ChainData data(rng, shape);
    Chains chains(*gpu->cuda(), data);
    for (std::int32_t n_parts = 2; n_parts <= 4; ++n_parts) {
      if (!can_cut(shape.k, n_parts)) continue;
      const std::int64_t part_k = 64 * part_chunks(shape.k, n_parts);
      const std::int32_t counts[] = {1, 5, 16};
      std::vector<float> sums[std::size(counts)];
      for (std::int64_t begin = 0; begin < shape.k; begin += part_k) {
        const ChainData columns = data.columns(begin, std::min(begin + part_k, shape.k));
        Chains part(*gpu->cuda(), columns);
        for (std::size_t i = 0; i < std::size(counts); ++i) {
          const std::vector<float> values = part.results({.n_parts = 1, .n_rows = counts[i]});
          if (begin == 0) {
            sums[i] = values;
          } else {
            std::transform(values.begin(), values.end(), sums[i].begin(), sums[i].begin(),
                           [](float value, float sum) { return sum + value; });
          }
        }
      }
      for (std::size_t i = 0; i < std::size(counts); ++i) {
        for (ChainCall call : kF32Results) {
          if (call.epilogue == CudaEpilogue::kSwiglu) continue;
          call.n_parts = n_parts, call.n_rows = counts[i];
          std::vector<float> want = sums[i];
          for (std::size_t at = 0; at < want.size(); ++at) {
            if (call.has_bias) want[at] += data.bias[at % data.bias.size()];
            if (call.epilogue == CudaEpilogue::kAdd) want[at] += data.old[at];
          }
          EXPECT_TRUE(same_bits(chains.results(call), want)) << chains.describe(call);
        }
      }
    }
  }
}

// Matrices behind one another in memory, as models have them, and what they do to one input: stored side by side with a
// bias each, added, or a gated pair.
struct JoinedCase {
  CudaEpilogue epilogue = CudaEpilogue::kStore;
  std::vector<std::int64_t> n_outs;
  std::int64_t k = 0;
  std::int64_t n_out() const { return std::accumulate(n_outs.begin(), n_outs.end(), std::int64_t{0}); }
};

class JoinedProducts {
 public:
  static constexpr std::int64_t kMostRows = 200, kMostK = 8960, kMostWidth = 8960;

  // type: of what is multiplied and of gated results.
  JoinedProducts(Rng& rng, DType type)
      : type_(type), gpu_(make_exec(type)), x_(random_floats(rng, kMostRows * kMostK)) {}

  void take(Rng& rng, const JoinedCase& of) {
    case_ = of;
    weights_.clear();
    const std::vector<std::uint16_t> bits = random_bf16(rng, of.n_out() * of.k);
    matrices_ = copied(exec(), bits);
    if (of.epilogue == CudaEpilogue::kAdd) old_ = random_floats(rng, kMostRows * of.n_out());
    const std::uint8_t* at = reinterpret_cast<const std::uint8_t*>(matrices_.data());
    for (const std::int64_t n_out : of.n_outs) {
      weights_.push_back({.name = "test",
                          .format = PackedFormat::kBF16,
                          .n_out = n_out,
                          .k = of.k,
                          .packed = at,
                          .panel_bytes = cuda_panel_bytes(PackedFormat::kBF16, of.k)});
      at += cuda_packed_bytes(PackedFormat::kBF16, n_out, of.k);
    }
    bias_ = copied(exec(), random_floats(rng, of.n_out()));
    norm_ = copied(exec(), random_floats(rng, of.k));
  }

  // Results of rows [begin, begin + n) of x, or of their norms.
  std::vector<std::vector<float>> multiply(std::int64_t begin, std::int64_t n, bool has_norm) {
    const std::int64_t k = case_.k, n_out = case_.n_out();
    const auto rows_of = [&](const std::vector<float>& all, std::int64_t width) {
      return std::vector<float>(all.begin() + begin * width, all.begin() + (begin + n) * width);
    };
    const std::vector<float> x = rows_of(x_, k);
    exec().forget_copies(nullptr);
    TensorView read{plain_.view().data, type_, {n, k}};
    if (has_norm) {
      upload(source_, x);
      read.data = normed_.view().data;
      rms_norm(*gpu_, read, {source_.view().data, DType::kF32, {n, k}}, {norm_.data(), DType::kF32, {k}}, kChainEps);
    } else if (type_ == DType::kBF16) {
      upload(plain_, rounded_to_bf16(x));
    } else {
      upload(plain_, x);
    }
    std::vector<float> values;
    if (case_.epilogue == CudaEpilogue::kSwiglu) {
      OnDevice y(exec(), {n, weights_[0].n_out}, type_);
      linear_swiglu(*gpu_, y.view(), read, weights_[0], weights_[1]);
      values = y.values();
    } else if (case_.epilogue == CudaEpilogue::kAdd) {
      OnDevice y(exec(), rows_of(old_, n_out), {n, n_out});
      linear_add(*gpu_, y.view(), read, weights_[0]);
      values = y.values();
    } else {
      OnDevice y(exec(), {n, n_out});
      std::vector<LinearOutput> outputs;
      std::int64_t column = 0;
      for (const Weight& w : weights_) {
        outputs.push_back({{y.view().f32() + column, DType::kF32, {n, w.n_out}, n_out},
                           &w,
                           {reinterpret_cast<float*>(bias_.data()) + column, DType::kF32, {w.n_out}}});
        column += w.n_out;
      }
      linear(*gpu_, read, outputs);
      values = y.values();
    }
    std::vector<std::vector<float>> result;
    const auto width = static_cast<std::ptrdiff_t>(values.size()) / n;
    for (auto row = values.begin(); row != values.end(); row += width) result.emplace_back(row, row + width);
    return result;
  }

 private:
  static std::unique_ptr<Exec> make_exec(DType type) {
    CudaOptions options = cuda_options();
    options.max_k = kMostK;
    options.max_gate = kMostWidth;
    options.has_f32_activations = type == DType::kF32;
    options.reproducible = true;
    return cuda_exec(options);
  }
  template <class T>
  void upload(OnDevice& to, const std::vector<T>& values) {
    exec().stream().copy_to_device(to.memory.data(), values.data(),
                                   static_cast<std::int64_t>(values.size() * sizeof(T)));
    EXPECT_TRUE(exec().wait("test"));
  }
  CudaExec& exec() { return *gpu_->cuda(); }

  DType type_;
  std::unique_ptr<Exec> gpu_;
  std::vector<float> x_, old_;
  // At addresses of their own as long as the Exec is: it remembers which tensor's norm is still to be computed.
  OnDevice plain_{exec(), {kMostRows, kMostK}, type_}, source_{exec(), {kMostRows, kMostK}},
      normed_{exec(), {kMostRows, kMostK}, type_};
  JoinedCase case_;
  DeviceBuffer matrices_, bias_, norm_;
  std::vector<Weight> weights_;
};

// With --reproducible: whether cuBLASLt multiplies, in one part or in several, or the kernel of chains, which takes a
// single row's norm along.
TEST_F(CudaTest, ReproducibleBf16RowsDoNotDependOnTheirNumber) {
  const std::vector<std::int64_t> chosen = {0, 1, 7, 8, 15, 16, 63, 127, 199};
  for (const DType type : {DType::kF32, DType::kBF16}) {
    Rng rng(kChainSeed);
    JoinedProducts products(rng, type);
    for (const JoinedCase& of : {JoinedCase{CudaEpilogue::kStore, {1536, 256, 256}, 1536},
                                 {CudaEpilogue::kStore, {3584, 512, 512}, 3584},
                                 {CudaEpilogue::kStore, {152, 40, 24}, 704},
                                 {CudaEpilogue::kStore, {20008}, 896},
                                 {CudaEpilogue::kAdd, {512}, 8960},
                                 {CudaEpilogue::kAdd, {1536}, 4480},
                                 {CudaEpilogue::kAdd, {1536}, 8960},
                                 {CudaEpilogue::kAdd, {896}, 4864},
                                 {CudaEpilogue::kSwiglu, {8960, 8960}, 1536},
                                 {CudaEpilogue::kSwiglu, {4864, 4864}, 896},
                                 {CudaEpilogue::kSwiglu, {200, 200}, 704}}) {
      products.take(rng, of);
      // First with a norm, which then cannot be taken along yet.
      for (const bool has_norm : {true, false}) {
        const auto where = [&](std::int64_t n) {
          return fmt::format("{} x {} in {} ({}){}, {} rows of {}, seed {}", of.n_out(), of.k, of.n_outs.size(),
                             static_cast<int>(of.epilogue), has_norm ? " behind a norm" : "", n, dtype_name(type),
                             kChainSeed);
        };
        std::vector<std::vector<float>> alone;
        for (const std::int64_t row : chosen) {
          alone.push_back(products.multiply(row, 1, has_norm)[0]);
          EXPECT_TRUE(same_bits(alone.back(), products.multiply(row, 1, has_norm)[0])) << where(1) << ", again";
          EXPECT_TRUE(std::all_of(alone.back().begin(), alone.back().end(), [](float v) { return std::isfinite(v); }))
              << where(1);
        }
        for (const std::int64_t n : {2, 8, 9, 16, 17, 64, 128, 200}) {
          for (int call = 0; call < 2; ++call) {
            const auto together = products.multiply(0, n, has_norm);
            for (std::size_t i = 0; i < chosen.size() && chosen[i] < n; ++i)
              EXPECT_TRUE(same_bits(alone[i], together[static_cast<std::size_t>(chosen[i])]))
                  << "row " << chosen[i] << ", call " << call << ": " << where(n);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace still
