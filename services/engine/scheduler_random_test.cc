// Random sequences of everything that can be asked of a scheduler, against PagedModel: every token
// is right, no page is in two places, and at the end everybody has ended and every page is back.

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "services/engine/paged_model.h"
#include "services/engine/scheduler.h"

namespace sluice::engine {
namespace {

using model::PageHash;

enum class Phase { kAdded, kReserved, kHeld, kQuarantined, kDone };

struct Tracked {
  Request request;
  std::vector<int32_t> sequence;  // all tokens it will ever have
  std::vector<int32_t> expected;  // those that events are to bring
  std::vector<int32_t> got;
  Phase phase = Phase::kAdded;
  bool complete = true;         // not cancelled, handed back or damaged
  bool read_by_others = false;  // a prefill's pages after its token
  Reservation reservation;
  int64_t filled = 0;  // rows of the reservation
};

class RandomRun {
 public:
  explicit RandomRun(uint32_t seed)
      : random_(seed),
        options_{.slots_max = Draw(1, 6),
                 .step_tokens_max = Draw(6, 90),
                 .positions_max = 400,
                 .kv_pages = Draw(7, 24),
                 .vocab_size = kVocab,
                 .steps_in_flight_max = Draw(1, 2),
                 .requests_max = 12},
        late_(Draw(0, 1) == 1),
        scheduler_(options_),
        model_(options_) {}

  void Run() {
    for (int i = 0; i < 700 && !testing::Test::HasFailure(); ++i) {
      RandomAction();
      WriteSomeRows();
      CheckPages();
    }
    for (int i = 0; !scheduler_.idle() && !testing::Test::HasFailure(); ++i) {
      ASSERT_LT(i, 20000) << "no progress";
      for (auto& [id, tracked] : tracked_) {
        if (tracked.phase == Phase::kReserved) Start(&tracked);
        if (tracked.phase == Phase::kHeld) ReleaseHeld(&tracked);
      }
      Plan();
      Answer();
      CheckPages();
    }
    for (auto& [id, tracked] : tracked_) {
      if (tracked.phase == Phase::kQuarantined) scheduler_.ReleaseQuarantined(id);
    }
    EXPECT_EQ(scheduler_.kv_pool().num_free(), options_.kv_pages);
    EXPECT_EQ(scheduler_.kv_pool().num_quarantined(), 0);
    for (const auto& [id, tracked] : tracked_) {
      EXPECT_TRUE(tracked.phase == Phase::kDone || tracked.phase == Phase::kQuarantined);
      if (!tracked.complete) continue;
      EXPECT_EQ(tracked.got, tracked.expected) << "request " << id;
    }
  }

  static int64_t cached_tokens, handed_back, preempted, refused;  // over all runs

 private:
  int64_t Draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  void RandomAction() {
    switch (Draw(0, 11)) {
      case 0:
      case 1:
        return Add();
      case 2:
        return Reserve();
      case 3:
        return Cancel();
      case 4:
        if (Tracked* tracked = Any(Phase::kHeld)) ReleaseHeld(tracked);
        return;
      case 5:
        if (Tracked* tracked = Any(Phase::kQuarantined); tracked != nullptr) {
          scheduler_.ReleaseQuarantined(tracked->request.id);
          tracked->phase = Phase::kDone;
        }
        return;
      case 6:
        if (Tracked* tracked = Any(Phase::kReserved)) Start(tracked);
        return;
      case 7:
        return TakeKvEvents();
      case 8:
      case 9:
        return Plan();
      default:
        return Answer();
    }
  }

  Tracked* Any(Phase phase) {
    std::vector<Tracked*> all;
    for (auto& [id, tracked] : tracked_) {
      if (tracked.phase == phase) all.push_back(&tracked);
    }
    return all.empty() ? nullptr : all[Draw(0, all.size() - 1)];
  }

  // Prompts begin alike in three families, so that the cache has something to find.
  Tracked MakeTracked(Leg leg) {
    const int64_t family = Draw(1, 3);
    Tracked tracked;
    Request& request = tracked.request;
    request = MakeRequest(family * 1000, Draw(1, 220), Draw(leg == Leg::kDecode ? 2 : 1, 150));
    request.id = next_id_++;
    request.leg = leg;
    request.priority = static_cast<uint32_t>(Draw(0, 2));
    request.may_hand_back = Draw(0, 2) == 0;
    if (Draw(0, 3) == 0) {
      request.sampling.stop_token_ids = {static_cast<int32_t>(Draw(0, kVocab - 1))};
    }
    tracked.expected = ExpectedTokens(request, options_.positions_max);
    if (Draw(0, 3) == 0 && tracked.expected.size() > 3) {  // a later attempt
      const auto sent = tracked.expected.begin() + Draw(1, tracked.expected.size() - 3);
      request.output.assign(tracked.expected.begin(), sent);
      tracked.expected.erase(tracked.expected.begin(), sent);
    }
    tracked.sequence = KnownTokens(request);
    if (Draw(0, 3) > 0) {
      request.page_hash_seed = PageHash{};
      if (Draw(0, 1) == 0) {
        model::PageHasher().Extend(PageHash{}, tracked.sequence, &request.page_hashes);
        if (Draw(0, 1) == 0) request.page_hashes.resize(request.page_hashes.size() / 2);
      }
    }
    tracked.sequence.insert(tracked.sequence.end(), tracked.expected.begin(),
                            tracked.expected.end());
    return tracked;
  }

  void Add() {
    Tracked tracked = MakeTracked(Draw(0, 1) == 0 ? Leg::kWhole : Leg::kPrefill);
    const absl::Status status = scheduler_.Add(tracked.request);
    if (status.ok()) {
      tracked_.emplace(tracked.request.id, tracked);
    } else {
      ++refused;
    }
  }

  void Reserve() {
    Tracked tracked = MakeTracked(Leg::kDecode);
    if (tracked.expected.size() < 2) return;  // the prefill's token would end it
    auto reservation = scheduler_.Reserve(tracked.request);
    if (!reservation.ok()) {
      ++refused;
      return;
    }
    // What it leaves out must be there.
    const std::vector<uint64_t> rows = KvRows(tracked.sequence);
    const absl::Span<const int32_t> pages = scheduler_.PagesOf(tracked.request.id);
    for (int64_t i = 0; i < reservation->first_page * kPageTokens; ++i) {
      ASSERT_EQ(model_.RowAt(pages, i), rows[i]) << "row " << i << " of a page from the cache";
    }
    cached_tokens += reservation->first_page * kPageTokens;
    tracked.reservation = *std::move(reservation);
    tracked.phase = Phase::kReserved;
    tracked_.emplace(tracked.request.id, tracked);
  }

  int64_t RowsToFill(const Tracked& tracked) const {
    return static_cast<int64_t>(tracked.request.prompt.size() + tracked.request.output.size()) -
           tracked.reservation.first_page * kPageTokens;
  }

  // What a transport does while steps run: the right rows before Start, anything in quarantine.
  void WriteSomeRows() {
    for (auto& [id, tracked] : tracked_) {
      if (tracked.phase == Phase::kReserved) FillRows(&tracked, Draw(0, 60));
      if (tracked.phase == Phase::kQuarantined) {
        for (int64_t i = 0; i < RowsToFill(tracked); i += 7) {
          model_.RowAt(tracked.reservation.pages, i) = random_();
        }
      }
    }
  }

  void FillRows(Tracked* tracked, int64_t count) {
    const std::vector<uint64_t> rows = KvRows(tracked->sequence);
    const int64_t first = tracked->reservation.first_page * kPageTokens;
    for (; count > 0 && tracked->filled < RowsToFill(*tracked); --count, ++tracked->filled) {
      model_.RowAt(tracked->reservation.pages, tracked->filled) = rows[first + tracked->filled];
    }
  }

  void Start(Tracked* tracked) {
    FillRows(tracked, options_.positions_max);
    const std::vector<int32_t> first = {tracked->expected.front()};
    const absl::Status status = scheduler_.Start(tracked->request.id, first);
    ASSERT_TRUE(status.ok()) << status;
    tracked->expected.erase(tracked->expected.begin());
    tracked->phase = Phase::kAdded;
  }

  void Cancel() {
    if (tracked_.empty()) return;
    const auto it = std::next(tracked_.begin(), Draw(0, tracked_.size() - 1));
    Tracked& tracked = it->second;
    const PageFate fate = static_cast<PageFate>(Draw(0, 2));
    const bool had_pages = !scheduler_.PagesOf(it->first).empty();
    const absl::Status status = scheduler_.Cancel(it->first, fate);
    if (tracked.phase == Phase::kDone || tracked.phase == Phase::kQuarantined) {
      EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    } else if (fate == PageFate::kQuarantine && tracked.phase != Phase::kReserved) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    } else {
      EXPECT_TRUE(status.ok()) << status;
      if (tracked.phase != Phase::kHeld) tracked.complete = false;
      tracked.phase = fate == PageFate::kQuarantine          ? Phase::kQuarantined
                      : fate == PageFate::kHold && had_pages ? Phase::kHeld
                                                             : Phase::kDone;
    }
  }

  void ReleaseHeld(Tracked* tracked) {
    const uint64_t id = tracked->request.id;
    if (tracked->read_by_others) {
      const absl::Span<const int32_t> pages = scheduler_.PagesOf(id);
      const std::vector<uint64_t> rows = KvRows(KnownTokens(tracked->request));
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ(model_.RowAt(pages, i), rows[i]) << "held row " << i << " of request " << id;
      }
    }
    scheduler_.ReleaseHeld(id);
    EXPECT_TRUE(scheduler_.PagesOf(id).empty());
    tracked->phase = Phase::kDone;
  }

  void TakeKvEvents() {
    const std::vector<PageHash> snapshot = scheduler_.KvSnapshot();
    ASSERT_EQ(std::set<PageHash>(snapshot.begin(), snapshot.end()), announced_);
    std::vector<PageHash> stored, removed;
    scheduler_.TakeKvEvents(&stored, &removed);
    for (const PageHash& name : removed) ASSERT_EQ(announced_.erase(name), 1u);
    for (const PageHash& name : stored) ASSERT_TRUE(announced_.insert(name).second);
  }

  void Plan() {
    const int64_t preemptions = scheduler_.num_preemptions();
    const StepPlan* plan = scheduler_.NextPlan();
    preempted += scheduler_.num_preemptions() - preemptions;
    for (const uint64_t id : scheduler_.TakeHandedBack()) {
      Tracked& tracked = tracked_.at(id);
      EXPECT_TRUE(tracked.request.may_hand_back);
      EXPECT_EQ(tracked.phase, Phase::kAdded);
      EXPECT_NE(tracked.request.leg, Leg::kPrefill);
      tracked.complete = false;
      tracked.phase = Phase::kDone;
      ++handed_back;
    }
    if (plan == nullptr) return;
    ASSERT_EQ(scheduler_.planned().size(), plan->chunks.size());
    for (size_t i = 0; i < plan->chunks.size(); ++i) {
      const PlannedChunk& planned = scheduler_.planned()[i];
      EXPECT_EQ(tracked_.at(planned.request_id).phase, Phase::kAdded);
      EXPECT_EQ(planned.count, static_cast<int64_t>(plan->chunks[i].tokens.size()));
      EXPECT_EQ(scheduler_.PagesOf(planned.request_id), plan->chunks[i].pages);
    }
    plans_.emplace_back(*plan);
    // A device runs the step at some time between now and the answer.
    if (!late_) results_.push_back(model_.Run(plans_.back()));
  }

  void Answer() {
    if (plans_.empty()) return;
    if (late_) results_.push_back(model_.Run(plans_.front()));
    plans_.pop_front();
    StepResult result = std::move(results_.front());
    results_.pop_front();
    for (SlotResult& slot : result.slots) slot.tokens[0].not_finite = Draw(0, 400) == 0;
    std::vector<TokenEvent> events;
    scheduler_.OnResult(result, &events);
    for (const TokenEvent& event : events) OnEvent(event);
  }

  void OnEvent(const TokenEvent& event) {
    Tracked& tracked = tracked_.at(event.request_id);
    ASSERT_EQ(tracked.phase, Phase::kAdded) << "a token of a request that is over";
    cached_tokens += tracked.got.empty() ? event.cached_tokens : 0;
    const bool prefill = tracked.request.leg == Leg::kPrefill;
    if (event.finish.has_value() || prefill) tracked.phase = prefill ? Phase::kHeld : Phase::kDone;
    if (event.finish == FinishReason::kDamaged) {
      tracked.complete = false;
      return;
    }
    tracked.read_by_others = prefill;
    tracked.got.push_back(event.token.token_id);
    ASSERT_LE(tracked.got.size(), tracked.expected.size());
    ASSERT_EQ(tracked.got.back(), tracked.expected[tracked.got.size() - 1])
        << "request " << event.request_id << ", token " << tracked.got.size() - 1;
  }

  void CheckPages() {
    std::map<int32_t, std::pair<const Tracked*, size_t>> user;  // of each page, and as which
    std::set<int32_t> quarantined;
    for (const auto& [id, tracked] : tracked_) {
      if (tracked.phase == Phase::kQuarantined) {
        quarantined.insert(tracked.reservation.pages.begin(), tracked.reservation.pages.end());
      }
    }
    for (const auto& [id, tracked] : tracked_) {
      const absl::Span<const int32_t> pages = scheduler_.PagesOf(id);
      for (size_t i = 0; i < pages.size(); ++i) {
        ASSERT_EQ(quarantined.count(pages[i]), 0u) << "page " << pages[i] << " is in quarantine";
        const auto [it, alone] = user.try_emplace(pages[i], &tracked, i);
        if (alone) continue;
        const Tracked& other = *it->second.first;
        ASSERT_EQ(it->second.second, i) << "page " << pages[i] << " in two places";
        const size_t end = (i + 1) * kPageTokens;
        ASSERT_TRUE(tracked.sequence.size() >= end && other.sequence.size() >= end &&
                    std::equal(tracked.sequence.begin(), tracked.sequence.begin() + end,
                               other.sequence.begin()))
            << "requests " << id << " and " << other.request.id << " share page " << pages[i];
      }
    }
    const KvPool& pool = scheduler_.kv_pool();
    const int64_t known =
        static_cast<int64_t>(user.size()) + pool.num_free() + pool.num_quarantined();
    ASSERT_LE(known, options_.kv_pages);
    ASSERT_LE(scheduler_.num_running() + scheduler_.Load().reserved, options_.slots_max);
    if (!plans_.empty()) return;
    ASSERT_EQ(known, options_.kv_pages) << "pages are lost";
  }

  std::mt19937 random_;
  const SchedulerOptions options_;
  const bool late_;
  Scheduler scheduler_;
  PagedModel model_;
  std::map<uint64_t, Tracked> tracked_;
  std::deque<OwnedPlan> plans_;     // in flight
  std::deque<StepResult> results_;  // of those that have run
  std::set<PageHash> announced_;
  uint64_t next_id_ = 1;
};

int64_t RandomRun::cached_tokens = 0;
int64_t RandomRun::handed_back = 0;
int64_t RandomRun::preempted = 0;
int64_t RandomRun::refused = 0;

TEST(SchedulerRandomTest, AnySequenceOfCalls) {
  // Rare things need many runs; how many, the seeds decide.
  const auto met_all = [] {
    return RandomRun::cached_tokens > 1000 && RandomRun::preempted > 10 &&
           RandomRun::handed_back > 5 && RandomRun::refused > 10;
  };
  const uint32_t first_seed = std::random_device{}();
  for (uint32_t run = 0; run < 100 || (!met_all() && run < 2000); ++run) {
    SCOPED_TRACE(testing::Message() << "seed " << first_seed + run);
    RandomRun(first_seed + run).Run();
    if (HasFailure()) return;
  }
  // The runs went where they were meant to go.
  EXPECT_TRUE(met_all()) << RandomRun::cached_tokens << " cached, " << RandomRun::preempted
                         << " preempted, " << RandomRun::handed_back << " handed back, "
                         << RandomRun::refused << " refused";
}

}  // namespace
}  // namespace sluice::engine
