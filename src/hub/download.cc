// See download.h. One thread drives all connections of the file (curl's multi interface); a second one hashes.
//   probe()     one request for the first byte: size, ETag, does the server know ranges
//   transfer()  hands the gaps to free connections in pieces, takes failures back into the queue with a delay
//   finish()    sync, digest
#include "hub/download.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <thread>

#include "base/json.h"
#include "hub/file_io.h"
#include "hub/http.h"
#include "hub/range_set.h"
#include "hub/sha256.h"

namespace still {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kStateSchema = 1;
constexpr auto kSaveEvery = std::chrono::seconds(2);
constexpr auto kTellEvery = std::chrono::milliseconds(100);
constexpr std::string_view kAlsoResumed = "part of it came from an earlier run";
constexpr int kMaxFreshStarts = 3;  // an entity that changes more often is not fetched

// What the server said about the file in the probe.
struct Entity {
  std::int64_t size = -1;
  std::string etag;  // as sent, quotes included
  std::string last_modified;
  bool has_ranges = false;

  // A validator that If-Range may carry: strong ETags or a date (RFC 9110, 13.1.5); empty if there is none.
  std::string validator() const {
    if (!etag.empty() && !etag.starts_with("W/")) return etag;
    return last_modified;
  }
};

// Bytes to fetch: [pos, end) is still missing; end -1: to the end of a body of unknown length.
struct Piece {
  std::int64_t pos = 0;
  std::int64_t end = -1;
  int n_failures = 0;  // in a row without a new byte
  Clock::time_point not_before{};
};

enum class Outcome { kNone, kChanged, kFatal };  // kChanged: the entity is another one now, start afresh

class Downloader;

struct Connection {
  Downloader* owner = nullptr;
  CurlHandle curl;
  CurlHeaders headers;
  HttpHead head;
  Piece piece;
  std::int64_t begin = 0;   // of the request
  bool is_checked = false;  // the response's headers fit the request
  bool is_ranged = false;
  bool is_direct = false;  // asked the place the URL redirects to, not the URL itself
};

struct MultiDeleter {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};

class Downloader {
 public:
  Downloader(const DownloadJob& job, const HubOptions& options, const CancelToken& cancel)
      : job_(job), options_(options), cancel_(cancel) {}

  Result<DownloadReport> run() {
    STILL_TRY(part_, open_file(job_.part, O_RDWR | O_CREAT));
    load_state();
    for (int n_starts = 0;; ++n_starts) {
      STILL_TRY_STATUS(probe());
      const std::int64_t total = entity_.size >= 0 ? entity_.size : 0;
      STILL_TRY_STATUS(check_free_bytes(job_.part.parent_path(),
                                        std::max<std::int64_t>(0, total - allocated_bytes(job_.part)), job_.from.url));
      report_.resumed_bytes = done_.total();
      hasher_ = std::make_unique<PrefixHasher>(part_.get(), job_.part);
      Status status = transfer();
      if (status) return finish();
      hasher_.reset();
      if (outcome_ != Outcome::kChanged || n_starts >= kMaxFreshStarts) {
        if (status.error().code != Code::kCorrupt) save_state();
        return tl::unexpected(status.error());
      }
      note(fmt::format("{} changed while it was loaded: starting from the beginning", host_of(job_.from.url)));
      STILL_TRY_STATUS(forget());
    }
  }

 private:
  static std::size_t on_header(char* data, std::size_t size, std::size_t n, void* user) {
    static_cast<Connection*>(user)->head.take_line({data, size * n});
    return size * n;
  }
  static std::size_t on_body(char* data, std::size_t size, std::size_t n, void* user) {
    auto& connection = *static_cast<Connection*>(user);
    return connection.owner->take_bytes(connection, data, static_cast<std::int64_t>(size * n)) ? size * n : 0;
  }

  void note(const std::string& line) const {
    if (job_.on_note) job_.on_note(line);
  }

  // --- the state of earlier runs

  void load_state() {
    const Result<std::string> text = read_text_file(job_.state, 64 << 20);
    const Result<Json> json = text ? parse_json(*text, job_.state.string()) : Result<Json>(Json());
    const JsonObject* state = json ? json->if_object() : nullptr;
    if (state == nullptr) return;
    const auto number = [](const Json* value) {
      return value != nullptr && value->is_int64() ? value->get_int64() : std::int64_t{-1};
    };
    const auto string = [&](std::string_view key) {
      const Json* value = state->if_contains(key);
      return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
    };
    // Bytes of another mirror are as good when the digest says that they are the same file.
    const bool same_url = string("url") == job_.from.url;
    const bool same_digest = !job_.sha256.empty() && string("sha256") == job_.sha256;
    const Json* done = state->if_contains("done");
    if (number(state->if_contains("schema")) != kStateSchema || !(same_url || same_digest) || done == nullptr ||
        !done->is_array()) {
      return;
    }
    entity_.size = number(state->if_contains("size"));
    if (same_url) {
      entity_.etag = string("etag");
      entity_.last_modified = string("last_modified");
    }
    resumed_url_ = same_url;
    std::error_code failure;
    const auto on_disk = static_cast<std::int64_t>(std::filesystem::file_size(job_.part, failure));
    for (const Json& range : done->get_array()) {
      const JsonArray* pair = range.if_array();
      if (pair == nullptr || pair->size() != 2) continue;
      const std::int64_t begin = number(&pair->at(0)), end = number(&pair->at(1));
      if (begin >= 0 && end > begin && end <= entity_.size && end <= on_disk) done_.add(begin, end);
    }
  }

  // Best effort: when the disk is full the older state stays, which claims less than what is here.
  void save_state() {
    if (done_.total() == 0 || !entity_.has_ranges) return;
    // First the data, then the claim that it is there: a power failure must not leave a claim alone.
    if (::fdatasync(part_.get()) != 0) return;
    JsonArray done;
    for (const auto& [begin, end] : done_.ranges()) done.push_back(JsonArray{begin, end});
    const JsonObject state{{"schema", kStateSchema}, {"url", job_.from.url}, {"sha256", job_.sha256},
                           {"size", entity_.size},   {"etag", entity_.etag}, {"last_modified", entity_.last_modified},
                           {"done", std::move(done)}};
    if (!write_file_atomic(job_.state, to_json(state))) return;
    last_save_ = Clock::now();
  }

  Status forget() {
    done_.clear();
    ::unlink(job_.state.c_str());
    if (::ftruncate(part_.get(), 0) != 0) return system_error(errno, "cannot shorten", job_.part);
    return ok();
  }

  // --- what the server has

  Status probe() {
    STILL_TRY(const HttpReply response, http_get({.url = job_.from.url,
                                                  .headers = job_.from.headers,
                                                  .help = job_.from.help,
                                                  .range = "0-0",
                                                  .head_only = true},
                                                 options_, cancel_));
    const HttpHead& head = response.head;
    Entity now{.etag = head.header("etag"), .last_modified = head.header("last-modified")};
    if (head.status == 206) {
      STILL_TRY(const ContentRange range, parse_content_range(head.header("content-range")));
      now.size = range.total;
      now.has_ranges = range.total >= 0 && range.begin == 0;
    } else {
      const std::string length = head.header("content-length");
      std::from_chars(length.data(), length.data() + length.size(), now.size);
    }
    if (job_.size >= 0 && now.size >= 0 && now.size != job_.size) {
      return error(Code::kCorrupt, "{}: has {} bytes there, expected {}", job_.from.url, now.size, job_.size);
    }
    direct_url_ = head.effective_url == job_.from.url ? "" : head.effective_url;
    const bool same_validator = !resumed_url_ || entity_.validator() == now.validator();
    if (done_.total() > 0 && (!now.has_ranges || now.size != entity_.size || !same_validator)) {
      note(now.has_ranges ? "the file changed since the last run: starting from the beginning"
                          : "the server cannot resume: starting from the beginning");
      STILL_TRY_STATUS(forget());
    }
    resumed_url_ = true;
    entity_ = now;
    if (entity_.size == 0) return error(Code::kCorrupt, "{}: is empty there", job_.from.url);
    return ok();
  }

  // --- moving bytes

  Status transfer() {
    outcome_ = Outcome::kNone;
    failure_ = ok();
    queue_.clear();
    if (!entity_.has_ranges) {
      STILL_TRY_STATUS(forget());
      queue_.push_back({.pos = 0, .end = entity_.size});
    } else {
      for (auto [begin, end] : done_.gaps(entity_.size)) queue_.push_back({.pos = begin, .end = end});
    }
    hasher_->extend(done_.prefix());
    const std::unique_ptr<CURLM, MultiDeleter> multi(curl_multi_init());
    std::vector<std::unique_ptr<Connection>> active;
    const auto leave = [&] {
      for (const auto& connection : active) curl_multi_remove_handle(multi.get(), connection->curl.get());
      active.clear();
    };
    last_save_ = Clock::now();
    while (!queue_.empty() || !active.empty()) {
      if (cancel_.is_cancelled()) {
        leave();
        return error(Code::kCancelled, "stopped at {} of {}; {}", format_bytes(done_.total()),
                     entity_.size < 0 ? "an unknown size" : format_bytes(entity_.size),
                     entity_.has_ranges ? "the part is kept, pull again to go on"
                                        : "this server cannot resume, another pull starts from the beginning");
      }
      start_connections(multi.get(), active);
      int n_running = 0;
      curl_multi_perform(multi.get(), &n_running);
      take_finished(multi.get(), active);
      if (outcome_ != Outcome::kNone) {
        leave();
        return failure_ ? error(Code::kInternal, "{}: stopped without a reason", job_.from.url) : failure_;
      }
      tell();
      if (entity_.has_ranges && Clock::now() - last_save_ > kSaveEvery) save_state();
      curl_multi_poll(multi.get(), nullptr, 0, 50, nullptr);
    }
    return ok();
  }

  void start_connections(CURLM* multi, std::vector<std::unique_ptr<Connection>>& active) {
    const int n_wanted = entity_.has_ranges ? std::max(1, options_.n_connections) : 1;
    while (static_cast<int>(active.size()) < n_wanted) {
      const auto now = Clock::now();
      const auto it = std::find_if(queue_.begin(), queue_.end(), [&](const Piece& p) { return p.not_before <= now; });
      if (it == queue_.end()) return;
      Piece piece = *it;
      // Small files are shared out too, but not below 256 kB a request.
      const std::int64_t share = std::max<std::int64_t>(1 << 18, entity_.size / n_wanted);
      const std::int64_t limit = std::min(options_.piece_bytes, share);
      if (entity_.has_ranges && piece.end - piece.pos > limit) {
        piece.end = piece.pos + limit;
        it->pos = piece.end;
        it->n_failures = 0;
      } else {
        queue_.erase(it);
      }
      active.push_back(start(piece));
      curl_multi_add_handle(multi, active.back()->curl.get());
    }
  }

  std::unique_ptr<Connection> start(const Piece& piece) {
    auto connection = std::make_unique<Connection>();
    connection->owner = this;
    connection->curl = make_curl(options_);
    connection->piece = piece;
    connection->begin = piece.pos;
    connection->is_ranged = entity_.has_ranges;
    CURL* curl = connection->curl.get();
    std::vector<std::string> headers;
    // Straight to where the URL redirected before, if that has not failed; the URL's own headers (tokens) stay at home.
    connection->is_direct = !direct_url_.empty();
    const std::string& url = connection->is_direct ? direct_url_ : job_.from.url;
    if (host_of(url) == host_of(job_.from.url)) headers = job_.from.headers;
    if (connection->is_ranged) {
      curl_easy_setopt(curl, CURLOPT_RANGE, fmt::format("{}-{}", piece.pos, piece.end - 1).c_str());
      if (!entity_.validator().empty()) headers.push_back("If-Range: " + entity_.validator());
    }
    connection->headers = make_headers(headers);
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, connection->headers.get());
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, connection.get());
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, connection.get());
    curl_easy_setopt(curl, CURLOPT_PRIVATE, connection.get());
    return connection;
  }

  void fail(Outcome outcome, Status failure) {
    if (outcome_ != Outcome::kNone) return;
    outcome_ = outcome;
    failure_ = std::move(failure);
  }

  // Before the first byte: does the answer belong to what was asked?
  bool check_response(Connection& connection) {
    connection.is_checked = true;
    const HttpHead& head = connection.head;
    const std::string encoding = head.header("content-encoding");
    if (!encoding.empty() && encoding != "identity") {
      fail(Outcome::kFatal,
           error(Code::kUnsupported, "{}: sent as {}, expected the plain bytes", job_.from.url, encoding));
      return false;
    }
    if (!connection.is_ranged) return head.status == 200;
    const auto changed = [&](std::string_view how) {
      fail(Outcome::kChanged, error(Code::kCorrupt, "{}: {} again and again while it is loaded", job_.from.url, how));
      return false;
    };
    if (head.status == 200) return changed("the file changes, or ranges are refused,");  // If-Range did not match
    const Result<ContentRange> range = parse_content_range(head.header("content-range"));
    if (!range || range->begin != connection.begin || range->end > connection.piece.end) {
      fail(Outcome::kFatal, error(Code::kCorrupt, "{}: asked for bytes {}-{}, got \"{}\"", job_.from.url,
                                  connection.begin, connection.piece.end - 1, head.header("content-range")));
      return false;
    }
    if (range->total != entity_.size) return changed("the size changes");
    const std::string etag = head.header("etag");
    if (!etag.empty() && !entity_.etag.empty() && etag != entity_.etag) return changed("the ETag changes");
    return true;
  }

  // False ends the connection; why is in outcome_, or the status is an error that take_finished() reads.
  bool take_bytes(Connection& connection, const char* data, std::int64_t size) {
    if (cancel_.is_cancelled() || outcome_ != Outcome::kNone) return false;
    if (connection.head.status >= 400) return true;  // the text of an error page is of no use
    if (!connection.is_checked && !check_response(connection)) return false;
    Piece& piece = connection.piece;
    if (piece.end >= 0 && size > piece.end - piece.pos) {
      fail(Outcome::kFatal, error(Code::kCorrupt, "{}: sends more bytes than announced", job_.from.url));
      return false;
    }
    if (Status written = write_at(part_.get(), data, size, piece.pos, job_.part); !written) {
      fail(Outcome::kFatal, std::move(written));
      return false;
    }
    done_.add(piece.pos, piece.pos + size);
    piece.pos += size;
    piece.n_failures = 0;
    report_.fetched_bytes += size;
    hasher_->extend(done_.prefix());
    return true;
  }

  void take_finished(CURLM* multi, std::vector<std::unique_ptr<Connection>>& active) {
    int n_left = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi, &n_left)) {
      if (message->msg != CURLMSG_DONE) continue;
      const CURLcode code = message->data.result;
      const auto it = std::find_if(active.begin(), active.end(),
                                   [&](const auto& c) { return c->curl.get() == message->easy_handle; });
      const std::unique_ptr<Connection> connection = std::move(*it);
      active.erase(it);
      curl_multi_remove_handle(multi, connection->curl.get());
      if (outcome_ == Outcome::kNone && !cancel_.is_cancelled()) settle(*connection, code);
    }
  }

  // A connection has ended: its piece is complete, or goes back into the queue, or ends the download.
  void settle(Connection& connection, CURLcode code) {
    Piece piece = connection.piece;
    const long status = connection.head.status;
    if (code == CURLE_OK && status < 400) {
      if (piece.end < 0) {  // the end of the body is the end of the file
        entity_.size = piece.pos;
        return;
      }
      if (piece.pos == piece.end) return;
    }
    if (status >= 400 && connection.is_direct) {
      direct_url_.clear();  // a signed address that has expired: ask the URL again
    } else if (status >= 400 && !is_retriable_status(status)) {
      return fail(Outcome::kFatal, http_status_error(status, job_.from.url, job_.from.help));
    }
    if (++piece.n_failures > options_.n_retries) {
      return fail(Outcome::kFatal, status >= 400      ? http_status_error(status, job_.from.url, job_.from.help)
                                   : code == CURLE_OK ? error(Code::kUnavailable,
                                                              "{}: the connection ends early each time", job_.from.url)
                                                      : curl_error(code, job_.from.url));
    }
    if (!connection.is_ranged) {  // without ranges only the whole body can be asked for again
      if (Status status_of_forget = forget(); !status_of_forget)
        return fail(Outcome::kFatal, std::move(status_of_forget));
      hasher_ = std::make_unique<PrefixHasher>(part_.get(), job_.part);
      piece.pos = 0;
      ++n_full_restarts_;
      piece.n_failures = n_full_restarts_;
      if (n_full_restarts_ > options_.n_retries) {
        return fail(Outcome::kFatal,
                    error(Code::kUnavailable, "{}: the connection breaks each time, and the server cannot resume",
                          job_.from.url));
      }
    }
    const auto delay = std::max(options_.backoff * std::min(1 << std::min(piece.n_failures - 1, 10), 30),
                                retry_after(connection.head));
    piece.not_before = Clock::now() + delay;
    if (piece.n_failures > 1 || status >= 400) {
      note(fmt::format("{}; trying again ({} of {})",
                       status >= 400 ? fmt::format("{} answered {}", host_of(job_.from.url), status)
                                     : fmt::format("the connection to {} failed", host_of(job_.from.url)),
                       piece.n_failures, options_.n_retries));
    }
    queue_.push_front(piece);
  }

  static std::chrono::milliseconds retry_after(const HttpHead& head) {
    const std::string text = head.header("retry-after");
    int seconds = 0;
    std::from_chars(text.data(), text.data() + text.size(), seconds);
    return std::chrono::seconds(std::clamp(seconds, 0, 60));
  }

  void tell() {
    const auto now = Clock::now();
    if (!job_.on_bytes || now - last_tell_ < kTellEvery) return;
    last_tell_ = now;
    job_.on_bytes(done_.total(), entity_.size);
  }

  // --- the end

  Result<DownloadReport> finish() {
    if (job_.on_bytes) job_.on_bytes(done_.total(), entity_.size);
    if (::ftruncate(part_.get(), entity_.size) != 0) return system_error(errno, "cannot shorten", job_.part);
    if (::fsync(part_.get()) != 0) return system_error(errno, "cannot sync", job_.part);
    STILL_TRY(report_.sha256, hasher_->finish_hex());
    report_.size = entity_.size;
    const auto refuse = [&](std::string message) {
      ::unlink(job_.part.c_str());
      ::unlink(job_.state.c_str());
      return error(Code::kCorrupt, "{}", message);
    };
    if (job_.size >= 0 && report_.size != job_.size) {
      return refuse(fmt::format("{}: has {} bytes, expected {}; what was loaded is removed", job_.from.url,
                                report_.size, job_.size));
    }
    if (!job_.sha256.empty() && report_.sha256 != job_.sha256) {
      return refuse(fmt::format("{}: has sha256 {}, expected {}; what was loaded is removed{}{}", job_.from.url,
                                report_.sha256, job_.sha256, report_.resumed_bytes > 0 ? ", " : "",
                                report_.resumed_bytes > 0 ? kAlsoResumed : ""));
    }
    ::unlink(job_.state.c_str());
    return std::move(report_);
  }

  const DownloadJob& job_;
  const HubOptions& options_;
  const CancelToken& cancel_;
  UniqueFd part_;
  Entity entity_;
  bool resumed_url_ = true;  // the state on disk is of this very URL, so its validator counts
  std::string direct_url_;   // where the URL redirects; empty: it does not, or that failed
  RangeSet done_;
  std::deque<Piece> queue_;
  std::unique_ptr<PrefixHasher> hasher_;
  Outcome outcome_ = Outcome::kNone;
  Status failure_;
  int n_full_restarts_ = 0;
  Clock::time_point last_save_{}, last_tell_{};
  DownloadReport report_;
};

}  // namespace

Result<DownloadReport> download_file(const DownloadJob& job, const HubOptions& options, const CancelToken& cancel) {
  Result<DownloadReport> report = Downloader(job, options, cancel).run();
  if (report || report.error().code != Code::kCorrupt) return report;
  // The bytes of an earlier run may have been the damaged ones: then once more, all from this one.
  if (!report.error().message.ends_with(kAlsoResumed)) return report;
  if (job.on_note) job.on_note(report.error().message + "; loading it all again");
  return Downloader(job, options, cancel).run();
}

}  // namespace still
