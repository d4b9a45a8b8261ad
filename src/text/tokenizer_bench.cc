// Encoding speed on one thread. With STILL_TEST_MODELS: a real vocabulary (q05.gguf) over this repository's prose;
// without: a small vocabulary, where words need many merges.
#include <benchmark/benchmark.h>

#include "text/test_files.h"

namespace still {
namespace {

std::string english() {
  std::string text;
  for (const char* name : {"/README.md", "/docs/architecture.md", "/CMakeLists.txt"}) {
    std::ifstream in(std::string(STILL_SOURCE_DIR) + name, std::ios::binary);
    text.append(std::istreambuf_iterator<char>(in), {});
  }
  const std::string once = text +
                           "\nIt is a truth universally acknowledged, that a single man in possession of a good "
                           "fortune, must be in want of a wife.\n";
  while (text.size() < (1 << 20)) text += once;
  return text;
}

std::string chinese() {
  std::string text;
  while (text.size() < (1 << 20))
    text +=
        "\xe4\xbb\x8a\xe5\xa4\xa9\xe5\xa4\xa9\xe6\xb0\x94\xe6\x80\x8e\xe4\xb9\x88\xe6\xa0\xb7\xef\xbc\x9f\xe6\xb7\xb1"
        "\xe5\xba\xa6\xe6\xb1\x82\xe7\xb4\xa2\xe3\x80\x82";
  return text;
}

const Tokenizer& tokenizer() {
  static const Tokenizer instance = [] {
    if (test::models_folder().empty()) return test::small_tokenizer("qwen2");
    return std::move(*Tokenizer::make(test::read_gguf_vocabulary(test::models_folder() + "/q05.gguf").data));
  }();
  return instance;
}

void encode(benchmark::State& state, const std::string& text) {
  std::size_t n_tokens = 0;
  for (auto _ : state) n_tokens = tokenizer().encode(text).size();
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
  state.counters["tokens"] = static_cast<double>(n_tokens);
}
void BM_EncodeEnglish(benchmark::State& state) {
  encode(state, english());
}
void BM_EncodeChinese(benchmark::State& state) {
  encode(state, chinese());
}
void BM_EncodeOneLongWord(benchmark::State& state) {
  encode(state, std::string(1 << 20, 'a'));
}
BENCHMARK(BM_EncodeEnglish)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeChinese)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_EncodeOneLongWord)->Unit(benchmark::kMillisecond);

void BM_MakeTokenizer(benchmark::State& state) {
  if (test::models_folder().empty()) return state.SkipWithError("STILL_TEST_MODELS is not set");
  const TokenizerData data = test::read_gguf_vocabulary(test::models_folder() + "/q05.gguf").data;
  for (auto _ : state) {
    state.PauseTiming();
    TokenizerData copy = data;
    state.ResumeTiming();
    benchmark::DoNotOptimize(Tokenizer::make(std::move(copy)));
  }
}
BENCHMARK(BM_MakeTokenizer)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace still
