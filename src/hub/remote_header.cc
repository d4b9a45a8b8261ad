// See remote_header.h.
#include "hub/remote_header.h"

#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <span>
#include <variant>

#include "files/gguf.h"
#include "files/safetensors.h"
#include "hub/catalogue.h"
#include "hub/file_io.h"
#include "hub/http.h"
#include "hub/model_name.h"
#include "hub/store.h"

namespace still {

namespace {

constexpr std::int64_t kMaxHeaderBytes = 512ll << 20;
constexpr std::int64_t kMaxCompanionBytes = 64ll << 20;
constexpr std::int64_t kFirstRead = 1 << 20;

class LocalRangeReader : public RangeReader {
 public:
  LocalRangeReader(UniqueFd fd, LocalFetch from, std::int64_t size)
      : fd_(std::move(fd)), from_(std::move(from)), size_(size) {}
  std::int64_t size() const override { return size_; }
  Result<std::string> read(std::int64_t offset, std::int64_t size) override {
    if (size_ >= 0) size = std::clamp<std::int64_t>(size_ - offset, 0, size);
    std::string bytes(static_cast<std::size_t>(size), '\0');
    STILL_TRY(const std::int64_t n, read_at(fd_.get(), bytes.data(), size, offset, from_.path));
    bytes.resize(static_cast<std::size_t>(n));
    return bytes;
  }

 private:
  UniqueFd fd_;
  LocalFetch from_;
  std::int64_t size_;
};

class HttpRangeReader : public RangeReader {
 public:
  HttpRangeReader(UrlFetch from, std::int64_t size, HubOptions options, CancelToken cancel)
      : from_(std::move(from)), size_(size), options_(std::move(options)), cancel_(std::move(cancel)) {}
  std::int64_t size() const override { return size_; }
  Result<std::string> read(std::int64_t offset, std::int64_t size) override {
    if (size_ >= 0) size = std::min(size, size_ - offset);
    if (size <= 0) return std::string();
    STILL_TRY(HttpReply response, http_get({.url = from_.url,
                                            .headers = from_.headers,
                                            .help = from_.help,
                                            .range = fmt::format("{}-{}", offset, offset + size - 1),
                                            .max_bytes = size},
                                           options_, cancel_));
    STILL_TRY(const ContentRange range, parse_content_range(response.head.header("content-range")));
    if (range.begin != offset || static_cast<std::int64_t>(response.body.size()) != range.end - range.begin) {
      return error(Code::kCorrupt, "{}: asked for {} bytes at {}, got {} at {}", from_.url, size, offset,
                   response.body.size(), range.begin);
    }
    if (range.total >= 0) size_ = range.total;
    return std::move(response.body);
  }

 private:
  UrlFetch from_;
  std::int64_t size_;
  HubOptions options_;
  CancelToken cancel_;
};

// The first bytes up to data_offset, by a parser that says how many it needs. Reads at least twice as far each time, so
// that a header of n bytes is parsed O(log n) times.
template <class Header, class NeedMore>
Result<std::string> read_header(RangeReader& reader, std::string_view name) {
  std::string bytes;
  std::int64_t wanted = kFirstRead;
  for (;;) {
    const auto have = static_cast<std::int64_t>(bytes.size());
    if (wanted > kMaxHeaderBytes) {
      return error(Code::kCorrupt, "{}: its header claims {}, expected at most {}", name, format_bytes(wanted),
                   format_bytes(kMaxHeaderBytes));
    }
    STILL_TRY(const std::string more, reader.read(have, wanted - have));
    if (more.empty()) return error(Code::kCorrupt, "{}: ends at byte {}, within its header", name, have);
    bytes += more;
    STILL_TRY(const auto parsed, Header::parse(std::as_bytes(std::span(bytes)), name));
    if (const NeedMore* need = std::get_if<NeedMore>(&parsed)) {
      const auto now = static_cast<std::int64_t>(bytes.size());
      wanted = std::max(need->n_bytes, std::min(2 * now, kMaxHeaderBytes));
      if (need->n_bytes <= now) return error(Code::kCorrupt, "{}: its header does not end", name);
      continue;
    }
    const std::int64_t end = std::get<Header>(parsed).data_offset;
    if (static_cast<std::int64_t>(bytes.size()) > end) bytes.resize(static_cast<std::size_t>(end));
    return bytes;
  }
}

Result<RemoteModel> read_source(const std::string& text, const HubOptions& options, const CancelToken& cancel) {
  STILL_TRY(const SourceRef source, parse_source(text));
  STILL_TRY(SourceListing listing, list_source(source, options, cancel));
  RemoteModel model{.name = text, .source = text, .files = {}};
  for (SourceFile& file : listing.files) {
    STILL_TRY(const std::unique_ptr<RangeReader> reader, open_range_reader(file, options, cancel));
    RemoteFile remote;
    if (file.name.ends_with(".gguf") || file.name.ends_with(".safetensors")) {
      STILL_TRY(remote.header, read_model_header(*reader, file.name));
    } else if (file.size <= kMaxCompanionBytes) {
      STILL_TRY(remote.header, reader->read(0, file.size >= 0 ? file.size : kMaxCompanionBytes));
    }
    if (file.size < 0) file.size = reader->size();
    remote.file = std::move(file);
    model.files.push_back(std::move(remote));
  }
  return model;
}

}  // namespace

Result<std::unique_ptr<RangeReader>> open_range_reader(const SourceFile& file, const HubOptions& options,
                                                       const CancelToken& cancel) {
  if (const UrlFetch* url = std::get_if<UrlFetch>(&file.fetch)) {
    return std::unique_ptr<RangeReader>(std::make_unique<HttpRangeReader>(*url, file.size, options, cancel));
  }
  if (const LocalFetch* local = std::get_if<LocalFetch>(&file.fetch)) {
    STILL_TRY(UniqueFd fd, open_file(local->path, O_RDONLY));
    std::error_code failure;
    const auto size = static_cast<std::int64_t>(std::filesystem::file_size(local->path, failure));
    return std::unique_ptr<RangeReader>(std::make_unique<LocalRangeReader>(std::move(fd), *local, failure ? -1 : size));
  }
  return error(Code::kUnsupported, "a package cannot be looked into from afar: pull it, then show it");
}

Result<std::string> read_model_header(RangeReader& reader, std::string_view name) {
  STILL_TRY(const std::string magic, reader.read(0, 4));
  if (magic == "GGUF") return read_header<GgufHeader, GgufNeedMore>(reader, name);
  if (name.ends_with(".safetensors")) return read_header<SafetensorsHeader, SafetensorsNeedMore>(reader, name);
  return error(Code::kCorrupt, "{}: neither GGUF nor safetensors (it does not begin with \"GGUF\")", name);
}

Result<std::filesystem::path> save_headers(const RemoteModel& model, const std::filesystem::path& folder) {
  STILL_TRY_STATUS(make_folders(folder));
  for (const RemoteFile& file : model.files) {
    STILL_TRY_STATUS(check_file_name(file.file.name));
    const std::filesystem::path path = folder / file.file.name;
    STILL_TRY_STATUS(make_folders(path.parent_path()));
    STILL_TRY_STATUS(write_file_atomic(path, file.header));
  }
  if (!model.files.empty() && model.files[0].file.name.ends_with(".gguf")) return folder / model.files[0].file.name;
  return folder;
}

Result<RemoteModel> read_remote_model(std::string_view what, const HubOptions& options, const CancelToken& cancel) {
  if (is_source(what)) return read_source(std::string(what), options, cancel);
  STILL_TRY(const ModelName name, ModelName::parse(what));
  const std::optional<CatalogueEntry> entry = find_in_catalogue(name);
  if (!entry) return error(Code::kNotFound, "{} is not in the catalogue", what);
  HubOptions impatient = options;
  impatient.connect_timeout = std::min(options.connect_timeout, options.first_connect_timeout);
  std::string failures;
  Code code = Code::kUnavailable;
  for (const CatalogueSource& source : entry->sources) {
    Result<RemoteModel> model = read_source(source.source, impatient, cancel);
    if (model) {
      model->name = entry->name.str();
      return model;
    }
    if (model.error().code == Code::kCancelled) return model;
    code = model.error().code;
    failures += fmt::format("\n  {}: {}", source.source, model.error().message);
  }
  return error(code, "no source of {} could be asked:{}", entry->name.str(), failures);
}

}  // namespace still
