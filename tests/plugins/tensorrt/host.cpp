// SPDX-License-Identifier: Apache-2.0
// Does to a plugin library what TensorRT does, through the same interfaces, and
// tells what it got, one line of JSON each.
//
//   host PLUGINS [-r RUNTIME] list           creators and their fields
//   host PLUGINS [-r RUNTIME] cases FILE     create, serialise, create again,
//   clone, shapes, types, formats, workspace host PLUGINS [-r RUNTIME] run FILE
//   and onShapeChange and enqueue: eager, captured, states apart
//
// RUNTIME is TensorRT's (lean) library, whose registry then loads PLUGINS;
// without it PLUGINS is opened as such. A case:   case NAME OP / int|float|text
// NAME VALUE / input TYPE RANK SIZES FILE, or input none / output BYTES FILE /
// end With `run`, outputs go to FILE.eager, FILE.captured and FILE.apart.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text)
    out += c == '"' || c == '\\' ? std::string("\\") + c : c == '\n' ? std::string(" ") : std::string(1, c);
  return out + "\"";
}

// What plugins and TensorRT say, kept until it is asked for.
struct Log final : ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) said.push_back(text);
  }
  std::string take() {
    std::string out = "[";
    for (const std::string& text : said) out += (out.size() > 1 ? ", " : "") + quoted(text);
    said.clear();
    return out + "]";
  }
  std::vector<std::string> said;
} logger;

struct Finder final : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

[[noreturn]] void stop(const std::string& why) {
  std::cerr << why << std::endl;
  std::exit(2);
}

// A size of a tensor: known, but not constant, or a constant that a plugin
// asked for.
struct Size final : apiv::VDimensionExpr {
  Size(int64_t value, bool is_constant) : value(value), is_constant(is_constant) {}
  bool isConstant() const override { return is_constant; }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
  int64_t value;
  bool is_constant;
};

struct Expression final : IDimensionExpr {
  Expression(int64_t value, bool is_constant) : size(value, is_constant) { mImpl = &size; }
  ~Expression() noexcept override = default;
  Size size;
};

struct Sizes final : apiv::VExprBuilder {
  const IDimensionExpr* constant(int64_t value) override { return &made.emplace_back(value, true); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
    return nullptr;
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
    return nullptr;
  }
  std::deque<Expression> made;
};

struct Builder final : IExprBuilder {
  Builder() { mImpl = &sizes; }
  Sizes sizes;
};

struct Field {
  std::string name, text;
  PluginFieldType type;
  union {
    int32_t integer;
    float number;
  };
};

struct Input {
  bool is_there = false;
  DataType type = DataType::kFLOAT;
  Dims dims{-1, {}};
  std::vector<char> bytes;
};

struct Case {
  std::string name, op;
  std::deque<Field> fields;
  std::vector<Input> inputs;
  std::vector<std::pair<size_t, std::string>> outputs;
};

DataType type_of(const std::string& name) {
  if (name == "float32") return DataType::kFLOAT;
  if (name == "float16") return DataType::kHALF;
  if (name == "int8") return DataType::kINT8;
  if (name == "int32") return DataType::kINT32;
  stop("unknown type " + name);
}

const char* name_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    default:
      return "other";
  }
}

Input read_input(std::istringstream& line) {
  Input input;
  std::string type, file;
  line >> type;
  if (type == "none") return input;
  input.is_there = true;
  input.type = type_of(type);
  line >> input.dims.nbDims;
  for (int i = 0; i < input.dims.nbDims; ++i) line >> input.dims.d[i];
  line >> file;
  std::ifstream in(file, std::ios::binary);
  input.bytes.assign(std::istreambuf_iterator<char>(in), {});
  return input;
}

std::vector<Case> read_cases(const char* path) {
  std::ifstream in(path);
  std::vector<Case> cases;
  for (std::string text; std::getline(in, text);) {
    std::istringstream line(text);
    std::string what;
    line >> what;
    if (what == "case") cases.emplace_back(), line >> cases.back().name >> cases.back().op;
    if (what == "input") cases.back().inputs.push_back(read_input(line));
    if (what == "output")
      cases.back().outputs.emplace_back(),
          line >> cases.back().outputs.back().first >> cases.back().outputs.back().second;
    if (what != "int" && what != "float" && what != "text") continue;
    Field& field = cases.back().fields.emplace_back();
    line >> field.name;
    if (what == "int") field.type = PluginFieldType::kINT32, line >> field.integer;
    if (what == "float") field.type = PluginFieldType::kFLOAT32, line >> field.number;
    if (what == "text") field.type = PluginFieldType::kCHAR, line >> field.text;
  }
  return cases;
}

// Fields as the ONNX parser passes them: texts with a zero byte that counts.
std::vector<PluginField> fields_of(const Case& c) {
  std::vector<PluginField> out;
  for (const Field& field : c.fields) {
    const bool is_text = field.type == PluginFieldType::kCHAR;
    const void* data = is_text ? static_cast<const void*>(field.text.c_str()) : &field.integer;
    out.emplace_back(field.name.c_str(), data, field.type, is_text ? int32_t(field.text.size() + 1) : 1);
  }
  return out;
}

std::string json_of(const PluginFieldCollection& fields, bool has_values) {
  std::ostringstream out;
  out.precision(9);
  for (int i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    out << (i ? ", " : "") << quoted(field.name) << ": ";
    const char* kind = field.type == PluginFieldType::kINT32     ? "int"
                       : field.type == PluginFieldType::kFLOAT32 ? "float"
                                                                 : "string";
    if (!has_values)
      out << quoted(kind);
    else if (*kind == 'i')
      out << *static_cast<const int32_t*>(field.data);
    else if (*kind == 'f')
      out << *static_cast<const float*>(field.data);
    else
      out << quoted(std::string(static_cast<const char*>(field.data), field.length));
  }
  return "{" + out.str() + "}";
}

// The driver, for `run`: real, or the tests' stand-in.
struct Cuda {
  Cuda() {
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) stop(dlerror());
    call("cuInit", 0u);
    int device = 0;
    void* context = nullptr;
    call("cuDeviceGet", &device, 0);
    call("cuDevicePrimaryCtxRetain", &context, device);
    call("cuCtxSetCurrent", context);
    call("cuStreamCreate", &stream, 1u);
  }
  template <typename... Arguments>
  void call(const char* name, Arguments... arguments) {
    auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library, name));
    if (!function) stop(std::string("no ") + name);
    if (const int status = function(arguments...)) stop(std::string(name) + " gives " + std::to_string(status));
  }
  void* allocate(size_t bytes) {
    void* pointer = nullptr;
    call("cuMemAlloc_v2", &pointer, bytes ? bytes : size_t(1));
    owned.push_back(pointer);
    return pointer;
  }
  void upload(void* to, const std::vector<char>& from) {
    if (!from.empty()) call("cuMemcpyHtoD_v2", to, static_cast<const void*>(from.data()), from.size());
  }
  void poison(void* to, size_t bytes) {
    if (bytes) call("cuMemsetD8_v2", to, static_cast<unsigned char>(0xFF), bytes);
  }
  void save(const void* from, size_t bytes, const std::string& file) {
    std::vector<char> data(bytes);
    call("cuMemcpyDtoH_v2", static_cast<void*>(data.data()), from, bytes);
    std::ofstream(file, std::ios::binary).write(data.data(), bytes);
  }
  void release() {
    for (void* pointer : owned) call("cuMemFree_v2", pointer);
    owned.clear();
  }
  void* library = nullptr;
  void* stream = nullptr;
  std::vector<void*> owned;
};

class Host {
 public:
  Host(const char* plugins, const char* runtime) {
    if (runtime) {
      void* library = dlopen(runtime, RTLD_NOW | RTLD_GLOBAL);
      if (!library) stop(dlerror());
      // Makes its logger the registry's. It gives no runtime without a GPU, and
      // none is needed.
      const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
      std::cout << "{\"runtime\": " << version() << "}" << std::endl;
      registry_ = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"))();
      const auto create = reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(library, "createInferRuntime_INTERNAL"));
      create(&logger, version());
      logger.take();
      if (!registry_->loadLibrary(plugins)) stop("the registry did not load the library: " + logger.take());
      creators_ = registry_->getAllCreators(&count_);
      return;
    }
    void* library = dlopen(plugins, RTLD_NOW);
    if (!library) stop(dlerror());
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    creators_ = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(count_);
  }

  void list() {
    for (int i = 0; i < count_; ++i) {
      if (std::strcmp(creators_[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
      auto* creator = static_cast<IPluginCreatorV3One*>(creators_[i]);
      if (std::strcmp(creator->getPluginNamespace(), "orin") != 0) continue;
      std::cout << "{\"op\": " << quoted(creator->getPluginName())
                << ", \"version\": " << quoted(creator->getPluginVersion())
                << ", \"fields\": " << json_of(*creator->getFieldNames(), false) << "}" << std::endl;
    }
  }

  IPluginCreatorV3One* creator(const std::string& op) {
    if (registry_) {
      return static_cast<IPluginCreatorV3One*>(registry_->getCreator(op.c_str(), "1", "orin"));
    }
    for (int i = 0; i < count_; ++i) {
      auto* one = static_cast<IPluginCreatorV3One*>(creators_[i]);
      if (op == one->getPluginName()) return one;
    }
    return nullptr;
  }

 private:
  IPluginRegistry* registry_ = nullptr;
  IPluginCreatorInterface* const* creators_ = nullptr;
  int32_t count_ = 0;
};

template <typename Capability>
Capability* capability(IPluginV3& plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

// One case through the interfaces, in the order in which TensorRT calls them.
class Trial {
 public:
  Trial(Host& host, const Case& c) : case_(c) {
    creator_ = host.creator(c.op);
    for (const Input& input : c.inputs) {
      PluginTensorDesc desc{input.dims, input.type, TensorFormat::kLINEAR, 1.f};
      inputs_.push_back(desc);
      dynamic_.push_back({desc, input.dims, input.dims, input.dims});
    }
  }

  // What it got as JSON; empty after a failure, which is then in `failed`.
  bool describe(std::ostream& out) {
    const std::vector<PluginField> fields = fields_of(case_);
    const PluginFieldCollection given{int32_t(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> first(
        creator_ ? creator_->createPlugin(case_.name.c_str(), &given, TensorRTPhase::kBUILD) : nullptr);
    if (!first) return failed(out, "createPlugin");
    const PluginFieldCollection* kept =
        capability<IPluginV3OneRuntime>(*first, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    std::unique_ptr<IPluginV3> second(creator_->createPlugin(case_.name.c_str(), kept, TensorRTPhase::kRUNTIME));
    if (!second) return failed(out, "createPlugin from its own fields");
    plugin_.reset(second->clone());
    second.reset();
    first.reset();
    auto* core = capability<IPluginV3OneCore>(*plugin_, PluginCapabilityType::kCORE);
    const PluginFieldCollection* again =
        capability<IPluginV3OneRuntime>(*plugin_, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    out << ", \"name\": " << quoted(core->getPluginName()) << ", \"fields\": " << json_of(*again, true);
    return shapes(out) && formats(out) && workspace(out);
  }

  bool run(std::ostream& out, Cuda& cuda) {
    for (const char* mode : {"eager", "captured", "apart"}) {
      if (!enqueue(out, cuda, mode)) return false;
    }
    return true;
  }

 private:
  bool failed(std::ostream& out, const char* where) {
    out << ", \"failed\": " << quoted(where);
    return false;
  }

  int num_inputs() const { return int(inputs_.size()); }
  int num_outputs() const { return int(outputs_.size()); }
  IPluginV3OneBuildV2* build() { return capability<IPluginV3OneBuildV2>(*plugin_, PluginCapabilityType::kBUILD); }

  bool shapes(std::ostream& out) {
    const int count = build()->getNbOutputs();
    std::vector<DataType> given, types(count);
    std::deque<Expression> sizes;
    std::vector<DimsExprs> known, found(count);
    for (const PluginTensorDesc& input : inputs_) {
      given.push_back(input.type);
      DimsExprs& dims = known.emplace_back();
      dims.nbDims = input.dims.nbDims;
      for (int i = 0; i < dims.nbDims; ++i) dims.d[i] = &sizes.emplace_back(input.dims.d[i], false);
    }
    Builder builder;
    if (build()->getOutputDataTypes(types.data(), count, given.data(), num_inputs()))
      return failed(out, "getOutputDataTypes");
    if (build()->getOutputShapes(known.data(), num_inputs(), nullptr, 0, found.data(), count, builder)) {
      return failed(out, "getOutputShapes");
    }
    out << ", \"outputs\": [";
    for (int i = 0; i < count; ++i) {
      PluginTensorDesc desc{{found[i].nbDims, {}}, types[i], TensorFormat::kLINEAR, 1.f};
      out << (i ? ", " : "") << "[" << quoted(name_of(types[i])) << ", [";
      for (int axis = 0; axis < found[i].nbDims; ++axis) {
        desc.dims.d[axis] = static_cast<const Expression*>(found[i].d[axis])->size.value;
        out << (axis ? ", " : "") << desc.dims.d[axis];
      }
      out << "], " << build()->getAliasedInput(i) << "]";
      outputs_.push_back(desc);
      dynamic_.push_back({desc, desc.dims, desc.dims, desc.dims});
    }
    out << "]";
    return true;
  }

  // Every tensor in its type is taken; in another type, or in another layout,
  // it is not.
  bool formats(std::ostream& out) {
    for (int at = 0; at < num_inputs() + num_outputs(); ++at) {
      if (at < num_inputs() && !case_.inputs[at].is_there) continue;
      const PluginTensorDesc desc = dynamic_[at].desc;
      const auto takes = [&] {
        return build()->supportsFormatCombination(at, dynamic_.data(), num_inputs(), num_outputs());
      };
      bool is_right = takes();
      const size_t said = logger.said.size();
      dynamic_[at].desc.type = DataType::kBOOL;
      is_right = is_right && !takes();
      dynamic_[at].desc = desc;
      dynamic_[at].desc.format = TensorFormat::kCHW32;
      is_right = is_right && !takes();
      dynamic_[at].desc = desc;
      logger.said.resize(said);  // what was wrong on purpose
      if (!is_right) return failed(out, "supportsFormatCombination");
    }
    return true;
  }

  bool workspace(std::ostream& out) {
    const auto* after = dynamic_.data() + num_inputs();
    if (build()->configurePlugin(dynamic_.data(), num_inputs(), after, num_outputs()))
      return failed(out, "configurePlugin");
    workspace_ = build()->getWorkspaceSize(dynamic_.data(), num_inputs(), after, num_outputs());
    out << ", \"workspace\": " << workspace_;
    return true;
  }

  bool enqueue(std::ostream& out, Cuda& cuda, const std::string& mode) {
    std::unique_ptr<IPluginV3> attached(
        capability<IPluginV3OneRuntime>(*plugin_, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
    if (!attached) return failed(out, "attachToContext");
    auto* runtime = capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);
    std::vector<const void*> in;
    for (const Input& input : case_.inputs) in.push_back(input.is_there ? cuda.allocate(input.bytes.size()) : nullptr);
    std::vector<void*> to;
    std::vector<int> same;  // the input whose address an output shares, or -1
    for (int i = 0; i < num_outputs(); ++i) {
      same.push_back(i && mode != "apart" ? state(i) : -1);
      to.push_back(same[i] < 0 ? cuda.allocate(case_.outputs[i].first) : const_cast<void*>(in[same[i]]));
    }
    void* scratch = cuda.allocate(workspace_);
    const auto reset = [&] {
      for (int i = 0; i < num_outputs(); ++i) cuda.poison(to[i], case_.outputs[i].first);
      for (int i = 0; i < num_inputs(); ++i) cuda.upload(const_cast<void*>(in[i]), case_.inputs[i].bytes);
      cuda.poison(scratch, workspace_);
      cuda.call("cuCtxSynchronize");  // the stream does not wait for the default stream, on which this runs
    };
    const auto go = [&] {
      return runtime->enqueue(inputs_.data(), outputs_.data(), in.data(), to.data(), scratch,
                              static_cast<cudaStream_t>(cuda.stream));
    };
    if (runtime->onShapeChange(inputs_.data(), num_inputs(), outputs_.data(), num_outputs()))
      return failed(out, "onShapeChange");
    reset();
    if (mode == "captured" ? !captured(cuda, go, reset) : go()) return failed(out, "enqueue");
    cuda.call("cuStreamSynchronize", cuda.stream);
    for (int i = 0; i < num_outputs(); ++i)
      cuda.save(to[i], case_.outputs[i].first, case_.outputs[i].second + "." + mode);
    cuda.release();
    return true;
  }

  template <typename Go, typename Reset>
  bool captured(Cuda& cuda, Go go, Reset reset) {
    void *graph = nullptr, *executable = nullptr;
    cuda.call("cuStreamBeginCapture_v2", cuda.stream, 1);  // thread local
    const bool is_enqueued = !go();
    cuda.call("cuStreamEndCapture", cuda.stream, &graph);
    if (!is_enqueued) return false;
    cuda.call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
    for (int replay = 0; replay < 2; ++replay) {
      reset();
      cuda.call("cuGraphLaunch", executable, cuda.stream);
      cuda.call("cuStreamSynchronize", cuda.stream);
    }
    cuda.call("cuGraphExecDestroy", executable);
    cuda.call("cuGraphDestroy", graph);
    return true;
  }

  // The input that has the shape and type of output `index`, counted from the
  // first state on.
  int state(int index) {
    for (int i = 0, left = index; i < num_inputs(); ++i) {
      const bool is_state = inputs_[i].dims.nbDims > 2 && --left == 0;
      if (is_state) return i;
    }
    return -1;
  }

  const Case& case_;
  IPluginCreatorV3One* creator_ = nullptr;
  std::unique_ptr<IPluginV3> plugin_;
  std::vector<PluginTensorDesc> inputs_, outputs_;
  std::vector<DynamicPluginTensorDesc> dynamic_;
  size_t workspace_ = 0;
};

}  // namespace

int main(int count, char** words) {
  std::vector<std::string> given(words + 1, words + count);
  if (given.size() < 2) stop("host PLUGINS [-r RUNTIME] list | cases FILE | run FILE");
  const bool has_runtime = given[1] == "-r";
  const size_t at = has_runtime ? 3 : 1;
  std::unique_ptr<Cuda> cuda;
  if (given[at] != "list" && dlopen("libcuda.so.1", RTLD_NOW)) cuda = std::make_unique<Cuda>();
  Host host(given[0].c_str(), has_runtime ? given[2].c_str() : nullptr);
  if (given[at] == "list") {
    host.list();
    return 0;
  }
  for (const Case& c : read_cases(given[at + 1].c_str())) {
    std::ostringstream out;
    Trial trial(host, c);
    if (trial.describe(out) && given[at] == "run") trial.run(out, *cuda);
    std::cout << "{\"case\": " << quoted(c.name) << out.str() << ", \"said\": " << logger.take() << "}" << std::endl;
  }
  return 0;
}
