// Downloads against a local server that misbehaves in the ways real ones do.
#include "hub/download.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <random>
#include <set>

#include "hub/file_io.h"
#include "hub/range_set.h"
#include "hub/sha256.h"
#include "hub/test_server.h"

namespace still {
namespace {

namespace fs = std::filesystem;
using test::random_bytes;
using test::Reply;
using test::reply_with;
using test::Request;
using test::TempFolder;
using test::TestServer;
using testing::HasSubstr;

constexpr std::size_t kSize = 3'000'001;

HubOptions quick_options() {
  HubOptions options;
  options.stall_timeout = std::chrono::seconds(1);
  options.backoff = std::chrono::milliseconds(5);
  options.n_retries = 3;
  options.n_connections = 4;
  options.piece_bytes = 400'000;
  return options;
}

std::string content_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class DownloadTest : public testing::Test {
 protected:
  DownloadJob job(const std::string& url) {
    DownloadJob job{.from = {.url = url, .headers = {}, .help = "set HF_TOKEN"},
                    .part = folder_ / "x.part",
                    .state = folder_ / "x.json"};
    job.on_note = [this](const std::string& line) { notes_ += line + "\n"; };
    return job;
  }
  bool has_part() const { return fs::exists(folder_ / "x.part"); }
  bool has_state() const { return fs::exists(folder_ / "x.json"); }

  TempFolder folder_;
  std::string notes_;
  HubOptions options_ = quick_options();
  CancelToken cancel_;
  const std::string body_ = random_bytes(kSize, 1);
};

TEST(RangeSet, EqualsASetOfBytes) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  Rng rng(seed);
  for (int round = 0; round < 200; ++round) {
    RangeSet ranges;
    std::set<std::int64_t> bytes;
    const std::int64_t size = 1 + rng.below(60);
    for (int i = 0; i < 12; ++i) {
      const std::int64_t begin = rng.below(size), end = begin + rng.below(size - begin + 1);
      ranges.add(begin, end);
      for (std::int64_t b = begin; b < end; ++b) bytes.insert(b);
    }
    ASSERT_EQ(ranges.total(), static_cast<std::int64_t>(bytes.size()));
    std::int64_t n_missing = 0, prefix = 0;
    for (const auto& [begin, end] : ranges.gaps(size)) {
      for (std::int64_t b = begin; b < end; ++b) ASSERT_FALSE(bytes.contains(b));
      n_missing += end - begin;
    }
    ASSERT_EQ(n_missing + ranges.total(), size);
    while (bytes.contains(prefix)) ++prefix;
    ASSERT_EQ(ranges.prefix(), prefix);
  }
}

TEST_F(DownloadTest, FetchesRangesInParallelAndVerifies) {
  TestServer server([&](const Request& r) { return reply_with(r, body_); });
  DownloadJob j = job(server.url("/m.gguf"));
  j.size = kSize;
  j.sha256 = sha256_hex(body_);
  const auto report = download_file(j, options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(j.part), body_);
  EXPECT_EQ(report->sha256, j.sha256);
  EXPECT_EQ(report->fetched_bytes, static_cast<std::int64_t>(kSize));
  EXPECT_FALSE(has_state());
  const auto requests = server.requests();
  EXPECT_GE(requests.size(), 8u);
  for (std::size_t i = 1; i < requests.size(); ++i) EXPECT_EQ(requests[i].header("if-range"), "\"v1\"");
}

TEST_F(DownloadTest, SmallAndOddSizes) {
  for (const std::size_t size : {1, 2, 4095, 262144, 262145}) {
    const std::string body = body_.substr(0, size);
    TestServer server([&](const Request& r) { return reply_with(r, body); });
    const auto report = download_file(job(server.url("/m")), options_, cancel_);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_EQ(content_of(folder_ / "x.part"), body);
    fs::remove(folder_ / "x.part");
  }
}

TEST_F(DownloadTest, ServerThatIgnoresRangesGetsOnePlainRequest) {
  TestServer server([&](const Request&) { return Reply{.body = body_}; });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
  EXPECT_EQ(server.n_requests(), 2u);
  EXPECT_EQ(server.requests()[1].header("range"), "");
}

TEST_F(DownloadTest, LengthMayBeUnknown) {
  TestServer server([&](const Request&) { return Reply{.body = body_, .has_length = false}; });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
}

TEST_F(DownloadTest, WrongDigestIsRefusedAndRemoved) {
  TestServer server([&](const Request& r) { return reply_with(r, body_); });
  DownloadJob j = job(server.url("/m"));
  j.sha256 = std::string(64, 'a');
  const auto report = download_file(j, options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
  EXPECT_THAT(report.error().message, HasSubstr(sha256_hex(body_)));
  EXPECT_FALSE(has_part());
  EXPECT_FALSE(has_state());
}

TEST_F(DownloadTest, WrongSizeIsRefusedBeforeLoading) {
  TestServer server([&](const Request& r) { return reply_with(r, body_); });
  DownloadJob j = job(server.url("/m"));
  j.size = 17;
  const auto report = download_file(j, options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
  EXPECT_THAT(report.error().message, HasSubstr("expected 17"));
  EXPECT_EQ(server.n_requests(), 1u);
}

TEST_F(DownloadTest, RefusalsSayWhatToDo) {
  int status = 403;
  TestServer server([&](const Request&) { return Reply{.status = status}; });
  auto report = download_file(job(server.url("/secret?sig=abc")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kPermissionDenied);
  EXPECT_THAT(report.error().message, HasSubstr("HF_TOKEN"));
  EXPECT_THAT(report.error().message, testing::Not(HasSubstr("sig=")));
  status = 401;
  EXPECT_EQ(download_file(job(server.url("/x")), options_, cancel_).error().code, Code::kPermissionDenied);
  status = 404;
  EXPECT_EQ(download_file(job(server.url("/x")), options_, cancel_).error().code, Code::kNotFound);
  status = 500;
  EXPECT_EQ(download_file(job(server.url("/x")), options_, cancel_).error().code, Code::kUnavailable);
}

TEST_F(DownloadTest, CutConnectionsGoOnWhereTheyStopped) {
  std::atomic<int> n{0};
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    if (n++ % 2 == 1) reply.cut_after = static_cast<std::int64_t>(reply.body.size() / 3);
    return reply;
  });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
  EXPECT_EQ(report->fetched_bytes, static_cast<std::int64_t>(kSize)) << "no byte is to come twice";
}

TEST_F(DownloadTest, CutConnectionWithoutRangesBeginsAgain) {
  std::atomic<int> n{0};
  TestServer server([&](const Request&) {
    Reply reply{.body = body_};
    if (n++ == 1) reply.cut_after = 1'000'000;
    return reply;
  });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
  EXPECT_EQ(report->sha256, sha256_hex(body_));
}

TEST_F(DownloadTest, ServerThatAlwaysCutsEndsWithASentence) {
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    if (reply.body.size() > 1) reply.cut_after = 0;
    return reply;
  });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kUnavailable);
  EXPECT_TRUE(has_part());
}

TEST_F(DownloadTest, TemporaryErrorsAreTriedAgain) {
  std::atomic<int> n{0};
  TestServer server([&](const Request& r) {
    const int i = n++;
    if (i == 0 || i == 3) return Reply{.status = 503};
    if (i == 4) return Reply{.status = 429, .headers = {{"Retry-After", "0"}}};
    return reply_with(r, body_);
  });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
  EXPECT_THAT(notes_, HasSubstr("trying again"));
}

TEST_F(DownloadTest, RedirectsAreFollowedWithoutTheToken) {
  TestServer storage([&](const Request& r) { return reply_with(r, body_); });
  TestServer server([&](const Request&) {
    return Reply{.status = 302, .headers = {{"Location", storage.url("/blob?signature=1")}}};
  });
  DownloadJob j = job(server.url("/resolve/m"));
  j.from.headers = {"Authorization: Bearer secret"};
  const auto report = download_file(j, options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(j.part), body_);
  EXPECT_EQ(server.n_requests(), 1u) << "the pieces go straight to the storage";
  EXPECT_EQ(server.requests()[0].header("authorization"), "Bearer secret");
  for (const Request& r : storage.requests()) EXPECT_EQ(r.header("authorization"), "");
}

TEST_F(DownloadTest, ExpiredRedirectIsAskedAgain) {
  std::atomic<int> n_storage{0}, generation{0};
  TestServer storage([&](const Request& r) {
    const int i = n_storage++;
    if (i == 3) generation = 1;
    if (generation == 1 && r.path == "/blob?0") return Reply{.status = 403};
    return reply_with(r, body_);
  });
  TestServer server([&](const Request&) {
    return Reply{.status = 307, .headers = {{"Location", storage.url("/blob?" + std::to_string(generation))}}};
  });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
  EXPECT_GT(server.n_requests(), 1u);
}

TEST_F(DownloadTest, RedirectLoopsEnd) {
  std::string self;
  TestServer server([&](const Request&) { return Reply{.status = 302, .headers = {{"Location", self}}}; });
  self = server.url("/again");
  EXPECT_FALSE(download_file(job(server.url("/m")), options_, cancel_));
}

TEST_F(DownloadTest, StalledConnectionIsReplaced) {
  std::atomic<int> n{0};
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    if (n++ == 2) reply.stall_after = 1000;
    return reply;
  });
  const auto start = std::chrono::steady_clock::now();
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), body_);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST_F(DownloadTest, EntityThatChangesBetweenRangesIsLoadedAfresh) {
  const std::string other = random_bytes(kSize, 2);
  std::atomic<int> n{0};
  TestServer server(
      [&](const Request& r) { return n++ < 4 ? reply_with(r, body_, "\"v1\"") : reply_with(r, other, "\"v2\""); });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(folder_ / "x.part"), other) << "never a mixture of both";
  EXPECT_THAT(notes_, HasSubstr("changed"));
}

TEST_F(DownloadTest, EntityThatKeepsChangingIsGivenUp) {
  std::atomic<int> n{0};
  TestServer server([&](const Request& r) { return reply_with(r, body_, "\"" + std::to_string(n++) + "\""); });
  const auto report = download_file(job(server.url("/m")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
}

TEST_F(DownloadTest, WrongRangeAndTooManyBytesAreRefused) {
  TestServer shifted([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    if (reply.body.size() > 1) reply.headers[2].second = "bytes 7-8/" + std::to_string(kSize);
    return reply;
  });
  auto report = download_file(job(shifted.url("/m")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_THAT(report.error().message, HasSubstr("bytes 7-8"));
  TestServer generous([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    if (reply.body.size() > 1) reply.body += "more";
    return reply;
  });
  report = download_file(job(generous.url("/m")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kCorrupt);
}

TEST_F(DownloadTest, CancellingKeepsThePartAndTheNextRunGoesOn) {
  std::int64_t rate = 500'000;  // a connection
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    reply.bytes_per_s = rate;
    return reply;
  });
  DownloadJob j = job(server.url("/m"));
  j.sha256 = sha256_hex(body_);
  j.on_bytes = [&](std::int64_t done, std::int64_t) {
    if (done > 1'000'000) cancel_.cancel();
  };
  const auto stopped = download_file(j, options_, cancel_);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Code::kCancelled);
  EXPECT_THAT(stopped.error().message, HasSubstr("kept"));
  ASSERT_TRUE(has_part() && has_state());
  rate = 0;
  j.on_bytes = {};
  // Another mirror of the same bytes (the digest says so) may finish what the first one began.
  TestServer mirror([&](const Request& r) { return reply_with(r, body_, "\"other\""); });
  j.from.url = mirror.url("/copy");
  const auto report = download_file(j, options_, CancelToken());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GT(report->resumed_bytes, 1'000'000);
  EXPECT_EQ(report->resumed_bytes + report->fetched_bytes, static_cast<std::int64_t>(kSize));
  EXPECT_EQ(content_of(j.part), body_);
}

TEST_F(DownloadTest, DamagedPartOfAnEarlierRunIsLoadedAgain) {
  TestServer server([&](const Request& r) { return reply_with(r, body_); });
  DownloadJob j = job(server.url("/m"));
  j.sha256 = sha256_hex(body_);
  std::ofstream(j.part, std::ios::binary) << std::string(1'000'000, 'x');
  std::ofstream(j.state) << R"({"schema":1,"url":")" + j.from.url + R"(","sha256":")" + j.sha256 +
                                R"(","size":3000001,"etag":"\"v1\"","last_modified":"","done":[[0,1000000]]})";
  const auto report = download_file(j, options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(j.part), body_);
  EXPECT_THAT(notes_, HasSubstr("earlier run"));
}

TEST_F(DownloadTest, DamagedStateIsIgnored) {
  TestServer server([&](const Request& r) { return reply_with(r, body_); });
  for (const char* state :
       {"", "{", "[]", R"({"schema":1})", R"({"schema":1,"url":1,"done":[[0,1]]})",
        R"({"schema":1,"url":"URL","size":3000001,"etag":"\"v1\"","done":[[5,3],[-1,9],[0,99999999],7]})"}) {
    std::string text = state;
    if (const auto at = text.find("URL"); at != std::string::npos) text.replace(at, 3, server.url("/m"));
    std::ofstream(folder_ / "x.json") << text;
    const auto report = download_file(job(server.url("/m")), options_, cancel_);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_EQ(content_of(folder_ / "x.part"), body_);
    fs::remove(folder_ / "x.part");
  }
}

TEST_F(DownloadTest, UnreachableHostFailsFast) {
  const auto start = std::chrono::steady_clock::now();
  const auto report = download_file(job("http://127.0.0.1:1/m"), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
  EXPECT_FALSE(download_file(job("ftp://127.0.0.1/m"), options_, cancel_));
}

TEST_F(DownloadTest, KilledProcessGoesOnWhereItWas) {
  std::atomic<std::int64_t> rate{500'000};
  TestServer server(
      [&](const Request& r) {
        Reply reply = reply_with(r, body_);
        reply.bytes_per_s = rate;
        return reply;
      },
      false);
  DownloadJob j = job(server.url("/m"));
  j.sha256 = sha256_hex(body_);
  options_.n_connections = 2;
  const pid_t child = ::fork();
  if (child == 0) {
    (void)download_file(j, options_, cancel_).has_value();
    ::_exit(0);
  }
  server.start();
  while (!has_state()) std::this_thread::sleep_for(std::chrono::milliseconds(10));  // saved every two seconds
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the child should have been killed in the middle";
  rate = 0;
  const std::int64_t sent_before = server.sent_bytes();
  const auto report = download_file(j, options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(j.part), body_);
  EXPECT_GT(report->resumed_bytes, 500'000);
  EXPECT_EQ(report->resumed_bytes + report->fetched_bytes, static_cast<std::int64_t>(kSize));
  std::printf("killed after %lld bytes were sent, %lld of them kept\n", static_cast<long long>(sent_before),
              static_cast<long long>(report->resumed_bytes));
}

// A file system of its own with few bytes; only root may mount one.
class FullDiskTest : public DownloadTest {
 protected:
  void SetUp() override {
    disk_ = folder_ / "disk";
    fs::create_directory(disk_);
    if (::mount("tmpfs", disk_.c_str(), "tmpfs", 0, "size=5m") != 0) {
      GTEST_SKIP() << "a small file system cannot be mounted here (not root)";
    }
    mounted_ = true;
  }
  void TearDown() override {
    if (mounted_) ::umount2(disk_.c_str(), MNT_DETACH);
  }
  DownloadJob disk_job(const std::string& url) {
    DownloadJob j = job(url);
    j.part = disk_ / "x.part";
    j.state = disk_ / "x.json";
    return j;
  }
  fs::path disk_;
  bool mounted_ = false;
};

TEST_F(FullDiskTest, IsSaidBeforeLoading) {
  const std::string large = random_bytes(6'000'000, 3);
  TestServer server([&](const Request& r) { return reply_with(r, large); });
  const auto report = download_file(disk_job(server.url("/m")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kResourceExhausted);
  EXPECT_THAT(report.error().message, HasSubstr("6.0 MB"));
  EXPECT_EQ(server.n_requests(), 1u);
}

TEST_F(FullDiskTest, InTheMiddleKeepsThePart) {
  std::atomic<std::int64_t> rate{250'000};
  TestServer server([&](const Request& r) {
    Reply reply = reply_with(r, body_);
    reply.bytes_per_s = rate;
    return reply;
  });
  DownloadJob j = disk_job(server.url("/m"));
  j.sha256 = sha256_hex(body_);
  bool is_filled = false;
  j.on_bytes = [&](std::int64_t done, std::int64_t) {
    if (done < 500'000 || is_filled) return;
    is_filled = true;  // somebody else takes what is left
    std::ofstream(disk_ / "ballast", std::ios::binary) << std::string(5'000'000, 'b');
  };
  const auto stopped = download_file(j, options_, cancel_);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Code::kResourceExhausted);
  EXPECT_THAT(stopped.error().message, HasSubstr("disk is full"));
  fs::remove(disk_ / "ballast");
  rate = 0;
  const auto report = download_file(j, options_, cancel_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(content_of(j.part), body_);
}

TEST_F(FullDiskTest, WithUnknownLengthEndsWithASentence) {
  const std::string large = random_bytes(6'000'000, 3);
  TestServer server([&](const Request&) { return Reply{.body = large, .has_length = false}; });
  const auto report = download_file(disk_job(server.url("/m")), options_, cancel_);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::kResourceExhausted);
}

}  // namespace
}  // namespace still
