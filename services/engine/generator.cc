#include "services/engine/generator.h"

#include "kernels/base/status.h"

namespace sluice::engine {

Generator::Generator(Engine* engine)
    : engine_(engine),
      scheduler_({.slots_max = engine->options().slots_max,
                  .step_tokens_max = engine->options().step_tokens_max,
                  .positions_max = engine->options().positions_max,
                  .kv_pages = engine->options().kv_pages,
                  .vocab_size = engine->config().vocab_size,
                  .steps_in_flight_max = Engine::kStepsInFlightMax}) {}

absl::Status Generator::Step(std::vector<TokenEvent>* events) {
  while (const StepPlan* plan = scheduler_.NextPlan()) {
    SLUICE_RETURN_IF_ERROR(engine_->Submit(*plan).status());
    submitted_ = plan->number;
  }
  if (submitted_ < oldest_) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(engine_->Wait(StepHandle{oldest_}, engine_->step_limit(), &result_));
  ++oldest_;
  scheduler_.OnResult(result_, events);
  return absl::OkStatus();
}

}  // namespace sluice::engine
