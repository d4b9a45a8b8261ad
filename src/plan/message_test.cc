// The Chinese catalogue: complete for claims, fit for its arguments, and used.
#include "plan/message.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/json.h"
#include "plan/claims.h"

namespace still {
namespace {

TEST(Message, IsWrittenInBothLanguages) {
  const Message text = message("context {} instead of {}", 4096, 8192);
  EXPECT_EQ(text.english, "context 4096 instead of 8192");
  EXPECT_EQ(text.chinese, "\u4e0a\u4e0b\u6587 4096 \u800c\u975e 8192");
  EXPECT_EQ(&text.in(true), &text.chinese);
  const Message unknown = message("no translation of {}", 1);
  EXPECT_EQ(unknown.chinese, unknown.english);
}

// Every placeholder of the English format stands in the Chinese one, with its way of writing, so that it formats.
TEST(Message, CatalogueTakesTheSameArguments) {
  const auto catalogue = parse_json(plan_data_text("zh"), "zh.json");
  ASSERT_TRUE(catalogue) << catalogue.error().message;
  const auto placeholders = [](std::string_view text) {
    std::vector<std::string> found;
    for (std::size_t at = text.find('{'); at != std::string_view::npos; at = text.find('{', at + 1)) {
      const std::string_view inside = text.substr(at + 1, text.find('}', at) - at - 1);
      const std::size_t colon = inside.find(':');
      found.emplace_back(colon == std::string_view::npos ? "" : inside.substr(colon));
    }
    std::sort(found.begin(), found.end());
    return found;
  };
  EXPECT_GT(catalogue->get_object().size(), 200u);
  for (const auto& [english, chinese] : catalogue->get_object()) {
    EXPECT_EQ(placeholders(english), placeholders(chinese.as_string())) << english;
    EXPECT_FALSE(chinese.as_string().empty()) << english;
  }
}

TEST(Message, EveryClaimIsTranslated) {
  const std::vector<Claim> claims = *read_claims();
  for (const Claim& claim : claims) {
    EXPECT_NE(chinese_format(claim.claim), claim.claim) << claim.id;
    EXPECT_NE(chinese_format(claim.right), claim.right) << claim.id;
  }
}

}  // namespace
}  // namespace still
