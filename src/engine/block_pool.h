// BlockPool: who owns which KV block, by reference count. Knows no memory: block b is index b of the KvCache.
// Not thread-safe; the engine's thread owns it.
#pragma once

#include <cstdint>
#include <vector>

namespace still {

class BlockPool {
 public:
  explicit BlockPool(std::int64_t n_blocks);

  std::int64_t n_blocks() const { return static_cast<std::int64_t>(refs_.size()); }
  std::int64_t n_free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int32_t n_refs(std::int32_t block) const { return refs_[static_cast<std::size_t>(block)]; }

  // A block with one reference, the one freed last first (its memory is warm); -1: none is free.
  std::int32_t allocate();
  void add_ref(std::int32_t block);
  // True where that was the last reference: the block is then nobody's, and the caller frees it or keeps its contents.
  bool drop_ref(std::int32_t block);
  void free(std::int32_t block);  // must have no reference

 private:
  std::vector<std::int32_t> refs_;
  std::vector<std::int32_t> free_;
};

}  // namespace still
