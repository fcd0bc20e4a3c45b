// Loops over independent items by the caller's executor.
#pragma once

#include <cstdint>

#include "ala_metric/ala_metric.h"
#include "core/config.h"

namespace ala {
namespace ALA_ISA {

// Multiply-adds below which waking other threads costs more than it gains.
constexpr double kSerialBelow = 4e6;

class Workers {
 public:
  explicit Workers(const ala_executor* executor) : executor_(executor) {}

  int64_t slots() const {
    return executor_ && executor_->run && executor_->threads > 1 ? executor_->threads : 1;
  }

  // A small amount of work stays on this thread (the bits are the same either way).
  Workers for_work(double multiply_adds) const {
    return multiply_adds < kSerialBelow ? Workers(nullptr) : *this;
  }

  // body(item, slot) for every item; items sharing a slot < slots() never run at once. Items are taken from a
  // shared counter, so nothing that reaches a result may depend on the slot. most: threads worth starting.
  template <class Body>
  void run(int64_t items, const Body& body, int64_t most = INT64_MAX) const {
    int64_t tasks = slots() < items ? slots() : items;
    if (tasks > most) tasks = most;
    if (tasks <= 1) {
      for (int64_t item = 0; item < items; ++item) body(item, int64_t{0});
      return;
    }
    struct Shared {
      const Body* body;
      int64_t items;
      int64_t next;
    } shared{&body, items, 0};
    executor_->run(
        executor_->self, tasks,
        [](void* context, int64_t slot) {
          auto* s = static_cast<Shared*>(context);
          for (;;) {
            const int64_t item = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
            if (item >= s->items) return;
            (*s->body)(item, slot);
          }
        },
        &shared);
  }

 private:
  const ala_executor* executor_;
};

}  // namespace ALA_ISA
}  // namespace ala
