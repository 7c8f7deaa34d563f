#include "kernels/base/float_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace sluice {
namespace {

// The nearest e4m3 code found by looking at all of them: an independent definition of the rounding.
uint8_t NearestF8(float value) {
  uint8_t best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (int code = 0; code < 0x7f; ++code) {
    const double distance = std::fabs(std::fabs(double{value}) - double{F8E4M3ToF32(code)});
    const bool tie_to_even = distance == best_distance && (code & 1) == 0;
    if (distance < best_distance || tie_to_even) {
      best = static_cast<uint8_t>(code);
      best_distance = distance;
    }
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

TEST(FloatConvertTest, F8KnownValues) {
  EXPECT_EQ(F8E4M3ToF32(0x00), 0.0f);
  EXPECT_EQ(F8E4M3ToF32(0x01), 0x1p-9f);  // smallest subnormal
  EXPECT_EQ(F8E4M3ToF32(0x08), 0x1p-6f);  // smallest normal
  EXPECT_EQ(F8E4M3ToF32(0x38), 1.0f);
  EXPECT_EQ(F8E4M3ToF32(0x7e), 448.0f);
  EXPECT_EQ(F8E4M3ToF32(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(F8E4M3ToF32(0x7f)));
  EXPECT_TRUE(std::isnan(F8E4M3ToF32(0xff)));
}

TEST(FloatConvertTest, F8RoundTripsEveryCode) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(F32ToF8E4M3(F8E4M3ToF32(static_cast<uint8_t>(code))), code);
  }
}

TEST(FloatConvertTest, F8RoundsToNearestEven) {
  for (float value = 0x1p-12f; value < 500.0f; value *= 1.0173f) {
    EXPECT_EQ(F32ToF8E4M3(value), NearestF8(value)) << value;
    EXPECT_EQ(F32ToF8E4M3(-value), NearestF8(-value)) << value;
  }
  for (int code = 0; code < 0x7e; ++code) {  // exact ties between neighbours
    const float tie = (F8E4M3ToF32(code) + F8E4M3ToF32(code + 1)) / 2;
    EXPECT_EQ(F32ToF8E4M3(tie), NearestF8(tie)) << tie;
  }
  EXPECT_EQ(F32ToF8E4M3(std::numeric_limits<float>::infinity()), 0x7e);
}

TEST(FloatConvertTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBf16(1.0f + 0x1p-8f), 0x3f80);      // tie, even below
  EXPECT_EQ(F32ToBf16(1.0f + 3 * 0x1p-8f), 0x3f82);  // tie, even above
  EXPECT_EQ(F32ToBf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::nanf("")))));
}

TEST(FloatConvertTest, F16KnownValues) {
  EXPECT_EQ(F16ToF32(0x3c00), 1.0f);
  EXPECT_EQ(F16ToF32(0xc000), -2.0f);
  EXPECT_EQ(F16ToF32(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToF32(0x03ff), 1023 * 0x1p-24f);
  EXPECT_EQ(F16ToF32(0x7bff), 65504.0f);
  EXPECT_TRUE(std::isinf(F16ToF32(0xfc00)));
  EXPECT_TRUE(std::isnan(F16ToF32(0x7e00)));
}

}  // namespace
}  // namespace sluice
