// The in-memory twin of KV transfer: processes that are objects, a network that is a queue, and the
// faults that tests ask for. The rules of leases and transfers are those of every transport
// (lease_table.h, transfer_table.h); only the wire is missing.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/transport/kv_transfer.h"

namespace sluice::transport {

// Threads: as KvTransport; faults may be asked for from any thread. With `own_thread` a thread
// moves pages and makes callbacks; without, they happen in RunUntilIdle alone, in an order that
// depends on nothing but the order of calls. Outlives the transports that joined it.
class InProcessNetwork {
 public:
  struct Options {
    bool own_thread = true;
    std::function<absl::Time()> now = absl::Now;
  };
  // Where a page stands still.
  enum class HoldAt {
    kSender,  // taken from the sender's queue, not arrived: its memory is being read
    kCopy,    // being copied into the leased page: Close has to wait
  };

  explicit InProcessNetwork(Options options);
  InProcessNetwork(const InProcessNetwork&) = delete;
  ~InProcessNetwork();

  // A new process. Its endpoint is unique; `incarnation` is what the caller says.
  std::unique_ptr<KvTransport> Join(KvMemory memory, uint64_t incarnation);
  // The process dies without a word: it makes no callbacks and takes no pages any more, and those
  // that send to it notice.
  void Kill(absl::string_view endpoint);

  // Moves what can be moved and makes all callbacks that are due. REQUIRES no own thread.
  void RunUntilIdle();

  // The next `count` pages arrive with one bit changed.
  void CorruptNext(int count);
  // The connection that the next page would travel on breaks instead.
  void FailNext();
  // Pages stop there until Release.
  void Hold(HoldAt where);
  void Release();
  // Pages that stand still.
  int64_t num_held() const;

 private:
  class Process;
  struct Flight;

  void Wake();
  void ThreadMain();
  bool RunOnce();  // false: nothing was done; these below hold run_mutex_
  void Connect(Process* process);
  bool MovePages(Process* process);
  bool Depart(Flight flight);
  void Arrive(Flight flight);
  void Finish(const Flight& flight, bool copied);
  void LoseConnections(const Process& process);
  void Leave(Process* process);
  Process* FindAlive(absl::string_view endpoint) const;

  const Options options_;
  std::mutex run_mutex_;  // held while pages move and callbacks run: the transport's thread
  std::vector<Process*> processes_;
  std::vector<Flight> held_;
  int64_t next_endpoint_ = 1;

  mutable std::mutex mutex_;  // of what follows; never held while anything is called
  std::condition_variable woken_;
  bool work_ = false;
  bool stop_ = false;
  int corrupt_next_ = 0;
  int fail_next_ = 0;
  bool hold_at_sender_ = false;
  bool hold_at_copy_ = false;
  int64_t num_held_ = 0;
  std::thread thread_;  // last: uses all above
};

}  // namespace sluice::transport
