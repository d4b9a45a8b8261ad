// still show: what a model is, from its header alone: architecture, weights by type and group, context, template,
// licence.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <memory>

#include "base/json.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/model_ref.h"
#include "cli/table.h"
#include "files/checkpoint.h"
#include "hub/file_io.h"
#include "hub/remote_header.h"
#include "kernels/packing.h"
#include "models/model.h"
#include "models/registry.h"

namespace still {
namespace {

struct ShowOptions {
  std::string model;
  bool tensors = false;
  bool metadata = false;
  bool chat_template = false;
  bool licence = false;
  bool json = false;
};

// The part of a model that a tensor belongs to, in the order they are shown.
constexpr std::array<std::string_view, 7> kGroups = {"embedding", "attention", "feed-forward", "experts",
                                                     "norms",     "output",    "other"};

std::string_view group_of(const CheckpointTensor& tensor) {
  const std::string_view name = tensor.name;
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has("embed_tokens")) return "embedding";
  if (has("norm")) return "norms";
  if (has("self_attn")) return "attention";
  if (has("expert")) return "experts";
  if (has("mlp")) return "feed-forward";
  if (has("lm_head")) return "output";
  return "other";
}

struct TypeTotal {
  std::int64_t n_tensors = 0, n_weights = 0, n_bytes = 0;
};
using GroupTotals = std::map<std::string_view, std::map<std::string, TypeTotal>>;

struct Totals {
  GroupTotals groups;
  std::int64_t n_weights = 0, n_bytes = 0;
  std::vector<std::string> types_not_computed;
};

Totals count_tensors(const Checkpoint& checkpoint) {
  Totals totals;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    const std::string type(dtype_name(tensor.dtype));
    TypeTotal& total = totals.groups[group_of(tensor)][type];
    ++total.n_tensors;
    total.n_weights += tensor.shape.n_elements();
    total.n_bytes += tensor.n_bytes;
    totals.n_weights += tensor.shape.n_elements();
    totals.n_bytes += tensor.n_bytes;
    if (!packed_format(tensor.dtype) &&
        std::ranges::find(totals.types_not_computed, type) == totals.types_not_computed.end()) {
      totals.types_not_computed.push_back(type);
    }
  }
  return totals;
}

// The type that holds the most bytes: what people call "the quantisation".
std::string main_type(const Totals& totals) {
  std::map<std::string, std::int64_t> bytes;
  for (const auto& [group, types] : totals.groups) {
    for (const auto& [type, total] : types) bytes[type] += total.n_bytes;
  }
  const auto largest = std::ranges::max_element(bytes, {}, [](const auto& entry) { return entry.second; });
  return largest == bytes.end() ? "" : largest->first;
}

std::string count_text(std::int64_t n) {
  if (n >= 1'000'000'000) return fmt::format("{:.2f} B", static_cast<double>(n) * 1e-9);
  if (n >= 1'000'000) return fmt::format("{:.1f} M", static_cast<double>(n) * 1e-6);
  return std::to_string(n);
}

std::string value_text(const GgufValue& value) {
  if (const std::string* text = value.string()) {
    const std::string line = printable_line(*text);
    return line.size() > 200 ? fmt::format("\"{}...\" ({} bytes)", line.substr(0, 100), text->size())
                             : "\"" + line + "\"";
  }
  if (const GgufArray* array = value.array()) {
    return fmt::format("{} of {}", array->size(), gguf_type_name(array->element_type));
  }
  if (const auto flag = value.boolean()) return *flag ? "true" : "false";
  if (const auto integer = value.integer()) return std::to_string(*integer);
  if (const auto number = value.number()) return fmt::format("{}", *number);
  return "?";
}

// "general.license" of a GGUF; of a safetensors folder the store's note, if any.
std::string licence_of(const Checkpoint& checkpoint, const ResolvedModel& found) {
  if (found.is_stored && !found.manifest.licence.empty()) return found.manifest.licence;
  if (const GgufMetadata* metadata = checkpoint.gguf_metadata()) {
    return std::string(metadata->string("general.license").value_or(""));
  }
  return "";
}

// Of the generation_config what still samples by; it holds ids of special tokens besides.
std::string shipped_sampling(const Checkpoint& checkpoint) {
  std::string out;
  for (const std::string_view key : {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample"}) {
    const Json* value = checkpoint.generation_config().if_contains(key);
    if (value == nullptr) continue;
    const std::string shown = value->is_number() ? fmt::format("{}", value->to_number<double>()) : to_json(*value);
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", key, shown);
  }
  return printable_line(out);
}

std::string title_of(const Checkpoint& checkpoint) {
  const GgufMetadata* metadata = checkpoint.gguf_metadata();
  return metadata ? std::string(metadata->string("general.name").value_or("")) : "";
}

struct Facts {
  Totals totals;
  std::optional<ModelConfig> config;
  std::string problem;  // why it does not run here; empty: it does
  TokenizerSource tokenizer;
};

// What is wrong with a model of which some weights are here and some are not: a file cut short, or a missing part.
// Empty: all are here, or none (a header alone).
std::string find_damage(const Checkpoint& checkpoint, const ResolvedModel& found) {
  if (checkpoint.has_all_data()) return "";
  const auto has_data = [](const CheckpointTensor& tensor) { return !tensor.data.empty(); };
  if (std::ranges::none_of(checkpoint.tensors(), has_data)) return "";
  const Result<Checkpoint> whole = Checkpoint::open(found.path);
  return whole ? "" : explain_failure(whole.error(), found).message;
}

Result<Facts> gather(const Checkpoint& checkpoint, const ResolvedModel& found) {
  Facts facts{.totals = count_tensors(checkpoint)};
  facts.problem = find_damage(checkpoint, found);
  const auto add_problem = [&](const Error& problem) {
    if (facts.problem.empty()) facts.problem = problem.message;
  };
  const Result<const Arch*> arch = find_arch(checkpoint.architecture());
  if (!arch) {
    add_problem(arch.error());
  } else if (Result<ModelConfig> config = (*arch)->read_config(checkpoint.config()); !config) {
    add_problem(config.error());
  } else {
    facts.config = std::move(*config);
    if (const Result<WeightLayout> layout = weight_layout(**arch, *facts.config, checkpoint); !layout) {
      add_problem(layout.error());
    }
  }
  if (facts.problem.empty() && !checkpoint.has_all_data())
    facts.problem = "only the header is here, the weights are not";
  STILL_TRY(facts.tokenizer, checkpoint.tokenizer_source());
  return facts;
}

JsonObject to_json_object(const ResolvedModel& found, const Checkpoint& checkpoint, const Facts& facts) {
  JsonArray groups;
  for (const std::string_view group : kGroups) {
    const auto types = facts.totals.groups.find(group);
    if (types == facts.totals.groups.end()) continue;
    for (const auto& [type, total] : types->second) {
      groups.push_back(JsonObject{{"group", group},
                                  {"type", type},
                                  {"tensors", total.n_tensors},
                                  {"parameters", total.n_weights},
                                  {"bytes", total.n_bytes}});
    }
  }
  return JsonObject{{"model", found.name},
                    {"path", found.path.string()},
                    {"source", found.is_stored ? found.manifest.source : ""},
                    {"digest", found.is_stored ? found.manifest.digest() : ""},
                    {"title", title_of(checkpoint)},
                    {"format", checkpoint.format() == Checkpoint::Format::kGguf ? "gguf" : "safetensors"},
                    {"architecture", checkpoint.architecture()},
                    {"parameters", facts.totals.n_weights},
                    {"bytes", facts.totals.n_bytes},
                    {"quantisation", main_type(facts.totals)},
                    {"config", checkpoint.config()},
                    {"generation_config", checkpoint.generation_config()},
                    {"licence", licence_of(checkpoint, found)},
                    {"chat_template", facts.tokenizer.chat_template},
                    {"tensor_groups", std::move(groups)},
                    {"has_weights", checkpoint.has_all_data()},
                    {"runs_here", facts.problem.empty()},
                    {"problem", facts.problem}};
}

void print_config(const ModelConfig& config) {
  fmt::print("context        {} tokens\n", config.max_seq_len);
  fmt::print("layers         {}, hidden {}, feed-forward {}\n", config.n_layers, config.hidden_size,
             config.intermediate_size);
  fmt::print("attention      {} heads of {}, {} for keys and values{}\n", config.n_heads, config.head_dim,
             config.n_kv_heads, config.attention_bias ? ", with biases" : "");
  if (config.n_experts > 0) {
    fmt::print("experts        {}, {} for a token\n", config.n_experts, config.n_experts_per_tok);
  }
  fmt::print("vocabulary     {} tokens{}\n", config.vocab_size, config.tied_embeddings ? ", tied to the output" : "");
}

void print_overview(const ResolvedModel& found, const Checkpoint& checkpoint, const Facts& facts) {
  const Totals& totals = facts.totals;
  fmt::print("model          {}\n", found.name);
  if (const std::string title = title_of(checkpoint); !title.empty()) {
    fmt::print("title          {}\n", printable_line(title));
  }
  if (found.is_stored)
    fmt::print("from           {} on {}\n", printable_line(found.manifest.source), found.manifest.created);
  fmt::print("architecture   {}\n", printable_line(checkpoint.architecture()));
  fmt::print("parameters     {}\n", count_text(totals.n_weights));
  fmt::print("size           {}, mostly {}\n", format_bytes(totals.n_bytes), main_type(totals));
  if (facts.config) print_config(*facts.config);
  const std::string_view chat_template = facts.tokenizer.chat_template;
  if (!chat_template.empty()) {
    const bool thinks = chat_template.find("think>") != std::string_view::npos;
    fmt::print("chat template  {} bytes{} (--template prints it)\n", chat_template.size(),
               thinks ? ", knows thinking" : "");
  } else {
    fmt::print("chat template  none\n");
  }
  if (const std::string licence = licence_of(checkpoint, found); !licence.empty()) {
    fmt::print("licence        {}\n", printable_line(licence));
  }
  if (const std::string sampling = shipped_sampling(checkpoint); !sampling.empty()) {
    fmt::print("sampling       {}\n", sampling);
  }
  fmt::print("runs here      {}\n\n", facts.problem.empty() ? "yes" : "no: " + printable_line(facts.problem));

  std::vector<std::vector<std::string>> rows = {{"WEIGHTS", "TYPE", "TENSORS", "PARAMETERS", "SIZE"}};
  for (const std::string_view group : kGroups) {
    const auto types = totals.groups.find(group);
    if (types == totals.groups.end()) continue;
    for (const auto& [type, total] : types->second) {
      rows.push_back({std::string(group), type, std::to_string(total.n_tensors), count_text(total.n_weights),
                      format_bytes(total.n_bytes)});
    }
  }
  using enum Align;
  fmt::print("{}", format_table({kLeft, kLeft, kRight, kRight, kRight}, rows));
}

void print_tensors(const Checkpoint& checkpoint) {
  std::vector<std::vector<std::string>> rows = {{"TENSOR", "TYPE", "SHAPE", "BYTES", "IN THE FILE"}};
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    rows.push_back({printable_line(tensor.name), std::string(dtype_name(tensor.dtype)), to_string(tensor.shape),
                    std::to_string(tensor.n_bytes), printable_line(tensor.file_name)});
  }
  using enum Align;
  fmt::print("{}", format_table({kLeft, kLeft, kLeft, kRight, kLeft}, rows));
}

void print_metadata(const Checkpoint& checkpoint) {
  if (const GgufMetadata* metadata = checkpoint.gguf_metadata()) {
    for (const GgufEntry& entry : metadata->entries()) {
      fmt::print("{} = {}\n", printable_line(entry.key), value_text(entry.value));
    }
  } else {
    fmt::print("{}", to_json_pretty(checkpoint.config()));
  }
}

// What is not here but can be pulled: its header alone is fetched, into `folder`.
Result<ResolvedModel> find_or_fetch_header(const Context& context, const std::string& model, HeaderFolder& folder) {
  Result<ResolvedModel> found = find_model(context, model);
  if (found || !is_absent(found.error()) || !can_be_pulled(model)) return found;
  const InterruptScope interrupt;
  STILL_TRY(const RemoteModel remote, read_remote_model(model, context.environment.hub, interrupt.token()));
  STILL_TRY(const std::filesystem::path path, folder.create());
  STILL_TRY(const std::filesystem::path header, save_headers(remote, path));
  return ResolvedModel{.name = fmt::format("{} (not pulled; from {})", remote.name, remote.source), .path = header};
}

Status show(const ShowOptions& options, const Context& context) {
  HeaderFolder folder;
  STILL_TRY(const ResolvedModel found, find_or_fetch_header(context, options.model, folder));
  const Result<Checkpoint> opened = Checkpoint::open(found.path, {.allow_missing_data = true});
  if (!opened) return tl::unexpected(explain_failure(opened.error(), found));
  const Checkpoint& checkpoint = *opened;
  STILL_TRY(const Facts facts, gather(checkpoint, found));
  if (options.chat_template) {
    fmt::print("{}\n", facts.tokenizer.chat_template);
  } else if (options.licence) {
    const std::string licence = licence_of(checkpoint, found);
    if (licence.empty()) {
      return error(Code::kNotFound, "{}: no licence in the model's files, expected general.license: see {}", found.name,
                   found.is_stored ? found.manifest.source : "where the file came from");
    }
    fmt::print("{}\n", licence);
  } else if (options.json) {
    fmt::print("{}\n", to_json(to_json_object(found, checkpoint, facts)));
  } else if (options.tensors) {
    print_tensors(checkpoint);
  } else if (options.metadata) {
    print_metadata(checkpoint);
  } else {
    print_overview(found, checkpoint, facts);
  }
  return ok();
}

Command::Action declare_show(Options& options) {
  auto chosen = std::make_shared<ShowOptions>();
  options.required("MODEL", &chosen->model,
                   "A store name, the path of a file or folder (a header is enough), or what `still pull` takes");
  options.flag("--tensors", &chosen->tensors, "Every tensor with type and shape");
  options.flag("--metadata", &chosen->metadata, "The file's own keys and values");
  options.flag("--template", &chosen->chat_template, "The chat template");
  options.flag("--licence,--license", &chosen->licence, "The licence");
  options.flag("--json", &chosen->json, "One object");
  return [chosen](const Context& context) { return show(*chosen, context); };
}

}  // namespace

extern const Command kShowCommand;
const Command kShowCommand{.name = "show",
                           .alias = nullptr,
                           .summary = "Show what a model is: architecture, weights, context, template, licence",
                           .examples =
                               "  still show smollm2:135m\n"
                               "  still show ./model-00001-of-00002.gguf --tensors\n"
                               "  still show deepseek-r1:7b --template\n"
                               "  still show hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:q4_k_m   reads its header only\n"
                               "  still show ./model.gguf --json | jq .parameters",
                           .declare = declare_show};

}  // namespace still
