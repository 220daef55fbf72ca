/* The CUDA backend. Under the emulator it is the same code on the emulated device. */
#ifndef LLMQ_CUDA_CUDA_H
#define LLMQ_CUDA_CUDA_H

#include "core/device.h"

extern const llmq_device_ops cuda_device_ops;
extern const llmq_device_solver_ops cuda_solver_ops; /* cuda_device_ops.solver */

#endif
