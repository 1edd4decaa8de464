"""The plan: from evidence and a budget to ranks, layer by layer."""

from headcount.verbs import make_verb

make_verb(__name__, "headcount.plan.make", "plan")
