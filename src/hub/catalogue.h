// The built-in catalogue: short names for models, each with its sources in the order they are tried.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hub/model_name.h"

namespace still {

struct CatalogueSource {
  std::string source;      // as source.h reads it
  std::string file;        // name in the store; empty: as the source names it
  std::int64_t size = -1;  // of the one file, where it was measured
  std::string sha256;      // likewise; empty: as the source itself states it
};

struct CatalogueEntry {
  ModelName name;            // canonical: deepseek-r1:7b, deepseek-r1:7b-q8_0
  std::string title;         // "DeepSeek-R1-Distill-Qwen-7B"
  std::string architecture;  // config.json's model_type: "qwen2"
  std::string quantisation;  // "q4_k_m"
  double parameters = 0;     // number of weights
  std::int64_t approx_bytes = 0;
  std::int64_t context = 0;  // tokens
  std::string licence;
  std::vector<CatalogueSource> sources;
};

// All entries, sorted by family and size.
std::vector<CatalogueEntry> list_catalogue();
// The entry of a name or of an alias ("smollm2", "deepseek-r1:7b-q4_k_m").
std::optional<CatalogueEntry> find_in_catalogue(const ModelName& name);

}  // namespace still
