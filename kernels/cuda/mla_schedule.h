// Who computes what of decode attention: all tokens' pages in a row, cut into equal shares.
//
// The unit is a pair of pages, which is what a block computes at a time. A token takes
// kMlaTokenCost units, for beginning and ending it, and then one for each of its pairs. Part p has
// the units [p * share, (p + 1) * share): of each token there a contiguous run of its pairs. Where
// a token starts in the row says all about its pieces, so that nobody needs a table of them. On
// host and device. All tokens' units together fit into an int: 2^31 are 270 billion positions.
#pragma once

#include <stdint.h>

namespace sluice::cuda {

constexpr int kMlaTokenCost = 2;

// Of a token at this position: 64 rows a page. Never 0, so that every token's output is written.
constexpr int MlaPairs(int position) { return position < 0 ? 1 : position / 128 + 1; }

constexpr int MlaCost(int position) { return kMlaTokenCost + MlaPairs(position); }

// Units of a part, if the tokens have `total` together and the longest `most`. Tokens of equal cost
// stay whole where that leaves parts at most a sixteenth longer: shared tokens cost more.
constexpr int MlaShare(int tokens, int total, int most, int parts) {
  const int even = total < parts ? 1 : (total - 1) / parts + 1;
  const int whole = ((tokens - 1) / parts + 1) * most;
  return total == tokens * most && whole <= even + even / 16 ? whole : even;
}

// The pairs [first, last) of a token that fall to a part; empty: none.
struct MlaPiece {
  int first, last;
  int first_part, parts;  // of the token
};
constexpr MlaPiece MlaPieceOf(int start, int pairs, int share, int part) {
  const int begin = start + kMlaTokenCost;
  const int low = part * share - begin, high = low + share;
  MlaPiece piece = {};
  piece.first = low < 0 ? 0 : low < pairs ? low : pairs;
  piece.last = high < 0 ? 0 : high < pairs ? high : pairs;
  piece.first_part = begin / share;
  piece.parts = (begin + pairs - 1) / share - piece.first_part + 1;
  return piece;
}

}  // namespace sluice::cuda
