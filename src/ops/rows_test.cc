// The operators that work row by row: embed, rms_norm, logits.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/logits.h"
#include "ops/rms_norm.h"
#include "ops/testing.h"

namespace still {
namespace {

using namespace still::testing;

TEST(Embed, RowsFromTheFileAndFromThePackedHeadAreTheSame) {
  Rng rng(31);
  for (PackedFormat format :
       {PackedFormat::kQ6_K, PackedFormat::kQ8_0, PackedFormat::kF16, PackedFormat::kF32, PackedFormat::kQ4_K}) {
    const std::int64_t n_rows = 100, hidden_size = 512;
    const PackedMatrix matrix = random_packed_matrix(rng, format, n_rows, hidden_size);
    const Weight head = weight_of(matrix);
    const EmbeddingTable from_file{.name = "t",
                                   .dtype = packed_dtype(format),
                                   .n_rows = n_rows,
                                   .row_size = hidden_size,
                                   .data = reinterpret_cast<const std::byte*>(matrix.file_rows.data())};
    const EmbeddingTable from_head{
        .name = "t", .dtype = packed_dtype(format), .n_rows = n_rows, .row_size = hidden_size, .packed = &head};
    for (std::size_t n_tokens : {0u, 1u, 3u, 70u}) {
      std::vector<TokenId> ids(n_tokens);
      for (TokenId& id : ids) id = static_cast<TokenId>(rng.below(n_rows));
      std::vector<float> want;
      for (TokenId id : ids) {
        const std::vector<float> row = matrix.decoded_row(id);
        want.insert(want.end(), row.begin(), row.end());
      }
      for (int n_threads : {1, 2, 3}) {
        const auto exec = make_exec(nullptr, n_threads);
        for (const EmbeddingTable* table : {&from_file, &from_head}) {
          FloatTensor y({static_cast<std::int64_t>(n_tokens), hidden_size}, 9.0f);
          embed(*exec, y.view(), *table, ids);
          EXPECT_TRUE(same_bits(y.values, want));
        }
      }
    }
  }
}

TEST(RmsNorm, MatchesTheFormulaOnEveryTableAndThreadCount) {
  Rng rng(32);
  const auto execs = all_execs();
  for (std::int64_t n_tokens : {1, 3, 40}) {
    for (std::int64_t n : {1, 17, 576, 1537}) {
      FloatTensor x = random_tensor(rng, {n_tokens, n}), w = random_tensor(rng, {n});
      std::vector<float> first;
      for (const auto& exec : execs) {
        FloatTensor y({n_tokens, n});
        rms_norm(*exec, y.view(), x.view(), w.view(), 1e-6f);
        if (first.empty()) {
          first = y.values;
          for (std::int64_t row = 0; row < n_tokens; ++row) {
            double squares = 0;
            for (std::int64_t i = 0; i < n; ++i) squares += std::pow(x.at(row, i), 2);
            for (std::int64_t i = 0; i < n; ++i) {
              const double want = x.at(row, i) / std::sqrt(squares / static_cast<double>(n) + 1e-6) * w.at(i, 0);
              EXPECT_NEAR(y.at(row, i), want, (static_cast<double>(n) / 16 + 16) * 0x1.0p-24 * std::fabs(want));
            }
          }
        }
        EXPECT_TRUE(same_bits(y.values, first)) << exec->kernels().name << " threads " << exec->n_threads();
        FloatTensor in_place = x;
        rms_norm(*exec, in_place.view(), in_place.view(), w.view(), 1e-6f);
        EXPECT_TRUE(same_bits(in_place.values, first));
      }
    }
  }
}

TEST(Logits, OnlyTheWantedRowsInTheirOrder) {
  Rng rng(33);
  const std::int64_t hidden_size = 256, vocab_size = 1000;
  const PackedMatrix matrix = random_packed_matrix(rng, PackedFormat::kQ6_K, vocab_size, hidden_size);
  const Weight head = weight_of(matrix);
  FloatTensor x = random_tensor(rng, {6, hidden_size});
  const auto exec = make_exec(nullptr, 2);
  FloatTensor all({6, vocab_size});
  linear(*exec, x.view(), {{all.view(), &head, {}}});
  const std::vector<std::int32_t> rows = {5, 0, 5};
  FloatTensor y({3, vocab_size}), gathered({4, hidden_size});
  logits(*exec, y.view(), x.view(), head, rows, gathered.view());
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (std::int64_t token = 0; token < vocab_size; ++token)
      ASSERT_EQ(y.at(static_cast<std::int64_t>(i), token), all.at(rows[i], token));
  FloatTensor taken({3, hidden_size}), again({3, vocab_size});
  take_rows(*exec, taken.view(), x.view(), rows);
  logits(*exec, again.view(), taken.view(), head, {}, gathered.view());
  for (std::int64_t i = 0; i < 3; ++i)
    for (std::int64_t token = 0; token < vocab_size; ++token) ASSERT_EQ(again.at(i, token), y.at(i, token));
  logits(*exec, {nullptr, DType::kF32, {0, vocab_size}}, x.view(), head, {}, gathered.view());
}

}  // namespace
}  // namespace still
