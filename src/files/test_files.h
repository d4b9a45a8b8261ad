// For the tests of this folder: a folder that vanishes, whole files as bytes, and raw GGUF bytes put together by hand
// (independent of the writer, so that files no writer makes can be made).
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace still {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "still-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }
  std::size_t n_files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::span<const std::byte> as_bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::filesystem::path test_data(const std::string& name) {
  return std::filesystem::path(STILL_SOURCE_DIR) / "testdata" / name;
}

// Messages are one sentence for a user: not empty, one line, of bounded length.
inline void expect_sentence(const Error& failure) {
  EXPECT_FALSE(failure.message.empty());
  EXPECT_EQ(failure.message.find('\n'), std::string::npos) << failure.message;
  EXPECT_LT(failure.message.size(), 4096u);
}

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

inline void append_string(std::string& out, std::string_view text) {
  append(out, std::uint64_t{text.size()});
  out += text;
}

// The pieces of a GGUF file; bytes() joins them.
struct RawGguf {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::string entries, tensors, data;
  std::uint64_t n_entries = 0, n_tensors = 0;
  std::size_t alignment = 32;

  RawGguf& entry(std::string_view key, std::uint32_t type, std::string_view value) {
    append_string(entries, key);
    append(entries, type);
    entries += value;
    ++n_entries;
    return *this;
  }
  RawGguf& u32(std::string_view key, std::uint32_t value) {
    std::string bytes;
    append(bytes, value);
    return entry(key, 4, bytes);
  }
  RawGguf& f32(std::string_view key, float value) {
    std::string bytes;
    append(bytes, value);
    return entry(key, 6, bytes);
  }
  RawGguf& boolean(std::string_view key, bool value) { return entry(key, 7, std::string(1, value ? 1 : 0)); }
  RawGguf& text(std::string_view key, std::string_view value) {
    std::string bytes;
    append_string(bytes, value);
    return entry(key, 8, bytes);
  }
  RawGguf& strings(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes;
    append(bytes, std::uint32_t{8});
    append(bytes, std::uint64_t{values.size()});
    for (const std::string& value : values) append_string(bytes, value);
    return entry(key, 9, bytes);
  }
  RawGguf& tensor(std::string_view name, const std::vector<std::uint64_t>& ne, std::uint32_t type,
                  std::uint64_t offset) {
    append_string(tensors, name);
    append(tensors, static_cast<std::uint32_t>(ne.size()));
    for (const std::uint64_t n : ne) append(tensors, n);
    append(tensors, type);
    append(tensors, offset);
    ++n_tensors;
    return *this;
  }
  std::string bytes() const {
    std::string out = magic;
    append(out, version);
    append(out, n_tensors);
    append(out, n_entries);
    out += entries + tensors;
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }
};

// What a llama file must have; `layers` blocks.
inline RawGguf minimal_model(const std::string& architecture, std::uint32_t n_layers = 1) {
  RawGguf raw;
  raw.text("general.architecture", architecture);
  raw.u32(architecture + ".block_count", n_layers);
  raw.u32(architecture + ".embedding_length", 8);
  raw.u32(architecture + ".attention.head_count", 2);
  return raw;
}

}  // namespace still
