#include "engine/drafter.h"

#include <gtest/gtest.h>

#include <vector>

namespace still {
namespace {

using Tokens = std::vector<TokenId>;

Tokens proposed(Drafter& drafter, const Tokens& tokens, std::size_t n, int* strength = nullptr) {
  Tokens draft(n);
  const Proposal proposal = drafter.propose(tokens, draft);
  if (strength != nullptr) *strength = proposal.strength;
  draft.resize(static_cast<std::size_t>(proposal.n_tokens));
  return draft;
}

TEST(LookupDrafter, ContinuesTheLongestMatch) {
  const auto drafter = make_lookup_drafter(2, 8);
  // 2 3 stands twice before the end; 1 2 3 once: what followed that is proposed.
  EXPECT_EQ(proposed(*drafter, {1, 2, 3, 7, 8, 9, 2, 3, 5, 1, 2, 3}, 3), (Tokens{7, 8, 9}));
}

TEST(LookupDrafter, GoesOnWithALoop) {
  const auto drafter = make_lookup_drafter(2, 8);
  EXPECT_EQ(proposed(*drafter, {1, 2, 3, 1, 2, 3}, 5), (Tokens{1, 2, 3, 1, 2}));
}

TEST(LookupDrafter, ProposesNothingWithoutAMatch) {
  const auto drafter = make_lookup_drafter(2, 8);
  EXPECT_TRUE(proposed(*drafter, {1, 2, 3, 4, 5}, 4).empty());
  EXPECT_TRUE(proposed(*drafter, {1, 2, 9, 2}, 4).empty());
  EXPECT_TRUE(proposed(*drafter, {}, 4).empty());
  EXPECT_TRUE(proposed(*drafter, {1, 2, 1, 2}, 0).empty());
}

TEST(LookupDrafter, LongerMatchesAreStronger) {
  const auto drafter = make_lookup_drafter(2, 8);
  int weak = -1, strong = -1;
  EXPECT_FALSE(proposed(*drafter, {1, 2, 9, 1, 2}, 4, &weak).empty());
  EXPECT_FALSE(proposed(*drafter, {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8}, 4, &strong).empty());
  EXPECT_LT(weak, strong);
  EXPECT_LT(strong, kDraftStrengths);
}

TEST(DraftCost, IsTheShareThatARowAdds) {
  DraftCost cost;
  for (int i = 0; i < 200; ++i) {
    cost.observe(1, 0, 0.010);
    cost.observe(1, 4, 0.012);
  }
  EXPECT_NEAR(cost.relative(), 0.05, 1e-3);
  // Other numbers of sequences are not compared with each other.
  cost.observe(4, 4, 1.0);
  EXPECT_NEAR(cost.relative(), 0.05, 1e-3);
}

TEST(DraftLength, GrowsWhereDraftsComeTrueAndIsShortWhereRowsAreDear) {
  DraftLength cheap(8), dear(8);
  for (int i = 0; i < 30; ++i) {
    cheap.update(0, 4, 4);
    dear.update(0, 4, 3);
  }
  EXPECT_EQ(cheap.choose(0, 0.05), 8);
  EXPECT_LT(dear.choose(0, 0.4), 4);
}

TEST(DraftLength, StopsWhereNothingComesTrueAndTriesAgainMoreSeldom) {
  DraftLength length(8);
  const auto tries = [&](int n_steps) {
    int n = 0;
    for (int i = 0; i < n_steps; ++i) {
      const std::int64_t chosen = length.choose(1, 0.1);
      if (chosen > 0) length.update(1, chosen, 0);
      n += chosen > 0 ? 1 : 0;
    }
    return n;
  };
  tries(20);
  EXPECT_LE(tries(1000), 20);
  // Another strength has its own record.
  EXPECT_GT(length.choose(3, 0.1), 0);
  // What comes true again is drafted again.
  for (int i = 0; i < 20; ++i) length.update(1, 2, 2);
  EXPECT_GT(length.choose(1, 0.1), 2);
}

TEST(DraftLength, OfNothingIsNothing) {
  DraftLength length(0);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(length.choose(0, 0.0), 0);
}

}  // namespace
}  // namespace still
