#include "attention_scene.h"
#include "check.h"
#include "cpu/sphere_attention.h"

using namespace evoworld;
using namespace evoworld::testing;

namespace {

struct Wanted {
  bool query = true, key_value = true, zonal = true, key_log_weight = true;
};

// One forward and one backward on a scene, and the cotangents between them.
struct Call {
  const AttentionScene& scene;
  const AttentionOptions& o;
  RandomRows d_output;
  std::vector<float> d_lse;
  WrittenRows output, d_query, d_key, d_value;
  std::vector<float> lse, d_zonal, d_key_log_weight;

  explicit Call(AttentionScene& s, int num_threads = 1, Wanted wanted = {})
      : scene(s),
        o(s.options),
        d_output(cotangents(s)),
        d_lse(Random(o.seed + 8).uniforms(o.batch * o.heads * o.queries, -1.0f, 1.0f)),
        output(o, o.queries, o.value_width),
        d_query(o, o.queries, o.width),
        d_key(o, o.keys, o.width),
        d_value(o, o.keys, o.value_width),
        lse(o.batch * o.heads * o.queries, NAN),
        d_zonal(o.heads * (o.degree + 1), NAN),
        d_key_log_weight(o.log_weight ? o.keys : 0, NAN) {
    const AttentionOutputs out = {output.view(), lse.data()};
    sphere_attention_forward(s.in, out, num_threads);
    const AttentionRows<void*> none = {nullptr, 0, 0, 0};
    sphere_attention_backward(
        s.in, out, {d_output.view(), d_lse.data()},
        {wanted.query ? d_query.view() : none, wanted.key_value ? d_key.view() : none,
         wanted.key_value ? d_value.view() : none, wanted.zonal && o.degree >= 0 ? d_zonal.data() : nullptr,
         wanted.key_log_weight && o.log_weight ? d_key_log_weight.data() : nullptr},
        num_threads);
  }

  static RandomRows cotangents(const AttentionScene& s) {
    Random random(s.options.seed + 7);
    return {random, s.options, s.options.queries, s.options.value_width};
  }

  bool operator==(const Call& other) const {
    return output == other.output && d_query == other.d_query && d_key == other.d_key && d_value == other.d_value &&
           same_bits(lse, other.lse) && same_bits(d_zonal, other.d_zonal) &&
           same_bits(d_key_log_weight, other.d_key_log_weight);
  }
};

bool same_infinities(const std::vector<float>& values, const std::vector<double>& truth) {
  for (size_t i = 0; i < truth.size(); ++i) {
    if ((values[i] == -INFINITY) != (truth[i] == -INFINITY)) return false;
  }
  return true;
}

template <class T>
std::vector<T> finite(std::vector<T> values) {
  for (T& value : values) value = value == -INFINITY ? T(0) : value;
  return values;
}

// Rounding of the storage type, and in bfloat16 of the probabilities and of d_s too.
double tolerance_of(Storage storage) {
  return storage == Storage::float32 ? 1e-5 : storage == Storage::float16 ? 1e-3 : 1e-2;
}

// d_zonal sums products of d_output and value that cancel, so its errors are those of their roundings, at random.
bool zonal_close(const Call& call, const AttentionTruth& truth) {
  const double allowed = tolerance_of(call.o.storage) / 3.0 * std::sqrt(truth.noise2);
  for (size_t i = 0; i < truth.d_zonal.size(); ++i) {
    if (!(std::fabs(call.d_zonal[i] - truth.d_zonal[i]) <= allowed)) return false;
  }
  return true;
}

void check_against_truth(const AttentionOptions& o) {
  AttentionScene scene(o);
  const Call call(scene, 2);
  const AttentionTruth truth(scene, call.d_output, call.d_lse);
  const double tolerance = tolerance_of(o.storage);
  CHECK(close(call.output.values(o, o.queries, o.value_width), truth.output, tolerance));
  CHECK(same_infinities(call.lse, truth.lse));
  CHECK(close(finite(call.lse), finite(truth.lse), 1e-5));
  CHECK(close(call.d_query.values(o, o.queries, o.width), truth.d_query, tolerance));
  CHECK(close(call.d_key.values(o, o.keys, o.width), truth.d_key, tolerance));
  CHECK(close(call.d_value.values(o, o.keys, o.value_width), truth.d_value, tolerance));
  CHECK(zonal_close(call, truth));
  if (o.log_weight) CHECK(close(call.d_key_log_weight, truth.d_key_log_weight, tolerance));
}

bool all_zero(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return value == 0.0f; });
}

}  // namespace

TEST(attention_is_the_definition) {
  for (const Storage storage : kStorages) {
    for (const int width : {16, 19, 64, 128}) {
      check_against_truth({.width = width, .value_width = 144 - width, .storage = storage, .degree = width % 5 - 1});
    }
  }
}

TEST(attention_takes_any_number_of_tokens) {
  for (const int64_t queries : {1, 5, 47, 64, 65, 130}) {
    for (const int64_t keys : {1, 2, 33, 64, 129}) {
      const Storage storage = kStorages[(queries + keys) % 3];
      check_against_truth({.batch = 1, .queries = queries, .keys = keys, .storage = storage, .degree = 2});
    }
  }
}

TEST(attention_takes_any_strides) {
  for (const RowLayout layout : {RowLayout::heads_first, RowLayout::padded, RowLayout::shared}) {
    for (const Storage storage : kStorages) {
      check_against_truth({.heads = 3, .width = 33, .value_width = 17, .storage = storage, .layout = layout});
    }
  }
}

TEST(attention_of_every_degree) {
  for (int degree = -1; degree <= kMaxZonalDegree; ++degree) {
    for (const bool log_weight : {false, true}) {
      check_against_truth({.storage = Storage::bfloat16, .degree = degree, .log_weight = log_weight});
      check_against_truth({.degree = degree, .log_weight = log_weight});
    }
  }
}

TEST(attention_within_a_radius) {
  for (const Storage storage : kStorages) {
    for (const double radius : {0.05, 0.5, 1.5, 3.1}) {  // 0.05 leaves most queries without a key
      check_against_truth({.batch = 1, .queries = 301, .keys = 403, .storage = storage, .degree = 1, .radius = radius});
    }
  }
  check_against_truth({.queries = 301, .keys = 403, .degree = -1, .log_weight = false, .radius = 0.5});
}

TEST(attention_long_enough_for_many_chunks) {
  check_against_truth({.batch = 1, .heads = 1, .queries = 600, .keys = 700, .width = 24, .value_width = 16});
  check_against_truth({.batch = 1,
                       .heads = 1,
                       .queries = 600,
                       .keys = 700,
                       .width = 24,
                       .value_width = 16,
                       .storage = Storage::bfloat16,
                       .radius = 0.4});
}

TEST(attention_does_not_depend_on_threads) {
  for (const Storage storage : kStorages) {
    for (const double radius : {0.0, 0.6}) {
      const AttentionOptions one_head = {
          .batch = 1, .heads = 1, .queries = 777, .keys = 1030, .width = 16, .storage = storage, .radius = radius};
      AttentionScene scene(one_head), many({.heads = 5, .storage = storage, .degree = 3, .radius = radius});
      const Call one(scene, 1), other(many, 1);
      CHECK(Call(scene, 2) == one && Call(scene, 5) == one);
      CHECK(Call(many, 2) == other && Call(many, 5) == other);
    }
  }
}

TEST(attention_gradients_that_are_not_wanted_change_nothing) {
  for (const Storage storage : kStorages) {
    AttentionScene scene({.queries = 140, .keys = 150, .storage = storage});
    const Call all(scene);
    for (int mask = 0; mask < 16; ++mask) {
      const Wanted wanted = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0, (mask & 8) != 0};
      const Call some(scene, 2, wanted);
      if (wanted.query) CHECK(some.d_query == all.d_query);
      if (wanted.key_value) CHECK(some.d_key == all.d_key && some.d_value == all.d_value);
      if (wanted.zonal) CHECK(same_bits(some.d_zonal, all.d_zonal));
      if (wanted.key_log_weight) CHECK(same_bits(some.d_key_log_weight, all.d_key_log_weight));
    }
  }
}

TEST(attention_keys_of_no_weight_count_for_nothing) {
  for (const Storage storage : kStorages) {
    AttentionScene scene({.queries = 80, .keys = 200, .storage = storage});
    for (int64_t j = 0; j < 200; ++j) {
      if (j % 3 == 0 || j < 130) scene.key_log_weight[j] = -INFINITY;
    }
    const Call call(scene, 2);
    const AttentionTruth truth(scene, call.d_output, call.d_lse);
    const AttentionOptions& o = scene.options;
    CHECK(close(call.output.values(o, o.queries, o.value_width), truth.output, tolerance_of(storage)));
    CHECK(close(call.d_key.values(o, o.keys, o.width), truth.d_key, tolerance_of(storage)));
    CHECK(zonal_close(call, truth));
    CHECK(call.d_key_log_weight[0] == 0.0f && call.d_key_log_weight[129] == 0.0f);

    std::fill(scene.key_log_weight.begin(), scene.key_log_weight.end(), -INFINITY);
    const Call none(scene, 2);
    CHECK(all_zero(none.output.values(o, o.queries, o.value_width)));
    CHECK(none.lse == std::vector<float>(none.lse.size(), -INFINITY));
    CHECK(all_zero(none.d_query.values(o, o.queries, o.width)) && all_zero(none.d_key.values(o, o.keys, o.width)));
    CHECK(all_zero(none.d_value.values(o, o.keys, o.value_width)));
    CHECK(all_zero(none.d_zonal) && all_zero(none.d_key_log_weight));
  }
}

// Nothing else is in the logits, so the largest is kappa (cos 0 - 1) above itself: lse shows their errors.
TEST(attention_bias_is_good_at_large_kappa) {
  for (const Storage storage : kStorages) {
    AttentionScene scene({.queries = 200, .keys = 300, .storage = storage, .degree = 1});
    scene.zonal = {-50.0f, 50.0f, -50.0f, 50.0f};
    scene.look();
    scene.in.scale = 0.0f;
    const Call call(scene);
    const AttentionTruth truth(scene, call.d_output, call.d_lse);
    double error = 0.0;
    for (size_t i = 0; i < truth.lse.size(); ++i) error = std::fmax(error, std::fabs(call.lse[i] - truth.lse[i]));
    CHECK(error < 1e-4);
    CHECK(close(call.d_key_log_weight, truth.d_key_log_weight, tolerance_of(storage)));
  }
}

TEST(attention_of_nothing) {
  for (const Storage storage : kStorages) {
    for (const double radius : {0.0, 1.0}) {
      AttentionScene no_keys({.keys = 0, .storage = storage, .radius = radius});
      const Call call(no_keys, 2);
      const AttentionOptions& o = no_keys.options;
      CHECK(all_zero(call.output.values(o, o.queries, o.value_width)) && call.lse[0] == -INFINITY);
      CHECK(all_zero(call.d_query.values(o, o.queries, o.width)) && all_zero(call.d_zonal));

      AttentionScene no_queries({.queries = 0, .storage = storage, .radius = radius});
      const Call other(no_queries, 2);
      const AttentionOptions& p = no_queries.options;
      CHECK(all_zero(other.d_key.values(p, p.keys, p.width)) && all_zero(other.d_zonal));
      CHECK(all_zero(other.d_value.values(p, p.keys, p.value_width)) && all_zero(other.d_key_log_weight));

      AttentionScene no_batch({.batch = 0, .storage = storage, .radius = radius});
      const Call last(no_batch, 2);
      CHECK(all_zero(last.d_zonal) && all_zero(last.d_key_log_weight));
    }
  }
}

TEST(attention_tiles_know_what_a_radius_keeps_apart) {
  Random random(3);
  std::vector<float> directions;
  const Float3 first = random.direction();
  for (int i = 0; i < 40; ++i) {
    const Float3 d = random.direction();
    const float pull = i < 20 ? 4.0f : 0.0f;  // a tight tile, then a wide one
    Float3 p = {d.x + pull * first.x, d.y + pull * first.y, d.z + pull * first.z};
    const float share = 1.0f / chord(p, {0, 0, 0});
    directions.insert(directions.end(), {p.x * share, p.y * share, p.z * share});
  }
  const TokenBall tight = ball_around(directions.data(), nullptr, 0, 20);
  CHECK(tight.radius < 0.5f);
  for (int i = 0; i < 20; ++i) CHECK(chord(load3(directions.data(), i), tight.centre) <= tight.radius);
  const TokenBall wide = ball_around(directions.data(), nullptr, 20, 40);
  CHECK(overlap(tight, wide, INFINITY) == Overlap::all);
  CHECK(overlap(tight, tight, 4.0f * tight.radius * tight.radius + 1e-3f) == Overlap::all);
  CHECK(overlap(tight, wide, 1.0f) == Overlap::some);
  const TokenBall opposite = {{-tight.centre.x, -tight.centre.y, -tight.centre.z}, tight.radius};
  CHECK(overlap(tight, opposite, 0.25f) == Overlap::none);
}
