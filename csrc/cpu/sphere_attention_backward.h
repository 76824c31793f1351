// What the tasks of sphere_attention's backward on the CPU share, and the kernels proper, one copy an instruction set.
//
// Tokens are worked on in tiles. One task owns a few tiles of the keys of one head and sweeps the tiles of the queries:
//
//   S = Q K^T, dP = dO V^T, P = exp(S - lse), dS = P (dP - delta);  dV += P^T dO, dK += dS^T Q;  dQ += dS K
//
// so dK and dV have one writer, and tiles of keys add to a tile of dQ one after the other. With a radius a task sweeps
// the queries that it has keys for alone.
#pragma once

#include "core/sphere_attention.h"

namespace evoworld {

// A tile's S and dP fit the first-level cache together, and its packed queries stay in the second through all products.
constexpr int kBackwardQueries = 64;
constexpr int kBackwardKeys = 64;
// Tiles of keys that a task owns where there are enough tasks: queries come from beyond the second-level cache once for
// all of them. (At D = 128, L = 4096 two are 15% faster than one and four 25%, 700 kB then.)
constexpr int kBackwardKeyTiles = 4;
// With a radius a task gathers, out of all tiles, the pairs of queries that it has keys for: two, since pairs of
// bfloat16 run along them, and since that is a bit of 32 for each pair in a tile.
constexpr int kGatheredQueries = 2;

// What the pass over S knows of a query.
struct QueryTerms {
  float x, y, z;
  float lse2;       // lse of base 2; infinity where there is no query or it has no keys
  float lse2_rest;  // what the rounding of lse2 left: without it P is off by 1e-5 where logits are large
  float delta;
};

// Queries as the products take them: a tile, or gathered ones.
struct BackwardQueries {
  char* query;              // [kBackwardQueries, padded D] words of 4 bytes
  char* d_output;           // [kBackwardQueries, padded Dv]
  const QueryTerms* terms;  // [rows]
  int rows;                 // that there are, rounded up to what the products want
};

// One call. "Heads" are the B * N pairs of batch and head; the arrays with a head's axis belong to a group of them.
struct BackwardWork {
  AttentionInputs in;
  AttentionOutputs out;
  AttentionOutputGradients d_out;
  AttentionInputGradients gradients;
  int64_t padded_queries, padded_keys;  // rounded up to whole tiles
  const float* query_directions;        // [3, padded queries] in the order of the tiles
  const float* key_directions;          // [3, padded keys]
  const float* key_log_weight;          // [padded keys]; -inf where there is no key
  int64_t first_head;                   // of the group
  char* packed_query;                   // [heads, padded queries, padded D] words of 4 bytes
  char* packed_d_output;                // [heads, padded queries, padded Dv]
  float* d_query;                       // [heads, padded queries, padded D], or null
  QueryTerms* terms;                    // [heads, padded queries]
  float* d_key_log_weight;              // [B * N, padded keys], or null
  double* moments;                      // [B * N, key tiles, kMaxZonalDegree]: sum of dS (x.y)^l, l = 1, ...; or null
};

// A tile of keys and values, packed, and the sums over queries.
struct alignas(64) BackwardKeys {
  static constexpr int kSize = kBackwardKeys * kMaxAttentionWidth;
  alignas(64) unsigned char key_columns[4 * kSize], value_columns[4 * kSize], key_steps[4 * kSize];
  alignas(64) float d_key[kSize], d_value[kSize];
  alignas(64) float d_log_weight[kBackwardKeys];
  double moments[kMaxZonalDegree];
  int64_t tile;
};

// What a task needs.
struct alignas(64) BackwardScratch {
  static constexpr int kSize = kBackwardQueries * kMaxAttentionWidth, kPairs = kBackwardQueries * kBackwardKeys;
  BackwardKeys keys[kBackwardKeyTiles];
  alignas(64) unsigned char scores[4 * kPairs], d_scores[4 * kPairs];  // S then P, dP then dS; [queries, keys] floats
  alignas(64) unsigned char narrow[3][2 * kPairs];                     // P and dS as pairs of bfloat16
  alignas(64) char query[4 * kSize], d_output[4 * kSize];              // gathered
  alignas(64) float d_query[kSize];
  QueryTerms terms[kBackwardQueries];
};

// Sets bit i where query 2 i or 2 i + 1 of the tile has a key of the tile of keys within the radius.
void attention_backward_find_near(const BackwardWork& work, int64_t query_tile, int64_t key_tile, uint32_t* near);

// Packs a tile of queries, their d_output and terms, and zeroes their gradient.
void attention_backward_pack_queries(const BackwardWork& work, int64_t head, int64_t query_tile);
// Packs a tile of keys and values, and zeroes their sums.
void attention_backward_pack_keys(const BackwardWork& work, int64_t head, int64_t key_tile, BackwardKeys& keys);
// Copies pairs of queries, queries 2 i and 2 i + 1 of the head for i in pairs, to the scratch.
void attention_backward_gather(const BackwardWork& work, int64_t head, const int32_t* pairs, int count,
                               BackwardScratch& scratch);
// Adds what queries give to the sums of the keys; with a radius each pair is tested.
void attention_backward_add_keys(const BackwardWork& work, int64_t head, const BackwardQueries& queries,
                                 BackwardKeys& keys, BackwardScratch& scratch);
// To be called after it: adds what the keys give to the gradient of the queries [rows, padded D].
void attention_backward_add_queries(const BackwardWork& work, const BackwardQueries& queries, const BackwardKeys& keys,
                                    float* d_query, BackwardScratch& scratch);
// The same for queries that were gathered.
void attention_backward_add_gathered(const BackwardWork& work, int64_t head, const int32_t* pairs, int count,
                                     const BackwardKeys& keys, BackwardScratch& scratch);
// Writes the gradients of a tile of keys and values.
void attention_backward_write_keys(const BackwardWork& work, int64_t head, const BackwardKeys& keys);
void attention_backward_write_queries(const BackwardWork& work, int64_t head, int64_t query_tile);

}  // namespace evoworld
