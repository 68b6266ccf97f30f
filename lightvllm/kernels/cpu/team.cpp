// A team of threads that lives as long as the process. Test: tests/kernels/test_team.py.
//
// A step of a model is some hundred ops of a few microseconds to milliseconds, on a machine where other programs run, too.
// So each thread has a share of an op's work, one stretch of which it takes after another, and who is done with his own
// goes on with the others': a thread that the system does not run just then holds nothing up, and the caller alone could
// do it all. (OpenMP's threads must all arrive at the end of each op. With one other busy process on two cores, that made a
// step thirty times as long.) Between ops the threads fetch what they will read next, spin for a moment, then sleep.
#include "team.h"

#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lightvllm {
namespace {

constexpr int SPINS = 4000;                // some 50 microseconds: longer than from op to op, shorter than from step to step
constexpr int64_t STRETCHES = 8;           // of what is left of a share, one is taken
constexpr int64_t FETCHED = 256 << 10;     // bytes: a good part of a core's second-level cache
thread_local bool is_at_work = false;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// What is left of a thread's share.
struct alignas(64) Share {
  std::atomic<int64_t> next = 0;
  int64_t end = 0;

  // [first, last): the next stretch, of at least `grain`; false if there is none.
  bool take(int64_t grain, int64_t& first, int64_t& last) {
    first = next.load(std::memory_order_relaxed);
    do {
      if (first >= end) return false;
      last = std::min(end, first + std::max(grain, (end - first) / STRETCHES));
    } while (!next.compare_exchange_weak(first, last, std::memory_order_relaxed));
    return true;
  }
};

class Team {
 public:
  // False if the team is busy with another caller's work.
  bool run(int64_t begin, int64_t end, int64_t grain, int64_t threads, void (*f)(const void*, int64_t, int64_t),
           const void* what) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    if (hands_ < threads - 1) shares_.reset(new Share[threads]);
    for (; hands_ < threads - 1; hands_++) std::thread([this, index = hands_ + 1] { help(index); }).detach();
    call_ = f, work_ = what, grain_ = grain, threads_ = threads;
    for (int64_t i = 0; i < threads; i++) {
      shares_[i].next.store(begin + (end - begin) * i / threads, std::memory_order_relaxed);
      shares_[i].end = begin + (end - begin) * (i + 1) / threads;
    }
    state_.fetch_add(1);  // odd: there is work
    state_.notify_all();
    work(0);
    state_.fetch_add(1);  // even: who comes now is too late, and goes; who is inside is waited for
    for (int spins = 0; inside_.load() != 0; spins++) spins < SPINS ? pause() : std::this_thread::yield();
    return true;
  }

  // The weight that is read next, whatever the work is until then.
  void expect(const void* weight, int64_t panels, int64_t panel_bytes) {
    weight_.store(static_cast<const char*>(weight), std::memory_order_relaxed);
    panels_.store(panels, std::memory_order_relaxed);
    panel_bytes_.store(panel_bytes, std::memory_order_relaxed);
  }

 private:
  void work(int64_t index) {
    is_at_work = true;
    int64_t first, last;
    for (int64_t i = 0; i < threads_; i++)
      while (shares_[(index + i) % threads_].take(grain_, first, last)) call_(work_, first, last);
    is_at_work = false;
  }

  void help(int64_t index) {
    int spins = 0;
    for (unsigned done = 0;;) {
      const unsigned state = state_.load();
      if (state % 2 != 0 && state != done) {
        inside_.fetch_add(1);
        const int64_t threads = state_.load() == state ? threads_ : 0;
        if (index < threads) work(index);
        inside_.fetch_sub(1);
        done = state, spins = 0;
        if (index < threads) fetch(index, threads, state);
      } else if (++spins < SPINS) {
        pause();
      } else {
        state_.wait(state);
        spins = 0;
      }
    }
  }

  // Fetches the beginning of this thread's share of the weight that is expected, until there is work again.
  void fetch(int64_t index, int64_t threads, unsigned state) {
    const int64_t panels = panels_.load(std::memory_order_relaxed), bytes = panel_bytes_.load(std::memory_order_relaxed);
    const char* from = weight_.load(std::memory_order_relaxed) + panels * index / threads * bytes;
    const int64_t count = std::min(FETCHED, (panels * (index + 1) / threads - panels * index / threads) * bytes);
    for (int64_t byte = 0; byte < count; byte += 64) {
      if (byte % 1024 == 0 && state_.load(std::memory_order_relaxed) - state > 1) return;
      __builtin_prefetch(from + byte, 0, 2);
    }
  }

  std::mutex busy_;
  int64_t hands_ = 0;
  std::atomic<unsigned> state_ = 0, inside_ = 0;
  // Of the work at hand; written while state_ is even and nobody is inside.
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* work_ = nullptr;
  int64_t grain_ = 1, threads_ = 0;
  std::unique_ptr<Share[]> shares_;
  std::atomic<const char*> weight_ = nullptr;
  std::atomic<int64_t> panels_ = 0, panel_bytes_ = 0;
};

// Never taken down: its threads would have to be waited for at the process's end. A forked child, which has none of the
// threads, gets a new one.
std::atomic<Team*> the_team = nullptr;

Team& team() {
  static const bool is_watching = [] {
    the_team = new Team;
    pthread_atfork(nullptr, nullptr, [] { the_team = new Team; });
    return true;
  }();
  (void)is_watching;
  return *the_team;
}

}  // namespace

void share(int64_t begin, int64_t end, int64_t grain, void (*run)(const void*, int64_t, int64_t), const void* work) {
  if (begin >= end) return;
  const int64_t pieces = std::max<int64_t>(1, (end - begin) / grain);
  const int64_t threads = is_at_work || pieces == 1 ? 1 : std::min<int64_t>(torch::stable::get_num_threads(), pieces);
  if (threads == 1 || !team().run(begin, end, grain, threads, run, work)) run(work, begin, end);
}

void expect_next_of(const void* weight, int64_t panels, int64_t panel_bytes) {
  struct Weight {
    const void* data = nullptr;
    int64_t panels = 0, panel_bytes = 0;
  };
  // One entry for each weight there ever was: to fetch what is gone does no harm.
  static thread_local std::unordered_map<const void*, Weight> next;
  static thread_local const void* last = nullptr;
  next[last] = {weight, panels, panel_bytes};
  last = weight;
  const Weight& expected = next[weight];
  team().expect(expected.data, expected.panels, expected.panel_bytes);
}

}  // namespace lightvllm
