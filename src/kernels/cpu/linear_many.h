// Many columns where registers are few (AVX2). Activations have been regrouped once for all threads, in groups of four
// columns: for each pass of kRegroupedPass rows, each chunk of k holds all its groups, one after the other. Two panels'
// weights of a chunk are unpacked into L1 and multiplied with every group; sums wait in L2 for the next chunk, and
// leave for y with the last one.
#pragma once

namespace still {
namespace {

constexpr int kGroup = 4;
static_assert(kRegroupedRows % kGroup == 0);
template <class F>
constexpr int64_t kGroupBlockWords = ColumnLayout<F, kGroup>::kWords * kGroup;
// Whether weights are unpacked once, not for each group.
template <class F>
constexpr bool kUnpackOnce = !kWide<F, kGroup>;

// The chunks of k: equal parts, as far as blocks allow.
template <class F>
int64_t chunk_blocks(int64_t n_blocks) {
  constexpr int64_t kMost = kChunk<F, kUnpackOnce<F>> / F::kBlock;
  const int64_t n_chunks = (n_blocks + kMost - 1) / kMost;
  return (n_blocks + n_chunks - 1) / n_chunks;
}

template <class F>
void regroup(const RegroupArgs& args) {
  const int64_t n_blocks = args.x.k / F::kBlock, step = chunk_blocks<F>(n_blocks);
  for (int64_t row = args.row_begin; row < args.row_end; row += kGroup) {
    const int64_t pass = row / kRegroupedPass * kRegroupedPass;
    const int64_t n_groups = (min_of(kRegroupedPass, args.n_rows - pass) + kGroup - 1) / kGroup;
    int32_t* out = args.out + pass / kGroup * n_blocks * kGroupBlockWords<F>;
    for (int64_t block = 0; block < n_blocks; block += step) {
      const int64_t count = min_of(step, n_blocks - block);
      regroup_columns<F, kGroup>(args.x, row, min_of(kGroup, args.n_rows - row), block, count,
                                 out + (row - pass) / kGroup * count * kGroupBlockWords<F>);
      out += n_groups * count * kGroupBlockWords<F>;
    }
  }
}

template <class F>
constexpr Regrouping kRegrouping = {regroup<F>, F::kBlock, static_cast<int32_t>(kGroupBlockWords<F> * 4 / kGroup)};

// A panel's weights of a chunk.
struct ChunkPart {
  const uint8_t *quants, *scales;
  const uint8_t *ahead, *ahead_end;  // to be asked for meanwhile
};

// One panel and group: to[c] = from[c] + the products of n_blocks blocks; from null: zeros.
template <class F>
__attribute__((noinline)) void multiply_group(const ChunkPart& part, int64_t n_blocks, const int32_t* x,
                                              const float* from, float* to, int64_t to_stride) {
  Floats acc[kGroup];
  if (from == nullptr) {
    repeat<kGroup>([&](auto c) STILL_UNROLLED { acc[decltype(c)::value] = f_zero(); });
  } else {
    repeat<kGroup>([&](auto c) STILL_UNROLLED { acc[decltype(c)::value] = f_load(from + decltype(c)::value * 16); });
  }
  const uint8_t *quants = part.quants, *scales = part.scales;
  for (int64_t b = 0; b < n_blocks; ++b) {
    add_block<F, kUnpackOnce<F>, kGroup, false>(quants, scales, x, acc);
    quants += kPartBytes<F, kUnpackOnce<F>>;
    scales += F::kScaleBytes;
    x += kGroupBlockWords<F>;
  }
  repeat<kGroup>([&](auto c) STILL_UNROLLED { f_store(to + decltype(c)::value * to_stride, acc[decltype(c)::value]); });
}

template <class F>
void multiply_regrouped(const LinearArgs& args) {
  const int64_t n_blocks = args.k / F::kBlock, step = chunk_blocks<F>(n_blocks);
  constexpr int64_t kPassGroups = kRegroupedPass / kGroup, kGroupFloats = kGroup * 16;
  constexpr int64_t kUnpackedBytes = kUnpackOnce<F> ? kChunk<F, true> / F::kBlock * kPartBytes<F, true> : 0;
  constexpr int64_t kSumsBytes = kPassGroups * kGroupFloats * 4;
  static_assert(kPanelsAtOnce * (kUnpackedBytes + kSumsBytes) <= kLinearScratchBytes);
  uint8_t* unpacked = args.scratch;
  float* sums = reinterpret_cast<float*>(args.scratch + kPanelsAtOnce * kUnpackedBytes);
  for (int64_t row = 0; row < args.n_rows; row += kRegroupedPass) {
    const int64_t n = min_of(kRegroupedPass, args.n_rows - row), n_groups = (n + kGroup - 1) / kGroup;
    for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += kPanelsAtOnce) {
      const int n_panels = static_cast<int>(min_of(kPanelsAtOnce, args.panel_end - panel));
      const int32_t* x = args.regrouped + row / kGroup * n_blocks * kGroupBlockWords<F>;
      for (int64_t block = 0; block < n_blocks; block += step) {
        const int64_t count = min_of(step, n_blocks - block);
        const bool is_last = block + count == n_blocks;
        ChunkPart parts[kPanelsAtOnce];
        int64_t ahead_bytes = 0;  // with each group
        PanelPart outputs[kPanelsAtOnce];
        for (int p = 0; p < n_panels; ++p) {
          outputs[p] = panel_part<F>(args, panel + p, row, block);
          ChunkPart& part = parts[p];
          part = {outputs[p].quants, outputs[p].scales, nullptr, nullptr};
          // The next chunk, of these panels or of the next ones.
          const uint8_t* next = is_last ? args.weights + (panel + kPanelsAtOnce + p) * args.panel_bytes
                                        : part.quants + count * F::kQuantBytes;
          part.ahead = next;
          part.ahead_end = next + min_of(step, is_last ? step : n_blocks - block - count) * F::kQuantBytes;
          ahead_bytes = ((part.ahead_end - part.ahead) / 64 + n_groups - 1) / n_groups * 64;
          const uint8_t* next_scales =
              part.scales +
              (is_last ? kPanelsAtOnce * args.panel_bytes - block * F::kScaleBytes : count * F::kScaleBytes);
          for (int64_t i = 0; i < step * F::kScaleBytes; i += 64) prefetch_l2(next_scales + i);
          if constexpr (kUnpackOnce<F>) {
            uint8_t* out = unpacked + p * kUnpackedBytes;
            unpack_blocks<F>(part.quants, count, 0, out);
            part.quants = out;
          }
        }
        for (int64_t g = 0; g < n_groups; ++g, x += count * kGroupBlockWords<F>) {
          const int64_t n_columns = min_of(kGroup, n - g * kGroup);
          for (int p = 0; p < n_panels; ++p) {
            ChunkPart& part = parts[p];
            for (int64_t i = 0; i < ahead_bytes; i += 64)
              if (part.ahead + i < part.ahead_end) prefetch_l2(part.ahead + i);
            part.ahead += ahead_bytes;
            float* sum = sums + (p * kPassGroups + g) * kGroupFloats;
            float* y = outputs[p].y + g * kGroup * args.y_stride;
            const bool to_y = is_last && n_columns == kGroup && outputs[p].n_lanes == kPanelRows;
            if (is_last)  // the next group's
              for (int c = kGroup; c < 2 * kGroup; ++c) prefetch(y + c * args.y_stride);
            multiply_group<F>(part, count, x, block == 0 ? nullptr : sum, to_y ? y : sum, to_y ? args.y_stride : 16);
            if (is_last && !to_y)
              for (int64_t c = 0; c < n_columns; ++c)
                f_store_some(y + c * args.y_stride, f_load(sum + c * 16), outputs[p].n_lanes);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace still
