#include "dist/local_group.h"

#include <algorithm>

#include "base/check.h"

namespace still {

// Every exchange: all parts are written, barrier, all are read, barrier.
class LocalGroup::RankComm : public Comm {
 public:
  RankComm(LocalGroup& group, int rank, std::int64_t max_part, std::int64_t max_columns)
      : group_(group),
        rank_(rank),
        part_(static_cast<std::size_t>(max_part)),
        columns_(static_cast<std::size_t>(max_columns)) {}

  int rank() const override { return rank_; }
  int size() const override { return group_.size(); }

  float* part(std::int64_t n) override {
    STILL_CHECK(n <= static_cast<std::int64_t>(part_.size()));
    return part_.data();
  }
  void add_parts(void*, float* y, std::int64_t n_rows, std::int64_t k, bool is_new, PartKind /*kind*/) override {
    group_.barrier_.arrive_and_wait();
    for (std::size_t i = 0; i < static_cast<std::size_t>(n_rows * k); ++i) {
      float sum = 0;
      for (const auto& other : group_.ranks_) sum += other->part_[i];
      y[i] = is_new ? sum : y[i] + sum;
    }
    group_.barrier_.arrive_and_wait();
  }
  bool add_parts_and_norm(void*, float*, bool, PartKind, const CudaNormArgs&) override { return false; }
  void sum_in_place(void*, float* y, std::int64_t n) override {
    std::copy_n(y, n, part(n));
    add_parts(nullptr, y, 1, n, true, PartKind::kF32);
  }

  float* columns() override { return columns_.data(); }
  void gather_columns(void*, float* y, std::int64_t n_rows) override {
    group_.barrier_.arrive_and_wait();
    const auto& first = group_.first_column_;
    for (std::size_t r = 0; r < group_.ranks_.size(); ++r) {
      const std::int64_t width = first[r + 1] - first[r];
      for (std::int64_t row = 0; row < n_rows; ++row)
        std::copy_n(group_.ranks_[r]->columns_.data() + row * width, width, y + row * first.back() + first[r]);
    }
    group_.barrier_.arrive_and_wait();
  }

 private:
  LocalGroup& group_;
  int rank_;
  std::vector<float> part_, columns_;
};

LocalGroup::LocalGroup(std::span<const std::int64_t> first_column, std::int64_t max_part, std::int64_t max_rows)
    : first_column_(first_column.begin(), first_column.end()),
      barrier_(static_cast<std::ptrdiff_t>(first_column.size()) - 1) {
  STILL_CHECK(first_column_.size() >= 2);
  for (std::size_t r = 0; r + 1 < first_column_.size(); ++r)
    ranks_.push_back(std::make_unique<RankComm>(*this, static_cast<int>(r), max_part,
                                                max_rows * (first_column_[r + 1] - first_column_[r])));
}

LocalGroup::~LocalGroup() = default;

Comm& LocalGroup::rank(int i) {
  return *ranks_[static_cast<std::size_t>(i)];
}

}  // namespace still
