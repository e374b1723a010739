"""Completions of the demo model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from iapo_dspy.demo.blas import one_blas_thread
from iapo_dspy.demo.engine import Engine
from iapo_dspy.demo.generation import Generation, GenerationRequest
from iapo_dspy.demo.model import TinyLM


def generate(model: TinyLM, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """Serve requests together and wait for all of them."""
    engine = Engine(model)
    futures: list[Future[Generation]] = [Future() for _ in requests]
    for request, future in zip(requests, futures, strict=True):
        engine.submit(request, future)
    with one_blas_thread():
        while engine.step():
            pass
    return [future.result(timeout=0) for future in futures]
