// GGUF, versions 2 and 3, little-endian: metadata, tensor table and data, by memory map; single files and sets of parts
// named -00001-of-0000N. Every byte is checked before it is believed: counts against the bytes that are there, sums
// against overflow, offsets against the file. Writing is gguf_writer.h.
// Format: ggml-org/ggml docs/gguf.md. Shapes here are outermost first: the reverse of the file's `ne`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "files/gguf_value.h"
#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace still {

struct GgufTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;              // rank 1 to 4
  bool is_scalar = false;   // the file says 0 dimensions; shape is then [1]
  std::int64_t offset = 0;  // from the start of the data section, a multiple of the alignment
  std::int64_t n_bytes = 0;
};

// The bytes given end before the header does: get the first `n_bytes` bytes of the file at least, and parse again.
struct GgufNeedMore {
  std::int64_t n_bytes = 0;
};

// Everything before the tensor data. A value: copy it, change it, write it (GgufWriter).
class GgufHeader {
 public:
  // A whole file's bytes, or as many from its start as are at hand (then the answer may be GgufNeedMore).
  // `name` begins every message. Nothing of `bytes` is kept.
  static Result<std::variant<GgufHeader, GgufNeedMore>> parse(std::span<const std::byte> bytes, std::string_view name);

  std::uint32_t version = 3;
  std::int64_t alignment = 32;  // general.alignment, a power of two
  GgufMetadata metadata;
  std::int64_t data_offset = 0;  // where the data section begins in the file

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view tensor_name) const;
  // False if the name is taken. The offset is kept: see lay_out().
  bool add_tensor(GgufTensor tensor);
  void clear_tensors();
  // Gives tensors the offsets and n_bytes that ggml requires: in table order, each at the next multiple of the
  // alignment.
  void lay_out();
  // Bytes of the data section up to the end of the last tensor.
  std::int64_t data_bytes() const;
  std::string_view architecture() const { return metadata.string("general.architecture").value_or(""); }

 private:
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, std::size_t> index_;
};

struct GgufOpenOptions {
  bool allow_missing_data = false;  // a file cut after its header, and missing parts, are no error: for show and plan
};

// One file.
class GgufFile {
 public:
  static Result<GgufFile> open(const std::filesystem::path& path, GgufOpenOptions options = {});
  const GgufHeader& header() const { return header_; }
  const MappedFile& file() const { return file_; }
  // Empty if the file ends before the tensor does.
  std::span<const std::byte> data(const GgufTensor& tensor) const;
  bool is_complete() const { return is_complete_; }

 private:
  MappedFile file_;
  GgufHeader header_;
  bool is_complete_ = true;
};

// A model: one file, or all parts of a split one. Metadata is the first part's.
class GgufSet {
 public:
  // Any part's path opens the whole set.
  static Result<GgufSet> open(const std::filesystem::path& path, GgufOpenOptions options = {});
  // All parts in order, whatever their names.
  static Result<GgufSet> open_parts(std::span<const std::filesystem::path> paths, GgufOpenOptions options = {});

  const GgufMetadata& metadata() const { return parts_.front().header().metadata; }
  const std::vector<GgufFile>& parts() const { return parts_; }
  std::int64_t n_parts_missing() const { return n_parts_missing_; }

 private:
  std::vector<GgufFile> parts_;
  std::int64_t n_parts_missing_ = 0;
};

// "name-00002-of-00005.gguf": stem "name", part 2 of 5.
struct GgufPartName {
  std::string stem;
  std::int64_t part = 0;
  std::int64_t n_parts = 0;
};
std::optional<GgufPartName> parse_gguf_part_name(std::string_view file_name);
std::string gguf_part_name(const GgufPartName& name);

// A removed type's name and fate, or "unknown": for messages about numbers that dtype_from_ggml() refuses.
std::string_view describe_ggml_type_number(std::uint32_t type_id);

}  // namespace still
