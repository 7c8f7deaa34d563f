// For tests: a small checkpoint in memory, to be damaged in one place and written to disk.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "services/model/checkpoint.h"
#include "services/model/random_checkpoint.h"
#include "services/model/safetensors_writer.h"

namespace sluice::model {

struct TestTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;
};
using TestTensors = std::map<std::string, TestTensor>;

// Every feature at dimensions that divide by neither 8 x 128 nor 16: scale blocks are partial and
// slices cut through them.
inline std::string SmallConfig() {
  return R"({"model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 160,
             "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
             "q_lora_rank": 136, "kv_lora_rank": 132, "qk_nope_head_dim": 24,
             "qk_rope_head_dim": 8, "v_head_dim": 24, "intermediate_size": 272,
             "moe_intermediate_size": 40, "n_routed_experts": 8, "n_shared_experts": 2,
             "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
             "max_position_embeddings": 64, "num_nextn_predict_layers": 1})";
}

// An empty directory for this test alone.
inline std::string FreshDir(const std::string& name) {
  const auto* info = testing::UnitTest::GetInstance()->current_test_info();
  const std::string dir =
      testing::TempDir() + "/" + info->test_suite_name() + "." + info->name() + "." + name;
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  return dir;
}

inline TestTensors ReadTensors(const std::string& dir) {
  TestTensors tensors;
  const auto checkpoint = Checkpoint::Open(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return tensors;
  for (const StoredTensor& t : checkpoint->tensors()) {
    tensors[t.name] = {t.dtype, t.shape, std::string(t.data, t.bytes)};
  }
  return tensors;
}

inline void WriteTensors(const std::string& path, const TestTensors& tensors) {
  std::vector<SafetensorsWriter::Tensor> list;
  for (const size_t size : {8, 4, 2, 1}) {
    for (const auto& [name, t] : tensors) {
      if (DTypeBytes(t.dtype) == size) list.push_back({name, t.dtype, t.shape});
    }
  }
  const auto writer = SafetensorsWriter::Create(path, list);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string& bytes = tensors.at(list[i].name).bytes;
    ASSERT_EQ(bytes.size(), list[i].bytes()) << list[i].name;
    ASSERT_TRUE((*writer)->Write(i, 0, bytes.data(), bytes.size()).ok());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
}

// The bytes of a safetensors file with this header text.
inline std::string SafetensorsFile(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + header + std::string(data_bytes, '\x11');
}

}  // namespace sluice::model
