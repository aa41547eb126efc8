// SPDX-License-Identifier: Apache-2.0
// Symbols that glibc 2.34 gave a new version without a new meaning, held at their first one: a library that is linked
// on a newer system then loads on an older one too. Include it where they are used.
#pragma once

#ifdef __aarch64__
#define ORIN_FIRST_GLIBC "GLIBC_2.17"
#else
#define ORIN_FIRST_GLIBC "GLIBC_2.2.5"
#endif

__asm__(".symver dlopen, dlopen@" ORIN_FIRST_GLIBC);
__asm__(".symver dlsym, dlsym@" ORIN_FIRST_GLIBC);
