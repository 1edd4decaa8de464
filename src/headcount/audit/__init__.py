"""The audit: what a pretrained model's attention uses, per layer, side and head."""

from headcount.verbs import make_verb

make_verb(__name__, "headcount.audit.run", "audit")
