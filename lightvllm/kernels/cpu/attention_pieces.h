// How a step's attention is cut into pieces of work. See paged_attention.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "common.h"

namespace lightvllm {
namespace {

constexpr int64_t TILE = 128;      // keys whose scores are weighed together
constexpr int64_t MOST_ROWS = 72;  // of a task

// A piece of work before it is cut into tasks: some tokens of one request.
struct Piece {
  int64_t request, first_token, first_position, tokens, first_tile, tiles;
  int64_t kv_heads = 1;      // of a task
  int64_t task_tiles;        // of a task
  int64_t partials = -1;     // where its partials begin, if a task has not all tiles
};

constexpr int64_t SPLIT_TILES = 4;      // of a task, where there are fewer tasks than keep all threads busy
constexpr int64_t TASKS_OF_THREAD = 4;  // that many do

// Cuts the step's tokens into pieces of at most MOST_ROWS rows. A decode's task takes several KV heads, as they are
// neighbours in memory, unless there are too few tasks; then, its keys are cut too.
std::vector<Piece> cut(const int64_t* query_lens, const int64_t* seq_lens, int64_t requests, int64_t group, int64_t kv_heads,
                       int64_t window) {
  std::vector<Piece> pieces;
  const int64_t most_tokens = MOST_ROWS / group, wanted = TASKS_OF_THREAD * torch::stable::get_num_threads();
  int64_t token = 0;
  for (int64_t r = 0; r < requests; token += query_lens[r++]) {
    for (int64_t t = 0; t < query_lens[r]; t += most_tokens) {
      Piece piece = {r, token + t, seq_lens[r] - query_lens[r] + t, std::min(most_tokens, query_lens[r] - t)};
      piece.first_tile = window > 0 ? std::max<int64_t>(0, piece.first_position - window + 1) / TILE : 0;
      piece.tiles = piece.task_tiles = (piece.first_position + piece.tokens + TILE - 1) / TILE;
      pieces.push_back(piece);
    }
  }
  const int64_t count = int64_t(pieces.size());
  for (Piece& piece : pieces) {
    for (int64_t heads = 1; heads <= kv_heads; heads++)
      if (kv_heads % heads == 0 && heads * piece.tokens * group <= MOST_ROWS && count * kv_heads / heads >= wanted)
        piece.kv_heads = heads;
    if (piece.tokens == 1 && count * kv_heads < wanted) piece.task_tiles = SPLIT_TILES;
  }
  return pieces;
}

}  // namespace
}  // namespace lightvllm
