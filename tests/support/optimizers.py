"""A server that answers questions as `adder` does, and every proposer of DSPy's optimizers with one instruction.

With that instruction, or with demos, answers are right.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.loopback import chat
from tests.support.worlds import CAREFUL, adder, outputs, total

PROPOSED = f"{CAREFUL} Then say what the sum is."


def teacher(body: dict[str, Any], i: int) -> str:
    """Answer a question about a sum by `adder`; answer a proposer's request with `PROPOSED` in every field."""
    system, last = body["messages"][0]["content"], body["messages"][-1]["content"]
    if outputs(body)[:1] == ["answer"] and "1. `question`" in system:
        if PROPOSED in system or len(body["messages"]) > 2:  # what optimizers add helps: instruction or demos
            return chat(answer=str(total(body)))
        return adder(body, i)
    wanted = last.rpartition("Respond with ")[2]
    if wanted.startswith("a JSON object"):
        return json.dumps(dict.fromkeys(re.findall(r"`(\w+)`", wanted), PROPOSED))
    fields = re.findall(r"`\[\[ ## (\w+) ## \]\]`", wanted)
    return chat(**{f: PROPOSED for f in fields if f != "completed"})
