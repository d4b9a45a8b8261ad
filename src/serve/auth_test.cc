#include "serve/auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "serve/cors.h"

namespace still {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

HttpRequest with_key(std::uint64_t id, const std::string& key, const char* header = "Authorization") {
  HttpRequest request;
  request.id = id;
  request.headers.push_back({header, header == std::string_view("Authorization") ? "Bearer " + key : key});
  return request;
}

class KeyFile {
 public:
  explicit KeyFile(const std::string& text) : path_(testing::TempDir() + "still_keys_test") {
    std::ofstream(path_) << text;
  }
  ~KeyFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(Auth, WithoutKeysEverybodyMayDoEverything) {
  const auto auth = Auth::create({}, {}).value();
  EXPECT_EQ(auth->admit({}, RouteClass::kAdmin).status, 0);
  EXPECT_FALSE(auth->has_keys());
}

TEST(Auth, AsksForAKeyEverywhereButOnOpenRoutes) {
  const auto auth = Auth::create({}, {"sk-1", "sk-2"}).value();
  EXPECT_EQ(auth->admit({}, RouteClass::kOpen).status, 0);
  EXPECT_EQ(auth->admit({}, RouteClass::kRead).status, 401);
  EXPECT_EQ(auth->admit(with_key(1, "sk-3"), RouteClass::kCompute).status, 401);
  EXPECT_EQ(auth->admit(with_key(1, "sk-"), RouteClass::kCompute).status, 401);
  EXPECT_EQ(auth->admit(with_key(1, "sk-2"), RouteClass::kAdmin).status, 0);
  EXPECT_EQ(auth->admit(with_key(1, "sk-2", "x-api-key"), RouteClass::kCompute).key, "environment-2");
}

TEST(Auth, LimitsConcurrency) {
  const KeyFile file(R"({"keys": [{"name": "a", "key": "k", "max_concurrent": 2, "admin": false}]})");
  const auto auth = Auth::create(file.path(), {}).value();
  EXPECT_EQ(auth->admit(with_key(1, "k"), RouteClass::kCompute).status, 0);
  EXPECT_EQ(auth->admit(with_key(2, "k"), RouteClass::kCompute).status, 0);
  const Auth::Verdict third = auth->admit(with_key(3, "k"), RouteClass::kCompute);
  EXPECT_EQ(third.status, 429);
  EXPECT_EQ(third.limit, "concurrency");
  EXPECT_GE(third.retry_after, 1s);
  auth->end(1);
  auth->end(1);  // twice does not free two places
  EXPECT_EQ(auth->admit(with_key(4, "k"), RouteClass::kCompute).status, 0);
  EXPECT_EQ(auth->admit(with_key(5, "k"), RouteClass::kCompute).status, 429);
  EXPECT_EQ(auth->admit(with_key(6, "k"), RouteClass::kRead).status, 0);
  EXPECT_EQ(auth->admit(with_key(7, "k"), RouteClass::kAdmin).status, 403);
}

TEST(Auth, LimitsRequestsAndTokensOfAMinute) {
  const KeyFile file(R"({"keys": [{"name": "r", "key": "r", "requests_per_minute": 2},
                                  {"name": "t", "key": "t", "tokens_per_minute": 600}]})");
  const auto auth = Auth::create(file.path(), {}).value();
  const auto now = Auth::Clock::now();
  EXPECT_EQ(auth->admit(with_key(1, "r"), RouteClass::kCompute, now).status, 0);
  EXPECT_EQ(auth->admit(with_key(2, "r"), RouteClass::kCompute, now).status, 0);
  const Auth::Verdict third = auth->admit(with_key(3, "r"), RouteClass::kCompute, now);
  EXPECT_EQ(third.status, 429);
  EXPECT_EQ(third.retry_after, 30s);
  EXPECT_EQ(auth->admit(with_key(4, "r"), RouteClass::kCompute, now + 31s).status, 0);

  EXPECT_EQ(auth->admit(with_key(5, "t"), RouteClass::kCompute, now).status, 0);
  auth->count_tokens("t", 1200, now);
  auth->count_tokens("nobody", 1200, now);
  EXPECT_EQ(auth->admit(with_key(6, "t"), RouteClass::kCompute, now + 50s).status, 429);
  EXPECT_EQ(auth->admit(with_key(7, "t"), RouteClass::kCompute, now + 62s).status, 0);
}

TEST(Auth, ReadsLinesAndDigests) {
  const KeyFile lines("# keys\n\n  sk-a  alice \r\nsk-b\n");
  const auto auth = Auth::create(lines.path(), {}).value();
  EXPECT_EQ(auth->admit(with_key(1, "sk-a"), RouteClass::kRead).key, "alice");
  EXPECT_EQ(auth->admit(with_key(1, "sk-b"), RouteClass::kRead).key, "line-4");
  // sha256 of "abc": FIPS 180-4.
  const KeyFile digest(
      R"({"keys": [{"name": "d", "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}]})");
  EXPECT_EQ(Auth::create(digest.path(), {}).value()->admit(with_key(1, "abc"), RouteClass::kRead).key, "d");
}

TEST(Auth, RefusesFilesThatSayNothingOrTooMuch) {
  for (const char* text :
       {"", "# none\n", "{}", R"({"keys": [1]})", R"({"keys": []})", R"({"keys": [{"name": "a"}]})",
        R"({"keys": [{"key": "a"}]})", R"({"keys": [{"name": "a", "sha256": "12"}]})",
        R"({"keys": [{"name": "a", "key": "x", "max_concurrent": -1}]})", "a n\nb n\n", "a x\na y\n"}) {
    const KeyFile file(text);
    EXPECT_FALSE(Auth::create(file.path(), {})) << text;
  }
  EXPECT_FALSE(Auth::create("/no/such/file", {}));
}

TEST(Cors, AllowsLocalPagesAppsAndWhatIsListed) {
  for (const char* origin : {"http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "http://[::1]:5",
                             "app://obsidian.md", "tauri://localhost", "chrome-extension://abc"}) {
    EXPECT_TRUE(is_origin_allowed(origin, {})) << origin;
  }
  for (const char* origin :
       {"http://evil.example", "http://localhost.evil.example", "null", "", "http://127.0.0.1.evil"}) {
    EXPECT_FALSE(is_origin_allowed(origin, {})) << origin;
  }
  EXPECT_TRUE(is_origin_allowed("https://chat.example", {"https://*.example"}));
  EXPECT_FALSE(is_origin_allowed("https://chat.example.evil", {"https://*.example"}));
  EXPECT_TRUE(is_origin_allowed("null", {"*"}));
  EXPECT_TRUE(is_same_origin("http://10.0.0.1:11434", "10.0.0.1:11434"));
}

TEST(Cors, LoopbackAnswersOnlyToLocalNames) {
  for (const char* host : {"localhost:11434", "127.0.0.1", "[::1]:11434", "192.168.1.5:80", "box", "a.local",
                           "x.localhost:1", "host.docker.internal", ""}) {
    EXPECT_TRUE(is_host_allowed_on_loopback(host, "Box")) << host;
  }
  for (const char* host : {"evil.example", "evil.example:11434", "8.8.8.8", "localhost.evil", "[2001:db8::1]:1"}) {
    EXPECT_FALSE(is_host_allowed_on_loopback(host, "box")) << host;
  }
  EXPECT_TRUE(is_loopback_host("::1"));
  EXPECT_TRUE(is_loopback_host("127.0.0.1"));
  EXPECT_FALSE(is_loopback_host("0.0.0.0"));
}

}  // namespace
}  // namespace still
