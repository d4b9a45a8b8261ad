#include "serve/http/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zstd.h>

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

TEST(Inflate, UnpacksZstdFramesAndRefusesBombsAndBrokenData) {
  // printf hello | zstd -c
  const std::string packed("\x28\xb5\x2f\xfd\x04\x58\x29\x00\x00hello\xa3\x6d\x9f\x88", 18);
  EXPECT_EQ(inflate_zstd_body(packed, 100).value(), "hello");
  EXPECT_EQ(inflate_zstd_body(packed + packed, 100).value(), "hellohello");
  EXPECT_EQ(inflate_zstd_body(packed, 4).error().code, Code::kResourceExhausted);
  for (std::size_t n = 0; n < packed.size(); ++n) {
    EXPECT_EQ(inflate_zstd_body(packed.substr(0, n), 100).error().code, Code::kCorrupt) << n;
  }
  EXPECT_EQ(inflate_zstd_body("not packed", 100).error().code, Code::kCorrupt);
  std::string flipped = packed;
  flipped[10] = 'x';  // the check sum tells
  EXPECT_EQ(inflate_zstd_body(flipped, 100).error().code, Code::kCorrupt);
  // A frame of 64 MiB of zeros in a few kilobytes, and one that asks for a window of 2^41 bytes.
  std::string zeros(std::size_t{64} << 20, '\0'), bomb(ZSTD_compressBound(zeros.size()), '\0');
  bomb.resize(ZSTD_compress(bomb.data(), bomb.size(), zeros.data(), zeros.size(), 3));
  EXPECT_LT(bomb.size(), std::size_t{1} << 20);
  EXPECT_EQ(inflate_zstd_body(bomb, 32 << 20).error().code, Code::kResourceExhausted);
  EXPECT_EQ(inflate_zstd_body(std::string("\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00", 9), 32 << 20).error().code,
            Code::kResourceExhausted);
}

}  // namespace
}  // namespace still
