// Vectors against those of transformers: a tiny random BERT (testdata/embeddings), and all-MiniLM-L6-v2 where
// STILL_TEST_MODELS has it.
#include "engine/embedder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <thread>

#include "base/json.h"
#include "base/text_file.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::filesystem::path testdata(const std::string& name) {
  return std::filesystem::path(STILL_SOURCE_DIR) / "testdata" / name;
}

std::unique_ptr<Embedder> open(const std::filesystem::path& path, EmbedderOptions options = {.n_threads = 1}) {
  auto embedder = Embedder::create(path, options);
  EXPECT_TRUE(embedder) << embedder.error().message;
  return embedder ? std::move(*embedder) : nullptr;
}

Json read_goldens(const std::string& name) {
  return *parse_json(*read_text_file(testdata("embeddings/" + name), 16 << 20), name);
}

std::vector<std::string> texts_of(const Json& list) {
  std::vector<std::string> texts;
  for (const Json& entry : list.as_array()) texts.emplace_back(entry.at("text").as_string());
  return texts;
}

double largest_difference(std::span<const float> a, const Json& b) {
  double largest = 0;
  for (std::size_t i = 0; i < b.as_array().size(); ++i)
    largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - b.as_array()[i].to_number<double>()));
  return largest;
}

TEST(Embedder, EqualsThePublishedImplementation) {
  const Json goldens = read_goldens("tiny.json");
  const auto embedder = open(testdata("embeddings/tiny-bert"));
  ASSERT_TRUE(embedder);
  EXPECT_TRUE(embedder->is_encoder());
  EXPECT_EQ(embedder->dimensions(), 64);
  EXPECT_EQ(embedder->max_seq_len(), 48);
  EXPECT_GT(embedder->memory_bytes(), 0);
  const std::vector<std::string> texts = texts_of(goldens.at("texts"));
  ASSERT_GE(texts.size(), 50U);
  const auto vectors = embedder->embed(texts);
  ASSERT_TRUE(vectors) << vectors.error().message;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Json& golden = goldens.at("texts").as_array()[i];
    EXPECT_EQ(vectors->n_tokens_of[i], static_cast<std::int64_t>(golden.at("ids").as_array().size())) << texts[i];
    EXPECT_LT(largest_difference(vectors->row(static_cast<std::int64_t>(i)), golden.at("vector")), 1e-4) << texts[i];
  }
  EXPECT_FALSE(vectors->truncated.empty());
}

TEST(Embedder, ReadsGgufWithItsOwnPooling) {
  const Json goldens = read_goldens("tiny.json");
  const auto embedder = open(testdata("embeddings/tiny-bert-cls.gguf"));
  ASSERT_TRUE(embedder);
  EXPECT_EQ(embedder->max_seq_len(), 64);
  std::vector<std::string> texts = texts_of(goldens.at("texts"));
  texts.resize(6);
  const auto vectors = embedder->embed(texts);
  ASSERT_TRUE(vectors);
  for (std::size_t i = 0; i < texts.size(); ++i)
    EXPECT_LT(largest_difference(vectors->row(static_cast<std::int64_t>(i)), goldens.at("cls").as_array()[i]), 1e-4);
}

TEST(Embedder, AVectorDoesNotDependOnItsNeighboursOrThreads) {
  const std::vector<std::string> texts = texts_of(read_goldens("tiny.json").at("texts"));
  const auto together = open(testdata("embeddings/tiny-bert"), {.n_threads = 3, .max_batch_tokens = 100});
  const auto alone = open(testdata("embeddings/tiny-bert"));
  const auto all = together->embed(texts);
  ASSERT_TRUE(all);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto one = alone->embed(std::span(&texts[i], 1));
    ASSERT_TRUE(one);
    const auto row = all->row(static_cast<std::int64_t>(i));
    EXPECT_TRUE(std::equal(row.begin(), row.end(), one->values.begin())) << texts[i];
  }
}

TEST(Embedder, OptionsAndBadInput) {
  const auto embedder = open(testdata("embeddings/tiny-bert"));
  const std::string long_text(500, '!');
  const std::vector<std::string> texts = {"hello world", long_text};
  auto vectors = embedder->embed(texts);
  ASSERT_TRUE(vectors);
  EXPECT_THAT(vectors->truncated, ElementsAre(1));
  EXPECT_EQ(vectors->n_tokens_of[1], 48);
  EXPECT_THAT(embedder->embed(texts, {.truncate = false}).error().message,
              HasSubstr("the input length exceeds the context length: input 1 has 502 tokens, the model takes 48"));
  const auto raw = embedder->embed(texts, {.normalize = false});
  const auto few = embedder->embed(texts, {.dimensions = 10});
  ASSERT_TRUE(raw && few);
  EXPECT_EQ(few->values.size(), 20U);
  double squares = 0, cut = 0;
  for (const float v : raw->row(0)) squares += static_cast<double>(v) * static_cast<double>(v);
  for (const float v : few->row(0)) cut += static_cast<double>(v) * static_cast<double>(v);
  EXPECT_NEAR(cut, 1.0, 1e-6);
  EXPECT_NEAR(static_cast<double>(raw->row(0)[3]) / std::sqrt(squares), static_cast<double>(vectors->row(0)[3]), 1e-6);
  EXPECT_EQ(embedder->embed(texts, {.dimensions = 65}).error().code, Code::kInvalidArgument);
  EXPECT_EQ(embedder->embed(std::vector<std::string>{"\xff"}).error().code, Code::kInvalidArgument);
  EXPECT_EQ(embedder->embed(std::vector<std::string>{})->n_texts, 0);
  const std::vector<std::vector<TokenId>> ids = {embedder->tokenize("hello world")};
  EXPECT_EQ(embedder->embed_tokens(ids)->values, embedder->embed(std::span(texts).first(1))->values);
  EXPECT_FALSE(embedder->embed_tokens(std::vector<std::vector<TokenId>>{{-1}}));
  EXPECT_FALSE(embedder->embed_tokens(std::vector<std::vector<TokenId>>{{1000000}}));
  EXPECT_FALSE(embedder->embed_tokens(std::vector<std::vector<TokenId>>{{}}));
}

TEST(Embedder, EndsWhenNobodyWaitsAnyMore) {
  for (const char* model : {"embeddings/tiny-bert", "tiny/llama/model.gguf"}) {
    const auto embedder = open(testdata(model), {.n_threads = 1, .max_batch_tokens = 48});
    ASSERT_TRUE(embedder) << model;
    const std::vector<std::string> texts(40, "hello world of text");
    int n_asked = 0;
    const auto vectors = embedder->embed(texts, {.is_cancelled = [&] { return ++n_asked == 3; }});
    ASSERT_FALSE(vectors);
    EXPECT_EQ(vectors.error().code, Code::kCancelled);
    EXPECT_EQ(n_asked, 3);
    EXPECT_TRUE(embedder->embed(std::vector<std::string>{"hello"}));
  }
}

TEST(Embedder, ManyThreadsMayAsk) {
  const auto embedder = open(testdata("embeddings/tiny-bert"), {.n_threads = 2});
  const std::vector<std::string> texts = {"hello", "world of text", "a"};
  const auto wanted = embedder->embed(texts);
  ASSERT_TRUE(wanted);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) EXPECT_EQ(embedder->embed(texts)->values, wanted->values);
    });
  for (std::thread& thread : threads) thread.join();
}

TEST(Embedder, DecodersGiveTheLastState) {
  const auto embedder = open(testdata("tiny/llama/model.gguf"));
  ASSERT_TRUE(embedder);
  EXPECT_FALSE(embedder->is_encoder());
  const std::vector<std::string> texts = {"hello world", "", "hello there, world"};
  const auto vectors = embedder->embed(texts);
  ASSERT_TRUE(vectors) << vectors.error().message;
  for (std::int64_t i = 0; i < 3; ++i) {
    double squares = 0;
    for (const float v : vectors->row(i)) squares += static_cast<double>(v) * static_cast<double>(v);
    EXPECT_NEAR(squares, 1.0, 1e-5);
  }
  // In pieces of other sizes the same numbers come out.
  const auto small = open(testdata("tiny/llama/model.gguf"), {.n_threads = 2, .max_batch_tokens = 3});
  const auto again = small->embed(texts);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->values, vectors->values);
}

TEST(Embedder, AllMiniLmEqualsThePublishedImplementation) {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  const std::filesystem::path path = std::filesystem::path(folder != nullptr ? folder : "") / "minilm";
  if (folder == nullptr || !std::filesystem::exists(path))
    GTEST_SKIP() << "STILL_TEST_MODELS names no folder with minilm (all-MiniLM-L6-v2)";
  const auto embedder = open(path, {.n_threads = 2});
  ASSERT_TRUE(embedder);
  const Json goldens = read_goldens("minilm.json");
  const std::vector<std::string> texts = texts_of(goldens);
  const auto vectors = embedder->embed(texts);
  ASSERT_TRUE(vectors) << vectors.error().message;
  double largest = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Json& golden = goldens.as_array()[i];
    std::vector<TokenId> ids = embedder->tokenize(texts[i]), wanted;
    for (const Json& id : golden.at("ids").as_array()) wanted.push_back(static_cast<TokenId>(id.as_int64()));
    if (ids.size() > 256) {
      ids.resize(256);
      ids.back() = 102;
    }
    EXPECT_EQ(ids, wanted) << texts[i];
    const auto row = vectors->row(static_cast<std::int64_t>(i));
    largest = std::max(largest, largest_difference(row, golden.at("head")));
    double probe = 0;
    for (std::size_t d = 0; d < row.size(); ++d)
      probe += static_cast<double>(row[d]) * std::cos(static_cast<double>(d));
    EXPECT_NEAR(probe, golden.at("probe").to_number<double>(), 1e-4) << texts[i];
  }
  EXPECT_LT(largest, 1e-4);
  RecordProperty("largest_difference", std::to_string(largest));
  std::printf("largest difference %.2e over %zu texts\n", largest, texts.size());
}

}  // namespace
}  // namespace still
