// SPDX-License-Identifier: Apache-2.0
// Any Op as a TensorRT plugin: the only file that knows IPluginV3. It computes nothing; it translates.
//
// Compiled against the headers of 10.3, the result loads in TensorRT 10.3 to 11.x: the tables of virtual functions and
// the structs below are the same in all of them.
#pragma once

#include <NvInferRuntime.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "common/driver.h"
#include "tensorrt/op.h"

ORIN_API int orin_init();
ORIN_API const char* orin_error(int code);

namespace orin {

static_assert(sizeof(nvinfer1::Dims) == 72 && sizeof(nvinfer1::DimsExprs) == 72 &&
                  sizeof(nvinfer1::PluginTensorDesc) == 88 && sizeof(nvinfer1::DynamicPluginTensorDesc) == 304 &&
                  sizeof(nvinfer1::PluginField) == 24 && sizeof(nvinfer1::PluginFieldCollection) == 16,
              "these TensorRT headers lay out plugin structs in another way than TensorRT 10.3 to 11.x do");

constexpr const char* kNamespace = "orin";
constexpr const char* kVersion = "1";
constexpr int kAlignment = 256;
constexpr int kFailed = 1;
constexpr int kNameBytes = 96;

inline nvinfer1::ILoggerFinder* logger_finder = nullptr;

// One line to TensorRT's logger; errors and warnings to standard error where there is none yet.
__attribute__((format(printf, 4, 5))) inline void report(nvinfer1::ILogger::Severity severity, const char* op,
                                                         const char* node, const char* format, ...) {
  char text[768];
  const int start = std::snprintf(text, sizeof text, *node ? "%s %s: " : "%s%s: ", op, node);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + start, sizeof text - start, format, arguments);
  va_end(arguments);
  nvinfer1::ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
  if (logger) {
    logger->log(severity, text);
  } else if (severity <= nvinfer1::ILogger::Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", text);
  }
}

// The device code of the current CUDA context's device, loaded once.
inline int load_kernels() {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  return orin_init();
}

inline unsigned bit_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return kFloat32;
    case nvinfer1::DataType::kHALF:
      return kFloat16;
    case nvinfer1::DataType::kINT8:
      return kInt8;
    case nvinfer1::DataType::kINT32:
      return kInt32;
    default:
      return 0;
  }
}

// "float16, int8" and the like, written into `text`.
inline const char* names_of(unsigned types, char (&text)[64]) {
  std::snprintf(text, sizeof text, "another");
  size_t length = 0;
  for (const auto& [bit, name] :
       {std::pair{kFloat32, "float32"}, {kFloat16, "float16"}, {kInt8, "int8"}, {kInt32, "int32"}}) {
    if (types & bit) length += std::snprintf(text + length, sizeof text - length, length ? ", %s" : "%s", name);
  }
  return text;
}

inline nvinfer1::PluginFieldType field_type(Attribute::Kind kind) {
  switch (kind) {
    case Attribute::kInt:
      return nvinfer1::PluginFieldType::kINT32;
    case Attribute::kFloat:
      return nvinfer1::PluginFieldType::kFLOAT32;
    default:
      return nvinfer1::PluginFieldType::kCHAR;
  }
}

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Op& op, const char* node) : op_(op) { std::snprintf(node_, sizeof node_, "%s", node ? node : ""); }

  // Take every attribute from `given`; whether that was possible. What is missing, unknown or of a wrong type is told.
  bool read(const nvinfer1::PluginFieldCollection& given) {
    for (int i = 0; i < given.nbFields; ++i) {
      if (!attribute_of(given.fields[i].name)) {
        return fail("%s: expected no such attribute; was the graph made for another orinkit?", given.fields[i].name);
      }
    }
    for (int i = 0; i < op_.num_attributes; ++i) {
      if (!read(op_.attributes[i], given)) return false;
    }
    return true;
  }

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    auto* copy = new (std::nothrow) Plugin(op_, node_);
    if (!copy) return nullptr;
    std::memcpy(copy->attributes_, attributes_, sizeof attributes_);
    copy->num_inputs_ = num_inputs_;
    return copy;
  }

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuildV2
  int32_t getNbOutputs() const noexcept override { return 1 + op_.num_states(); }

  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t num_outputs, const nvinfer1::DataType* inputs,
                             int32_t num_inputs) const noexcept override {
    if (!counts_fit(num_inputs, num_outputs)) return kFailed;
    types[0] = op_.type(attributes_) == kFloat32 ? nvinfer1::DataType::kFLOAT : nvinfer1::DataType::kHALF;
    for (int i = 1; i < num_outputs; ++i) types[i] = inputs[op_.state(i)];
    return 0;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                          nvinfer1::IExprBuilder& expressions) noexcept override {
    if (!counts_fit(num_inputs, num_outputs)) return kFailed;
    for (int i = 0; i < op_.num_inputs; ++i) {
      if (!rank_fits(i, i < num_inputs ? inputs[i].nbDims : 0)) return kFailed;
    }
    const int picked = op_.rows_of[1];
    const int rows = picked < num_inputs && inputs[picked].nbDims > 0 ? picked : op_.rows_of[0];
    outputs[0].nbDims = 2;
    outputs[0].d[0] = inputs[rows].d[0];
    outputs[0].d[1] = expressions.constant(op_.columns(attributes_));
    for (int i = 1; i < num_outputs; ++i) outputs[i] = inputs[op_.state(i)];
    return 0;
  }

  bool supportsFormatCombination(int32_t at, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override {
    if (!counts_fit(num_inputs, num_outputs) || at < 0 || at >= num_inputs + num_outputs) return false;
    const nvinfer1::PluginTensorDesc& found = tensors[at].desc;
    if (at < num_inputs && op_.inputs[at].kind == Input::kOptional && found.dims.nbDims <= 0) return true;
    if (found.format != nvinfer1::TensorFormat::kLINEAR) return false;  // asked for every format there is
    if (at > num_inputs) return found.type == tensors[op_.state(at - num_inputs)].desc.type;
    const unsigned types = at < num_inputs ? op_.inputs[at].types : op_.type(attributes_);
    if (bit_of(found.type) & types) return true;
    char expected[64], given[64];
    report(nvinfer1::ILogger::Severity::kWARNING, op_.name, node_, "%s: expected the type %s, found %s",
           at < num_inputs ? op_.inputs[at].name : "y", names_of(types, expected), names_of(bit_of(found.type), given));
    return false;
  }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t num_outputs) noexcept override {
    if (!counts_fit(num_inputs, num_outputs)) return kFailed;
    return passed(load_kernels());
  }

  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t num_outputs) const noexcept override {
    if (!counts_fit(num_inputs, num_outputs) || passed(load_kernels())) return 0;
    Call call{attributes_, {}, nullptr};
    for (int i = 0; i < num_inputs; ++i) {
      if (inputs[i].max.nbDims > 0) call.inputs[i] = tensor_of(inputs[i].desc.type, inputs[i].max);
    }
    const Scratch most = op_.most(call);
    return size_t(aligned(most.zeroed) + most.workspace);
  }

  // Off by default: states are in place because whoever runs the plan binds one address twice, and a declared alias
  // makes TensorRT keep a copy of each state.
  int32_t getAliasedInput(int32_t output) noexcept override {
    return ORIN_ALIASED_STATE && output > 0 && output <= op_.num_states() ? op_.state(output) : -1;
  }

  // IPluginV3OneRuntime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t num_inputs, const nvinfer1::PluginTensorDesc*,
                        int32_t num_outputs) noexcept override {
    if (!counts_fit(num_inputs, num_outputs)) return kFailed;
    num_inputs_ = num_inputs;
    if (passed(load_kernels())) return kFailed;
    return passed(op_.check(call_of(inputs, nullptr, nullptr)));
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override {
    if (num_inputs_ == 0) return !fail("expected onShapeChange before enqueue, found none");
    Call call = call_of(input_descs, inputs, outputs);
    if (op_.rows(call) == 0) return 0;
    if (const int status = continue_states(call, outputs, stream)) return passed(status);
    const Scratch scratch = op_.scratch(call);
    auto* zeroed = static_cast<char*>(workspace);
    if (scratch.zeroed) {
      if (const int status = zero_async(zeroed, scratch.zeroed, stream)) return passed(status);
    }
    return passed(op_.enqueue(call, {zeroed, zeroed + aligned(scratch.zeroed)}, stream));
  }

  // Loads the device code, so that nothing is loaded under a capture.
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return passed(load_kernels()) ? nullptr : clone();
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    for (int i = 0; i < op_.num_attributes; ++i) {
      const Attribute& attribute = op_.attributes[i];
      const char* value = attributes_ + attribute.offset;
      const int length = attribute.kind == Attribute::kText ? int(std::strlen(value)) : 1;
      fields_[i] = {attribute.name, value, field_type(attribute.kind), length};
    }
    collection_ = {op_.num_attributes, fields_};
    return &collection_;
  }

 private:
  static int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  // Tells what is wrong; false.
  __attribute__((format(printf, 2, 3))) bool fail(const char* format, ...) const {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    report(nvinfer1::ILogger::Severity::kERROR, op_.name, node_, "%s", text);
    return false;
  }

  // 0, or the failure of a launcher, told.
  int32_t passed(int status) const {
    if (status) fail("%s", orin_error(status));
    return status ? kFailed : 0;
  }

  const Attribute* attribute_of(const char* name) const {
    for (int i = 0; i < op_.num_attributes; ++i) {
      if (std::strcmp(op_.attributes[i].name, name) == 0) return &op_.attributes[i];
    }
    return nullptr;
  }

  bool read(const Attribute& attribute, const nvinfer1::PluginFieldCollection& given) {
    for (int i = 0; i < given.nbFields; ++i) {
      const nvinfer1::PluginField& field = given.fields[i];
      if (std::strcmp(field.name, attribute.name) != 0) continue;
      if (field.type != field_type(attribute.kind) || !field.data) {
        return fail("%s: expected a field of type %d, found type %d", field.name,
                    static_cast<int>(field_type(attribute.kind)), static_cast<int>(field.type));
      }
      return attribute.kind == Attribute::kText ? read_text(attribute, field) : read_number(attribute, field);
    }
    return fail("%s: expected the attribute, found none; export the graph again", attribute.name);
  }

  bool read_number(const Attribute& attribute, const nvinfer1::PluginField& field) {
    if (field.length != 1) return fail("%s: expected one number, found %d", field.name, field.length);
    std::memcpy(attributes_ + attribute.offset, field.data, 4);
    return true;
  }

  bool read_text(const Attribute& attribute, const nvinfer1::PluginField& field) {
    const auto* text = static_cast<const char*>(field.data);
    int length = field.length;
    while (length > 0 && text[length - 1] == 0) --length;  // the ONNX parser counts a zero at the end
    if (length < 0 || length >= kTextBytes) {
      return fail("%s: expected a text of up to %d bytes, found %d", field.name, kTextBytes - 1, length);
    }
    std::memset(attributes_ + attribute.offset, 0, kTextBytes);
    std::memcpy(attributes_ + attribute.offset, text, length);
    return true;
  }

  bool counts_fit(int num_inputs, int num_outputs) const {
    int required = op_.num_inputs;
    while (required > 0 && op_.inputs[required - 1].kind == Input::kOptional) --required;
    if (num_inputs < required || num_inputs > op_.num_inputs) {
      return fail("expected %d to %d inputs, found %d", required, op_.num_inputs, num_inputs);
    }
    if (num_outputs != 1 + op_.num_states()) {
      return fail("expected %d outputs, found %d", 1 + op_.num_states(), num_outputs);
    }
    return true;
  }

  bool rank_fits(int input, int rank) const {
    const Input& expected = op_.inputs[input];
    if (rank <= 0 && expected.kind == Input::kOptional) return true;
    if (rank > 0 && rank <= kMaxRank && (expected.rank == 0 || rank == expected.rank)) return true;
    return fail("%s: expected rank %d, found %d", expected.name, expected.rank, rank);
  }

  // A launcher tells an input that is there by its address, so shapes alone get one that nobody follows.
  static Tensor tensor_of(nvinfer1::DataType type, const nvinfer1::Dims& dims) {
    Tensor tensor;
    tensor.rank = std::min(dims.nbDims, kMaxRank);
    std::copy_n(dims.d, std::max(0, tensor.rank), tensor.sizes);
    tensor.type = static_cast<Type>(bit_of(type));
    tensor.address = reinterpret_cast<void*>(kAlignment);
    return tensor;
  }

  // Without addresses where only shapes are known. A state is worked on where its output lies.
  Call call_of(const nvinfer1::PluginTensorDesc* descs, const void* const* inputs, void* const* outputs) const {
    Call call{attributes_, {}, outputs ? outputs[0] : nullptr};
    for (int i = 0; i < num_inputs_; ++i) {
      const bool is_there = descs[i].dims.nbDims > 0 && (!inputs || inputs[i]);
      if (!is_there) continue;
      call.inputs[i] = tensor_of(descs[i].type, descs[i].dims);
      if (inputs) call.inputs[i].address = const_cast<void*>(inputs[i]);
    }
    return call;
  }

  // States are updated where their outputs lie. That is where their inputs lie too; where a runtime put them apart
  // they are copied first, which is right but slow.
  int continue_states(Call& call, void* const* outputs, Stream stream) {
    for (int i = 1; i <= op_.num_states(); ++i) {
      Tensor& state = call.inputs[op_.state(i)];
      if (state.address == outputs[i]) continue;
      int64_t bytes = state.type == kFloat32 ? 4 : 2;
      for (int axis = 0; axis < state.rank; ++axis) bytes *= state.sizes[axis];
      if (!has_warned_) {
        report(nvinfer1::ILogger::Severity::kWARNING, op_.name, node_,
               "%s: expected the output at the address of the "
               "input, found another: %lld bytes are copied in each step",
               op_.inputs[op_.state(i)].name, static_cast<long long>(bytes));
      }
      has_warned_ = true;
      if (const int status = copy_async(outputs[i], state.address, size_t(bytes), stream)) return status;
      state.address = outputs[i];
    }
    return kOk;
  }

  const Op& op_;
  char node_[kNameBytes];
  alignas(8) char attributes_[kAttributeBytes] = {};
  int num_inputs_ = 0;
  bool has_warned_ = false;
  nvinfer1::PluginField fields_[kMaxAttributes];
  nvinfer1::PluginFieldCollection collection_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op) : op_(op) {
    for (int i = 0; i < op.num_attributes; ++i) {
      fields_[i] = {op.attributes[i].name, nullptr, field_type(op.attributes[i].kind), 1};
    }
    collection_ = {op.num_attributes, fields_};
  }

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    auto* plugin = fields ? new (std::nothrow) Plugin(op_, name) : nullptr;
    if (plugin && plugin->read(*fields)) return plugin;
    delete plugin;
    return nullptr;
  }

 private:
  const Op& op_;
  nvinfer1::PluginField fields_[kMaxAttributes];
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace orin
