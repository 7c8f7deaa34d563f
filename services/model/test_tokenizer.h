// For tests: the small tokenizer of testdata/tokenizer and its variants.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "services/base/json.h"
#include "services/model/tokenizer.h"

namespace sluice::model {

inline constexpr char kTokenizerTestData[] = "services/model/testdata/tokenizer/";

inline nlohmann::json ReadTokenizerTestData(const std::string& name) {
  auto json = ReadJsonFile(kTokenizerTestData + name, size_t{16} << 20);
  EXPECT_TRUE(json.ok()) << json.status();
  return json.ok() ? *std::move(json) : nlohmann::json();
}

// tokenizer.json, changed by the merge patch of that name in variants.json ("deepseek": as it is).
inline nlohmann::json TestTokenizerJson(const std::string& variant) {
  nlohmann::json json = ReadTokenizerTestData("tokenizer.json");
  json.merge_patch(ReadTokenizerTestData("variants.json").at(variant));
  return json;
}

// `config` is the text of a tokenizer_config.json.
inline std::unique_ptr<const Tokenizer> TestTokenizer(const std::string& variant = "deepseek",
                                                      const std::string& config = "") {
  auto tokenizer = Tokenizer::FromJson(TestTokenizerJson(variant).dump(), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

}  // namespace sluice::model
