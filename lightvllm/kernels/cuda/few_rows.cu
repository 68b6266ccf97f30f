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
constexpr int CHUNK_BYTES = 2 * CHUNK;
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

__device__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// How many tiles' sums are put together at a time: no more sums than threads.
__host__ __device__ constexpr int group_tiles(int rows) { return rows > 4 ? 2 : 4; }

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

  // What a row of a tile belongs to; where gated the upper rows are the partners of the lower.
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

// One lane's part of x in shared memory, which no other lane reads: of row lane / 4, 16 bytes of each of its warp's chunks.
template <typename T>
struct Columns {
  const FewRows& p;
  uint8_t* x;  // the lane's bytes of chunk 0
  bool is_row;

  template <typename Body>
  __device__ void for_each(Body body) const {
    const int last = is_row ? p.inputs * int(sizeof(T)) : 0;
#pragma unroll 4
    for (int at = threadIdx.x / 32 * CHUNK_BYTES; at < last; at += WARPS * CHUNK_BYTES) body(at);
  }

  __device__ void load() const {
    const int lane = threadIdx.x % 32;
    const uint8_t* from = reinterpret_cast<const uint8_t*>(static_cast<const T*>(p.x) + lane / 4 * p.x_stride) + lane % 4 * 16;
    for_each([&](int at) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(x + at)), "l"(from + at) : "memory");
    });
    asm volatile("cp.async.wait_all;" ::: "memory");
  }

  // weights: the norm's, in shared memory
  __device__ void norm(const uint8_t* weights, float (*squares)[WARPS]) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    weights += lane % 4 * 16;
    float sum = 0.0f;
    for_each([&](int at) {
      const uint4 vector = *reinterpret_cast<const uint4*>(x + at);
      const T* values = reinterpret_cast<const T*>(&vector);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += static_cast<float>(values[i]) * static_cast<float>(values[i]);
    });
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    squares[lane / 4][warp] = sum;
    sync_multipliers();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += squares[lane / 4][i];
    const float scale = rsqrtf(sum / p.inputs + p.eps);
    for_each([&](int at) {
      uint4 vector = *reinterpret_cast<const uint4*>(x + at);
      const uint4 factor = *reinterpret_cast<const uint4*>(weights + at);
      const T* factors = reinterpret_cast<const T*>(&factor);
      T* values = reinterpret_cast<T*>(&vector);
#pragma unroll
      for (int i = 0; i < 8; i++)
        values[i] = narrow<T>(static_cast<float>(values[i]) * scale * static_cast<float>(factors[i]));
      *reinterpret_cast<uint4*>(x + at) = vector;
    });
  }
};

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

// The one sum of a group of tiles that a thread finishes: a group has no more than there are threads.
template <typename T>
struct Finisher {
  const Share& share;
  int row, in_group, from;  // the thread's row and unit, and where in `partial` they begin
  int64_t at;               // in y; -1 where there is nothing to finish
  float bias = 0.0f, partner_bias = 0.0f, residual = 0.0f;

  __device__ explicit Finisher(const Share& share) : share(share) {
    const int units = group_tiles(share.p.rows) * share.tile_units;
    row = threadIdx.x / units, in_group = threadIdx.x % units;
    from = (in_group / share.tile_units * TILE + in_group % share.tile_units) * share.p.rows + row;
  }

  __device__ void find(int tile) {
    const int unit = share.first + tile * share.tile_units + in_group;
    at = row < share.p.rows && unit < share.last ? static_cast<int64_t>(row) * share.plan.units + unit : -1;
    if (at >= 0 && share.p.bias) {
      bias = static_cast<const T*>(share.p.bias)[unit];
      if (share.p.is_gated) partner_bias = static_cast<const T*>(share.p.bias)[unit + share.plan.units];
    }
  }

  __device__ void load() {
    if (at >= 0 && share.p.residual) residual = static_cast<const T*>(share.p.residual)[at];
  }

  // partial: [WARPS, tiles of a group, TILE, rows]
  __device__ void finish(const float* partial) const {
    if (at < 0) return;
    const int rows = share.p.rows, pitch = group_tiles(rows) * TILE * rows;
    partial += from;
    float sum = bias, partner = partner_bias;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += partial[warp * pitch];
    if (share.p.is_gated) {
      partial += share.tile_units * rows;
#pragma unroll
      for (int warp = 0; warp < WARPS; warp++) partner += partial[warp * pitch];
      sum = silu(sum) * partner;
    }
    static_cast<T*>(share.p.y)[at] = narrow<T>(sum + residual);
  }
};

// x: the lane's bytes of chunk 0; partial: twice what `Finisher::finish` reads
template <typename T>
__device__ void multiply_share(const Share& share, const uint8_t* ring, const uint8_t* x, float* partial, uint32_t full,
                               uint32_t empty, Finisher<T>& finisher) {
  const FewRows& p = share.p;
  const Plan& plan = share.plan;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
  const int tiles = group_tiles(p.rows), partial_size = WARPS * tiles * TILE * p.rows;
  const bool is_row = group < p.rows, has_upper = plan.tile_rows > 8;
  float* mine = partial + (warp * tiles * TILE + group) * p.rows + 2 * quarter;
  ring += group * pitch(STAGE_INPUTS) + quarter * 16;
  Turn turn;
  for (int tile = 0, in_group = 0, parity = 0; tile < share.tiles; tile++) {
    float sums[4][4] = {};
    for (int begin = 0; begin < p.inputs; begin += STAGE_INPUTS) {
      wait(full + 8 * turn.stage, turn.phase);
      multiply_stage<T>(sums, ring + turn.stage * plan.stage_bytes, x + begin * sizeof(T),
                        min(STAGE_INPUTS, p.inputs - begin) / CHUNK, is_row, has_upper);
      __syncwarp();
      if (lane == 0) arrive(empty + 8 * turn.stage);
      turn.next(plan);
    }
    float* to = mine + parity * partial_size + in_group * TILE * p.rows;
#pragma unroll
    for (int i = 0; i < 4; i++)  // which of the tile's rows and columns a lane's sums are: PTX ISA, mma.m16n8k16
      if (2 * quarter + i % 2 < p.rows)
        to[i / 2 * 8 * p.rows + i % 2] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    if (++in_group < tiles && tile + 1 < share.tiles) continue;
    sync_multipliers();
    finisher.finish(partial + parity * partial_size);
    finisher.find(tile + 1);
    finisher.load();
    in_group = 0, parity ^= 1;
  }
}
#endif

// For GPUs since Hopper, bfloat16 and float16, and inputs in multiples of 32.
template <typename T>
__global__ void __launch_bounds__(32 * (WARPS + 1), 3) streamed_kernel(const __grid_constant__ FewRows p,
                                                                      const __grid_constant__ Plan plan) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float squares[MOST_ROWS][WARPS];
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
  const int lane = threadIdx.x % 32;
  const Columns<T> columns{p, x + lane / 4 * plan.x_pitch + lane % 4 * 16, lane / 4 < p.rows};
  Finisher<T> finisher(share);
  finisher.find(0);
  if (p.norm_weight) {
    for (int i = threadIdx.x; i < p.inputs / 8; i += 32 * WARPS)
      reinterpret_cast<uint4*>(norm_weight)[i] = static_cast<const uint4*>(p.norm_weight)[i];
    sync_multipliers();
  }
  wait_for_previous();
  finisher.load();
  if (plan.x_pitch) {
    columns.load();
    if (p.norm_weight) columns.norm(norm_weight, squares);
    multiply_share<T>(share, ring, columns.x, partial, full, empty, finisher);
  } else {
    const uint8_t* rows = reinterpret_cast<const uint8_t*>(static_cast<const T*>(p.x) + lane / 4 * p.x_stride);
    multiply_share<T>(share, ring, rows + lane % 4 * 16, partial, full, empty, finisher);
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
  const auto bias_of = [&](int output) {
    return p.bias ? static_cast<float>(static_cast<const T*>(p.bias)[output]) : 0.0f;
  };
#pragma unroll
  for (int row = 0; row < MOST_ROWS; row++) {
    if (row >= p.rows) break;
    const float sum = warp_sum(sums[0][row]) + bias_of(unit);
    const float partner = p.is_gated ? warp_sum(sums[1][row]) + bias_of(unit + plan.units) : 0.0f;
    const T* residual = static_cast<const T*>(p.residual);
    const float added = residual ? static_cast<float>(residual[static_cast<int64_t>(row) * plan.units + unit]) : 0.0f;
    const float result = (p.is_gated ? silu(sum) * partner : sum) + added;
    if (lane == 0) static_cast<T*>(p.y)[static_cast<int64_t>(row) * plan.units + unit] = narrow<T>(result);
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
  const int others = BARRIER_BYTES + (p.rows + (p.norm_weight != nullptr)) * plan.x_pitch + 2 * WARPS * group_tiles(p.rows) * TILE * p.rows * int(sizeof(float));
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
