// Claims, cost and advice.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "plan/advice.h"

namespace still {
namespace {

const ClaimWorld& world() {
  static const ClaimWorld kWorld = *ClaimWorld::read();
  return kWorld;
}

class EveryClaim : public ::testing::TestWithParam<std::size_t> {};
const std::vector<Claim>& claims() {
  static const std::vector<Claim> kClaims = *read_claims();
  return kClaims;
}

TEST_P(EveryClaim, IsAnsweredRightByThePlannersOwnData) {
  const Claim& claim = claims()[GetParam()];
  EXPECT_FALSE(claim.right.empty());
  EXPECT_FALSE(claim.source.empty());
  for (const ClaimCheck& check : claim.checks) {
    const auto got = answer_check(world(), check);
    ASSERT_TRUE(got) << got.error().message;
    EXPECT_NEAR(*got, check.expect, check.tolerance + 1e-9) << claim.id << ": " << check.text();
  }
  const std::vector<const Claim*> found = match_claims(claims(), claim.claim);
  ASSERT_FALSE(found.empty()) << claim.claim;
  EXPECT_EQ(found.front()->id, claim.id) << claim.claim;
}
INSTANTIATE_TEST_SUITE_P(All, EveryClaim, ::testing::Range<std::size_t>(0, claims().size()));

TEST(Claims, AreFoundInFreeSentencesOfBothLanguages) {
  const auto first = [](const char* text) {
    const auto found = match_claims(claims(), text);
    return found.empty() ? std::string() : found.front()->id;
  };
  EXPECT_EQ(first("V3\u662f\u4e00\u4e2a\u7a20\u5bc6\u6a21\u578b"), "v3-dense");
  EXPECT_EQ(first("The experts' top-k is usually 2 in such models"), "top-2");
  EXPECT_EQ(first("the weather is fine"), "");
  EXPECT_EQ(first(""), "");
  // Right sentences: other numbers that hold a claim's digits, and a claim denied.
  EXPECT_EQ(first("R1 chooses 8 of 256 experts, top-k 8"), "");
  EXPECT_EQ(first("The 70B fits 14x80 GB"), "");
  EXPECT_EQ(first("The 70B needs 4x80 GB"), "70b-4x80");
  EXPECT_EQ(first("a 13B distill"), "");
  const auto denies = [&](const char* text) {
    const auto found = match_claims(claims(), text);
    return !found.empty() && may_deny(*found.front(), text);
  };
  EXPECT_TRUE(denies("V3 is a mixture of experts, not dense"));
  EXPECT_TRUE(denies("R1 is text only, not multimodal"));
  EXPECT_TRUE(denies("V3\u4e0d\u662f\u7a20\u5bc6\u6a21\u578b"));
  EXPECT_FALSE(denies("V3 is a dense model"));
  EXPECT_FALSE(denies("The first distills were made without chains of thought"));
  for (const Claim& claim : claims()) {
    EXPECT_FALSE(may_deny(claim, claim.claim)) << claim.id;
    EXPECT_FALSE(may_deny(claim, claim.id)) << claim.id;
  }
  EXPECT_GE(claims().size(), 50u);
  ClaimCheck wrong{.query = {{"kind", "nonsense"}, {"model", "7b"}}};
  EXPECT_FALSE(answer_check(world(), wrong));
}

// Einstein's puzzle: columns are houses. `immediately` decides how "green is left of white" is read.
struct Solutions {
  int n = 0;
  std::set<int> fish_owners;
};
Solutions solve_zebra(bool immediately) {
  using Row = std::array<int, 5>;  // place of each value
  std::vector<Row> all;
  Row row{0, 1, 2, 3, 4};
  do all.push_back(row);
  while (std::next_permutation(row.begin(), row.end()));
  const auto adjacent = [](int a, int b) { return std::abs(a - b) == 1; };
  Solutions s;
  for (const Row& colour : all) {  // red green white yellow blue
    if (immediately ? colour[1] + 1 != colour[2] : colour[1] >= colour[2]) continue;
    for (const Row& nation : all) {  // Brit Swede Dane Norwegian German
      if (nation[0] != colour[0] || nation[3] != 0 || !adjacent(nation[3], colour[4])) continue;
      for (const Row& drink : all) {  // tea coffee milk beer water
        if (nation[2] != drink[0] || colour[1] != drink[1] || drink[2] != 2) continue;
        for (const Row& smoke : all) {  // Pall Mall, Dunhill, Blends, Blue Master, Prince
          if (smoke[1] != colour[3] || smoke[3] != drink[3] || nation[4] != smoke[4] || !adjacent(smoke[2], drink[4]))
            continue;
          for (const Row& pet : all) {  // dog bird cat horse fish
            if (pet[0] != nation[1] || pet[1] != smoke[0] || !adjacent(smoke[2], pet[2]) || !adjacent(pet[3], smoke[1]))
              continue;
            ++s.n;
            s.fish_owners.insert(static_cast<int>(std::find(nation.begin(), nation.end(), pet[4]) - nation.begin()));
          }
        }
      }
    }
  }
  return s;
}

TEST(Claims, ZebraPuzzleHasSevenSolutionsUnlessImmediatelyLeft) {
  EXPECT_EQ(solve_zebra(false).n, 7);
  EXPECT_EQ(solve_zebra(false).fish_owners.size(), 3u);
  EXPECT_EQ(solve_zebra(true).n, 1);
  EXPECT_EQ(*solve_zebra(true).fish_owners.begin(), 4);
}

TEST(Claims, TheWrongKlLossIsMinusTheDivergence) {
  const std::array<double, 3> student = {.5, .3, .2}, teacher = {.2, .5, .3};
  double wrong = 0, divergence = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    wrong += student[i] * std::log(teacher[i] / student[i]);
    divergence += student[i] * std::log(student[i] / teacher[i]);
  }
  EXPECT_GT(divergence, 0);
  EXPECT_DOUBLE_EQ(wrong, -divergence);
}

TEST(Cost, FollowsThePublishedFigures) {
  EXPECT_NEAR(usd_per_million(16, 22300), .199, .001);
  EXPECT_NEAR(usd_per_million(16, 14800), .300, .001);
  EXPECT_NEAR(226.75 * 8 * 2 * 24, 87072, 1);
  EXPECT_EQ(usd_per_million(16, 0), 0);
  EXPECT_NEAR(usd_per_correct(10000, 2.19, .798), .02744, .0001);
  const BreakEven even =
      break_even({.purchase_usd = 3650, .power_w = 700, .usd_per_kwh = .15, .years = 2, .tok_per_s = 500}, 2.19);
  EXPECT_NEAR(even.own_usd_per_million_full, 5 / 43.2 + .0583, .001);
  EXPECT_NEAR(even.tokens_per_day, 5 / (2.19 - .0583) * 1e6, 1e4);
  EXPECT_LT(even.share_of_capacity, .06);
  EXPECT_EQ(break_even({.purchase_usd = 1000, .power_w = 1e6, .tok_per_s = 1}, .01).tokens_per_day, 0);
}

TEST(Advice, OfFiveTypicalQuestions) {
  struct Row {
    const char *devices, *task;
    bool permissive;
    std::int64_t concurrency;
    const char* model;
  };
  for (const Row& row :
       {Row{"3090", "math", false, 1, "deepseek-r1:32b"}, Row{"4060", "math", false, 1, "deepseek-r1:7b"},
        Row{"2xa100-80", "code", true, 4, "deepseek-r1:32b"}, Row{"8xh200", "science", false, 8, "deepseek-r1:671b"},
        Row{"2xa100-80", "code", false, 1, "deepseek-r1:70b"}}) {
    AdviceRequest request{.devices = *parse_device_set(world().devices, row.devices),
                          .task = row.task,
                          .context = 8192,
                          .concurrency = row.concurrency,
                          .permissive_licence = row.permissive};
    const auto advice = advise(world(), request);
    ASSERT_TRUE(advice) << advice.error().message;
    EXPECT_EQ(advice->candidates.front().model, row.model)
        << row.devices << ", " << advice->candidates.front().quantisation;
    EXPECT_GE(advice->because.size(), 3u);
    EXPECT_GE(advice->unknowns.size(), 3u);
    EXPECT_TRUE(advice->candidates.front().fits);
  }
  AdviceRequest wrong{.devices = *parse_device_set(world().devices, "3090"), .task = "cooking"};
  EXPECT_FALSE(advise(world(), wrong));
}

// What a type loses is published, or estimated from published divergences, or there is no score: never none lost.
TEST(Advice, KnowsNoLosslessTypesButThoseOf16Bits) {
  for (const char* name : {"IQ1_S", "IQ2_XXS", "Q4_0", "2bpw", "Q3_K_L", "BF16"}) {
    AdviceRequest request{.devices = *parse_device_set(world().devices, "8xh200"), .quantisation = name};
    const auto advice = advise(world(), request);
    ASSERT_TRUE(advice) << advice.error().message;
    const bool is_plain = std::string(name) == "BF16", is_known = world().quality.recovery.contains(name);
    for (const Candidate& c : advice->candidates) {
      EXPECT_EQ(c.has_score, is_plain || is_known) << name;
      if (is_plain) {
        EXPECT_EQ(c.score, c.score_16_bit);
      } else if (is_known) {
        EXPECT_LT(c.score, .97 * c.score_16_bit) << name;
      }
    }
    const std::string unknown = std::string("what ") + name + " loses: no result was published, so it has no score";
    const bool is_named = std::any_of(advice->unknowns.begin(), advice->unknowns.end(),
                                      [&](const Message& text) { return text.english == unknown; });
    EXPECT_EQ(is_named, !is_known && !is_plain) << name;
  }
  EXPECT_TRUE(world().quality.recovery.contains("IQ1_S"));
  EXPECT_FALSE(world().quality.recovery.contains("2bpw"));
}

TEST(Advice, PutsPartsInHostMemoryWhereItMay) {
  AdviceRequest request{.devices = *parse_device_set(world().devices, "4090"),
                        .context = 4096,
                        .min_tok_per_s = 5,
                        .host = *find_device(world().devices, "xeon-6454s")};
  request.host_capacity = request.host->usable_bytes;
  const auto advice = advise(world(), request);
  ASSERT_TRUE(advice) << advice.error().message;
  EXPECT_EQ(advice->candidates.front().model, "deepseek-r1:671b");
  EXPECT_GT(advice->candidates.front().host_bytes, 0);
  request.host.reset();
  EXPECT_NE(advise(world(), request)->candidates.front().model, "deepseek-r1:671b");
}

// What does not fit says the change that would do, and the chosen one what its device does not compute.
TEST(Advice, NamesTheNearestAndTheNotes) {
  AdviceRequest request{.devices = *parse_device_set(world().devices, "3090"), .context = 8192};
  const auto advice = advise(world(), request);
  ASSERT_TRUE(advice) << advice.error().message;
  for (const Candidate& c : advice->candidates)
    if (c.model == "deepseek-r1:32b" && c.quantisation == "Q4_K_M") {
      EXPECT_FALSE(c.fits);
      EXPECT_FALSE(c.reason.empty());
      EXPECT_FALSE(c.nearest.empty());
    }
  request.devices = *parse_device_set(world().devices, "v100");
  request.quantisation = "BF16";
  const auto old = advise(world(), request);
  ASSERT_TRUE(old) << old.error().message;
  EXPECT_TRUE(std::any_of(old->because.begin(), old->because.end(), [](const Message& text) {
    return text.english.find("does not compute BF16") != std::string::npos;
  }));
}

// A model that was made for less than the wanted context is no choice, rather than one for a shorter context.
TEST(Advice, LeavesOutModelsOfAShorterContext) {
  AdviceRequest request{.devices = *parse_device_set(world().devices, "8xh200"), .context = 150'000};
  const auto advice = advise(world(), request);
  ASSERT_TRUE(advice) << advice.error().message;
  for (const Candidate& c : advice->candidates) {
    if (!c.fits) continue;
    EXPECT_EQ(c.model, "deepseek-r1:671b");
    EXPECT_GE(c.max_context, 150'000);
  }
  request.context = 1'000'000;
  const auto none = advise(world(), request);
  ASSERT_TRUE(none) << none.error().message;
  for (const Candidate& c : none->candidates) EXPECT_FALSE(c.fits) << c.model;
  EXPECT_NE(none->because.front().english.find("nothing of the family fits"), std::string::npos);
}

}  // namespace
}  // namespace still
