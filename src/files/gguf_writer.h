// Writes GGUF files. What was read is written back byte for byte (header, padding, order, offsets); new files get
// ggml's layout from GgufHeader::lay_out(). Nothing appears under the target's name before finish().
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "files/gguf.h"
#include "files/new_file.h"

namespace still {

// The bytes of the file before its data section, padding included. Sets header.data_offset.
std::string serialize_gguf_header(GgufHeader& header);

// Tensors may come in any order and in pieces; padding is zeros.
class GgufWriter {
 public:
  // `file_bytes` is the size of the whole file; by default the data section ends at the alignment after its last
  // tensor.
  static Result<GgufWriter> create(const std::filesystem::path& path, GgufHeader header, std::int64_t file_bytes = 0);

  const GgufHeader& header() const { return header_; }
  // Writes bytes [begin, begin + bytes.size()) of tensor `tensor_idx` of header().tensors(). Pieces of one tensor must
  // not overlap.
  Status write(std::int64_t tensor_idx, std::int64_t begin, std::span<const std::byte> bytes);
  // Error if a tensor was not written whole. The writer is spent afterwards.
  Status finish();

 private:
  GgufWriter(NewFile file, GgufHeader header) : file_(std::move(file)), header_(std::move(header)) {}
  NewFile file_;
  GgufHeader header_;
  std::vector<std::int64_t> n_written_;
};

// Headers of the parts that hold `header`'s tensors in order, each with at most max_data_bytes of data (one tensor at
// least). The first carries the metadata, all carry split.no, split.count and split.tensors.count. Laid out.
std::vector<GgufHeader> split_gguf_header(const GgufHeader& header, std::int64_t max_data_bytes);

}  // namespace still
