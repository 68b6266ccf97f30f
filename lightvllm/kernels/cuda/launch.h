// How kernels are launched: on a stream, and free to begin while the kernel before them ends.
//
// Since Hopper a kernel may start before the one ahead of it in its stream has finished (programmatic dependent launch,
// CUDA C++ Programming Guide): its launch and what it reads of memory that nobody writes, such as weights, then cost no
// time of their own. Every kernel here calls `wait_for_previous` in every thread before it touches anything else, and
// `let_next_begin` where it has no more need of a whole multiprocessor, or not at all.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace lightvllm::cuda {

#ifdef __CUDACC__
// Returns when all kernels before this one have finished and their writes can be seen.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start once every block has called this or ended.
__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline bool can_begin_early() {
  static const bool can = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major >= 9;
  }();
  return can;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = can_begin_early() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}
#endif

}  // namespace lightvllm::cuda
