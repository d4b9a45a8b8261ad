#include "text/think_splitter.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "text/test_files.h"

namespace still {
namespace {

TEST(Utf8Stream, NeverSplitsCharacters) {
  Utf8Stream stream;
  EXPECT_EQ(stream.add("a\xe4"), "a");
  EXPECT_EQ(stream.add("\xbd"), "");
  EXPECT_EQ(stream.add("\xa0z"), "\xe4\xbd\xa0z");
  EXPECT_EQ(stream.add("\xf0\x9f\x98"), "");
  EXPECT_EQ(stream.add("x"), "\xef\xbf\xbdx");
  EXPECT_EQ(stream.add("\xff"), "\xef\xbf\xbd");
  EXPECT_EQ(stream.add("\xed\xa0\x80"),
            "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // a surrogate: known invalid at its second byte
  EXPECT_EQ(stream.add("\xc3"), "");
  EXPECT_EQ(stream.flush(), "\xef\xbf\xbd");
  EXPECT_EQ(stream.flush(), "");
}

TEST(Utf8Stream, GivesTheSameTextInPiecesOfAnySize) {
  const std::uint64_t seed = 11;
  SCOPED_TRACE("seed " + std::to_string(seed));
  Rng rng(seed);
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    for (std::int64_t n = rng.below(40); n > 0; --n)
      bytes += std::vector<std::string>{"a",    "\xc3\xa9", "\xe4\xbd\xa0", "\xf0\x9f\x98\x80",
                                        "\xff", "\xe4",     "\x80",         "\xf0\x9f"}[static_cast<std::size_t>(
          rng.below(8))];
    Utf8Stream whole, pieces;
    std::string want = whole.add(bytes);
    want += whole.flush();
    std::string got;
    for (std::size_t pos = 0; pos < bytes.size();) {
      const auto n = static_cast<std::size_t>(1 + rng.below(3));
      got += pieces.add(std::string_view(bytes).substr(pos, n));
      pos += n;
    }
    got += pieces.flush();
    EXPECT_EQ(got, want);
  }
}

struct Split {
  std::string reasoning, content;
  std::int64_t n_tokens = 0;
  bool closed = false;
  bool operator==(const Split&) const = default;
};

Split split(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool starts_inside) {
  ThinkSplitter splitter(tokenizer, starts_inside);
  Split out;
  const auto take = [&](const std::vector<ThinkEvent>& events) {
    for (const ThinkEvent& event : events) {
      EXPECT_FALSE(event.text.empty());
      (event.kind == ThinkEvent::Kind::kReasoning ? out.reasoning : out.content) += event.text;
    }
  };
  for (const TokenId id : ids) take(splitter.add(id));
  take(splitter.finish());
  out.n_tokens = splitter.n_thinking_tokens();
  out.closed = splitter.was_closed();
  return out;
}

// With tag tokens, and with a vocabulary that has none.
Tokenizer without_think() {
  auto data = read_tokenizer_json(test::read_file(test::testdata("small_tokenizers/gpt-2.json")), "");
  std::erase_if(data->added, [&](const AddedToken& token) {
    return data->tokens[static_cast<std::size_t>(token.id)].find("think") != std::string::npos;
  });
  for (std::size_t i = 0; i < data->tokens.size(); ++i)
    if (data->tokens[i].find("think") != std::string::npos) data->types[i] = TokenType::kUnused;
  return std::move(*Tokenizer::make(std::move(*data)));
}

TEST(ThinkSplitter, SeparatesReasoningFromContent) {
  const Tokenizer with = test::small_tokenizer("gpt-2");
  const Tokenizer without = without_think();
  ASSERT_TRUE(find_think_tokens(with).are_tokens());
  ASSERT_FALSE(find_think_tokens(without).are_tokens());
  struct Case {
    std::string text;
    bool inside;
    std::string reasoning, content;
    bool closed;
  };
  const Case cases[] = {
      {"<think>\nlet me\nsee\n</think>\n\nFour.", false, "let me\nsee\n", "Four.", true},
      {"let me see</think>Four.", true, "let me see", "Four.", true},
      {"<think>\n\n</think>\n\nFour.", false, "", "Four.", true},
      {"\n\n</think>\n\nFour.", true, "", "Four.", true},
      {"never ends \xe4\xbd\xa0", true, "never ends \xe4\xbd\xa0", "", false},
      {"<think>never ends</thi", false, "never ends</thi", "", false},
      {"Four.", false, "", "Four.", false},
      {" \nFour <think> is a tag </think> too", false, "", " \nFour <think> is a tag </think> too", false},
      {"\n<think>a</think>b</think>c<think>d", false, "a", "b</think>c<think>d", true},
      {"<think>again</think>x", true, "again", "x", true},
      {"", false, "", "", false},
      {" ", false, "", " ", false},
      {"<thin air", false, "", "<thin air", false},
  };
  for (const Case& item : cases) {
    for (const Tokenizer* tokenizer : {&with, &without}) {
      const Split got = split(*tokenizer, tokenizer->encode(item.text), item.inside);
      EXPECT_EQ(got.reasoning, item.reasoning) << item.text << (tokenizer == &with);
      EXPECT_EQ(got.content, item.content) << item.text << (tokenizer == &with);
      EXPECT_EQ(got.closed, item.closed) << item.text << (tokenizer == &with);
    }
  }
}

TEST(ThinkSplitter, TakesSpelledTagsForText) {
  // The tags spelled in plain tokens are no tags where the vocabulary has tokens for them.
  const Tokenizer tokenizer = test::small_tokenizer("gpt-2");
  std::vector<TokenId> ids = {*tokenizer.find("<think>")};
  const TextRun spelled[] = {{"a</think>b", false}};
  const auto plain = tokenizer.encode_runs(spelled);
  ids.insert(ids.end(), plain.begin(), plain.end());
  ids.push_back(*tokenizer.find("</think>"));
  const auto end = tokenizer.encode("done");
  ids.insert(ids.end(), end.begin(), end.end());
  EXPECT_EQ(split(tokenizer, ids, false), (Split{"a</think>b", "done", static_cast<std::int64_t>(plain.size()), true}));
}

TEST(ThinkSplitter, KnowsWhetherAPromptEndsInside) {
  for (const Tokenizer& tokenizer : {test::small_tokenizer("gpt-2"), without_think()}) {
    const auto ends_inside = [&](std::string_view text) {
      return prompt_ends_in_thinking(tokenizer, tokenizer.encode(text));
    };
    EXPECT_TRUE(ends_inside("hello<|im_end|><think>\n"));
    EXPECT_TRUE(ends_inside("<think>"));
    EXPECT_TRUE(ends_inside("<|im_start|><think>\nlet me"));
    EXPECT_FALSE(ends_inside("<think>\n\n</think>\n\n"));
    EXPECT_FALSE(ends_inside("<think>unfinished<|im_end|>\n<|im_start|>assistant\n"));
    EXPECT_FALSE(ends_inside(""));
    EXPECT_FALSE(ends_inside("hello"));
  }
}

}  // namespace
}  // namespace still
