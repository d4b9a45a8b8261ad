// One view of every kind of model: the tiny models exist as safetensors and as GGUF and must look the same.
#include "files/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "files/test_files.h"

namespace still {
namespace {

using testing::HasSubstr;

double number(const JsonObject& config, std::string_view key) {
  const Json* value = config.if_contains(key);
  EXPECT_NE(value, nullptr) << key;
  return value == nullptr || !value->is_number() ? -1 : value->to_number<double>();
}

TEST(Checkpoint, GgufAndSafetensorsOfOneModelAreTheSame) {
  for (const char* name : {"llama", "llama_tied", "qwen2", "qwen2_tied"}) {
    SCOPED_TRACE(name);
    const auto folder = test_data("tiny") / name;
    const auto hf = Checkpoint::open(folder / "model.safetensors");
    const auto gguf = Checkpoint::open(folder / "model.gguf");
    ASSERT_TRUE(hf) << hf.error().message;
    ASSERT_TRUE(gguf) << gguf.error().message;
    EXPECT_EQ(hf->architecture(), gguf->architecture());
    for (const char* key : {"num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
                            "head_dim", "intermediate_size", "rms_norm_eps", "rope_theta", "vocab_size",
                            "max_position_embeddings", "bos_token_id", "eos_token_id"})
      EXPECT_EQ(number(hf->config(), key), number(gguf->config(), key)) << key;
    EXPECT_EQ(hf->config().at("tie_word_embeddings"), gguf->config().at("tie_word_embeddings"));

    bool has_permuted = false;
    std::set<std::string> names;
    for (const CheckpointTensor& a : hf->tensors()) {
      const CheckpointTensor* b = gguf->find(a.name);
      ASSERT_NE(b, nullptr) << a.name;
      names.insert(a.name);
      EXPECT_EQ(b->shape, a.shape) << a.name;
      ASSERT_EQ(a.dtype, DType::kF32);
      ASSERT_EQ(b->dtype, DType::kF32);
      ASSERT_EQ(b->data.size(), a.data.size());
      const auto row_bytes = a.data.size() / static_cast<std::size_t>(a.shape[0]);
      for (std::int64_t row = 0; row < a.shape[0]; ++row) {
        const std::byte* from = b->data.data() + static_cast<std::size_t>(b->source_row(row)) * row_bytes;
        ASSERT_EQ(std::memcmp(a.data.data() + static_cast<std::size_t>(row) * row_bytes, from, row_bytes), 0)
            << a.name << " row " << row;
      }
      has_permuted = has_permuted || b->permuted_rows();
      EXPECT_EQ(b->file->data() + b->offset, b->data.data());
    }
    EXPECT_EQ(has_permuted, std::string_view(name).starts_with("llama"));
    // GGUF alone has the divisors of the rotation frequencies.
    for (const CheckpointTensor& tensor : gguf->tensors())
      EXPECT_TRUE(names.contains(tensor.name) || tensor.name == "rope_freqs.weight") << tensor.name;
    EXPECT_EQ(gguf->find("rope_freqs.weight") != nullptr, std::string_view(name) == "llama");
  }
}

TEST(Checkpoint, RowMapIsAPermutationWithinEachHead) {
  CheckpointTensor tensor;
  tensor.permuted_head_dim = 8;
  std::set<std::int64_t> seen;
  for (std::int64_t i = 0; i < 24; ++i) {
    const std::int64_t source = tensor.source_row(i);
    EXPECT_EQ(source / 8, i / 8);
    seen.insert(source);
  }
  EXPECT_EQ(seen.size(), 24u);
  EXPECT_EQ(tensor.source_row(8), 8);
  EXPECT_EQ(tensor.source_row(9), 10);
  EXPECT_EQ(tensor.source_row(12), 9);
}

TEST(Checkpoint, GivesTheTokenizersSources) {
  const auto folder = test_data("tiny/qwen2");
  const auto gguf = Checkpoint::open(folder / "model.gguf");
  const auto hf = Checkpoint::open(folder / "model.safetensors");
  ASSERT_TRUE(gguf && hf);
  const auto a = gguf->tokenizer_source();
  ASSERT_TRUE(a) << a.error().message;
  EXPECT_EQ(a->kind, TokenizerSource::Kind::kGguf);
  EXPECT_EQ(a->model, "gpt2");
  EXPECT_EQ(a->pre, "qwen2");
  EXPECT_EQ(a->tokens.size(), 321u);
  EXPECT_EQ(a->token_types.size(), 321u);
  EXPECT_EQ(a->merges.size(), 56u);
  EXPECT_EQ(a->eos_id, 314);
  EXPECT_FALSE(a->chat_template.empty());
  const auto b = hf->tokenizer_source();
  ASSERT_TRUE(b);
  EXPECT_EQ(b->kind, TokenizerSource::Kind::kJson);
  EXPECT_EQ(b->tokenizer_json, read_file(folder / "tokenizer.json"));
  EXPECT_EQ(b->tokenizer_config_json, read_file(folder / "tokenizer_config.json"));
  EXPECT_EQ(b->chat_template, a->chat_template);
}

TEST(Checkpoint, ViewsSurviveAMove) {
  auto opened = Checkpoint::open(test_data("tiny/llama/model.gguf"));
  ASSERT_TRUE(opened);
  const auto source = opened->tokenizer_source();
  const CheckpointTensor* tensor = opened->find("model.norm.weight");
  const Checkpoint moved = std::move(*opened);
  EXPECT_EQ(moved.find("model.norm.weight"), tensor);
  EXPECT_EQ(tensor->file->size(), moved.file_bytes());
  EXPECT_EQ(source->tokens[0].data(), moved.tokenizer_source()->tokens[0].data());
}

TEST(Checkpoint, OpensARealHeaderForAPlan) {
  const auto path = test_data("files/r1-distill-qwen-7b-q4_k_m-header.gguf");
  EXPECT_FALSE(Checkpoint::open(path));
  const auto model = Checkpoint::open(path, {.allow_missing_data = true});
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_FALSE(model->has_all_data());
  EXPECT_EQ(model->architecture(), "qwen2");
  EXPECT_EQ(number(model->config(), "num_hidden_layers"), 28);
  EXPECT_EQ(number(model->config(), "vocab_size"), 152064);
  EXPECT_EQ(number(model->config(), "rms_norm_eps"), 1e-6);
  EXPECT_EQ(number(model->config(), "max_position_embeddings"), 131072);
  EXPECT_EQ(model->config().at("tie_word_embeddings"), false);
  EXPECT_EQ(number(model->generation_config(), "eos_token_id"), 151643);
  const CheckpointTensor* q = model->find("model.layers.27.self_attn.q_proj.weight");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q->shape, (Shape{3584, 3584}));
  EXPECT_TRUE(q->data.empty());
  EXPECT_EQ(q->n_bytes, 3584 * 3584 / 256 * 144);
  EXPECT_FALSE(q->permuted_rows());
  // The fixture's vocabulary is cut, its ids are not: found, not believed.
  const auto tokenizer = model->tokenizer_source();
  ASSERT_FALSE(tokenizer);
  EXPECT_THAT(tokenizer.error().message, HasSubstr("bos_token_id is 151646, but there are 64 tokens"));
}

TEST(Checkpoint, OpensFoldersOfEveryKind) {
  const TemporaryFolder folder;
  const auto tiny = test_data("tiny/qwen2_tied");
  const auto copy = [&](const char* name, const std::string& to) {
    std::filesystem::copy_file(tiny / name, folder / to, std::filesystem::copy_options::overwrite_existing);
  };
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("no model in this folder"));
  EXPECT_EQ(Checkpoint::open(folder / "absent").error().code, Code::kNotFound);
  copy("model.gguf", "a.gguf");
  EXPECT_EQ(Checkpoint::open(folder.path()).value().format(), Checkpoint::Format::kGguf);
  copy("model.gguf", "b.gguf");
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("2 GGUF models in this folder"));
  std::filesystem::remove(folder / "a.gguf");
  std::filesystem::remove(folder / "b.gguf");

  copy("config.json", "config.json");
  EXPECT_FALSE(Checkpoint::open(folder.path()));
  const auto planned = Checkpoint::open(folder.path(), {.allow_missing_data = true});
  ASSERT_TRUE(planned) << planned.error().message;
  EXPECT_FALSE(planned->has_all_data());
  copy("model.safetensors", "model.safetensors");
  const auto plain = Checkpoint::open(folder.path());
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_TRUE(plain->has_all_data());
  EXPECT_EQ(plain->tokenizer_source()->kind, TokenizerSource::Kind::kNone);
  write_file(folder / "chat_template.jinja", "{{ jinja }}");
  EXPECT_EQ(Checkpoint::open(folder.path())->tokenizer_source()->chat_template, "{{ jinja }}");
}

TEST(Checkpoint, OpensShardsThroughTheirIndex) {
  const TemporaryFolder folder;
  write_file(folder / "config.json", R"({"model_type":"llama"})");
  const auto shard = [&](const std::string& file, const char* tensor_name) {
    SafetensorsTensor tensor;
    tensor.name = tensor_name;
    tensor.dtype = DType::kU8;
    tensor.shape = {1};
    auto writer = SafetensorsWriter::create(folder / file, {}, {tensor});
    ASSERT_TRUE(writer);
    ASSERT_TRUE(writer->write(0, 0, as_bytes_of("x")));
    ASSERT_TRUE(writer->finish());
  };
  shard("one.safetensors", "a");
  shard("two.safetensors", "b");
  const auto index = [&](const char* text) { write_file(folder / "model.safetensors.index.json", text); };
  index(R"({"weight_map":{"b":"two.safetensors","a":"one.safetensors"}})");
  const auto model = Checkpoint::open(folder.path());
  ASSERT_TRUE(model) << model.error().message;
  ASSERT_EQ(model->tensors().size(), 2u);
  EXPECT_EQ(model->tensors()[0].name, "b");
  EXPECT_EQ(model->config().at("tie_word_embeddings"), true);  // no lm_head
  index(R"({"weight_map":{"b":"two.safetensors","c":"one.safetensors"}})");
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("tensor c is not in one.safetensors"));
  index(R"({"weight_map":{"b":"three.safetensors"}})");
  EXPECT_EQ(Checkpoint::open(folder.path()).error().code, Code::kNotFound);
  index(R"({"weight_map":{"a":"../one.safetensors"}})");
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("not a plain file name"));
  shard("two.safetensors", "a");
  index(R"({"weight_map":{"b":"two.safetensors","a":"one.safetensors"}})");
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("tensor a appears twice"));
}

// Writes the file and opens it with data missing.
Result<Checkpoint> open_raw(const TemporaryFolder& folder, const RawGguf& raw) {
  write_file(folder / "m.gguf", raw.bytes());
  return Checkpoint::open(folder / "m.gguf", {.allow_missing_data = true});
}

RawGguf deepseek_v3() {
  RawGguf raw;
  raw.text("general.architecture", "deepseek2");
  const auto key = [](const char* name) { return "deepseek2." + std::string(name); };
  raw.u32(key("block_count"), 61).u32(key("embedding_length"), 7168).u32(key("attention.head_count"), 128);
  raw.u32(key("feed_forward_length"), 18432).u32(key("context_length"), 163840).u32(key("vocab_size"), 129280);
  raw.u32(key("leading_dense_block_count"), 3).u32(key("attention.q_lora_rank"), 1536);
  raw.u32(key("attention.kv_lora_rank"), 512).u32(key("rope.dimension_count"), 64);
  raw.f32(key("attention.layer_norm_rms_epsilon"), 1e-6f).f32(key("rope.freq_base"), 10000.0f);
  raw.u32(key("expert_count"), 256).u32(key("expert_used_count"), 8).u32(key("expert_shared_count"), 1);
  raw.u32(key("expert_feed_forward_length"), 2048).f32(key("expert_weights_scale"), 2.5f);
  raw.boolean(key("expert_weights_norm"), true);
  raw.text(key("rope.scaling.type"), "yarn").f32(key("rope.scaling.factor"), 40.0f);
  raw.u32(key("rope.scaling.original_context_length"), 4096).f32(key("rope.scaling.yarn_log_multiplier"), 0.1f);
  return raw;
}

void expect_deepseek_v3(const JsonObject& config) {
  const std::pair<const char*, double> wanted[] = {{"num_hidden_layers", 61},
                                                   {"hidden_size", 7168},
                                                   {"intermediate_size", 18432},
                                                   {"num_attention_heads", 128},
                                                   {"num_key_value_heads", 128},
                                                   {"q_lora_rank", 1536},
                                                   {"kv_lora_rank", 512},
                                                   {"qk_nope_head_dim", 128},
                                                   {"qk_rope_head_dim", 64},
                                                   {"v_head_dim", 128},
                                                   {"n_routed_experts", 256},
                                                   {"num_experts_per_tok", 8},
                                                   {"n_shared_experts", 1},
                                                   {"moe_intermediate_size", 2048},
                                                   {"first_k_dense_replace", 3},
                                                   {"n_group", 8},
                                                   {"topk_group", 4},
                                                   {"routed_scaling_factor", 2.5},
                                                   {"vocab_size", 129280},
                                                   {"rms_norm_eps", 1e-6},
                                                   {"rope_theta", 10000},
                                                   {"max_position_embeddings", 163840}};
  for (const auto& [key, value] : wanted) EXPECT_EQ(number(config, key), value) << key;
  EXPECT_EQ(config.at("model_type").as_string(), "deepseek_v3");
  EXPECT_EQ(config.at("scoring_func").as_string(), "sigmoid");
  EXPECT_EQ(config.at("topk_method").as_string(), "noaux_tc");
  EXPECT_EQ(config.at("norm_topk_prob"), true);
  const JsonObject& rope = config.at("rope_scaling").as_object();
  EXPECT_EQ(rope.at("type").as_string(), "yarn");
  EXPECT_EQ(number(rope, "factor"), 40);
  EXPECT_EQ(number(rope, "original_max_position_embeddings"), 4096);
  EXPECT_EQ(number(rope, "mscale"), 1.0);
  EXPECT_EQ(number(rope, "mscale_all_dim"), 1.0);
  EXPECT_EQ(number(rope, "beta_fast"), 32);
  EXPECT_FALSE(config.contains("head_dim"));
}

TEST(Checkpoint, ReadsDeepseekV3OfEveryGeneration) {
  const TemporaryFolder folder;
  // Compressed keys, router's keys.
  RawGguf newest = deepseek_v3();
  newest.u32("deepseek2.attention.head_count_kv", 1).u32("deepseek2.attention.key_length", 576);
  newest.u32("deepseek2.attention.value_length", 512).u32("deepseek2.attention.key_length_mla", 192);
  newest.u32("deepseek2.attention.value_length_mla", 128).u32("deepseek2.expert_gating_func", 2);
  newest.u32("deepseek2.expert_group_count", 8).u32("deepseek2.expert_group_used_count", 4);
  newest.tensor("blk.3.exp_probs_b.bias", {256}, 0, 0);
  // Plain key lengths, no router's keys.
  RawGguf oldest = deepseek_v3();
  oldest.u32("deepseek2.attention.head_count_kv", 128).u32("deepseek2.attention.key_length", 192);
  oldest.u32("deepseek2.attention.value_length", 128);
  oldest.tensor("blk.3.exp_probs_b.bias", {256}, 0, 0);
  for (const RawGguf& raw : {newest, oldest}) {
    const auto model = open_raw(folder, raw);
    ASSERT_TRUE(model) << model.error().message;
    expect_deepseek_v3(model->config());
    EXPECT_NE(model->find("model.layers.3.mlp.gate.e_score_correction_bias"), nullptr);
  }
  // With the prediction layer kept.
  RawGguf nextn = newest;
  const auto block_count = nextn.entries.find("deepseek2.block_count") + 21 + 4;
  nextn.entries[block_count] = 62;
  nextn.u32("deepseek2.nextn_predict_layers", 1);
  const auto model = open_raw(folder, nextn);
  ASSERT_TRUE(model) << model.error().message;
  expect_deepseek_v3(model->config());
  EXPECT_EQ(number(model->config(), "num_nextn_predict_layers"), 1);
}

TEST(Checkpoint, ReadsDeepseekV2Lite) {
  const TemporaryFolder folder;
  RawGguf raw;
  raw.text("general.architecture", "deepseek2");
  const auto key = [](const char* name) { return "deepseek2." + std::string(name); };
  raw.u32(key("block_count"), 27).u32(key("embedding_length"), 2048).u32(key("attention.head_count"), 16);
  raw.u32(key("attention.kv_lora_rank"), 512).u32(key("rope.dimension_count"), 64);
  raw.u32(key("attention.key_length"), 192).u32(key("attention.value_length"), 128);
  raw.u32(key("expert_count"), 64).u32(key("expert_used_count"), 6).u32(key("expert_shared_count"), 2);
  raw.text(key("rope.scaling.type"), "yarn").f32(key("rope.scaling.factor"), 40.0f);
  raw.f32(key("rope.scaling.yarn_log_multiplier"), 0.0707f);
  const auto model = open_raw(folder, raw);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->architecture(), "deepseek_v2");
  EXPECT_TRUE(model->config().at("q_lora_rank").is_null());
  EXPECT_EQ(model->config().at("topk_method").as_string(), "greedy");
  EXPECT_EQ(model->config().at("scoring_func").as_string(), "softmax");
  EXPECT_EQ(number(model->config(), "n_group"), 1);
  EXPECT_EQ(number(model->config(), "routed_scaling_factor"), 1.0);
  EXPECT_EQ(model->config().at("norm_topk_prob"), false);
  EXPECT_EQ(number(model->config().at("rope_scaling").as_object(), "mscale_all_dim"), 0.707);
}

TEST(Checkpoint, RefusesMetadataThatMakesNoModel) {
  const TemporaryFolder folder;
  const auto message = [&](const RawGguf& raw) {
    const auto model = open_raw(folder, raw);
    EXPECT_FALSE(model);
    if (model) return std::string();
    expect_sentence(model.error());
    return model.error().message;
  };
  EXPECT_THAT(message(RawGguf()), HasSubstr("no general.architecture"));
  RawGguf no_layers;
  EXPECT_THAT(message(no_layers.text("general.architecture", "llama")), HasSubstr("no llama.block_count"));
  RawGguf wrong = minimal_model("llama");
  EXPECT_THAT(message(wrong.text("llama.context_length", "long")), HasSubstr("llama.context_length is of type string"));
  RawGguf rope = minimal_model("llama");
  EXPECT_THAT(message(rope.text("llama.rope.freq_base", "x")), HasSubstr("llama.rope.freq_base"));
  RawGguf odd = minimal_model("llama");
  EXPECT_THAT(message(odd.tensor("blk.0.attn_q.weight", {8, 6}, 0, 0)), HasSubstr("do not make 2 heads of even width"));
  RawGguf nextn = minimal_model("deepseek2");
  EXPECT_THAT(message(nextn.u32("deepseek2.nextn_predict_layers", 2)), HasSubstr("more than the 1 blocks"));
  RawGguf twice = minimal_model("deepseek2");
  twice.tensor("blk.0.exp_probs_b.bias", {4}, 0, 0).tensor("blk.0.exp_probs_b", {4}, 0, 32);
  EXPECT_THAT(message(twice), HasSubstr("appears twice"));
}

TEST(Checkpoint, RefusesTokenizersThatContradictThemselves) {
  const TemporaryFolder folder;
  const auto message = [&](const RawGguf& raw) {
    const auto model = open_raw(folder, raw);
    EXPECT_TRUE(model) << model.error().message;
    if (!model) return std::string();
    const auto source = model->tokenizer_source();
    EXPECT_FALSE(source);
    return source ? std::string() : source.error().message;
  };
  const auto base = [] { return minimal_model("llama").strings("tokenizer.ggml.tokens", {"a", "b"}); };
  std::string three_types;
  append(three_types, std::uint32_t{5});
  append(three_types, std::uint64_t{3});
  three_types.append(12, '\0');
  EXPECT_THAT(message(base().entry("tokenizer.ggml.token_type", 9, three_types)),
              HasSubstr("3 i32 entries for 2 tokens"));
  EXPECT_THAT(message(base().entry("tokenizer.ggml.merges", 9, three_types)),
              HasSubstr("merges is not an array of strings"));
  EXPECT_THAT(message(base().u32("tokenizer.ggml.eos_token_id", 2)), HasSubstr("eos_token_id is 2"));
  EXPECT_THAT(message(base().text("tokenizer.ggml.eos_token_id", "b")), HasSubstr("eos_token_id is no number"));
  EXPECT_THAT(message(minimal_model("llama").entry("tokenizer.ggml.tokens", 9, three_types)), HasSubstr("tokens"));
  EXPECT_THAT(message(minimal_model("llama").strings("tokenizer.ggml.tokens", {})), HasSubstr("has 0 entries"));
  // "None" in some converters' words.
  const auto none = open_raw(folder, base().u32("tokenizer.ggml.padding_token_id", 0xffffffff));
  ASSERT_TRUE(none);
  EXPECT_EQ(none->tokenizer_source()->padding_id, std::nullopt);
}

TEST(Checkpoint, ReadsRealModels) {
  const char* models = std::getenv("STILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS names no folder of real models";
  const auto path = std::filesystem::path(models) / "smollm2.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const auto model = Checkpoint::open(path);
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(number(model->config(), "head_dim"), 64);
  EXPECT_EQ(number(model->config(), "rms_norm_eps"), 1e-5);
  EXPECT_EQ(model->config().at("tie_word_embeddings"), true);
  EXPECT_EQ(model->find("model.layers.0.self_attn.k_proj.weight")->permuted_head_dim, 64);
  const auto source = model->tokenizer_source();
  ASSERT_TRUE(source);
  EXPECT_EQ(source->tokens.size(), 49152u);
  EXPECT_EQ(source->merges[0], "\xc4\xa0 t");
}

}  // namespace
}  // namespace still
