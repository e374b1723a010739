"""A live language model, recorded, saved, and replayed without it."""

import dspy
import numpy as np

from iapo_dspy import Budget, Decoding, MajorityVote
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.environments.live.environment import LiveEnvironment, LivePrompt
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.files import load, save
from iapo_dspy.environments.recorded.recorder import record
from iapo_dspy.sampling.ledger.ledger import NullLedger
from iapo_dspy.sampling.rollouts.sampler import Sampler
from iapo_dspy.sampling.spending.budget import Meter
from iapo_dspy.types import Contexts
from tests.support.loopback import Loopback
from tests.support.worlds import INSTRUCTIONS, adder, exact, questions

SAMPLES = 40


def test_a_live_environment_is_recorded_and_replayed(tmp_path):
    contexts = Contexts(np.ones((2, 1)), np.array([0.0, 1.0]))
    prompts = [
        LivePrompt(program=dspy.Predict(dspy.Signature("question -> answer", text)), decoding=Decoding(temperature=1.0))
        for text in INSTRUCTIONS
    ]
    examples = questions(5)
    total = len(prompts) * len(examples) * SAMPLES
    meter = Meter(Budget(completions=total))
    with Loopback(adder) as server, dspy.context(lm=server.lm()):
        live = LiveEnvironment(
            prompts=prompts,
            examples=examples,
            strategy=MajorityVote("answer"),
            metric=exact,
            sampler=Sampler(max_concurrency=8, meter=meter, seed=0),
            meter=meter,
            ledger=NullLedger(),
        )
        recording = record(live, contexts, kind="vote", samples=SAMPLES)
        live.close(finished=True)
        assert server.completions == total == meter.spent.completions

    save(recording, tmp_path / "live.npz")
    found = load(tmp_path / "live.npz")
    assert found.n_prompts == len(prompts) and found.n_queries == len(examples)
    assert found.cost.mean() == 0.01 or abs(found.cost.mean() - 0.01) < 1e-9
    q = found.exact(8).q()
    outcome = drive(PSST().start(found.problem(8), budget=4_000, seed=0), found.environment(0))
    for context, arm in enumerate(outcome.policy.arms):
        assert q[context, arm.prompt, arm.n - 1] > q[context].max() - 0.1
    assert q.max() - q.min() > 0.2  # the instructions differ
