"""Reward models in this process: tiny classifiers with random weights, made here. Needs the extra `rewards`."""

import threading
from pathlib import Path
from typing import Any

import dspy
import pytest

from iapo_dspy import BestOfN, objectives
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.objectives import pairs, rewards
from iapo_dspy.testing import check_objective

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EXAMPLE = dspy.Example(prompt="How are you ?").with_inputs("prompt")
WORDS = "how are you ? fine and i am so good bad answer Human : Assistant user assistant".split()
ANSWERS = ["i am fine", "so so", "good good good good answer", "bad", "you and you and you", "?"]


def make(path: Path, *, labels: int = 1, seed: int = 0, template: bool = False, positions: int = 64) -> str:
    """Save a GPT-2 of two layers with a word-level tokenizer; like GPT-2, it has no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(["<unk>", "<|endoftext|>", *dict.fromkeys(w.lower() for w in WORDS)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    if template:
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_embd=16, n_layer=2, n_head=2, n_positions=positions, num_labels=labels,
        id2label={0: "hallucinated", 1: "faithful"} if labels == 2 else None,
        label2id={"hallucinated": 0, "faithful": 1} if labels == 2 else None,
    )  # fmt: skip
    transformers.GPT2ForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("one") / "tiny-reward")


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("two"), labels=2)


def of(objective: Any, answer: str) -> float:
    found: float = objective(EXAMPLE, dspy.Prediction(response=answer))
    return found


def logits(path: str, *texts: str) -> list[float]:
    """What transformers itself gives for one text or pair, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        found: list[float] = classifier(**tokenizer(*texts, return_tensors="pt")).logits[0].tolist()
    return found


def test_the_score_is_the_models_own_logit(model: str) -> None:
    objective = objectives.reward_model(model)
    assert objective.name == "tiny-reward" and objective.calibrate == "minmax"
    for answer in ANSWERS:
        assert of(objective, answer) == pytest.approx(logits(model, "How are you ?", answer)[0], abs=1e-5)
    assert len({of(objective, a) for a in ANSWERS}) == len(ANSWERS)


def test_forms_decide_what_the_model_reads(model: str, tmp_path: Path) -> None:
    swapped = objectives.reward_model(model, form=lambda q, a: f"{a} <|endoftext|> {q}")
    assert of(swapped, "bad") == pytest.approx(logits(model, "bad <|endoftext|> How are you ?")[0], abs=1e-5)
    chat = make(tmp_path, template=True)
    text = "user : How are you ? assistant : bad "
    assert of(objectives.reward_model(chat), "bad") == pytest.approx(logits(chat, text)[0], abs=1e-5)
    assert of(objectives.reward_model(chat, form="pair"), "bad") == pytest.approx(
        logits(chat, "How are you ?", "bad")[0], abs=1e-5
    )


def test_labels_are_chosen_by_index_or_name_and_may_be_probabilities(two_labels: str) -> None:
    both = logits(two_labels, "How are you ?", "bad")
    assert of(objectives.reward_model(two_labels, label=1), "bad") == pytest.approx(both[1], abs=1e-5)
    assert of(objectives.reward_model(two_labels, label="Hallucinated"), "bad") == pytest.approx(both[0], abs=1e-5)
    probable = objectives.reward_model(two_labels, label="faithful", probability=True)
    assert probable.calibrate is None and probable.bounds == (0.0, 1.0)
    expected = float(torch.softmax(torch.tensor(both), 0)[1])
    assert of(probable, "bad") == pytest.approx(expected, abs=1e-5)
    for label in (None, 2, "true"):
        with pytest.raises(ConfigurationError, match=r"2 labels, .*'faithful'"):
            of(objectives.reward_model(two_labels, label=label), "bad")


def test_a_single_logits_probability_is_its_logistic(model: str) -> None:
    expected = float(torch.sigmoid(torch.tensor(logits(model, "How are you ?", "bad")[0])))
    assert of(objectives.reward_model(model, probability=True), "bad") == pytest.approx(expected, abs=1e-5)


def test_what_is_too_long_is_cut_off(tmp_path: Path) -> None:
    short = make(tmp_path, positions=8)
    long_answer = "good " * 50
    assert of(objectives.reward_model(short), long_answer) == pytest.approx(
        logits(short, "How are you ?", "good " * 4)[0], abs=1e-5
    )
    assert of(objectives.reward_model(short, max_length=6), long_answer) == pytest.approx(
        logits(short, "How are you", "good " * 3)[0],
        abs=1e-5,  # the longer one first, then both in turn
    )


def test_a_model_is_loaded_once_and_threads_share_forward_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path)
    loads: list[str] = []
    load = transformers.AutoModelForSequenceClassification.from_pretrained

    def counting(*args: Any, **kwargs: Any) -> Any:
        loads.append(str(args[0]))
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", counting)
    passes: list[int] = []
    forward = rewards._Loaded._forward
    entered, go = threading.Event(), threading.Event()

    def slow(self: Any, items: Any) -> Any:
        passes.append(len(items))
        entered.set()
        go.wait(10)
        return forward(self, items)

    monkeypatch.setattr(rewards._Loaded, "_forward", slow)
    several = [objectives.reward_model(path), objectives.reward_model(path, name="again")]
    answers = [f"{a} {b}" for a in ANSWERS for b in ("and", "you", "so")]
    found: dict[int, float] = {}
    threads = [
        threading.Thread(target=lambda i=i, a=a: found.update({i: of(several[i % 2], a)}))
        for i, a in enumerate(answers)
    ]
    threads[0].start()
    assert entered.wait(30)
    for t in threads[1:]:
        t.start()
    (loaded,) = [f.result() for s, f in rewards._LOADED._results.items() if s.model == path]
    while len(loaded.score._waiting) < len(answers) - 1:
        pass
    go.set()
    for t in threads:
        t.join(30)
    assert loads == [path]
    assert passes == [1, len(answers) - 1]  # the first one waited for nobody, the others went together
    for i, answer in enumerate(answers):  # padding changes nothing but rounding
        assert found[i] == pytest.approx(logits(path, "How are you ?", answer)[0], abs=1e-5)


def test_a_text_that_fails_takes_no_other_with_it(model: str) -> None:
    strategy = BestOfN([objectives.reward_model(model, question="prompt", answer="response")])
    read = strategy.read({"prompt": "How are you ?"}, dspy.Prediction(other="bad"))
    assert read.scores is None and "no field 'response'" in str(read.failure)
    assert strategy.read({"prompt": "How are you ?"}, dspy.Prediction(response="bad")).scores is not None


def test_they_conform(model: str) -> None:
    cases = [EXAMPLE, dspy.Example(prompt="you ?", label="x").with_inputs("prompt")] * 3
    answers = [dspy.Prediction(response=a) for a in ANSWERS]
    check_objective(objectives.reward_model(model), cases, answers, tolerance=1e-4)


def test_a_model_that_is_not_there_and_arguments_that_make_no_sense_say_so(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        of(objectives.reward_model(str(tmp_path / "nothing"), local_files_only=True), "bad")
    with pytest.raises(ConfigurationError, match="no such dtype"):
        of(objectives.reward_model(model, dtype="float99"), "bad")
    for kwargs in ({"batch_size": 0}, {"max_length": -1}, {"form": "prose"}, {"bounds": (0, 9), "calibrate": "rank"}):
        with pytest.raises(ConfigurationError):
            objectives.reward_model(model, **kwargs)
    half = objectives.reward_model(model, dtype="bfloat16")
    assert of(half, "bad") == pytest.approx(of(objectives.reward_model(model), "bad"), abs=0.05)


def test_a_run_is_refused_before_the_first_call_where_the_model_cannot_score(two_labels: str) -> None:
    from iapo_dspy import IAPO, Execution, Preference
    from tests.support.loopback import Loopback, chat

    with Loopback(lambda body, i: chat(response=ANSWERS[i % 6])) as server, dspy.context(lm=server.lm()):
        settings: dict[str, Any] = {
            "preferences": [Preference("quality")], "max_n": 2, "budget": 24, "candidates": ["Say."],
            "execution": Execution(progress=False),
        }  # fmt: skip
        student = dspy.Predict("prompt -> response")
        with pytest.raises(ConfigurationError, match="2 labels"):
            IAPO(strategy=BestOfN([objectives.reward_model(two_labels)]), **settings).compile(
                student, trainset=[EXAMPLE] * 4
            )
        assert server.requests == 0
        chooser = IAPO(strategy=BestOfN([objectives.reward_model(two_labels, label="faithful", name="f")]), **settings)
        program = chooser.compile(student, trainset=[EXAMPLE] * 4)
        low, high = (float(v) for v in program.policy.ready.strategy["calibration"]["f"]["raw"].split())
        seen = [logits(two_labels, "How are you ?", a)[1] for a in ANSWERS]
        assert (low, high) == pytest.approx((min(seen), max(seen)), abs=1e-4)
        prediction = program(prompt="How are you ?")
        best = max(prediction.completions.response, key=lambda a: logits(two_labels, "How are you ?", a)[1])
        assert prediction.response == best


def test_the_papers_models_are_known_by_name_in_the_form_of_their_cards() -> None:
    helpful, faithful, summary = (pairs.REWARD_MODELS[n] for n in ("helpful", "faithful", "summary"))
    assert callable(helpful.form) and callable(faithful.form) and callable(summary.form)
    assert helpful.form("Hi?", "Hello.") == ("\n\nHuman: Hi? \n\nAssistant:", "Hello.")
    assert pairs.REWARD_MODELS["harmless"].form is helpful.form
    assert faithful.form("a long text", "a summary") == ("a summary", "a long text") and faithful.label == 1
    assert summary.form("a long text", "a summary") == "a summary <|endoftext|> a long text"
    objective = objectives.reward_model("Ray2333/gpt2-large-helpful-reward_model")
    assert objective.name == "helpful" and objective.score == objectives.reward_model("helpful").score
