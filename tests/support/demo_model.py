"""Completions of the demo model."""

from __future__ import annotations

from collections.abc import Sequence

from iapo_dspy.demo.blas import one_blas_thread
from iapo_dspy.demo.engine import Engine
from iapo_dspy.demo.generation import Generation, GenerationRequest
from iapo_dspy.demo.model import TinyLM


def generate(model: TinyLM, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """Serve requests together and wait for all of them."""
    engine = Engine(model)
    done: dict[int, Generation] = {}
    for i, request in enumerate(requests):
        engine.submit(request, lambda result, i=i: done.__setitem__(i, result))  # type: ignore[misc]
    with one_blas_thread():
        while engine.step():
            pass
    return [done[i] for i in range(len(requests))]
