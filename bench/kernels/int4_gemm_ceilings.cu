// SPDX-License-Identifier: Apache-2.0
// What an INT4 GEMM cannot beat on this machine: a launch, reading the weights, and the rate of mma.sync.

extern "C" __global__ void empty(int*) {}

// Reads `vectors` of 16 bytes once, eight of a thread in flight.
extern "C" __global__ void __launch_bounds__(512) read_only(const uint4* from, int vectors, int* sink) {
  const int stride = gridDim.x * blockDim.x;
  unsigned mixed = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vectors; i += 8 * stride) {
    uint4 v[8] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (i + j * stride < vectors) v[j] = from[i + j * stride];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) mixed ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (mixed == 0x12345) *sink = 1;
}

// m16n8k16 from registers, 32 independent sums per warp.
extern "C" __global__ void __launch_bounds__(256, 1) mma_only(float* sink, int steps, unsigned seed) {
  float d[32][4] = {};
  unsigned a[4][4], b[8][2];
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = (seed * (threadIdx.x * 37 + i * 11 + 1) & 0x03ff03ff) | 0x38003800;
  for (int i = 0; i < 16; ++i) b[i / 2][i % 2] = (seed * (threadIdx.x * 31 + i * 13 + 1) & 0x83ff83ff) | 0x38003800;
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
          : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
          : "r"(a[i / 8][0]), "r"(a[i / 8][1]), "r"(a[i / 8][2]), "r"(a[i / 8][3]), "r"(b[i % 8][0]), "r"(b[i % 8][1]));
    }
  }
  float sum = 0.f;
  for (int i = 0; i < 32; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  if (sum == 1.2345f) *sink = sum;
}
