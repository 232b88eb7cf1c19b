"""What headlines exceed, in words: chance over examples, and chance of training."""

from __future__ import annotations

from stagelens.effects.draws import DrawnEffects


def exceeded(draws: DrawnEffects | None, noise_known: bool) -> str:
    """What mean effects are beyond.

    Args:
        draws: Effects in several draws of the recipe; None if there are none.
        noise_known: Whether effects in other orders of the batches are known.
    """
    if draws is not None:
        return (
            "chance over examples (95 %) and the error of the estimate where it is known, "
            f"with an interval over {draws.words} of the recipe that leaves out zero"
        )
    elif noise_known:
        return (
            "chance over examples (95 %), the error of the estimate where it is known, and "
            "training noise given the earlier stages as recorded. One run: how it would be of this "
            "recipe is not known"
        )
    else:
        return (
            "chance over examples (95 %) and the error of the estimate where it is known; "
            "training noise is not known. One run: whether it would happen again is not known"
        )
