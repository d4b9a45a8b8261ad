#include "models/arch.h"

namespace still {

// Linear searches: they run at load only, a few hundred names each.
const Weight* WeightSet::matrix(std::string_view name) const {
  for (const Weight& weight : matrices)
    if (weight.name == name) return &weight;
  return nullptr;
}

TensorView WeightSet::vector(std::string_view name) const {
  for (const NamedVector& entry : vectors)
    if (entry.name == name) return entry.view;
  return {};
}

const EmbeddingTable* WeightSet::embedding(std::string_view name) const {
  for (const EmbeddingTable& table : embeddings)
    if (table.name == name) return &table;
  return nullptr;
}

}  // namespace still
