// Ranks that are GPUs of this host, one thread of this process each. Sums of few rows go through memory of the GPUs
// that all of them write (kernels/cuda/comm.cuh), larger ones through NCCL; either alone suffices.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "base/result.h"
#include "dist/nccl.h"
#include "kernels/cuda/cuda_kernels.h"
#include "ops/comm.h"
#include "tensor/cuda.h"

namespace still {

struct CudaGroupOptions {
  std::vector<std::int32_t> devices;  // of the ranks
  std::int64_t max_tokens = 1, hidden_size = 0;
  std::int64_t max_rows = 1;               // of logits
  std::vector<std::int64_t> first_column;  // of each rank's logits, and the vocabulary's size: n_ranks + 1 numbers
  bool has_bf16_parts = false;             // parts are rounded to bf16 on their way, where activations are bf16 anyway
  bool use_peers = true, use_nccl = true;
  std::int64_t max_sum_rows = 256;  // beyond these NCCL is faster than the kernel
};

class CudaGroup {
 public:
  // kUnavailable where the GPUs reach one another neither directly nor through NCCL.
  static Result<std::unique_ptr<CudaGroup>> create(const CudaGroupOptions& options);
  // Bytes that create() takes of a rank's GPU at most, less NCCL's own: the plan's formula.
  static std::int64_t bytes(const CudaGroupOptions& options, int rank);
  ~CudaGroup();

  Comm& rank(int i);
  // Where a rank's logits lie: of all ranks, before the first step.
  void set_logits(int rank, float* logits);
  // The first failed call of a rank; all later steps are lost.
  Status status() const;
  bool has_peers() const { return has_peers_; }
  const std::string& nccl_missing() const { return nccl_missing_; }  // empty: it is used

 private:
  class RankComm;
  CudaGroup() = default;
  void remember(const Status& status);

  CudaGroupOptions options_;
  bool has_peers_ = false;
  std::string nccl_missing_;
  std::int64_t sum_rows_ = 0;  // of one call of the kernel
  std::unique_ptr<Nccl> nccl_;
  std::vector<std::unique_ptr<RankComm>> ranks_;
  mutable std::mutex mutex_;
  Status status_;
};

}  // namespace still
