// TextStream: whole characters, stop strings over any cut, newlines after tags.
#include "engine/text_stream.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "text/unicode.h"

namespace still {
namespace {

TEST(TextStream, HoldsBackHalfACharacter) {
  TextStream stream;
  std::string out;
  const std::string crab = "\xf0\x9f\xa6\x80";
  for (int i = 0; i < 3; ++i) {
    stream.push(crab.substr(static_cast<std::size_t>(i), 1), true, out);
    EXPECT_EQ(out, "");
  }
  stream.push(crab.substr(3), true, out);
  EXPECT_EQ(out, crab);
}

TEST(TextStream, ReplacesWhatIsNoCharacter) {
  TextStream stream;
  std::string out;
  stream.push("a\xff\xe4\xb8", true, out);
  EXPECT_EQ(out, "a\xef\xbf\xbd");
  stream.push("b", true, out);  // the sequence is broken off
  EXPECT_TRUE(is_valid_utf8(out));
  EXPECT_EQ(out.back(), 'b');
  stream.push("\xe4", true, out);
  stream.flush(out);
  EXPECT_TRUE(is_valid_utf8(out));
  EXPECT_TRUE(out.ends_with("\xef\xbf\xbd"));
}

TEST(TextStream, StopsAtAStringOverSeveralTokens) {
  TextStream stream({"END.", "xyz"});
  std::string out;
  EXPECT_TRUE(stream.push("one E", true, out));
  EXPECT_EQ(out, "one ");
  EXPECT_TRUE(stream.push("N two EN", true, out));
  EXPECT_EQ(out, "one EN two ");
  EXPECT_FALSE(stream.push("D. more", true, out));
  EXPECT_EQ(out, "one EN two ");
  EXPECT_EQ(stream.matched_stop(), "END.");
}

TEST(TextStream, IgnoresStopsWhereToldTo) {
  TextStream stream({"b"});
  std::string out;
  EXPECT_TRUE(stream.push("abc", false, out));
  EXPECT_EQ(out, "abc");
  EXPECT_FALSE(stream.push("abc", true, out));
  EXPECT_EQ(out, "abca");
}

TEST(TextStream, SkipsNewlinesAfterATag) {
  TextStream stream;
  std::string out;
  stream.skip_newlines();
  stream.push("\n", true, out);
  stream.push("\nText\n\n", true, out);
  EXPECT_EQ(out, "Text\n\n");
}

// However the bytes are cut, the text is what finding the first complete stop string in the whole gives.
TEST(TextStream, CutsDoNotMatter) {
  const std::uint64_t seed = 77;
  Rng rng(seed);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (std::int64_t i = rng.below(30); i >= 0; --i) text += "ab\xc3\xa9"[rng.below(2)];
    std::vector<std::string> stops;
    for (std::int64_t i = rng.below(3); i >= 0; --i) {
      std::string stop;
      for (std::int64_t j = rng.below(5); j >= 0; --j) stop += "ab"[rng.below(2)];
      stops.push_back(stop);
    }
    const auto run = [&](bool in_pieces) {
      TextStream stream(stops);
      std::string out;
      std::size_t pos = 0;
      while (pos < text.size()) {
        const std::size_t n = in_pieces ? static_cast<std::size_t>(1 + rng.below(4)) : 1;
        if (!stream.push(std::string_view(text).substr(pos, n), true, out)) return out + "|" + stream.matched_stop();
        pos += n;
      }
      stream.flush(out);
      return out;
    };
    // One byte at a time: the definition of "first complete".
    std::string want = text;
    for (std::size_t end = 1; end <= text.size() && want == text; ++end)
      for (std::size_t length = end; length >= 1 && want == text; --length)
        for (const std::string& stop : stops)
          if (stop == text.substr(end - length, length)) {
            want = text.substr(0, end - length) + "|" + stop;
            break;
          }
    ASSERT_EQ(run(false), want) << "seed " << seed << " round " << round << " text " << text;
    ASSERT_EQ(run(true), want) << "seed " << seed << " round " << round << " text " << text;
  }
}

}  // namespace
}  // namespace still
