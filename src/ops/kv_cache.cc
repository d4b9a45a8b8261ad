#include "ops/kv_cache.h"

#include <cstring>

#include "base/check.h"
#include "base/topology.h"

namespace still {

namespace {
// The four parts of one head in one block, each 64-byte aligned (KvHeadView).
struct HeadLayout {
  std::int64_t v, k_scale, v_scale, bytes;  // the keys begin at 0
  explicit HeadLayout(const KvGeometry& geometry) {
    const std::int64_t element_bytes = geometry.type == KvType::kF32                                     ? 4
                                       : geometry.type == KvType::kF16 || geometry.type == KvType::kBF16 ? 2
                                                                                                         : 1;
    const std::int64_t values = Arena::rounded(geometry.block_size * geometry.head_dim * element_bytes);
    const std::int64_t n_groups = geometry.head_dim / kv_group(geometry.head_dim);
    const std::int64_t scales = geometry.type != KvType::kInt8 ? 0 : Arena::rounded(geometry.block_size * n_groups * 2);
    v = values;
    k_scale = 2 * values;
    v_scale = 2 * values + scales;
    bytes = 2 * values + 2 * scales;
  }
};
}  // namespace

Status check_kv_type(KvType type, bool on_cuda) {
  if (on_cuda && type == KvType::kF32)
    return error(Code::kUnsupported, "KV type f32: on a GPU keys and values are kept as f16, bf16, int8 or fp8");
  if (!on_cuda && (type == KvType::kBF16 || type == KvType::kF8))
    return error(Code::kUnsupported, "KV type {}: for GPUs only, the CPU keeps keys and values as f16 or int8",
                 kv_type_name(type));
  return ok();
}

std::string_view kv_type_name(KvType type) {
  switch (type) {
    case KvType::kF16:
      return "f16";
    case KvType::kInt8:
      return "int8";
    case KvType::kF32:
      return "f32";
    case KvType::kBF16:
      return "bf16";
    case KvType::kF8:
      return "fp8";
  }
  return "";
}

std::optional<KvType> kv_type_of(std::string_view name) {
  for (const KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32, KvType::kBF16, KvType::kF8})
    if (kv_type_name(type) == name) return type;
  return std::nullopt;
}

std::int64_t KvGeometry::head_block_bytes() const {
  return HeadLayout(*this).bytes;
}

Result<KvCache> KvCache::create(const KvGeometry& geometry, std::int64_t n_blocks) {
  STILL_TRY_STATUS(check_kv_type(geometry.type, false));
  if (geometry.block_size < kKvTile || geometry.block_size % kKvTile != 0)
    return error(Code::kInvalidArgument, "KV block size: {} positions, expected a multiple of {}", geometry.block_size,
                 kKvTile);
  if (n_blocks < 1) return error(Code::kInvalidArgument, "KV blocks: {}, expected at least 1", n_blocks);
  STILL_CHECK(geometry.n_layers > 0 && geometry.n_kv_heads > 0 && geometry.head_dim > 0);
  KvCache cache;
  cache.geometry_ = geometry;
  cache.n_blocks_ = n_blocks;
  STILL_TRY(cache.arena_, Arena::create(n_blocks * geometry.block_bytes(), "KV cache"));
  // Which thread reads a block is not known: on several nodes the memory is spread over all.
  interleave_memory(cache.arena_.data(), cache.arena_.size());
  for (std::int32_t layer = 0; layer < geometry.n_layers; ++layer)
    cache.layers_.push_back(cache.arena_.allocate_array<std::uint8_t>(n_blocks * geometry.layer_block_bytes()));
  return cache;
}

Result<KvCache> KvCache::create_on_cuda(const KvGeometry& geometry, std::int64_t n_blocks, CudaStream& stream) {
  STILL_TRY_STATUS(check_kv_type(geometry.type, true));
  if (geometry.block_size < kKvTile || geometry.block_size % kKvTile != 0)
    return error(Code::kInvalidArgument, "KV block size: {} positions, expected a multiple of {}", geometry.block_size,
                 kKvTile);
  if (n_blocks < 1) return error(Code::kInvalidArgument, "KV blocks: {}, expected at least 1", n_blocks);
  KvCache cache;
  cache.geometry_ = geometry;
  cache.n_blocks_ = n_blocks;
  STILL_TRY(cache.device_, DeviceBuffer::create(n_blocks * geometry.block_bytes(), "KV cache"));
  // Attention multiplies what lies behind a sequence's end in its last tile by 0: it must be finite.
  stream.fill(cache.device_.data(), 0, cache.device_.size());
  STILL_TRY_STATUS(stream.wait("KV cache"));
  for (std::int32_t layer = 0; layer < geometry.n_layers; ++layer)
    cache.layers_.push_back(reinterpret_cast<std::uint8_t*>(cache.device_.data()) +
                            layer * n_blocks * geometry.layer_block_bytes());
  return cache;
}

KvHeadView KvCache::head(std::int32_t layer, std::int32_t kv_head, const std::int32_t* block_table) const {
  STILL_DCHECK(layer >= 0 && layer < geometry_.n_layers && kv_head >= 0 && kv_head < geometry_.n_kv_heads);
  const HeadLayout layout(geometry_);
  return {.base = layers_[static_cast<std::size_t>(layer)] + kv_head * layout.bytes,
          .block_bytes = geometry_.layer_block_bytes(),
          .k_offset = 0,
          .v_offset = layout.v,
          .k_scale_offset = layout.k_scale,
          .v_scale_offset = layout.v_scale,
          .block_table = block_table,
          .block_size = geometry_.block_size,
          .head_dim = geometry_.head_dim,
          .type = geometry_.type};
}

void KvCache::copy_block(std::int32_t from, std::int32_t to) {
  STILL_DCHECK(from >= 0 && from < n_blocks_ && to >= 0 && to < n_blocks_);
  STILL_CHECK(device_.data() == nullptr);
  const std::int64_t bytes = geometry_.layer_block_bytes();
  for (std::uint8_t* layer : layers_)
    std::memcpy(layer + to * bytes, layer + from * bytes, static_cast<std::size_t>(bytes));
}

}  // namespace still
