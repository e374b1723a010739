"""Names of rewriters in saved programs: all of a rewriter but its LM, of which only the model string is saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iapo_dspy.prompts.lms import LMs, ModelName, find_lm, model_names
from iapo_dspy.prompts.rewriters.rewriter import Rewriter
from iapo_dspy.types import Decoding

_CHOICE = ("k", "choose", "tilt", "reward")
PART = "rewriter"  # the name of its LM beside those of predictors, for mappings such as lms=[{"rewriter": lm}]


@dataclass(frozen=True, kw_only=True)
class RewriterName:
    """A rewriter without its LM. Attributes that are not listed are those of `Rewriter`.

    Attributes:
        lm: The name of its LM.
        words: It in words, different for each rewriter of a run.
        reward: The name of its reward, which is not saved; None for a rewriter without one.
    """

    lm: ModelName
    template: str
    decoding: Decoding
    field: str
    name: str
    words: str
    until: tuple[str, ...] = ()
    k: int = 1
    choose: str = "draw"
    tilt: float = 1.0
    reward: str | None = None

    def __str__(self) -> str:
        return f"{self.words} ({self.lm})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data that `from_json` reads back."""
        return {
            "name": self.name,
            "words": self.words,
            "field": self.field,
            "lm": self.lm.to_json(),
            "template": self.template,
            "decoding": self.decoding.as_kwargs(),
            **({"until": list(self.until)} if self.until else {}),
            **({name: getattr(self, name) for name in _CHOICE} if self.reward is not None else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RewriterName:
        """Read data that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: The data are damaged.
        """
        texts = {name: data[name] for name in ("name", "words", "field", "template")}
        if not all(isinstance(text, str) and text for text in texts.values()):
            raise TypeError(f"a rewriter needs {sorted(texts)} as text; found {data!r}")
        return cls(
            **texts,
            lm=ModelName.from_json(data["lm"]),
            decoding=Decoding(**data["decoding"]),
            until=tuple(map(str, data.get("until", ()))),
            **{name: data[name] for name in _CHOICE if "reward" in data},
        )


def named_rewriters(rewriters: Sequence[Rewriter]) -> tuple[RewriterName, ...]:
    """Name the rewriters of a run, which know their fields; those of one name are numbered from the second on."""
    seen: Counter[str] = Counter()
    found = []
    for rewriter, lms in zip(rewriters, model_names([{PART: r.lm} for r in rewriters]), strict=True):
        seen[rewriter.name] += 1
        nth = seen[rewriter.name]
        found.append(
            RewriterName(
                lm=lms[PART],
                template=rewriter.template,
                decoding=rewriter.decoding,
                field=rewriter.field or "",
                name=rewriter.name,
                words=rewriter.name if nth == 1 else f"{rewriter.name} ({nth})",
                until=rewriter.until,
                k=rewriter.k,
                choose=rewriter.choose,
                tilt=rewriter.tilt,
                reward=rewriter.reward_name,
            )
        )
    return tuple(found)


def find_rewriter(name: RewriterName, rewriters: Sequence[Rewriter], lms: Sequence[LMs]) -> Rewriter | None:
    """Return the rewriter of this name: one of those given, or one that is made with an LM of those given.

    None where its LM or its reward is not there.
    """
    for given, known in zip(rewriters, named_rewriters(rewriters), strict=True):
        if replace(known, words=name.words, lm=name.lm, field=known.field or name.field) == name:
            if known.lm.model == name.lm.model and known.words == name.words:
                return given if known.field else replace(given, field=name.field)
    if name.reward is not None:
        return None
    lm = find_lm([e for e in lms if isinstance(e, Mapping)], PART, name.lm) or find_lm(lms, PART, name.lm)
    if lm is None:
        return None
    return Rewriter(
        lm,
        template=name.template,
        decoding=name.decoding,
        field=name.field,
        name=name.name,
        until=name.until,
    )


def way_to_give(name: RewriterName) -> str:
    """Return the way to give a program the LM of a rewriter, or the rewriter, in words."""
    if name.reward is not None:
        return (
            f"A saved program does not hold its reward {name.reward!r}. Give the rewriter again: "
            "CompiledProgram(student, rewriters=[Rewriter(...)]), or iapo_dspy.load(path, rewriters=[...])."
        )
    return (
        "A saved program holds a rewriter's template and decoding, and the name of its LM. Give the LM: "
        f"CompiledProgram(student, lms=[dspy.LM({name.lm.model!r}), ...]), or "
        f"iapo_dspy.load(path, lms=[{{{PART!r}: dspy.LM({name.lm.model!r})}}]) where the student asks it, too."
    )
