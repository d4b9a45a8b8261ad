// Shapes and sizes against the published totals (parameters, bytes of files) of real models.
#include <gtest/gtest.h>

#include <cstring>

#include "files/test_files.h"
#include "plan/plan_data.h"
#include "plan/quantisation.h"
#include "plan/test_model.h"

namespace still {
namespace {

ModelShape known(const char* name) {
  auto models = read_known_models();
  EXPECT_TRUE(models) << (models ? "" : models.error().message);
  auto shape = find_known_shape(*models, name);
  EXPECT_TRUE(shape) << (shape ? "" : shape.error().message);
  return *shape;
}
Quantisation quant(std::string_view name) {
  return *find_quantisation(name);
}

TEST(Shape, HoldsThePublishedNumberOfParameters) {
  EXPECT_EQ(known("deepseek-r1:1.5b").n_params(), 1'777'088'000);
  EXPECT_EQ(known("deepseek-r1:7b").n_params(), 7'615'616'512);
  EXPECT_EQ(known("deepseek-r1:8b").n_params(), 8'030'261'248);
  EXPECT_EQ(known("deepseek-r1:14b").n_params(), 14'770'033'664);
  EXPECT_EQ(known("deepseek-r1:32b").n_params(), 32'763'876'352);
  EXPECT_EQ(known("deepseek-r1:70b").n_params(), 70'553'706'496);
  EXPECT_EQ(known("deepseek-r1:671b").n_params() - 58 * 256, 671'026'404'352);  // + the 58 routers' biases
  EXPECT_NEAR(static_cast<double>(known("deepseek-v2:236b").n_params()), 235.74e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(known("deepseek-v2:16b").n_params()), 15.71e9, 0.01e9);
}

TEST(Shape, HoldsThePublishedActiveParameters) {
  EXPECT_NEAR(static_cast<double>(known("deepseek-r1:671b").n_active_params()), 36.63e9, 0.02e9);
  EXPECT_NEAR(static_cast<double>(known("deepseek-v2:236b").n_active_params()), 20.85e9, 0.02e9);
  EXPECT_NEAR(static_cast<double>(known("deepseek-v2:16b").n_active_params()), 2.45e9, 0.02e9);
  const ModelShape r1 = known("r1");
  EXPECT_NEAR(static_cast<double>(r1.n_routed_params()) / static_cast<double>(r1.n_params()), 0.974, 0.001);
  EXPECT_NEAR(static_cast<double>(r1.n_params(true) - r1.n_params()), 11.61e9 + 2 * 129280.0 * 7168, 0.01e9);
}

// GB = 1e9. Q4_K_M: tensors alone, as llama.cpp writes them.
TEST(Quantisation, GivesThePublishedSizes) {
  struct Row {
    const char* model;
    double bf16, q8, q4km;
    double tolerance;
  };
  for (const Row& row :
       {Row{"1.5b", 3.55, 1.89, 1.111, .005}, Row{"7b", 15.23, 8.09, 4.677, .005}, Row{"8b", 16.06, 8.53, 4.913, .005},
        Row{"14b", 29.54, 15.69, 8.982, .006}, Row{"32b", 65.53, 34.81, 19.85, .01},
        Row{"70b", 141.11, 74.96, 42.51, .01}, Row{"r1", 1342.05, 713.1, 404.0, .6}}) {
    const ModelShape shape = known(row.model);
    EXPECT_NEAR(static_cast<double>(weight_file_bytes(quant("bf16"), shape)) * 1e-9, row.bf16, row.tolerance)
        << row.model;
    EXPECT_NEAR(static_cast<double>(weight_file_bytes(quant("q8_0"), shape)) * 1e-9, row.q8, row.tolerance)
        << row.model;
    EXPECT_NEAR(static_cast<double>(weight_file_bytes(quant("q4_k_m"), shape)) * 1e-9, row.q4km, row.tolerance)
        << row.model;
  }
}

// The type of every tensor of a published file is what the rule says, so the bytes are equal.
TEST(Quantisation, EqualsARealFileToTheByte) {
  auto checkpoint =
      Checkpoint::open(std::string(STILL_SOURCE_DIR) + "/testdata/files/r1-distill-qwen-7b-q4_k_m-header.gguf",
                       {.allow_missing_data = true});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  auto own = shape_from_checkpoint(*checkpoint, "7b");
  ASSERT_TRUE(own) << own.error().message;
  EXPECT_EQ(weight_file_bytes(quant("own"), *own), weight_file_bytes(quant("q4_k_m"), known("7b")));
  EXPECT_EQ(weight_file_bytes(quant("q4_k_m"), *own), weight_file_bytes(quant("q4_k_m"), known("7b")));
  std::int64_t n_other = 0;
  for (const PlannedTensor& tensor : own->tensors) {
    EXPECT_EQ(planned_bytes(quant("own"), *own, tensor), tensor.own_bytes);
    n_other += planned_type(quant("q4_k_m"), *own, tensor) != *tensor.own_type;
  }
  EXPECT_EQ(n_other, 0);
  EXPECT_EQ(own->own_type_name, "Q4_K");
}

TEST(Quantisation, OfR1InEveryPublishedForm) {
  const ModelShape r1 = known("r1");
  const auto gb = [&](const char* name, bool with_mtp = false) {
    return static_cast<double>(weight_file_bytes(quant(name), r1, with_mtp)) * 1e-9;
  };
  EXPECT_NEAR(gb("bf16"), 1342, 1);
  EXPECT_NEAR(gb("fp8-block", true), 689, 1);
  EXPECT_NEAR(gb("4.0bpw"), 335.5, .1);
  EXPECT_NEAR(gb("4.25bpw"), 356.5, .1);
  EXPECT_NEAR(gb("q4_k_m") * 8 / 671.03, 4.82, .01);
}

TEST(Quantisation, EveryNameIsFoundAndOrdersByBits) {
  const ModelShape shape = known("8b");
  for (const Quantisation& q : all_quantisations()) {
    auto found = find_quantisation(q.name);
    ASSERT_TRUE(found) << q.name;
    EXPECT_EQ(found->name, q.name);
    EXPECT_GT(weight_file_bytes(q, shape), 0) << q.name;
  }
  std::int64_t last = 0;
  for (const char* name :
       {"IQ1_S",  "IQ1_M",  "IQ2_XXS", "IQ2_XS", "IQ2_S",  "IQ2_M",  "Q2_K", "IQ3_XXS", "IQ3_XS", "Q3_K_S",
        "Q3_K_M", "Q3_K_L", "Q4_K_S",  "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",    "BF16",   "F32"}) {
    const std::int64_t bytes = weight_file_bytes(quant(name), shape);
    EXPECT_GT(bytes, last) << name;
    last = bytes;
  }
}

TEST(Quantisation, FallsBackWhereRowsAreNoWholeBlocks) {
  const ModelShape smol = known("smollm2:135m");  // rows of 576 are not whole blocks of 256
  for (const PlannedTensor& tensor : smol.tensors) {
    if (tensor.part == TensorPart::kQuery) {
      EXPECT_EQ(planned_type(quant("q4_k_m"), smol, tensor), DType::kQ5_0);
      EXPECT_EQ(planned_type(quant("q2_k"), smol, tensor), DType::kQ4_0);
    }
  }
}

// Words of several weights and their scales are no weights: another type, parameters and operations are the model's.
TEST(Quantisation, OfAPackedFileInAnotherTypeIsTheModels) {
  FakeModel model({{"model_type", "qwen2"},
                   {"num_hidden_layers", 28},
                   {"hidden_size", 3584},
                   {"intermediate_size", 18944},
                   {"num_attention_heads", 28},
                   {"num_key_value_heads", 4},
                   {"vocab_size", 152064},
                   {"max_position_embeddings", 131072}});
  const auto plain = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    model.tensor(name, "F16", shape);
  };
  const auto packed = [&](const std::string& name, std::int64_t in, std::int64_t out) {
    model.tensor(name + ".qweight", "I32", {in, out / 8});
    model.tensor(name + ".qzeros", "I32", {in / 128, out / 8});
    plain(name + ".scales", {in / 128, out});
  };
  plain("model.embed_tokens.weight", {152064, 3584});
  plain("model.norm.weight", {3584});
  plain("lm_head.weight", {152064, 3584});
  for (int i = 0; i < 28; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    plain(layer + "input_layernorm.weight", {3584});
    plain(layer + "post_attention_layernorm.weight", {3584});
    for (const auto& [name, out] : {std::pair("q", 3584), std::pair("k", 512), std::pair("v", 512)}) {
      packed(layer + "self_attn." + name + "_proj", 3584, out);
      plain(layer + "self_attn." + name + "_proj.bias", {out});
    }
    packed(layer + "self_attn.o_proj", 3584, 3584);
    packed(layer + "mlp.gate_proj", 3584, 18944);
    packed(layer + "mlp.up_proj", 3584, 18944);
    packed(layer + "mlp.down_proj", 18944, 3584);
  }
  const auto awq = model.shape();
  ASSERT_TRUE(awq) << awq.error().message;
  const ModelShape formula = known("7b");
  EXPECT_EQ(awq->n_params(), formula.n_params());
  EXPECT_EQ(awq->n_active_params(), formula.n_active_params());
  for (const char* name : {"bf16", "q4_k_m", "awq"})
    EXPECT_EQ(weight_file_bytes(quant(name), *awq), weight_file_bytes(quant(name), formula)) << name;
  EXPECT_NEAR(static_cast<double>(weight_file_bytes(quant("own"), *awq)),
              static_cast<double>(weight_file_bytes(quant("awq"), formula)), 1e6);
}

TEST(Quantisation, NamesTheClosest) {
  const auto wrong = find_quantisation("q4_k_n");
  ASSERT_FALSE(wrong);
  EXPECT_NE(wrong.error().message.find("Q4_K_M"), std::string::npos) << wrong.error().message;
  EXPECT_FALSE(find_quantisation("0bpw"));
  EXPECT_FALSE(find_quantisation("abcbpw"));
  EXPECT_FALSE(find_quantisation(""));
}

JsonObject config_of(const char* type, std::int64_t layers, std::int64_t hidden, std::int64_t heads,
                     std::int64_t kv_heads, std::int64_t head_dim, std::int64_t ffn, std::int64_t vocab) {
  return {{"model_type", type},
          {"num_hidden_layers", layers},
          {"hidden_size", hidden},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"head_dim", head_dim},
          {"intermediate_size", ffn},
          {"vocab_size", vocab},
          {"max_position_embeddings", 32768}};
}

// Families beside those that are run, against the published numbers of parameters.
TEST(Shape, OfOtherFamiliesHoldsThePublishedNumberOfParameters) {
  const auto shape = [](JsonObject config, std::initializer_list<std::pair<const char*, Json>> more = {}) {
    for (const auto& [key, value] : more) config[key] = value;
    const auto read = read_plan_config(config);
    EXPECT_TRUE(read) << read.error().message;
    return *shape_from_config(*read, "x");
  };
  const ModelShape mistral =
      shape(config_of("mistral", 32, 4096, 32, 8, 128, 14336, 32000), {{"sliding_window", 4096}});
  EXPECT_EQ(mistral.n_params(), 7'241'732'096);
  EXPECT_EQ(mistral.config.sliding_window, 4096);
  EXPECT_EQ(shape(config_of("mistral", 32, 4096, 32, 8, 128, 14336, 32000), {{"sliding_window", nullptr}})
                .config.sliding_window,
            0);
  const ModelShape mixtral = shape(config_of("mixtral", 32, 4096, 32, 8, 128, 14336, 32000),
                                   {{"num_local_experts", 8}, {"num_experts_per_tok", 2}});
  EXPECT_EQ(mixtral.n_params(), 46'702'792'704);
  EXPECT_NEAR(static_cast<double>(mixtral.n_active_params()) * 1e-9, 12.75, .01);  // 12.88 with the embedding
  const ModelShape qwen = shape(config_of("qwen3_moe", 48, 2048, 32, 4, 128, 6144, 151936),
                                {{"num_experts", 128}, {"num_experts_per_tok", 8}, {"moe_intermediate_size", 768}});
  EXPECT_NEAR(static_cast<double>(qwen.n_params()) * 1e-9, 30.53, .01);
  EXPECT_NEAR(
      static_cast<double>(
          shape(config_of("gemma2", 42, 3584, 16, 8, 256, 14336, 256000), {{"sliding_window", 4096}}).n_params()) *
          1e-9,
      9.24, .01);
  EXPECT_EQ(
      shape(config_of("gemma2", 42, 3584, 16, 8, 256, 14336, 256000), {{"sliding_window", 4096}}).config.sliding_window,
      0);  // in half of the layers only: none is left out of the count
  EXPECT_NEAR(static_cast<double>(
                  shape(config_of("phi3", 32, 3072, 32, 32, 96, 8192, 32064), {{"sliding_window", 2047}}).n_params()) *
                  1e-9,
              3.82, .01);
  const auto unknown = read_plan_config({{"model_type", "rwkv"}});
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("mixtral"), std::string::npos) << unknown.error().message;
}

// A file of mixtral: an expert's matrices are w1, w2 and w3.
TEST(Shape, OfAFileOfMixtral) {
  JsonObject config = config_of("mixtral", 1, 256, 4, 2, 64, 512, 320);
  config["num_local_experts"] = 4;
  config["num_experts_per_tok"] = 2;
  FakeModel model(config);
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    model.tensor(name + ".weight", "BF16", {rows, cols});
  };
  add("model.embed_tokens", 320, 256);
  add("lm_head", 320, 256);
  add("model.layers.0.self_attn.q_proj", 256, 256);
  add("model.layers.0.self_attn.k_proj", 128, 256);
  add("model.layers.0.self_attn.v_proj", 128, 256);
  add("model.layers.0.self_attn.o_proj", 256, 256);
  add("model.layers.0.block_sparse_moe.gate", 4, 256);
  for (const char* expert : {"0", "1", "2", "3"}) {
    const std::string name = std::string("model.layers.0.block_sparse_moe.experts.") + expert;
    add(name + ".w1", 512, 256);
    add(name + ".w2", 256, 512);
    add(name + ".w3", 512, 256);
  }
  const auto shape = model.shape();
  ASSERT_TRUE(shape) << shape.error().message;
  EXPECT_EQ(shape->n_routed_params(), 4 * 3 * 512 * 256);
}

// A GGUF of mixtral calls itself llama and has the experts of a layer in one tensor.
TEST(Shape, OfAGgufWithExperts) {
  RawGguf raw;
  raw.text("general.architecture", "llama");
  const auto key = [](const char* name) { return "llama." + std::string(name); };
  raw.u32(key("block_count"), 1).u32(key("embedding_length"), 256).u32(key("feed_forward_length"), 512);
  raw.u32(key("attention.head_count"), 4).u32(key("attention.head_count_kv"), 2).u32(key("context_length"), 4096);
  raw.f32(key("attention.layer_norm_rms_epsilon"), 1e-5f).f32(key("rope.freq_base"), 10000.0f);
  raw.u32(key("expert_count"), 4).u32(key("expert_used_count"), 2);
  std::uint64_t at = 0;
  const auto add = [&](const std::string& name, const std::vector<std::uint64_t>& ne) {
    raw.tensor(name + ".weight", ne, 1, at);
    std::uint64_t bytes = 2;
    for (const std::uint64_t n : ne) bytes *= n;
    at += bytes;
  };
  add("token_embd", {256, 320});
  add("output", {256, 320});
  add("blk.0.attn_q", {256, 256});
  add("blk.0.attn_k", {256, 128});
  add("blk.0.attn_v", {256, 128});
  add("blk.0.attn_output", {256, 256});
  add("blk.0.ffn_gate_inp", {256, 4});
  add("blk.0.ffn_gate_exps", {256, 512, 4});
  add("blk.0.ffn_up_exps", {256, 512, 4});
  add("blk.0.ffn_down_exps", {512, 256, 4});
  const TemporaryFolder folder;
  write_file(folder / "m.gguf", raw.bytes());
  const auto checkpoint = Checkpoint::open(folder / "m.gguf", {.allow_missing_data = true});
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto shape = shape_from_checkpoint(*checkpoint, "m");
  ASSERT_TRUE(shape) << shape.error().message;
  EXPECT_EQ(shape->config.n_experts, 4);
  EXPECT_EQ(shape->config.n_experts_per_tok, 2);
  EXPECT_EQ(shape->n_routed_params(), 4 * 3 * 512 * 256);
}

// The real header with one hyperparameter changed, each within a few percent of the number of weights.
TEST(Shape, RefusesHeadersThatLieAboutWidthsOrLayers) {
  const std::string path = std::string(STILL_SOURCE_DIR) + "/testdata/files/r1-distill-qwen-7b-q4_k_m-header.gguf";
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const std::filesystem::path lie = std::filesystem::temp_directory_path() / "still-shape-test-lie.gguf";
  struct Row {
    const char* key;
    std::uint32_t value;
    const char* message;
  };
  for (const Row& row :
       {Row{"qwen2.attention.head_count_kv", 4, ""}, Row{"qwen2.block_count", 28, ""},
        Row{"qwen2.attention.head_count_kv", 1, "512 x 3584, but its hyperparameters ask for 128"},
        Row{"qwen2.attention.head_count_kv", 7, "512 x 3584, but its hyperparameters ask for 896"},
        Row{"qwen2.block_count", 27, "its hyperparameters give it 27 layers"},
        Row{"qwen2.block_count", 29, "it holds 28 layers"}, Row{"qwen2.feed_forward_length", 18688, "18944"}}) {
    std::string changed = bytes;
    const std::size_t at = changed.find(row.key);
    ASSERT_NE(at, std::string::npos) << row.key;
    std::memcpy(changed.data() + at + std::strlen(row.key) + 4, &row.value, 4);
    std::ofstream(lie, std::ios::binary) << changed;
    const auto checkpoint = Checkpoint::open(lie, {.allow_missing_data = true});
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    const auto shape = shape_from_checkpoint(*checkpoint, "lie");
    EXPECT_EQ(shape.has_value(), *row.message == '\0') << row.key << " " << row.value;
    if (shape) continue;
    EXPECT_NE(shape.error().message.find(row.message), std::string::npos) << shape.error().message;
  }
  std::filesystem::remove(lie);
}

TEST(Shape, RefusesWhatNoModelHas) {
  ModelConfig config = known("7b").config;
  config.n_layers = 0;
  EXPECT_FALSE(shape_from_config(config, "x"));
  config = known("7b").config;
  config.n_kv_heads = 3;
  const auto wrong = shape_from_config(config, "x");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message, "28 heads cannot share 3 KV heads: expected a multiple");
  config = known("r1").config;
  config.n_experts_per_tok = 300;
  EXPECT_FALSE(shape_from_config(config, "x"));
  config = known("r1").config;
  config.n_experts = 65536;
  config.moe_intermediate_size = 1 << 20;
  EXPECT_FALSE(shape_from_config(config, "x"));
  const auto models = read_known_models();
  const auto unknown = find_known_shape(*models, "deepseek-r1:77b");
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("deepseek-r1:7b"), std::string::npos) << unknown.error().message;
}

}  // namespace
}  // namespace still
