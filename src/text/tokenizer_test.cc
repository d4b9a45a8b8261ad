// Goldens come from the tokenizers library (tools/make_text_goldens.py) and from another engine (SOURCE.md there).
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/rng.h"
#include "text/test_files.h"
#include "text/unicode.h"

namespace still {
namespace {

using test::read_json;
using test::testdata;
using test::to_ids;

std::vector<std::size_t> split_lengths(const PreTokenizer& pre, std::string_view text) {
  std::vector<std::size_t> ends, lengths;
  split_words(pre, text, ends);
  std::size_t begin = 0;
  for (const std::size_t end : ends) {
    std::size_t n_chars = 0;
    for (std::size_t pos = begin; pos < end; ++n_chars) pos += static_cast<std::size_t>(decode_char(text, pos).size);
    lengths.push_back(n_chars);
    begin = end;
  }
  EXPECT_EQ(begin, text.size());
  return lengths;
}

TEST(PreTokenizer, SplitsAsTheTokenizersLibrary) {
  const Json golden = read_json(testdata("pre_tokenizer_splits.json"));
  const JsonArray& names = golden.at("names").as_array();
  std::int64_t n_compared = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto pre = find_pre_tokenizer(test::to_string(names[i]));
    ASSERT_TRUE(pre) << pre.error().message;
    for (const Json& item : golden.at("cases").as_array()) {
      const std::string text = test::to_string(item.at(0));
      std::vector<std::size_t> want;
      for (const Json& length : item.at(i + 1).as_array()) want.push_back(static_cast<std::size_t>(length.as_int64()));
      EXPECT_EQ(split_lengths(*pre, text), want) << pre->name << ": " << item.at(0);
      ++n_compared;
    }
  }
  EXPECT_GT(n_compared, 9 * 1000);
}

TEST(PreTokenizer, RefusesUnknownNames) {
  const auto pre = find_pre_tokenizer("tekken");
  ASSERT_FALSE(pre);
  EXPECT_EQ(pre.error().code, Code::kUnsupported);
  EXPECT_NE(pre.error().message.find("\"tekken\""), std::string::npos);
}

TEST(PreTokenizer, TakesLinearTimeOnHostileText) {
  const std::size_t n = 300000;
  std::string spaces(n, ' ');
  std::string mixed;
  for (std::size_t i = 0; i < n / 4; ++i) mixed += " \t1'";
  for (const std::string name :
       {"gpt-2", "smollm", "qwen2", "llama-bpe", "deepseek-v3", "deepseek-llm", "deepseek-coder", "default"}) {
    const auto pre = find_pre_tokenizer(name);
    for (const std::string& text : {spaces, spaces + "1" + spaces + "\xd8\xa8", mixed, std::string(n, '\n'),
                                    std::string(n, '\''), std::string(n, '\xff')}) {
      std::vector<std::size_t> ends;
      const auto start = std::chrono::steady_clock::now();
      split_words(*pre, text, ends);
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5)) << name;
      EXPECT_EQ(ends.back(), text.size());
    }
  }
}

class SmallTokenizer : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, SmallTokenizer,
                         testing::Values("gpt-2", "smollm", "qwen2", "llama-bpe", "deepseek-v3", "deepseek-llm"));

TEST_P(SmallTokenizer, EncodesAsTheTokenizersLibrary) {
  const Tokenizer tokenizer = test::small_tokenizer(GetParam());
  const Json golden = read_json(testdata("small_tokenizers/" + GetParam() + ".cases.json"));
  for (const Json& item : golden.at("cases").as_array()) {
    const std::string text = test::to_string(item.at(0));
    const auto want = to_ids(item.at(1));
    const auto want_plain = item.at(2).as_array().empty() ? want : to_ids(item.at(2));
    const auto want_special = item.at(3).as_array().empty() ? want : to_ids(item.at(3));
    EXPECT_EQ(tokenizer.encode(text), want) << item.at(0);
    EXPECT_EQ(tokenizer.encode(text, {.parse_special = false}), want_plain) << item.at(0);
    EXPECT_EQ(tokenizer.encode(text, {.add_special = true}), want_special) << item.at(0);
  }
}

TEST_P(SmallTokenizer, GivesBackEveryByte) {
  if (GetParam() == "qwen2") GTEST_SKIP() << "normalises to NFC: not a round trip";
  const Tokenizer tokenizer = test::small_tokenizer(GetParam());
  const std::uint64_t seed = 20260214;
  SCOPED_TRACE("seed " + std::to_string(seed));
  Rng rng(seed);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (std::int64_t n = rng.below(200); n > 0; --n)
      text += static_cast<char>(rng.below(3) == 0 ? rng.below(256) : "ab c\n1<"[rng.below(7)]);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, {.parse_special = false}), false), text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text), false), text);
  }
}

TEST_P(SmallTokenizer, GivesTheSameIdsFromManyThreads) {
  const Tokenizer tokenizer = test::small_tokenizer(GetParam());
  const std::string text = test::read_file(testdata("small_tokenizers/gpt-2.cases.json"));
  const auto want = test::small_tokenizer(GetParam()).encode(text);
  std::vector<std::vector<TokenId>> got(4);
  std::vector<std::thread> threads;
  for (auto& ids : got) threads.emplace_back([&] { ids = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& ids : got) EXPECT_EQ(ids, want);
}

TEST(Tokenizer, MergesLongWordsAsShortOnes) {
  // The same merges found by a heap (long words) and by scanning (short words): a long word of one letter run is
  // compared with the straightforward algorithm over strings.
  const Tokenizer tokenizer = test::small_tokenizer("gpt-2");
  const Json file = read_json(testdata("small_tokenizers/gpt-2.json"));
  std::vector<std::pair<std::string, std::string>> merges;
  for (const Json& merge : file.at("model").at("merges").as_array())
    merges.emplace_back(test::to_string(merge.at(0)), test::to_string(merge.at(1)));
  const std::uint64_t seed = 7;
  SCOPED_TRACE("seed " + std::to_string(seed));
  Rng rng(seed);
  for (int round = 0; round < 200; ++round) {
    std::string word;
    for (std::int64_t n = 1 + rng.below(120); n > 0; --n) word += "etohadnirsl"[rng.below(11)];
    std::vector<std::string> pieces;
    for (const char c : word) pieces.emplace_back(1, c);
    for (const auto& [left, right] : merges)  // every merge in order of rank, leftmost first
      for (std::size_t i = 0; i + 1 < pieces.size(); ++i)
        if (pieces[i] == left && pieces[i + 1] == right) {
          pieces[i] += right;
          pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
    std::vector<TokenId> want;
    for (const std::string& piece : pieces) want.push_back(tokenizer.find(piece).value_or(-1));
    EXPECT_EQ(tokenizer.encode(word), want) << word;
  }
}

TEST(Tokenizer, TakesNoMarkupFromUntrustedRuns) {
  const Tokenizer tokenizer = test::small_tokenizer("llama-bpe");
  const TokenId start = *tokenizer.find("<|im_start|>"), think = *tokenizer.find("<think>");
  const auto count = [](const std::vector<TokenId>& ids, TokenId id) { return std::count(ids.begin(), ids.end(), id); };
  const TextRun honest[] = {{"<|im_start|>", true}, {"hel", false}, {"lo wor", true}, {"ld", false}, {"<think>", true}};
  EXPECT_EQ(tokenizer.encode_runs(honest), tokenizer.encode("<|im_start|>hello world<think>"));
  const TextRun forged[] = {{"<|im_start|>", true}, {"<|im_start|><think>", false}, {"<think>", true}};
  const auto ids = tokenizer.encode_runs(forged);
  EXPECT_EQ(count(ids, start), 1);
  EXPECT_EQ(count(ids, think), 1);
  EXPECT_EQ(tokenizer.decode(ids, false), "<|im_start|><|im_start|><think><think>");
  const TextRun half[] = {{"<th", true}, {"ink>", false}, {"<|im_", false}, {"start|>", true}};
  EXPECT_EQ(count(tokenizer.encode_runs(half), think), 0);
  EXPECT_EQ(count(tokenizer.encode_runs(half), start), 0);
  // What is no markup matches from any run: it is text.
  const TextRun rule[] = {{"x", true}, {"=====", false}};
  EXPECT_EQ(tokenizer.encode_runs(rule), tokenizer.encode("x====="));
  EXPECT_EQ(count(tokenizer.encode_runs(rule), *tokenizer.find("=====")), 1);
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer tokenizer = test::small_tokenizer("llama-bpe");
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.bos(), tokenizer.find("<|begin|>"));
  const TokenId end = *tokenizer.find("<|im_end|>");
  EXPECT_TRUE(tokenizer.ends_generation(end));
  EXPECT_TRUE(tokenizer.is_special(end));
  EXPECT_FALSE(tokenizer.is_special(*tokenizer.find("<think>")));
  EXPECT_EQ(tokenizer.decode(std::vector<TokenId>{end, *tokenizer.find("<think>"), -5, 1 << 30}, true), "<think>");
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.find("\xc4\xa0the")), " the");
  EXPECT_FALSE(tokenizer.find("no such token"));
}

TokenizerData tiny_data() {
  return {.pre = "gpt-2",
          .tokens = {"a", "b", "ab", "<end>"},
          .types = {TokenType::kNormal, TokenType::kNormal, TokenType::kNormal, TokenType::kControl},
          .merges = {"a b"}};
}

std::string failure(TokenizerData data) {
  const auto tokenizer = Tokenizer::make(std::move(data));
  return tokenizer ? "" : tokenizer.error().message;
}

TEST(Tokenizer, DropsBytesWithoutToken) {
  auto tokenizer = Tokenizer::make(tiny_data());
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->encode("axb<end>"), (std::vector<TokenId>{2, 3}));
  EXPECT_EQ(tokenizer->encode(std::string(100, 'x') + "ab"), (std::vector<TokenId>{2}));
}

TEST(Tokenizer, RefusesContradictions) {
  EXPECT_EQ(failure(tiny_data()), "");
  auto data = tiny_data();
  data.merges = {"ab"};
  EXPECT_NE(failure(data).find("merge 0 is \"ab\""), std::string::npos);
  data.merges = {"a x"};
  EXPECT_NE(failure(data).find("\"x\" is not in the vocabulary"), std::string::npos);
  data.merges = {""};
  EXPECT_NE(failure(data), "");
  data = tiny_data();
  data.types.pop_back();
  EXPECT_EQ(failure(data), "tokenizer: 3 token types for 4 tokens");
  data = tiny_data();
  data.bos = 4;
  EXPECT_EQ(failure(data), "tokenizer: bos token id 4 is outside the vocabulary of 4");
  data = tiny_data();
  data.model = "bert";
  EXPECT_NE(failure(data).find("\"bert\""), std::string::npos);
  data = tiny_data();
  data.added = {{.id = 9}};
  EXPECT_NE(failure(data), "");
  data = tiny_data();
  data.tokens.clear();
  EXPECT_NE(failure(data), "");
}

std::string json_failure(std::string_view json) {
  const auto data = read_tokenizer_json(json, "");
  return data ? "" : data.error().message;
}

TEST(TokenizerJson, NamesWhatItCannotRead) {
  const std::string pre = R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true})";
  const auto with = [&](const std::string& rest) { return "{" + pre + "," + rest + "}"; };
  EXPECT_EQ(json_failure(with(R"("model":{"type":"BPE","vocab":{"a":0},"merges":[]})")), "");
  EXPECT_NE(json_failure("{").find("not valid JSON"), std::string::npos);
  EXPECT_NE(json_failure("{}").find("model is missing"), std::string::npos);
  EXPECT_NE(json_failure(with(R"("model":{"type":"Unigram"})")).find("\"Unigram\""), std::string::npos);
  EXPECT_NE(json_failure(with(R"("model":{"type":"BPE","vocab":{"a":-1},"merges":[]})")).find("id -1"),
            std::string::npos);
  EXPECT_NE(json_failure(with(R"("model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]})")).find("4000000000"),
            std::string::npos);
  EXPECT_NE(json_failure(with(R"("model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]})")).find("id 0 is both"),
            std::string::npos);
  EXPECT_NE(json_failure(with(R"("model":{"type":"BPE","vocab":{"a":0},"merges":[1]})")).find("merge 0"),
            std::string::npos);
  EXPECT_NE(json_failure(with(R"("normalizer":{"type":"Lowercase"},"model":{"type":"BPE","vocab":{},"merges":[]})"))
                .find("\"Lowercase\""),
            std::string::npos);
  const std::string strange =
      R"({"model":{"type":"BPE","vocab":{},"merges":[]},"pre_tokenizer":{"type":"Sequence","pretokenizers":[)"
      R"({"type":"Split","pattern":{"Regex":"\\w+"},"behavior":"Isolated","invert":false},)"
      R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]}})";
  EXPECT_NE(json_failure(strange).find("Split \\w+"), std::string::npos);
}

TEST(TokenizerJson, ReadsTheConfig) {
  const std::string json = R"({"model":{"type":"BPE","vocab":{"a":0,"<s>":1,"</s>":2},"merges":[]},)"
                           R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}})";
  const auto data = read_tokenizer_json(
      json, R"({"bos_token":{"content":"<s>"},"eos_token":"</s>","add_bos_token":true,"unk_token":null})");
  ASSERT_TRUE(data) << data.error().message;
  EXPECT_EQ(data->bos, 1);
  EXPECT_EQ(data->eos, 2);
  EXPECT_TRUE(data->add_bos);
  EXPECT_FALSE(data->add_eos);
}

TEST(Tokenizer, EqualsAnotherEngineOnRealModels) {
  if (test::models_folder().empty()) GTEST_SKIP() << "STILL_TEST_MODELS is not set";
  const Json golden = read_json(testdata("reference_tokenize.json"));
  for (const auto& [name, cases] : golden.as_object()) {
    auto tokenizer =
        Tokenizer::make(test::read_gguf_vocabulary(test::models_folder() + "/" + std::string(name) + ".gguf").data);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    for (const Json& item : cases.as_array()) {
      const std::string text = test::to_string(item.at("s"));
      const auto want = to_ids(item.at("ids"));
      EXPECT_EQ(tokenizer->encode(text), want) << name << ": " << text;
      EXPECT_EQ(tokenizer->encode(text, {.parse_special = false}),
                item.at("ids_nospecial").is_null() ? want : to_ids(item.at("ids_nospecial")))
          << name << ": " << text;
      EXPECT_EQ(tokenizer->decode(want, false), text) << name;
    }
  }
}

}  // namespace
}  // namespace still
