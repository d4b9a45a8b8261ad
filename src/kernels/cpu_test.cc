// Every kernel table that this machine can run against the scalar reference: the same bytes (NaNs count as equal).
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/packing.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/testing.h"
#include "tensor/float16.h"

namespace still {

const CpuKernels& emulated_tile_kernels();  // cpu/avx512_vnni/emulated_tiles_test.cc

namespace {

using testing::AlignedBytes;
using testing::random_floats;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint64_t seed_of_run() {
  static const std::uint64_t seed = [] {
    const char* given = std::getenv("STILL_TEST_SEED");
    const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 10) : 20240607;
    std::printf("seed %llu (STILL_TEST_SEED sets another)\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

// Index of the first element that differs, -1 if none does.
template <class T>
std::int64_t first_difference(const std::vector<T>& got, const std::vector<T>& want) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    if constexpr (std::is_same_v<T, float>) {
      if (std::isnan(got[i]) && std::isnan(want[i])) continue;
    }
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0) return static_cast<std::int64_t>(i);
  }
  return -1;
}
template <class T>
void expect_same(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  const std::int64_t at = first_difference(got, want);
  ASSERT_EQ(at, -1) << what << ": element " << at << " is " << +got[static_cast<std::size_t>(at)] << ", reference "
                    << +want[static_cast<std::size_t>(at)];
}

// The machine's levels, and AMX's products with an emulated matrix unit where its other instructions run.
constexpr std::string_view kEmulatedTiles = "emulated_tiles";
const CpuKernels& kernels_named(const std::string& name) {
  return name == kEmulatedTiles ? emulated_tile_kernels() : **select_cpu_kernels(name);
}

// A copy that ends at an inaccessible page and begins at most a page after one: kernels are compiled without
// sanitizers.
class GuardedBytes {
 public:
  GuardedBytes(const void* bytes, std::int64_t size) : size_(size), pages_((size + kPage - 1) / kPage * kPage) {
    base_ = static_cast<std::uint8_t*>(mmap(nullptr, static_cast<std::size_t>(pages_ + 2 * kPage),
                                            PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    STILL_CHECK(base_ != MAP_FAILED);
    STILL_CHECK(mprotect(base_, kPage, PROT_NONE) == 0 && mprotect(base_ + kPage + pages_, kPage, PROT_NONE) == 0);
    if (size > 0) std::memcpy(data(), bytes, static_cast<std::size_t>(size));
  }
  template <class T>
  explicit GuardedBytes(const std::vector<T>& values)
      : GuardedBytes(values.data(), static_cast<std::int64_t>(values.size() * sizeof(T))) {}
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, static_cast<std::size_t>(pages_ + 2 * kPage)); }

  std::uint8_t* data() const { return base_ + kPage + pages_ - size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }

 private:
  static constexpr std::int64_t kPage = 4096;
  std::int64_t size_, pages_;
  std::uint8_t* base_;
};

class CpuKernelsTest : public ::testing::TestWithParam<std::string> {
 protected:
  CpuKernelsTest() : kernels(kernels_named(GetParam())), rng(seed_of_run()) {}
  const CpuKernels& kernels;
  Rng rng;
};
std::vector<std::string> isas_above_ref() {
  std::vector<std::string> names = available_isas();
  names.erase(names.begin());
  if (std::find(names.begin(), names.end(), "avx512_vnni") != names.end()) names.emplace_back(kEmulatedTiles);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Isa, CpuKernelsTest, ::testing::ValuesIn(isas_above_ref()),
                         [](const auto& info) { return info.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CpuKernelsTest);

std::vector<PackedFormat> all_formats() {
  std::vector<PackedFormat> formats;
  for (int f = 0; f < kPackedFormatCount; ++f) formats.push_back(static_cast<PackedFormat>(f));
  return formats;
}
std::string name_of(PackedFormat format) {
  return std::string(dtype_name(packed_dtype(format)));
}

// --- products ---

struct Activations {
  std::vector<float> x;
  testing::QuantizedActivations q;
};
Activations activations(PackedFormat format, std::vector<float> x, std::int64_t n_rows, std::int64_t k) {
  Activations result{std::move(x), {}};
  const std::int32_t block = activation_block(format);
  if (block != 0) result.q = testing::quantize_activations(result.x, n_rows, k, block);
  return result;
}

// The panels [begin, end) of W x for one table; y is wider than n_out and starts as -7.
std::vector<float> product(const CpuKernels& kernels, const testing::PackedMatrix& w, const Activations& x,
                           std::int64_t n_rows, std::int64_t begin, std::int64_t end) {
  static const AlignedBytes scratch(kLinearScratchBytes);
  const std::int64_t y_stride = w.n_out + 3;
  std::vector<float> y(static_cast<std::size_t>(n_rows * y_stride), -7.0f);
  LinearArgs args{};
  const GuardedBytes weights(w.packed.data(), w.panel_bytes * w.n_panels()), floats(x.x), result(y);
  const GuardedBytes q(x.q.q), scale(x.q.scale), sums(x.q.sums);
  args.weights = weights.data();
  args.panel_bytes = w.panel_bytes;
  args.panel_begin = begin;
  args.panel_end = end;
  args.n_out = w.n_out;
  args.k = w.k;
  if (activation_block(w.format) != 0)
    args.x = {q.as<std::int8_t>(), scale.as<float>(), sums.as<std::int16_t>(), x.q.k, x.q.block};
  args.x_f32 = floats.as<float>();
  args.x_stride = w.k;
  args.n_rows = n_rows;
  args.y = result.as<float>();
  args.y_stride = y_stride;
  args.scratch = scratch.data();
  kernels.linear[static_cast<int>(w.format)](args);
  std::memcpy(y.data(), args.y, y.size() * sizeof(float));
  {
    // The same with what that call left in the scratch.
    const GuardedBytes again(std::vector<float>(y.size(), -7.0f));
    args.y = again.as<float>();
    args.same_x = true;
    kernels.linear[static_cast<int>(w.format)](args);
    EXPECT_EQ(std::memcmp(y.data(), args.y, y.size() * sizeof(float)), 0)
        << name_of(w.format) << " with the last call's activations, " << n_rows << " rows";
    args.same_x = false;
  }
  if (const Regrouping* how = kernels.regrouping[static_cast<int>(w.format)]; how != nullptr) {
    // The same from regrouped activations, written in two parts.
    const std::int64_t padded = (n_rows + kRegroupedRows - 1) / kRegroupedRows * kRegroupedRows;
    const std::vector<std::uint8_t> room(static_cast<std::size_t>(padded * (w.k / how->block) * how->block_bytes),
                                         0xee);
    EXPECT_LE(room.size(), static_cast<std::size_t>(most_regrouped_bytes(n_rows, w.k)));
    const GuardedBytes regrouped(room);
    auto* out = reinterpret_cast<std::int32_t*>(regrouped.data());
    const std::int64_t half = std::min(n_rows, padded / 2 / kRegroupedRows * kRegroupedRows);
    how->write({args.x, n_rows, 0, half, out});
    how->write({args.x, n_rows, half, n_rows, out});
    const GuardedBytes other(std::vector<float>(y.size(), -7.0f));
    args.y = other.as<float>();
    args.regrouped = out;
    kernels.linear[static_cast<int>(w.format)](args);
    EXPECT_EQ(std::memcmp(y.data(), args.y, y.size() * sizeof(float)), 0)
        << name_of(w.format) << " from regrouped activations of " << n_rows << " rows";
  }
  return y;
}

TEST_P(CpuKernelsTest, ProductsMatchReferenceForAllShapes) {
  for (const PackedFormat format : all_formats()) {
    for (const std::int64_t k : {1, 7, 32, 96, 256, 512, 896, 1536}) {
      if (k % packed_tile_k(format) != 0) continue;
      for (const std::int64_t n_out : {1, 15, 16, 17, 48, 100}) {
        const testing::PackedMatrix w = testing::random_packed_matrix(rng, format, n_out, k);
        // All row counts with one k, two of them otherwise: the reference is slow.
        const bool is_full = k == 512 && n_out == 48;
        for (const std::int64_t n_rows :
             is_full ? std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 33, 64, 119}
                     : std::vector<std::int64_t>{1, 1 + rng.below(20)}) {
          const Activations x = activations(format, random_floats(rng, n_rows * k), n_rows, k);
          expect_same(product(kernels, w, x, n_rows, 0, w.n_panels()),
                      product(kRefKernels, w, x, n_rows, 0, w.n_panels()),
                      fmt::format("{} [{}, {}] x {} rows", name_of(format), n_out, k, n_rows));
        }
      }
    }
  }
}

TEST_P(CpuKernelsTest, ProductsMatchReferenceForPartsAndManyRows) {
  for (const PackedFormat format : all_formats()) {
    // Several chunks of k, of float formats one that is no multiple of anything; more rows than a pass takes.
    for (const std::int64_t k : {2560, 203}) {
      if (k % packed_tile_k(format) != 0) continue;
      const std::int64_t n_out = 90, n_rows = 530;
      const testing::PackedMatrix w = testing::random_packed_matrix(rng, format, n_out, k);
      const Activations x = activations(format, random_floats(rng, n_rows * k), n_rows, k);
      expect_same(product(kernels, w, x, n_rows, 1, 3), product(kRefKernels, w, x, n_rows, 1, 3), name_of(format));
      expect_same(product(kernels, w, x, 1, 2, 6), product(kRefKernels, w, x, 1, 2, 6), name_of(format));
      expect_same(product(kernels, w, x, 6, 5, 6), product(kRefKernels, w, x, 6, 5, 6), name_of(format));
    }
  }
}

TEST_P(CpuKernelsTest, ProductsOfLongRowsFitScratch) {
  for (const PackedFormat format : {PackedFormat::kQ8_0, PackedFormat::kQ6_K, PackedFormat::kQ4_1}) {
    const std::int64_t k = 32768, n_out = 16;
    const testing::PackedMatrix w = testing::random_packed_matrix(rng, format, n_out, k);
    for (const std::int64_t n_rows : {1, 7, 16, 20}) {
      const Activations x = activations(format, random_floats(rng, n_rows * k), n_rows, k);
      expect_same(product(kernels, w, x, n_rows, 0, 1), product(kRefKernels, w, x, n_rows, 0, 1), name_of(format));
    }
  }
}

TEST_P(CpuKernelsTest, ProductsAreExactAtTheExtremes) {
  for (const PackedFormat format : all_formats()) {
    if (activation_block(format) == 0) continue;
    const std::int64_t k = 512, n_out = 20;
    for (const int fill : {0x00, 0xff, 0x80, 0x7f, 0x3f}) {
      testing::PackedMatrix w = testing::random_packed_matrix(rng, format, n_out, k);
      // Quants all alike; in file formats of 256 this sets sub-block scales to their extremes too. f16 fields stay
      // finite because they are overwritten in the packed panel, where they lie at the end of each tile's scales.
      const std::int64_t tiles = k / packed_tile_k(format), quant_bytes = packed_quant_bytes(format);
      const std::int64_t scale_bytes = packed_tile_bytes(format) - quant_bytes;
      const std::int64_t f16_bytes = format == PackedFormat::kQ4_1 || format == PackedFormat::kQ5_1 ||
                                             format == PackedFormat::kQ2_K || format == PackedFormat::kQ4_K ||
                                             format == PackedFormat::kQ5_K
                                         ? 64
                                         : 32;
      const bool six_bits = format == PackedFormat::kQ4_K || format == PackedFormat::kQ5_K;
      const bool four_bits = format == PackedFormat::kQ2_K;
      const bool signed_six = format == PackedFormat::kQ3_K || format == PackedFormat::kIQ4_XS;
      for (std::int64_t p = 0; p < w.n_panels(); ++p) {
        std::uint8_t* panel = w.packed.data() + p * w.panel_bytes;
        std::memset(panel + packed_quants_at(format, tiles), fill, static_cast<std::size_t>(tiles * quant_bytes));
        for (std::int64_t t = 0; t < tiles; ++t) {
          const int scale = six_bits ? fill & 63 : four_bits ? fill & 15 : signed_six ? (fill & 63) - 32 : fill;
          std::memset(panel + t * scale_bytes, scale, static_cast<std::size_t>(scale_bytes - f16_bytes));
        }
      }
      for (const float value : {1.0f, -1.0f}) {
        for (const std::int64_t n_rows : {1, 3, 8, 16, 40, 64}) {
          const Activations x =
              activations(format, std::vector<float>(static_cast<std::size_t>(n_rows * k), value), n_rows, k);
          expect_same(product(kernels, w, x, n_rows, 0, w.n_panels()),
                      product(kRefKernels, w, x, n_rows, 0, w.n_panels()),
                      fmt::format("{} filled with {:#x}, {} rows of {}", name_of(format), fill, n_rows, value));
        }
      }
    }
  }
}

TEST_P(CpuKernelsTest, ProductsKeepInfinitiesAndZeroBlocks) {
  for (const PackedFormat format : all_formats()) {
    const std::int64_t k = 768, n_out = 33;
    const testing::PackedMatrix w = testing::random_packed_matrix(rng, format, n_out, k);
    for (const std::int64_t n_rows : {2, 20}) {
      std::vector<float> values = random_floats(rng, n_rows * k);
      values[5] = kInfinity;
      values[static_cast<std::size_t>(k + 300)] = kNan;
      std::fill(values.begin() + 256, values.begin() + 512, 0.0f);
      const Activations x = activations(format, values, n_rows, k);
      const std::vector<float> y = product(kernels, w, x, n_rows, 0, w.n_panels());
      expect_same(y, product(kRefKernels, w, x, n_rows, 0, w.n_panels()), name_of(format));
      EXPECT_FALSE(std::isfinite(y[0])) << name_of(format);
    }
  }
}

TEST_P(CpuKernelsTest, PacksTheReferenceBytes) {
  for (const PackedFormat format : all_formats()) {
    for (const std::int64_t n_out : {1, 16, 37}) {
      for (const std::int64_t k : {1, 5, 32, 96, 256, 768}) {
        if (k % packed_tile_k(format) != 0) continue;
        const testing::PackedMatrix w = testing::random_packed_matrix(rng, format, n_out, k);
        std::vector<std::int64_t> reversed(static_cast<std::size_t>(n_out));
        for (std::int64_t i = 0; i < n_out; ++i) reversed[static_cast<std::size_t>(i)] = n_out - 1 - i;
        for (const bool is_reversed : {false, true}) {
          const std::int64_t* map = is_reversed ? reversed.data() : nullptr;
          std::vector<std::uint8_t> bytes[2];
          const CpuKernels* tables[2] = {&kernels, &kRefKernels};
          for (int t = 0; t < 2; ++t) {
            const GuardedBytes source(w.file_rows);
            bytes[t].assign(static_cast<std::size_t>(packed_bytes(format, n_out, k)), 0xa5);
            const GuardedBytes packed(bytes[t]);
            tables[t]->pack[static_cast<int>(format)]({.source = source.data(),
                                                       .row_map = map,
                                                       .row_bytes = w.row_bytes(),
                                                       .n_out = n_out,
                                                       .k = k,
                                                       .panel_begin = 0,
                                                       .panel_end = w.n_panels(),
                                                       .packed = packed.data(),
                                                       .panel_bytes = w.panel_bytes});
            std::memcpy(bytes[t].data(), packed.data(), bytes[t].size());
          }
          expect_same(bytes[0], bytes[1], fmt::format("{} [{}, {}]", name_of(format), n_out, k));
        }
      }
    }
  }
}

// --- rows ---

// Ordinary values with what breaks formulas strewn in.
std::vector<float> hostile_floats(Rng& rng, std::int64_t n, float deviation) {
  std::vector<float> x = random_floats(rng, n, deviation);
  constexpr float kValues[] = {0.0f, -0.0f, 1e-40f, -3e38f, 88.8f, -87.4f, 127.5f, 1e-20f};
  for (float& value : x)
    if (rng.below(16) == 0) value = kValues[rng.below(8)];
  return x;
}

TEST_P(CpuKernelsTest, QuantizesLikeTheReference) {
  for (const std::int32_t block : {32, 256}) {
    for (const int kind : {0, 1, 2}) {
      const std::int64_t k = 1024, n_rows = 9, stride = k + 5;
      std::vector<float> x = kind == 0 ? random_floats(rng, n_rows * stride) : hostile_floats(rng, n_rows * stride, 30);
      if (kind == 2) {
        x[3] = kInfinity;
        x[static_cast<std::size_t>(stride + 700)] = kNan;
        for (std::int64_t i = 0; i < k; ++i) {
          x[static_cast<std::size_t>(2 * stride + i)] = 0;
          x[static_cast<std::size_t>(3 * stride + i)] = 1e-39f;
          x[static_cast<std::size_t>(4 * stride + i)] = static_cast<float>(i % 256) - 127.5f;  // ties
        }
      }
      struct Quantized {
        std::vector<std::int8_t> q;
        std::vector<float> scale;
        std::vector<std::int16_t> sums;
      } results[2];
      const CpuKernels* tables[2] = {&kernels, &kRefKernels};
      for (int t = 0; t < 2; ++t) {
        Quantized& r = results[t];
        r.q.resize(static_cast<std::size_t>(n_rows * k));
        r.scale.resize(static_cast<std::size_t>(n_rows * k / block));
        r.sums.resize(static_cast<std::size_t>(n_rows * k / 16));
        tables[t]->quantize_rows(x.data(), stride, n_rows, k, block, r.q.data(), r.scale.data(), r.sums.data());
      }
      expect_same(results[0].q, results[1].q, "q");
      expect_same(results[0].scale, results[1].scale, "scale");
      expect_same(results[0].sums, results[1].sums, "sums");
    }
  }
}

// What a panel's coarse copy and its sums are, by one table.
struct Coarse {
  std::vector<std::uint8_t> copy;
  std::vector<float> sums;
};
Coarse coarse_of(const CpuKernels& table, const testing::PackedMatrix& w, std::int64_t panel,
                 const std::vector<std::int32_t>& columns, const std::vector<std::int32_t>& places) {
  const std::int64_t n_twice = static_cast<std::int64_t>(columns.size());
  const AlignedBytes copy(packed_panel_bytes(PackedFormat::kQ4_0, w.k + n_twice));
  const GuardedBytes weights(w.packed.data() + panel * w.panel_bytes, w.panel_bytes), ascending(columns), to(places);
  CoarseSums sums;
  table.coarse[static_cast<int>(w.format)]({.panel = weights.data(),
                                            .k = w.k,
                                            .n_twice = static_cast<std::int32_t>(n_twice),
                                            .columns = ascending.as<std::int32_t>(),
                                            .places = to.as<std::int32_t>(),
                                            .copy = copy.data(),
                                            .sums = &sums});
  Coarse result{{copy.data(), copy.data() + copy.size()}, std::vector<float>(sizeof sums / sizeof(float))};
  std::memcpy(result.sums.data(), &sums, sizeof sums);
  return result;
}

constexpr PackedFormat kCoarseFormats[] = {PackedFormat::kQ8_0, PackedFormat::kQ6_K, PackedFormat::kF16,
                                           PackedFormat::kBF16, PackedFormat::kF32};

struct TwiceColumns {
  std::vector<std::int32_t> columns, places;
};
TwiceColumns random_columns(Rng& rng, std::int64_t k, std::int64_t n) {
  std::vector<std::int32_t> all(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < k; ++i) all[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  TwiceColumns result;
  for (std::int64_t i = 0; i < n; ++i) {
    std::swap(all[static_cast<std::size_t>(i)], all[static_cast<std::size_t>(i + rng.below(k - i))]);
    result.columns.push_back(all[static_cast<std::size_t>(i)]);
    result.places.insert(result.places.begin() + rng.below(i + 1), static_cast<std::int32_t>(i));
  }
  std::sort(result.columns.begin(), result.columns.end());
  return result;
}

TEST_P(CpuKernelsTest, CoarseCopiesMatchReference) {
  for (const PackedFormat format : kCoarseFormats) {
    for (const std::int64_t k : {64, 96, 256, 896, 1536}) {
      if (k % packed_tile_k(format) != 0) continue;
      // Of ordinary weights, of such as f16 scales round to subnormal numbers or to 0, and of large ones.
      for (const float deviation : {0.05f, 1e-6f, 1e-12f, 1e4f}) {
        testing::PackedMatrix w = testing::random_packed_matrix(rng, format, 37, k, deviation);
        if (format == PackedFormat::kF32) {
          auto* floats = reinterpret_cast<float*>(w.packed.data());
          floats[0] = kInfinity;
          floats[1] = -kInfinity;
          floats[2] = kNan;
          floats[3] = kCoarseLargest;
          floats[4] = std::nextafter(-kCoarseLargest, 0.0f);
          floats[5] = -0.0f;
          for (std::int64_t i = 0; i < 32; ++i) floats[i * kPanelRows + 6] = -0.0f;
          for (std::int64_t i = 0; i < 32; ++i)  // ties
            floats[i * kPanelRows + 7] = static_cast<float>(i % 17 - 8) / 2;
        }
        for (const std::int64_t n_twice : {0, 32, 64}) {
          const TwiceColumns twice = random_columns(rng, k, n_twice);
          for (std::int64_t panel = 0; panel < w.n_panels(); ++panel) {
            const Coarse got = coarse_of(kernels, w, panel, twice.columns, twice.places);
            const Coarse want = coarse_of(kRefKernels, w, panel, twice.columns, twice.places);
            expect_same(got.copy, want.copy, name_of(format) + " copy, k " + std::to_string(k));
            expect_same(got.sums, want.sums, name_of(format) + " sums, k " + std::to_string(k));
          }
        }
      }
    }
  }
}

// The sums are those of what the copy, read back, leaves of the panel, in double: the bound of ops/screened_head.h
// rests on them. Tables give the reference's bytes (above).
TEST(CoarseCopies, SumsAreWhatTheCopyLeaves) {
  Rng rng(seed_of_run());
  for (const PackedFormat format : kCoarseFormats) {
    for (const std::int64_t k : {256, 1536}) {
      for (const float deviation : {0.05f, 1e-6f, 1e4f}) {
        SCOPED_TRACE(name_of(format) + " k " + std::to_string(k) + " deviation " + std::to_string(deviation));
        const testing::PackedMatrix w = testing::random_packed_matrix(rng, format, kPanelRows, k, deviation);
        const TwiceColumns twice = random_columns(rng, k, 64);
        const Coarse coarse = coarse_of(kRefKernels, w, 0, twice.columns, twice.places);
        for (std::int64_t row = 0; row < kPanelRows; ++row) {
          std::vector<float> copy(static_cast<std::size_t>(k + 64)), left = w.decoded_row(row);
          decode_packed_row(PackedFormat::kQ4_0, coarse.copy.data(), 0, k + 64, row, copy.data());
          const auto size = [](const auto& values, std::size_t begin, std::size_t end) {
            double sum = 0;
            for (std::size_t i = begin; i < end; ++i)
              sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
            return sum;
          };
          const auto n = static_cast<std::size_t>(k);
          const double row_size = size(left, 0, n);
          std::vector<double> rest(left.begin(), left.end()), twice_left(64);
          for (std::size_t i = 0; i < n; ++i) rest[i] -= static_cast<double>(copy[i]);
          for (std::size_t i = 0; i < 64; ++i) {
            double& moved = rest[static_cast<std::size_t>(twice.columns[i])];
            const auto place = static_cast<std::size_t>(twice.places[i]);
            twice_left[place] = moved - static_cast<double>(copy[n + place]);
            moved = 0;
          }
          const double want[] = {row_size, size(copy, 0, n), size(rest, 0, n), size(copy, n, n + 64),
                                 size(twice_left, 0, 64)};
          for (std::size_t i = 0; i < 5; ++i) {
            const auto got = static_cast<double>(coarse.sums[i * kPanelRows + static_cast<std::size_t>(row)]);
            // What the second copy leaves may be little beside f32's rounding of what it copies.
            EXPECT_NEAR(got, want[i], want[i] * 1e-4 + (i == 4 ? want[2] * 1e-12 : 0) + 1e-40) << "sum " << i;
          }
          if (deviation != 0.05f) continue;
          // That it is a copy worth having.
          EXPECT_LT(want[2], want[0] / 50);
          EXPECT_LT(want[4], want[3] / 50);
        }
      }
    }
  }
}

constexpr std::int64_t kLengths[] = {1, 2, 15, 16, 17, 31, 64, 100, 896, 1537};

TEST_P(CpuKernelsTest, NormsAndSumsMatchReference) {
  for (const std::int64_t n : kLengths) {
    for (const float deviation : {1.0f, 1e-22f, 1e15f}) {
      const std::vector<float> x = random_floats(rng, n, deviation), w = random_floats(rng, n),
                               delta = random_floats(rng, n, deviation);
      std::vector<float> got(static_cast<std::size_t>(n)), want = got;
      const GuardedBytes guarded_x(x), guarded_w(w), guarded_y(got);
      kernels.rms_norm(guarded_x.as<float>(), guarded_w.as<float>(), guarded_y.as<float>(), n, 1e-6f);
      kernels.swiglu(guarded_x.as<float>(), guarded_w.as<float>(), guarded_y.as<float>(), n);
      kernels.exp_shifted(guarded_x.as<float>(), 1, guarded_y.as<float>(), n);
      kernels.argmax(guarded_x.as<float>(), n);
      kernels.log_sum_exp(guarded_x.as<float>(), n);
      kernels.add(guarded_y.as<float>(), guarded_x.as<float>(), n);
      kernels.rms_norm(x.data(), w.data(), got.data(), n, 1e-6f);
      kRefKernels.rms_norm(x.data(), w.data(), want.data(), n, 1e-6f);
      expect_same(got, want, "rms_norm");
      std::vector<float> got_x = x, want_x = x;
      kernels.add_rms_norm(got_x.data(), delta.data(), w.data(), got.data(), n, 1e-5f);
      kRefKernels.add_rms_norm(want_x.data(), delta.data(), w.data(), want.data(), n, 1e-5f);
      expect_same(got, want, "add_rms_norm");
      expect_same(got_x, want_x, "add_rms_norm x");
      kernels.rms_norm(got_x.data(), w.data(), got_x.data(), n, 0.0f);
      kRefKernels.rms_norm(want_x.data(), w.data(), want_x.data(), n, 0.0f);
      expect_same(got_x, want_x, "rms_norm in place");
      kernels.add(got_x.data(), delta.data(), n);
      kRefKernels.add(want_x.data(), delta.data(), n);
      expect_same(got_x, want_x, "add");
    }
  }
}

TEST_P(CpuKernelsTest, ExponentialsMatchReference) {
  for (const std::int64_t n : kLengths) {
    for (const float deviation : {1.0f, 40.0f}) {
      std::vector<float> x = hostile_floats(rng, n, deviation), up = random_floats(rng, n);
      if (n > 20) {
        x[7] = kInfinity;
        x[9] = -kInfinity;
        x[11] = kNan;
        x[13] = 88.72283f;
        x[15] = -87.33654f;
      }
      std::vector<float> got(static_cast<std::size_t>(n)), want = got;
      for (const float shift : {0.0f, 3.25f}) {
        kernels.exp_shifted(x.data(), shift, got.data(), n);
        kRefKernels.exp_shifted(x.data(), shift, want.data(), n);
        expect_same(got, want, "exp_shifted");
      }
      kernels.swiglu(x.data(), up.data(), got.data(), n);
      kRefKernels.swiglu(x.data(), up.data(), want.data(), n);
      expect_same(got, want, "swiglu");
      EXPECT_EQ(kernels.argmax(x.data(), n), kRefKernels.argmax(x.data(), n));
      expect_same(std::vector<float>{kernels.log_sum_exp(x.data(), n)}, {kRefKernels.log_sum_exp(x.data(), n)}, "lse");
      const std::vector<float> plain = random_floats(rng, n, deviation);
      expect_same(std::vector<float>{kernels.log_sum_exp(plain.data(), n)}, {kRefKernels.log_sum_exp(plain.data(), n)},
                  "lse");
    }
  }
}

TEST_P(CpuKernelsTest, ExpMatchesReferenceOnAFineGrid) {
  std::vector<float> x;
  for (double v = -89; v < 90; v += 1.0 / 512) x.push_back(static_cast<float>(v));
  std::vector<float> got(x.size()), want(x.size());
  kernels.exp_shifted(x.data(), 0, got.data(), static_cast<std::int64_t>(x.size()));
  kRefKernels.exp_shifted(x.data(), 0, want.data(), static_cast<std::int64_t>(x.size()));
  expect_same(got, want, "exp");
}

TEST_P(CpuKernelsTest, ArgmaxPrefersTheLowestIndexAndSkipsNans) {
  for (const std::int64_t n : kLengths) {
    std::vector<float> x(static_cast<std::size_t>(n), kNan);
    EXPECT_EQ(kernels.argmax(x.data(), n), 0);
    x[static_cast<std::size_t>(n - 1)] = -kInfinity;
    EXPECT_EQ(kernels.argmax(x.data(), n), n - 1);
    std::fill(x.begin(), x.end(), 2.0f);
    EXPECT_EQ(kernels.argmax(x.data(), n), 0);
    x[0] = kNan;
    EXPECT_EQ(kernels.argmax(x.data(), n), n > 1 ? 1 : 0);
  }
}

TEST_P(CpuKernelsTest, RopeMatchesReference) {
  for (const auto& [head_dim, n_rot] : {std::pair{64, 64}, {128, 128}, {80, 80}, {40, 20}, {64, 32}, {2, 2}}) {
    for (const bool pairs : {false, true}) {
      const std::vector<float> x = random_floats(rng, 3 * head_dim), angles = random_floats(rng, n_rot / 2 + 1, 3);
      std::vector<float> cos, sin;
      for (const float a : angles) {
        cos.push_back(std::cos(a));
        sin.push_back(std::sin(a));
      }
      std::vector<float> got(x.size()), want(x.size()), in_place = x;
      RopeArgs args{x.data(), got.data(), cos.data(), sin.data(), 3, head_dim, n_rot, pairs};
      kernels.rope(args);
      args.y = want.data();
      kRefKernels.rope(args);
      expect_same(got, want, "rope");
      args.x = args.y = in_place.data();
      kernels.rope(args);
      expect_same(in_place, want, "rope in place");
    }
  }
}

// --- attention ---

// The cache of one KV head, its blocks in shuffled order, filled by one table's kv_write.
struct Cache {
  Cache(Rng& rng, const CpuKernels& writer, KvType type, std::int32_t head_dim, std::int64_t block_size,
        std::int64_t n) {
    const std::int64_t n_blocks = (n + block_size - 1) / block_size + 1;
    const std::int64_t element = type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1;
    const std::int64_t part = block_size * head_dim * element;
    const std::int64_t scale_part = type == KvType::kInt8 ? block_size * (head_dim / kv_group(head_dim)) * 2 : 0;
    view.block_bytes = (2 * (part + scale_part) + 63) / 64 * 64;
    bytes = AlignedBytes(n_blocks * view.block_bytes);
    // What is not written is NaN: a kernel that reads past the end shows.
    std::memset(bytes.data(), type == KvType::kInt8 ? 0x7f : 0xff, static_cast<std::size_t>(bytes.size()));
    for (std::int64_t i = 0; i < n_blocks; ++i) table.push_back(static_cast<std::int32_t>(n_blocks - 1 - i));
    view.base = bytes.data();
    view.k_offset = 0;
    view.v_offset = part;
    view.k_scale_offset = 2 * part;
    view.v_scale_offset = 2 * part + scale_part;
    view.block_table = table.data();
    view.block_size = block_size;
    view.head_dim = head_dim;
    view.type = type;
    for (std::int64_t pos = 0; pos < n; ++pos) {
      std::vector<float> k = random_floats(rng, head_dim), v = random_floats(rng, head_dim);
      if (pos % 50 == 7) std::fill(k.begin(), k.end(), 0.0f);
      if (pos % 50 == 9) v[0] = 1e30f;  // beyond f16
      writer.kv_write(view, pos, k.data(), v.data());
    }
  }
  AlignedBytes bytes;
  std::vector<std::int32_t> table;
  KvHeadView view{};
};

struct AttentionCase {
  std::int32_t head_dim, group;
  std::int64_t n_q, q_pos, window;
  std::int64_t kv_begin = 0, kv_end = 1 << 20;
  bool finish = true;
};

struct AttentionResult {
  std::vector<float> out, m, l;
};
AttentionResult attend(const CpuKernels& kernels, const Cache& cache, const AttentionCase& c,
                       const std::vector<float>& q, const AlignedBytes& scratch) {
  const std::int64_t stride = c.group * c.head_dim + 8;
  AttentionResult r{std::vector<float>(static_cast<std::size_t>(c.n_q * stride), -7.0f),
                    std::vector<float>(static_cast<std::size_t>(c.n_q * c.group), -7.0f),
                    {}};
  r.l = r.m;
  const GuardedBytes kv_bytes(cache.bytes.data(), cache.bytes.size()), queries(q), out(r.out), m(r.m), l(r.l);
  KvHeadView view = cache.view;
  view.base = kv_bytes.data();
  kernels.attention({.kv = view,
                     .q = queries.as<float>(),
                     .q_stride = stride,
                     .group = c.group,
                     .n_q = c.n_q,
                     .q_pos = c.q_pos,
                     .kv_begin = c.kv_begin,
                     .kv_end = std::min(c.kv_end, c.q_pos + c.n_q),
                     .window = c.window,
                     .scale = 0.125f,
                     .out = out.as<float>(),
                     .out_stride = stride,
                     .m = m.as<float>(),
                     .l = l.as<float>(),
                     .finish = c.finish,
                     .scratch = scratch.data()});
  std::memcpy(r.out.data(), out.data(), r.out.size() * sizeof(float));
  std::memcpy(r.m.data(), m.data(), r.m.size() * sizeof(float));
  std::memcpy(r.l.data(), l.data(), r.l.size() * sizeof(float));
  return r;
}

TEST_P(CpuKernelsTest, AttentionMatchesReference) {
  const AlignedBytes scratch(kAttentionScratchBytes);
  const std::vector<AttentionCase> cases = {
      {64, 7, 1, 0, 0},    {64, 7, 1, 31, 0},  {64, 1, 1, 32, 0},    {64, 3, 1, 1200, 0},   {128, 6, 1, 700, 0},
      {16, 8, 1, 77, 0},   {40, 2, 1, 600, 0}, {80, 5, 3, 100, 0},   {72, 4, 17, 520, 0},   {64, 7, 33, 0, 0},
      {64, 3, 65, 490, 0}, {128, 1, 40, 3, 0}, {128, 2, 50, 40, 16}, {64, 8, 20, 600, 100}, {32, 4, 9, 1000, 513},
      {64, 2, 1, 900, 1},  {256, 1, 5, 64, 0}, {36, 2, 3, 40, 0},    {64, 7, 100, 1000, 0}, {8, 2, 4, 30, 0}};
  for (const KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32}) {
    for (const AttentionCase& c : cases) {
      for (const std::int64_t block_size : {32, 64}) {
        const Cache cache(rng, kRefKernels, type, c.head_dim, block_size, c.q_pos + c.n_q);
        const std::vector<float> q = random_floats(rng, c.n_q * (c.group * c.head_dim + 8));
        expect_same(attend(kernels, cache, c, q, scratch).out, attend(kRefKernels, cache, c, q, scratch).out,
                    fmt::format("type {} head_dim {} group {} n_q {} q_pos {} window {}", static_cast<int>(type),
                                c.head_dim, c.group, c.n_q, c.q_pos, c.window));
      }
    }
  }
}

TEST_P(CpuKernelsTest, AttentionPartsMatchReferenceAndMergeToTheWhole) {
  const AlignedBytes scratch(kAttentionScratchBytes);
  for (const KvType type : {KvType::kF16, KvType::kInt8}) {
    for (const std::int64_t window : {0, 600}) {
      const AttentionCase whole{64, 3, 2, 1700, window};
      const Cache cache(rng, kRefKernels, type, 64, 64, 1702);
      const std::vector<float> q = random_floats(rng, whole.n_q * (whole.group * whole.head_dim + 8));
      const AttentionResult want = attend(kernels, cache, whole, q, scratch);
      std::vector<float> m, l, o;
      for (std::int64_t begin = 0; begin < 1702; begin += 512) {
        AttentionCase part = whole;
        part.kv_begin = begin;
        part.kv_end = begin + 512;
        part.finish = false;
        const AttentionResult got = attend(kernels, cache, part, q, scratch);
        const AttentionResult ref = attend(kRefKernels, cache, part, q, scratch);
        expect_same(got.out, ref.out, "part o");
        expect_same(got.m, ref.m, "part m");
        expect_same(got.l, ref.l, "part l");
        m.insert(m.end(), got.m.begin(), got.m.begin() + 3);
        l.insert(l.end(), got.l.begin(), got.l.begin() + 3);
        o.insert(o.end(), got.out.begin(), got.out.begin() + 3 * 64);
      }
      std::vector<float> merged(3 * 64), merged_ref(3 * 64);
      AttentionMergeArgs args{
          static_cast<std::int64_t>(m.size()) / 3, m.data(), l.data(), o.data(), 3, 64, merged.data()};
      kernels.attention_merge(args);
      args.out = merged_ref.data();
      kRefKernels.attention_merge(args);
      expect_same(merged, merged_ref, "merge");
      expect_same(merged, std::vector<float>(want.out.begin(), want.out.begin() + 3 * 64), "merge against one call");
    }
  }
}

TEST_P(CpuKernelsTest, AttentionWithNothingVisible) {
  const AlignedBytes scratch(kAttentionScratchBytes);
  const AttentionCase c{64, 2, 3, 1500, 100, 0, 512, false};
  const Cache cache(rng, kRefKernels, KvType::kF16, 64, 64, 1503);
  const std::vector<float> q = random_floats(rng, c.n_q * (c.group * c.head_dim + 8));
  const AttentionResult got = attend(kernels, cache, c, q, scratch), want = attend(kRefKernels, cache, c, q, scratch);
  expect_same(got.out, want.out, "o");
  expect_same(got.m, want.m, "m");
  expect_same(got.l, want.l, "l");
}

TEST_P(CpuKernelsTest, KvWriteStoresTheReferenceBytes) {
  for (const KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32}) {
    for (const std::int32_t head_dim : {16, 40, 64, 80, 128, 36}) {
      Rng same = rng, again = rng;
      const Cache got(same, kernels, type, head_dim, 32, 75), want(again, kRefKernels, type, head_dim, 32, 75);
      const std::vector<std::uint8_t> a(got.bytes.data(), got.bytes.data() + got.bytes.size());
      const std::vector<std::uint8_t> b(want.bytes.data(), want.bytes.data() + want.bytes.size());
      expect_same(a, b, fmt::format("type {} head_dim {}", static_cast<int>(type), head_dim));
    }
  }
}

// --- dispatch ---

TEST(Dispatch, ListsTheReferenceAndSelectsWhatItLists) {
  const std::vector<std::string> isas = available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), "ref");
  for (const std::string& isa : isas) {
    const Result<const CpuKernels*> kernels = select_cpu_kernels(isa);
    ASSERT_TRUE(kernels.has_value());
    EXPECT_EQ((*kernels)->name, isa);
  }
  EXPECT_EQ((*select_cpu_kernels("auto"))->name, isas.back());
  EXPECT_EQ((*select_cpu_kernels(""))->name, isas.back());
}

TEST(Dispatch, NamesWhatTheMachineHasWhenAskedForAnother) {
  const Result<const CpuKernels*> kernels = select_cpu_kernels("sse9");
  ASSERT_FALSE(kernels.has_value());
  EXPECT_EQ(kernels.error().code, Code::kUnsupported);
  EXPECT_NE(kernels.error().message.find("sse9"), std::string::npos);
  EXPECT_NE(kernels.error().message.find("ref"), std::string::npos);
}

}  // namespace
}  // namespace still
