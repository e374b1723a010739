"""Prompts for objective and subjective sentences."""

SUBJECTIVITY = (
    "objective or subjective?",
    "Label the sentence with one word: objective or subjective.",
    "Fact or opinion? A fact is objective, an opinion is subjective.",
    "You are the editor of an encyclopedia. A sentence that may stay is objective; one that you strike as somebody's "
    "view is subjective.",
    "You are a judge who admits facts only. Admitted: objective. Refused: subjective.",
    "objective: it says what happens, who somebody is, or where a story goes. subjective: it says what somebody thinks "
    "or feels of it. Choose one.",
    "Does the sentence tell the story of a film, or does it judge the film? Telling is objective, judging is "
    "subjective.",
    "Look for words of praise, blame or taste. If you find one, the label is subjective; if not, it is objective.",
    "Step 1: ask what the sentence is about. Step 2: ask whether two honest people could disagree with it. If they "
    "could, it is subjective, otherwise objective.",
    "Checklist: an adjective of value, an 'I' or 'you', a comparison with other films, a joke at its cost. One tick or "
    "more: subjective. Not a tick: objective.",
    "Say who speaks, a narrator or a critic. A narrator is objective, a critic is subjective.",
    "Rewrite the sentence in your mind as a bare report. If nothing is lost it was objective; if its point is lost it "
    "was subjective.",
    "Names, places and plots are objective, however dramatic they are. Verdicts are subjective, however sober they "
    "sound.",
    "Decide, then argue the other label to yourself in one sentence. Keep your label unless that argument is better.",
)
