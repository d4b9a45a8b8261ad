// The first bytes of a model that is not here: `show` and `plan` need the header of a GGUF (some megabytes of
// gigabytes) or of a safetensors file, so only those bytes are asked for, by ranges.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "hub/cancel.h"
#include "hub/source.h"

namespace still {

// Reads parts of a file, near or far. Used by one thread.
class RangeReader {
 public:
  virtual ~RangeReader() = default;
  virtual std::int64_t size() const = 0;  // -1: not known
  // The bytes at [offset, offset + size); fewer only at the end of the file.
  virtual Result<std::string> read(std::int64_t offset, std::int64_t size) = 0;
};

// kUnsupported for pip: a wheel is packed, so that its inside cannot be read in parts.
Result<std::unique_ptr<RangeReader>> open_range_reader(const SourceFile& file, const HubOptions& options,
                                                       const CancelToken& cancel);

// A GGUF up to the aligned start of its tensor data (a header-only GGUF, as files/ reads it), or the length and JSON of
// a safetensors file. kCorrupt when the bytes are neither, or need a header longer than 512 MiB or than the file.
Result<std::string> read_model_header(RangeReader& reader, std::string_view name);

struct RemoteFile {
  SourceFile file;     // name, size, digest, place
  std::string header;  // of *.gguf and *.safetensors; the whole text of a small companion (*.json, *.jinja, *.txt)
};
struct RemoteModel {
  std::string name;    // "deepseek-r1:7b" or the source
  std::string source;  // that answered
  std::vector<RemoteFile> files;
};

// kUnavailable where a server serves whole files only.
// `what`: a name of the catalogue (its first source that answers) or a source. Later parts of a split model give
// headers too.
Result<RemoteModel> read_remote_model(std::string_view what, const HubOptions& options, const CancelToken& cancel);

// Writes the headers and companions below `folder` (a temporary one) under their names, so that files/ opens them like
// a model whose data is missing (allow_missing_data); returns the GGUF (the first part) or the folder.
Result<std::filesystem::path> save_headers(const RemoteModel& model, const std::filesystem::path& folder);

}  // namespace still
