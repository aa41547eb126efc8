// SPDX-License-Identifier: Apache-2.0
// What TensorRT's registry looks for in a plugin library; nothing else is exported.
#include <iterator>

#include "tensorrt/adapter.h"

namespace orin {
namespace {

Creator embedding(embedding_op), int4_gemm(int4_gemm_op), linear(linear_op), attention(attention_op),
    gated_delta(gated_delta_op);
nvinfer1::IPluginCreatorInterface* const creators[] = {&embedding, &int4_gemm, &linear, &attention, &gated_delta};

}  // namespace
}  // namespace orin

ORIN_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = int32_t(std::size(orin::creators));
  return orin::creators;
}

ORIN_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { orin::logger_finder = finder; }
