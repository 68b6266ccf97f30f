// What every file of bindings needs: from PyTorch's tensors to the launchers' pointers, types and stream.
//
// Built on LibTorch's stable ABI, so one build serves every PyTorch from 2.11 on.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "kernels.h"

// PyTorch's headers show it to builds with the whole of CUDA's only.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace lightvllm::cuda {

using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

// The stream that the tensor's device works on now.
inline cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline Type type_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::FLOAT;
    case ScalarType::Half: return Type::HALF;
    case ScalarType::BFloat16: return Type::BFLOAT16;
    case ScalarType::Char: return Type::INT8;
    default: STD_TORCH_CHECK(false, "lightvllm_cuda: expected float32, float16, bfloat16 or int8");
  }
}

inline void check(cudaError_t error, const char* op) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

}  // namespace lightvllm::cuda
