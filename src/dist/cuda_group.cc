#include "dist/cuda_group.h"

#include <algorithm>
#include <set>

#include "base/check.h"

namespace still {

namespace {
constexpr std::int64_t kAlign = 256;
// What one rank sends another in a call at most: beyond that NCCL is faster.
constexpr std::int64_t kMaxSlotBytes = std::int64_t{16} << 20;

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// A row of a part on its way.
std::int64_t row_bytes(const CudaGroupOptions& o) {
  return (o.has_bf16_parts ? 2 : 4) * o.hidden_size;
}

std::int64_t sum_rows_of(const CudaGroupOptions& o) {
  const auto n_others = static_cast<std::int64_t>(o.devices.size()) - 1;
  const std::int64_t fitting = kMaxSlotBytes / std::max<std::int64_t>(1, n_others) / row_bytes(o);
  return std::min(std::clamp<std::int64_t>(fitting, 16, o.max_sum_rows), o.max_tokens);
}

// What one rank sends another in a call.
std::int64_t slot_bytes(const CudaGroupOptions& o) {
  return aligned(sum_rows_of(o) * row_bytes(o));
}

struct Sizes {
  std::int64_t inbox, state, part, columns, received;
  // has_nccl: more rows than the kernel takes are summed in place. Without peers the others' columns are received.
  Sizes(const CudaGroupOptions& o, std::size_t rank, bool has_peers, bool has_nccl) {
    const auto n = static_cast<std::int64_t>(o.devices.size());
    inbox = has_peers ? 2 * n * slot_bytes(o) : 0;
    state = aligned(4 * (4 + kCudaMaxRanks));
    part = has_peers ? aligned(4 * o.hidden_size * (has_nccl ? sum_rows_of(o) : o.max_tokens)) : 0;
    columns = aligned(4 * o.max_rows * (o.first_column[rank + 1] - o.first_column[rank]));
    received = has_peers ? 0 : aligned(4 * o.max_rows * o.first_column.back());
  }
  std::int64_t total() const { return inbox + state + part + columns + received; }
};
}  // namespace

class CudaGroup::RankComm : public Comm {
 public:
  RankComm(CudaGroup& group, int rank) : group_(group), rank_(rank) {}

  Status create() {
    const CudaGroupOptions& o = group_.options_;
    STILL_TRY_STATUS(use_cuda_device(o.devices[static_cast<std::size_t>(rank_)]));
    const Sizes sizes(o, static_cast<std::size_t>(rank_), group_.has_peers_, group_.nccl_ != nullptr);
    STILL_TRY(memory_, DeviceBuffer::create(sizes.total(), "what GPUs exchange"));
    STILL_TRY(CudaStream stream, CudaStream::create());
    stream.fill(memory_.data(), 0, memory_.size());
    stream.fill(memory_.data(), 0xff, sizes.inbox);  // nothing has come
    STILL_TRY_STATUS(stream.wait("what GPUs exchange"));
    if (group_.has_peers_) cuda_kernels()->load_rank_kernels();
    std::byte* at = memory_.data();
    const auto take = [&](auto*& pointer, std::int64_t bytes) {
      pointer = bytes == 0 ? nullptr : reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
      at += bytes;
    };
    take(inbox_, sizes.inbox);
    take(state_, sizes.state);
    take(part_, sizes.part);
    take(columns_, sizes.columns);
    take(received_, sizes.received);
    max_part_ = sizes.part / 4;
    return ok();
  }

  // When all ranks have their memory.
  void set_exchange() {
    for (std::size_t r = 0; r < group_.ranks_.size(); ++r) exchange_.inboxes[r] = group_.ranks_[r]->inbox_;
    exchange_.slot_bytes = slot_bytes(group_.options_);
    exchange_.state = state_;
    exchange_.rank = rank_;
    exchange_.n_ranks = size();
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_.options_.devices.size()); }

  float* part(std::int64_t n) override { return n <= max_part_ ? part_ : nullptr; }
  bool takes_bf16_parts() const override { return group_.has_peers_ && group_.options_.has_bf16_parts; }
  const CudaExchange* exchange() const override { return group_.has_peers_ ? &exchange_ : nullptr; }
  void add_parts(void* stream, float* y, std::int64_t n_rows, std::int64_t k, bool is_new, PartKind kind) override {
    for (std::int64_t row = 0; row < n_rows; row += group_.sum_rows_) {
      CudaSumArgs args = sum_args(k, row, kind);
      args.y = y + row * k;
      args.is_new = is_new;
      args.n_rows = static_cast<std::int32_t>(std::min(group_.sum_rows_, n_rows - row));
      cuda_kernels()->sum_parts(stream, args);
    }
  }
  bool add_parts_and_norm(void* stream, float* y, bool is_new, PartKind kind, const CudaNormArgs& norm) override {
    if (norm.n_rows > group_.sum_rows_ || norm.rows != nullptr) return false;
    CudaSumArgs args = sum_args(norm.k, 0, kind);
    args.y = y;
    args.is_new = is_new;
    args.n_rows = norm.n_rows;
    args.has_norm = true;
    args.norm = norm;
    cuda_kernels()->sum_parts(stream, args);
    return true;
  }
  void sum_in_place(void* stream, float* y, std::int64_t n) override {
    group_.remember(group_.nccl_->sum(rank_, stream, y, n));
  }

  float* columns() override { return columns_; }
  void gather_columns(void* stream, float* y, std::int64_t n_rows) override {
    const std::vector<std::int64_t>& first = group_.options_.first_column;
    const auto width = [&](std::size_t r) { return first[r + 1] - first[r]; };
    const auto self = static_cast<std::size_t>(rank_);
    if (group_.has_peers_) {
      CudaGatherArgs args{.columns = columns_,
                          .y_stride = first.back(),
                          .first_column = first[self],
                          .n_columns = static_cast<std::int32_t>(width(self)),
                          .n_rows = static_cast<std::int32_t>(n_rows),
                          .state = state_ + 2,
                          .rank = rank_,
                          .n_ranks = size()};
      STILL_CHECK(y == logits_);
      for (std::size_t r = 0; r < group_.ranks_.size(); ++r) {
        args.y[r] = group_.ranks_[r]->logits_;
        args.arrivals[r] = group_.ranks_[r]->state_ + 4;
      }
      cuda_kernels()->gather_columns(stream, args);
      return;
    }
    float* from[kCudaMaxRanks];
    std::int64_t n[kCudaMaxRanks];
    for (std::size_t r = 0; r < group_.ranks_.size(); ++r) {
      n[r] = n_rows * width(r);
      from[r] = r == self ? columns_ : received_ + n_rows * first[r];
    }
    group_.remember(
        group_.nccl_->exchange(rank_, stream, columns_, {from, group_.ranks_.size()}, {n, group_.ranks_.size()}));
    for (std::size_t r = 0; r < group_.ranks_.size(); ++r)
      copy_rows_on_device(stream, y + first[r], 4 * first.back(), from[r], 4 * width(r), 4 * width(r), n_rows);
  }
  void set_logits(float* logits) { logits_ = logits; }

 private:
  CudaSumArgs sum_args(std::int64_t k, std::int64_t row, PartKind kind) const {
    STILL_CHECK(k == group_.options_.hidden_size);
    CudaSumArgs args{};
    args.exchange = exchange_;
    args.is_sent = kind == PartKind::kSent;
    args.is_bf16 = group_.options_.has_bf16_parts;
    args.part = part_ + row * k;
    if (kind == PartKind::kBF16) args.part_bf16 = reinterpret_cast<const std::uint16_t*>(part_) + row * k;
    args.k = static_cast<std::int32_t>(k);
    return args;
  }

  CudaGroup& group_;
  int rank_;
  DeviceBuffer memory_;
  std::uint8_t* inbox_ = nullptr;
  std::uint32_t* state_ = nullptr;  // [2] of sums, [2] of gathers, [kCudaMaxRanks] arrivals
  float* part_ = nullptr;
  float* columns_ = nullptr;
  float* logits_ = nullptr;
  float* received_ = nullptr;
  std::int64_t max_part_ = 0;
  CudaExchange exchange_;
};

Result<std::unique_ptr<CudaGroup>> CudaGroup::create(const CudaGroupOptions& options) {
  const std::size_t n = options.devices.size();
  STILL_CHECK(options.first_column.size() == n + 1);
  if (n < 2 || n > static_cast<std::size_t>(kCudaMaxRanks))
    return error(Code::kInvalidArgument, "{} ranks: expected 2 to {}", n, kCudaMaxRanks);
  if (options.hidden_size % 8 != 0)
    return error(Code::kUnsupported, "hidden size {}: ranks on GPUs want a multiple of 8", options.hidden_size);
  std::unique_ptr<CudaGroup> group(new CudaGroup());
  group->options_ = options;
  group->sum_rows_ = sum_rows_of(options);
  std::string peers_missing = "not wanted";
  if (options.use_peers) {
    Status reached;
    for (const std::int32_t device : options.devices)
      for (const std::int32_t peer : options.devices)
        if (reached) reached = enable_peer_access(device, peer);
    group->has_peers_ = reached.has_value();
    if (!reached) peers_missing = reached.error().message;
  }
  const bool is_each_alone = std::set<std::int32_t>(options.devices.begin(), options.devices.end()).size() == n;
  if (!options.use_nccl || !is_each_alone) {
    group->nccl_missing_ = "not wanted";
  } else if (Result<std::unique_ptr<Nccl>> nccl = Nccl::create(options.devices)) {
    group->nccl_ = std::move(*nccl);
  } else {
    group->nccl_missing_ = nccl.error().message;
  }
  if (!group->has_peers_ && group->nccl_ == nullptr)
    return error(Code::kUnavailable, "the GPUs reach one another neither directly ({}) nor through NCCL ({})",
                 peers_missing, group->nccl_missing_);
  for (std::size_t r = 0; r < n; ++r) {
    group->ranks_.push_back(std::make_unique<RankComm>(*group, static_cast<int>(r)));
    STILL_TRY_STATUS(group->ranks_.back()->create());
  }
  for (const auto& rank : group->ranks_) rank->set_exchange();
  return group;
}

std::int64_t CudaGroup::bytes(const CudaGroupOptions& options, int rank) {
  const auto r = static_cast<std::size_t>(rank);
  std::int64_t most = 0;
  for (const auto& [peers, nccl] : {std::pair(true, true), std::pair(true, false), std::pair(false, true)})
    most = std::max(most, Sizes(options, r, peers, nccl).total());
  return most;
}

CudaGroup::~CudaGroup() = default;

void CudaGroup::set_logits(int rank, float* logits) {
  ranks_[static_cast<std::size_t>(rank)]->set_logits(logits);
}

Comm& CudaGroup::rank(int i) {
  return *ranks_[static_cast<std::size_t>(i)];
}

Status CudaGroup::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void CudaGroup::remember(const Status& status) {
  if (status) return;
  const std::lock_guard lock(mutex_);
  if (status_) status_ = status;
}

}  // namespace still
