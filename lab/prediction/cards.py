"""The cards that a step is predicted for, and the rates that are assumed of them."""

from dataclasses import dataclass

# Shares of a datasheet's rates that well-made kernels reach. Of the bandwidth: a large copy. Of the peak: bf16 products of
# these sizes, and attention's forward and backward pass in cuDNN. They move both arms' times together, the ratio little.
OF_BANDWIDTH, OF_PEAK, OF_PEAK_IN_ATTENTION = 0.9, 0.6, (0.25, 0.18)


@dataclass(frozen=True)
class Card:
    """A card as its datasheet describes it, and as the compiler asks for it."""

    name: str  # as the driver gives it
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int  # bytes that a block of threads can have
    memory: int  # bytes
    bandwidth: float  # bytes/s

    @property
    def memory_gib(self) -> float:
        return self.memory / 2**30


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 166_912, 85_100_000_000, 2.04e12),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 232_448, 85_017_493_504, 3.35e12),
    "h200": Card("NVIDIA H200", (9, 0), 132, 232_448, 150_100_000_000, 4.8e12),
}
