// The balancer over a real connection on a free port.
#include "services/balancer/balancer_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "sluice/v1/balancer.grpc.pb.h"

namespace sluice::balancer {
namespace {

using ::testing::HasSubstr;

class BalancerServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = rpc::Server::Start({.address = "127.0.0.1:0", .services = {service_.service()}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::Balancer::NewStub(rpc::MakeChannel(absl::StrCat("127.0.0.1:", server_->port())));
  }

  v1::ExpertLoadReport Report(const std::string& instance) {
    v1::ExpertLoadReport report;
    report.set_instance(instance);
    report.set_incarnation(1);
    report.set_role(v1::ROLE_DECODE);
    v1::LayerLoad& layer = *report.add_layers();
    layer.set_layer(1);
    layer.add_tokens(3);
    layer.add_tokens(1);
    return report;
  }

  v1::GetExpertLoadResponse GetLoad() {
    grpc::ClientContext context;
    v1::GetExpertLoadResponse response;
    EXPECT_TRUE(stub_->GetExpertLoad(&context, {}, &response).ok());
    return response;
  }

  ManualClock clock_;
  Metrics metrics_{{.model = "m", .role = "balancer", .instance = "balancer"}};
  BalancerService service_{{}, &clock_, &metrics_};
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::Balancer::Stub> stub_;
};

TEST_F(BalancerServiceTest, GathersWhileAWorkerIsAttached) {
  grpc::ClientContext context;
  const auto stream = stub_->Attach(&context);
  ASSERT_TRUE(stream->Write(Report("decode-1")));
  ASSERT_TRUE(stream->Write(Report("decode-1")));
  v1::GetExpertLoadResponse load;
  while (load.instances_size() == 0 || load.instances(0).layers(0).tokens(0) < 6) load = GetLoad();
  EXPECT_EQ(load.instances(0).layers(0).tokens(1), 2u);
  EXPECT_EQ(service_.Status().instances(0).role(), "decode");
  service_.UpdateMetrics();
  EXPECT_THAT(metrics_.Text(), HasSubstr("phase=\"decode\",stat=\"min\"} 0.66"));
  EXPECT_THAT(metrics_.Text(), HasSubstr("sluice_balancer_reports_total"));

  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  while (GetLoad().instances_size() > 0) {
  }
}

TEST_F(BalancerServiceTest, AWrongReportEndsTheStreamWithItsReason) {
  grpc::ClientContext context;
  const auto stream = stub_->Attach(&context);
  v1::ExpertLoadReport report = Report("decode-1");
  report.clear_role();
  stream->Write(report);
  const absl::Status status = rpc::FromGrpc(stream->Finish());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("decode-1: role is 0"));
}

TEST_F(BalancerServiceTest, OneStreamSpeaksOfOneInstance) {
  grpc::ClientContext context;
  const auto stream = stub_->Attach(&context);
  ASSERT_TRUE(stream->Write(Report("decode-1")));
  stream->Write(Report("decode-2"));
  EXPECT_EQ(rpc::FromGrpc(stream->Finish()).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice::balancer
