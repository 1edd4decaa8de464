"""Trimming: a pretrained model becomes one whose attention keeps latents."""

from headcount.verbs import make_verb

make_verb(__name__, "headcount.trim.run", "trim")
