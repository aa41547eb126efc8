// SPDX-License-Identifier: Apache-2.0
// The C ABI of a launcher, described once: a list of fields makes the struct and the text from which Python builds the
// same struct.
//
//   #define ORIN_FOO_FIELDS(P, I, F) P(x) P(y) I(tokens) F(eps)     P pointer, I int32, F float32
//   ORIN_ABI(Foo, foo, ORIN_FOO_FIELDS)                             in launch.h
//   ORIN_ABI_EXPORT(foo, ORIN_FOO_FIELDS)                           in launch.cpp
//
// declares struct orin::Foo and exports
//   int orin_foo(const orin::Foo*, orin::Stream)          enqueue; 0 or an error code
//   const char* orin_foo_fields()                         "P x\nP y\nI tokens\nF eps\n"
#pragma once

#include <cstdint>

#include "common/driver.h"

#define ORIN_API extern "C" __attribute__((visibility("default")))

#define ORIN_FIELD_POINTER(name) void* name;
#define ORIN_FIELD_INT(name) int32_t name;
#define ORIN_FIELD_FLOAT(name) float name;
#define ORIN_TEXT_POINTER(name) "P " #name "\n"
#define ORIN_TEXT_INT(name) "I " #name "\n"
#define ORIN_TEXT_FLOAT(name) "F " #name "\n"

#define ORIN_ABI(Struct, name, FIELDS)                                          \
  namespace orin {                                                              \
  struct Struct {                                                               \
    FIELDS(ORIN_FIELD_POINTER, ORIN_FIELD_INT, ORIN_FIELD_FLOAT)                \
  };                                                                            \
  }                                                                             \
  ORIN_API int orin_##name(const orin::Struct* arguments, orin::Stream stream); \
  ORIN_API const char* orin_##name##_fields();

#define ORIN_ABI_EXPORT(name, FIELDS) \
  ORIN_API const char* orin_##name##_fields() { return FIELDS(ORIN_TEXT_POINTER, ORIN_TEXT_INT, ORIN_TEXT_FLOAT); }
