#include "models/shard.h"

#include <algorithm>

#include "kernels/packing.h"

namespace still {

namespace {
constexpr std::int32_t kMostRanks = 64;

// The same rules as the planner's for deployments (plan/deployment.cc).
bool heads_do(const ModelConfig& config, std::int32_t n) {
  return config.n_heads % n == 0 && (config.n_kv_heads % n == 0 || n % config.n_kv_heads == 0);
}

// Part `rank` of n elements in whole units; the last unit may be short.
IndexRange part_of(std::int64_t n, std::int64_t unit, Rank rank) {
  const std::int64_t units = (n + unit - 1) / unit;
  return {std::min(n, units * rank.index / rank.count * unit),
          std::min(n, units * (rank.index + 1) / rank.count * unit)};
}
}  // namespace

Result<RankParts> share_out(std::span<const TensorSpec> specs, const ModelConfig& whole, Rank rank,
                            const std::function<DType(const TensorSpec&)>& type_of) {
  STILL_CHECK(rank.index >= 0 && rank.index < rank.count);
  RankParts parts{.rank = rank,
                  .heads = {0, std::int64_t{whole.n_heads} * whole.head_dim},
                  .kv_heads = {0, std::int64_t{whole.n_kv_heads} * whole.head_dim},
                  .ffn = {0, whole.intermediate_size},
                  .vocabulary = {0, whole.vocab_size}};
  if (rank.count == 1) return parts;
  // Whole panels where that is possible, whole blocks of the down projections in any case.
  std::int64_t ffn_unit = whole.intermediate_size % kPanelRows == 0 ? kPanelRows : 8;
  if (whole.intermediate_size % ffn_unit != 0) ffn_unit = 1;
  for (const TensorSpec& spec : specs)
    if (spec.share == Share::kFfnColumns)
      ffn_unit = std::max<std::int64_t>(ffn_unit, dtype_info(type_of(spec)).block_size);
  const auto can = [&](std::int32_t n) {
    return heads_do(whole, n) && whole.intermediate_size >= n * ffn_unit && whole.vocab_size >= n * kPanelRows;
  };
  if (!can(rank.count)) {
    std::string possible = "1";
    for (std::int32_t n = 2; n <= kMostRanks; ++n)
      if (can(n)) possible += fmt::format(", {}", n);
    return error(Code::kInvalidArgument,
                 "{} attention heads, {} of keys and values, and a feed-forward width of {} in units of {} cannot be "
                 "split over {} ranks: possible are {}",
                 whole.n_heads, whole.n_kv_heads, whole.intermediate_size, ffn_unit, rank.count, possible);
  }
  const std::int64_t heads = whole.n_heads / rank.count * whole.head_dim;
  parts.heads = {heads * rank.index, heads * (rank.index + 1)};
  const std::int64_t n_kv = std::max(1, whole.n_kv_heads / rank.count);
  const std::int64_t first_kv = std::int64_t{whole.n_kv_heads} * rank.index / rank.count;
  parts.kv_heads = {first_kv * whole.head_dim, (first_kv + n_kv) * whole.head_dim};
  parts.ffn = part_of(whole.intermediate_size, ffn_unit, rank);
  parts.vocabulary = part_of(whole.vocab_size, kPanelRows, rank);
  return parts;
}

TensorSlice RankParts::slice(const TensorSpec& spec) const {
  TensorSlice slice{.rows = {0, spec.shape[0]}, .columns = {0, spec.shape.rank > 1 ? spec.shape[1] : 1}};
  switch (spec.share) {
    case Share::kWhole:
      break;
    case Share::kHeads:
      slice.rows = heads;
      break;
    case Share::kKvHeads:
      slice.rows = kv_heads;
      break;
    case Share::kFfn:
      slice.rows = ffn;
      break;
    case Share::kVocabulary:
      slice.rows = vocabulary;
      break;
    case Share::kHeadColumns:
      slice.columns = heads;
      break;
    case Share::kFfnColumns:
      slice.columns = ffn;
      break;
  }
  return slice;
}

ModelConfig RankParts::config(ModelConfig whole) const {
  whole.n_heads = static_cast<std::int32_t>(heads.size() / whole.head_dim);
  whole.n_kv_heads = static_cast<std::int32_t>(kv_heads.size() / whole.head_dim);
  whole.intermediate_size = ffn.size();
  return whole;
}

}  // namespace still
