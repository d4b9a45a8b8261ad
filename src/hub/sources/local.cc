// file: a GGUF (all parts of a split one) or a folder with a safetensors or GGUF model.
#include <system_error>

#include "hub/source.h"

namespace still {
namespace fs = std::filesystem;

namespace {

std::vector<SourceFile> regular_files(const fs::path& folder) {
  std::vector<SourceFile> files;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, failure)) {
    if (!entry.is_regular_file(failure)) continue;
    files.push_back({.name = entry.path().filename().string(),
                     .size = static_cast<std::int64_t>(entry.file_size(failure)),
                     .fetch = LocalFetch{entry.path()}});
  }
  // The one file of a model that lies deeper: how sentence-transformers pools.
  const std::string pooling = "1_Pooling/config.json";
  if (const fs::path path = folder / pooling; fs::is_regular_file(path, failure)) {
    files.push_back(
        {.name = pooling, .size = static_cast<std::int64_t>(fs::file_size(path, failure)), .fetch = LocalFetch{path}});
  }
  return files;
}

}  // namespace

Result<SourceListing> list_local(const SourceRef& source, const HubOptions&, const CancelToken&) {
  std::error_code failure;
  const fs::path path = fs::absolute(source.repository, failure);
  const fs::file_status status = fs::status(path, failure);
  if (!fs::exists(status)) return error(Code::kNotFound, "there is no file or folder {}", path.string());
  SourceListing listing;
  if (fs::is_directory(status)) {
    STILL_TRY(listing.files, choose_model_files(regular_files(path), "", path.string()));
    return listing;
  }
  if (!fs::is_regular_file(status)) return error(Code::kInvalidArgument, "{} is not a file", path.string());
  if (path.extension() == ".gguf") {
    const std::string name = path.filename().string();
    STILL_TRY(listing.files, choose_model_files(regular_files(path.parent_path()), name, path.string()));
    return listing;
  }
  listing.files.push_back({.name = path.filename().string(),
                           .size = static_cast<std::int64_t>(fs::file_size(path, failure)),
                           .fetch = LocalFetch{path}});
  return listing;
}

}  // namespace still
