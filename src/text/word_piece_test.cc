// WordPiece against the Hugging Face tokenizers library (testdata/embeddings/tiny.json).
#include "text/word_piece.h"

#include <gtest/gtest.h>

#include "text/test_files.h"

namespace still {
namespace {

std::string embeddings_file(const std::string& name) {
  return test::read_file(std::string(STILL_SOURCE_DIR) + "/testdata/embeddings/" + name);
}

void expect_goldens(const WordPiece& tokenizer, const Json& texts, std::size_t limit) {
  for (const Json& entry : texts.as_array()) {
    const std::string text = test::to_string(entry.at("text"));
    const std::vector<TokenId> wanted = test::to_ids(entry.at("ids"));
    std::vector<TokenId> ids = tokenizer.encode(text);
    if (ids.size() > limit) {
      ids.resize(limit);
      ids.back() = tokenizer.data().sep;
    }
    EXPECT_EQ(ids, wanted) << text;
  }
}

TEST(WordPiece, EqualsThePublishedTokenizer) {
  const Json goldens = *parse_json(embeddings_file("tiny.json"), "tiny.json");
  auto data = read_word_piece_json(embeddings_file("tiny-bert/tokenizer.json"));
  ASSERT_TRUE(data) << data.error().message;
  const auto tokenizer = WordPiece::make(std::move(*data));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  expect_goldens(*tokenizer, goldens.at("texts"), 48);

  data = read_word_piece_vocab(embeddings_file("tiny-bert/vocab.txt"), R"({"do_lower_case": true})");
  ASSERT_TRUE(data);
  expect_goldens(*WordPiece::make(std::move(*data)), goldens.at("texts"), 48);
}

TEST(WordPiece, ReadsTheSpellingOfGguf) {
  const std::vector<std::string_view> tokens = {"[PAD]",         "[UNK]", "[CLS]", "[SEP]", "\xe2\x96\x81hello",
                                                "\xe2\x96\x81,", "s"};
  const std::vector<std::int32_t> types = {3, 3, 3, 3, 1, 1, 1};
  auto data = read_word_piece_gguf(tokens, types);
  ASSERT_TRUE(data);
  EXPECT_EQ(data->tokens[6], "##s");
  EXPECT_TRUE(data->lowercase);
  const auto tokenizer = WordPiece::make(std::move(*data));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->encode("HELLOs, h\xc3\xa9llo[SEP]x"), (std::vector<TokenId>{2, 4, 6, 5, 4, 3, 1, 3}));
  EXPECT_EQ(tokenizer->encode("\xff hello \xc3", false), (std::vector<TokenId>{4}));
  EXPECT_EQ(tokenizer->encode(""), (std::vector<TokenId>{2, 3}));
}

TEST(WordPiece, RefusesWhatIsNone) {
  EXPECT_FALSE(read_word_piece_json("{"));
  EXPECT_FALSE(read_word_piece_json("[]"));
  EXPECT_EQ(read_word_piece_json(R"({"model":{"type":"BPE","vocab":{}}})").error().code, Code::kUnsupported);
  EXPECT_EQ(
      read_word_piece_json(R"({"model":{"type":"WordPiece","vocab":{"a":5}},"normalizer":{"type":"BertNormalizer"}})")
          .error()
          .code,
      Code::kCorrupt);
  EXPECT_EQ(read_word_piece_json(R"({"model":{"vocab":{"a":0}},"normalizer":{"type":"NFC"}})").error().code,
            Code::kUnsupported);
  EXPECT_FALSE(WordPiece::make({.tokens = {"a", "b"}}));
}

}  // namespace
}  // namespace still
