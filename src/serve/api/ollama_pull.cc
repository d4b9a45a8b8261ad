// See ollama_pull.h.
#include "serve/api/ollama_pull.h"

#include <fmt/format.h>

#include <algorithm>

#include "hub/catalogue.h"
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"

namespace still {

struct OllamaPulls::Transfer {
  std::string key;
  Work work;
  CancelToken cancel;
  std::mutex mutex;  // of the listeners; held while they are told, so that leave() returns only when none is called
  std::map<std::uint64_t, PullListener> listeners;
  std::vector<JsonObject> last;  // for a client that joins later: the newest line of each status
  bool is_done = false;

  void tell(const JsonObject& line) {
    const std::lock_guard lock(mutex);
    if (!last.empty() && last.back().at("status") == line.at("status")) last.pop_back();
    last.push_back(line);
    for (auto& [id, listener] : listeners) listener.line(line);
  }
};

OllamaPulls::~OllamaPulls() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    for (auto& [key, transfer] : transfers_) transfer->cancel.cancel();
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

std::size_t OllamaPulls::n_transfers() const {
  const std::lock_guard lock(mutex_);
  return transfers_.size();
}

std::uint64_t OllamaPulls::join(const std::string& key, PullListener listener, Work work) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t id = next_++;
  if (const auto found = transfers_.find(key); found != transfers_.end()) {
    Transfer& transfer = *found->second;
    const std::lock_guard inner(transfer.mutex);
    if (!transfer.is_done && !transfer.cancel.is_cancelled()) {
      for (const JsonObject& line : transfer.last) listener.line(line);
      transfer.listeners.emplace(id, std::move(listener));
      return id;
    }
  }
  auto transfer = std::make_shared<Transfer>();
  transfer->key = key;
  transfer->work = std::move(work);
  transfer->listeners.emplace(id, std::move(listener));
  if (closing_) {
    transfer->listeners.begin()->second.end(error(Code::kUnavailable, "the server is stopping"));
    return id;
  }
  transfers_[key] = transfer;
  threads_.emplace_back([this, transfer] { run(transfer); });
  return id;
}

void OllamaPulls::leave(const std::string& key, std::uint64_t listener) {
  const std::lock_guard lock(mutex_);
  const auto found = transfers_.find(key);
  if (found == transfers_.end()) return;
  const std::lock_guard inner(found->second->mutex);
  found->second->listeners.erase(listener);
  if (found->second->listeners.empty()) found->second->cancel.cancel();
}

void OllamaPulls::run(const std::shared_ptr<Transfer>& transfer) {
  const auto progress = [&](const Progress& news) { transfer->tell(pull_line(news)); };
  const Result<PullReport> report = transfer->work(progress, transfer->cancel);
  if (report) {
    for (const JsonObject& line : pull_last_lines(*report)) transfer->tell(line);
  }
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = transfers_.find(transfer->key); found != transfers_.end() && found->second == transfer) {
      transfers_.erase(found);
    }
    // Threads that ended before are joined here, so that their number stays that of the transfers under way.
    std::erase_if(threads_, [&](std::thread& thread) {
      if (thread.get_id() != std::this_thread::get_id() || closing_) return false;
      thread.detach();
      return true;
    });
  }
  const std::lock_guard lock(transfer->mutex);
  transfer->is_done = true;
  const Status status = report ? ok() : Status(tl::unexpected(report.error()));
  for (auto& [id, listener] : transfer->listeners) listener.end(status);
  transfer->listeners.clear();
}

namespace {

JsonObject layer_line(const std::string& digest, std::int64_t total, std::int64_t completed) {
  JsonObject line{{"status", fmt::format("pulling {}", digest.substr(0, 12))}, {"digest", "sha256:" + digest}};
  if (total >= 0) line["total"] = total;
  line["completed"] = completed;
  return line;
}

}  // namespace

JsonObject pull_line(const Progress& progress) {
  switch (progress.phase) {
    case Progress::Phase::kNote:
      return {{"status", progress.message}};
    case Progress::Phase::kListing:
      return {{"status", "pulling manifest"}};
    case Progress::Phase::kWaiting:
      return {{"status", "waiting for another download of the same bytes"}};
    case Progress::Phase::kDownloading:
    case Progress::Phase::kCopying: {
      if (!progress.digest.empty()) return layer_line(progress.digest, progress.total_bytes, progress.done_bytes);
      JsonObject line{{"status", fmt::format("pulling {}", progress.message)}, {"completed", progress.done_bytes}};
      if (progress.total_bytes >= 0) line["total"] = progress.total_bytes;
      return line;
    }
    case Progress::Phase::kVerifying:
      return {{"status", "verifying sha256 digest"}};
    case Progress::Phase::kWriting:
      return {{"status", "writing manifest"}};
  }
  return {{"status", ""}};
}

std::vector<JsonObject> pull_last_lines(const PullReport& report) {
  std::vector<JsonObject> lines;
  if (report.was_there) {
    for (const StoredFile& file : report.manifest.files) lines.push_back(layer_line(file.sha256, file.size, file.size));
    lines.push_back({{"status", "verifying sha256 digest"}});
    lines.push_back({{"status", "writing manifest"}});
  }
  lines.push_back({{"status", "removing unused layers"}});
  lines.push_back({{"status", "success"}});
  return lines;
}

namespace {

// What the client's name means to the hub: a name of the catalogue, a source, or a model of Ollama's registry.
Result<PullRequest> pull_request(const std::string& name, const HubOptions& hub) {
  PullRequest request{.what = name, .name = {}, .command = "POST /api/pull", .options = hub};
  if (is_source(name)) {
    STILL_TRY(const SourceRef source, parse_source(name));
    // Clients of the server are not its user: neither its files nor its package tools are theirs to name.
    if (source.kind == SourceRef::Kind::kFile || source.kind == SourceRef::Kind::kPip) {
      return error(Code::kPermissionDenied, "{}: this kind of source is only for `still pull` on the server", name);
    }
    return request;
  }
  if (std::string_view(name).starts_with("hf.co/") || std::string_view(name).starts_with("huggingface.co/")) {
    request.what = "hf:" + name.substr(name.find('/') + 1);
    return request;
  }
  std::string bare = name;
  for (const std::string_view prefix : {"registry.ollama.ai/library/", "registry.ollama.ai/", "library/"}) {
    if (std::string_view(bare).starts_with(prefix)) bare.erase(0, prefix.size());
  }
  STILL_TRY(const ModelName parsed, ModelName::parse(bare));
  request.what = bare;
  if (!find_in_catalogue(parsed)) {
    request.what = "ollama:" + bare;
    request.name = parsed.str();
  }
  return request;
}

// A client's answer: lines as they come, or one object at the end.
class PullAnswer {
 public:
  PullAnswer(std::shared_ptr<ResponseWriter> writer, std::string model, bool stream)
      : writer_(std::move(writer)), model_(std::move(model)), stream_(stream) {}

  void line(const JsonObject& line) {
    if (!stream_) return;
    if (!std::exchange(is_started_, true)) writer_->start(200, "application/x-ndjson");
    writer_->write(to_json(line) + "\n");
    writer_->flush();
  }
  void end(const Status& status) {
    if (!status && !is_started_) {
      const OllamaError known = ollama_error(status.error(), model_);
      // The hub's own sentence says more than "not found": what it knows, and where to ask.
      send_ollama_error(*writer_, known.status, status.error().message);
    } else if (!stream_) {
      send_json(*writer_, JsonObject{{"status", "success"}});
    } else {
      if (!status) writer_->write(ollama_error_json(status.error().message) + "\n");
      writer_->flush();
      writer_->finish();
    }
  }

 private:
  std::shared_ptr<ResponseWriter> writer_;
  std::string model_;
  bool stream_;
  bool is_started_ = false;
};

void handle_pull(const OllamaServicePtr& service, const HttpRequest& http,
                 const std::shared_ptr<ResponseWriter>& writer) {
  const Result<OllamaFields> fields = OllamaFields::parse(http.body);
  if (!fields) return send_ollama_error(*writer, fields.error(), "");
  const Result<std::string> name = fields->model();
  if (!name) return send_ollama_error(*writer, name.error(), "");
  const Result<std::optional<bool>> stream = fields->flag("stream");
  if (!stream) return send_ollama_error(*writer, stream.error(), *name);
  Result<PullRequest> request = pull_request(*name, service->context.options.hub);
  if (!request) return send_ollama_error(*writer, request.error(), *name);
  const auto answer = std::make_shared<PullAnswer>(writer, *name, stream->value_or(true));
  const std::string key = request->what;
  // The service owns the transfers and outlives them.
  const auto work = [&serve = *service, request = std::move(*request)](
                        const ProgressFn& progress, const CancelToken& cancel) -> Result<PullReport> {
    STILL_TRY(Store store, Store::open(serve.context.options.models));
    STILL_TRY(PullReport report, pull(store, request, progress, cancel));
    serve.context.pool->refresh();
    return report;
  };
  const std::uint64_t id = service->pulls.join(key,
                                               {.line = [answer](const JsonObject& line) { answer->line(line); },
                                                .end = [answer](const Status& status) { answer->end(status); }},
                                               work);
  writer->on_closed([weak = std::weak_ptr(service), key, id] {
    if (const OllamaServicePtr alive = weak.lock()) alive->pulls.leave(key, id);
  });
}

}  // namespace

void add_ollama_pull_routes(Router& router, const OllamaServicePtr& service) {
  router.add({"POST", "/api/pull", RouteClass::kAdmin,
              [service](const std::shared_ptr<const HttpRequest>& request,
                        const std::shared_ptr<ResponseWriter>& writer) { handle_pull(service, *request, writer); }});
}

}  // namespace still
