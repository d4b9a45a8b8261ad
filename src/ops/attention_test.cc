#include "ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ops/testing.h"

namespace still {
namespace {

using namespace still::testing;

// Sequences with all their keys, values and queries; steps take pieces of them.
struct Sequences {
  std::int64_t n_heads, n_kv_heads, head_dim;
  std::vector<std::int64_t> lens;
  std::vector<FloatTensor> q, k, v;  // [len, ...] of each sequence

  Sequences(Rng& rng, std::int64_t heads, std::int64_t kv_heads, std::int64_t dim, std::vector<std::int64_t> lengths)
      : n_heads(heads), n_kv_heads(kv_heads), head_dim(dim), lens(std::move(lengths)) {
    for (std::int64_t len : lens) {
      q.push_back(random_tensor(rng, {len, n_heads * head_dim}, 2.0f));
      k.push_back(random_tensor(rng, {len, n_kv_heads * head_dim}));
      v.push_back(random_tensor(rng, {len, n_kv_heads * head_dim}));
    }
  }
};

// Which tokens of a sequence a step computes.
struct Piece {
  std::int64_t seq, begin, end;
};

// Runs steps of pieces over a fresh cache and returns every sequence's output; steps before n_unread only write keys
// and values.
std::vector<FloatTensor> run_steps(Exec& exec, Sequences& all, KvType type, std::int64_t window,
                                   const std::vector<std::vector<Piece>>& steps, std::size_t n_unread = 0) {
  const std::int64_t block_size = 64;
  std::int64_t max_blocks = 0;
  for (std::int64_t len : all.lens) max_blocks = std::max(max_blocks, (len + block_size - 1) / block_size);
  const auto n_seqs = static_cast<std::int64_t>(all.lens.size());
  KvCache cache = *KvCache::create({.n_layers = 2,
                                    .n_kv_heads = static_cast<std::int32_t>(all.n_kv_heads),
                                    .head_dim = static_cast<std::int32_t>(all.head_dim),
                                    .block_size = block_size,
                                    .type = type},
                                   n_seqs * max_blocks);
  std::vector<FloatTensor> out;
  for (std::int64_t len : all.lens) out.emplace_back(Shape{len, all.n_heads * all.head_dim}, -9.0f);
  for (std::size_t step_idx = 0; step_idx < steps.size(); ++step_idx) {
    const std::vector<Piece>& step = steps[step_idx];
    std::vector<TokenId> ids;
    std::vector<std::int32_t> positions, q_start = {0}, kv_len, tables;
    std::vector<float> q, k, v;
    const auto append = [](std::vector<float>& to, const FloatTensor& from, const Piece& piece) {
      const std::int64_t row = from.shape[1];
      to.insert(to.end(), from.values.begin() + piece.begin * row, from.values.begin() + piece.end * row);
    };
    for (const Piece& piece : step) {
      const auto seq = static_cast<std::size_t>(piece.seq);
      for (std::int64_t pos = piece.begin; pos < piece.end; ++pos) {
        ids.push_back(0);
        positions.push_back(static_cast<std::int32_t>(pos));
      }
      q_start.push_back(static_cast<std::int32_t>(ids.size()));
      kv_len.push_back(static_cast<std::int32_t>(piece.end));
      // Blocks of a sequence in reverse order, interleaved with the others'.
      for (std::int64_t b = 0; b < max_blocks; ++b)
        tables.push_back(static_cast<std::int32_t>((max_blocks - 1 - b) * n_seqs + piece.seq));
      append(q, all.q[seq], piece);
      append(k, all.k[seq], piece);
      append(v, all.v[seq], piece);
    }
    const auto n_tokens = static_cast<std::int64_t>(ids.size());
    const RaggedBatch batch{.ids = ids,
                            .positions = positions,
                            .q_start = q_start,
                            .kv_len = kv_len,
                            .block_tables = tables,
                            .max_blocks = max_blocks,
                            .logit_rows = {}};
    const Shape q_shape{n_tokens, all.n_heads * all.head_dim}, kv_shape{n_tokens, all.n_kv_heads * all.head_dim};
    FloatTensor result(q_shape, -8.0f);
    kv_write(exec, cache, 1, {k.data(), DType::kF32, kv_shape}, {v.data(), DType::kF32, kv_shape}, batch);
    if (step_idx < n_unread) continue;
    attention(exec, result.view(), {q.data(), DType::kF32, q_shape}, cache, 1, batch, all.n_heads,
              1 / std::sqrt(static_cast<float>(all.head_dim)), window);
    for (std::size_t i = 0; i < step.size(); ++i) {
      std::copy(result.values.begin() + q_start[i] * q_shape[1], result.values.begin() + q_start[i + 1] * q_shape[1],
                out[static_cast<std::size_t>(step[i].seq)].values.begin() + step[i].begin * q_shape[1]);
    }
  }
  return out;
}

ExecOptions attention_options() {
  return {.max_attention_parts = 4096, .head_dim = 64, .n_heads = 8};
}

// softmax in double over f32 keys and values: the cache's rounding (relative 2^-11, or half a step of 1/127 of a
// group's largest for int8) dominates, so the bound is that of the stored values; the kernel's own error is ref_test's
// business.
void expect_close_to_double(const Sequences& all, const std::vector<FloatTensor>& out, std::int64_t window,
                            double bound) {
  const std::int64_t group = all.n_heads / all.n_kv_heads;
  const double scale = 1 / std::sqrt(static_cast<double>(all.head_dim));
  for (std::size_t s = 0; s < all.lens.size(); ++s) {
    for (std::int64_t pos = 0; pos < all.lens[s]; pos += 1 + pos / 7) {
      const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, pos + 1 - window) : 0;
      for (std::int64_t h = 0; h < all.n_heads; ++h) {
        std::vector<double> p;
        double sum = 0;
        for (std::int64_t j = first; j <= pos; ++j) {
          double dot = 0;
          for (std::int64_t d = 0; d < all.head_dim; ++d)
            dot += static_cast<double>(all.q[s].at(pos, h * all.head_dim + d)) *
                   all.k[s].at(j, h / group * all.head_dim + d);
          p.push_back(std::exp(dot * scale));
          sum += p.back();
        }
        for (std::int64_t d = 0; d < all.head_dim; ++d) {
          double want = 0;
          for (std::int64_t j = first; j <= pos; ++j)
            want += p[static_cast<std::size_t>(j - first)] / sum * all.v[s].at(j, h / group * all.head_dim + d);
          ASSERT_NEAR(out[s].at(pos, h * all.head_dim + d), want, bound)
              << "seq " << s << " pos " << pos << " head " << h;
        }
      }
    }
  }
}

TEST(Attention, ChunksBatchesThreadsAndTablesGiveTheSameBits) {
  Rng rng(51);
  Sequences all(rng, 4, 2, 32, {130, 1, 40, 560});
  for (KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32}) {
    for (std::int64_t window : {0, 100}) {
      SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " window " + std::to_string(window));
      // All at once; then prefill chunks of one sequence beside decodes of others; then token by token.
      std::vector<std::vector<Piece>> at_once = {{{0, 0, 130}, {1, 0, 1}, {2, 0, 40}, {3, 0, 560}}};
      std::vector<std::vector<Piece>> mixed = {{{3, 0, 550}, {0, 0, 7}}};
      for (std::int64_t i = 0; i < 10; ++i) {
        mixed.push_back({{2, 4 * i, 4 * i + 4}, {3, 550 + i, 551 + i}, {0, 7 + 12 * i, 19 + 12 * i}});
        if (i == 4) mixed.back().push_back({1, 0, 1});
      }
      mixed.push_back({{0, 127, 128}});
      mixed.push_back({{0, 128, 130}});
      std::vector<std::vector<Piece>> singly;
      for (std::int64_t i = 0; i < 560; ++i) {
        singly.push_back({{3, i, i + 1}});
        if (i < 130) singly.back().push_back({0, i, i + 1});
        if (i < 40) singly.back().push_back({2, i, i + 1});
        if (i == 9) singly.back().push_back({1, 0, 1});
      }
      std::vector<FloatTensor> first;
      for (const auto& exec : all_execs(attention_options())) {
        SCOPED_TRACE(std::string(exec->kernels().name) + " threads " + std::to_string(exec->n_threads()));
        // The scalar reference is slow: token by token it does one setting.
        const bool is_ref = exec->kernels().name == std::string("ref");
        const bool skip_singly = is_ref && !(exec->n_threads() == 2 && window > 0 && type == KvType::kF16);
        for (const auto* steps : {&at_once, &mixed, &singly}) {
          if (skip_singly && steps == &singly) continue;
          if (is_ref && exec->n_threads() == 3 && steps == &at_once) continue;
          const std::vector<FloatTensor> out = run_steps(*exec, all, type, window, *steps);
          if (first.empty()) {
            first = out;
            expect_close_to_double(all, out, window, type == KvType::kF32 ? 2e-5 : type == KvType::kF16 ? 0.01 : 0.08);
          }
          for (std::size_t s = 0; s < out.size(); ++s)
            ASSERT_TRUE(same_bits(out[s].values, first[s].values)) << "seq " << s;
        }
      }
    }
  }
}

// A decode over several segments is split among threads and merged; without room for parts it is done in one go.
TEST(Attention, LongDecodeIsTheSameSplitOrNot) {
  Rng rng(52);
  Sequences all(rng, 4, 2, 64, {1600, 700});
  const std::vector<std::vector<Piece>> steps = {{{0, 0, 1599}, {1, 0, 699}}, {{0, 1599, 1600}, {1, 699, 700}}};
  const CpuKernels* kernels = *select_cpu_kernels("");
  std::vector<FloatTensor> first;
  for (std::int64_t parts : {0, 8, 4096}) {
    for (int n_threads : {1, 2, 3, 8}) {
      const auto exec = make_exec(kernels, n_threads, {.max_attention_parts = parts, .head_dim = 64, .n_heads = 8});
      const std::vector<FloatTensor> out = run_steps(*exec, all, KvType::kF16, 0, steps, 1);
      if (first.empty()) first = out;
      EXPECT_TRUE(same_bits(out[0].values, first[0].values)) << parts << " parts, " << n_threads << " threads";
      EXPECT_TRUE(same_bits(out[1].values, first[1].values));
      if (parts == 4096 && n_threads > 1) {
        EXPECT_FALSE(exec->attention_merges().empty());
      } else if (parts == 0) {
        EXPECT_TRUE(exec->attention_merges().empty());
      }
    }
  }
}

TEST(KvCache, SizesViewsAndCopies) {
  const KvGeometry geometry{.n_layers = 3, .n_kv_heads = 2, .head_dim = 64, .block_size = 32, .type = KvType::kInt8};
  EXPECT_EQ(geometry.head_block_bytes(), 2 * 32 * 64 + 2 * 32 * 2 * 2);
  EXPECT_EQ((KvGeometry{.n_layers = 1, .n_kv_heads = 1, .head_dim = 64}).head_block_bytes(), 2 * 32 * 64 * 2);
  EXPECT_EQ((KvGeometry{.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .type = KvType::kF32}).head_block_bytes(),
            2 * 32 * 64 * 4);
  KvCache cache = *KvCache::create(geometry, 5);
  EXPECT_GE(cache.bytes(), 5 * geometry.block_bytes());
  const std::vector<std::int32_t> first = {1}, second = {4};
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    const KvHeadView head = cache.head(layer, 1, first.data());
    std::memset(head.base + head.block_bytes, 10 + layer, static_cast<std::size_t>(geometry.head_block_bytes()));
  }
  cache.copy_block(1, 4);
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    const KvHeadView head = cache.head(layer, 1, second.data());
    EXPECT_EQ(head.base[4 * head.block_bytes], 10 + layer);
    EXPECT_EQ(head.base[4 * head.block_bytes + geometry.head_block_bytes() - 1], 10 + layer);
    EXPECT_EQ(head.base[3 * head.block_bytes], 0);
  }
  EXPECT_FALSE(KvCache::create({.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .block_size = 16}, 4).has_value());
  EXPECT_FALSE(KvCache::create(geometry, 0).has_value());
}

TEST(KvCache, TypesThatADeviceDoesNotKeepAreRefusedInASentence) {
  for (const KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32, KvType::kBF16, KvType::kF8}) {
    const bool is_for_cpus = type == KvType::kF16 || type == KvType::kInt8 || type == KvType::kF32;
    EXPECT_EQ(check_kv_type(type, false).has_value(), is_for_cpus) << kv_type_name(type);
    EXPECT_EQ(check_kv_type(type, true).has_value(), type != KvType::kF32) << kv_type_name(type);
    EXPECT_EQ(kv_type_of(kv_type_name(type)), type);
    const auto cache = KvCache::create({.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .type = type}, 2);
    ASSERT_EQ(cache.has_value(), is_for_cpus) << kv_type_name(type);
    if (is_for_cpus) continue;
    EXPECT_EQ(cache.error().code, Code::kUnsupported);
    EXPECT_EQ(cache.error().message, "KV type " + std::string(kv_type_name(type)) +
                                         ": for GPUs only, the CPU keeps keys and values as f16 or int8");
  }
  EXPECT_EQ(check_kv_type(KvType::kF32, true).error().message,
            "KV type f32: on a GPU keys and values are kept as f16, bf16, int8 or fp8");
  EXPECT_EQ(kv_type_of("f64"), std::nullopt);
  EXPECT_EQ(kv_type_of(""), std::nullopt);
}

}  // namespace
}  // namespace still
