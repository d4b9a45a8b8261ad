// The text of sources, and which files of a repository make a model. See source.h.
#include "hub/source.h"

#include <algorithm>
#include <array>
#include <optional>

#include "hub/ascii.h"
#include "hub/http.h"
#include "hub/model_name.h"
#include "hub/pip.h"
#include "hub/sha256.h"
#include "hub/store.h"

namespace still {
namespace fs = std::filesystem;

namespace {

struct Scheme {
  std::string_view prefix;
  SourceRef::Kind kind;
};
constexpr std::array kSchemes = {
    Scheme{"hf:", SourceRef::Kind::kHf},         Scheme{"modelscope:", SourceRef::Kind::kModelscope},
    Scheme{"ollama:", SourceRef::Kind::kOllama}, Scheme{"https://", SourceRef::Kind::kHttp},
    Scheme{"http://", SourceRef::Kind::kHttp},   Scheme{"file:", SourceRef::Kind::kFile},
    Scheme{"pip:", SourceRef::Kind::kPip}};

const Scheme* scheme_of(std::string_view text) {
  for (const Scheme& scheme : kSchemes) {
    if (text.starts_with(scheme.prefix)) return &scheme;
  }
  return nullptr;
}

bool is_repository_part(std::string_view part) {
  return !part.empty() && part.size() <= 200 && part != "." && part != ".." &&
         std::all_of(part.begin(), part.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' ||
                  c == '-';
         });
}

// owner/repo[@revision][:file]
Status parse_repository(std::string_view rest, std::string_view default_revision, SourceRef& source) {
  if (const auto colon = rest.find(':'); colon != std::string_view::npos) {
    source.file = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
    STILL_TRY_STATUS(check_file_name(source.file));
  }
  source.revision = default_revision;
  if (const auto at = rest.find('@'); at != std::string_view::npos) {
    source.revision = rest.substr(at + 1);
    rest = rest.substr(0, at);
  }
  source.repository = rest;
  const auto slash = rest.find('/');
  if (slash == std::string_view::npos || !is_repository_part(rest.substr(0, slash)) ||
      !is_repository_part(rest.substr(slash + 1)) || !is_repository_part(source.revision)) {
    return error(Code::kInvalidArgument, "\"{}\": expected owner/repo[@revision][:file]", source.text);
  }
  return ok();
}

// [ns/]name[:tag]; upper case matters to the registry's tags (q4_K_M)
Status parse_ollama(std::string_view rest, SourceRef& source) {
  STILL_TRY(const ModelName checked, ModelName::parse(rest));
  const auto colon = rest.rfind(':');
  source.file = colon == std::string_view::npos ? "latest" : std::string(rest.substr(colon + 1));
  source.repository = checked.space.empty() ? "library/" + checked.model : checked.repository();
  return ok();
}

Status parse_url(std::string_view text, SourceRef& source) {
  const auto hash = text.find('#');
  source.repository = text.substr(0, hash);
  if (hash == std::string_view::npos) return ok();
  const std::string_view fragment = text.substr(hash + 1);
  source.sha256 = fragment.starts_with("sha256=") ? to_lower(fragment.substr(7)) : std::string();
  if (!is_sha256_hex(source.sha256)) {
    return error(Code::kInvalidArgument, "\"{}\": after '#' expected sha256=<64 hex digits>", text);
  }
  return ok();
}

Status parse_pip(std::string_view rest, SourceRef& source) {
  const auto hash = rest.find('#');
  if (hash != std::string_view::npos) source.pip.glob = rest.substr(hash + 1);
  source.repository = rest.substr(0, hash);
  STILL_TRY(source.pip.requirements, parse_requirements(source.repository));
  return ok();
}

// "-00002-of-00005.gguf" at the end of a name: the number of parts and the name without that ending.
struct SplitName {
  std::string base;
  int n_parts = 0;
};
std::optional<SplitName> split_name(std::string_view name) {
  constexpr std::string_view kPattern = "-00000-of-00000.gguf";
  if (name.size() <= kPattern.size()) return std::nullopt;
  const std::string_view end = name.substr(name.size() - kPattern.size());
  for (std::size_t i = 0; i < kPattern.size(); ++i) {
    const bool is_digit = end[i] >= '0' && end[i] <= '9';
    if (kPattern[i] == '0' ? !is_digit : end[i] != kPattern[i]) return std::nullopt;
  }
  return SplitName{std::string(name.substr(0, name.size() - kPattern.size())),
                   std::stoi(std::string(end.substr(10, 5)))};
}

// A quantisation stands in a file name between separators: "model-Q4_K_M.gguf", "Q4_K_M/model-Q4_K_M-00001-of-...".
bool names_quantisation(std::string_view name, std::string_view wanted) {
  const std::string haystack = to_lower(name), needle = to_lower(wanted);
  const auto is_edge = [](char c) { return c == '-' || c == '.' || c == '/' || c == '_'; };
  for (auto at = haystack.find(needle); at != std::string::npos; at = haystack.find(needle, at + 1)) {
    const std::size_t end = at + needle.size();
    // Q4_K must not match Q4_K_M, nor Q4_K_M the "UD-Q4_K_M" of another recipe before it.
    const bool begins = at == 0 || is_edge(haystack[at - 1]);
    const bool ends = end == haystack.size() || (is_edge(haystack[end]) && haystack[end] != '_');
    const bool is_other_recipe = at >= 3 && haystack.compare(at - 3, 3, "ud-") == 0;
    if (begins && ends && !is_other_recipe) return true;
  }
  return false;
}

bool is_companion(std::string_view name) {
  constexpr std::array<std::string_view, 16> kNames = {
      "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
      "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "model.safetensors.index.json",
      "chat_template.jinja", "chat_template.json",
      // of embedding models
      "vocab.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

std::string names_of(const std::vector<SourceFile>& files) {
  std::string text;
  std::size_t n_shown = 0;
  for (const SourceFile& file : files) {
    if (!file.name.ends_with(".gguf")) continue;
    if (++n_shown > 12) return text + ", ...";
    text += (text.empty() ? "" : ", ") + file.name;
  }
  return text.empty() ? "no GGUF files" : text;
}

// All parts when `first` is one of a split file. Names lose their folders: the parts of one model lie side by side.
Result<std::vector<SourceFile>> with_all_parts(const std::vector<SourceFile>& files, const SourceFile& first,
                                               std::string_view where) {
  std::vector<SourceFile> chosen;
  const std::optional<SplitName> split = split_name(first.name);
  if (!split) chosen.push_back(first);
  for (const SourceFile& file : files) {
    const std::optional<SplitName> other = split_name(file.name);
    if (split && other && other->base == split->base && other->n_parts == split->n_parts) chosen.push_back(file);
  }
  if (split && static_cast<int>(chosen.size()) != split->n_parts) {
    return error(Code::kNotFound, "{}: {} has {} parts, {} are there", where, first.name, split->n_parts,
                 chosen.size());
  }
  for (SourceFile& file : chosen) file.name = fs::path(file.name).filename().string();
  std::sort(chosen.begin(), chosen.end(), [](const SourceFile& a, const SourceFile& b) { return a.name < b.name; });
  return chosen;
}

// A GGUF that is a model on its own: not a later part, not a vision projector.
bool is_model_gguf(std::string_view name) {
  if (!name.ends_with(".gguf") || name.find("mmproj") != std::string_view::npos) return false;
  return !split_name(name) || name.find("-00001-of-") != std::string_view::npos;
}

}  // namespace

bool is_source(std::string_view text) {
  return scheme_of(text) != nullptr;
}

Result<SourceRef> parse_source(std::string_view text) {
  const Scheme* scheme = scheme_of(text);
  if (scheme == nullptr) {
    return error(Code::kInvalidArgument,
                 "\"{}\" is not a source; sources begin with hf:, modelscope:, ollama:, https://, file: or pip:", text);
  }
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= 0x20 && scheme->kind != SourceRef::Kind::kFile) {
      return error(Code::kInvalidArgument, "\"{}\": a source has no spaces", text);
    }
  }
  SourceRef source{.kind = scheme->kind, .text = std::string(text)};
  const std::string_view rest = text.substr(scheme->prefix.size());
  if (rest.empty()) return error(Code::kInvalidArgument, "\"{}\": nothing after the scheme", text);
  switch (scheme->kind) {
    case SourceRef::Kind::kHf:
      STILL_TRY_STATUS(parse_repository(rest, "main", source));
      break;
    case SourceRef::Kind::kModelscope:
      STILL_TRY_STATUS(parse_repository(rest, "master", source));
      break;
    case SourceRef::Kind::kOllama:
      STILL_TRY_STATUS(parse_ollama(rest, source));
      break;
    case SourceRef::Kind::kHttp:
      STILL_TRY_STATUS(parse_url(text, source));
      break;
    case SourceRef::Kind::kFile:
      source.repository = rest.starts_with("///") ? rest.substr(2) : rest;
      break;
    case SourceRef::Kind::kPip:
      STILL_TRY_STATUS(parse_pip(rest, source));
      break;
  }
  return source;
}

std::string SourceRef::suggested_name() const {
  const auto stem_of = [](std::string_view path) {
    std::string stem = fs::path(path.substr(0, path.find('?'))).filename().string();
    if (const auto split = split_name(stem)) return split->base;
    for (const std::string_view ending : {".gguf", ".safetensors"}) {
      if (stem.ends_with(ending)) stem.resize(stem.size() - ending.size());
    }
    return stem;
  };
  switch (kind) {
    case Kind::kHf:
    case Kind::kModelscope: {
      const auto slash = repository.find('/');
      const std::string name =
          sanitize_name_part(repository.substr(0, slash)) + "/" + sanitize_name_part(repository.substr(slash + 1));
      return file.empty() ? name + ":latest" : name + ":" + sanitize_name_part(stem_of(file));
    }
    case Kind::kOllama:
      return (repository.starts_with("library/") ? repository.substr(8) : repository) + ":" + to_lower(file);
    case Kind::kHttp:
      return sanitize_name_part(stem_of(repository)) + ":latest";
    case Kind::kFile: {
      const std::string path = repository.ends_with('/') ? repository.substr(0, repository.size() - 1) : repository;
      return sanitize_name_part(stem_of(path)) + ":latest";
    }
    case Kind::kPip: {
      const std::string& first = pip.requirements.front();
      const auto equals = first.find("==");
      return sanitize_name_part(first.substr(0, equals)) + ":" + sanitize_name_part(first.substr(equals + 2));
    }
  }
  return "model:latest";
}

Result<std::vector<SourceFile>> choose_model_files(std::vector<SourceFile> files, std::string_view wanted,
                                                   std::string_view where) {
  if (!wanted.empty()) {
    for (const SourceFile& file : files) {
      if (file.name == wanted) return with_all_parts(files, file, where);
    }
  }
  std::vector<const SourceFile*> models;
  for (const SourceFile& file : files) {
    if (is_model_gguf(file.name) && (wanted.empty() || names_quantisation(file.name, wanted))) models.push_back(&file);
  }
  if (models.size() > 1 && wanted.empty()) {
    std::erase_if(models, [](const SourceFile* file) { return !names_quantisation(file->name, "q4_k_m"); });
  }
  if (models.size() == 1) return with_all_parts(files, *models[0], where);
  const bool has_gguf =
      std::any_of(files.begin(), files.end(), [](const SourceFile& f) { return f.name.ends_with(".gguf"); });
  if (has_gguf || !wanted.empty()) {
    return error(Code::kNotFound, "{}: {} files match {}; name one of its files after ':': {}", where, models.size(),
                 wanted.empty() ? "the default Q4_K_M" : wanted, names_of(files));
  }
  std::vector<SourceFile> chosen;
  bool has_weights = false;
  for (SourceFile& file : files) {
    if (file.name.find('/') != std::string::npos && !is_companion(file.name)) continue;
    const bool is_weights = file.name.ends_with(".safetensors");
    has_weights = has_weights || is_weights;
    if (is_weights || is_companion(file.name)) chosen.push_back(std::move(file));
  }
  if (!has_weights) return error(Code::kNotFound, "{}: holds neither GGUF nor safetensors files", where);
  return chosen;
}

Result<SourceListing> list_source(const SourceRef& source, const HubOptions& options, const CancelToken& cancel) {
  switch (source.kind) {
    case SourceRef::Kind::kHf:
      return list_hf(source, options, cancel);
    case SourceRef::Kind::kModelscope:
      return list_modelscope(source, options, cancel);
    case SourceRef::Kind::kOllama:
      return list_ollama(source, options, cancel);
    case SourceRef::Kind::kHttp:
      return list_http(source, options, cancel);
    case SourceRef::Kind::kFile:
      return list_local(source, options, cancel);
    case SourceRef::Kind::kPip: {
      SourceListing listing;
      listing.files.push_back({.name = "", .fetch = source.pip});
      return listing;
    }
  }
  return error(Code::kInternal, "{}: a source of no kind", source.text);
}

}  // namespace still
