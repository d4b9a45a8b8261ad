// y = W x for float weights: one fma chain per output in the order of k, so speed comes from many outputs side by side:
// kPanels panels x kColumns rows of activations in registers.
#pragma once

namespace still {
namespace {

template <PackedFormat kFormat>
constexpr int kElementBytes = kFormat == PackedFormat::kF32 ? 4 : 2;

template <PackedFormat kFormat>
STILL_INLINE Floats load_weights(const uint8_t* p) {
  if constexpr (kFormat == PackedFormat::kF32) {
    return f_load(reinterpret_cast<const float*>(p));
  } else if constexpr (kFormat == PackedFormat::kF16) {
    return f_from_f16(p);
  } else {
    return f_from_bf16(p);
  }
}

template <PackedFormat kFormat, int kPanels, int kColumns>
__attribute__((noinline)) void multiply_floats(const LinearArgs& args, const int64_t (&panels)[kPanels], int64_t row) {
  constexpr int64_t kStep = kPanelRows * kElementBytes<kFormat>;
  const uint8_t* w[kPanels];
  Floats acc[kPanels][kColumns];
  repeat<kPanels>([&](auto panel) STILL_UNROLLED {
    constexpr int P = decltype(panel)::value;
    w[P] = args.weights + panels[P] * args.panel_bytes;
    repeat<kColumns>([&](auto column) STILL_UNROLLED { acc[P][decltype(column)::value] = f_zero(); });
  });
  const float* x[kColumns];
  repeat<kColumns>([&](auto column) STILL_UNROLLED {
    x[decltype(column)::value] = args.x_f32 + (row + decltype(column)::value) * args.x_stride;
  });
  for (int64_t i = 0; i < args.k; ++i) {
    Floats weight[kPanels];
    repeat<kPanels>([&](auto panel) STILL_UNROLLED {
      constexpr int P = decltype(panel)::value;
      prefetch(w[P] + 1024);
      weight[P] = load_weights<kFormat>(w[P]);
      w[P] += kStep;
    });
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int C = decltype(column)::value;
      const Floats value = f_set(x[C][i]);
      repeat<kPanels>([&](auto panel) STILL_UNROLLED {
        constexpr int P = decltype(panel)::value;
        acc[P][C] = f_fma(weight[P], value, acc[P][C]);
      });
    });
  }
  repeat<kPanels>([&](auto panel) STILL_UNROLLED {
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int P = decltype(panel)::value, C = decltype(column)::value;
      float* y = args.y + (row + C) * args.y_stride + panels[P] * kPanelRows;
      const int64_t lanes = min_of(kPanelRows, args.n_out - panels[P] * kPanelRows);
      if (lanes == kPanelRows) {
        f_store(y, acc[P][C]);
      } else {
        f_store_some(y, acc[P][C], lanes);
      }
    });
  });
}

// Rows [row, row + kColumns): kPanels streams over the weights.
template <PackedFormat kFormat, int kPanels, int kColumns>
void multiply_columns(const LinearArgs& args, int64_t row) {
  const int64_t stream = (args.panel_end - args.panel_begin) / kPanels;
  for (int64_t i = 0; i < stream; ++i) {
    int64_t panels[kPanels];
    for (int p = 0; p < kPanels; ++p) panels[p] = args.panel_begin + p * stream + i;
    multiply_floats<kFormat, kPanels, kColumns>(args, panels, row);
  }
  for (int64_t panel = args.panel_begin + kPanels * stream; panel < args.panel_end; ++panel) {
    const int64_t panels[1] = {panel};
    multiply_floats<kFormat, 1, kColumns>(args, panels, row);
  }
}

// Many rows where registers are few (AVX2): 6 rows x a panel fill the registers with sums, and what else than an fma
// goes to the vector units takes their time. So a chunk of k of two panels is made f32 once, stays in L1 for all rows
// (with 6 rows' activations of the chunk), and the sums wait in L2 for the next chunk.
constexpr int kTileRows = 6;
constexpr int64_t kFloatChunk = 128, kFloatPanels = 2, kFloatPass = 512;
// Rows from which on it is faster.
constexpr int64_t kFloatTilesFrom = 32;

// What a tile reads and writes besides its weights, [n_k][16] f32.
struct FloatTile {
  const float* x;  // of its first row
  int64_t x_stride, n_k;
  const float* from;  // its sums so far, [rows][16]; null: zeros
  float* to;
  int64_t to_stride;
};

template <int kRows>
__attribute__((noinline)) void multiply_tile(const FloatTile& tile, const float* w) {
  Floats acc[kRows];
  const float* x[kRows];
  repeat<kRows>([&](auto row) STILL_UNROLLED {
    constexpr int R = decltype(row)::value;
    acc[R] = tile.from == nullptr ? f_zero() : f_load(tile.from + 16 * R);
    x[R] = tile.x + R * tile.x_stride;
  });
  const int64_t next = kRows * tile.x_stride;
  for (int64_t i = 0; i < tile.n_k; i += 16) {
    const int64_t end = min_of(i + 16, tile.n_k);
    repeat<kRows>([&](auto row) STILL_UNROLLED { prefetch(x[decltype(row)::value] + next + i); });
#pragma GCC unroll 4
    for (int64_t j = i; j < end; ++j, w += 16) {
      const Floats weights = f_load(w);
      repeat<kRows>([&](auto row) STILL_UNROLLED {
        constexpr int R = decltype(row)::value;
        acc[R] = f_fma(weights, f_set(x[R][j]), acc[R]);
      });
    }
  }
  repeat<kRows>([&](auto row) STILL_UNROLLED {
    constexpr int R = decltype(row)::value;
    f_store(tile.to + R * tile.to_stride, acc[R]);
  });
}

STILL_INLINE void multiply_tile(int n_rows, const FloatTile& tile, const float* w) {
  switch (n_rows) {
    case 1:
      return multiply_tile<1>(tile, w);
    case 2:
      return multiply_tile<2>(tile, w);
    case 3:
      return multiply_tile<3>(tile, w);
    case 4:
      return multiply_tile<4>(tile, w);
    case 5:
      return multiply_tile<5>(tile, w);
    default:
      return multiply_tile<kTileRows>(tile, w);
  }
}

template <PackedFormat kFormat>
void multiply_float_tiles(const LinearArgs& args) {
  constexpr int64_t kStep = kPanelRows * kElementBytes<kFormat>;
  static_assert(kFloatPanels * (kFloatChunk + kFloatPass) * kPanelRows * 4 <= kLinearScratchBytes);
  float* converted = reinterpret_cast<float*>(args.scratch);
  float* sums = converted + kFloatPanels * kFloatChunk * kPanelRows;
  for (int64_t pass = 0; pass < args.n_rows; pass += kFloatPass) {
    const int64_t n = min_of(kFloatPass, args.n_rows - pass), n_groups = (n + kTileRows - 1) / kTileRows;
    for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += kFloatPanels) {
      const int64_t n_panels = min_of(kFloatPanels, args.panel_end - panel);
      for (int64_t k = 0; k < args.k; k += kFloatChunk) {
        const int64_t n_k = min_of(kFloatChunk, args.k - k);
        const bool is_last = k + n_k == args.k;
        const uint8_t* ahead[kFloatPanels];  // the next chunk, of these panels or of the next ones
        for (int64_t p = 0; p < n_panels; ++p) {
          const uint8_t* packed = args.weights + (panel + p) * args.panel_bytes;
          ahead[p] = is_last ? packed + kFloatPanels * args.panel_bytes : packed + (k + n_k) * kStep;
          float* out = converted + p * kFloatChunk * kPanelRows;
          for (int64_t i = 0; i < n_k; ++i) f_store(out + i * 16, load_weights<kFormat>(packed + (k + i) * kStep));
        }
        const int64_t ahead_bytes = (kFloatChunk * kStep / 64 + n_groups - 1) / n_groups * 64;  // with each group
        for (int64_t row = 0; row < n; row += kTileRows) {
          const int n_rows = static_cast<int>(min_of(kTileRows, n - row));
          for (int64_t p = 0; p < n_panels; ++p) {
            for (int64_t i = 0; i < ahead_bytes; i += 64) prefetch_l2(ahead[p] + i);
            ahead[p] += ahead_bytes;
            float* sum = sums + (p * kFloatPass + row) * 16;
            float* y = args.y + (pass + row) * args.y_stride + (panel + p) * kPanelRows;
            const int64_t n_lanes = min_of(kPanelRows, args.n_out - (panel + p) * kPanelRows);
            const bool to_y = is_last && n_lanes == kPanelRows;
            multiply_tile(n_rows,
                          {.x = args.x_f32 + (pass + row) * args.x_stride + k,
                           .x_stride = args.x_stride,
                           .n_k = n_k,
                           .from = k == 0 ? nullptr : sum,
                           .to = to_y ? y : sum,
                           .to_stride = to_y ? args.y_stride : 16},
                          converted + p * kFloatChunk * kPanelRows);
            if (is_last && !to_y)
              for (int r = 0; r < n_rows; ++r) f_store_some(y + r * args.y_stride, f_load(sum + r * 16), n_lanes);
          }
        }
      }
    }
  }
}

template <PackedFormat kFormat>
void linear_float(const LinearArgs& args) {
  if constexpr (kFewRegisters) {
    if (args.n_rows >= kFloatTilesFrom) return multiply_float_tiles<kFormat>(args);
  }
  constexpr int kWide = kMaxColumns == 16 ? 8 : 4;  // columns of the widest tile
  // Many rows: panel by panel, so that a panel's weights stay in cache for all of them.
  if (args.n_rows >= kWide) {
    LinearArgs part = args;
    for (part.panel_begin = args.panel_begin; part.panel_begin < args.panel_end; part.panel_begin = part.panel_end) {
      part.panel_end = min_of(part.panel_begin + 2, args.panel_end);
      int64_t row = 0;
      for (; row + kWide <= args.n_rows; row += kWide) multiply_columns<kFormat, kWide == 8 ? 2 : 1, kWide>(part, row);
      for (; row + 2 <= args.n_rows; row += 2) multiply_columns<kFormat, 2, 2>(part, row);
      for (; row < args.n_rows; ++row) multiply_columns<kFormat, 2, 1>(part, row);
    }
    return;
  }
  int64_t row = 0;
  for (; row + 4 <= args.n_rows; row += 4) multiply_columns<kFormat, kWide == 8 ? 2 : 1, 4>(args, row);
  for (; row + 2 <= args.n_rows; row += 2) multiply_columns<kFormat, 2, 2>(args, row);
  for (; row < args.n_rows; ++row) multiply_columns<kFormat, 4, 1>(args, row);
}

}  // namespace
}  // namespace still
