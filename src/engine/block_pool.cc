#include "engine/block_pool.h"

#include "base/check.h"

namespace still {

BlockPool::BlockPool(std::int64_t n_blocks) : refs_(static_cast<std::size_t>(n_blocks), 0) {
  free_.reserve(refs_.size());
  for (std::int64_t block = n_blocks - 1; block >= 0; --block) free_.push_back(static_cast<std::int32_t>(block));
}

std::int32_t BlockPool::allocate() {
  if (free_.empty()) return -1;
  const std::int32_t block = free_.back();
  free_.pop_back();
  refs_[static_cast<std::size_t>(block)] = 1;
  return block;
}

void BlockPool::add_ref(std::int32_t block) {
  ++refs_[static_cast<std::size_t>(block)];
}

bool BlockPool::drop_ref(std::int32_t block) {
  std::int32_t& refs = refs_[static_cast<std::size_t>(block)];
  STILL_CHECK(refs > 0);
  return --refs == 0;
}

void BlockPool::free(std::int32_t block) {
  STILL_CHECK(refs_[static_cast<std::size_t>(block)] == 0);
  STILL_CHECK(free_.size() < refs_.size());
  free_.push_back(block);
}

}  // namespace still
