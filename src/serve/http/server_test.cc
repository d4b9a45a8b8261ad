// The HTTP front over real sockets: what clients do right, wrong and on purpose.
#include "serve/http/server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "serve/http/exchange.h"
#include "serve/http/test_client.h"

namespace still {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// Counts what it takes; after `n_room` bytes the disk is full.
class CountingSink : public BodySink {
 public:
  explicit CountingSink(std::int64_t n_room) : n_room_(n_room) { ++n_alive; }
  ~CountingSink() override { --n_alive; }
  Status write(std::string_view bytes) override {
    largest_ = std::max(largest_, bytes.size());
    for (const char c : bytes) sum_ = sum_ * 31 + static_cast<unsigned char>(c);
    n_ += static_cast<std::int64_t>(bytes.size());
    if (n_ > n_room_) return error(Code::kResourceExhausted, "the disk is full");
    return ok();
  }
  std::string report() const { return fmt::format("{} {:x}", n_, sum_); }
  std::size_t largest() const { return largest_; }
  static std::string report_of(std::string_view bytes) {
    CountingSink sink(std::numeric_limits<std::int64_t>::max());
    EXPECT_TRUE(sink.write(bytes));
    return sink.report();
  }
  static inline std::atomic<int> n_alive{0};

 private:
  std::int64_t n_room_, n_ = 0;
  std::uint64_t sum_ = 0;
  std::size_t largest_ = 0;
};

// A server with a few routes; the test holds writers of streams by path.
class HttpFront : public testing::Test {
 protected:
  void SetUp() override { start({}); }
  void TearDown() override {
    server_.reset();
    writers_.clear();
  }

  void start(HttpServerOptions options) {
    server_.reset();
    options.tick = 20ms;
    auto server = HttpServer::listen(
        options,
        {.plan_body = [](const HttpRequest& request) -> BodyPlan {
           if (request.path == "/sink") return {.sink = std::make_shared<CountingSink>(std::int64_t{1} << 40)};
           if (request.path == "/sink/full") return {.sink = std::make_shared<CountingSink>(1 << 20)};
           return {.answers_now = request.path == "/now"};
         },
         .handle = [this](auto request, auto writer) { handle(std::move(request), std::move(writer)); },
         .refuse = [](const HttpRequest&, int status,
                      const std::string& sentence) { return HttpResponse{.status = status, .body = sentence}; },
         .done =
             [this](const HttpRecord& record) {
               const std::lock_guard lock(mutex_);
               records_.push_back(record);
               changed_.notify_all();
             }});
    ASSERT_TRUE(server) << server.error().message;
    server_ = std::move(*server);
    server_->start();
  }

  void handle(std::shared_ptr<HttpRequest> request, std::shared_ptr<ExchangeWriter> writer) {
    if (request->path == "/echo") {
      writer->send({.content_type = "text/plain",
                    .body = fmt::format("{} {} [{}]", request->method, request->query.size(), request->body)});
    } else if (request->path.starts_with("/hold")) {
      const std::lock_guard lock(mutex_);
      writer->on_closed([this] {
        const std::lock_guard inner(mutex_);
        ++n_gone_;
        changed_.notify_all();
      });
      writers_[request->path] = std::move(writer);
      changed_.notify_all();
    } else if (request->path.starts_with("/sink")) {
      const auto& sink = dynamic_cast<CountingSink&>(*request->sink);
      EXPECT_TRUE(request->body.empty());
      EXPECT_LE(sink.largest(), std::size_t{1} << 20);
      writer->send({.content_type = "text/plain", .body = sink.report()});
    } else if (request->path == "/now") {
      writer->send({.status = 401, .body = fmt::format("no [{}]", request->body)});
    } else if (request->path == "/drop") {
      // Nobody answers.
    } else if (request->path == "/big") {
      writer->send({.content_type = "text/plain", .body = std::string(20 << 20, 'x')});
    } else {
      writer->send({.status = 404, .body = "none"});
    }
  }

  std::shared_ptr<ExchangeWriter> writer(const std::string& path) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, 5s, [&] { return writers_.contains(path); });
    return writers_[path];
  }
  bool wait_gone(int n, std::chrono::milliseconds timeout = 3000ms) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return n_gone_ >= n; });
  }
  HttpRecord wait_record(std::size_t n = 1) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, 5s, [&] { return records_.size() >= n; });
    return records_.size() >= n ? records_[n - 1] : HttpRecord{};
  }
  TestClient connect(int receive_buffer = 0) { return TestClient(server_->port(), receive_buffer); }
  std::string ask(std::string_view bytes) {
    TestClient client = connect();
    client.send(bytes);
    return client.read_all(3000);
  }

  std::unique_ptr<HttpServer> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<ExchangeWriter>> writers_;
  std::vector<HttpRecord> records_;
  int n_gone_ = 0;
};

constexpr std::string_view kGet = "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n";

TEST_F(HttpFront, AnswersAndKeepsTheConnection) {
  TestClient client = connect();
  for (int i = 0; i < 3; ++i) {
    client.send("POST /echo?a=1&b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    const std::string answer = client.read_until("[hello]");
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_THAT(answer, HasSubstr("\r\nContent-Length: 14\r\n"));
    EXPECT_THAT(answer, HasSubstr("\r\nX-Request-Id: "));
    EXPECT_THAT(answer, HasSubstr("POST 2 [hello]"));
  }
  const HttpRecord record = wait_record(3);
  EXPECT_EQ(record.status, 200);
  EXPECT_EQ(record.outcome, HttpOutcome::kDone);
  EXPECT_EQ(record.request->path, "/echo");
}

TEST_F(HttpFront, ReadsRequestsSplitAnywhere) {
  TestClient client = connect();
  const std::string request =
      "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n";
  for (const char c : request) client.send({&c, 1});
  EXPECT_THAT(client.read_until("]"), HasSubstr("POST 0 [abcdefg]"));
}

TEST_F(HttpFront, AnswersPipelinedRequestsInOrder) {
  TestClient client = connect();
  std::string all;
  for (int i = 0; i < 50; ++i) {
    all += fmt::format("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{:02}", i);
  }
  client.send(all);
  for (int i = 0; i < 50; ++i) EXPECT_THAT(client.read_until("]"), HasSubstr(fmt::format("[{:02}]", i)));
}

// Held back: what one thread flushes for many streams. What others flush meanwhile goes out, and takes it along.
TEST_F(HttpFront, SendsWhatWasHeldWhenItIsLetGo) {
  std::vector<TestClient> clients;
  std::vector<std::shared_ptr<ExchangeWriter>> streams;
  for (int i = 0; i < 3; ++i) {
    const std::string path = fmt::format("/hold/{}", i);
    clients.push_back(connect());
    clients.back().send(fmt::format("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", path));
    streams.push_back(writer(path));
    ASSERT_TRUE(streams.back());
    streams.back()->start(200, "text/plain", {});
  }
  server_->hold_wakes();
  for (const auto& stream : streams) {
    stream->write("first.");
    stream->flush();
  }
  EXPECT_EQ(clients[0].read_until("first.", 100), "");
  server_->let_wakes_go();
  for (TestClient& client : clients) EXPECT_THAT(client.read_until("first."), HasSubstr("first."));

  server_->hold_wakes();
  streams[0]->write("second.");
  streams[0]->flush();
  std::thread([&] {
    streams[1]->write("second.");
    streams[1]->flush();
  }).join();
  EXPECT_THAT(clients[1].read_until("second."), HasSubstr("second."));
  streams[2]->write("second.");
  streams[2]->flush();
  server_->let_wakes_go();
  EXPECT_THAT(clients[0].read_until("second."), HasSubstr("second."));
  EXPECT_THAT(clients[2].read_until("second."), HasSubstr("second."));
  server_->hold_wakes();
  server_->let_wakes_go();  // nothing was flushed
  for (const auto& stream : streams) stream->finish();
  for (TestClient& client : clients) EXPECT_THAT(client.read_until("0\r\n\r\n"), HasSubstr("0\r\n\r\n"));
}

TEST_F(HttpFront, StreamsInChunks) {
  TestClient client = connect();
  client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto stream = writer("/hold");
  stream->start(200, "text/event-stream", {{"X-A", "b\r\nc"}});
  stream->write("data: 1\n\n");
  stream->write("data: 2\n\n");
  stream->flush();
  EXPECT_THAT(client.read_until("data: 2\n\n\r\n"), HasSubstr("Transfer-Encoding: chunked\r\n\r\n12\r\ndata: 1"));
  stream->write("end");
  stream->finish();
  EXPECT_EQ(client.read_until("0\r\n\r\n"), "3\r\nend\r\n0\r\n\r\n");
  client.send(kGet);  // the connection is still good
  EXPECT_THAT(client.read_until("]"), HasSubstr("GET 0 []"));
  EXPECT_EQ(n_gone_, 0);
}

TEST_F(HttpFront, StreamsToOldClientsUntilTheEnd) {
  TestClient client = connect();
  client.send("GET /hold HTTP/1.0\r\n\r\n");
  const auto stream = writer("/hold");
  stream->start(200, "text/plain", {});
  stream->write("abc");
  stream->finish();
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
  EXPECT_THAT(answer, Not(HasSubstr("chunked")));
  EXPECT_TRUE(answer.ends_with("\r\n\r\nabc"));
  EXPECT_TRUE(client.is_ended());
}

TEST_F(HttpFront, HeadHasNoBody) {
  TestClient client = connect();
  client.send("HEAD /echo HTTP/1.1\r\nHost: a\r\n\r\n");
  const std::string answer = client.read_all(300);
  EXPECT_THAT(answer, HasSubstr("Content-Length: 9\r\n"));
  EXPECT_TRUE(answer.ends_with("\r\n\r\n"));
}

TEST_F(HttpFront, RefusesBadRequestsInWords) {
  EXPECT_THAT(ask("nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask("GET / HTTP/1.1\r\n\r\n"), HasSubstr("Host"));
  EXPECT_THAT(ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask("GET / HTTP/3.7\r\nHost: a\r\n\r\n"), StartsWith("HTTP/1.1 505"));
  EXPECT_THAT(ask("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
              StartsWith("HTTP/1.1 400"));
  // Request smuggling needs two lengths.
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
              StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 3\r\n\r\n"),
              StartsWith("HTTP/1.1 417"));
  // Others do not notice.
  EXPECT_THAT(ask("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpFront, LimitsHeadersAndBodies) {
  start({.max_header_bytes = 4096, .max_body_bytes = 1000});
  const std::string long_header = "GET /echo HTTP/1.1\r\nHost: a\r\nX: " + std::string(100000, 'x') + "\r\n\r\n";
  EXPECT_THAT(ask(long_header), StartsWith("HTTP/1.1 431"));
  std::string many_headers = "GET /echo HTTP/1.1\r\nHost: a\r\n";
  for (int i = 0; i < 5000; ++i) many_headers += fmt::format("A{}: b\r\n", i);
  EXPECT_THAT(ask(many_headers + "\r\n"), StartsWith("HTTP/1.1 431"));
  // Line by line, without an end.
  TestClient patient = connect();
  patient.send("GET /echo HTTP/1.1\r\nHost: a\r\n");
  for (int i = 0; i < 5000 && patient.send(fmt::format("A{}: b\r\n", i)); ++i) {
  }
  EXPECT_THAT(patient.read_all(), StartsWith("HTTP/1.1 431"));
  for (const std::string_view begin : {"1;", "0\r\n"}) {
    TestClient chunker = connect();
    chunker.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    chunker.send(begin);
    for (int i = 0; i < 5000 && chunker.send(begin == "0\r\n" ? "Aaaa: b\r\n" : "aaaa=b;"); ++i) {
    }
    EXPECT_THAT(chunker.read_all(), StartsWith("HTTP/1.1 431")) << begin;
  }
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n"), StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n" +
                  std::string(2048, 'b') + "\r\n0\r\n\r\n"),
              StartsWith("HTTP/1.1 413"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Encoding: br\r\n\r\nabcde"),
              StartsWith("HTTP/1.1 415"));
}

TEST_F(HttpFront, AsksForTheBodyThatIsExpected) {
  TestClient client = connect();
  client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("abc");
  EXPECT_THAT(client.read_until("]"), HasSubstr("[abc]"));
}

TEST_F(HttpFront, TimesOutSlowRequestsAndIdleConnections) {
  start({.header_timeout = 200ms, .body_timeout = 200ms, .idle_timeout = 400ms});
  EXPECT_THAT(ask("GET /echo HT"), StartsWith("HTTP/1.1 408"));
  EXPECT_THAT(ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"), StartsWith("HTTP/1.1 408"));
  TestClient idle = connect();
  EXPECT_EQ(idle.read_all(3000), "");
  EXPECT_TRUE(idle.is_ended());
}

TEST_F(HttpFront, NoticesClientsThatLeaveWhileTheyWait) {
  TestClient closing = connect(), resetting = connect();
  closing.send("GET /hold/1 HTTP/1.1\r\nHost: a\r\n\r\n");
  resetting.send("GET /hold/2 HTTP/1.1\r\nHost: a\r\n\r\n");
  ASSERT_TRUE(writer("/hold/1"));
  ASSERT_TRUE(writer("/hold/2"));
  closing.close();
  resetting.reset();
  EXPECT_TRUE(wait_gone(2));
  EXPECT_TRUE(writer("/hold/1")->is_closed());
  EXPECT_EQ(wait_record(1).status, 499);
  EXPECT_EQ(wait_record(1).outcome, HttpOutcome::kClientGone);
}

TEST_F(HttpFront, NoticesClientsThatLeaveASilentStream) {
  TestClient client = connect();
  client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto stream = writer("/hold");
  stream->start(200, "text/plain", {});
  stream->flush();
  EXPECT_THAT(client.read_until("\r\n\r\n"), HasSubstr("chunked"));
  client.close();
  EXPECT_TRUE(wait_gone(1));
}

TEST_F(HttpFront, AnswersClientsThatOnlyStoppedSending) {
  TestClient client = connect();
  client.send("GET /hold/1 HTTP/1.1\r\nHost: a\r\n\r\n");
  client.close_sending();
  const auto held = writer("/hold/1");
  EXPECT_THAT(client.read_until("\r\n\r\n"), HasSubstr("100 Continue"));  // asks whether it is there
  EXPECT_FALSE(held->is_closed());
  held->send({.body = "answer"});
  EXPECT_THAT(client.read_all(), HasSubstr("answer"));

  TestClient streaming = connect();
  streaming.send("GET /hold/2 HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto stream = writer("/hold/2");
  stream->start(200, "text/plain", {});
  stream->flush();
  streaming.close_sending();
  std::this_thread::sleep_for(100ms);  // some leading zeros of the next chunk's size
  stream->write("abc");
  stream->finish();
  const std::string answer = streaming.read_all();
  const std::size_t body = answer.find("\r\n\r\n") + 4;
  EXPECT_EQ(answer.substr(answer.find_first_not_of('0', body)), "3\r\nabc\r\n0\r\n\r\n");
  EXPECT_EQ(n_gone_, 0);
}

TEST_F(HttpFront, RefusesRequestsThatEndTooSoon) {
  TestClient client = connect();
  client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nabc");
  client.close_sending();
  EXPECT_THAT(client.read_all(), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpFront, CutsClientsThatNeverRead) {
  start({.max_backlog_bytes = 1 << 20, .write_timeout = 60000ms});
  TestClient client = connect(4096);
  client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto stream = writer("/hold");
  stream->start(200, "text/plain", {});
  const std::string piece(64 << 10, 'x');
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 2000 && !stream->is_closed(); ++i) {
    stream->write(piece);
    stream->flush();
    if (i > 200) std::this_thread::sleep_for(1ms);
  }
  EXPECT_TRUE(stream->is_closed());
  EXPECT_LT(std::chrono::steady_clock::now() - start, 20s);
  EXPECT_TRUE(wait_gone(1));
  EXPECT_EQ(wait_record().outcome, HttpOutcome::kTooSlow);
}

TEST_F(HttpFront, GivesUpWritingWhereNothingIsTaken) {
  start({.write_timeout = 300ms});
  TestClient client = connect(4096);
  client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(wait_record().outcome, HttpOutcome::kTooSlow);
}

TEST_F(HttpFront, SendsLargeBodiesWhole) {
  TestClient client = connect();
  client.send("GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_GT(client.read_all(20000).size(), std::size_t{20} << 20);
}

std::string many_bytes(std::size_t n) {
  std::string bytes(n, '\0');
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  return bytes;
}

TEST_F(HttpFront, HandsLargeBodiesToASinkAsTheyCome) {
  const std::string bytes = many_bytes((std::size_t{40} << 20) + 17);  // more than a body in memory may have
  TestClient client = connect();
  for (int i = 0; i < 2; ++i) {
    client.send(fmt::format("POST /sink HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", bytes.size()));
    client.send(bytes);
    EXPECT_THAT(client.read_until(CountingSink::report_of(bytes), 20000), StartsWith("HTTP/1.1 200 OK\r\n"));
  }
  client.send("POST /sink HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (std::size_t at = 0; at < bytes.size(); at += 1000000) {
    const std::string_view piece = std::string_view(bytes).substr(at, 1000000);
    client.send(fmt::format("{:x}\r\n", piece.size()));
    client.send(piece);
    client.send("\r\n");
  }
  client.send("0\r\n\r\n");
  EXPECT_THAT(client.read_until(CountingSink::report_of(bytes), 20000), StartsWith("HTTP/1.1 200 OK\r\n"));
  // Small and empty ones, and a request behind one in the same bytes.
  client.send("POST /sink HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcPOST /echo HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(client.read_until("]"), HasSubstr(CountingSink::report_of("abc")));
}

TEST_F(HttpFront, ASinkThatCannotGoOnIsAnError) {
  const std::string bytes = many_bytes(std::size_t{3} << 20);
  TestClient client = connect();
  client.send(fmt::format("POST /sink/full HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", bytes.size()));
  client.send(bytes);
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 507 "));
  EXPECT_THAT(answer, HasSubstr("the disk is full"));
  EXPECT_TRUE(client.is_ended());
}

TEST_F(HttpFront, ASinkGoesWithItsClient) {
  for (const bool is_abrupt : {false, true}) {
    TestClient client = connect();
    client.send("POST /sink HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000000000\r\n\r\n");
    client.send(many_bytes(std::size_t{1} << 20));
    for (int i = 0; i < 250 && CountingSink::n_alive == 0; ++i) std::this_thread::sleep_for(20ms);
    EXPECT_EQ(CountingSink::n_alive, 1);
    if (is_abrupt) {
      client.reset();
    } else {
      client.close();
    }
    for (int i = 0; i < 250 && CountingSink::n_alive > 0; ++i) std::this_thread::sleep_for(20ms);
    EXPECT_EQ(CountingSink::n_alive, 0);
  }
}

TEST_F(HttpFront, AnswersWithoutABodyThatIsNotWanted) {
  TestClient client = connect();
  client.send("POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000000000\r\n\r\nabc");
  const std::string answer = client.read_all();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
  EXPECT_THAT(answer, HasSubstr("no []"));
}

TEST_F(HttpFront, AnUnansweredRequestIsAnError) {
  EXPECT_THAT(ask("GET /drop HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), StartsWith("HTTP/1.1 500"));
}

TEST_F(HttpFront, AnAbortedStreamIsNotTakenForWhole) {
  TestClient client = connect();
  client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  auto stream = writer("/hold");
  stream->start(200, "text/plain", {});
  stream->write("half");
  stream->abort();
  const std::string answer = client.read_all();
  EXPECT_TRUE(client.is_ended());
  EXPECT_TRUE(answer.ends_with("4\r\nhalf\r\n")) << answer;
}

TEST_F(HttpFront, LimitsConnections) {
  start({.max_connections = 2});
  TestClient one = connect(), two = connect();
  one.send(kGet);
  two.send(kGet);
  one.read_until("]");
  two.read_until("]");
  TestClient three = connect();
  three.send(kGet);
  EXPECT_THAT(three.read_all(), StartsWith("HTTP/1.1 503"));
  one.send(kGet);
  EXPECT_THAT(one.read_until("]"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpFront, HoldsAThousandIdleConnections) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 8192);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 2200) GTEST_SKIP() << "only " << limit.rlim_cur << " open files are allowed";
  std::vector<TestClient> clients;
  for (int i = 0; i < 1000; ++i) {
    clients.push_back(connect());
    ASSERT_TRUE(clients.back().is_connected()) << i;
  }
  clients.front().send(kGet);
  EXPECT_THAT(clients.front().read_until("]"), StartsWith("HTTP/1.1 200"));
  clients.back().send(kGet);
  EXPECT_THAT(clients.back().read_until("]"), StartsWith("HTTP/1.1 200"));
  EXPECT_GE(server_->stats().n_connections, 1000);
}

TEST_F(HttpFront, DrainsWhatRunsAndClosesTheRest) {
  TestClient fresh = connect(), idle = connect(), busy = connect();
  idle.send(kGet);
  idle.read_until("]");
  busy.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto stream = writer("/hold");
  stream->start(200, "text/plain", {});
  stream->flush();
  server_->drain();
  EXPECT_EQ(idle.read_all(2000), "");
  EXPECT_TRUE(idle.is_ended());
  // One that had connected, and sends its request only now, is answered like those that come later.
  fresh.send(kGet);
  EXPECT_THAT(fresh.read_all(2000), HasSubstr("Connection: close"));
  EXPECT_TRUE(fresh.is_ended());
  EXPECT_FALSE(server_->wait_idle(50ms));
  stream->write("last");
  stream->finish();
  EXPECT_TRUE(server_->wait_idle(2000ms));
  EXPECT_THAT(busy.read_until("0\r\n\r\n"), HasSubstr("last"));
  // What comes is answered, and its connection ends.
  TestClient late = connect();
  late.send(kGet);
  EXPECT_THAT(late.read_all(2000), HasSubstr("Connection: close"));
  EXPECT_TRUE(late.is_ended());
  server_->stop();
  EXPECT_FALSE(connect().is_connected());
}

TEST_F(HttpFront, WritersOutliveTheServer) {
  TestClient client = connect();
  client.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto stream = writer("/hold");
  stream->start(200, "text/plain", {});
  server_.reset();
  EXPECT_TRUE(stream->is_closed());
  stream->write("x");
  stream->flush();
  stream->finish();
}

TEST_F(HttpFront, ManyThreadsWriteManyStreams) {
  constexpr int kStreams = 24, kPieces = 200;
  std::vector<TestClient> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(connect());
    clients.back().send(fmt::format("GET /hold/{} HTTP/1.1\r\nHost: a\r\n\r\n", i));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < kStreams; i += 4) writer(fmt::format("/hold/{}", i))->start(200, "text/plain", {});
      for (int piece = 0; piece < kPieces; ++piece) {
        for (int i = t; i < kStreams; i += 4) {
          const auto stream = writer(fmt::format("/hold/{}", i));
          stream->write(fmt::format("<{}:{}>", i, piece));
          stream->flush();
        }
      }
      for (int i = t; i < kStreams; i += 4) writer(fmt::format("/hold/{}", i))->finish();
    });
  }
  for (int i = 0; i < kStreams; ++i) {
    const std::string answer = clients[static_cast<std::size_t>(i)].read_until("0\r\n\r\n", 20000);
    std::size_t at = 0;
    for (int piece = 0; piece < kPieces; ++piece) {
      at = answer.find(fmt::format("<{}:{}>", i, piece), at);
      ASSERT_NE(at, std::string::npos) << i << " " << piece;
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace still
