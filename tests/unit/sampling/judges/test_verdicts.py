"""Answers of judges, and embeddings, that an earlier process of a run has paid for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy.errors import LedgerError
from iapo_dspy.sampling.judges.embeddings import EmbeddingRequest, Embeddings
from iapo_dspy.sampling.judges.metered import Case, Metering, vector_of
from iapo_dspy.sampling.ledger.records import VerdictRecord, decode_record, encode_record
from iapo_dspy.sampling.requests.port import Choice, CompletionRequest
from iapo_dspy.sampling.spending.usage import Usage

MESSAGES = [{"role": "user", "content": "Is it good?"}]


class Asker:
    """Answers with the number of the question."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ask(self, lm: dspy.BaseLM, request: CompletionRequest, share: str) -> Sequence[Choice]:
        self.asked.append(request.messages[0]["content"])
        return [Choice(output=f"{len(self.asked)}/{i}") for i in range(request.n)]

    async def embed(self, request: EmbeddingRequest, share: str) -> Embeddings:
        self.asked += request.texts
        return Embeddings(vectors=np.array([[len(t), 1 / 3] for t in request.texts]), usage=Usage(prompt_tokens=3))


class Process:
    """One process of a run: it asks by itself what the ledger does not know."""

    def __init__(self, ledger: dict[str, VerdictRecord]) -> None:
        def keep(record: VerdictRecord) -> None:
            read = decode_record(encode_record(record))
            assert isinstance(read, VerdictRecord) and record.key not in ledger
            ledger[record.key] = read

        self.asker = Asker()
        self._metering = Metering(self.asker, known=ledger.get, keep=keep)
        self._cases: dict[str, Case] = {}

    def ask(self, case: str, *, cache: bool = False, n: int = 1, base: str = "http://a", **params: Any) -> Any:
        lm = dspy.LM("openai/judge", api_base=base, api_key="sk-secret-123")
        scope = self._cases.setdefault(case, Case(self._metering, case))
        settings = {**lm.kwargs, "cache": cache, **params}
        return asyncio.run(self._metering.ask(scope, lm, MESSAGES, settings, n))

    def embed(self, *texts: str) -> Any:
        request = EmbeddingRequest(model="openai/embedder", texts=texts, settings={"api_key": "sk-secret-123"})
        return asyncio.run(self._metering.embed(request)).vectors.tolist()


def test_a_later_process_gets_the_answers_of_the_one_before() -> None:
    ledger: dict[str, VerdictRecord] = {}
    first, second = Process(ledger), Process(ledger)
    paid = [first.ask("0/0/0"), first.ask("0/0/0"), first.ask("0/0/1", n=2), first.ask("0/0/0", temperature=0.3)]
    assert paid == [["1/0"], ["2/0"], ["3/0", "3/1"], ["4/0"]]
    # In another order; each completion gets its own, and the first and the second of two equal ones.
    again = [second.ask("0/0/1", n=2), second.ask("0/0/0"), second.ask("0/0/0", temperature=0.3), second.ask("0/0/0")]
    assert again == [paid[2], paid[0], paid[3], paid[1]] and not second.asker.asked
    assert second.ask("0/0/0") == ["1/0"]  # a third one is new
    assert second.ask("0/0/1") == ["2/0"]  # and so is another number of answers
    assert second.ask("0/0/0", base="http://b") == ["3/0"]  # and another server
    assert not any("secret" in key for key in ledger)


def test_an_lm_with_a_cache_shares_its_answers_among_completions() -> None:
    ledger: dict[str, VerdictRecord] = {}
    assert Process(ledger).ask("0/0/0", cache=True) == ["1/0"]
    later = Process(ledger)
    assert later.ask("0/0/7", cache=True) == later.ask("0/0/8", cache=True) == ["1/0"] and not later.asker.asked
    assert later.ask("0/0/7", cache=True, rollout_id=1) == ["1/0"] and len(later.asker.asked) == 1


def test_texts_are_embedded_once_in_a_run() -> None:
    ledger: dict[str, VerdictRecord] = {}
    first, second = Process(ledger), Process(ledger)
    vectors = first.embed("a", "bb", "a")
    assert first.asker.asked == ["a", "bb"] and vectors[0] == vectors[2] == pytest.approx([1, 1 / 3])
    assert second.embed("ccc", "bb") == [pytest.approx([3, 1 / 3]), vectors[1]] and second.asker.asked == ["ccc"]
    with pytest.raises(LedgerError, match="no embedding"):
        vector_of(VerdictRecord(key="k", outputs=["not base64!"]))
