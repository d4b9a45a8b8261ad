// The memory of keys and values: blocks of `block_size` positions, the same block index in every layer.
// Which sequence owns which block is engine/block_pool's business.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/kernel_table.h"
#include "tensor/arena.h"
#include "tensor/cuda.h"

namespace still {

// Refuses what the device does not keep.
Status check_kv_type(KvType type, bool on_cuda);
std::string_view kv_type_name(KvType type);  // as users write it
std::optional<KvType> kv_type_of(std::string_view name);

struct KvGeometry {
  std::int32_t n_layers = 0, n_kv_heads = 0, head_dim = 0;
  std::int64_t block_size = 32;  // positions; a multiple of kKvTile
  KvType type = KvType::kF16;

  // Bytes of one head's keys and values in one block of one layer (the four parts of KvHeadView).
  std::int64_t head_block_bytes() const;
  std::int64_t layer_block_bytes() const { return n_kv_heads * head_block_bytes(); }
  // Bytes of one block over all layers: what a plan multiplies by the number of blocks.
  std::int64_t block_bytes() const { return n_layers * layer_block_bytes(); }
};

class KvCache {
 public:
  static Result<KvCache> create(const KvGeometry& geometry, std::int64_t n_blocks);
  // In the memory of the current CUDA device; in the layout of kernels/cuda/cuda_kernels.h.
  static Result<KvCache> create_on_cuda(const KvGeometry& geometry, std::int64_t n_blocks, CudaStream& stream);
  KvCache() = default;

  const KvGeometry& geometry() const { return geometry_; }
  std::int64_t n_blocks() const { return n_blocks_; }
  std::int64_t bytes() const { return arena_.size() + device_.size(); }
  // The view that kernels read; block_table is the sequence's own.
  KvHeadView head(std::int32_t layer, std::int32_t kv_head, const std::int32_t* block_table) const;
  // Copies whole blocks (copy-on-write of a shared prefix); on the CPU only.
  void copy_block(std::int32_t from, std::int32_t to);

 private:
  KvGeometry geometry_;
  std::int64_t n_blocks_ = 0;
  Arena arena_;
  DeviceBuffer device_;
  std::vector<std::uint8_t*> layers_;
};

}  // namespace still
