// The typed, ordered metadata of a GGUF file: what is needed to show it, to change it and to write it back bit for bit.
// Format: ggml-org/ggml docs/gguf.md (versions 2 and 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace still {

// The numbers are the file's.
enum class GgufType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
inline constexpr std::uint32_t kGgufTypeCount = 13;

std::string_view gguf_type_name(GgufType type);  // "u32", "string", "array"
// Bytes of a number or bool; 0 for strings and arrays, whose size is in the file.
std::int64_t gguf_type_bytes(GgufType type);

// Many strings in two allocations: a tokenizer has 300,000 of them.
class GgufStrings {
 public:
  void append(std::string_view text) {
    text_ += text;
    ends_.push_back(text_.size());
  }
  std::int64_t size() const { return static_cast<std::int64_t>(ends_.size()); }
  std::string_view operator[](std::int64_t i) const {
    const auto idx = static_cast<std::size_t>(i);
    const std::size_t begin = idx == 0 ? 0 : ends_[idx - 1];
    return std::string_view(text_).substr(begin, ends_[idx] - begin);
  }
  void reserve(std::size_t n_strings) { ends_.reserve(n_strings); }

 private:
  std::string text_;
  std::vector<std::size_t> ends_;
};

// An array of one element type. Exactly one of the three members is used, by element_type.
struct GgufArray {
  GgufType element_type = GgufType::kU8;
  std::vector<std::byte> packed;  // numbers and bools, little-endian, as in the file
  GgufStrings strings;
  std::vector<GgufArray> nested;

  std::int64_t size() const;
  // Element i as a number; nothing for strings, arrays and what does not fit (a u64 above 2^63 - 1).
  std::optional<std::int64_t> integer(std::int64_t i) const;
  std::optional<double> number(std::int64_t i) const;

  static GgufArray of_strings(const std::vector<std::string>& values);
  static GgufArray of_i32(const std::vector<std::int32_t>& values);
  static GgufArray of_f32(const std::vector<float>& values);
};

class GgufValue {
 public:
  static GgufValue of_u8(std::uint8_t value) { return GgufValue(GgufType::kU8, value); }
  static GgufValue of_u16(std::uint16_t value) { return GgufValue(GgufType::kU16, value); }
  static GgufValue of_u32(std::uint32_t value) { return GgufValue(GgufType::kU32, value); }
  static GgufValue of_i32(std::int32_t value) { return GgufValue(GgufType::kI32, static_cast<std::uint32_t>(value)); }
  static GgufValue of_u64(std::uint64_t value) { return GgufValue(GgufType::kU64, value); }
  static GgufValue of_f32(float value);
  static GgufValue of_bool(bool value) { return GgufValue(GgufType::kBool, value ? 1 : 0); }
  static GgufValue of_string(std::string value);
  static GgufValue of_array(GgufArray value);
  // A number or bool by its bit pattern, zero-extended.
  static GgufValue of_bits(GgufType type, std::uint64_t bits) { return GgufValue(type, bits); }

  GgufType type() const { return type_; }
  std::uint64_t bits() const { return bits_; }
  // Any integer type that fits; not bools, not floats.
  std::optional<std::int64_t> integer() const;
  // Any number. An f32 gives the shortest decimal that reads back as it: 1e-6f is 1e-6, not 9.99999997e-7.
  std::optional<double> number() const;
  std::optional<bool> boolean() const;
  const std::string* string() const { return type_ == GgufType::kString ? &text_ : nullptr; }
  const GgufArray* array() const { return array_.get(); }

 private:
  GgufValue(GgufType type, std::uint64_t bits) : type_(type), bits_(bits) {}
  GgufType type_;
  std::uint64_t bits_ = 0;
  std::string text_;
  std::shared_ptr<const GgufArray> array_;  // shared: values are copied with headers, arrays are large and constant
};

struct GgufEntry {
  std::string key;
  GgufValue value;
};

// Keys in file order, each once.
class GgufMetadata {
 public:
  const std::vector<GgufEntry>& entries() const { return entries_; }
  const GgufValue* find(std::string_view key) const;
  // Replaces in place, or appends.
  void set(std::string key, GgufValue value);
  bool erase(std::string_view key);

  // Absent, or of another kind: nothing.
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  const GgufArray* array(std::string_view key) const;

 private:
  std::vector<GgufEntry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
};

// The shortest decimal that reads back as this float, as a double.
double shortest_double(float value);

}  // namespace still
