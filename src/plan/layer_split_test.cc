// How many layers a GPU takes: of a model whose header alone is here, in the shapes of R1-Distill-Qwen-7B.
#include "plan/layer_split.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "models/registry.h"

namespace still {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

// A folder with config.json and a safetensors file that ends after its header.
class HeaderOnlyModel {
 public:
  HeaderOnlyModel() {
    std::string name = (std::filesystem::temp_directory_path() / "still-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
    std::ofstream(path_ / "config.json")
        << R"({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,)"
        << R"("num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,)"
        << R"("max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,)"
        << R"("tie_word_embeddings": false})";
    ModelConfig config;
    config.model_type = "qwen2";
    config.n_layers = 28;
    config.hidden_size = 3584;
    config.intermediate_size = 18944;
    config.n_heads = 28;
    config.n_kv_heads = 4;
    config.head_dim = 128;
    config.vocab_size = 152064;
    config.attention_bias = true;
    std::string header = "{";
    std::int64_t at = 0;
    for (const TensorSpec& spec : (*find_arch("qwen2"))->tensors(config)) {
      std::string shape;
      for (int axis = 0; axis < spec.shape.rank; ++axis)
        shape += fmt::format("{}{}", axis > 0 ? "," : "", spec.shape[axis]);
      const std::int64_t end = at + 2 * spec.shape.n_elements();
      header += fmt::format(R"({}"{}":{{"dtype":"BF16","shape":[{}],"data_offsets":[{},{}]}})",
                            header.size() > 1 ? "," : "", spec.name, shape, at, end);
      at = end;
    }
    header += "}";
    while (header.size() % 8 != 0) header += ' ';
    const std::uint64_t size = header.size();
    std::ofstream file(path_ / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header;
  }
  ~HeaderOnlyModel() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct Opened {
  HeaderOnlyModel folder;
  Result<Checkpoint> checkpoint = Checkpoint::open(folder.path(), {.allow_missing_data = true});
  const Arch& arch = **find_arch("qwen2");
  Result<ModelConfig> config = arch.read_config(checkpoint->config());

  Result<LayerSplit> split(std::int64_t gpu_bytes, std::optional<std::int32_t> n = {},
                           std::int64_t host_bytes = 64 * kGiB, std::int64_t context = 0) const {
    EngineSettings settings;
    settings.n_threads = 2;
    settings.context = context;
    return plan_layer_split(arch, *config, *checkpoint, settings, gpu_bytes, host_bytes, n);
  }
};

TEST(LayerSplit, TakesTheMostThatFit) {
  const Opened model;
  ASSERT_TRUE(model.checkpoint) << model.checkpoint.error().message;
  std::int32_t before = 0;
  for (std::int64_t gib = 3; gib <= 24; ++gib) {
    const auto split = model.split(gib * kGiB);
    ASSERT_TRUE(split) << gib << " GiB: " << split.error().message;
    EXPECT_GE(split->n_gpu_layers, before);
    before = split->n_gpu_layers;
    EXPECT_LE(split->gpu.total_bytes(), gib * kGiB);
    const std::int32_t n_host = 28 - split->n_gpu_layers;
    EXPECT_EQ(split->gpu.settings.n_host_layers, n_host);
    // Together they are the whole: 28 layers of weights, keys and values.
    const std::int64_t layer = 2 * (3584 * (3584 + 1024) + 3584 * 3584 + 3 * 3584 * 18944);
    EXPECT_NEAR(static_cast<double>(split->gpu.weight_bytes),
                static_cast<double>((28 - n_host) * layer + (n_host == 0 ? 2 : 1) * std::int64_t{2} * 152064 * 3584),
                4e6);
    EXPECT_NEAR(static_cast<double>(split->host.weight_bytes), static_cast<double>(n_host * layer), 4e6);
    if (n_host == 0) continue;
    EXPECT_EQ(split->gpu.n_blocks, split->host.n_blocks);
    EXPECT_NEAR(static_cast<double>(split->gpu.kv_bytes + split->host.kv_bytes), 4096.0 * 57344, 5e6);
    // One more does not fit, and says what does.
    const auto more = model.split(gib * kGiB, split->n_gpu_layers + 1);
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code, Code::kResourceExhausted);
    EXPECT_NE(more.error().message.find(fmt::format("; {} of 28 layers fit it", split->n_gpu_layers)),
              std::string::npos)
        << more.error().message;
    EXPECT_TRUE(model.split(gib * kGiB, split->n_gpu_layers));
  }
  EXPECT_EQ(before, 28);
}

TEST(LayerSplit, RefusesInASentence) {
  const Opened model;
  ASSERT_TRUE(model.checkpoint) << model.checkpoint.error().message;
  const auto none = model.split(kGiB);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().message.find("no layer fits the GPU beside a context of 4096 tokens: "), 0u)
      << none.error().message;
  const auto host = model.split(4 * kGiB, {}, 2 * kGiB);
  ASSERT_FALSE(host);
  EXPECT_NE(host.error().message.find("layers in host memory need"), std::string::npos) << host.error().message;
  EXPECT_EQ(model.split(4 * kGiB, 29).error().message, "29 layers on the GPU: expected 1 to 28, or auto");
  // A longer context takes room that layers had.
  EXPECT_LT(model.split(8 * kGiB, {}, 64 * kGiB, 65536)->n_gpu_layers, model.split(8 * kGiB)->n_gpu_layers);
}

}  // namespace
}  // namespace still
