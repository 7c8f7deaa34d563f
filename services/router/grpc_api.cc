#include "services/router/grpc_api.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "kernels/base/status.h"
#include "services/router/grpc_generation.h"
#include "services/router/grpc_status.h"
#include "services/router/proto_request.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::router {
namespace {

std::string Metadata(const grpc::CallbackServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  return found == context.client_metadata().end()
             ? std::string()
             : std::string(found->second.data(), found->second.size());
}

absl::StatusOr<Caller> MakeCaller(const char* api, const grpc::CallbackServerContext& context,
                                  const Edge& edge, const ApiKeys& keys) {
  absl::StatusOr<std::string> tenant = keys.Authenticate(Metadata(context, "authorization"));
  if (!tenant.ok()) return tenant.status();
  Caller caller{.api = api, .tenant = *std::move(tenant)};
  if (std::string id = Metadata(context, "x-request-id"); IsRequestId(id)) {
    caller.request_id = std::move(id);
  }
  const auto deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    // What is left counts: the backend's clock is another one.
    const auto left = deadline - std::chrono::system_clock::now();
    caller.deadline = edge.backend->Now() + absl::FromChrono(left);
  }
  return caller;
}

// An error before there is anything to do.
class RefusingReactor final : public grpc::ServerWriteReactor<v1::GenerateChunk> {
 public:
  explicit RefusingReactor(const absl::Status& status) { Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

class GenerationService final : public v1::Generation::CallbackService {
 public:
  GenerationService(Edge* edge, const ApiKeys* keys) : edge_(edge), keys_(keys) {}

  grpc::ServerWriteReactor<v1::GenerateChunk>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return Start("grpc_generate", context, *request);
  }
  grpc::ServerWriteReactor<v1::GenerateChunk>* Chat(grpc::CallbackServerContext* context,
                                                    const v1::ChatRequest* request) override {
    return Start("grpc_chat", context, *request);
  }

 private:
  template <typename Request>
  grpc::ServerWriteReactor<v1::GenerateChunk>* Start(const char* api,
                                                     grpc::CallbackServerContext* context,
                                                     const Request& request) {
    auto caller = MakeCaller(api, *context, *edge_, *keys_);
    if (!caller.ok()) {
      edge_->post([edge = edge_] { edge->metrics->OnRejected("auth"); });
      return new RefusingReactor(caller.status());
    }
    return GenerationReactor::Start(edge_, context, *std::move(caller),
                                    static_cast<int64_t>(request.ByteSizeLong()),
                                    [request] { return FromProto(request); });
  }

  Edge* const edge_;
  const ApiKeys* const keys_;
};

class TokenizerService final : public v1::Tokenizer::CallbackService {
 public:
  TokenizerService(Edge* edge, const ApiKeys* keys) : edge_(edge), keys_(keys) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return OnPool(context, *request, [model = edge_->model, request, response] {
      return Tokenize(*model, *request, response);
    });
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return OnPool(context, *request, [model = edge_->model, request, response] {
      return Detokenize(*model, *request, response);
    });
  }

 private:
  static absl::Status Tokenize(const ServedModel& model, const v1::TokenizeRequest& request,
                               v1::TokenizeResponse* response) {
    SLUICE_ASSIGN_OR_RETURN(const TokenizeBody body, FromProto(request));
    SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, router::Tokenize(model, body));
    for (const int32_t id : ids) {
      response->add_token_ids(static_cast<uint32_t>(id));
      if (body.return_token_strs)
        response->add_token_strs(std::string(model.tokenizer->TokenBytes(id)));
    }
    response->set_max_model_len(static_cast<uint32_t>(model.context_tokens));
    return absl::OkStatus();
  }

  static absl::Status Detokenize(const ServedModel& model, const v1::DetokenizeRequest& request,
                                 v1::DetokenizeResponse* response) {
    if (absl::Status status = CheckModelName(model, request.model()); !status.ok()) return status;
    const std::vector<int32_t> ids(request.token_ids().begin(), request.token_ids().end());
    response->set_text(model.tokenizer->Decode(ids, /*skip_special=*/false));
    return absl::OkStatus();
  }

  template <typename Request, typename Work>
  grpc::ServerUnaryReactor* OnPool(grpc::CallbackServerContext* context, const Request& request,
                                   Work work) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const auto caller = MakeCaller("grpc_tokenize", *context, *edge_, *keys_);
    const absl::Status status =
        caller.ok() ? edge_->pool->Run(static_cast<int64_t>(request.ByteSizeLong()),
                                       [reactor, work] { reactor->Finish(ToGrpcStatus(work())); })
                    : caller.status();
    if (!status.ok()) reactor->Finish(ToGrpcStatus(status));
    return reactor;
  }

  Edge* const edge_;
  const ApiKeys* const keys_;
};

class ModelsService final : public v1::Models::CallbackService {
 public:
  ModelsService(Edge* edge, const ApiKeys* keys) : edge_(edge), keys_(keys) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const auto caller = MakeCaller("grpc_models", *context, *edge_, *keys_);
    if (!caller.ok()) {
      reactor->Finish(ToGrpcStatus(caller.status()));
      return reactor;
    }
    edge_->post([edge = edge_, reactor, response] {
      v1::Model* const model = response->add_models();
      model->set_id(edge->model->name);
      model->set_max_model_len(static_cast<uint32_t>(edge->model->context_tokens));
      model->set_ready(edge->backend->CanPlace());
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

 private:
  Edge* const edge_;
  const ApiKeys* const keys_;
};

}  // namespace

struct GrpcApi::Impl {
  Impl(Edge* edge, const ApiKeys* keys)
      : generation(edge, keys), tokenizer(edge, keys), models(edge, keys) {}
  GenerationService generation;
  TokenizerService tokenizer;
  ModelsService models;
};

GrpcApi::GrpcApi(Edge* edge, const ApiKeys* keys) : impl_(std::make_unique<Impl>(edge, keys)) {}
GrpcApi::~GrpcApi() = default;

std::vector<rpc::NamedService> GrpcApi::services() const {
  return {{v1::Generation::service_full_name(), &impl_->generation},
          {v1::Tokenizer::service_full_name(), &impl_->tokenizer},
          {v1::Models::service_full_name(), &impl_->models}};
}

}  // namespace sluice::router
