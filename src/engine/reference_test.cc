// Real models against another engine's outputs (testdata/reference_outputs/SOURCE.md, which also says how near two
// right engines can come). Needs the models: the folder in STILL_TEST_MODELS.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/json.h"
#include "engine/generate.h"
#include "engine/perplexity.h"

namespace still {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct ReferenceCase {
  const char* name;
  double perplexity;
  double max_logprob_difference;  // mean over all steps: the measured distance of two right engines, and half as much
                                  // again
  double max_flip_margin;         // a step whose two best lie further apart has the same best token
};

void PrintTo(const ReferenceCase& reference, std::ostream* out) {
  *out << reference.name;
}

class ReferenceOutputs : public ::testing::TestWithParam<ReferenceCase> {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("STILL_TEST_MODELS");
    if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set: no " << GetParam().name << ".gguf";
    auto model = Model::load(std::string(folder) + "/" + GetParam().name + ".gguf", {});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
  }
  std::shared_ptr<const Model> model_;
};

// The reference's own tokens are fed, so that one legitimate difference does not become sixty.
TEST_P(ReferenceOutputs, AgreeStepByStep) {
  EngineOptions options;
  options.settings.context = 1024;
  auto engine = Engine::create(model_, options);
  ASSERT_TRUE(engine) << engine.error().message;
  const std::string path = std::string(STILL_SOURCE_DIR) + "/testdata/reference_outputs/" + GetParam().name + ".json";
  const Json reference = *parse_json(read_file(path), path);
  double sum = 0;
  std::int64_t n = 0;
  for (const Json& run : reference.at("greedy").as_array()) {
    Request request;
    for (const Json& id : run.at("prompt_ids").as_array()) request.prompt.push_back(id.to_number<TokenId>());
    const std::size_t n_prompt = request.prompt.size();
    for (const Json& id : run.at("ids").as_array()) request.prompt.push_back(id.to_number<TokenId>());
    request.max_tokens = 1;
    request.n_logprobs = 20;
    request.prompt_logprobs = true;
    request.sampling.temperature = 0;
    const auto result = generate(**engine, request);
    ASSERT_TRUE(result) << result.error().message;
    const JsonArray& steps = run.at("top5").as_array();
    for (std::size_t step = 0; step < steps.size(); ++step) {
      const JsonArray& best = steps[step].as_array();
      const Logprobs& got = *result->prompt_tokens.at(n_prompt + step).logprobs;
      for (const Json& entry : best) {
        for (const TopLogprob& candidate : got.top) {
          if (candidate.id != entry.as_array()[0].to_number<TokenId>()) continue;
          sum += std::abs(candidate.logprob - entry.as_array()[1].to_number<double>());
          ++n;
        }
      }
      const double margin = best[0].as_array()[1].to_number<double>() - best[1].as_array()[1].to_number<double>();
      if (margin > GetParam().max_flip_margin) {
        EXPECT_EQ(got.top[0].id, best[0].as_array()[0].to_number<TokenId>())
            << "step " << step << ", margin " << margin;
      }
    }
  }
  ASSERT_GT(n, 1000);
  RecordProperty("mean_difference", std::to_string(sum / static_cast<double>(n)));
  std::printf("%s: mean absolute difference of the five best log-probabilities %.4f\n", GetParam().name,
              sum / static_cast<double>(n));
  EXPECT_LE(sum / static_cast<double>(n), GetParam().max_logprob_difference);
}

TEST_P(ReferenceOutputs, PerplexityWithinHalfAPercent) {
  const std::string text = read_file("/usr/share/common-licenses/GPL-3");
  if (text.empty()) GTEST_SKIP() << "no /usr/share/common-licenses/GPL-3 on this system";
  PerplexityOptions options;
  options.n_chunks = 8;
  const auto result = perplexity(*model_, text, options);
  ASSERT_TRUE(result) << result.error().message;
  std::printf("%s: perplexity %.4f, reference %.3f\n", GetParam().name, result->perplexity, GetParam().perplexity);
  EXPECT_NEAR(result->perplexity, GetParam().perplexity, 0.005 * GetParam().perplexity);
}

INSTANTIATE_TEST_SUITE_P(All, ReferenceOutputs,
                         ::testing::Values(ReferenceCase{"smollm2", 18.494, 0.18, 0.5},
                                           ReferenceCase{"q05", 5.911, 0.085, 0.3},
                                           ReferenceCase{"q15", 1.811, 0.11, 0.35}));

}  // namespace
}  // namespace still
