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

void BlockIndex::reserve(std::size_t n_blocks) {
  slots_.assign(std::bit_ceil(std::max<std::size_t>(2, 2 * n_blocks)), {});
}

std::size_t BlockIndex::find_slot(PrefixKey key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = key.low & mask;
  while (slots_[slot].block >= 0 && slots_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

std::int32_t BlockIndex::find(PrefixKey key) const {
  return slots_[find_slot(key)].block;
}

void BlockIndex::put(PrefixKey key, std::int32_t block) {
  slots_[find_slot(key)] = {key, block};
}

// Without tombstones: later members of the run move up.
void BlockIndex::erase(PrefixKey key) {
  const std::size_t mask = slots_.size() - 1;
  std::size_t hole = find_slot(key);
  STILL_CHECK(slots_[hole].block >= 0);
  for (std::size_t next = (hole + 1) & mask; slots_[next].block >= 0; next = (next + 1) & mask) {
    const std::size_t home = slots_[next].key.low & mask;
    if (((next - home) & mask) < ((next - hole) & mask)) continue;  // its home lies after the hole
    slots_[hole] = slots_[next];
    hole = next;
  }
  slots_[hole] = {};
}

PrefixCache::PrefixCache(BlockPool& pool, std::int64_t block_size, bool is_enabled)
    : pool_(pool),
      block_size_(block_size),
      is_enabled_(is_enabled),
      entries_(static_cast<std::size_t>(pool.n_blocks())) {
  if (!is_enabled) return;
  tokens_.resize(entries_.size() * static_cast<std::size_t>(block_size));
  full_.reserve(entries_.size());
  newest_behind_.reserve(entries_.size());
}

std::int64_t PrefixCache::n_common(std::int32_t block, std::span<const TokenId> tokens) const {
  const TokenId* held = tokens_.data() + block * block_size_;
  const std::int32_t n_held = entries_[static_cast<std::size_t>(block)].n_tokens;
  return std::mismatch(held, held + n_held, tokens.begin(), tokens.end()).first - held;
}

std::int32_t PrefixCache::find(PrefixKey key, std::span<const TokenId> block_tokens) const {
  const std::int32_t block = full_.find(key);
  return block >= 0 && n_common(block, block_tokens) == block_size_ ? block : -1;
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

// The newest block behind a key takes the place of the one before it.
void PrefixCache::set_contents(std::int32_t block, PrefixKey previous, std::span<const TokenId> tokens) {
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  STILL_CHECK(!entry.is_newest);
  entry.previous = previous;
  entry.n_tokens = static_cast<std::int32_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + block * block_size_);
  const std::int32_t older = newest_behind_.find(previous);
  newest_behind_.put(previous, block);
  entry.is_newest = true;
  if (older < 0) return;
  Entry& replaced = entries_[static_cast<std::size_t>(older)];
  replaced.is_newest = false;
  if (replaced.is_findable() || !replaced.is_listed) return;
  unlist(older);
  pool_.free(older);
}

PrefixKey PrefixCache::insert(PrefixKey previous, std::span<const TokenId> block_tokens, std::int32_t block) {
  const PrefixKey key = chain_key(previous, block_tokens);
  if (!is_enabled_) return key;
  STILL_DCHECK(static_cast<std::int64_t>(block_tokens.size()) == block_size_);
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  if (entry.is_cached || full_.find(key) >= 0) return key;
  full_.put(key, block);
  entry.key = key;
  entry.is_cached = true;
  ++n_cached_;
  set_contents(block, previous, block_tokens);
  return key;
}

PrefixCache::Tail PrefixCache::match_tail(PrefixKey previous, std::span<const TokenId> tokens) {
  if (!is_enabled_) return {};
  const std::int32_t block = newest_behind_.find(previous);
  if (block < 0) return {};
  const std::int64_t n = n_common(block, tokens);
  if (n == 0) return {};
  if (entries_[static_cast<std::size_t>(block)].is_listed) unlist(block);
  pool_.add_ref(block);
  return {.block = block, .n_tokens = n};
}

void PrefixCache::insert_tail(PrefixKey previous, std::span<const TokenId> tokens, std::int32_t block) {
  if (!is_enabled_ || tokens.empty()) return;
  const std::int32_t newest = newest_behind_.find(previous);
  if (newest >= 0 && n_common(newest, tokens) == static_cast<std::int64_t>(tokens.size())) return;
  set_contents(block, previous, tokens);
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
  if (entries_[static_cast<std::size_t>(block)].is_findable())
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
    if (entries_[block].is_findable()) forget(static_cast<std::int32_t>(block));
}

void PrefixCache::forget(std::int32_t block) {
  Entry& entry = entries_[static_cast<std::size_t>(block)];
  if (entry.is_cached) {
    full_.erase(entry.key);
    --n_cached_;
  }
  if (entry.is_newest) newest_behind_.erase(entry.previous);
  entry.is_cached = entry.is_newest = false;
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
