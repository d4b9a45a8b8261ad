// A model of 400 GB that is far away is planned from its header: a few megabytes travel.
#include <gtest/gtest.h>

#include "cli/plan_options.h"
#include "hub/remote_header.h"
#include "hub/test_server.h"
#include "hub/test_zip.h"

namespace still {
namespace {

using test::little;

std::string gguf_string(const std::string& text) {
  return little(text.size(), 8) + text;
}

// A GGUF header of DeepSeek-R1's shape, all matrices Q4_K: 61 layers, 129,280 words, and no data.
class HeaderWriter {
 public:
  HeaderWriter() {
    text("general.architecture", "deepseek2");
    const std::pair<const char*, std::uint64_t> sizes[] = {{"block_count", 61},
                                                           {"embedding_length", 7168},
                                                           {"feed_forward_length", 18432},
                                                           {"context_length", 163840},
                                                           {"vocab_size", 129280},
                                                           {"attention.head_count", 128},
                                                           {"attention.head_count_kv", 1},
                                                           {"attention.q_lora_rank", 1536},
                                                           {"attention.kv_lora_rank", 512},
                                                           {"attention.key_length", 576},
                                                           {"attention.value_length", 512},
                                                           {"attention.key_length_mla", 192},
                                                           {"attention.value_length_mla", 128},
                                                           {"rope.dimension_count", 64},
                                                           {"leading_dense_block_count", 3},
                                                           {"expert_count", 256},
                                                           {"expert_used_count", 8},
                                                           {"expert_shared_count", 1},
                                                           {"expert_feed_forward_length", 2048},
                                                           {"expert_gating_func", 2},
                                                           {"expert_group_count", 8},
                                                           {"expert_group_used_count", 4}};
    for (const auto& [key, value] : sizes) {
      entries_ += gguf_string(std::string("deepseek2.") + key) + little(4, 4) + little(value, 4);
      ++n_entries_;
    }
    real("attention.layer_norm_rms_epsilon", 1e-6f);
    real("rope.freq_base", 10000);
    real("expert_weights_scale", 2.5f);
    entries_ += gguf_string("tokenizer.ggml.tokens") + little(9, 4) + little(8, 4) + little(129280, 8);
    for (int i = 0; i < 129280; ++i) entries_ += gguf_string("token " + std::to_string(i));
    ++n_entries_;
    matrix("token_embd.weight", {7168, 129280});
    matrix("output.weight", {7168, 129280});
    vector("output_norm.weight", 7168);
    for (int layer = 0; layer < 61; ++layer) {
      const std::string blk = "blk." + std::to_string(layer) + ".";
      vector(blk + "attn_norm.weight", 7168);
      vector(blk + "ffn_norm.weight", 7168);
      vector(blk + "attn_q_a_norm.weight", 1536);
      vector(blk + "attn_kv_a_norm.weight", 512);
      matrix(blk + "attn_q_a.weight", {7168, 1536});
      matrix(blk + "attn_q_b.weight", {1536, 24576});
      matrix(blk + "attn_kv_a_mqa.weight", {7168, 576});
      matrix(blk + "attn_kv_b.weight", {512, 32768});
      matrix(blk + "attn_output.weight", {16384, 7168});
      if (layer < 3) {
        matrix(blk + "ffn_gate.weight", {7168, 18432});
        matrix(blk + "ffn_up.weight", {7168, 18432});
        matrix(blk + "ffn_down.weight", {18432, 7168});
        continue;
      }
      tensor(blk + "ffn_gate_inp.weight", {7168, 256}, 0);
      vector(blk + "exp_probs_b.bias", 256);
      matrix(blk + "ffn_gate_exps.weight", {7168, 2048, 256});
      matrix(blk + "ffn_up_exps.weight", {7168, 2048, 256});
      matrix(blk + "ffn_down_exps.weight", {2048, 7168, 256});
      matrix(blk + "ffn_gate_shexp.weight", {7168, 2048});
      matrix(blk + "ffn_up_shexp.weight", {7168, 2048});
      matrix(blk + "ffn_down_shexp.weight", {2048, 7168});
    }
  }
  std::int64_t data_bytes() const { return data_bytes_; }
  std::string bytes() const {
    std::string out = "GGUF" + little(3, 4) + little(n_tensors_, 8) + little(n_entries_, 8) + entries_ + tensors_;
    while (out.size() % 32 != 0) out += '\0';
    return out;
  }

 private:
  void text(const std::string& key, const std::string& value) {
    entries_ += gguf_string(key) + little(8, 4) + gguf_string(value);
    ++n_entries_;
  }
  void real(const std::string& key, float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    entries_ += gguf_string("deepseek2." + key) + little(6, 4) + little(bits, 4);
    ++n_entries_;
  }
  void tensor(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint64_t type) {
    tensors_ += gguf_string(name) + little(shape.size(), 4);
    std::int64_t n = 1;
    for (const std::uint64_t size : shape) {
      tensors_ += little(size, 8);
      n *= static_cast<std::int64_t>(size);
    }
    tensors_ += little(type, 4) + little(static_cast<std::uint64_t>(data_bytes_), 8);
    data_bytes_ += (type == 0 ? 4 * n : n / 256 * 144) + 31;
    data_bytes_ -= data_bytes_ % 32;
    ++n_tensors_;
  }
  void matrix(const std::string& name, const std::vector<std::uint64_t>& shape) { tensor(name, shape, 12); }
  void vector(const std::string& name, std::uint64_t size) { tensor(name, {size}, 0); }

  std::string entries_, tensors_;
  std::uint64_t n_entries_ = 0, n_tensors_ = 0;
  std::int64_t data_bytes_ = 0;
};

// Serves ranges of a file of `size` bytes that begins with `header`.
test::Reply serve(const test::Request& request, const std::string& header, std::int64_t size) {
  const std::string range = request.header("range");
  if (!range.starts_with("bytes=")) return {.status = 400};
  const auto dash = range.find('-');
  const std::int64_t begin = std::stoll(range.substr(6, dash - 6));
  const std::int64_t end = std::min<std::int64_t>(size, std::stoll(range.substr(dash + 1)) + 1);
  if (end - begin > 64 << 20) return {.status = 400};
  test::Reply reply{.status = 206, .headers = {{"ETag", "\"v1\""}, {"Accept-Ranges", "bytes"}}};
  reply.headers.emplace_back(
      "Content-Range", "bytes " + std::to_string(begin) + "-" + std::to_string(end - 1) + "/" + std::to_string(size));
  reply.body.assign(static_cast<std::size_t>(end - begin), '\0');
  const auto n_header = static_cast<std::int64_t>(header.size());
  if (begin < n_header)
    reply.body.replace(0, static_cast<std::size_t>(std::min(end, n_header) - begin),
                       header.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
  return reply;
}

TEST(PlanOfARemoteModel, ReadsAFewMegabytesOf400Gigabytes) {
  const HeaderWriter writer;
  const std::string header = writer.bytes();
  const std::int64_t size = static_cast<std::int64_t>(header.size()) + writer.data_bytes();
  ASSERT_GT(size, 370'000'000'000);
  test::TestServer server([&](const test::Request& r) { return serve(r, header, size); });
  Context context{.out = Terminal(stdout, true), .err = Terminal(stderr, true)};
  PlanWorld world;
  world.data = *ClaimWorld::read();
  std::string quant;
  const auto shape = find_plan_shape(context, world, server.url("/r1.gguf"), quant);
  ASSERT_TRUE(shape) << shape.error().message;
  EXPECT_EQ(shape->n_params(), find_known_shape(world.data.models, "r1")->n_params());
  EXPECT_NEAR(static_cast<double>(weight_file_bytes(*find_quantisation("own"), *shape)),
              static_cast<double>(writer.data_bytes()), 1e6);
  EXPECT_LT(server.sent_bytes(), 12 << 20);
  std::printf("%.1f GB planned from %.2f MB in %zu requests; the header has %.2f MB\n",
              static_cast<double>(size) * 1e-9, static_cast<double>(server.sent_bytes()) * 1e-6, server.n_requests(),
              static_cast<double>(header.size()) * 1e-6);
}

TEST(PlanOfARemoteModel, UnreachableOrLyingSourcesAreSentences) {
  Context context{.out = Terminal(stdout, true), .err = Terminal(stderr, true)};
  context.environment.hub.n_retries = 0;
  PlanWorld world;
  world.data = *ClaimWorld::read();
  std::string quant;
  EXPECT_FALSE(find_plan_shape(context, world, "http://127.0.0.1:9/m.gguf", quant));
  // Half of the layers are not there: the tensors do not add up to the hyperparameters.
  std::string header = HeaderWriter().bytes();
  const auto at = header.find("deepseek2.block_count") + 21 + 4;
  header.replace(at, 4, little(122, 4));
  test::TestServer server([&](const test::Request& r) { return serve(r, header, 400'000'000'000); });
  const auto lying = find_plan_shape(context, world, server.url("/r1.gguf"), quant);
  ASSERT_FALSE(lying);
  EXPECT_NE(lying.error().message.find("hyperparameters"), std::string::npos) << lying.error().message;
}

}  // namespace
}  // namespace still
