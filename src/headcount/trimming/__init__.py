"""From a pretrained model to a smaller one: audit, plan, trim, evaluate."""
