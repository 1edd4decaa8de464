"""headcount: how much attention does this Transformer need, and can I have the model that has just that?"""

__version__ = "0.1.0.dev0"
