// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding/launch.h"

#include <algorithm>

#include "common/status.h"
#include "kernels/embedding/params.h"

namespace orin {
namespace {

const Kernel wide("embedding", "embedding_float16");
const Kernel int8("embedding", "embedding_int8");
const Kernel int4("embedding", "embedding_int4");
const Kernel int4_kernel("embedding", "embedding_int4_kernel");

const Kernel* kernel_of(int bits, int kernel_layout) {
  if (bits == 4) return kernel_layout ? &int4_kernel : &int4;
  if (kernel_layout) return nullptr;
  return bits == 16 ? &wide : bits == 8 ? &int8 : nullptr;
}

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(embedding, ORIN_EMBEDDING_FIELDS)

ORIN_API int orin_embedding(const orin::Embedding* a, orin::Stream stream) {
  using namespace orin;
  if (a->hidden % 8) return bad_argument("embedding: hidden: expected a multiple of 8, found %d", a->hidden);
  if (a->bits != 16 && !a->scale) return bad_argument("embedding: scale: expected one for a table of %d bits", a->bits);
  const Kernel* kernel = kernel_of(a->bits, a->kernel_layout);
  if (!kernel) {
    return bad_argument("embedding: expected bits 16, 8 or 4, and a kernel layout for 4 bits only, found %d and %d",
                        a->bits, a->kernel_layout);
  }
  if (a->tokens == 0) return kOk;
  const EmbeddingParams params{
      static_cast<const int*>(a->ids), a->table, a->scale, a->y, a->vocab, a->hidden, a->group_size};
  const unsigned threads = std::min(256, (a->hidden / 8 + 31) / 32 * 32);
  return kernel->launch({unsigned(a->tokens)}, {threads}, 0, stream, params);
}
