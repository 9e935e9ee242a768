# What the Makefiles of the fused operations share: TensorFlow's flags, the compilers and the
# instruction sets. Included after BUILD, the folder of what is built.

TENSORFLOW := $(shell python3 -c "import tensorflow as tf; \
    print(tf.__version__, *tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags())" \
    2>/dev/null)
VERSION := $(firstword $(TENSORFLOW))
OUT := $(BUILD)/tensorflow-$(VERSION)
TENSORFLOW_INCLUDES := $(patsubst -I%,-isystem %,$(filter -I% -D%,$(TENSORFLOW)))
TENSORFLOW_LIBRARIES := $(patsubst %,-Xlinker %,$(filter -L% -l%,$(TENSORFLOW)))

COMMON := -std=c++17 -O3 -Wall -Wextra -fPIC -MMD -MP
# GCC 12 takes its own intrinsics' undefined registers for mistakes.
KERNEL := $(COMMON) -fvisibility=hidden -ffp-contract=fast -fno-exceptions \
    -Wno-uninitialized -Wno-maybe-uninitialized -Wno-psabi
SANITIZED := -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
portable :=
avx2 := -mavx2 -mfma -mf16c
avx512 := -mavx512f -mfma -mf16c
LEVELS := portable $(if $(filter x86_64,$(shell uname -m)),avx2 avx512)

# Of GPUS, the architectures, those that this compiler still has; PTX of the last for all later GPUs. The
# CUDA runtime is linked in: TensorFlow has its own. `make NVCC=` leaves CUDA out.
GPUS ?= 70 75 80 90
NVCC := $(shell command -v nvcc)
ifneq ($(NVCC),)
ARCHITECTURES := $(filter $(shell $(NVCC) --list-gpu-arch | sed s/compute_//),$(GPUS))
GENCODE := $(foreach a,$(ARCHITECTURES),-gencode arch=compute_$a,code=sm_$a) \
    $(foreach a,$(lastword $(sort $(ARCHITECTURES))),-gencode arch=compute_$a,code=compute_$a)
# nvcc refuses a g++ newer than it knows; an older one often stands beside it.
HOST := $(shell for each in $(CXX) g++-13 g++-12 g++-11 g++-10; do \
    $(NVCC) -ccbin $$each -x cu -E /dev/null >/dev/null 2>&1 && echo $$each && break; done)
ifeq ($(HOST)$(filter sanitize,$(MAKECMDGOALS)),)
$(error $(NVCC) accepts neither $(CXX) nor g++ 10 - 13; install one, or leave the CUDA kernels out: make $(notdir $(CURDIR)) NVCC=)
endif
LINK := $(NVCC) -ccbin $(HOST) -cudart static
else
LINK := $(CXX)
endif

ifeq ($(VERSION)$(filter sanitize,$(MAKECMDGOALS)),)
$(error python3 has no TensorFlow; run this through `make $(notdir $(CURDIR))` in the folder above)
endif
