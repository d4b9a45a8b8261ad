// Values of Go's text/template, as far as the templates of Modelfiles go. Strings remember for each byte whether it
// comes from the template (trusted) or from the messages: jinja::Text. Immutable.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"
#include "text/jinja/value.h"

namespace still::go {

using jinja::fail;
using jinja::Failure;
using jinja::Text;

class Value;

// A map of strings (keys in the order given; ranges sort them, as Go's do) or a struct (only its fields exist).
struct Map {
  std::vector<std::pair<Text, Value>> entries;
  bool is_struct = false;
  std::string type;          // of a struct, for messages: "Message"
  std::optional<Text> json;  // how it prints and what `json` gives, for the types that print as JSON (tools, arguments)

  const Value* find(std::string_view key) const;
};

struct List;

class Value {
 public:
  struct Nil {};
  using Storage = std::variant<Nil, bool, std::int64_t, double, std::shared_ptr<const Text>,
                               std::shared_ptr<const List>, std::shared_ptr<const Map>>;
  Value() = default;
  Value(bool value) : storage_(value) {}
  Value(std::int64_t value) : storage_(value) {}
  Value(double value) : storage_(value) {}
  Value(Text value) : storage_(std::make_shared<const Text>(std::move(value))) {}
  Value(List value);
  Value(Map value);
  static Value trusted(std::string_view text) { return Value(Text(std::string(text), true)); }

  bool is_nil() const { return std::holds_alternative<Nil>(storage_); }
  const bool* boolean() const { return std::get_if<bool>(&storage_); }
  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&storage_); }
  const double* floating() const { return std::get_if<double>(&storage_); }
  bool is_number() const { return integer() || floating(); }
  double number() const { return integer() ? static_cast<double>(*integer()) : *floating(); }
  const Text* text() const { return get<Text>(); }
  const List* list() const { return get<List>(); }
  const Map* map() const { return get<Map>(); }

  bool is_true() const;  // not the type's zero, not empty; a struct always is
  std::string type_name() const;

 private:
  template <class T>
  const T* get() const {
    const auto* pointer = std::get_if<std::shared_ptr<const T>>(&storage_);
    return pointer ? pointer->get() : nullptr;
  }
  Storage storage_;
};

struct List {
  std::vector<Value> items;
  std::optional<Text> json;  // as of Map
};

// As fmt's %v: strings as they are, [a b] for lists, JSON for the types that say so.
void append_text(Text& out, const Value& value, int depth = 0);
// As encoding/json's Marshal: no spaces, <, > and & as escapes.
void append_json(Text& out, const Value& value, int depth = 0);
void append_json_string(Text& out, const Text& text);
void append_quoted(Text& out, const Text& text);  // as strconv.Quote
// A JSON value as Go decodes it into `any`, all of its strings untrusted; maps keep the text that they print as.
Value from_json(const Json& json, int depth = 0);

}  // namespace still::go
