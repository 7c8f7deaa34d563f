// The public gRPC API over a real channel; the test is the backend.

#include "services/router/grpc_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "grpcpp/client_context.h"
#include "services/router/grpc_api_fixture.h"
#include "services/router/retry_hint.h"
#include "services/rpc/status.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;

TEST_F(GrpcApiTest, StreamsAChat) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "mine");
  v1::ChatRequest request = Hi();
  request.mutable_options()->set_n(2);
  request.mutable_options()->set_temperature(0);
  auto reader = v1::Generation::NewStub(channel_)->Chat(&context, request);
  WaitUntil([&] { return backend_.running.size() == 2; });
  EXPECT_EQ(backend_.submitted[0].sampling.temperature(), 0) << "0 is not unset";
  EXPECT_EQ(backend_.submitted[0].name, "mine");
  Give(1, "hm</think>yes", v1::FINISH_STOP);
  Give(2, "x", v1::FINISH_LENGTH);
  std::vector<v1::GenerateChunk> chunks;
  for (v1::GenerateChunk chunk; reader->Read(&chunk);) chunks.push_back(chunk);
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].reasoning_delta(), "hm");
  EXPECT_EQ(chunks[0].text_delta(), "yes");
  EXPECT_EQ(chunks[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_FALSE(chunks[0].has_usage());
  EXPECT_EQ(chunks[1].index(), 1u);
  EXPECT_EQ(chunks[1].finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(chunks[1].usage().completion_tokens(),
            static_cast<uint32_t>(chunks[0].token_ids_size() + chunks[1].token_ids_size()));
  EXPECT_TRUE(chunks[1].has_timings());
  EXPECT_EQ(context.GetServerInitialMetadata().find("x-request-id")->second, "mine");
}

TEST_F(GrpcApiTest, ErrorsCarryDetails) {
  Start();
  const auto stub = v1::Generation::NewStub(channel_);
  v1::GenerateChunk chunk;
  {
    grpc::ClientContext context;
    v1::GenerateRequest request;
    request.set_text("a");
    request.mutable_options()->set_top_p(2);
    auto reader = stub->Generate(&context, request);
    EXPECT_FALSE(reader->Read(&chunk));
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(rpc::DetailsOf(status).field, "options.top_p");
  }
  {
    grpc::ClientContext context;
    v1::GenerateRequest request;
    for (int i = 0; i < 3000; ++i) request.mutable_token_ids()->add_ids(5);
    auto reader = stub->Generate(&context, request);
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_EQ(rpc::DetailsOf(reader->Finish()).reason, "CONTEXT_LENGTH_EXCEEDED");
  }
  backend_.refusal = WithRetryAfter(absl::UnavailableError("full"), absl::Seconds(3));
  grpc::ClientContext context;
  auto reader = stub->Chat(&context, Hi());
  EXPECT_FALSE(reader->Read(&chunk));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(rpc::DetailsOf(status).retry_after, absl::Seconds(3));
}

TEST_F(GrpcApiTest, CancelsWithTheCallAndItsDeadline) {
  Start();
  const auto stub = v1::Generation::NewStub(channel_);
  {
    grpc::ClientContext context;
    auto reader = stub->Chat(&context, Hi());
    WaitUntil([&] { return backend_.running.size() == 1; });
    context.TryCancel();
    WaitUntil([&] { return backend_.running.empty(); });
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(100));
  auto reader = stub->Chat(&context, Hi());
  WaitUntil([&] { return backend_.running.size() == 1; });
  const absl::Duration left = backend_.submitted[1].deadline - absl::Now();
  EXPECT_GT(left, absl::Seconds(50));
  EXPECT_LE(left, absl::Seconds(101));
  context.TryCancel();
  WaitUntil([&] { return backend_.running.empty(); });
}

TEST_F(GrpcApiTest, CutsOffAClientThatDoesNotRead) {
  Start();
  grpc::ClientContext context;
  auto reader = v1::Generation::NewStub(channel_)->Chat(&context, Hi());
  WaitUntil([&] { return backend_.running.size() == 1; });
  const std::vector<uint32_t> tokens = TestTokens(std::string(20000, 'x'));
  bool running = true;
  while (running) {
    OnLoop([&] {
      running = !backend_.running.empty();
      if (running) backend_.Give(1, tokens);
    });
  }
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcApiTest, TokenizesAndListsModels) {
  Start();
  const auto tokenizer = v1::Tokenizer::NewStub(channel_);
  v1::TokenizeRequest request;
  request.set_text("hello <think>");
  v1::TokenizeResponse tokens;
  grpc::ClientContext first, second, third;
  ASSERT_TRUE(tokenizer->Tokenize(&first, request, &tokens).ok());
  EXPECT_EQ(tokens.token_ids(0), 0u) << "the beginning of text";
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(tokenizer->Detokenize(&second, back, &text).ok());
  EXPECT_THAT(text.text(), HasSubstr("hello <think>"));
  v1::ListModelsResponse models;
  ASSERT_TRUE(v1::Models::NewStub(channel_)->ListModels(&third, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).id(), "tiny");
  EXPECT_EQ(models.models(0).max_model_len(), 2048u);
  EXPECT_TRUE(models.models(0).ready());
}

TEST_F(GrpcApiTest, WantsAKey) {
  // printf %s secret | sha256sum
  Start({{.name = "team",
          .sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}});
  v1::ListModelsResponse models;
  const auto stub = v1::Models::NewStub(channel_);
  grpc::ClientContext without, with;
  EXPECT_EQ(stub->ListModels(&without, {}, &models).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  with.AddMetadata("authorization", "Bearer secret");
  EXPECT_TRUE(stub->ListModels(&with, {}, &models).ok());
  grpc::ClientContext chat;
  auto reader = v1::Generation::NewStub(channel_)->Chat(&chat, Hi());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace sluice::router
