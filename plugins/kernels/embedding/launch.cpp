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

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(embedding, ORIN_EMBEDDING_FIELDS)

ORIN_API int orin_embedding(const orin::Embedding* a, orin::Stream stream) {
  using namespace orin;
  if (a->hidden % 8) return bad_argument("embedding: hidden: expected a multiple of 8, found %d", a->hidden);
  if (a->bits != 16 && !a->scale) return bad_argument("embedding: scale: expected one for a table of %d bits", a->bits);
  if (a->tokens == 0) return kOk;
  const Kernel* kernel = a->bits == 16 ? &wide : a->bits == 8 ? &int8 : a->bits == 4 ? &int4 : nullptr;
  if (!kernel) return bad_argument("embedding: bits: expected 16, 8 or 4, found %d", a->bits);
  const EmbeddingParams params{static_cast<const int*>(a->ids), a->table,  a->scale,     a->y,
                               a->vocab,                        a->hidden, a->group_size};
  const unsigned threads = std::min(256, (a->hidden / 8 + 31) / 32 * 32);
  return kernel->launch({unsigned(a->tokens)}, {threads}, 0, stream, params);
}
