// The threads that share the work of an op.
#pragma once

#include <cstdint>
#include <type_traits>

namespace lightvllm {

// Calls run(work, first, last) for stretches of [begin, end) on up to torch's number of threads, the caller's among them, with
// at least `grain` for each; returns when all are done. `run` must not throw.
void share(int64_t begin, int64_t end, int64_t grain, void (*run)(const void*, int64_t, int64_t), const void* work);

// The same with f(first, last).
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  share(begin, end, grain, [](const void* work, int64_t first, int64_t last) { (*static_cast<const F*>(work))(first, last); }, &f);
}

// Says that the caller shares a weight next, panel by panel. The weight that came after it the last time is expected again:
// while the team waits for it, each thread fetches the beginning of its share.
void expect_next_of(const void* weight, int64_t panels, int64_t panel_bytes);

}  // namespace lightvllm
