// Channels between the services, all with the same keepalive, limits and back-off.
#pragma once

#include <memory>
#include <string>

namespace grpc {
class Channel;
}

namespace sluice::rpc {

// To "HOST:PORT". Connects when first used, and again by itself after it broke: after 0.1 s at
// first, after 2 s at most; an attempt has 2 s. A connection on which nothing moves is asked every
// 30 s and given up 10 s later.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace sluice::rpc
