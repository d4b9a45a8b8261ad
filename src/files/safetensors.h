// safetensors: a JSON header, then tensor bytes, by memory map. Every byte is checked: the header's length, each type,
// shape and byte range; ranges fill the data section without holes or overlaps, as the format demands.
// Format: huggingface/safetensors README, section Format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "files/new_file.h"
#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace still {

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;              // rank 1 to 4
  bool is_scalar = false;   // the file says []; shape is then [1]
  std::int64_t offset = 0;  // from the start of the data section
  std::int64_t n_bytes = 0;
};

// The bytes given end before the header does: get the first `n_bytes` bytes of the file, and parse again.
struct SafetensorsNeedMore {
  std::int64_t n_bytes = 0;
};

struct SafetensorsHeader {
  std::vector<std::pair<std::string, std::string>> metadata;  // "__metadata__"
  std::vector<SafetensorsTensor> tensors;                     // in the header's order
  std::int64_t data_offset = 0;
  std::int64_t data_bytes = 0;

  // The file's bytes, or as many from its start as are at hand. `name` begins every message.
  static Result<std::variant<SafetensorsHeader, SafetensorsNeedMore>> parse(std::span<const std::byte> bytes,
                                                                            std::string_view name);
};

class SafetensorsFile {
 public:
  // allow_missing_data: a file cut after its header is no error.
  static Result<SafetensorsFile> open(const std::filesystem::path& path, bool allow_missing_data = false);
  const SafetensorsHeader& header() const { return header_; }
  const MappedFile& file() const { return file_; }
  // Empty if the file ends before the tensor does.
  std::span<const std::byte> data(const SafetensorsTensor& tensor) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

// The shards that model.safetensors.index.json names, in order of first mention, each once: plain file names without
// folders. Tensors are looked up in the shards themselves; the index must agree with them.
struct SafetensorsIndex {
  std::vector<std::string> files;
  std::vector<std::pair<std::string, std::size_t>> tensors;  // name, position in files
  static Result<SafetensorsIndex> parse(std::string_view text, std::string_view name);
};

// Writes tensors in the order given, each in pieces of any size, one after the other.
class SafetensorsWriter {
 public:
  // Of each tensor name, dtype, shape (and is_scalar) are used; offsets are assigned.
  static Result<SafetensorsWriter> create(const std::filesystem::path& path,
                                          std::vector<std::pair<std::string, std::string>> metadata,
                                          std::vector<SafetensorsTensor> tensors);
  // Writes bytes [begin, begin + bytes.size()) of tensor `tensor_idx`. Pieces of one tensor must not overlap.
  Status write(std::int64_t tensor_idx, std::int64_t begin, std::span<const std::byte> bytes);
  // Error if a tensor was not written whole. The writer is spent afterwards.
  Status finish();

 private:
  SafetensorsWriter(NewFile file, SafetensorsHeader header) : file_(std::move(file)), header_(std::move(header)) {}
  NewFile file_;
  SafetensorsHeader header_;
  std::vector<std::int64_t> n_written_;
};

}  // namespace still
