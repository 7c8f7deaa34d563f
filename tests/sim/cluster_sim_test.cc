// The router's core among instances that break in every way, on seeded time and chance. What must
// hold whatever happens: every accepted request ends exactly once; its tokens are those that an
// undisturbed instance would have given, none twice, none missing; no more than three attempts
// fail; queues stay within their bounds; nothing is left anywhere at the end.
//
// A failure prints its seed: SLUICE_SIM_SEED=<seed> runs that one alone, SLUICE_SIM_SEEDS=<count>
// more of them.
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"
#include "services/base/log.h"
#include "tests/sim/sim_cluster.h"

namespace sluice::sim {
namespace {

constexpr uint64_t kSeeds = 40;

template <typename Body>
void ForEachSeed(Body body) {
  SetLogLevel(LogLevel::kError);  // instances tell of every attempt that ends
  if (const char* seed = std::getenv("SLUICE_SIM_SEED")) return body(std::stoull(seed));
  const char* count = std::getenv("SLUICE_SIM_SEEDS");
  const uint64_t seeds = count != nullptr ? std::stoull(count) : kSeeds;
  for (uint64_t seed = 1; seed <= seeds && !testing::Test::HasFailure(); ++seed) body(seed);
}

void Add(const Tally& from, Tally* to) {
  for (const auto& [name, count] : from) (*to)[name] += count;
}

TEST(ClusterSimTest, SurvivesWhateverBreaks) {
  Tally all;
  ForEachSeed([&](uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "SLUICE_SIM_SEED=" << seed);
    ClusterOptions options = {.seed = seed};
    options.prefills = 1 + static_cast<int>(seed % 3);
    options.decodes = 1 + static_cast<int>(seed / 3 % 3);
    options.mixed = seed % 5 == 0 ? 1 : 0;
    Cluster cluster(options);
    cluster.Run();
    Add(cluster.tally(), &all);
  });
  for (const auto& [name, count] : all)
    std::printf("%-28s %ld\n", name.c_str(), static_cast<long>(count));
  if (std::getenv("SLUICE_SIM_SEED") != nullptr) return;
  // Otherwise it would say little.
  for (const char* name :
       {"failed worker_gone", "failed worker_dead", "failed worker_wedged", "failed kv_failed",
        "failed protocol", "failed damaged", "handed back", "refused", "migrated new",
        "migrated ongoing", "kv gap", "end UNAVAILABLE", "end DEADLINE_EXCEEDED", "end CANCELLED",
        "router stalled", "stream broken", "dialled too early"}) {
    EXPECT_GT(all[name], 0) << name;
  }
  EXPECT_GT(all["end OK"], 2 * all["end UNAVAILABLE"]);
}

void ExpectNothingFails(bool real_cores) {
  ForEachSeed([&](uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "SLUICE_SIM_SEED=" << seed);
    ClusterOptions options = {.seed = seed, .faults = false, .real_cores = real_cores};
    options.decodes = 1 + static_cast<int>(seed % 2);
    Cluster cluster(options);
    cluster.Run();
    for (const auto& [name, count] : cluster.tally()) {
      EXPECT_EQ(name.find("failed"), std::string::npos) << name << " " << count;
    }
  });
}

TEST(ClusterSimTest, NothingFailsWhenNothingBreaks) { ExpectNothingFails(/*real_cores=*/false); }

// The same with the instances' real cores, schedulers and prefix caches over KV that is checked.
TEST(RealCoresSimTest, NothingFailsWhenNothingBreaks) { ExpectNothingFails(/*real_cores=*/true); }

TEST(RealCoresSimTest, SurvivesWhateverBreaks) {
  Tally all;
  ForEachSeed([&](uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "SLUICE_SIM_SEED=" << seed);
    ClusterOptions options = {.seed = seed, .real_cores = true};
    options.prefills = 1 + static_cast<int>(seed % 3);
    options.decodes = 1 + static_cast<int>(seed / 3 % 3);
    options.mixed = seed % 5 == 0 ? 1 : 0;
    Cluster cluster(options);
    cluster.Run();
    Add(cluster.tally(), &all);
  });
  for (const auto& [name, count] : all)
    std::printf("%-28s %ld\n", name.c_str(), static_cast<long>(count));
  if (std::getenv("SLUICE_SIM_SEED") != nullptr) return;
  for (const char* name :
       {"failed worker_gone", "failed worker_dead", "failed worker_wedged", "failed kv_failed",
        "failed damaged", "handed back", "refused", "migrated ongoing", "kv applied"}) {
    EXPECT_GT(all[name], 0) << name;
  }
}

}  // namespace
}  // namespace sluice::sim
