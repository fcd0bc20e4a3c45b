// Which instruction set runs.
#pragma once

#include "cpu/kernels.h"

namespace ala {

// Chosen at the first call. NULL when ALA_METRIC_ISA asks for what is unknown or absent; *name is then what
// was asked.
const Kernels* chosen_kernels(const char** name);

}  // namespace ala
