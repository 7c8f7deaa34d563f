#include "services/base/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "services/base/mapped_file.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;

class ProgramTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "program_test.yaml";
    ASSERT_TRUE(WriteFile(path_,
                          "model: {dir: m}\nprefill: {count: 2}\ndecode: {count: 1}\n"
                          "logging: {level: error}\n")
                    .ok());
  }
  void TearDown() override {
    StopLogging();
    SetLogLevel(LogLevel::kInfo);
  }

  absl::StatusOr<Program> Start(std::vector<std::string> arguments) {
    std::vector<char*> argv;
    arguments.insert(arguments.begin(), "/usr/bin/sluice-prefill");
    for (std::string& argument : arguments) argv.push_back(argument.data());
    return StartProgram(static_cast<int>(argv.size()), argv.data(), {"prefill"});
  }

  std::string path_;
};

TEST_F(ProgramTest, FindsItselfInTheFile) {
  const auto second = Start({"--config", path_, "--instance", "prefill-2"});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->process.admin->port, 9101);
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
  StopLogging();
  const auto first = Start({"--config", path_});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->process.name, "prefill-1");
}

TEST_F(ProgramTest, SaysWhatIsWrongWithItsArguments) {
  const struct {
    std::vector<std::string> arguments;
    const char* wanted;
  } cases[] = {
      {{}, "--config FILE is needed; see sluice-prefill --help"},
      {{"--config"}, "--config needs a value"},
      {{"--cfg", "x"}, "unknown argument '--cfg'; see"},
      {{"--confg", "x"}, "unknown argument '--confg'; did you mean '--config'?"},
      {{"--config", "/nowhere.yaml"}, "/nowhere.yaml"},
      {{"--config", path_, "--instance", "prefill-3"}, "has no 'prefill-3'"},
      {{"--config", path_, "--instance", "decode-1"},
       "'decode-1' has the role decode; sluice-prefill runs prefill"},
  };
  for (const auto& c : cases) {
    const absl::Status status = Start(c.arguments).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.wanted));
    EXPECT_EQ(ExitWith(status), kExitUsage) << c.wanted;
  }
}

TEST(ExitWithTest, TheFirstCodeCounts) {
  EXPECT_EQ(ExitWith(absl::OkStatus()), 0);
  EXPECT_EQ(ExitWith(WithExitCode(absl::OkStatus(), kExitModel)), 0);
  EXPECT_EQ(ExitWith(absl::InternalError("x")), 1);
  const absl::Status model = WithExitCode(absl::InternalError("x"), kExitModel);
  EXPECT_EQ(ExitWith(model), 4);
  EXPECT_EQ(ExitWith(WithExitCode(model, kExitPreflight)), 4);
}

}  // namespace
}  // namespace sluice
