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

template <PackedFormat kFormat>
void linear_float(const LinearArgs& args) {
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
