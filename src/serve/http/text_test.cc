#include "serve/http/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "serve/http/inflate.h"

namespace still {
namespace {

using testing::ElementsAre;
using testing::Pair;

TEST(HttpText, DecodesTargets) {
  const auto target = parse_target("/v1/models/a%2Fb%20c?x=1&y=a+b%26&flag&&=v");
  ASSERT_TRUE(target.has_value());
  EXPECT_EQ(target->path, "/v1/models/a/b c");
  EXPECT_THAT(target->query, ElementsAre(Pair("x", "1"), Pair("y", "a b&"), Pair("flag", ""), Pair("", "v")));
  EXPECT_EQ(parse_target("http://host:80/a?b")->path, "/a");
  EXPECT_EQ(parse_target("HTTP://host")->path, "/");
  EXPECT_EQ(parse_target("/a#fragment")->path, "/a");
  EXPECT_EQ(parse_target("*")->path, "*");
}

TEST(HttpText, RefusesBrokenTargets) {
  for (const char* bad : {"", "a", "host:443", "/%", "/%4", "/%zz", "/a%00b", "/a%0d%0aX", "/\x01", "/a?%f", "/\x7f"}) {
    EXPECT_FALSE(parse_target(bad).has_value()) << bad;
  }
}

TEST(HttpText, DecodingAnyBytesEndsAndNeverMakesControlCharacters) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 20000; ++i) {
    std::string text = "/";
    for (auto n = random() % 40; n > 0; --n) {
      text.push_back(random() % 3 == 0 ? "%?&=#+/0aF"[random() % 10] : static_cast<char>(random()));
    }
    const auto target = parse_target(text);
    if (!target) continue;
    ASSERT_TRUE(target->path.starts_with('/'));
    for (const char c : target->path) ASSERT_GE(static_cast<unsigned char>(c), 0x20);
  }
}

TEST(HttpText, FindsWordsOfLists) {
  EXPECT_TRUE(has_word("keep-alive, Upgrade", "upgrade"));
  EXPECT_FALSE(has_word("upgraded", "upgrade"));
  EXPECT_FALSE(has_word("", "x"));
}

TEST(HttpText, WritesDatesAsTheRfcDoes) {
  EXPECT_EQ(http_date(std::chrono::system_clock::from_time_t(784111777)), "Sun, 06 Nov 1994 08:49:37 GMT");
}

TEST(HttpText, KeepsHeadersOnOneLine) {
  EXPECT_EQ(header_safe("a\r\nSet-Cookie: x"), "a  Set-Cookie: x");
}

TEST(Inflate, UnpacksAndRefusesBombsAndBrokenData) {
  // gzip of "hello", by Python's gzip.compress(b"hello", mtime=0).
  const std::string packed(
      "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05"
      "\x00\x00\x00",
      25);
  EXPECT_EQ(inflate_body(packed, 100).value(), "hello");
  EXPECT_EQ(inflate_body(packed, 4).error().code, Code::kResourceExhausted);
  EXPECT_EQ(inflate_body(packed.substr(0, 15), 100).error().code, Code::kCorrupt);
  EXPECT_EQ(inflate_body("not packed", 100).error().code, Code::kCorrupt);
  EXPECT_EQ(inflate_body("", 100).error().code, Code::kCorrupt);
}

}  // namespace
}  // namespace still
