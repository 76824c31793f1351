// Registers sphere_attention for the CPU; CUDA tensors are served by kernels/sphere_attention.py. Its schemas are
// defined in evoworld/ops/sphere_attention.py.
#ifndef EW_CUDA
#include "cpu/sphere_attention.h"

#include <cmath>
#include <limits>
#include <tuple>

#include "torch/checks.h"

namespace evoworld {
namespace {

using torch::stable::new_empty;

// The arguments that forward and backward share, in the order of the schema.
struct AttentionArguments {
  const Tensor& query;                          // [B, N, L, D]
  const Tensor& key;                            // [B, N, S, D]
  const Tensor& value;                          // [B, N, S, Dv]
  const Tensor& query_directions;               // [L, 3]
  const Tensor& key_directions;                 // [S, 3]
  const std::optional<Tensor>& zonal;           // [N, K + 1]
  const std::optional<Tensor>& key_log_weight;  // [S]
  const std::optional<Tensor>& query_order;     // [L]
  const std::optional<Tensor>& key_order;       // [S]
  std::optional<double> radius;
  double scale;
};

// Throws unless the tensor has this shape, the dtype and device of `like`, and contiguous rows.
void check_rows(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape, const Tensor& like) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = tensor.size(static_cast<int64_t>(i)) == shape[i];
  STD_TORCH_CHECK(fits, name, ": unexpected shape");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, ": expected the dtype of query");
  STD_TORCH_CHECK(tensor.stride(3) == 1 || tensor.numel() == 0, name, ": expected a last dimension that is contiguous");
  check_device(name, tensor);
}

template <class Pointer>
AttentionRows<Pointer> rows_of(const Tensor& tensor) {  // [B, N, rows, width]
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

AttentionInputs attention_inputs(const AttentionArguments& given) {
  const Tensor& like = given.query;
  STD_TORCH_CHECK(like.dim() == 4 && given.key.dim() == 4 && given.value.dim() == 4,
                  "query, key, value: expected four dimensions");
  const int64_t batch = like.size(0), heads = like.size(1), queries = like.size(2), width = like.size(3);
  const int64_t keys = given.key.size(2), value_width = given.value.size(3);
  check_rows("query", like, {batch, heads, queries, width}, like);
  check_rows("key", given.key, {batch, heads, keys, width}, like);
  check_rows("value", given.value, {batch, heads, keys, value_width}, like);
  for (const int64_t size : {width, value_width}) {
    STD_TORCH_CHECK(kMinAttentionWidth <= size && size <= kMaxAttentionWidth,
                    "query, key, value: expected widths from ", kMinAttentionWidth, " to ", kMaxAttentionWidth,
                    ", got ", size);
  }
  check_tensor("query_directions", given.query_directions, ScalarType::Float, {queries, 3}, like);
  check_tensor("key_directions", given.key_directions, ScalarType::Float, {keys, 3}, like);
  int64_t degree = 0;
  if (given.zonal.has_value()) {
    check_tensor("zonal", *given.zonal, ScalarType::Float, {heads, -1}, like);
    degree = given.zonal->size(1) - 1;
    STD_TORCH_CHECK(0 <= degree && degree <= kMaxZonalDegree, "zonal: expected 1 to ", kMaxZonalDegree + 1,
                    " columns, got ", degree + 1);
  }
  if (given.key_log_weight.has_value()) {
    check_tensor("key_log_weight", *given.key_log_weight, ScalarType::Float, {keys}, like);
  }
  const bool ordered = given.query_order.has_value();
  STD_TORCH_CHECK(ordered == given.radius.has_value() && ordered == given.key_order.has_value(),
                  "query_order, key_order: expected both with a radius, and neither without");
  float max_chord2 = std::numeric_limits<float>::infinity();
  if (ordered) {
    check_tensor("query_order", *given.query_order, ScalarType::Int, {queries}, like);
    check_tensor("key_order", *given.key_order, ScalarType::Int, {keys}, like);
    const double half_chord = std::sin(std::fmin(*given.radius, M_PI) / 2);
    max_chord2 = static_cast<float>(4 * half_chord * half_chord);
  }
  return {storage_of("query", like),
          rows_of<const void*>(like),
          rows_of<const void*>(given.key),
          rows_of<const void*>(given.value),
          data_of<const float>(given.query_directions),
          data_of<const float>(given.key_directions),
          data_of<const float>(given.zonal),
          data_of<const float>(given.key_log_weight),
          data_of<const int32_t>(given.query_order),
          data_of<const int32_t>(given.key_order),
          max_chord2,
          static_cast<float>(given.scale),
          batch,
          heads,
          queries,
          keys,
          static_cast<int>(width),
          static_cast<int>(value_width),
          static_cast<int>(degree)};
}

// [B, N, rows, width] over memory [B, rows, N, width]: merging the heads afterwards copies nothing.
Tensor new_rows(const Tensor& like, int64_t rows, int64_t width) {
  return torch::stable::transpose(new_empty(like, {like.size(0), rows, like.size(1), width}), 1, 2);
}

std::tuple<Tensor, Tensor> sphere_attention_op(const Tensor query, const Tensor key, const Tensor value,
                                               const Tensor query_directions, const Tensor key_directions,
                                               const std::optional<Tensor> zonal,
                                               const std::optional<Tensor> key_log_weight,
                                               const std::optional<Tensor> query_order,
                                               const std::optional<Tensor> key_order,
                                               const std::optional<double> radius, double scale) {
  const AttentionInputs in = attention_inputs({query, key, value, query_directions, key_directions, zonal,
                                               key_log_weight, query_order, key_order, radius, scale});
  const Execution execution(query);
  Tensor output = new_rows(query, in.num_queries, in.value_width);
  Tensor lse = new_empty(query, {in.batch, in.heads, in.num_queries}, ScalarType::Float);
  sphere_attention_forward(in, {rows_of<void*>(output), data_of<float>(lse)}, execution.where());
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sphere_attention_backward_op(
    const Tensor d_output, const Tensor d_lse, const Tensor output, const Tensor lse, const Tensor query,
    const Tensor key, const Tensor value, const Tensor query_directions, const Tensor key_directions,
    const std::optional<Tensor> zonal, const std::optional<Tensor> key_log_weight,
    const std::optional<Tensor> query_order, const std::optional<Tensor> key_order, const std::optional<double> radius,
    double scale, bool wants_query, bool wants_key_value, bool wants_zonal, bool wants_key_log_weight) {
  const AttentionInputs in = attention_inputs({query, key, value, query_directions, key_directions, zonal,
                                               key_log_weight, query_order, key_order, radius, scale});
  const std::vector<int64_t> per_query = {in.batch, in.heads, in.num_queries};
  check_rows("d_output", d_output, {in.batch, in.heads, in.num_queries, in.value_width}, query);
  check_rows("output", output, {in.batch, in.heads, in.num_queries, in.value_width}, query);
  check_tensor("d_lse", d_lse, ScalarType::Float, per_query, query);
  check_tensor("lse", lse, ScalarType::Float, per_query, query);
  wants_zonal = wants_zonal && zonal.has_value();
  wants_key_log_weight = wants_key_log_weight && key_log_weight.has_value();
  const Execution execution(query);
  // A gradient that is not wanted comes back empty.
  const auto rows = [&](bool is_wanted, int64_t count, int64_t width) {
    return is_wanted ? new_rows(query, count, width) : new_empty(query, {0});
  };
  const Tensor d_query = rows(wants_query, in.num_queries, in.width);
  const Tensor d_key = rows(wants_key_value, in.num_keys, in.width);
  const Tensor d_value = rows(wants_key_value, in.num_keys, in.value_width);
  const auto floats = [&](const std::vector<int64_t>& shape) { return new_empty(query, shape, ScalarType::Float); };
  const Tensor d_zonal = floats(wants_zonal ? std::vector<int64_t>{in.heads, in.degree + 1} : std::vector<int64_t>{0});
  const Tensor d_key_log_weight = floats({wants_key_log_weight ? in.num_keys : 0});
  const AttentionRows<void*> no_rows = {nullptr, 0, 0, 0};
  sphere_attention_backward(
      in, {rows_of<void*>(output), data_of<float>(lse)}, {rows_of<const void*>(d_output), data_of<const float>(d_lse)},
      {wants_query ? rows_of<void*>(d_query) : no_rows, wants_key_value ? rows_of<void*>(d_key) : no_rows,
       wants_key_value ? rows_of<void*>(d_value) : no_rows, wants_zonal ? data_of<float>(d_zonal) : nullptr,
       wants_key_log_weight ? data_of<float>(d_key_log_weight) : nullptr},
      execution.where());
  return {d_query, d_key, d_value, d_zonal, d_key_log_weight};
}

}  // namespace
}  // namespace evoworld

STABLE_TORCH_LIBRARY_IMPL(evoworld, EW_DISPATCH_KEY, m) {
  m.impl("sphere_attention", TORCH_BOX(&evoworld::sphere_attention_op));
  m.impl("sphere_attention_backward", TORCH_BOX(&evoworld::sphere_attention_backward_op));
}
#endif
