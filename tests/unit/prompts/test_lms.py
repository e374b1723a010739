"""LMs are found by their names, and their prices may be unknown."""

from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy import Cost, Decoding
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.lms import ModelName, combine, default_cost, find_lm, model_names, models_of, read_distinct_lms
from iapo_dspy.sampling.lm.params import check_decoding, request_params


def lm(model: str = "openai/a", **settings: Any) -> dspy.LM:
    return dspy.LM(model, **settings)


# -- names


@given(st.lists(st.dictionaries(st.sampled_from("pq"), st.integers(0, 5)), max_size=6))
def test_every_lm_is_found_by_its_name(choices: list[dict[str, int]]) -> None:
    lms = [
        lm("openai/a"),
        lm("openai/a", temperature=0.5),
        lm("openai/b"),
        lm("x/c"),
        lm("x/c", seed=1),
        lm("x/c", n=2),
    ]
    bound = [{name: lms[i] for name, i in choice.items()} for choice in choices]
    for names, mine in zip(model_names(bound), bound, strict=True):
        assert names.keys() == mine.keys()
        for predictor, name in names.items():
            assert ModelName.from_json(name.to_json()) == name
            assert find_lm(bound, predictor, name) is mine[predictor]


def test_names_number_lms_of_one_model_string_for_each_predictor() -> None:
    first, second, other = lm(), lm(temperature=0.3), lm("openai/b")
    names = model_names([{"p": first, "q": second}, {"p": second, "q": second}, {"p": other}])
    assert [{k: str(v) for k, v in n.items()} for n in names] == [
        {"p": "openai/a", "q": "openai/a"},
        {"p": "openai/a (2)", "q": "openai/a"},
        {"p": "openai/b"},
    ]
    pool = [other, first, {"q": second}]
    assert find_lm(pool, "p", ModelName("openai/a")) is first and find_lm(pool, "p", ModelName("openai/a", 2)) is None
    assert find_lm(pool, "q", ModelName("openai/a", 2)) is second


def test_combining_keeps_the_order_and_names_the_models() -> None:
    small, large = lm("openai/s"), lm("openai/l")
    one, two = Decoding(), Decoding(temperature=0.5)
    assert [s.model for s in combine([small], ["p"], (one,))] == [""]  # no choice, no name
    assert [s.model for s in combine([], ["p"], (one, two))] == [""]
    served = combine([small, {"q": large}, {"p": small, "q": large}], ["p", "q"], (one, two))
    assert [s.model for s in served] == ["openai/s", "q: openai/l", "p: openai/s, q: openai/l"]
    assert [sorted(s.lms) for s in served] == [["p", "q"], ["q"], ["p", "q"]]
    served = combine([small, large], ["p"], {"openai/l": (two,)})
    assert [s.decodings for s in served] == [(one,), (two,)]


def test_lms_differ_by_what_they_send() -> None:
    assert len(read_distinct_lms([lm(), lm(temperature=0.2), lm(api_base="http://x"), DummyLM([]), DummyLM([])])) == 5
    same = DummyLM([])
    for pair in ([lm(), lm()], [same, same], [{"p": lm()}, {"p": lm()}]):
        with pytest.raises(ConfigurationError, match=r"lms\[1\] is the same as lms\[0\]"):
            read_distinct_lms(pair)
    with pytest.raises(ConfigurationError, match=r"lms\[1\] is the same as lms\[0\]"):
        combine([same, {"p": same}], ["p"], (Decoding(),))


def test_the_models_of_a_program() -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = dspy.Predict("x -> y"), dspy.Predict("y -> z")

    program = Two()
    with dspy.context(lm=lm("openai/c")):
        assert models_of(program) == "openai/c"
        program.b.lm = lm("openai/d")
        assert models_of(program) == ("openai/c", "openai/d")


# -- the default cost


def test_tokens_count_where_all_have_one_price_and_dollars_where_not() -> None:
    mini, big = lm("openai/gpt-4o-mini"), lm("openai/gpt-4o")
    assert default_cost([]) == default_cost([mini]) == default_cost([lm("openai/nobody-knows")]) == Cost()
    assert default_cost([mini, lm("openai/gpt-4o-mini", temperature=0.3)]) == Cost()
    assert default_cost([lm("openai/who"), lm("openai/who", temperature=0.3)]) == Cost()  # one model, at any price
    assert default_cost([mini, big]) == default_cost([{"p": mini, "q": big}]) == Cost(usd=1)
    dear = lm("openai/gpt-4o-mini", input_cost_per_token=1e-3, output_cost_per_token=1e-3)
    assert default_cost([mini, dear]) == Cost(usd=1)  # one model string, two prices
    with pytest.raises(ConfigurationError, match=r"\['openai/who'\].*completion_tokens=1"):
        default_cost([mini, lm("openai/who")])


# -- what models take


def test_what_litellm_refuses_is_refused_beforehand() -> None:
    effort = Decoding(reasoning_effort="low")
    with pytest.raises(ConfigurationError, match=r"openai/gpt-4o-mini.*reasoning_effort='low'.*IAPO\(lms="):
        check_decoding(lm("openai/gpt-4o-mini"), None, effort)
    with pytest.raises(ConfigurationError, match=r"temperature=0\.5"):
        check_decoding(lm("openai/gpt-5-mini"), None, Decoding(temperature=0.5))
    for model in ("openai/gpt-5-mini", "openai/served-here", "hosted_vllm/x", "azure/my-deployment", "nobody/knows"):
        check_decoding(lm(model), None, effort)
    check_decoding(lm("openai/gpt-4o-mini", allowed_openai_params=["reasoning_effort"]), None, effort)
    both = Decoding(reasoning_effort="low", temperature=0.5)
    check_decoding(lm("openai/gpt-4o-mini", allowed_openai_params=["reasoning_effort"]), None, both)
    check_decoding(lm("openai/gpt-4o-mini"), None, Decoding(temperature=0.5, top_p=0.9, max_tokens=9))
    check_decoding(DummyLM([]), None, effort)


def test_an_effort_reaches_models_that_litellm_does_not_know() -> None:
    effort = Decoding(reasoning_effort="low")
    unknown = request_params(lm("azure/my-deployment"), None, effort)
    assert unknown["reasoning_effort"] == "low" and unknown["allowed_openai_params"] == ["reasoning_effort"]
    own = request_params(lm("azure/my-deployment", allowed_openai_params=["x"]), None, effort)
    assert own["allowed_openai_params"] == ["x", "reasoning_effort"]
    for model in ("openai/gpt-5-mini", "hosted_vllm/x"):
        assert "allowed_openai_params" not in request_params(lm(model), None, effort)
    assert "allowed_openai_params" not in request_params(DummyLM([]), None, effort)
