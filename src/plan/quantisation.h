// Quantisation: how each tensor of a model would be stored, whether or not such a file exists: every type of ggml
// alone, its mixture rules (Q4_K_M and the like), and the formats of safetensors models (GPTQ, AWQ, INT8, FP8).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan/model_shape.h"
#include "tensor/dtype.h"

namespace still {

struct Quantisation {
  enum class Kind : std::uint8_t {
    kOwn,          // as the file has it
    kPlain,        // every tensor in one float type: safetensors
    kMixture,      // llama.cpp's rules for the type of each tensor
    kPure,         // one ggml type for all matrices
    kGroupInt4,    // GPTQ, AWQ, compressed-tensors: 4 bits, scales by group
    kChannelInt8,  // W8A8: 8 bits, one scale a row
    kChannelFp8,
    kBlockFp8,  // DeepSeek: e4m3, an f32 scale for each tile of 128 x 128
    kUniform,   // a bare number of bits for every weight
  };
  std::string name;  // "Q4_K_M", "GPTQ-INT4", "4.25bpw"
  Kind kind = Kind::kOwn;
  DType base = DType::kF16;  // the type of most tensors
  double bits = 0;           // kUniform
  // Which compute it runs in on tensor units: decides the roof of prefill and the hardware it needs.
  enum class Compute : std::uint8_t { kF16, kBF16, kInt8, kFp8, kFp4 } compute = Compute::kF16;
};

// Case and separators do not matter ("q4_k_m", "Q4-K-M"). Names what is close when there is no such quantisation.
Result<Quantisation> find_quantisation(std::string_view name);
const std::vector<Quantisation>& all_quantisations();

// The ggml type of a tensor under kMixture, kPure or kPlain.
DType planned_type(const Quantisation& quantisation, const ModelShape& shape, const PlannedTensor& tensor);
// Bytes of `rows` x `cols` of each of `count` matrices of this tensor, as they lie in a file.
std::int64_t planned_bytes(const Quantisation& quantisation, const ModelShape& shape, const PlannedTensor& tensor,
                           std::int64_t rows, std::int64_t cols, std::int64_t count);
inline std::int64_t planned_bytes(const Quantisation& quantisation, const ModelShape& shape,
                                  const PlannedTensor& tensor) {
  return planned_bytes(quantisation, shape, tensor, tensor.rows, tensor.cols, tensor.count);
}
// What a file of that quantisation has: its own tensors, or of another type the weights alone.
const std::vector<PlannedTensor>& planned_tensors(const Quantisation& quantisation, const ModelShape& shape);
// All tensors; the MTP module only on request.
std::int64_t weight_file_bytes(const Quantisation& quantisation, const ModelShape& shape, bool with_mtp = false);

}  // namespace still
