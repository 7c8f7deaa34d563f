// Who comes first where there is not enough for all.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "kernels/ops/page_mover.h"

namespace sluice::transport {

// Calls visit(id, entry) for every entry, from `*first` on and then from the beginning. After one
// that has left the mover without room, `*first` is the one behind: the next to find room. `mover`
// may be null.
template <typename Entry, typename Visit>
void VisitInTurn(const PageMover* mover, std::map<uint64_t, std::unique_ptr<Entry>>* entries,
                 uint64_t* first, const Visit& visit) {
  const auto one = [&](uint64_t id, Entry* entry) {
    const bool had_room = mover != nullptr && mover->HasRoom();
    visit(id, entry);
    if (had_room && !mover->HasRoom()) *first = id + 1;
  };
  const auto begin = entries->lower_bound(*first);
  for (auto it = begin; it != entries->end(); ++it) one(it->first, it->second.get());
  for (auto it = entries->begin(); it != begin; ++it) one(it->first, it->second.get());
}

}  // namespace sluice::transport
