"""The data of a small report, worked out by hand."""

from __future__ import annotations

from iapo_dspy.report.page_data import Axis, PageArm, PageData, PageFailures, PagePrompt, PageRound, View
from iapo_dspy.report.tabular import Line, Table

WEIGHTS = (0.0, 1.0, 10.0)
ARMS = (
    PageArm(
        prompt=1, n=2, stop="drawn in waves up to 1, 2", reward=0.8, standard_error=0.02, completions=1.5,
        use={"cost": 15.0, "tokens": 15.0}, words="", prompts=(1,),
    ),
    PageArm(
        prompt=0, n=1, stop="", reward=0.6, standard_error=0.03, completions=1.0, use={"cost": 4.0, "tokens": 4.0},
        words="", prompts=(0,),
    ),
)  # fmt: skip


def small_page(title: str = "A run", label: str = "Be brief") -> PageData:
    """Two prompts, N up to 4: the first leads at N = 1, and the second from N = 3 on; a cost unit is worth 0.01."""
    use = ((4.0, 8.0, 12.0, 16.0), (10.0, 20.0, 30.0, 40.0))
    return PageData(
        title=title,
        policy=Table(columns=("preference", "N"), rows=(Line(cells=("quality", "2")),), numbers=frozenset(["N"])),
        prompts=(
            PagePrompt(
                label=label, model="demo", decoding="", adapter="", instructions={"self": "Be brief"}, failed=0.25
            ),
            PagePrompt(
                label="Think first",
                model="demo",
                decoding="temperature=1.0",
                adapter="",
                instructions={"self": "Be slow"},
            ),
        ),
        student={"self": "Be brief"},
        cost_unit="output tokens",
        cost_scale=0.01,
        axes=(
            Axis(name="cost", title="Cost (output tokens)", values=use),
            Axis(name="tokens", title="Output tokens", values=use),
        ),
        views=(
            View(
                name="as compiled",
                reward=((0.6, 0.65, 0.66, 0.67), (0.5, None, 0.8, 0.85)),
                standard_error=((0.03, 0.02, 0.02, 0.02), (0.03, None, 0.02, 0.02)),
                weights=WEIGHTS,
                arms=ARMS,
                chosen=(0, 1, 1),
            ),
        ),
        deceptive=("quality: one prompt has the best single completions.",),
        rounds=(PageRound(prompts=2, pulls=8, completions=8), PageRound(prompts=1, pulls=2, completions=4)),
        spent={"Completions": "12", "Dollars": "0"},
        failures=PageFailures(completions=12, total=2, causes=(("TimeoutError: <late>", 2),)),
        larger=Table(columns=("preference", "budget"), rows=(Line(cells=("quality", "x 4")),)),
        remarks=("A budget ended the run early.",),
    )
