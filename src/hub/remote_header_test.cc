// Headers of remote models: only their bytes may travel.
#include "hub/remote_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "files/gguf.h"
#include "hub/file_io.h"
#include "hub/test_server.h"
#include "hub/test_zip.h"

namespace still {
namespace {

using test::little;
using test::Reply;
using test::reply_with;
using test::Request;
using test::TempFolder;
using test::TestServer;
using testing::HasSubstr;

std::string gguf_string(const std::string& text) {
  return little(text.size(), 8) + text;
}

// GGUF v3 with a long array of strings and one tensor [n_weights] f32 after it.
std::string make_gguf(int n_strings, std::uint64_t n_weights) {
  std::string out = "GGUF" + little(3, 4) + little(1, 8) + little(2, 8);
  out += gguf_string("general.architecture") + little(8, 4) + gguf_string("llama");
  out += gguf_string("tokenizer.ggml.tokens") + little(9, 4) + little(8, 4) +
         little(static_cast<std::uint64_t>(n_strings), 8);
  for (int i = 0; i < n_strings; ++i) out += gguf_string("token" + std::to_string(i));
  out += gguf_string("output_norm.weight") + little(1, 4) + little(n_weights, 8) + little(0, 4) + little(0, 8);
  while (out.size() % 32 != 0) out += '\0';
  return out;
}

TEST(RemoteHeader, FetchesOnlyTheHeader) {
  const std::string header = make_gguf(150'000, 2'500'000);
  ASSERT_GT(header.size(), 2u << 20);
  const std::string body = header + std::string(10'000'000, '\7');
  TestServer server([&](const Request& r) { return reply_with(r, body); });
  const auto model = read_remote_model(server.url("/m.gguf"), HubOptions(), CancelToken());
  ASSERT_TRUE(model) << model.error().message;
  ASSERT_EQ(model->files.size(), 1u);
  EXPECT_TRUE(model->files[0].header == header);
  EXPECT_EQ(model->files[0].file.size, static_cast<std::int64_t>(body.size()));
  EXPECT_LT(server.sent_bytes(), static_cast<std::int64_t>(3 * header.size()));
  const TempFolder folder;
  const auto path = save_headers(*model, folder / "h");
  ASSERT_TRUE(path);
  const auto file = GgufFile::open(*path, {.allow_missing_data = true});
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->header().architecture(), "llama");
}

TEST(RemoteHeader, ReadsLocalFilesAndFolders) {
  const TempFolder folder;
  const std::string header = make_gguf(3, 8);
  std::ofstream(folder / "m.gguf", std::ios::binary) << header << std::string(32, '\1');
  const auto model = read_remote_model("file:" + (folder / "m.gguf").string(), HubOptions(), CancelToken());
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->files[0].header, header);
  const std::string json = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  std::filesystem::create_directory(folder / "st");
  std::ofstream(folder / "st/model.safetensors", std::ios::binary) << little(json.size(), 8) << json << "12345678";
  std::ofstream(folder / "st/config.json") << "{}";
  const auto st = read_remote_model("file:" + (folder / "st").string(), HubOptions(), CancelToken());
  ASSERT_TRUE(st) << st.error().message;
  ASSERT_EQ(st->files.size(), 2u);
  for (const RemoteFile& file : st->files) {
    EXPECT_EQ(file.header, file.file.name == "config.json" ? "{}" : little(json.size(), 8) + json);
  }
}

TEST(RemoteHeader, EndlessRedirectsNameTheAddress) {
  TestServer server([&](const Request&) { return Reply{.status = 302, .headers = {{"Location", "/round.gguf"}}}; });
  const auto model = read_remote_model(server.url("/round.gguf"), HubOptions(), CancelToken());
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, Code::kUnavailable);
  EXPECT_THAT(model.error().message,
              HasSubstr("redirects more than 10 times, expected a file: check the address http"));
}

TEST(RemoteHeader, BadAnswersAreSentences) {
  const std::string header = make_gguf(100, 8);
  TestServer server([&](const Request& r) -> Reply {
    if (r.path == "/ignores.gguf") return Reply{.body = header};
    if (r.path == "/html.gguf") return reply_with(r, "<html>not a model</html>");
    if (r.path == "/cut.gguf") return reply_with(r, header.substr(0, 500));
    std::string lying = header;
    lying.replace(24, 8, little(~0ull, 8));  // the length of the first key
    return reply_with(r, lying);
  });
  const auto message = [&](const std::string& path) {
    const auto model = read_remote_model(server.url(path), HubOptions(), CancelToken());
    return model ? std::string("no error") : model.error().message;
  };
  EXPECT_THAT(message("/ignores.gguf"), HasSubstr("does not serve parts"));
  EXPECT_THAT(message("/html.gguf"), HasSubstr("neither GGUF nor safetensors"));
  EXPECT_THAT(message("/cut.gguf"), HasSubstr("cut.gguf"));
  EXPECT_NE(message("/lying.gguf"), "no error");
  EXPECT_EQ(read_remote_model("pip:x==1", HubOptions(), CancelToken()).error().code, Code::kUnsupported);
}

}  // namespace
}  // namespace still
