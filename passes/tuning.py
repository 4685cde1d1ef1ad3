"""What the algorithms themselves take, beside which of them to run: NNCF's advanced parameters, as far as they mean
something here. Everything is left to the algorithm where nothing is given."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tuning"]


@dataclass(frozen=True)
class Tuning:
    """None stands for what the algorithm does by itself."""

    awq_subset: int | None = None
    """Samples that AWQ's factors are chosen on; of those that `subset_size` leaves, as for the others."""
    awq_alphas: tuple[float, ...] | None = None
    """The exponents that are tried."""
    awq_share: float | None = None
    """The share of the channels, those of the largest activations, whose groups are scaled; all where None."""
    awq_from_data: bool = True
    """False chooses the factors as without data, data or not."""
    scale_estimation_subset: int | None = None
    gptq_subset: int | None = None
    gptq_damping: float | None = None
    """What is added to the diagonal of the Gram matrices, as a share of its median."""
    lora_subset: int | None = None
    lora_rounds: int | None = None
    """How often rounding one adapter and fitting the other alternate."""
