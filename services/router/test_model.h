// For tests: the shipped tiny model, as a router serves it.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "services/router/served_model.h"

namespace sluice::router {

// Vocabulary 1,024, context 2,048, template deepseek-r1; sampling 0.6 / 0.95.
inline const ServedModel& TestModel() {
  static const auto* const model = [] {
    auto loaded = LoadServedModel({.dir = "deploy/models/sluice-tiny", .name = "tiny"});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (!loaded.ok()) std::abort();
    return loaded->release();
  }();
  return *model;
}

// Without special tokens being added.
inline std::vector<uint32_t> TestTokens(const std::string& text) {
  const auto ids = TestModel().tokenizer->Encode(text, {});
  EXPECT_TRUE(ids.ok()) << ids.status();
  return {ids->begin(), ids->end()};
}

inline constexpr uint32_t kTestEos = 1;

}  // namespace sluice::router
