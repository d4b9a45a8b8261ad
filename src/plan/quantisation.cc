// The mixture rules follow llama.cpp's src/llama-quant.cpp of 2026 (llama_tensor_get_type): which type each tensor of a
// "Q4_K_M" file has. Files of IQ1 to IQ3 are taken to be made with an importance matrix, the others without.
#include "plan/quantisation.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/arithmetic.h"
#include "base/check.h"
#include "plan/closest.h"

namespace still {

namespace {

using enum TensorPart;
using Kind = Quantisation::Kind;
using Compute = Quantisation::Compute;
constexpr std::int64_t kInt4Group = 128;
constexpr std::int64_t kFp8Tile = 128;

struct MixtureName {
  std::string_view name;
  DType base;
};
constexpr std::array kMixtures = {MixtureName{"Q4_0", DType::kQ4_0},     MixtureName{"Q4_1", DType::kQ4_1},
                                  MixtureName{"Q5_0", DType::kQ5_0},     MixtureName{"Q5_1", DType::kQ5_1},
                                  MixtureName{"Q8_0", DType::kQ8_0},     MixtureName{"Q2_K", DType::kQ2_K},
                                  MixtureName{"Q2_K_S", DType::kQ2_K},   MixtureName{"Q3_K_S", DType::kQ3_K},
                                  MixtureName{"Q3_K_M", DType::kQ3_K},   MixtureName{"Q3_K_L", DType::kQ3_K},
                                  MixtureName{"Q4_K_S", DType::kQ4_K},   MixtureName{"Q4_K_M", DType::kQ4_K},
                                  MixtureName{"Q5_K_S", DType::kQ5_K},   MixtureName{"Q5_K_M", DType::kQ5_K},
                                  MixtureName{"Q6_K", DType::kQ6_K},     MixtureName{"IQ1_S", DType::kIQ1_S},
                                  MixtureName{"IQ1_M", DType::kIQ1_M},   MixtureName{"IQ2_XXS", DType::kIQ2_XXS},
                                  MixtureName{"IQ2_XS", DType::kIQ2_XS}, MixtureName{"IQ2_S", DType::kIQ2_XS},
                                  MixtureName{"IQ2_M", DType::kIQ2_S},   MixtureName{"IQ3_XXS", DType::kIQ3_XXS},
                                  MixtureName{"IQ3_XS", DType::kIQ3_S},  MixtureName{"IQ3_S", DType::kIQ3_S},
                                  MixtureName{"IQ3_M", DType::kIQ3_S},   MixtureName{"IQ4_NL", DType::kIQ4_NL},
                                  MixtureName{"IQ4_XS", DType::kIQ4_XS}, MixtureName{"TQ1_0", DType::kTQ1_0},
                                  MixtureName{"TQ2_0", DType::kTQ2_0},   MixtureName{"MXFP4_MOE", DType::kMXFP4},
                                  MixtureName{"NVFP4", DType::kNVFP4},   MixtureName{"Q1_0", DType::kQ1_0},
                                  MixtureName{"Q2_0", DType::kQ2_0}};

// Types that a pure file may be made of.
constexpr std::array kPureTypes = {DType::kQ4_0,    DType::kQ4_1,  DType::kQ5_0,    DType::kQ5_1,   DType::kQ8_0,
                                   DType::kQ2_K,    DType::kQ3_K,  DType::kQ4_K,    DType::kQ5_K,   DType::kQ6_K,
                                   DType::kIQ1_S,   DType::kIQ1_M, DType::kIQ2_XXS, DType::kIQ2_XS, DType::kIQ2_S,
                                   DType::kIQ3_XXS, DType::kIQ3_S, DType::kIQ4_NL,  DType::kIQ4_XS, DType::kTQ1_0,
                                   DType::kTQ2_0,   DType::kMXFP4, DType::kNVFP4,   DType::kQ1_0,   DType::kQ2_0};

std::vector<Quantisation> list_all() {
  std::vector<Quantisation> all;
  all.push_back({.name = "own", .kind = Kind::kOwn});
  all.push_back({.name = "F32", .kind = Kind::kPlain, .base = DType::kF32});
  all.push_back({.name = "F16", .kind = Kind::kPlain, .base = DType::kF16});
  all.push_back({.name = "BF16", .kind = Kind::kPlain, .base = DType::kBF16, .compute = Compute::kBF16});
  for (const MixtureName& mixture : kMixtures)
    all.push_back({.name = std::string(mixture.name), .kind = Kind::kMixture, .base = mixture.base});
  for (const DType type : kPureTypes)
    all.push_back({.name = std::string(dtype_name(type)) + "-PURE", .kind = Kind::kPure, .base = type});
  for (const char* name : {"GPTQ-INT4", "AWQ-INT4", "W4A16"}) all.push_back({.name = name, .kind = Kind::kGroupInt4});
  all.push_back({.name = "INT8", .kind = Kind::kChannelInt8, .compute = Compute::kInt8});
  all.push_back({.name = "FP8", .kind = Kind::kChannelFp8, .compute = Compute::kFp8});
  all.push_back({.name = "FP8-BLOCK", .kind = Kind::kBlockFp8, .compute = Compute::kFp8});
  return all;
}

// llama.cpp gives a third of the middle layers, and the first and last eighth, more bits.
bool has_more_bits(std::int64_t layer, std::int64_t n) {
  return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
}

DType fallback_type(DType type, std::int64_t cols) {
  if (cols % dtype_info(type).block_size == 0) return type;
  DType other = DType::kF16;
  switch (type) {
    case DType::kIQ1_S:
    case DType::kIQ1_M:
    case DType::kIQ2_XXS:
    case DType::kIQ2_XS:
    case DType::kIQ2_S:
    case DType::kIQ3_XXS:
    case DType::kIQ3_S:
    case DType::kIQ4_XS:
      other = DType::kIQ4_NL;
      break;
    case DType::kQ2_0:
    case DType::kQ2_K:
    case DType::kQ3_K:
    case DType::kTQ1_0:
    case DType::kTQ2_0:
      other = DType::kQ4_0;
      break;
    case DType::kQ4_K:
      other = DType::kQ5_0;
      break;
    case DType::kQ5_K:
      other = DType::kQ5_1;
      break;
    case DType::kQ6_K:
      other = DType::kQ8_0;
      break;
    default:
      break;
  }
  return cols % dtype_info(other).block_size == 0 ? other : DType::kF16;
}

struct Facts {
  std::int64_t n_layers, n_gqa, n_experts;
  bool is_70b, is_tied;
};

Facts facts_of(const ModelShape& shape) {
  const ModelConfig& c = shape.config;
  const bool is_mla = shape.is_mla();
  return {.n_layers = c.n_layers,
          .n_gqa = is_mla ? c.n_heads : c.n_heads / std::max(1, c.n_kv_heads),
          .n_experts = c.n_experts,
          .is_70b = c.n_layers == 80 && !is_mla && c.n_kv_heads != c.n_heads,
          .is_tied = c.tied_embeddings};
}

bool is_low_iq(std::string_view n) {
  return n == "IQ1_S" || n == "IQ1_M" || n == "IQ2_XXS" || n == "IQ2_XS" || n == "IQ2_S" || n == "IQ2_M";
}

DType value_type(std::string_view name, DType base, std::int64_t layer, const Facts& f) {
  DType type = base;
  const bool gqa4 = f.n_gqa >= 4;
  if (is_low_iq(name)) {
    if (gqa4 || f.n_experts >= 4) return DType::kQ4_K;
    return name == "IQ2_S" || name == "IQ2_M" ? DType::kIQ3_S : DType::kQ2_K;
  }
  if (name == "Q2_K")
    type = gqa4 ? DType::kQ4_K : DType::kQ3_K;
  else if (name == "Q2_K_S" && gqa4)
    type = DType::kQ4_K;
  else if (name == "IQ3_XXS")
    type = gqa4 ? DType::kQ4_K : DType::kIQ3_XXS;
  else if ((name == "IQ3_XS" || name == "IQ3_S") && gqa4)
    type = DType::kQ4_K;
  else if (name == "IQ3_M")
    type = DType::kQ4_K;
  else if (name == "Q3_K_M")
    type = layer < 2 ? DType::kQ5_K : DType::kQ4_K;
  else if (name == "Q3_K_L")
    type = DType::kQ5_K;
  else if ((name == "IQ4_NL" || name == "IQ4_XS") && gqa4)
    type = DType::kQ5_K;
  else if ((name == "Q4_K_M" || name == "Q5_K_M") && has_more_bits(layer, f.n_layers))
    type = DType::kQ6_K;
  else if (name == "Q4_K_S" && layer < 4)
    type = DType::kQ5_K;
  if (f.is_70b && (type == DType::kQ3_K || type == DType::kQ4_K)) type = DType::kQ5_K;
  return f.n_experts == 8 ? DType::kQ8_0 : type;
}

DType down_type(std::string_view name, DType base, std::int64_t layer, const Facts& f) {
  const std::int64_t n = f.n_layers;
  if (is_low_iq(name)) {
    if (layer >= n / 8) return base;
    return name == "IQ2_S" || name == "IQ2_M" ? DType::kIQ3_S : DType::kQ2_K;
  }
  if (name == "Q2_K") return DType::kQ3_K;
  if (name == "Q2_K_S") return layer < n / 8 ? DType::kQ4_K : base;
  if (name == "Q3_K_M") return layer < n / 16 ? DType::kQ5_K : DType::kQ4_K;
  if (name == "IQ3_M") return layer < n / 8 || (f.n_experts == 8 && has_more_bits(layer, n)) ? DType::kQ4_K : base;
  if (name == "Q3_K_L") return DType::kQ5_K;
  if (name == "Q4_K_M" || name == "Q5_K_M") return has_more_bits(layer, n) ? DType::kQ6_K : base;
  if (name == "IQ4_NL" || name == "IQ4_XS" || name == "Q4_K_S") return layer < n / 8 ? DType::kQ5_K : base;
  return base;
}

DType attention_output_type(std::string_view name, DType base, const Facts& f) {
  if (is_low_iq(name)) {
    if (f.n_experts == 8) return DType::kQ5_K;
    if (name == "IQ1_S" || name == "IQ1_M") return DType::kIQ2_XXS;
    return name == "IQ2_S" || name == "IQ2_M" ? DType::kIQ3_S : base;
  }
  if (f.n_experts == 8) {
    constexpr std::array<std::string_view, 11> kRaised = {"Q2_K",   "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL",
                                                          "Q4_K_S", "Q4_K_M", "IQ3_S",   "IQ3_M",  "IQ4_XS"};
    return std::find(kRaised.begin(), kRaised.end(), name) != kRaised.end() ? DType::kQ5_K : base;
  }
  if (name == "Q2_K") return DType::kQ3_K;
  if (name == "IQ3_XXS") return DType::kIQ3_S;
  if (name == "Q3_K_M" || name == "IQ3_M") return DType::kQ4_K;
  if (name == "Q3_K_L") return DType::kQ5_K;
  return base;
}

DType mixture_type(std::string_view name, DType base, const PlannedTensor& tensor, const Facts& f) {
  const bool is_head = tensor.part == kOutput || (tensor.part == kEmbedding && f.is_tied);
  if (is_head) {
    if (name == "MXFP4_MOE" || tensor.cols % dtype_info(base).block_size != 0) return DType::kQ8_0;
    if (is_low_iq(name) || name == "IQ3_XXS") return DType::kQ5_K;
    return base == DType::kQ8_0 ? base : DType::kQ6_K;
  }
  if (name == "MXFP4_MOE") return tensor.is_routed ? DType::kMXFP4 : DType::kQ8_0;
  const std::int64_t layer = tensor.layer;
  switch (tensor.part) {
    case kEmbedding:
      if (name == "IQ2_XXS" || name == "IQ2_XS" || name == "IQ1_S" || name == "IQ1_M") return DType::kQ2_K;
      if (name == "IQ2_S" || name == "IQ2_M" || name == "IQ3_XXS") return DType::kIQ3_S;
      if (name == "TQ1_0" || name == "TQ2_0" || name == "Q2_0") return DType::kQ4_K;
      return base;
    case kKvB:
      if (tensor.count > 1) return base;  // k_b and v_b apart: the rule names the whole only
      [[fallthrough]];
    case kValue:
      return value_type(name, base, layer, f);
    case kKey:
      if (f.n_experts == 8) return is_low_iq(name) ? DType::kQ4_K : DType::kQ8_0;
      [[fallthrough]];
    case kQuery:
      if (name == "IQ3_XS") return DType::kIQ3_XXS;
      return name == "IQ3_XXS" ? DType::kIQ2_S : base;
    case kDown:
      return down_type(name, base, layer, f);
    case kAttnOut:
      return attention_output_type(name, base, f);
    case kGate:
    case kUp:
      return name == "IQ3_XS" && layer >= f.n_layers / 8 && layer < 7 * f.n_layers / 8 ? DType::kIQ3_XXS : base;
    default:
      return base;
  }
}

// Matrices that GPTQ, AWQ, INT8 and FP8 files quantise: those inside the layers but the router.
bool is_layer_matrix(const PlannedTensor& t) {
  return !t.is_vector && t.part != kEmbedding && t.part != kOutput && t.part != kRouter && t.part != kMtpProjection &&
         t.part != kOther;
}

std::int64_t int4_bytes(const Quantisation& q, std::int64_t rows, std::int64_t cols) {
  const std::int64_t n_groups = ceil_div(cols, kInt4Group) * rows;
  std::int64_t bytes = ceil_div(rows * cols, 2) + 2 * n_groups;  // nibbles, f16 scales
  if (q.name != "W4A16") bytes += ceil_div(n_groups, 2);         // packed zero points
  if (q.name == "GPTQ-INT4") bytes += 4 * cols;                  // g_idx
  return q.name == "W4A16" ? bytes + 16 : bytes;                 // weight_shape, two int64
}

}  // namespace

const std::vector<Quantisation>& all_quantisations() {
  static const std::vector<Quantisation> kAll = list_all();
  return kAll;
}

Result<Quantisation> find_quantisation(std::string_view name) {
  std::string folded = folded_name(name);
  if (folded.ends_with("bpw")) {
    double bits = 0;
    const std::string_view number = std::string_view(folded).substr(0, folded.size() - 3);
    const auto [end, code] = std::from_chars(number.data(), number.data() + number.size(), bits);
    if (code != std::errc() || end != number.data() + number.size() || !(bits >= 0.5) || bits > 32)
      return error(Code::kInvalidArgument, "quantisation \"{}\": expected 0.5bpw to 32bpw", name);
    return Quantisation{.name = folded, .kind = Kind::kUniform, .bits = bits};
  }
  struct Alias {
    std::string_view alias, name;
  };
  constexpr std::array kAliases = {Alias{"fp16", "F16"},       Alias{"fp32", "F32"},       Alias{"q4k", "Q4_K_M"},
                                   Alias{"q5k", "Q5_K_M"},     Alias{"q3k", "Q3_K_M"},     Alias{"gptq", "GPTQ-INT4"},
                                   Alias{"awq", "AWQ-INT4"},   Alias{"int4", "GPTQ-INT4"}, Alias{"w8a8", "INT8"},
                                   Alias{"mxfp4", "MXFP4_MOE"}};
  for (const Alias& alias : kAliases)
    if (folded == alias.alias) folded = folded_name(alias.name);
  std::vector<std::string> names;
  for (const Quantisation& q : all_quantisations()) {
    if (folded_name(q.name) == folded) return q;
    names.push_back(q.name);
  }
  return error(Code::kNotFound, "no quantisation \"{}\"{}", name, closest_text(name, names));
}

DType planned_type(const Quantisation& q, const ModelShape& shape, const PlannedTensor& tensor) {
  switch (q.kind) {
    case Kind::kPlain:
      return q.base;
    case Kind::kMixture:
    case Kind::kPure:
      if (tensor.is_vector || tensor.part == kNorm || tensor.part == kRouter) return DType::kF32;
      return fallback_type(q.kind == Kind::kPure ? q.base : mixture_type(q.name, q.base, tensor, facts_of(shape)),
                           tensor.cols);
    case Kind::kOwn:
      return tensor.own_type.value_or(DType::kBF16);
    default:
      return DType::kBF16;
  }
}

std::int64_t planned_bytes(const Quantisation& q, const ModelShape& shape, const PlannedTensor& tensor,
                           std::int64_t rows, std::int64_t cols, std::int64_t count) {
  const std::int64_t n = rows * cols * count;
  switch (q.kind) {
    case Kind::kOwn:
    case Kind::kPlain:
    case Kind::kMixture:
    case Kind::kPure: {
      const DTypeInfo& info = dtype_info(planned_type(q, shape, tensor));
      return ceil_div(cols, info.block_size) * info.block_bytes * rows * count;
    }
    case Kind::kUniform:
      return static_cast<std::int64_t>(static_cast<double>(n) * q.bits / 8 + 0.5);
    case Kind::kGroupInt4:
      return is_layer_matrix(tensor) ? count * int4_bytes(q, rows, cols) : 2 * n;
    case Kind::kChannelInt8:
    case Kind::kChannelFp8:
      return is_layer_matrix(tensor) ? n + 2 * rows * count : 2 * n;
    case Kind::kBlockFp8:
      if (!is_layer_matrix(tensor)) return (tensor.part == kRouteBias ? 4 : 2) * n;
      return n + 4 * count * ceil_div(rows, kFp8Tile) * ceil_div(cols, kFp8Tile);
  }
  STILL_CHECK(!"a kind without a rule");
}

const std::vector<PlannedTensor>& planned_tensors(const Quantisation& q, const ModelShape& shape) {
  return q.kind == Kind::kOwn ? shape.tensors : shape.weights();
}

std::int64_t weight_file_bytes(const Quantisation& q, const ModelShape& shape, bool with_mtp) {
  std::int64_t bytes = 0;
  for (const PlannedTensor& tensor : planned_tensors(q, shape))
    if (with_mtp || tensor.group != WeightGroup::kMtp) bytes += planned_bytes(q, shape, tensor);
  return bytes;
}

}  // namespace still
