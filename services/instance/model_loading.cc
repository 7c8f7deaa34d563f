#include "services/instance/model_loading.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backends/make_backend.h"
#include "kernels/base/status.h"
#include "kernels/ops/attention.h"
#include "services/base/log.h"
#include "services/engine/device_weights.h"

namespace sluice::instance {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackendOf(const ModelSource& source) {
  SLUICE_ASSIGN_OR_RETURN(
      std::unique_ptr<Backend> backend,
      MakeBackend({.device = source.device,
                   .threads = source.threads,
                   .numerics = source.exact() ? Numerics::kExact : Numerics::kFast}));
  if (source.exact() && source.device != "cpu") {
    LogWarn("numerics is exact: the GPU's tensor cores stay idle, fast is many times faster",
            {{"device", source.device}, {"numerics", source.numerics}});
  }
  return backend;
}

namespace {

absl::StatusOr<DType> KvDtypeOf(const ModelSource& source) {
  if (source.kv_dtype != "fp8") return source.exact() ? DType::kF32 : DType::kBF16;
  if (source.exact() || source.device == "cpu") {
    return absl::InvalidArgumentError(absl::StrCat("kv_dtype is fp8 with numerics ",
                                                   source.numerics, " on device ", source.device,
                                                   "; it takes numerics fast and a cuda device"));
  }
  return DType::kF8E4M3;
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const ModelSource& source, std::unique_ptr<Backend> backend,
                                      const ProgressOut& progress) {
  LoadedModel loaded;
  SLUICE_ASSIGN_OR_RETURN(const DType kv_dtype, KvDtypeOf(source));
  loaded.backend = std::move(backend);
  SLUICE_ASSIGN_OR_RETURN(loaded.config, model::LoadModelConfig(source.dir));
  SLUICE_ASSIGN_OR_RETURN(
      model::ModelWeights weights,
      model::LoadWeights(source.dir, loaded.config,
                         {.format = source.load_format == "dummy" ? model::LoadFormat::kDummy
                                                                  : model::LoadFormat::kSafetensors,
                          .dummy_seed = source.dummy_seed,
                          .progress = progress,
                          .threads = source.threads,
                          .for_device = !loaded.backend->reads_host_memory()}));
  if (loaded.backend->reads_host_memory()) {
    loaded.weights = std::make_shared<const model::ModelWeights>(std::move(weights));
  } else {
    SLUICE_ASSIGN_OR_RETURN(
        loaded.weights,
        engine::CopyWeightsToDevice(weights, loaded.backend.get(), source.threads, progress));
  }
  loaded.engine_options = {
      .kv_dtype = kv_dtype,
      .absorb_prompts = source.exact(),
  };
  return loaded;
}

int64_t KvBytesPerToken(const model::ModelConfig& config, DType kv_dtype) {
  return config.num_hidden_layers *
         KvRowBytes(config.kv_lora_rank, config.qk_rope_head_dim, kv_dtype);
}

}  // namespace sluice::instance
