"""What a model's attention costs and what trimming it did: quality, cache, speed and memory, side by side."""

from headcount.verbs import make_verb

make_verb(__name__, "headcount.evaluate.run", "evaluate")
