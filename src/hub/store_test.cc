// Names, the store, and what a MODEL argument means.
#include "hub/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "hub/catalogue.h"
#include "hub/file_io.h"
#include "hub/pull.h"
#include "hub/sha256.h"
#include "hub/test_server.h"

namespace still {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;
using testing::ElementsAre;
using testing::HasSubstr;

ModelName name_of(std::string_view text) {
  const auto name = ModelName::parse(text);
  return name ? *name : ModelName{};
}

TEST(ModelName, ParsesAndPrints) {
  EXPECT_EQ(name_of("smollm2").str(), "smollm2:latest");
  EXPECT_EQ(name_of("SmolLM2:135M-Q4_K_M").str(), "smollm2:135m-q4_k_m");
  EXPECT_EQ(name_of("qwen/qwen2.5:0.5b").str(), "qwen/qwen2.5:0.5b");
  EXPECT_EQ(name_of("a").repository(), "a");
}

TEST(ModelName, RefusesWhatIsNoName) {
  const std::string long_part(81, 'a');
  for (const std::string& bad :
       {std::string(""),        std::string(":"),        std::string("a:"),    std::string(":b"),
        std::string("/a"),      std::string("a/"),       std::string("a/b/c"), std::string(".."),
        std::string("../a"),    std::string("a/../b"),   std::string("a b"),   std::string("-a"),
        std::string(".a"),      std::string("a..b"),     std::string("a:b:c"), std::string("n/x.json"),
        std::string("a\0b", 3), std::string("\xc3\xa4"), std::string("a\n"),   long_part}) {
    const auto name = ModelName::parse(bad);
    ASSERT_FALSE(name) << bad;
    EXPECT_EQ(name.error().code, Code::kInvalidArgument);
  }
  // What a client sends as a name is not sent back whole.
  const auto huge = ModelName::parse(std::string(1 << 20, 'a'));
  ASSERT_FALSE(huge);
  EXPECT_LT(huge.error().message.size(), 400u);
  // Nor half a character of it.
  std::string accents = "a";
  for (int i = 0; i < 100; ++i) accents += "\xc3\xa9";
  EXPECT_EQ(quoted_name(accents), "\"" + accents.substr(0, 99) + "...\"");
}

TEST(ModelName, AnyTextBecomesAValidPart) {
  for (const char* text : {"", "..", "a b", "x.json", "-a-", "Qwen2.5-0.5B-Instruct", "\xe6\xa8\xa1", "a..b"}) {
    EXPECT_TRUE(ModelName::parse(sanitize_name_part(text) + ":" + sanitize_name_part(text))) << text;
  }
  EXPECT_TRUE(ModelName::parse(sanitize_name_part(std::string(300, 'x'))));
}

TEST(ModelName, ClosestNamesComeFirst) {
  EXPECT_THAT(closest_names("smolm2:135m", {"qwen2.5:0.5b", "smollm2:137m", "smollm2:360m", "smollm2:135m"}),
              ElementsAre("smollm2:135m", "smollm2:137m"));
  EXPECT_TRUE(closest_names("zzz", {"smollm2:135m"}).empty());
  EXPECT_THAT(closest_names("smolm2", {"qwen2.5:0.5b", "smollm2:latest"}), testing::ElementsAre("smollm2:latest"));
}

TEST(FileNames, MustStayBelowTheirFolder) {
  EXPECT_TRUE(check_file_name("model-00001-of-00002.gguf"));
  EXPECT_TRUE(check_file_name("sub/folder/x.json"));
  for (const char* bad : {"", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a\\b", "a\nb"}) {
    EXPECT_FALSE(check_file_name(bad)) << bad;
  }
}

class StoreTest : public testing::Test {
 protected:
  void SetUp() override {
    auto store = Store::open(folder_ / "models");
    ASSERT_TRUE(store) << store.error().message;
    store_ = std::make_unique<Store>(std::move(*store));
  }
  // A staged file as a download leaves it.
  StagedFile stage(const std::string& bytes) {
    const fs::path path = store_->partial_folder() / ("p" + std::to_string(n_staged_++));
    std::ofstream(path, std::ios::binary) << bytes;
    return {path, sha256_hex(bytes)};
  }
  Status add(const std::string& name, const std::vector<std::pair<std::string, std::string>>& files) {
    Manifest manifest{.name = name_of(name), .source = "file:x", .created = utc_now(), .version = "test"};
    std::vector<StagedFile> staged;
    for (const auto& [file, bytes] : files) {
      staged.push_back(stage(bytes));
      manifest.files.push_back({file, static_cast<std::int64_t>(bytes.size()), staged.back().sha256});
    }
    return store_->commit(manifest, staged);
  }
  std::size_t n_blobs() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_ / "models/blobs"), {}));
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  int n_staged_ = 0;
};

TEST_F(StoreTest, KeepsWhatIsCommitted) {
  ASSERT_TRUE(add("m:1", {{"m.gguf", "GGUF one"}}));
  const auto manifest = store_->read(name_of("m:1"));
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ(manifest->total_bytes(), 8);
  EXPECT_EQ(manifest->source, "file:x");
  const auto path = store_->model_path(*manifest);
  ASSERT_TRUE(path);
  EXPECT_EQ(*path, store_->blob_path(sha256_hex("GGUF one")));
  EXPECT_EQ(store_->total_bytes().value(), 8);
  EXPECT_TRUE(store_->verify(*manifest));
}

TEST_F(StoreTest, ManifestsSurviveTheRoundTrip) {
  Manifest manifest{.name = name_of("ns/m:1"),
                    .source = "hf:a/b:c",
                    .created = "2025-01-02T03:04:05Z",
                    .version = "1",
                    .command = "still pull \"x\"",
                    .seconds = 1.5,
                    .licence = "MIT",
                    .files = {{"a/b.json", 3, std::string(64, '0')}},
                    .template_text = "{{ x }}\n",
                    .system = "Be brief."};
  manifest.parameters["temperature"] = 0.6;
  const auto parsed = parse_json(to_json_pretty(manifest_to_json(manifest)), "m");
  ASSERT_TRUE(parsed);
  const auto again = manifest_from_json(*parsed, "m");
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(manifest_to_json(*again), manifest_to_json(manifest));
}

TEST_F(StoreTest, SharedBytesStayUntilTheirLastModelGoes) {
  ASSERT_TRUE(add("a", {{"m.gguf", "GGUF same"}}));
  ASSERT_TRUE(add("b", {{"m.gguf", "GGUF same"}}));
  EXPECT_EQ(n_blobs(), 1u);
  auto report = store_->remove(name_of("a"));
  ASSERT_TRUE(report);
  EXPECT_EQ(report->freed_bytes, 0);
  EXPECT_EQ(n_blobs(), 1u);
  report = store_->remove(name_of("b"));
  ASSERT_TRUE(report);
  EXPECT_EQ(report->freed_bytes, 9);
  EXPECT_EQ(n_blobs(), 0u);
  EXPECT_TRUE(fs::is_empty(folder_ / "models/manifests"));
  EXPECT_EQ(store_->remove(name_of("b")).error().code, Code::kNotFound);
}

TEST_F(StoreTest, ReplacingAModelFreesItsOldBytes) {
  ASSERT_TRUE(add("a", {{"m.gguf", "GGUF old"}}));
  ASSERT_TRUE(add("a", {{"m.gguf", "GGUF new"}}));
  EXPECT_EQ(n_blobs(), 1u);
  EXPECT_TRUE(store_->has_blob(sha256_hex("GGUF new")));
}

TEST_F(StoreTest, SeveralFilesGetAFolderUnderTheirNames) {
  ASSERT_TRUE(add("m", {{"config.json", "{}"}, {"model.safetensors", "weights"}, {"sub/x.txt", "x"}}));
  const auto manifest = store_->read(name_of("m"));
  auto path = store_->model_path(*manifest);
  ASSERT_TRUE(path) << path.error().message;
  EXPECT_EQ(read_text_file(*path / "model.safetensors", 100).value(), "weights");
  EXPECT_EQ(read_text_file(*path / "sub/x.txt", 100).value(), "x");
  fs::remove_all(*path);  // made again when it is asked for
  path = store_->model_path(*manifest);
  ASSERT_TRUE(path);
  EXPECT_EQ(read_text_file(*path / "config.json", 100).value(), "{}");
  ASSERT_TRUE(store_->remove(name_of("m")));
  EXPECT_FALSE(fs::exists(*path));
}

TEST_F(StoreTest, CopyIsAnotherNameForTheSameBytes) {
  ASSERT_TRUE(add("a:1", {{"m.gguf", "GGUF x"}}));
  ASSERT_TRUE(store_->copy(name_of("a:1"), name_of("ns/b:2")));
  EXPECT_EQ(n_blobs(), 1u);
  const auto listing = store_->list();
  ASSERT_TRUE(listing);
  ASSERT_EQ(listing->models.size(), 2u);
  EXPECT_EQ(listing->models[0].name.str(), "a:1");
  EXPECT_EQ(listing->models[1].name.str(), "ns/b:2");
  EXPECT_EQ(store_->copy(name_of("none"), name_of("b")).error().code, Code::kNotFound);
  EXPECT_FALSE(store_->copy(name_of("a:1"), name_of("a:1")));
}

TEST_F(StoreTest, DamagedManifestIsToldAndItsBytesAreKept) {
  ASSERT_TRUE(add("good", {{"m.gguf", "GGUF 1"}}));
  ASSERT_TRUE(add("bad", {{"m.gguf", "GGUF 2"}}));
  std::ofstream(folder_ / "models/manifests/bad/latest.json") << "{ \"schema\": 1";
  const auto listing = store_->list();
  ASSERT_TRUE(listing);
  EXPECT_EQ(listing->models.size(), 1u);
  ASSERT_EQ(listing->problems.size(), 1u);
  EXPECT_THAT(listing->problems[0], HasSubstr("bad/latest.json"));
  const auto report = store_->remove(name_of("good"));
  ASSERT_TRUE(report);
  EXPECT_EQ(n_blobs(), 2u) << "what cannot be read may need any of them";
  EXPECT_FALSE(report->problems.empty());
  EXPECT_TRUE(store_->remove(name_of("bad")));
  EXPECT_EQ(n_blobs(), 0u);
}

TEST_F(StoreTest, LyingManifestsAreRefused) {
  for (const char* text : {"[]", "{}", R"({"schema":2,"name":"m","files":[]})", R"({"schema":1,"name":"m","files":[]})",
                           R"({"schema":1,"name":"m","files":[{"name":"x","size":-1,"sha256":"00"}]})",
                           R"({"schema":1,"name":"other:latest","files":[{"name":"x","size":1,"sha256":"ZEROS"}]})",
                           R"({"schema":1,"name":"m","files":[{"name":"../../x","size":1,"sha256":"ZEROS"}]})"}) {
    fs::create_directories(folder_ / "models/manifests/m");
    std::string json = text;
    if (const auto at = json.find("ZEROS"); at != std::string::npos) json.replace(at, 5, std::string(64, '0'));
    std::ofstream(folder_ / "models/manifests/m/latest.json") << json;
    EXPECT_FALSE(store_->read(name_of("m"))) << text;
  }
}

TEST_F(StoreTest, MissingOrChangedBytesAreFound) {
  ASSERT_TRUE(add("m", {{"m.gguf", "GGUF x"}}));
  const auto manifest = store_->read(name_of("m"));
  const fs::path blob = store_->blob_path(manifest->files[0].sha256);
  fs::permissions(blob, fs::perms::owner_write, fs::perm_options::add);
  std::ofstream(blob) << "GGUF y";
  EXPECT_EQ(store_->verify(*manifest).error().code, Code::kCorrupt);
  std::ofstream(blob) << "GG";
  EXPECT_THAT(store_->model_path(*manifest).error().message, HasSubstr("pull m:latest again"));
  // A pull brings good bytes to the same place.
  ASSERT_TRUE(add("m", {{"m.gguf", "GGUF x"}}));
  EXPECT_TRUE(store_->verify(*manifest));
}

TEST_F(StoreTest, CommitWantsAllBytes) {
  Manifest manifest{.name = name_of("m"), .files = {{"m.gguf", 3, std::string(64, '1')}}};
  EXPECT_EQ(store_->commit(manifest, {}).error().code, Code::kNotFound);
  EXPECT_FALSE(store_->contains(manifest.name));
}

TEST_F(StoreTest, ProcessesThatAddAndRemoveAtOnceDamageNothing) {
  constexpr int kProcesses = 4, kRounds = 25;
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      n_staged_ = p * 1000;
      bool fine = true;
      for (int i = 0; i < kRounds; ++i) {
        const std::string own = "own" + std::to_string(p);
        // All share one blob and have one of their own; the others' removals must never take it.
        fine = fine && add(own, {{"m.gguf", "GGUF shared"}}).has_value();
        const auto manifest = store_->read(name_of(own));
        fine = fine && manifest && store_->verify(*manifest);
        if (i + 1 < kRounds || p % 2 == 0) fine = fine && store_->remove(name_of(own)).has_value();
      }
      ::_exit(fine ? 0 : 1);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0);
  }
  const auto listing = store_->list();
  ASSERT_TRUE(listing);
  EXPECT_EQ(listing->models.size(), 2u);
  EXPECT_EQ(n_blobs(), 1u);
}

TEST_F(StoreTest, PartialsOfOthersAreLeftAlone) {
  std::ofstream(store_->partial_folder() / "a.part") << "12345";
  std::ofstream(store_->partial_folder() / "b.part") << "12345";
  const auto lock = LockFile::try_acquire(store_->partial_folder() / "b.lock", LockFile::Keep::kRemove);
  ASSERT_TRUE(lock && *lock);
  EXPECT_EQ(store_->remove_partials(std::chrono::hours(1)).value(), 0);
  EXPECT_TRUE(store_->remove_partials(std::chrono::seconds(0)));
  EXPECT_FALSE(fs::exists(store_->partial_folder() / "a.part"));
  EXPECT_TRUE(fs::exists(store_->partial_folder() / "b.part"));
}

TEST_F(StoreTest, ModelArgumentsAreNamesAliasesOrPaths) {
  ASSERT_TRUE(add("smollm2:135m", {{"m.gguf", "GGUF x"}}));
  for (const char* argument : {"smollm2:135m", "smollm2", "SmolLM2:135m"}) {
    const auto model = resolve_model(*store_, argument);
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ(model->name, "smollm2:135m");
    EXPECT_TRUE(model->is_stored);
  }
  std::ofstream(folder_ / "x.gguf") << "GGUF";
  const auto file = resolve_model(*store_, (folder_ / "x.gguf").string());
  ASSERT_TRUE(file);
  EXPECT_FALSE(file->is_stored);
  ASSERT_TRUE(resolve_model(*store_, folder_.path().string()));
  EXPECT_THAT(resolve_model(*store_, "smolm2:135m").error().message, HasSubstr("did you mean smollm2:135m"));
  EXPECT_THAT(resolve_model(*store_, "deepseek-r1:7b").error().message, HasSubstr("still pull deepseek-r1:7b"));
  EXPECT_THAT(resolve_model(*store_, "deepseek-r1:7c").error().message, HasSubstr("deepseek-r1:7b"));
  EXPECT_EQ(resolve_model(*store_, "./none.gguf").error().code, Code::kNotFound);
  EXPECT_EQ(resolve_model(*store_, "").error().code, Code::kInvalidArgument);
}

TEST(Catalogue, EveryNameParsesAndFindsItself) {
  std::vector<std::string> names;
  for (const CatalogueEntry& entry : list_catalogue()) {
    names.push_back(entry.name.str());
    const auto name = ModelName::parse(entry.name.str());
    ASSERT_TRUE(name) << entry.name.str();
    const auto found = find_in_catalogue(*name);
    ASSERT_TRUE(found) << entry.name.str();
    EXPECT_EQ(found->name, entry.name);
    EXPECT_EQ(found->quantisation, entry.quantisation);
    EXPECT_GE(entry.sources.size(), 3u);
    for (const CatalogueSource& source : entry.sources) {
      EXPECT_TRUE(parse_source(source.source)) << source.source;
      EXPECT_TRUE(source.sha256.empty() || is_sha256_hex(source.sha256));
    }
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << "a name twice";
  for (const char* wanted : {"deepseek-r1:1.5b", "deepseek-r1:7b-q8_0", "deepseek-r1:70b", "qwen2.5:0.5b",
                             "smollm2:135m", "smollm2:135m-q4_k_m", "qwen2.5-coder:1.5b"}) {
    EXPECT_TRUE(std::binary_search(names.begin(), names.end(), wanted)) << wanted;
  }
  EXPECT_EQ(find_in_catalogue(name_of("deepseek-r1:7b-q4_k_m"))->name.str(), "deepseek-r1:7b");
  EXPECT_EQ(find_in_catalogue(name_of("smollm2"))->name.str(), "smollm2:135m");
  EXPECT_FALSE(find_in_catalogue(name_of("smollm2:9b")));
}

}  // namespace
}  // namespace still
