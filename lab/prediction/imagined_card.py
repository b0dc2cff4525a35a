"""Let torch's CPU build compile for a GPU that is not there.

The compiler asks for a card's properties, in Python, and gets those of a datasheet. The backward pass is traced by
autograd's engine, which asks in C++ which kind of device computes, for its streams and for events between them: a dozen
lines of C++ answer that there is one and that there is nothing to wait for. They must be loaded before torch. Nothing
can be computed on the card: tensors must be fake (FakeTensorMode).
"""

import ctypes
import importlib.util
import os
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cli.composition import ConfigError
from lab.prediction.cards import Card

ANSWERS = r"""
#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

constexpr auto CUDA = c10::DeviceType::CUDA;

namespace {
struct Guard : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(CUDA, 0));
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Hooks : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
};
}

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
namespace accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return CUDA; }
bool isAccelerator(c10::DeviceType type) { return type == CUDA; }
}
}
"""


def imagine(card: Card) -> None:
    """Make this process, which must not have imported torch yet, believe in one card, for the compiler's purposes.

    Raises:
        ConfigError: there is no C++ compiler, or torch is a build for GPUs.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    spec = importlib.util.find_spec("torch")
    if not compiler or spec is None or not spec.origin:
        raise ConfigError("predictions need torch and a C++ compiler (g++), as compile=true on a CPU does")
    folder = Path(spec.origin).parent
    refuse_gpu_build(folder)
    load_answers(compiler, folder)
    answer_in_python(card)


def refuse_gpu_build(folder: Path) -> None:
    """Raise ConfigError if the torch in this folder is built for GPUs: it has answers of its own, and two are too many."""
    version = runpy.run_path(str(folder / "version.py"))
    if version["cuda"] or version.get("hip"):
        name = f"torch {version['__version__']}"
        raise ConfigError(f"{name} is built for GPUs: predictions need its CPU build, in an environment of its own")


def load_answers(compiler: str, folder: Path) -> None:
    """Compile and load the C++ answers; their definitions prevail over those of the torch in this folder, since they come first."""
    with tempfile.TemporaryDirectory() as temporary:
        source, library = Path(temporary) / "answers.cpp", Path(temporary) / "answers.so"
        source.write_text(ANSWERS)
        libraries = [f"-L{folder}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{folder}/lib"]
        words = [
            str(compiler),
            "-shared",
            "-fPIC",
            "-std=c++20",
            f"-I{folder}/include",
            str(source),
            *libraries,
            "-o",
            str(library),
        ]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise ConfigError(f"{compiler} could not compile the answers for the card: {(done.stderr.splitlines() or [''])[0]}")
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def answer_in_python(card: Card) -> None:
    import torch
    import torch._dynamo.device_interface as interfaces
    from torch._subclasses.fake_tensor import FakeTensorMode

    properties = SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=card.memory,
        multi_processor_count=card.multiprocessors,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=card.shared_memory,
        L2_cache_size=50 * 2**20,
        gcnArchName="",
        is_integrated=0,
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: card.capability,
        "get_device_name": lambda device=None: card.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
        if hasattr(interfaces.CudaInterface, name):
            setattr(interfaces.CudaInterface, name, staticmethod(answer))
    cuda: Any = interfaces.CudaInterface
    cuda.exchange_device = cuda.maybe_exchange_device = staticmethod(lambda device: 0)
    cuda.get_raw_stream = staticmethod(lambda index: 0)
    interfaces.caching_worker_device_properties["cuda"] = [properties]
    interfaces.caching_worker_current_devices["cuda"] = 0
    setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0)  # noqa: B010 - mypy knows that it is not there
    setattr(FakeTensorMode, "avoid_device_init", property(lambda mode: True))  # noqa: B010
    answer_triton(card)


def answer_triton(card: Card) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    major, minor = card.capability
    limits = {
        "max_shared_mem": card.shared_memory,
        "max_num_regs": 65536,
        "multiprocessor_count": card.multiprocessors,
        "warpSize": 32,
    }
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 10 * major + minor, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device=0: 0,
            is_active=lambda: True,
            utils=SimpleNamespace(get_device_properties=lambda device: limits),
        )
    )
