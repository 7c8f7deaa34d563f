// Writes a checkpoint of seeded random weights for any config.json: geometry without training, for
// benchmarks and for tests of sizes that no shipped model has.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "services/base/mapped_file.h"
#include "services/model/random_checkpoint.h"

int main(int argc, char** argv) {
  CLI::App app("Writes a checkpoint of random weights for a config.json.", "make_checkpoint");
  std::string config_path;
  std::string out;
  std::string dtype = "bf16";
  sluice::model::RandomCheckpointOptions options;
  options.show_progress = true;
  app.add_option("--config", config_path, "config.json whose geometry to fill")->required();
  app.add_option("--out", out, "directory to fill; must not hold a checkpoint")->required();
  app.add_option("--seed", options.seed, "same seed, same weights")->capture_default_str();
  app.add_option("--dtype", dtype, "fp8: in blocks of 128 x 128")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->capture_default_str();
  app.add_option("--shard-bytes", options.shard_bytes, "largest file, for example 500M or 4G")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::PositiveNumber);
  app.add_flag("--include-mtp,!--no-mtp", options.include_mtp,
               "with the MTP module, if the configuration has one (the default)");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  options.fp8 = dtype == "fp8";

  const auto config = sluice::ReadFile(config_path, 4 << 20);
  const absl::Status status =
      config.ok() ? WriteRandomCheckpoint(*config, config_path, out, options) : config.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "make_checkpoint: %s\n", std::string(status.message()).c_str());
  return 1;
}
