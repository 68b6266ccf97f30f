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

#include <type_traits>

#include "launch.h"
#include "matrix_unit.h"

namespace lightvllm::cuda {
namespace {

constexpr int WARPS = 8;             // that multiply; one more copies
constexpr int CHUNK = 32;            // inputs that a warp multiplies at a time: 16 bytes of a row for each of four lanes
[[maybe_unused]] constexpr int CHUNK_BYTES = 2 * CHUNK;
constexpr int STAGE_INPUTS = 1024;   // of a tile's rows that are copied at a time
constexpr int OF_WARP = STAGE_INPUTS / CHUNK / WARPS;  // chunks of a stage
constexpr int TILE = 16;             // rows of the weight, as the matrix units take them
constexpr int MOST_STAGES = 16;
constexpr int PADDING = 64;          // bytes behind a row in shared memory, so that eight lanes read from all banks
constexpr int BARRIER_BYTES = 2 * 8 * MOST_STAGES;
constexpr int SHARED_BYTES = 190 << 10;    // the more copies are under way the better; less lets the next kernel in earlier
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

// One lane's part of x in shared memory, which no other lane reads: of row lane / 4, 16 bytes of each of its warp's chunks,
// which are every eighth. IS_WHOLE: the inputs fill whole stages.
template <typename T, bool IS_WHOLE>
struct Columns {
  const uint8_t* from;  // the lane's bytes of its warp's first chunk
  uint8_t* x;           // where they go
  uint32_t address;     // the same
  int bytes;            // of a row, from the warp's first chunk on
  int thread;
  bool is_row;

  template <typename Body>
  __device__ void for_each(Body body) const {
    for (int begin = 0; begin < bytes; begin += STAGE_INPUTS * sizeof(T))
#pragma unroll
      for (int i = 0; i < OF_WARP; i++) {
        const int at = begin + i * WARPS * CHUNK_BYTES;
        if (IS_WHOLE || at < bytes) body(at);
      }
  }

  __device__ void load() const {
    if (is_row)
      for_each([&](int at) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address + at), "l"(from + at) : "memory");
      });
    asm volatile("cp.async.wait_all;" ::: "memory");
  }

  // Times the norm's weights, which lie in shared memory. What the row is to be divided by waits for the end: no product
  // has to wait for it. The squares of a row are summed on the diagonal of the product of x with itself.
  __device__ void scale(const uint8_t* weights, float (*squares)[WARPS]) const {
    const int lane = thread % 32, group = lane / 4;
    weights += lane % 4 * 16 + thread / 32 * CHUNK_BYTES;
    float sums[4] = {}, others[4] = {};
    for_each([&](int at) {
      uint4 v = {};
      if (is_row) v = *reinterpret_cast<const uint4*>(x + at);
      const uint4 w = *reinterpret_cast<const uint4*>(weights + at);
      multiply(sums, T(), v.x, 0, v.y, 0, v.x, v.y);
      multiply(others, T(), v.z, 0, v.w, 0, v.z, v.w);
      v = {times(T(), v.x, w.x), times(T(), v.y, w.y), times(T(), v.z, w.z), times(T(), v.w, w.w)};
      if (is_row) *reinterpret_cast<uint4*>(x + at) = v;
    });
    if (lane % 4 == group / 2) squares[group][thread / 32] = group % 2 ? sums[1] + others[1] : sums[0] + others[0];
  }
};

// The norm's weights into shared memory. In float16, where large rows of x times them may be too large, by a power of two
// that leaves none above 1; returns what makes up for it.
template <typename T>
__device__ float load_norm(const FewRows& p, uint8_t* to, float (*largest)[WARPS]) {
  float most = 0.0f, factor = 1.0f;
#pragma unroll 1
  for (int i = threadIdx.x; i < p.inputs / 8; i += 32 * WARPS) {
    const uint4 vector = static_cast<const uint4*>(p.norm_weight)[i];
    reinterpret_cast<uint4*>(to)[i] = vector;
    for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(static_cast<float>(reinterpret_cast<const T*>(&vector)[j])));
  }
  if (std::is_same_v<T, __half>) {
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    if (threadIdx.x % 32 == 0) largest[0][threadIdx.x / 32] = most;
    sync_multipliers();
    for (int i = 0; i < WARPS; i++) most = fmaxf(most, largest[0][i]);
    while (factor < most) factor *= 2.0f;
    for (int i = threadIdx.x; i < p.inputs; i += 32 * WARPS) {
      T& weight = reinterpret_cast<T*>(to)[i];
      weight = narrow<T>(static_cast<float>(static_cast<const T*>(p.norm_weight)[i]) / factor);
    }
  }
  sync_multipliers();
  return factor;
}

// The sums of one stage: a warp takes every eighth of its chunks, where there are so many more. x is on the left of the matrix units' products, the
// weights' rows are their columns, eight at a time: [which eight][which of two chains that do not wait for each other].
template <typename T, bool IS_WHOLE, bool HAS_UPPER>
__device__ void multiply_stage(float (&sums)[2][2][4], const uint8_t* weights, const uint8_t* x, int chunks, bool is_row) {
  const uint4 zero = {};
  uint4 columns[OF_WARP], rows[2][OF_WARP];
#pragma unroll
  for (int i = 0; i < OF_WARP; i++) {
    const bool is_there = IS_WHOLE || i * WARPS < chunks;
    columns[i] = is_row && is_there ? *reinterpret_cast<const uint4*>(x + i * WARPS * CHUNK_BYTES) : zero;
#pragma unroll
    for (int half = 0; half < 1 + HAS_UPPER; half++) {
      const uint8_t* at = weights + half * 8 * pitch(STAGE_INPUTS) + i * WARPS * CHUNK_BYTES;
      rows[half][i] = is_there ? *reinterpret_cast<const uint4*>(at) : zero;
    }
  }
#pragma unroll
  for (int i = 0; i < OF_WARP; i++)
#pragma unroll
    for (int half = 0; half < 1 + HAS_UPPER; half++) {
      const uint4 &c = columns[i], &r = rows[half][i];
      multiply(sums[half][0], T(), c.x, 0, c.y, 0, r.x, r.y);
      multiply(sums[half][1], T(), c.z, 0, c.w, 0, r.z, r.w);
    }
}

// The one sum of a group of tiles that a thread finishes: a group has no more than there are threads. They take turns.
template <typename T>
struct Finisher {
  const Share& share;
  const int first_thread;  // the thread itself, in the first group
  const int units, shift;  // of a group
  int row, in_group;       // of the thread
  int64_t at;              // in y; -1 where there is nothing to finish
  float scale = 1.0f;
  T bias = narrow<T>(0.0f), partner_bias = bias, residual = bias;

  __device__ explicit Finisher(const Share& share, int thread)
      : share(share), first_thread(thread), units(group_tiles(share.p.rows) * share.tile_units), shift(__ffs(units) - 1) {}

  __device__ void find(int group) {
    const int thread = (first_thread - group * units * share.p.rows) & (32 * WARPS - 1);
    row = thread >> shift, in_group = thread & (units - 1);
    const int unit = share.first + group * units + in_group;
    at = row < share.p.rows && unit < share.last ? static_cast<int64_t>(row) * share.plan.units + unit : -1;
    if (at >= 0 && share.p.bias) {
      bias = static_cast<const T*>(share.p.bias)[unit];
      if (share.p.is_gated) partner_bias = static_cast<const T*>(share.p.bias)[unit + share.plan.units];
    }
  }

  __device__ void load() {
    if (at >= 0 && share.p.residual) residual = static_cast<const T*>(share.p.residual)[at];
  }

  // What each sum of a row is divided by, where x was not normed before.
  __device__ float root(const float (*squares)[WARPS]) const {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += squares[row][warp];
    return scale * rsqrtf(sum / share.p.inputs + share.p.eps);
  }

  // partial: [WARPS, rows, TILE of each tile of the group]
  __device__ void finish(const float* partial, const float (*squares)[WARPS]) const {
    if (at < 0) return;
    const int pitch = group_tiles(share.p.rows) * TILE, shift_of_tile = share.p.is_gated ? 3 : 4;
    const int tile = in_group >> shift_of_tile, in_tile = in_group & (share.tile_units - 1);
    partial += row * pitch + tile * TILE + in_tile;
    float sum = 0.0f, partner = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      sum += partial[warp * share.p.rows * pitch];
      if (share.p.is_gated) partner += partial[warp * share.p.rows * pitch + TILE / 2];
    }
    const float factor = share.p.norm_weight ? root(squares) : 1.0f;
    sum = factor * sum + static_cast<float>(bias);
    if (share.p.is_gated) sum = silu(sum) * (factor * partner + static_cast<float>(partner_bias));
    static_cast<T*>(share.p.y)[at] = narrow<T>(sum + static_cast<float>(residual));
  }
};

// x: the lane's bytes of its warp's first chunk; partial: twice what `Finisher::finish` reads
template <typename T, bool IS_WHOLE, bool HAS_UPPER>
__device__ void multiply_share(const Share& share, const uint8_t* ring, const uint8_t* x, float* partial,
                               const float (*squares)[WARPS], uint32_t full, uint32_t empty, Finisher<T>& finisher,
                               int thread) {
  const FewRows& p = share.p;
  const Plan& plan = share.plan;
  const int warp = thread / 32, lane = thread % 32, group = lane / 4, quarter = lane % 4;
  const int tiles = group_tiles(p.rows), partial_size = WARPS * p.rows * tiles * TILE;
  const bool is_row = group < p.rows;
  float* to = partial + (warp * p.rows + group) * tiles * TILE + 2 * quarter;
  ring += group * pitch(STAGE_INPUTS) + quarter * 16 + warp * CHUNK_BYTES;
  Turn turn;
  for (int tile = 0; tile < share.tiles; tile++) {
    float sums[2][2][4] = {};
    for (int begin = 0; begin < p.inputs; begin += STAGE_INPUTS) {
      wait(full + 8 * turn.stage, turn.phase);
      multiply_stage<T, IS_WHOLE, HAS_UPPER>(sums, ring + turn.stage * plan.stage_bytes, x + begin * sizeof(T),
                                             (p.inputs - begin) / CHUNK - warp, is_row);
      __syncwarp();
      if (lane == 0) arrive(empty + 8 * turn.stage);
      turn.next(plan);
    }
    const int in_group = tile & (tiles - 1), parity = tile / tiles & 1;
#pragma unroll
    for (int half = 0; half < 1 + HAS_UPPER; half++)  // which sums a lane has: PTX ISA, mma.m16n8k16
      if (is_row)
        *reinterpret_cast<float2*>(to + parity * partial_size + in_group * TILE + 8 * half) = {
            sums[half][0][0] + sums[half][1][0], sums[half][0][1] + sums[half][1][1]};
    const bool is_last = tile + 1 == share.tiles;
    if (in_group + 1 < tiles && !is_last) continue;
    sync_multipliers();
    finisher.finish(partial + parity * partial_size, squares);
    if (is_last) break;
    finisher.find(tile / tiles + 1);
    finisher.load();
  }
}
#endif

// For GPUs since Hopper, bfloat16 and float16, and inputs in multiples of 32; IS_WHOLE: of a stage's. HAS_UPPER: a block has
// more than 8 rows of the weight. IS_RESIDENT: x has room in shared memory.
template <typename T, bool IS_WHOLE, bool HAS_UPPER, bool IS_RESIDENT>
__global__ void __launch_bounds__(32 * (WARPS + 1), 2) streamed_kernel(const __grid_constant__ FewRows p,
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
  const int thread = thread_of_block(), lane = thread % 32, first_bytes = thread / 32 * CHUNK_BYTES + lane % 4 * 16;
  if (thread >= 32 * WARPS) return copy_weights<T>(share, shared_address(ring), full, empty);
  uint8_t* mine = x + lane / 4 * plan.x_pitch + first_bytes;
  const uint8_t* from = reinterpret_cast<const uint8_t*>(static_cast<const T*>(p.x) + lane / 4 * p.x_stride) + first_bytes;
  asm volatile("" : "+l"(from));  // computed now, while there is time
  const int bytes = p.inputs * int(sizeof(T)) - thread / 32 * CHUNK_BYTES;
  const Columns<T, IS_WHOLE> columns{from, mine, shared_address(mine), bytes, thread, lane / 4 < p.rows};
  Finisher<T> finisher(share, thread);
  finisher.find(0);
  if (p.norm_weight) finisher.scale = load_norm<T>(p, norm_weight, squares);
  wait_for_previous();
  finisher.load();
  if (IS_RESIDENT) columns.load();
  if (p.norm_weight) columns.scale(norm_weight, squares);
  multiply_share<T, IS_WHOLE, HAS_UPPER>(share, ring, IS_RESIDENT ? mine : from, partial, squares, full, empty, finisher,
                                         thread);
#endif
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
  plan.x_pitch = p.rows * pitch(p.inputs) <= X_BYTES ? pitch(p.inputs) : 0;
  const bool has_upper = p.is_gated || share > 8 || p.inputs % STAGE_INPUTS || !plan.x_pitch;
  plan.tile_rows = has_upper ? TILE : TILE / 2;
  plan.stage_bytes = plan.tile_rows * pitch(STAGE_INPUTS);
  const int others = BARRIER_BYTES + (p.rows + (p.norm_weight != nullptr)) * plan.x_pitch + 2 * WARPS * group_tiles(p.rows) * TILE * p.rows * int(sizeof(float));
  const int room = max((SHARED_BYTES - others) / plan.stage_bytes, FEWEST_STAGES);
  plan.stages = min(min(room, MOST_STAGES), ceil_div(share, tile_units) * ceil_div(p.inputs, STAGE_INPUTS));
  const int bytes = others + plan.stages * plan.stage_bytes;
  const auto kernel = !plan.x_pitch                ? streamed_kernel<T, false, true, false>
                      : p.inputs % STAGE_INPUTS ? streamed_kernel<T, false, true, true>
                      : plan.tile_rows > 8      ? streamed_kernel<T, true, true, true>
                                                : streamed_kernel<T, true, false, true>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return launch(kernel, dim3(blocks), dim3(32 * (WARPS + 1)), bytes, stream, p, plan);
}

}  // namespace

cudaError_t few_rows_linear(const FewRows& product, Number number, cudaStream_t stream) {
  Plan plan{};
  plan.units = product.is_gated ? product.outputs / 2 : product.outputs;
  if (product.rows == 0 || plan.units == 0) return cudaSuccess;
  if (number == Number::FLOAT || !can_stream(product)) return few_rows_plain(product, number, stream);
  if (number == Number::HALF) return launch_streamed<__half>(product, plan, stream);
  return launch_streamed<__nv_bfloat16>(product, plan, stream);
}

}  // namespace lightvllm::cuda
