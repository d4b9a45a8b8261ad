// Ranks that are threads of one process and compute on its CPUs: the reference of what a Comm does, and how sharing out
// a model is tested without GPUs.
#pragma once

#include <barrier>
#include <memory>
#include <span>
#include <vector>

#include "ops/comm.h"

namespace still {

class LocalGroup {
 public:
  // first_column: where each rank's columns of the logits begin, and how many there are in all: n_ranks + 1 numbers.
  LocalGroup(std::span<const std::int64_t> first_column, std::int64_t max_part, std::int64_t max_rows);
  ~LocalGroup();
  Comm& rank(int i);
  int size() const { return static_cast<int>(ranks_.size()); }

 private:
  class RankComm;
  std::vector<std::int64_t> first_column_;
  std::barrier<> barrier_;
  std::vector<std::unique_ptr<RankComm>> ranks_;
};

}  // namespace still
