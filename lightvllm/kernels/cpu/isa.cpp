// Which instruction set the kernels use: the best there is, unless told otherwise.
// Python's side: lightvllm/kernels/isa.py; test: tests/kernels/test_isa.py.
#include "common.h"

namespace lightvllm {
namespace {

// What is in use, and the best there is.
std::tuple<int64_t, int64_t> instruction_sets() { return {int64_t(isa()), int64_t(best_isa())}; }

void set_instruction_set(int64_t wanted) {
  STD_TORCH_CHECK(wanted >= 0 && wanted <= int64_t(best_isa()), "set_instruction_set: the processor does not have it");
  isa_in_use = Isa(wanted);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightvllm, m) {
  m.def("instruction_sets() -> (int, int)");
  m.def("set_instruction_set(int wanted) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&instruction_sets));
  m.impl("set_instruction_set", TORCH_BOX(&set_instruction_set));
}

}  // namespace lightvllm
