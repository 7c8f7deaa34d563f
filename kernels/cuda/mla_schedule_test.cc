#include "kernels/cuda/mla_schedule.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sluice::cuda {
namespace {

int Cost(const std::vector<int>& positions, int token) { return MlaCost(positions[token]); }

int ShareOf(const std::vector<int>& positions, int parts) {
  int total = 0, most = 0;
  for (size_t t = 0; t < positions.size(); ++t) {
    total += Cost(positions, static_cast<int>(t));
    most = std::max(most, Cost(positions, static_cast<int>(t)));
  }
  return MlaShare(static_cast<int>(positions.size()), total, most, parts);
}

// Every pair of every token falls to one part, the parts of a token follow each other as it says,
// and a part has no token in common with others but its first and its last.
void CheckPieces(const std::vector<int>& positions, int parts) {
  SCOPED_TRACE(testing::Message() << positions.size() << " tokens, " << parts << " parts");
  const int share = ShareOf(positions, parts);
  std::vector<std::vector<MlaPiece>> of_part(static_cast<size_t>(parts));
  int start = 0;
  for (const int position : positions) {
    const int pairs = MlaPairs(position);
    int next = 0, pieces = 0, first_part = -1;
    for (int part = 0; part < parts; ++part) {
      const MlaPiece piece = MlaPieceOf(start, pairs, share, part);
      if (piece.first >= piece.last) continue;
      ASSERT_EQ(piece.first, next);
      next = piece.last;
      if (pieces++ == 0) first_part = part;
      ASSERT_EQ(piece.first_part, first_part);
      ASSERT_EQ(part, first_part + pieces - 1);
      ASSERT_LE(piece.last - piece.first, share);
      of_part[static_cast<size_t>(part)].push_back(piece);
    }
    ASSERT_EQ(next, pairs);
    ASSERT_EQ(MlaPieceOf(start, pairs, share, 0).parts, pieces);
    start += kMlaTokenCost + pairs;
  }
  for (const auto& pieces : of_part) {
    for (size_t i = 1; i + 1 < pieces.size(); ++i) EXPECT_EQ(pieces[i].parts, 1);
    // What begins in an earlier part comes first, what goes on in a later one comes last.
    for (size_t i = 1; i < pieces.size(); ++i) EXPECT_EQ(pieces[i].first, 0);
  }
}

TEST(MlaScheduleTest, PairsOfPositions) {
  EXPECT_EQ(MlaPairs(-1), 1);  // a token that only fills up a batch
  EXPECT_EQ(MlaPairs(0), 1);
  EXPECT_EQ(MlaPairs(127), 1);
  EXPECT_EQ(MlaPairs(128), 2);
  EXPECT_EQ(MlaPairs(163839), 1280);
}

TEST(MlaScheduleTest, EveryPairFallsToOnePart) {
  for (const int parts : {1, 2, 66, 132}) {
    CheckPieces({0}, parts);
    CheckPieces({4095}, parts);
    CheckPieces({0, 99999, 0, 63, 127, 128}, parts);
    CheckPieces(std::vector<int>(1000, 0), parts);
    for (const int tokens : {1, 8, 64, 66, 128, 256}) {
      CheckPieces(std::vector<int>(static_cast<size_t>(tokens), 4095), parts);
    }
    std::mt19937 random(17);
    for (int round = 0; round < 50; ++round) {
      std::vector<int> positions(1 + random() % 300);
      for (int& position : positions)
        position = static_cast<int>(random() % (1 + random() % 20000));
      CheckPieces(positions, parts);
    }
  }
}

TEST(MlaScheduleTest, PartsAreEven) {
  std::mt19937 random(18);
  std::vector<int> positions(200);
  for (int& position : positions) position = static_cast<int>(random() % 8192);
  int total = 0;
  for (const int position : positions) total += MlaCost(position);
  const int share = ShareOf(positions, 66);
  EXPECT_GE(share * 66, total);
  EXPECT_LT((share - 1) * 66, total);
}

TEST(MlaScheduleTest, TokensOfEqualLengthStayWholeWhereThatCostsLittle) {
  const int cost = MlaCost(4095);
  EXPECT_EQ(ShareOf(std::vector<int>(128, 4095), 66), 2 * cost);  // 64 parts of 66
  EXPECT_EQ(ShareOf(std::vector<int>(66, 4095), 66), cost);
  EXPECT_LT(ShareOf(std::vector<int>(67, 4095), 66), 2 * cost);  // half would wait
  EXPECT_LT(ShareOf(std::vector<int>(32, 4095), 66), cost);
}

}  // namespace
}  // namespace sluice::cuda
