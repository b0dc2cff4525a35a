"""The kernels that torch.compile makes of a function and of its backward pass, and the bytes and FLOPs of each."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.config
import torch._inductor.config
from torch._inductor import ir
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

from lab.prediction.cards import OF_BANDWIDTH, OF_PEAK, OF_PEAK_IN_ATTENTION, Card


@dataclass(frozen=True)
class Kernel:
    name: str  # of a library's kernel; Triton's are "elementwise"
    backward: bool
    bytes: int  # read and written
    flops: int  # of matrix products alone

    def seconds(self, card: Card, peak: float) -> float:
        """Return the time at the card's assumed rates: whatever takes longer, its bytes or its products."""
        rate = OF_PEAK_IN_ATTENTION[self.backward] if "attention" in self.name else OF_PEAK
        return max(self.bytes / (OF_BANDWIDTH * card.bandwidth), self.flops / (rate * peak))

    @property
    def is_elementwise(self) -> bool:
        return self.name == "elementwise"


class Compiled(BaseException):
    """Thrown where the compiled graph would be run."""


def compiled_kernels(function: Callable[..., Any], *arguments: Any) -> list[Kernel]:
    """Return the kernels of function(*arguments) under bf16 autocast, and of its backward pass where something wants a gradient.

    Args:
        arguments: fake tensors on the imagined card, or lists of them; the FakeTensorMode must be on.
    """
    found: list[Kernel] = []
    with noting_kernels(found), torch.autocast("cuda", dtype=torch.bfloat16):
        torch._dynamo.reset()
        try:
            torch.compile(function, dynamic=False, fullgraph=True)(*arguments)
        except Compiled:
            return found
    raise AssertionError("the function was not compiled")


@contextmanager
def noting_kernels(found: list[Kernel]) -> Iterator[None]:
    original = GraphLowering.codegen

    def codegen(graph: GraphLowering) -> Any:
        result = original(graph)
        found.extend(kernels_of(graph))
        return result

    def stop(graph: CompiledFxGraph, inputs: Any) -> Any:
        raise Compiled

    with (
        warnings.catch_warnings(),
        patch.object(GraphLowering, "codegen", codegen),
        patch.object(CompiledFxGraph, "__call__", stop),
        patch.object(AsyncCompile, "triton", lambda *_, **__: None),  # the kernels' own code is not compiled further
        torch._inductor.config.patch(force_disable_caches=True, compile_threads=1, joint_graph_constant_folding=False),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False),
    ):
        warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
        yield


def kernels_of(graph: GraphLowering) -> Iterator[Kernel]:
    for node in graph.scheduler.nodes:
        is_library = isinstance(node, ExternKernelSchedulerNode)
        if isinstance(node, NopKernelSchedulerNode) or is_library and isinstance(node.node, ir.MultiOutput):
            continue
        name = "elementwise"
        if is_library:
            name = getattr(node.node, "python_kernel_name", None) or type(node.node).__name__
        flops = attention_flops(node.node, name) if "attention" in name else int(node.estimate_flops() or 0)
        yield Kernel(name, bool(graph.is_backward), int(node.get_read_write_buffers_sizes()), flops)


def attention_flops(kernel: Any, name: str) -> int:
    """Return the FLOPs of causal attention's products: two forward, five backward (the scores again), half of each square."""
    batch, heads, length, head_dim = (int(size) for size in kernel.inputs[0].get_size())
    return (5 if "backward" in name else 2) * batch * heads * length * length * head_dim
