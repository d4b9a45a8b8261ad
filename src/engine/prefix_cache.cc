#include "engine/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace still {

PrefixKey chain_key(PrefixKey previous, std::span<const TokenId> block_tokens) {
  // The previous key seeds both halves: XXH3 takes one 64-bit seed, so the other half is mixed in.
  const XXH128_hash_t hash = XXH3_128bits_withSeed(block_tokens.data(), block_tokens.size_bytes(), previous.low);
  return {hash.low64, hash.high64 ^ (previous.high * 0x9e3779b97f4a7c15ull + 1)};
}

PrefixCache::PrefixCache(BlockPool& pool, std::int64_t block_size, bool is_enabled)
    : pool_(pool),
      block_size_(block_size),
      is_enabled_(is_enabled),
      entries_(static_cast<std::size_t>(pool.n_blocks())) {
  if (!is_enabled) return;
  tokens_.resize(entries_.size() * static_cast<std::size_t>(block_size));
  slots_.assign(std::bit_ceil(std::max<std::size_t>(2, 2 * entries_.size())), -1);
}

std::int64_t PrefixCache::find_slot(PrefixKey key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = key.low & mask;
  while (slots_[slot] >= 0 && entries_[static_cast<std::size_t>(slots_[slot])].key != key) slot = (slot + 1) & mask;
  return static_cast<std::int64_t>(slot);
}

std::int32_t PrefixCache::find(PrefixKey key, std::span<const TokenId> block_tokens) const {
  const std::int32_t block = slots_[static_cast<std::size_t>(find_slot(key))];
  if (block < 0) return -1;
  const TokenId* held = tokens_.data() + block * block_size_;
  return std::equal(block_tokens.begin(), block_tokens.end(), held) ? block : -1;
}

PrefixKey PrefixCache::match(std::span<const TokenId> tokens, std::int64_t max_blocks,
                             std::vector<std::int32_t>& blocks) {
  PrefixKey key;
  if (!is_enabled_) return key;
  const std::int64_t n = std::min<std::int64_t>(max_blocks, static_cast<std::int64_t>(tokens.size()) / block_size_);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto block_tokens =
        tokens.subspan(static_cast<std::size_t>(i * block_size_), static_cast<std::size_t>(block_size_));
    const PrefixKey next = chain_key(key, block_tokens);
    const std::int32_t block = find(next, block_tokens);
    if (block < 0) break;
    if (entries_[static_cast<std::size_t>(block)].is_listed) unlist(block);
    pool_.add_ref(block);
    blocks.push_back(block);
    key = next;
  }
  return key;
}

void PrefixCache::insert(PrefixKey key, std::span<const TokenId> block_tokens, std::int32_t block) {
  if (!is_enabled_) return;
  STILL_DCHECK(static_cast<std::int64_t>(block_tokens.size()) == block_size_);
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  if (entry.is_cached) return;
  const std::int64_t slot = find_slot(key);
  if (slots_[static_cast<std::size_t>(slot)] >= 0) return;
  slots_[static_cast<std::size_t>(slot)] = block;
  entry.key = key;
  entry.is_cached = true;
  ++n_cached_;
  std::copy(block_tokens.begin(), block_tokens.end(), tokens_.begin() + block * block_size_);
}

std::int32_t PrefixCache::allocate() {
  const std::int32_t block = pool_.allocate();
  if (block >= 0 || oldest_ < 0) return block;
  const std::int32_t evicted = oldest_;
  unlist(evicted);
  forget(evicted);
  pool_.free(evicted);
  return pool_.allocate();
}

void PrefixCache::release(std::int32_t block) {
  if (!pool_.drop_ref(block)) return;
  if (entries_[static_cast<std::size_t>(block)].is_cached)
    list_newest(block);
  else
    pool_.free(block);
}

void PrefixCache::clear() {
  while (oldest_ >= 0) {
    const std::int32_t block = oldest_;
    unlist(block);
    forget(block);
    pool_.free(block);
  }
  for (std::size_t block = 0; block < entries_.size(); ++block)
    if (entries_[block].is_cached) forget(static_cast<std::int32_t>(block));
}

// Removes from open addressing without tombstones: later members of the run move up.
void PrefixCache::forget(std::int32_t block) {
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  const std::size_t mask = slots_.size() - 1;
  auto hole = static_cast<std::size_t>(find_slot(entry.key));
  STILL_CHECK(slots_[hole] == block);
  for (std::size_t next = (hole + 1) & mask; slots_[next] >= 0; next = (next + 1) & mask) {
    const std::size_t home = entries_[static_cast<std::size_t>(slots_[next])].key.low & mask;
    if (((next - home) & mask) < ((next - hole) & mask)) continue;  // its home lies after the hole
    slots_[hole] = slots_[next];
    hole = next;
  }
  slots_[hole] = -1;
  entry.is_cached = false;
  --n_cached_;
}

void PrefixCache::list_newest(std::int32_t block) {
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  entry.older = newest_;
  entry.newer = -1;
  entry.is_listed = true;
  (newest_ >= 0 ? entries_[static_cast<std::size_t>(newest_)].newer : oldest_) = block;
  newest_ = block;
  ++n_unused_;
}

void PrefixCache::unlist(std::int32_t block) {
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  (entry.older >= 0 ? entries_[static_cast<std::size_t>(entry.older)].newer : oldest_) = entry.newer;
  (entry.newer >= 0 ? entries_[static_cast<std::size_t>(entry.newer)].older : newest_) = entry.older;
  entry.is_listed = false;
  --n_unused_;
}

}  // namespace still
