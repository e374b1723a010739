"""Compile a sentiment task on SmolLM2, and value what was chosen for quality on held-out sentences (ten minutes).

needs: pip install "iapo_dspy[local]", and a file of labelled sentences such as SST-2's; neither a key nor a GPU

    python examples/local_model/held_out.py sst2.tsv
    python examples/local_model/held_out.py sst2.tsv --api-base http://127.0.0.1:8080/v1

Candidates are those of `iapo demo --local-model`. The chosen prompt and the best single-shot prompt, both as the run
sees them, are drawn 16 times on each held-out sentence. A vote of N of these is valued exactly, all N drawn. Intervals
are normal ones over the sentences; that of the gain is paired.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dspy
import numpy as np

from iapo_dspy import IAPO, Execution, MajorityVote, PlainTextAdapter, Preference
from iapo_dspy.demo.local.fetching import fetched
from iapo_dspy.demo.local.llama_server import LlamaServer
from iapo_dspy.demo.local.sentiment import sentiment_task

PREFERENCES = (Preference("quality", cost=0.0), Preference("balanced", cost=0.2), Preference("thrifty", cost=1.0))
MAX_N = 16


def main() -> None:
    """Compile, draw the two prompts on held-out sentences, and print what both are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="label (1: positive), tab, sentence in each line")
    parser.add_argument("--api-base", help="of a server of the model that runs already, with the alias smollm2")
    parser.add_argument("--budget", type=int, default=2_000, help="completions")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the sentences and of the optimizer")
    asked = parser.parse_args()
    task = sentiment_task(asked.sentences, seed=asked.seed, least=asked.train + asked.held_out)
    settings: dict[str, Any] = {"max_tokens": 20, "stop": ["\n"]}
    with nullcontext() if asked.api_base else LlamaServer(fetched()) as server:
        lm = at(asked.api_base, **settings) if server is None else server.lm(**settings)
        with dspy.context(lm=lm, adapter=PlainTextAdapter()):
            compare(task, asked)


def at(api_base: str, **settings: Any) -> dspy.LM:
    """Return the LM of a server that runs already."""
    body = {"top_k": 40, "min_p": 0.0}
    known = {"api_key": "none", "engine": "litellm", "temperature": 1.0, "cache": False, "extra_body": body}
    return dspy.LM("openai/smollm2", api_base=api_base, **known, **settings)


def compare(task: Any, asked: argparse.Namespace) -> None:
    """Compile on the training sentences, and print the values on the held-out ones."""
    optimizer = IAPO(
        metric=task.metric,
        strategy=MajorityVote("answer"),
        preferences=PREFERENCES,
        max_n=MAX_N,
        budget=asked.budget,
        num_threads=2,
        seed=asked.seed,
        execution=Execution(progress=False),
    )
    program = optimizer.compile(
        task.student(), trainset=task.train(asked.train, asked.seed), candidates=list(task.candidates)
    )
    found = program.detailed_results
    print(found)
    quality = found.policy[0]
    single = next(row.estimate.arm for row in quality.baselines if row.name == "best prompt")
    chosen = {"chosen for quality": quality.arm, "best single-shot prompt": single}
    prompts = sorted({arm.prompt for arm in chosen.values()})
    optimizer.budget = len(prompts) * asked.held_out * MAX_N
    recording = optimizer.record(
        task.student(),
        trainset=task.heldout(asked.held_out, asked.seed),
        candidates=[found.candidate_programs[p] for p in prompts],
        samples=MAX_N,
    )
    rewards = recording.exact(MAX_N).reward[0]  # [P, X, N]
    worth = {name: rewards[prompts.index(arm.prompt), :, arm.n - 1] for name, arm in chosen.items()}
    print(f"\non {asked.held_out} held-out sentences, {MAX_N} completions of each prompt on each:")
    for name, arm in chosen.items():
        mean, half = interval(worth[name])
        share = (recording.drawn.outcome[prompts.index(arm.prompt)] < 0).mean()
        print(f"{name}, N = {arm.n}: {mean:.3f} +- {half:.3f}; {share:.3f} of its completions cannot be read")
    gain, half = interval(worth["chosen for quality"] - worth["best single-shot prompt"])
    print(f"gain: {gain:+.3f} +- {half:.3f}, paired")
    low, high = quality.interval
    value = worth["chosen for quality"].mean()
    where = "inside" if low <= value <= high else "outside"
    print(f"the run said {quality.utility:.3f} ({low:.3f} to {high:.3f}); {value:.3f} is {where}")


def interval(values: Any) -> tuple[float, float]:
    """Return a mean and half the width of its 95 % interval."""
    return float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5


if __name__ == "__main__":
    main()
