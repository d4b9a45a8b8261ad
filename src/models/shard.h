// How the ranks of one model share its tensors (tensor parallelism): each has whole heads of attention, a range of the
// feed-forward elements and a range of the vocabulary. A rank is then a model of fewer heads and a narrower
// feed-forward part whose output and down projections give parts of sums (ops/comm.h).  Shoeybi et al. 2019,
// arXiv:1909.08053, section 3.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "models/arch.h"

namespace still {

struct Rank {
  std::int32_t index = 0, count = 1;
  friend bool operator==(const Rank&, const Rank&) = default;
};

struct IndexRange {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
};

// A part of a tensor: all of it where it is not shared.
struct TensorSlice {
  IndexRange rows, columns;
};

// What one rank has, in elements.
struct RankParts {
  Rank rank;
  IndexRange heads, kv_heads;  // rows of q; of k and v. Fewer KV heads than ranks: several ranks have the same
  IndexRange ffn;
  IndexRange vocabulary;

  TensorSlice slice(const TensorSpec& spec) const;  // spec: of the whole model
  // Whether the rank's products with it are parts of a sum.
  bool is_sum(const TensorSpec& spec) const {
    return rank.count > 1 && (spec.share == Share::kHeadColumns || spec.share == Share::kFfnColumns);
  }
  // The configuration that the rank computes with; the vocabulary stays whole.
  ModelConfig config(ModelConfig whole) const;
};

// The feed-forward part is cut where no block of a down projection is, whose types `type_of` tells.
// kInvalidArgument says what cannot be split and which numbers of ranks can.
Result<RankParts> share_out(std::span<const TensorSpec> specs, const ModelConfig& whole, Rank rank,
                            const std::function<DType(const TensorSpec&)>& type_of);

}  // namespace still
