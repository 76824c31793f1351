// voxel_scatter, one instruction set. Neighbouring pixels often share a cell, so a cell's 8 rows are gathered on the
// stack and go to memory when the cell changes.
#include "cpu/storage.h"
#include "cpu/voxel_scatter.h"

namespace evoworld {
namespace EW_ISA {
namespace {

constexpr int64_t kMaxStackChannels = 64;  // more channels go to memory point by point

EW_HD Int3 page_of(Int3 cell) { return shift_down(cell, kBrickShift + kPageShift); }

// Value rows around the current cell; the tables are read again only when the brick changes.
struct CellRows {
  Int3 brick = {INT32_MIN, INT32_MIN, INT32_MIN};
  int64_t brick_rows[8];
  Int3 cell = {INT32_MIN, INT32_MIN, INT32_MIN};
  int64_t rows[8];

  EW_HD void move_to(const GridView& grid, Int3 next) {
    cell = next;
    const Int3 next_brick = shift_down(cell, kBrickShift);
    if (!same(next_brick, brick)) {
      brick = next_brick;
      find_neighbour_rows(grid, brick, brick_rows);
    }
    find_cell_rows(brick_rows, cell, rows);
  }

  // Rows of pages of another class belong to that class's owner.
  EW_HD void keep_class(int class_index) {
    const Int3 low = page_of(cell);
    if (same(low, page_of(corner_of(cell, 7)))) return;
    for (int i = 0; i < 8; ++i) {
      if (scatter_class(page_of(corner_of(cell, i))) != class_index) rows[i] = kNoRow;
    }
  }
};

// The classes that the corners of a cell fall into, each once; returns how many.
EW_HD int corner_classes(Int3 cell, int classes[8]) {
  const int corners = same(page_of(cell), page_of(corner_of(cell, 7))) ? 1 : 8;
  int found = 0;
  for (int i = 0; i < corners; ++i) {
    const int next = scatter_class(page_of(corner_of(cell, i)));
    bool known = false;
    for (int j = 0; j < found; ++j) known = known || classes[j] == next;
    if (!known) classes[found++] = next;
  }
  return found;
}

template <class T, int kChannels>
void forward_rays(const ScatterInputs& in, const ScatterOutputs& out, int class_index, const int32_t* order,
                  int64_t begin, int64_t end) {
  const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
  const bool gathers = channels <= kMaxStackChannels;
  float features[8][kChannels > 0 ? kChannels : kMaxStackChannels];
  float weights[8];
  CellRows at;
  bool pending = false;
  const auto flush = [&]() __attribute__((always_inline)) {
    if (!pending) return;
    for (int i = 0; i < 8; ++i) {
      if (at.rows[i] < 0) continue;
      float* const row = out.feature_sum + at.rows[i] * channels;
      if (gathers) {
        for (int64_t c = 0; c < channels; ++c) row[c] += features[i][c];
      }
      out.weight_sum[at.rows[i]] += weights[i];
    }
  };
  for (int64_t j = begin; j < end; ++j) {
    const int64_t ray = order[j];
    CellPoint point = {};
    scatter_point(in, ray, point);
    if (!same(point.cell, at.cell)) {
      flush();
      at.move_to(in.grid, point.cell);
      at.keep_class(class_index);
      for (int i = 0; i < 8; ++i) {
        weights[i] = 0.0f;
        if (gathers) {
          for (int64_t c = 0; c < channels; ++c) features[i][c] = 0.0f;
        }
      }
      pending = true;
    }
    float corner_weights[8];
    trilinear_weights(point.fraction, corner_weights);
    const float weight = scatter_weight(in, ray);
    const T* const value = static_cast<const T*>(in.features) + ray * channels;
    for (int i = 0; i < 8; ++i) {
      const float share = corner_weights[i] * weight;
      weights[i] += share;
      if (gathers) {
        add_scaled<kChannels>(features[i], share, value, channels);
      } else if (at.rows[i] >= 0) {
        add_scaled<kChannels>(out.feature_sum + at.rows[i] * channels, share, value, channels);
      }
    }
  }
  flush();
}

template <class T, int kChannels>
void backward_rays(const ScatterInputs& in, const ScatterOutputGradients& d_out, const ScatterInputGradients& gradients,
                   int64_t begin, int64_t end) {
  const int64_t channels = kChannels > 0 ? kChannels : in.num_channels;
  CellRows at;
  for (int64_t ray = begin; ray < end; ++ray) {
    CellPoint point = {};
    const bool valid = scatter_point(in, ray, point);
    float corner_weights[8] = {};
    if (valid) {
      if (!same(point.cell, at.cell)) at.move_to(in.grid, point.cell);
      trilinear_weights(point.fraction, corner_weights);
    }
    const float weight = scatter_weight(in, ray);
    if (gradients.features != nullptr) {
      float* const row = gradients.features + ray * channels;
      float registers[kChannels > 0 ? kChannels : 1];
      float* const sum = kChannels > 0 ? registers : row;
      for (int64_t c = 0; c < channels; ++c) sum[c] = 0.0f;
      for (int i = 0; valid && i < 8; ++i) {
        if (at.rows[i] < 0) continue;
        add_scaled<kChannels>(sum, corner_weights[i] * weight, d_out.feature_sum + at.rows[i] * channels, channels);
      }
      if (kChannels > 0) {
        for (int64_t c = 0; c < channels; ++c) row[c] = sum[c];
      }
    }
    if (gradients.weight == nullptr && gradients.depth == nullptr) continue;
    const T* const value = static_cast<const T*>(in.features) + ray * channels;
    float gains[8];  // S_c
    float d_weight = 0.0f;
    for (int i = 0; i < 8; ++i) {
      gains[i] = 0.0f;
      if (!valid || at.rows[i] < 0) continue;
      gains[i] =
          dot<kChannels>(d_out.feature_sum + at.rows[i] * channels, value, channels) + d_out.weight_sum[at.rows[i]];
      d_weight = fmaf(corner_weights[i], gains[i], d_weight);
    }
    if (gradients.weight != nullptr) gradients.weight[ray] = d_weight;
    if (gradients.depth == nullptr) continue;
    const Float3 slope = valid ? trilinear_gradient(gains, point.fraction) : Float3{0.0f, 0.0f, 0.0f};
    const float scale = valid ? weight / in.grid.voxel_size : 0.0f;
    const float t = valid ? in.depth[ray] : 0.0f;
    const float d_point[3] = {slope.x * scale, slope.y * scale, slope.z * scale};
    float d_depth = 0.0f;
    for (int i = 0; i < 3; ++i) {
      gradients.origins[3 * ray + i] = d_point[i];
      gradients.directions[3 * ray + i] = d_point[i] * t;
      if (valid) d_depth = fmaf(d_point[i], in.directions[3 * ray + i], d_depth);
    }
    gradients.depth[ray] = d_depth;
  }
}

}  // namespace

void scatter_classify_rays(const ScatterInputs& in, int64_t begin, int64_t end, int64_t* counts, uint16_t* codes) {
  for (int64_t ray = begin; ray < end; ++ray) {
    CellPoint point = {};
    codes[ray] = kNoClass;
    if (!scatter_point(in, ray, point)) continue;
    int classes[8];
    const int found = corner_classes(point.cell, classes);
    codes[ray] = found == 1 ? static_cast<uint16_t>(classes[0]) : kManyClasses;
    for (int j = 0; j < found; ++j) ++counts[classes[j]];
  }
}

void scatter_order_rays(const ScatterInputs& in, const uint16_t* codes, int64_t begin, int64_t end, int64_t* slots,
                        int32_t* order) {
  for (int64_t ray = begin; ray < end; ++ray) {
    if (codes[ray] == kNoClass) continue;
    if (codes[ray] != kManyClasses) {
      order[slots[codes[ray]]++] = static_cast<int32_t>(ray);
      continue;
    }
    CellPoint point = {};
    scatter_point(in, ray, point);
    int classes[8];
    const int found = corner_classes(point.cell, classes);
    for (int j = 0; j < found; ++j) order[slots[classes[j]]++] = static_cast<int32_t>(ray);
  }
}

void scatter_forward_rays(const ScatterInputs& in, const ScatterOutputs& out, int class_index, const int32_t* order,
                          int64_t begin, int64_t end) {
  EW_DISPATCH_STORAGE(in.storage, in.num_channels, forward_rays, in, out, class_index, order, begin, end);
}

void scatter_backward_rays(const ScatterInputs& in, const ScatterOutputGradients& d_out,
                           const ScatterInputGradients& gradients, int64_t begin, int64_t end) {
  EW_DISPATCH_STORAGE(in.storage, in.num_channels, backward_rays, in, d_out, gradients, begin, end);
}

}  // namespace EW_ISA
}  // namespace evoworld
