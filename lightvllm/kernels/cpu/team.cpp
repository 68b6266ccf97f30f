// A team of threads that lives as long as the process. Test: tests/kernels/test_team.py.
//
// A step of a model is some hundred ops of a few microseconds to milliseconds, on a machine where other programs run, too.
// So work is taken in stretches, by whoever has time: a thread that the system does not run just then holds nothing up, and
// the caller alone could do it all. (OpenMP's threads must all arrive at the end of each op. With one other busy process
// on two cores, that made a step thirty times as long.) Between ops the threads spin for a moment, then they sleep.
#include "team.h"

#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lightvllm {
namespace {

constexpr int SPINS = 2000;          // some 50 microseconds: longer than from op to op, shorter than from step to step
constexpr int64_t STRETCHES = 8;     // of a thread: so much do the slow leave to the fast
thread_local bool is_at_work = false;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

class Team {
 public:
  // False if the team is busy with another caller's work.
  bool run(int64_t begin, int64_t end, int64_t stretch, int64_t threads, void (*f)(const void*, int64_t, int64_t),
           const void* what) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    for (; hands_ < threads - 1; hands_++) std::thread([this, index = hands_] { help(index); }).detach();
    call_ = f, work_ = what, end_ = end, stretch_ = stretch, wanted_ = threads - 1;
    next_.store(begin, std::memory_order_relaxed);
    state_.fetch_add(1);  // odd: there is work
    state_.notify_all();
    take_all();
    state_.fetch_add(1);  // even: who comes now is too late, and goes; who is inside is waited for
    for (int spins = 0; inside_.load() != 0; spins++) spins < SPINS ? pause() : std::this_thread::yield();
    return true;
  }

 private:
  void take_all() {
    is_at_work = true;
    for (int64_t first = next_.fetch_add(stretch_); first < end_; first = next_.fetch_add(stretch_))
      call_(work_, first, std::min(first + stretch_, end_));
    is_at_work = false;
  }

  void help(int64_t index) {
    for (int done = 0, spins = 0;;) {
      const int state = state_.load();
      if (state % 2 != 0 && state != done) {
        inside_.fetch_add(1);
        if (state_.load() == state && index < wanted_) take_all();
        inside_.fetch_sub(1);
        done = state, spins = 0;
      } else if (++spins < SPINS) {
        pause();
      } else {
        state_.wait(state);
        spins = 0;
      }
    }
  }

  std::mutex busy_;
  int64_t hands_ = 0;
  std::atomic<int> state_ = 0, inside_ = 0;
  // Of the work at hand; written while state_ is even and nobody is inside.
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* work_ = nullptr;
  int64_t end_ = 0, stretch_ = 1, wanted_ = 0;
  alignas(64) std::atomic<int64_t> next_ = 0;
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
  const int64_t pieces = (end - begin + grain - 1) / grain;
  const int64_t threads = is_at_work || pieces == 1 ? 1 : std::min<int64_t>(torch::stable::get_num_threads(), pieces);
  const int64_t stretch = std::max(grain, (end - begin) / (threads * STRETCHES));
  if (threads == 1 || !team().run(begin, end, stretch, threads, run, work)) run(work, begin, end);
}

}  // namespace lightvllm
