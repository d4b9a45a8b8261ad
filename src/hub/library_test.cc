// Ollama's store read in place, and both stores as one library.
#include "hub/library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "hub/sha256.h"
#include "hub/test_server.h"

namespace still {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class LibraryTest : public testing::Test {
 protected:
  struct Layer {
    std::string type, bytes;
  };

  // Writes a blob as Ollama does and returns the manifest's entry for it.
  JsonObject add_blob(const std::string& media, const std::string& bytes) {
    const std::string sha = sha256_hex(bytes);
    fs::create_directories(root_ / "blobs");
    std::ofstream(root_ / "blobs" / ("sha256-" + sha), std::ios::binary) << bytes;
    return {{"mediaType", media}, {"digest", "sha256:" + sha}, {"size", static_cast<std::int64_t>(bytes.size())}};
  }
  fs::path write_manifest(const std::string& where, const std::string& text) {
    const fs::path path = root_ / "manifests" / where;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string add(const std::string& where, const std::vector<Layer>& layers) {
    JsonArray entries;
    for (const Layer& layer : layers)
      entries.push_back(add_blob("application/vnd.ollama.image." + layer.type, layer.bytes));
    const std::string text =
        to_json(JsonObject{{"schemaVersion", 2},
                           {"mediaType", "application/vnd.docker.distribution.manifest.v2+json"},
                           {"config", add_blob("application/vnd.docker.container.image.v1+json",
                                               R"({"model_format":"gguf","model_family":"qwen2"})")},
                           {"layers", entries}});
    write_manifest(where, text);
    return sha256_hex(text);
  }
  Library open() {
    auto library = Library::open({.store = folder_ / "own", .ollama = root_});
    EXPECT_TRUE(library) << library.error().message;
    return std::move(*library);
  }
  static std::vector<std::string> names(const LibraryListing& listing) {
    std::vector<std::string> out;
    for (const LibraryModel& model : listing.models) out.push_back(model.name);
    return out;
  }

  TempFolder folder_;
  fs::path root_ = folder_ / "ollama";
};

const std::string kUsual = "registry.ollama.ai/library/";

TEST(OllamaName, ParsesWithItsDefaults) {
  EXPECT_EQ(OllamaName::parse("qwen2.5")->str(), "qwen2.5:latest");
  EXPECT_EQ(OllamaName::parse("me/m:1")->str(), "me/m:1");
  EXPECT_EQ(OllamaName::parse("library/m:1")->str(), "m:1");
  EXPECT_EQ(OllamaName::parse("hf.co/Owner/Repo-GGUF:Q4_K_M")->str(), "hf.co/Owner/Repo-GGUF:Q4_K_M");
  EXPECT_EQ(OllamaName::parse("localhost:5000/a/b")->host, "localhost:5000");
  EXPECT_EQ(OllamaName::parse("https://hf.co/a/b")->host, "hf.co");
  EXPECT_TRUE(is_same_name(*OllamaName::parse("Qwen2.5:7B"), *OllamaName::parse("qwen2.5:7b")));
  for (const char* bad : {"", ":", "a:", "/a", "a//b", "a/b/c/d", "../x", "a/..", "a b", "a:b:c/d:e/", "a\n"})
    EXPECT_FALSE(OllamaName::parse(bad)) << bad;
}

TEST_F(LibraryTest, ReadsEveryLayer) {
  const std::string digest = add(kUsual + "qwen/7B", {{"model", "GGUF bytes"},
                                                      {"template", "{{ .Prompt }}"},
                                                      {"system", "Be brief."},
                                                      {"params", R"({"temperature":0.6,"stop":["<|im_end|>"]})"},
                                                      {"license", "MIT\nmore"},
                                                      {"license", "second"},
                                                      {"messages", R"([{"role":"user","content":"hi"}])"}});
  const Library library = open();
  const auto model = library.find("Qwen:7b");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(model->name, "qwen:7B");
  EXPECT_EQ(model->origin, ModelOrigin::kOllama);
  EXPECT_EQ(model->digest, digest);
  EXPECT_EQ(model->path, root_ / "blobs" / ("sha256-" + sha256_hex("GGUF bytes")));
  ASSERT_EQ(model->files.size(), 1U);
  EXPECT_EQ(model->files[0].sha256, sha256_hex("GGUF bytes"));
  EXPECT_EQ(model->files[0].size, 10);
  EXPECT_EQ(model->template_text, "{{ .Prompt }}");
  EXPECT_EQ(model->template_language, kTemplateGo);
  EXPECT_EQ(model->system, "Be brief.");
  EXPECT_EQ(model->parameters.at("temperature").as_double(), 0.6);
  EXPECT_EQ(to_json(model->parameters.at("stop")), R"(["<|im_end|>"])");
  EXPECT_THAT(model->licences, ElementsAre("MIT\nmore", "second"));
  EXPECT_EQ(to_json(model->messages), R"([{"role":"user","content":"hi"}])");
  EXPECT_EQ(model->config.at("model_family"), "qwen2");
  const auto resolved = model->resolved();
  ASSERT_TRUE(resolved);
  EXPECT_TRUE(resolved->is_stored);
  EXPECT_EQ(resolved->manifest.template_language, kTemplateGo);
  EXPECT_EQ(resolved->manifest.licence, "MIT");
  EXPECT_EQ(resolved->manifest.created.size(), 20U);
}

TEST_F(LibraryTest, ListsOtherHostsAndNamespaces) {
  add(kUsual + "m/latest", {{"model", "a"}});
  add("registry.ollama.ai/me/m/latest", {{"model", "a"}});
  add("hf.co/Owner/Repo-GGUF/Q4_K_M", {{"model", "b"}});
  const Library library = open();
  EXPECT_THAT(names(library.list()), ElementsAre("hf.co/Owner/Repo-GGUF:Q4_K_M", "m:latest", "me/m:latest"));
  EXPECT_TRUE(library.find("m"));
  EXPECT_TRUE(library.find("library/m"));
  EXPECT_TRUE(library.find("ME/M"));
  EXPECT_TRUE(library.find("hf.co/owner/repo-gguf:q4_k_m"));
  EXPECT_EQ(library.find("hf.co/owner/other").error().code, Code::kNotFound);
}

TEST_F(LibraryTest, DamagedManifestsAreProblemsNotFailures) {
  add(kUsual + "good/1", {{"model", "a"}});
  write_manifest(kUsual + "bad/json", "{");
  write_manifest(kUsual + "bad/layers", R"({"layers":{}})");
  write_manifest(kUsual + "bad/digest", R"({"layers":[{"mediaType":"x","digest":"sha256:../../etc","size":1}]})");
  write_manifest(kUsual + "bad/size",
                 R"({"layers":[{"mediaType":"x","digest":"sha256:)" + std::string(64, 'a') + R"(","size":-1}]})");
  add(kUsual + "bad/gone", {{"model", "to be removed"}});
  fs::remove(root_ / "blobs" / ("sha256-" + sha256_hex("to be removed")));
  add(kUsual + "bad/cut", {{"model", "to be cut"}});
  fs::resize_file(root_ / "blobs" / ("sha256-" + sha256_hex("to be cut")), 3);
  add(kUsual + "bad/changed", {{"model", "a"}, {"system", "to be changed"}});
  std::ofstream(root_ / "blobs" / ("sha256-" + sha256_hex("to be changed"))) << "TO be changed";
  add(kUsual + "bad/two", {{"model", "a"}, {"model", "b"}});
  write_manifest("stray", "not a folder");
  write_manifest(kUsual + ".DS_Store", "");
  const Library library = open();
  const LibraryListing listing = library.list();
  EXPECT_THAT(names(listing), ElementsAre("good:1"));
  EXPECT_EQ(listing.problems.size(), 8U);
  for (const std::string& problem : listing.problems) EXPECT_THAT(problem, HasSubstr("bad:"));
  EXPECT_EQ(library.find("bad:json").error().code, Code::kCorrupt);
  EXPECT_THAT(library.find("bad:gone").error().message, HasSubstr("is missing"));
  EXPECT_THAT(library.find("bad:cut").error().message, HasSubstr("has 3 bytes, expected 9"));
  EXPECT_EQ(library.find("bad:two").error().code, Code::kUnsupported);
}

TEST_F(LibraryTest, TheOwnStoreWins) {
  add(kUsual + "m/1", {{"model", "theirs"}});
  add(kUsual + "only/theirs", {{"model", "theirs"}});
  const Library library = open();
  Store store = library.store();
  const fs::path staged = store.partial_folder() / "x";
  std::ofstream(staged) << "ours";
  Manifest manifest{.name = *ModelName::parse("m:1"),
                    .source = "file:x",
                    .created = "2026-01-02T03:04:05Z",
                    .files = {{"m.gguf", 4, sha256_hex("ours")}},
                    .template_text = "{{ .Prompt }}",
                    .template_language = std::string(kTemplateGo),
                    .messages = {JsonObject{{"role", "user"}, {"content", "x"}}}};
  ASSERT_TRUE(store.commit(manifest, {{staged, sha256_hex("ours")}}));
  const LibraryListing listing = library.list();
  EXPECT_THAT(names(listing), ElementsAre("m:1", "only:theirs"));
  EXPECT_EQ(listing.models[0].origin, ModelOrigin::kStore);
  EXPECT_EQ(listing.models[1].origin, ModelOrigin::kOllama);
  const auto model = library.find("m:1");
  ASSERT_TRUE(model);
  EXPECT_EQ(model->size, 4);
  EXPECT_EQ(model->template_language, kTemplateGo);
  EXPECT_EQ(model->messages.size(), 1U);
  EXPECT_EQ(model->modified.time_since_epoch(), std::chrono::seconds(1767323045));
  EXPECT_EQ(model->resolved()->manifest.created, "2026-01-02T03:04:05Z");
}

TEST_F(LibraryTest, SaysWhatCannotRun) {
  add(kUsual + "lora/1", {{"model", "a"}, {"adapter", "l"}});
  add(kUsual + "cloud/1", {{"system", "no weights"}});
  const Library library = open();
  EXPECT_EQ(library.list().models.size(), 2U);
  EXPECT_THAT(library.find("lora:1")->problem, HasSubstr("adapter"));
  EXPECT_EQ(library.find("lora:1")->resolved().error().code, Code::kUnsupported);
  EXPECT_EQ(library.find("cloud:1")->resolved().error().code, Code::kUnsupported);
}

TEST_F(LibraryTest, NotFoundNamesTheClosest) {
  add(kUsual + "smollm2/135m", {{"model", "a"}});
  const Library library = open();
  const auto missing = library.find("smolm2:135m");
  EXPECT_EQ(missing.error().code, Code::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("did you mean smollm2:135m"));
  EXPECT_THAT(library.closest("SMOLLM2:136m"), ElementsAre("smollm2:135m"));
  EXPECT_EQ(library.find("").error().code, Code::kInvalidArgument);
}

TEST_F(LibraryTest, PathsAreModelsForCommandsOnly) {
  std::ofstream(folder_ / "x.gguf") << "GGUF";
  const Library library = open();
  const std::string path = (folder_ / "x.gguf").string();
  const auto model = library.find(path);
  ASSERT_TRUE(model);
  EXPECT_EQ(model->origin, ModelOrigin::kPath);
  EXPECT_EQ(model->size, 4);
  EXPECT_FALSE(library.find_stored(path));
  EXPECT_EQ(library.find("/no/such/file.gguf").error().code, Code::kNotFound);
}

TEST_F(LibraryTest, WithoutOllamaThereIsTheOwnStore) {
  const auto library = Library::open({.store = folder_ / "own"});
  ASSERT_TRUE(library);
  EXPECT_FALSE(library->ollama().exists());
  EXPECT_THAT(library->list().models, IsEmpty());
  EXPECT_THAT(library->list().problems, IsEmpty());
  EXPECT_EQ(library->find("m").error().code, Code::kNotFound);
}

TEST_F(LibraryTest, FindsTheRoot) {
  EXPECT_EQ(find_ollama_root("/named", "/home/x"), "/named");
  fs::create_directories(folder_ / "home/.ollama/models/manifests");
  EXPECT_EQ(find_ollama_root("", folder_ / "home"), folder_ / "home/.ollama/models");
}

TEST(ExplainFailure, SaysWhichModelAndWhatToDo) {
  const ResolvedModel file{.name = "./m.gguf", .path = "./m.gguf"};
  EXPECT_EQ(
      explain_failure({Code::kCorrupt, "x.weight: shape [1], expected [2]"}, file).message,
      "./m.gguf: x.weight: shape [1], expected [2]; download or copy it again, or name another file or folder of a "
      "model");
  ResolvedModel stored{.name = "m:latest", .path = "/s/blobs/sha256-1", .is_stored = true};
  stored.manifest.source = "hf:a/b:c.gguf";
  EXPECT_EQ(
      explain_failure({Code::kCorrupt, "/s/blobs/sha256-1: truncated"}, stored).message,
      "/s/blobs/sha256-1: truncated; get it again: still rm m:latest && still pull hf:a/b:c.gguf --name m:latest");
  EXPECT_EQ(
      explain_failure({Code::kUnsupported, "architecture \"x\""}, stored).message,
      "m:latest: architecture \"x\"; choose another file of this model, or another model: still list --catalogue");
  EXPECT_EQ(explain_failure({Code::kResourceExhausted, "no memory"}, stored).message, "no memory");
}

}  // namespace
}  // namespace still
