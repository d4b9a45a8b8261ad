// PrefixCache: KV blocks by what they hold, so that requests with the same beginning share them. A full block's key is
// a 128-bit hash of its tokens and of the key before it: equal keys mean equal beginnings; the tokens are compared too.
// Where the beginnings part within a block, the newest block behind the same key, full or not, lends its first tokens:
// they are copied. Blocks without a user stay, least recently used first to go, until their memory is wanted.
// The idea: Zheng et al. 2023, arXiv:2312.07104 (there a tree; a chain of hashes needs no nodes).
// Not thread-safe; nothing is allocated after the constructor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "tensor/tensor.h"

namespace still {

struct PrefixKey {
  std::uint64_t low = 0, high = 0;
  friend bool operator==(const PrefixKey&, const PrefixKey&) = default;
};

// The key of a block that follows `previous` ({} for the first block).
PrefixKey chain_key(PrefixKey previous, std::span<const TokenId> block_tokens);

// Blocks by key: open addressing, at most half full.
class BlockIndex {
 public:
  void reserve(std::size_t n_blocks);
  std::int32_t find(PrefixKey key) const;  // -1: none
  void put(PrefixKey key, std::int32_t block);
  void erase(PrefixKey key);  // must be there

 private:
  struct Slot {
    PrefixKey key;
    std::int32_t block = -1;
  };
  std::size_t find_slot(PrefixKey key) const;  // where it is or would be
  std::vector<Slot> slots_;                    // a power of two
};

class PrefixCache {
 public:
  // is_enabled false: never finds or keeps anything, and only hands out the pool's blocks.
  PrefixCache(BlockPool& pool, std::int64_t block_size, bool is_enabled);

  // Appends the blocks that hold the beginning of `tokens`, at most max_blocks, each with a reference for the caller,
  // and returns the key of the last one.
  PrefixKey match(std::span<const TokenId> tokens, std::int64_t max_blocks, std::vector<std::int32_t>& blocks);
  // Makes a full block findable that follows `previous`, and returns its key. Does nothing where an equal one is.
  PrefixKey insert(PrefixKey previous, std::span<const TokenId> block_tokens, std::int32_t block);

  // A block behind `previous` that begins as `tokens` do, with a reference for the caller.
  struct Tail {
    std::int32_t block = -1;  // none
    std::int64_t n_tokens = 0;
  };
  Tail match_tail(PrefixKey previous, std::span<const TokenId> tokens);
  // Makes a block findable that is not full and will not be written any more.
  void insert_tail(PrefixKey previous, std::span<const TokenId> tokens, std::int32_t block);

  // A block with one reference, the oldest unused cached one where none is free; -1: all are in use.
  std::int32_t allocate();
  void release(std::int32_t block);
  void clear();  // forgets all: the weights or the cache's meaning have changed

  std::int64_t n_available() const { return pool_.n_free() + n_unused_; }  // allocate() succeeds so often
  std::int64_t n_cached() const { return n_cached_; }                      // full and findable, in use or not
  std::int64_t n_unused() const { return n_unused_; }                      // findable and in nobody's use
  std::int64_t block_size() const { return block_size_; }

 private:
  struct Entry {
    PrefixKey key, previous;
    std::int32_t n_tokens = 0;  // known of its contents
    bool is_cached = false;     // in full_
    bool is_newest = false;     // in newest_behind_
    bool is_findable() const { return is_cached || is_newest; }
    std::int32_t older = -1, newer = -1;  // list of unused ones
    bool is_listed = false;
  };
  std::int32_t find(PrefixKey key, std::span<const TokenId> block_tokens) const;
  std::int64_t n_common(std::int32_t block, std::span<const TokenId> tokens) const;
  void set_contents(std::int32_t block, PrefixKey previous, std::span<const TokenId> tokens);
  void forget(std::int32_t block);
  void list_newest(std::int32_t block);
  void unlist(std::int32_t block);

  BlockPool& pool_;
  std::int64_t block_size_;
  bool is_enabled_;
  std::vector<Entry> entries_;   // [n_blocks]
  std::vector<TokenId> tokens_;  // [n_blocks, block_size]
  BlockIndex full_;              // by their own keys
  BlockIndex newest_behind_;     // by the keys before them
  std::int32_t oldest_ = -1, newest_ = -1;
  std::int64_t n_unused_ = 0, n_cached_ = 0;
};

}  // namespace still
