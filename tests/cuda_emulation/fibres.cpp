// The engine behind cuda_runtime.h: one block at a time, its threads as fibres or OS threads.
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_THREAD__) || defined(ALA_EMULATION_THREADS)
#define ALA_OS_THREADS 1
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <ucontext.h>
#endif

// Last: its macros are names inside the standard headers.
#include <cuda_runtime.h>

thread_local emulated_dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool inside;
  bool committed;
};

struct Place {
  const char* file = nullptr;
  int line = 0;
};

struct Thread {
  int64_t number = 0;
  bool finished = false;
  int64_t barriers = 0, exchanges = 0;  // how many it has reached
  bool in_barrier = false, in_exchange = false;
  unsigned mask = 0;
  Place place;
  std::vector<Copy> copies;
};

struct Warp {
  uint64_t words[2][32];
  int64_t reached[32];
};

struct Block {
  int64_t threads = 0;
  std::vector<Thread> thread;
  std::vector<Warp> warp;
  unsigned char* shared = nullptr;
  int votes[3] = {0, 0, 0};  // of the barriers 3n, 3n + 1, 3n + 2
  int64_t arrived = 0;       // at all barriers so far
};

Block block;
thread_local Thread* self = nullptr;
constexpr int kGuard = 64;

bool late_copies() {
  static const bool late = [] {
    const char* mode = std::getenv("ALA_EMULATION_COPIES");
    return mode && !std::strcmp(mode, "late");
  }();
  return late;
}

// The program is wrong: say where every thread stands, and end.
[[noreturn]] void accuse(const char* what) {
  std::fprintf(stderr, "emulation: %s in block %lld of %lld threads\n", what,
               static_cast<long long>(blockIdx.x), static_cast<long long>(block.threads));
  int shown = 0;
  const Thread* before = nullptr;
  for (const Thread& t : block.thread) {
    const bool same = before && before->finished == t.finished && before->place.line == t.place.line &&
                      before->in_barrier == t.in_barrier && before->in_exchange == t.in_exchange;
    before = &t;
    if (same || shown++ > 12) continue;
    if (t.finished)
      std::fprintf(stderr, "  from thread %lld on: finished\n", static_cast<long long>(t.number));
    else
      std::fprintf(stderr, "  from thread %lld on: %s at %s:%d\n", static_cast<long long>(t.number),
                   t.in_barrier    ? "waits at a barrier"
                   : t.in_exchange ? "waits for its warp"
                                   : "runs, last seen",
                   t.place.file ? t.place.file : "?", t.place.line);
  }
  std::fflush(stderr);
  std::_Exit(86);
}

bool barrier_open(int64_t number) {
  return block.arrived >= number * block.threads;
}
bool exchange_open(const Thread& t) {
  const Warp& warp = block.warp[t.number / 32];
  for (int l = 0; l < 32; ++l)
    if (t.mask >> l & 1 && warp.reached[l] < t.exchanges) return false;
  return true;
}
bool blocked(const Thread& t) {
  return (t.in_barrier && !barrier_open(t.barriers)) || (t.in_exchange && !exchange_open(t));
}

void land(Thread& t) {
  for (const Copy& copy : t.copies) {
    if (!copy.committed) continue;
    if (copy.inside)
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    else
      std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
  }
  t.copies.clear();
}

void start_block(int64_t number, int64_t blocks, int64_t threads, int64_t shared_bytes) {
  blockIdx = {number};
  gridDim = {blocks};
  blockDim = {threads};
  block.threads = threads;
  block.thread.assign(static_cast<size_t>(threads), Thread{});
  block.warp.assign(static_cast<size_t>(threads / 32), Warp{});
  block.arrived = 0;
  for (int& vote : block.votes) vote = 0;
  std::memset(block.shared, 0xff, static_cast<size_t>(shared_bytes + kGuard));
  for (int64_t t = 0; t < threads; ++t) block.thread[static_cast<size_t>(t)].number = t;
}

void end_block(int64_t shared_bytes) {
  for (int k = 0; k < kGuard; ++k)
    if (block.shared[shared_bytes + k] != 0xff) accuse("a write behind the end of shared memory");
}

#if defined(ALA_OS_THREADS)
std::mutex mutex;
std::mutex atomics;
std::condition_variable changed;
int64_t sleeping = 0, living = 0;

template <class Open>
void wait_until(Open open) {
  std::unique_lock<std::mutex> lock(mutex);
  changed.notify_all();
  while (!open()) {
    if (++sleeping == living) {
      bool hope = false;
      for (const Thread& t : block.thread) hope |= !t.finished && !blocked(t);
      if (!hope) accuse("a barrier or warp operation that not all threads reach");
    }
    changed.wait(lock);
    --sleeping;
  }
}
#else
struct Fibre {
  ucontext_t context;
  std::vector<unsigned char> stack;
};
std::vector<Fibre> fibres;
const std::function<void()>* body = nullptr;

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
// Stack switches without the two system calls of swapcontext: callee-saved registers, then the stack.
extern "C" void ala_switch_stack(void** save, void* load);
asm(R"(
.text
.globl ala_switch_stack
.type ala_switch_stack,@function
ala_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ala_switch_stack,.-ala_switch_stack
)");
#define ALA_OWN_SWITCH 1
std::vector<void*> tops;
void* scheduler_top = nullptr;
#else
ucontext_t scheduler;
#endif

void to_scheduler() {
#if defined(ALA_OWN_SWITCH)
  ala_switch_stack(&tops[static_cast<size_t>(self->number)], scheduler_top);
#else
  swapcontext(&fibres[static_cast<size_t>(self->number)].context, &scheduler);
#endif
}

void enter() {
  (*body)();
  self->finished = true;
  to_scheduler();
  std::abort();
}

void resume(int64_t t) {
  self = &block.thread[static_cast<size_t>(t)];
  threadIdx = {t};
#if defined(ALA_OWN_SWITCH)
  ala_switch_stack(&scheduler_top, tops[static_cast<size_t>(t)]);
#else
  swapcontext(&scheduler, &fibres[static_cast<size_t>(t)].context);
#endif
}

void prepare_fibre(int64_t t) {
  constexpr size_t kStack = 256 * 1024;
  Fibre& fibre = fibres[static_cast<size_t>(t)];
  if (fibre.stack.empty()) fibre.stack.resize(kStack);
#if defined(ALA_OWN_SWITCH)
  auto top = reinterpret_cast<uintptr_t>(fibre.stack.data() + kStack) & ~uintptr_t{63};
  auto* words = reinterpret_cast<void**>(top) - 8;
  words[7] = nullptr;
  words[6] = reinterpret_cast<void*>(&enter);  // where `ret` goes: the stack is then as after a call
  for (int k = 0; k < 6; ++k) words[k] = nullptr;
  tops[static_cast<size_t>(t)] = words;
#else
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.data();
  fibre.context.uc_stack.ss_size = kStack;
  fibre.context.uc_link = &scheduler;
  makecontext(&fibre.context, &enter, 0);
#endif
}

template <class Open>
void wait_until(Open open) {
  while (!open()) to_scheduler();
}

// 0, 1, 2 ... in the order that the environment asks for.
int64_t place_of(int64_t n, int64_t threads, int64_t round) {
  static const char* order = std::getenv("ALA_EMULATION_ORDER");
  if (order && !std::strcmp(order, "backward")) return threads - 1 - n;
  if (order && !std::strcmp(order, "shuffled")) return (n * 73 + round * 29) % threads;  // 73: odd and prime
  return n;
}
#endif

}  // namespace

int lane() {
  return static_cast<int>(self->number % 32);
}
unsigned char* shared_memory() {
  return block.shared;
}

int barrier(int vote, const char* file, int line) {
  Thread& t = *self;
  {
#if defined(ALA_OS_THREADS)
    std::lock_guard<std::mutex> lock(mutex);
#endif
    t.place = {file, line};
    t.in_barrier = true;
    const int64_t number = ++t.barriers;
    if (block.arrived == (number - 1) * block.threads) block.votes[number % 3] = 0;
    for (const Thread& other : block.thread)
      if (other.in_barrier && other.barriers == number && other.place.line != line)
        accuse("threads at different barriers");
    block.votes[number % 3] |= vote;
    ++block.arrived;
  }
  wait_until([&] { return barrier_open(t.barriers); });
#if defined(ALA_OS_THREADS)
  std::lock_guard<std::mutex> lock(mutex);
#endif
  t.in_barrier = false;
  return block.votes[t.barriers % 3];
}

const uint64_t* exchange(unsigned mask, uint64_t word, const char* file, int line) {
  Thread& t = *self;
  Warp& warp = block.warp[static_cast<size_t>(t.number / 32)];
  {
#if defined(ALA_OS_THREADS)
    std::lock_guard<std::mutex> lock(mutex);
#endif
    t.place = {file, line};
    t.mask = mask;
    t.in_exchange = true;
    ++t.exchanges;
    warp.words[t.exchanges % 2][t.number % 32] = word;
    warp.reached[t.number % 32] = t.exchanges;
  }
  wait_until([&] { return exchange_open(t); });
#if defined(ALA_OS_THREADS)
  std::lock_guard<std::mutex> lock(mutex);
#endif
  t.in_exchange = false;
  return warp.words[t.exchanges % 2];
}

void copy_async(void* to, const void* from, int bytes, bool inside) {
  self->copies.push_back({to, from, bytes, inside, false});
  if (reinterpret_cast<uintptr_t>(to) % 16 || (inside && reinterpret_cast<uintptr_t>(from) % 16))
    accuse("an asynchronous copy that is not aligned");
}
void copies_commit() {
  for (Copy& copy : self->copies) copy.committed = true;
  if (!late_copies()) land(*self);
}
void copies_wait() {
  land(*self);
}

void start_atomic() {
#if defined(ALA_OS_THREADS)
  atomics.lock();
#endif
}
void end_atomic() {
#if defined(ALA_OS_THREADS)
  atomics.unlock();
#endif
}

cudaError_t run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
  if (threads % 32 || threads > 1024 || blocks > INT32_MAX || shared_bytes > 227 * 1024)
    return cudaErrorInvalidConfiguration;
  for (int64_t b = 0; b < blocks; ++b) {
    // a new allocation for every block: AddressSanitizer then guards both its ends
    std::vector<unsigned char> memory(static_cast<size_t>(shared_bytes + kGuard + 16));
    block.shared =
        reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) & ~uintptr_t{15});
    start_block(b, blocks, threads, shared_bytes);
#if defined(ALA_OS_THREADS)
    living = threads;
    sleeping = 0;
    std::vector<std::thread> workers;
    for (int64_t t = 0; t < threads; ++t)
      workers.emplace_back([&, t] {
        self = &block.thread[static_cast<size_t>(t)];
        threadIdx = {t};
        blockIdx = {b};
        gridDim = {blocks};
        blockDim = {threads};
        kernel();
        std::lock_guard<std::mutex> lock(mutex);
        self->finished = true;
        --living;
        changed.notify_all();
      });
    for (auto& worker : workers) worker.join();
#else
    body = &kernel;
    if (fibres.size() < static_cast<size_t>(threads)) fibres.resize(static_cast<size_t>(threads));
#if defined(ALA_OWN_SWITCH)
    tops.resize(fibres.size());
#endif
    for (int64_t t = 0; t < threads; ++t) prepare_fibre(t);
    int64_t finished = 0;
    for (int64_t round = 0; finished < threads; ++round) {
      bool moved = false;
      finished = 0;
      for (int64_t n = 0; n < threads; ++n) {
        const int64_t t = place_of(n, threads, round);
        const Thread& thread = block.thread[static_cast<size_t>(t)];
        if (!thread.finished && !blocked(thread)) {
          moved = true;
          resume(t);
        }
        finished += thread.finished;
      }
      if (!moved && finished < threads) accuse("a barrier or warp operation that not all threads reach");
    }
#endif
    end_block(shared_bytes);
  }
  return cudaSuccess;
}

}  // namespace emulation
