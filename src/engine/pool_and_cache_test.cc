// BlockPool and PrefixCache: references, finding, eviction; and a long random run against a simple model of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "base/rng.h"
#include "engine/block_pool.h"
#include "engine/prefix_cache.h"

namespace still {
namespace {

TEST(BlockPool, HandsOutEachBlockOnce) {
  BlockPool pool(3);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_EQ(pool.allocate(), 2);
  EXPECT_EQ(pool.allocate(), -1);
  pool.add_ref(1);
  EXPECT_FALSE(pool.drop_ref(1));
  EXPECT_TRUE(pool.drop_ref(1));
  pool.free(1);
  EXPECT_EQ(pool.n_free(), 1);
  EXPECT_EQ(pool.allocate(), 1);
}

std::vector<TokenId> iota(TokenId first, std::int64_t n) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Allocates and registers all full blocks of `tokens`.
std::vector<std::int32_t> store(PrefixCache& cache, const std::vector<TokenId>& tokens) {
  std::vector<std::int32_t> blocks;
  PrefixKey key;
  const auto size = static_cast<std::size_t>(cache.block_size());
  for (std::size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    const std::span<const TokenId> part(tokens.data() + begin, size);
    blocks.push_back(cache.allocate());
    EXPECT_GE(blocks.back(), 0);
    key = cache.insert(key, part, blocks.back());
  }
  return blocks;
}

void release_all(PrefixCache& cache, const std::vector<std::int32_t>& blocks) {
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) cache.release(*block);
}

TEST(PrefixCache, FindsTheLongestCommonBeginning) {
  BlockPool pool(8);
  PrefixCache cache(pool, 4, true);
  const auto tokens = iota(100, 12);
  const auto blocks = store(cache, tokens);
  release_all(cache, blocks);
  EXPECT_EQ(cache.n_unused(), 3);
  EXPECT_EQ(cache.n_available(), 8);

  auto other = tokens;
  other[9] = 7;  // in the third block
  std::vector<std::int32_t> found;
  cache.match(other, 3, found);
  EXPECT_EQ(found, (std::vector<std::int32_t>{blocks[0], blocks[1]}));
  EXPECT_EQ(pool.n_refs(blocks[0]), 1);
  EXPECT_EQ(cache.n_unused(), 1);
  release_all(cache, found);

  found.clear();
  cache.match(tokens, 2, found);
  EXPECT_EQ(found.size(), 2u) << "at most max_blocks";
  release_all(cache, found);
  found.clear();
  other = tokens;
  other[0] = 1;
  cache.match(other, 3, found);
  EXPECT_TRUE(found.empty()) << "a block is found only after the same beginning";
}

TEST(PrefixCache, EvictsTheEndOfTheOldestFirst) {
  BlockPool pool(4);
  PrefixCache cache(pool, 2, true);
  const auto old_tokens = iota(0, 4), new_tokens = iota(50, 4);
  release_all(cache, store(cache, old_tokens));
  release_all(cache, store(cache, new_tokens));
  EXPECT_EQ(pool.n_free(), 0);
  const std::int32_t taken = cache.allocate();
  EXPECT_GE(taken, 0);
  std::vector<std::int32_t> found;
  cache.match(old_tokens, 2, found);
  EXPECT_EQ(found.size(), 1u) << "its start is still there";
  release_all(cache, found);
  found.clear();
  cache.match(new_tokens, 2, found);
  EXPECT_EQ(found.size(), 2u);
  EXPECT_GE(cache.allocate(), 0) << "the rest of the old one";
  EXPECT_EQ(cache.allocate(), -1) << "all are in use";
}

TEST(PrefixCache, DisabledKeepsNothing) {
  BlockPool pool(2);
  PrefixCache cache(pool, 2, false);
  const auto tokens = iota(0, 4);
  std::vector<std::int32_t> blocks = {cache.allocate(), cache.allocate()};
  cache.insert({}, std::span(tokens).first(2), blocks[0]);
  cache.insert_tail(chain_key({}, std::span(tokens).first(2)), std::span(tokens).subspan(2, 1), blocks[1]);
  release_all(cache, blocks);
  EXPECT_EQ(pool.n_free(), 2);
  std::vector<std::int32_t> found;
  cache.match(tokens, 2, found);
  EXPECT_TRUE(found.empty());
  EXPECT_EQ(cache.match_tail({}, tokens).block, -1);
}

TEST(PrefixCache, LendsTheBeginningOfTheNewestBlockBehindAKey) {
  BlockPool pool(4);
  PrefixCache cache(pool, 4, true);
  const auto tokens = iota(100, 8);
  const auto blocks = store(cache, tokens);
  const PrefixKey key = chain_key({}, std::span(tokens).first(4));
  const std::vector<TokenId> parts_late = {104, 105, 9, 9}, stops = {104, 9, 8};

  PrefixCache::Tail tail = cache.match_tail(key, parts_late);
  EXPECT_EQ(tail.block, blocks[1]);
  EXPECT_EQ(tail.n_tokens, 2);
  EXPECT_EQ(pool.n_refs(blocks[1]), 2);
  cache.release(tail.block);
  EXPECT_EQ(cache.match_tail(key, iota(7, 4)).block, -1) << "nothing in common";
  release_all(cache, blocks);

  // A part of a block that is known already adds nothing; another takes its place, but the full block stays findable.
  const std::int32_t part = cache.allocate();
  cache.insert_tail(key, std::span(tokens).subspan(4, 3), part);
  cache.release(part);
  EXPECT_EQ(cache.n_unused(), 2);
  const std::int32_t other = cache.allocate();
  cache.insert_tail(key, stops, other);
  cache.release(other);
  EXPECT_EQ(cache.n_unused(), 3);
  tail = cache.match_tail(key, stops);
  EXPECT_EQ(tail.block, other);
  EXPECT_EQ(tail.n_tokens, 3);
  // Replaced while it is lent, it is free when it is given back.
  const std::int32_t newest = cache.allocate();
  cache.insert_tail(key, std::span(stops).last(1), newest);
  cache.release(newest);
  cache.release(tail.block);
  EXPECT_EQ(cache.n_unused(), 3);
  EXPECT_EQ(pool.n_free(), 1);
  std::vector<std::int32_t> found;
  cache.match(tokens, 2, found);
  EXPECT_EQ(found, blocks);
  release_all(cache, found);
  for (int i = 0; i < 4; ++i) EXPECT_GE(cache.allocate(), 0);
  EXPECT_EQ(cache.match_tail(key, stops).block, -1) << "evicted";
}

// Random users of random beginnings: what is found must hold the very tokens, and no block is lost or owned twice.
TEST(PrefixCache, RandomRunLeaksNothing) {
  const std::uint64_t seed = 20240607;
  SCOPED_TRACE(seed);
  Rng rng(seed);
  constexpr std::int64_t kBlock = 3, kBlocks = 24;
  BlockPool pool(kBlocks);
  PrefixCache cache(pool, kBlock, true);
  std::map<std::int32_t, std::vector<TokenId>>
      contents;  // what was last written into a block, with its whole beginning
  struct User {
    std::vector<TokenId> tokens;
    std::vector<std::int32_t> blocks;
  };
  std::vector<User> users;
  for (int round = 0; round < 20000; ++round) {
    if (rng.below(2) == 0 && !users.empty()) {
      const auto idx = static_cast<std::size_t>(rng.below(static_cast<std::int64_t>(users.size())));
      release_all(cache, users[idx].blocks);
      users.erase(users.begin() + static_cast<std::ptrdiff_t>(idx));
    } else {
      User user;
      const std::int64_t n_blocks = 1 + rng.below(5);
      for (std::int64_t i = 0; i < n_blocks * kBlock; ++i)
        user.tokens.push_back(static_cast<TokenId>(rng.below(i < 4 ? 2 : 3)));
      PrefixKey key = cache.match(user.tokens, n_blocks, user.blocks);
      for (std::size_t i = 0; i < user.blocks.size(); ++i) {
        const std::vector<TokenId> beginning(user.tokens.begin(),
                                             user.tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * kBlock));
        ASSERT_EQ(contents[user.blocks[i]], beginning);
      }
      while (static_cast<std::int64_t>(user.blocks.size()) < n_blocks) {
        const std::int64_t available = cache.n_available();
        const std::int32_t block = cache.allocate();
        ASSERT_EQ(block >= 0, available > 0);
        if (block < 0) break;
        ASSERT_EQ(pool.n_refs(block), 1);
        const std::size_t begin = user.blocks.size() * kBlock;
        const std::span<const TokenId> part(user.tokens.data() + begin, kBlock);
        const PrefixCache::Tail tail = cache.match_tail(key, part);
        if (tail.block >= 0) {
          const auto n = static_cast<std::ptrdiff_t>(begin) + tail.n_tokens;
          ASSERT_GE(std::ssize(contents[tail.block]), n);
          ASSERT_TRUE(std::equal(user.tokens.begin(), user.tokens.begin() + n, contents[tail.block].begin()));
          cache.release(tail.block);
        }
        user.blocks.push_back(block);
        const std::int64_t n_written = rng.below(3) == 0 ? 1 + rng.below(kBlock - 1) : kBlock;
        const auto end = static_cast<std::ptrdiff_t>(begin) + n_written;
        contents[block].assign(user.tokens.begin(), user.tokens.begin() + end);
        if (n_written < kBlock) {
          cache.insert_tail(key, part.first(static_cast<std::size_t>(n_written)), block);
          break;
        }
        key = cache.insert(key, part, block);
      }
      users.push_back(std::move(user));
    }
    std::map<std::int32_t, std::int32_t> refs;
    for (const User& user : users)
      for (const std::int32_t block : user.blocks) ++refs[block];
    for (std::int32_t block = 0; block < kBlocks; ++block) ASSERT_EQ(pool.n_refs(block), refs[block]);
    ASSERT_EQ(pool.n_free() + cache.n_unused() +
                  static_cast<std::int64_t>(
                      std::count_if(refs.begin(), refs.end(), [](const auto& r) { return r.second > 0; })),
              kBlocks);
  }
  for (const User& user : users) release_all(cache, user.blocks);
  cache.clear();
  EXPECT_EQ(pool.n_free(), kBlocks);
  EXPECT_EQ(cache.n_cached(), 0);
}

}  // namespace
}  // namespace still
