// Values of the template language: Python's, as far as chat templates go. Strings remember for each byte whether it
// comes from the template (trusted) or from the messages, so that a user's text cannot pass for a special token.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"

namespace still::jinja {

// A failure inside an evaluation. Thrown and caught inside text/ only: nearly every line of an evaluator can fail, and
// ChatTemplate turns it into an Error at the edge.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure(fmt::format(format, std::forward<Args>(args)...));
}

// Bytes with their origin.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, bool trusted) : bytes_(std::move(bytes)), all_trusted_(trusted) {}

  const std::string& bytes() const { return bytes_; }
  std::size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool is_trusted(std::size_t pos) const { return marks_.empty() ? all_trusted_ : marks_[pos] != 0; }
  bool is_all_trusted() const;

  void append(const Text& other);
  void append(std::string_view bytes, bool trusted);
  Text substr(std::size_t pos, std::size_t n = std::string::npos) const;

 private:
  std::string bytes_;
  std::string marks_;  // a byte (0 or 1) for each of bytes_; empty: all are all_trusted_
  bool all_trusted_ = true;
};

class Value;
struct Macro;   // text/jinja/interpreter.cc
struct Method;  // a method with its object: "x.strip" before the call
struct Loop;    // the variable "loop"
struct Dict;

struct Undefined {
  std::string name;  // what was looked up, for messages
};
struct None {};
struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;  // of nested containers, at most kMaxValueDepth: everything that walks values recurses
};
inline constexpr int kMaxValueDepth = 100;

class Value {
 public:
  using Storage = std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const Text>,
                               std::shared_ptr<List>, std::shared_ptr<Dict>, std::shared_ptr<const Macro>,
                               std::shared_ptr<const Method>, std::shared_ptr<const Loop>>;

  Value() = default;
  Value(None value) : storage_(value) {}
  Value(Undefined value) : storage_(std::move(value)) {}
  Value(bool value) : storage_(value) {}
  Value(std::int64_t value) : storage_(value) {}
  Value(double value) : storage_(value) {}
  Value(Text value) : storage_(std::make_shared<const Text>(std::move(value))) {}
  Value(std::vector<Value> items, bool is_tuple = false);
  Value(std::shared_ptr<Dict> value) : storage_(std::move(value)) {}
  Value(std::shared_ptr<const Macro> value) : storage_(std::move(value)) {}
  Value(std::shared_ptr<const Method> value) : storage_(std::move(value)) {}
  Value(std::shared_ptr<const Loop> value) : storage_(std::move(value)) {}
  static Value trusted(std::string_view text) { return Value(Text(std::string(text), true)); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(storage_); }
  bool is_none() const { return std::holds_alternative<None>(storage_); }
  bool is_bool() const { return std::holds_alternative<bool>(storage_); }
  bool is_int() const { return std::holds_alternative<std::int64_t>(storage_); }
  bool is_float() const { return std::holds_alternative<double>(storage_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  const Text* text() const { return get<const Text>(); }
  List* list() const { return get<List>(); }
  Dict* dict() const { return get<Dict>(); }
  const Macro* macro() const { return get<const Macro>(); }
  const Method* method() const { return get<const Method>(); }
  const Loop* loop() const { return get<const Loop>(); }
  const Undefined* undefined() const { return std::get_if<Undefined>(&storage_); }

  bool as_bool() const { return std::get<bool>(storage_); }
  std::int64_t as_int() const { return is_bool() ? (as_bool() ? 1 : 0) : std::get<std::int64_t>(storage_); }
  double as_double() const { return is_float() ? std::get<double>(storage_) : static_cast<double>(as_int()); }

  int depth() const;  // of containers: 0 for others
  bool is_namespace() const;
  bool is_true() const;           // Python's truth
  const char* type_name() const;  // "str", "dict", ... for messages

 private:
  template <class T>
  T* get() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&storage_);
    return pointer ? pointer->get() : nullptr;
  }
  Storage storage_;
};

// What may go into a container: not namespaces (a value cannot contain itself then), and not too deep.
int depth_with(const Value& item);

// In order of insertion. Also namespaces, whose attributes templates may set.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  bool is_namespace = false;
  int depth = 1;

  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);
};

struct Method {
  Value self;
  std::string name;
};

struct Loop {
  std::shared_ptr<const std::vector<Value>> items;
  std::size_t index = 0;
};

bool equal(const Value& a, const Value& b);
// Below 0, 0 or above 0; fails for types that Python does not order.
int compare(const Value& a, const Value& b);

// Strings of the JSON are trusted as told; a value deeper than 200 fails.
Value from_json(const Json& json, bool trusted, int depth = 0);

Text to_text(const Value& value);                                // Python's str()
void append_repr(Text& out, const Value& value, int depth = 0);  // Python's repr()
struct JsonStyle {
  int indent = -1;  // none: one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ensure_ascii = false, sort_keys = false;
};
void append_json(Text& out, const Value& value, const JsonStyle& style, int depth = 0);  // Python's json.dumps
std::string double_to_text(double value);

}  // namespace still::jinja
