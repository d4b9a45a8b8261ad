#include "serve/access_log.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/json.h"

namespace still {
namespace {

constexpr std::size_t kMaxWaitingLines = 10000;
constexpr std::size_t kMaxPrompt = 16 << 10;

std::string now_rfc3339() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec, ms);
}

// A client's bytes are not UTF-8 because it says so; JSON must be.
std::string ascii(std::string_view text, std::size_t max) {
  std::string result;
  for (const char c : text.substr(0, max)) {
    result += c >= 0x20 && c < 0x7f ? c : '?';
  }
  return result;
}

double milliseconds(std::chrono::nanoseconds time) {
  return static_cast<double>(std::chrono::duration_cast<std::chrono::microseconds>(time).count()) / 1000.0;
}

const char* word_of(HttpOutcome outcome) {
  switch (outcome) {
    case HttpOutcome::kDone:
      return "done";
    case HttpOutcome::kClientGone:
      return "client_gone";
    case HttpOutcome::kTooSlow:
      return "client_too_slow";
    case HttpOutcome::kAborted:
      return "aborted";
  }
  return "";
}

}  // namespace

std::string access_line(const HttpRecord& record, bool with_prompts) {
  const HttpRequest& request = *record.request;
  JsonObject line{{"time", now_rfc3339()},
                  {"id", fmt::format("{:016x}", request.id)},
                  {"peer", request.peer},
                  {"method", ascii(request.method, 20)},
                  {"path", ascii(request.path, 300)},
                  {"status", record.status},
                  {"outcome", word_of(record.outcome)},
                  {"bytes_in", record.n_in},
                  {"bytes_out", record.n_out}};
  if (const std::string_view id = request.client_id(); !id.empty()) line["client_id"] = id;
  if (request.facts) {
    const std::lock_guard lock(request.facts->mutex);
    if (!request.facts->model.empty()) {
      line["model"] = request.facts->model;
      line["generation"] = request.facts->generation;
      line["prompt_tokens"] = request.facts->n_prompt;
      line["completion_tokens"] = request.facts->n_completion;
    }
  }
  if (!request.key.empty()) line["key"] = ascii(request.key, 100);
  if (const std::string_view agent = request.header("User-Agent"); !agent.empty()) {
    line["agent"] = ascii(agent, 200);
  }
  if (with_prompts && !request.body.empty()) line["body"] = ascii(request.body, kMaxPrompt);
  std::string text = to_json(line);
  text.pop_back();
  // Written here: the JSON library writes 0.478 as 4.78E-1.
  return text + fmt::format(",\"first_byte_ms\":{:.3f},\"ms\":{:.3f}}}\n", milliseconds(record.first_byte),
                            milliseconds(record.total));
}

Result<std::unique_ptr<AccessLog>> AccessLog::open(const std::filesystem::path& path, bool with_prompts) {
  std::FILE* file = stderr;
  if (!path.empty()) {
    file = std::fopen(path.c_str(), "ae");
    if (!file) return error(Code::kPermissionDenied, "access log {}: {}", path.string(), std::strerror(errno));
  }
  return std::unique_ptr<AccessLog>(new AccessLog(file, !path.empty(), with_prompts));
}

AccessLog::AccessLog(std::FILE* file, bool is_owned, bool with_prompts)
    : file_(file), is_owned_(is_owned), with_prompts_(with_prompts), thread_([this] { run(); }) {}

AccessLog::~AccessLog() {
  {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
  }
  ready_.notify_all();
  thread_.join();
  if (is_owned_) std::fclose(file_);
}

void AccessLog::request(const HttpRecord& record) {
  add(access_line(record, with_prompts_));
}

void AccessLog::event(const std::string& sentence) {
  add(to_json(JsonObject{{"time", now_rfc3339()}, {"event", sentence}}) + "\n");
}

void AccessLog::add(std::string line) {
  {
    const std::lock_guard lock(mutex_);
    if (lines_.size() >= kMaxWaitingLines) {
      ++n_lost_;
      return;
    }
    lines_.push_back(std::move(line));
  }
  ready_.notify_one();
}

void AccessLog::run() {
  std::unique_lock lock(mutex_);
  std::vector<std::string> lines;
  while (true) {
    ready_.wait(lock, [this] { return is_stopped_ || !lines_.empty(); });
    if (lines_.empty()) return;
    lines.swap(lines_);
    lock.unlock();
    for (const std::string& line : lines) {
      if (std::fwrite(line.data(), 1, line.size(), file_) != line.size()) ++n_lost_;
    }
    std::fflush(file_);
    lines.clear();
    lock.lock();
  }
}

}  // namespace still
