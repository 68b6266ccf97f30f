// Products for a few rows, of which decoding one request, or eight, consists: as fast as the weights can be read.
//
// Reference twin: `few_rows_linear` in kernels/reference.py. Test: tests/kernels/gpu/test_few_rows.py.
//
// Reading a layer's weights takes a few microseconds, so what counts is that the memory never idles, not even while one
// kernel ends and the next begins. Each block owns an even share of the outputs and begins to copy their weights into
// shared memory at once, before it waits for the kernel that makes its x (see launch.h); and it lets the next kernel do
// the same as soon as its own copies are under way. How far they run ahead is bounded by shared memory alone.
//
// The matrix units multiply sixteen outputs by eight columns, one for each row of x. A row's result depends neither on
// the other rows nor on how many there are: the order of every sum follows from the number of inputs.
#include "few_rows.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"
#include "matrix_unit.h"

namespace lightvllm::cuda {
namespace {

constexpr int WARPS = 8;             // that multiply; one more copies
constexpr int CHUNK = 32;            // inputs that a warp multiplies at a time: 16 bytes of a row for each of four lanes
constexpr int STAGE_INPUTS = 1024;   // of a tile's rows that are copied at a time
constexpr int TILE = 16;             // rows of the weight, as the matrix units take them
constexpr int MOST_STAGES = 16;
constexpr int PADDING = 64;          // bytes behind a row in shared memory, so that eight lanes read from all banks
constexpr int BARRIER_BYTES = 2 * 8 * MOST_STAGES;
constexpr int SHARED_BYTES = 112 << 10;    // two blocks then share a multiprocessor: this kernel's and the next one's
constexpr int X_BYTES = 72 << 10;          // of x in shared memory; a longer one is read where it is
constexpr int FEWEST_STAGES = 3;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A row's bytes in shared memory: 64 more than a multiple of 128.
__host__ __device__ constexpr int pitch(int inputs) { return ceil_div(inputs * 2, 128) * 128 + PADDING; }

// How a launch divides the work and its shared memory.
struct Plan {
  int units;         // outputs, or where gated pairs of a gate and its partner; a tile has 16 of them, or 8
  int tile_rows;     // rows of the weight that a stage has room for
  int stages;
  int stage_bytes;
  int x_pitch;       // bytes from row to row of x in shared memory; 0 where it is read where it is
};

// What becomes of a finished sum; `sums` is the product's, and its partner's where gated.
template <typename T>
__device__ void finish(const FewRows& p, const Plan& plan, int row, int unit, float sum, float partner, float residual) {
  if (p.is_gated) sum = sum / (1.0f + __expf(-sum)) * partner;
  static_cast<T*>(p.y)[static_cast<int64_t>(row) * plan.units + unit] = narrow<T>(sum + residual);
}

template <typename T>
__device__ float bias_of(const FewRows& p, int output) {
  return p.bias ? static_cast<float>(static_cast<const T*>(p.bias)[output]) : 0.0f;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ void arrive_and_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ void wait(uint32_t barrier, int phase) {
  uint32_t is_done = 0;
  while (!is_done)
    asm volatile(
        "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
        : "=r"(is_done) : "r"(barrier), "r"(phase) : "memory");
}

__device__ void copy_row(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

__device__ void sync_multipliers() { asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory"); }

// The outputs of one block, and where a tile's rows of the weight are.
struct Share {
  const FewRows& p;
  const Plan& plan;
  int tile_units, first, last, tiles;

  __device__ Share(const FewRows& p, const Plan& plan) : p(p), plan(plan) {
    const unsigned units = plan.units;
    tile_units = p.is_gated ? TILE / 2 : TILE;
    first = units * blockIdx.x / gridDim.x;
    last = units * (blockIdx.x + 1) / gridDim.x;
    tiles = (last - first + tile_units - 1) / tile_units;
  }

  // Of a row of a tile; the upper half of gated ones are the partners of the lower.
  __device__ int unit(int tile, int row) const { return first + tile * tile_units + row % tile_units; }
  __device__ int output(int tile, int row) const { return unit(tile, row) + (row < tile_units ? 0 : plan.units); }
};

// Which stage is next in the ring, and whether it is an odd or an even time.
struct Turn {
  int stage = 0, phase = 0;

  __device__ void next(const Plan& plan) {
    if (++stage == plan.stages) stage = 0, phase ^= 1;
  }
};

// One warp copies the share's weights into the ring of stages, as far ahead as there is room.
template <typename T>
__device__ void copy_weights(const Share& share, uint32_t ring, uint32_t full, uint32_t empty) {
  const FewRows& p = share.p;
  const Plan& plan = share.plan;
  const int lane = threadIdx.x % 32;
  Turn turn;
  int i = 0;
  for (int tile = 0; tile < share.tiles; tile++) {
    const bool has_row = lane < TILE && share.unit(tile, lane) < share.last;
    const int rows = __popc(__ballot_sync(~0u, has_row));
    const T* row = static_cast<const T*>(p.weight) + (has_row ? share.output(tile, lane) * p.weight_stride : 0);
    for (int begin = 0; begin < p.inputs; begin += STAGE_INPUTS, i++) {
      const int bytes = min(STAGE_INPUTS, p.inputs - begin) * sizeof(T);
      const uint32_t filled = full + 8 * turn.stage;
      if (i >= plan.stages) wait(empty + 8 * turn.stage, turn.phase ^ 1);
      if (lane == 0) arrive_and_expect(filled, rows * bytes);
      __syncwarp();
      if (has_row) copy_row(ring + turn.stage * plan.stage_bytes + lane * pitch(STAGE_INPUTS), row + begin, bytes, filled);
      turn.next(plan);
    }
  }
}

// Copy rows of 16-byte vectors, all threads that multiply together.
__device__ void copy_vectors(const uint8_t* from, int64_t from_pitch, uint8_t* to, int to_pitch, int rows, int vectors) {
  for (int row = 0; row < rows; row++)
#pragma unroll 4
    for (int i = threadIdx.x; i < vectors; i += 32 * WARPS)
      reinterpret_cast<uint4*>(to + row * to_pitch)[i] = reinterpret_cast<const uint4*>(from + row * from_pitch)[i];
}

// A warp for each row of x: its norm into shared memory. The weights of the norm are there.
template <typename T>
__device__ void norm_row(const FewRows& p, const uint8_t* weights, uint8_t* to) {
  constexpr int MOST = 8;  // vectors of a thread that are under way at a time
  const int row = threadIdx.x / 32, lane = threadIdx.x % 32, vectors = p.inputs / 8;
  if (row >= p.rows) return;
  const uint4* from = reinterpret_cast<const uint4*>(static_cast<const T*>(p.x) + row * p.x_stride);
  float squares = 0.0f;
  for (int first = lane; first < vectors; first += 32 * MOST) {
    uint4 loaded[MOST];
#pragma unroll
    for (int i = 0; i < MOST; i++)
      if (first + 32 * i < vectors) loaded[i] = from[first + 32 * i];
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      if (first + 32 * i >= vectors) break;
      reinterpret_cast<uint4*>(to)[first + 32 * i] = loaded[i];
      const T* values = reinterpret_cast<const T*>(&loaded[i]);
#pragma unroll
      for (int j = 0; j < 8; j++) squares += static_cast<float>(values[j]) * static_cast<float>(values[j]);
    }
  }
  const float scale = rsqrtf(warp_sum(squares) / p.inputs + p.eps);
#pragma unroll 4
  for (int i = lane; i < vectors; i += 32) {
    uint4 vector = reinterpret_cast<const uint4*>(to)[i];
    const uint4 loaded = reinterpret_cast<const uint4*>(weights)[i];
    const T* factors = reinterpret_cast<const T*>(&loaded);
    T* values = reinterpret_cast<T*>(&vector);
#pragma unroll
    for (int j = 0; j < 8; j++)
      values[j] = narrow<T>(static_cast<float>(values[j]) * scale * static_cast<float>(factors[j]));
    reinterpret_cast<uint4*>(to)[i] = vector;
  }
}

// The sums of one stage: warp w takes its chunks w, w + 8 and so on, in four chains that do not wait for each other.
template <typename T>
__device__ void multiply_stage(float (&sums)[4][4], const uint8_t* weights, const uint8_t* x, int chunks, bool is_row,
                               bool has_upper) {
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < STAGE_INPUTS / CHUNK / WARPS; i++) {
    const int chunk = warp + i * WARPS;
    if (chunk >= chunks) break;
    const int at = chunk * CHUNK * sizeof(T);
    const uint4 zero = {}, low = *reinterpret_cast<const uint4*>(weights + at);
    const uint4 high = has_upper ? *reinterpret_cast<const uint4*>(weights + 8 * pitch(STAGE_INPUTS) + at) : zero;
    const uint4 columns = is_row ? *reinterpret_cast<const uint4*>(x + at) : zero;
    multiply(sums[2 * i % 4], T(), low.x, high.x, low.y, high.y, columns.x, columns.y);
    multiply(sums[(2 * i + 1) % 4], T(), low.z, high.z, low.w, high.w, columns.z, columns.w);
  }
}

// What is added to the sums of the tile that a warp finishes next, asked for before they are there.
template <typename T>
struct Finisher {
  static constexpr int MOST = TILE * MOST_ROWS / 32;
  float residuals[MOST];

  // Which sum of a tile a lane finishes; false where there is none.
  static __device__ bool find(const Share& share, int tile, int i, int& row, int& unit_in_tile) {
    const int at = threadIdx.x % 32 + 32 * i;
    row = share.p.is_gated ? at / (TILE / 2) : at / TILE, unit_in_tile = at % share.tile_units;
    return row < share.p.rows && share.unit(tile, unit_in_tile) < share.last;
  }

  __device__ void load(const Share& share, int tile) {
    int row, in_tile;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      residuals[i] = 0.0f;
      if (share.p.residual && find(share, tile, i, row, in_tile))
        residuals[i] = static_cast<const T*>(
            share.p.residual)[static_cast<int64_t>(row) * share.plan.units + share.unit(tile, in_tile)];
    }
  }

  // partial: [WARPS, TILE, rows]
  __device__ void finish_tile(const Share& share, int tile, const float* partial) const {
    int row, in_tile;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      if (!find(share, tile, i, row, in_tile)) continue;
      const int unit = share.unit(tile, in_tile);
      auto sum_of = [&](int tile_row, int output) {
        float sum = bias_of<T>(share.p, output);
        for (int warp = 0; warp < WARPS; warp++) sum += partial[(warp * TILE + tile_row) * share.p.rows + row];
        return sum;
      };
      const float sum = sum_of(in_tile, unit);
      const float partner =
          share.p.is_gated ? sum_of(in_tile + share.tile_units, unit + share.plan.units) : 0.0f;
      finish<T>(share.p, share.plan, row, unit, sum, partner, residuals[i]);
    }
  }
};

template <typename T>
__device__ void multiply_share(const Share& share, const uint8_t* ring, const uint8_t* x, int64_t x_pitch, float* partial,
                               uint32_t full, uint32_t empty, Finisher<T> finisher) {
  const FewRows& p = share.p;
  const Plan& plan = share.plan;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
  const bool is_row = group < p.rows, has_upper = plan.tile_rows > 8;
  x += group * x_pitch + quarter * 16;
  ring += group * pitch(STAGE_INPUTS) + quarter * 16;
  Turn turn;
  for (int tile = 0; tile < share.tiles; tile++) {
    float sums[4][4] = {};
    for (int begin = 0; begin < p.inputs; begin += STAGE_INPUTS) {
      wait(full + 8 * turn.stage, turn.phase);
      multiply_stage<T>(sums, ring + turn.stage * plan.stage_bytes, x + begin * sizeof(T),
                        min(STAGE_INPUTS, p.inputs - begin) / CHUNK, is_row, has_upper);
      __syncwarp();
      if (lane == 0) arrive(empty + 8 * turn.stage);
      turn.next(plan);
    }
    float* mine = partial + (tile % 2 * WARPS + warp) * TILE * p.rows;
#pragma unroll
    for (int j = 0; j < 4; j++) {  // which of the tile's rows and columns a lane's sums are: PTX ISA, mma.m16n8k16
      const int tile_row = group + j / 2 * 8, column = 2 * quarter + j % 2;
      if (column < p.rows) mine[tile_row * p.rows + column] = (sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j]);
    }
    sync_multipliers();
    if (warp == tile % WARPS) {
      finisher.finish_tile(share, tile, partial + tile % 2 * WARPS * TILE * p.rows);
      finisher.load(share, tile + WARPS);
    }
  }
}
#endif

// For GPUs since Hopper, bfloat16 and float16, and inputs in multiples of 32.
template <typename T>
__global__ void __launch_bounds__(32 * (WARPS + 1), 3) streamed_kernel(const __grid_constant__ FewRows p,
                                                                      const __grid_constant__ Plan plan) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  let_next_begin();
  const uint32_t full = shared_address(shared), empty = full + 8 * MOST_STAGES;
  uint8_t* ring = shared + BARRIER_BYTES;
  uint8_t* x = ring + plan.stages * plan.stage_bytes;
  uint8_t* norm_weight = x + p.rows * plan.x_pitch;
  float* partial = reinterpret_cast<float*>(norm_weight + (p.norm_weight ? plan.x_pitch : 0));
  const Share share(p, plan);
  if (threadIdx.x == 32 * WARPS) {
    for (int i = 0; i < plan.stages; i++) init_barrier(full + 8 * i, 1), init_barrier(empty + 8 * i, WARPS);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= 32 * WARPS) return copy_weights<T>(share, shared_address(ring), full, empty);
  if (p.norm_weight) {
    copy_vectors(static_cast<const uint8_t*>(p.norm_weight), 0, norm_weight, 0, 1, p.inputs / 8);
    sync_multipliers();
  }
  wait_for_previous();
  Finisher<T> finisher;
  finisher.load(share, threadIdx.x / 32);
  const uint8_t* rows = static_cast<const uint8_t*>(p.x);
  const int64_t rows_pitch = p.x_stride * sizeof(T);
  if (plan.x_pitch) {
    if (p.norm_weight)
      norm_row<T>(p, norm_weight, x + threadIdx.x / 32 * plan.x_pitch);
    else
      copy_vectors(rows, rows_pitch, x, plan.x_pitch, p.rows, p.inputs / 8);
    sync_multipliers();
    multiply_share<T>(share, ring, x, plan.x_pitch, partial, full, empty, finisher);
  } else {
    multiply_share<T>(share, ring, rows, rows_pitch, partial, full, empty, finisher);
  }
#endif
}

// For everything else: a warp for each output, one number at a time.
template <typename T>
__global__ void __launch_bounds__(32 * WARPS) plain_kernel(const FewRows p, const Plan plan) {
  wait_for_previous();
  __shared__ float squares[WARPS][MOST_ROWS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T *x = static_cast<const T*>(p.x), *norm_weight = static_cast<const T*>(p.norm_weight);
  float scales[MOST_ROWS];
  for (int row = 0; row < p.rows && norm_weight; row++) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.inputs; i += 32 * WARPS) {
      const float value = x[row * p.x_stride + i];
      sum += value * value;
    }
    sum = warp_sum(sum);
    if (lane == 0) squares[warp][row] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int row = 0; row < MOST_ROWS; row++) {
    float sum = 0.0f;
    for (int i = 0; i < WARPS && row < p.rows && norm_weight; i++) sum += squares[i][row];
    scales[row] = rsqrtf(sum / p.inputs + p.eps);
  }
  const int unit = blockIdx.x * WARPS + warp;
  if (unit >= plan.units) return;
  float sums[2][MOST_ROWS] = {};
  for (int half = 0; half < (p.is_gated ? 2 : 1); half++) {
    const T* weight = static_cast<const T*>(p.weight) + (unit + half * plan.units) * p.weight_stride;
#pragma unroll 4
    for (int i = lane; i < p.inputs; i += 32) {
      const float w = weight[i], n = norm_weight ? static_cast<float>(norm_weight[i]) : 1.0f;
#pragma unroll
      for (int row = 0; row < MOST_ROWS; row++) {
        if (row >= p.rows) break;
        float value = x[row * p.x_stride + i];
        if (norm_weight) value = static_cast<float>(narrow<T>(value * scales[row] * n));
        sums[half][row] += w * value;
      }
    }
  }
#pragma unroll
  for (int row = 0; row < MOST_ROWS; row++) {
    if (row >= p.rows) break;
    const float sum = warp_sum(sums[0][row]) + bias_of<T>(p, unit);
    const float partner = p.is_gated ? warp_sum(sums[1][row]) + bias_of<T>(p, unit + plan.units) : 0.0f;
    const T* residual = static_cast<const T*>(p.residual);
    const float added = residual ? static_cast<float>(residual[static_cast<int64_t>(row) * plan.units + unit]) : 0.0f;
    if (lane == 0) finish<T>(p, plan, row, unit, sum, partner, added);
  }
}

int multiprocessors() {
  static const int number = [] {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
  }();
  return number;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool can_stream(const FewRows& p) {
  return can_begin_early() && p.inputs % CHUNK == 0 && p.inputs > 0 && p.x_stride % 8 == 0 && p.weight_stride % 8 == 0 &&
         is_aligned(p.x) && is_aligned(p.weight) && is_aligned(p.norm_weight) &&
         (!p.norm_weight || p.rows * pitch(p.inputs) <= X_BYTES);
}

template <typename T>
cudaError_t launch_streamed(const FewRows& p, Plan plan, cudaStream_t stream) {
  const int blocks = min(multiprocessors(), plan.units), share = ceil_div(plan.units, blocks);
  const int tile_units = p.is_gated ? TILE / 2 : TILE;
  plan.tile_rows = p.is_gated ? TILE : min(TILE, ceil_div(share, 8) * 8);
  plan.stage_bytes = plan.tile_rows * pitch(STAGE_INPUTS);
  plan.x_pitch = p.rows * pitch(p.inputs) <= X_BYTES ? pitch(p.inputs) : 0;
  const int others = BARRIER_BYTES + (p.rows + (p.norm_weight != nullptr)) * plan.x_pitch + 2 * WARPS * TILE * p.rows * int(sizeof(float));
  const int room = max((SHARED_BYTES - others) / plan.stage_bytes, FEWEST_STAGES);
  plan.stages = min(min(room, MOST_STAGES), ceil_div(share, tile_units) * ceil_div(p.inputs, STAGE_INPUTS));
  const int bytes = others + plan.stages * plan.stage_bytes;
  const cudaError_t error =
      cudaFuncSetAttribute(streamed_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return launch(streamed_kernel<T>, dim3(blocks), dim3(32 * (WARPS + 1)), bytes, stream, p, plan);
}

template <typename T>
cudaError_t launch_plain(const FewRows& p, Plan plan, cudaStream_t stream) {
  return launch(plain_kernel<T>, dim3(ceil_div(plan.units, WARPS)), dim3(32 * WARPS), 0, stream, p, plan);
}

}  // namespace

cudaError_t few_rows_linear(const FewRows& product, Number number, cudaStream_t stream) {
  Plan plan{};
  plan.units = product.is_gated ? product.outputs / 2 : product.outputs;
  if (product.rows == 0 || plan.units == 0) return cudaSuccess;
  if (number == Number::FLOAT) return launch_plain<float>(product, plan, stream);
  const bool streams = can_stream(product);
  if (number == Number::HALF)
    return (streams ? launch_streamed<__half> : launch_plain<__half>)(product, plan, stream);
  return (streams ? launch_streamed<__nv_bfloat16> : launch_plain<__nv_bfloat16>)(product, plan, stream);
}

}  // namespace lightvllm::cuda
