// Comm: what the ranks of one model do together. Each rank runs the same operators in the same order on its own Exec;
// products with matrices of which it has some columns are parts of a sum, and the logits of which it has some columns
// are put together on every rank, so that each draws the same tokens. Sums are taken in order of rank: all ranks hold
// the same bits.
//
// `stream`: the Exec's cudaStream_t, whose order these calls keep; null on the CPU, where they are done on return.
#pragma once

#include <cstdint>

namespace still {

struct CudaExchange;
struct CudaNormArgs;

// A rank's part of a sum: floats or bf16 in part(), or a row that the product itself has sent (exchange()).
enum class PartKind { kF32, kBF16, kSent };

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Memory for this rank's part of a sum of n floats, where the operators run. Null: so many are summed in place.
  virtual float* part(std::int64_t n) = 0;
  // Whether part() may hold bf16 instead.
  virtual bool takes_bf16_parts() const { return false; }
  // Where a product sends its one row, as bf16 if takes_bf16_parts(), f32 if not. Null: it does not.
  virtual const CudaExchange* exchange() const { return nullptr; }
  // y += the sum of all ranks' parts; is_new: y = the sum. y: [n_rows, k]
  virtual void add_parts(void* stream, float* y, std::int64_t n_rows, std::int64_t k, bool is_new, PartKind kind) = 0;
  // The same and then the norm of y's rows, in one kernel. False: there is none for so many rows, nothing was done.
  virtual bool add_parts_and_norm(void* stream, float* y, bool is_new, PartKind kind, const CudaNormArgs& norm) = 0;
  // y = the sum of all ranks' y. [n]
  virtual void sum_in_place(void* stream, float* y, std::int64_t n) = 0;

  // Memory for this rank's columns of logits, [n_rows, its columns].
  virtual float* columns() = 0;
  // y: the columns of all ranks side by side, [n_rows, vocab_size].
  virtual void gather_columns(void* stream, float* y, std::int64_t n_rows) = 0;
};

}  // namespace still
