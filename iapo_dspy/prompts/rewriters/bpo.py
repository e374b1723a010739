"""BPO, black-box prompt optimization (Cheng et al., arXiv 2311.04155), as a ready rewriter.

The model `THUDM/BPO` is a fine-tuned Llama-2-7b-chat. It has learnt one request, and works with that one only. The
request and the two decodings are facts of its model card and of its published example of inference
(github.com/thu-coai/BPO: readme.md, src/infer_example.py).
"""

from __future__ import annotations

from typing import Literal

import dspy

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.types import Decoding

BPO_CHAT_TEMPLATE = (
    "You are an expert prompt engineer. Please help me improve this prompt to get a more helpful and harmless "
    "response:\n{}"
)
"""BPO's request for servers that write the marks of Llama 2 themselves, by the chat template of the model."""

BPO_TEMPLATE = f"[INST] {BPO_CHAT_TEMPLATE} [/INST]"
"""BPO's request as published, for servers that are sent plain text: `dspy.LM("text-completion-openai/THUDM/BPO")`."""

BPO_STABLE = Decoding(temperature=0.6, top_p=0.9, max_tokens=1024)
"""The stable decoding: the model sometimes leaves the query as it is."""

BPO_AGGRESSIVE = Decoding(temperature=0.9, top_p=0.9, max_tokens=1024)
"""The aggressive decoding: the model changes the query more often, at times in a way that does not fit."""

BPO_MARKS = ("\n", "[KE", "[INS", "[PRO")
"""The ends of a text under the aggressive decoding. The published one also bars these marks and asks for a least
length, which chat servers have no settings for."""


def bpo(
    lm: dspy.BaseLM, decoding: Literal["stable", "aggressive"] | Decoding = "stable", *, field: str | None = None
) -> Rewriter:
    """Return the rewriter BPO.

        rewriters = [bpo(lm), bpo(lm, "aggressive")]  # lm serves THUDM/BPO

    Args:
        lm: Serves the model `THUDM/BPO`: by chat requests, or as "text-completion-openai/..." by plain text.
        decoding: "stable" or "aggressive", or a decoding of your own.
        field: See `Rewriter`.

    Raises:
        ConfigurationError: An argument that cannot be used.
    """
    known = {"stable": BPO_STABLE, "aggressive": BPO_AGGRESSIVE}
    if isinstance(decoding, str) and decoding not in known:
        raise ConfigurationError(f"bpo decoding={decoding!r}: give 'stable', 'aggressive' or a Decoding(...).")
    # LiteLLM sends such a model the text as it is; DSPy's own text type adds words of its own behind it.
    plain = isinstance(lm, dspy.BaseLM) and (lm.model_type == "text" or lm.model.startswith("text-completion-openai/"))
    words = next((word for word, own in known.items() if decoding in (word, own)), "own decoding")
    return Rewriter(
        lm,
        template=BPO_TEMPLATE if plain else BPO_CHAT_TEMPLATE,
        decoding=known[decoding] if isinstance(decoding, str) else decoding,
        field=field,
        name=f"bpo, {words}",
        until=BPO_MARKS if words == "aggressive" else (),
    )
