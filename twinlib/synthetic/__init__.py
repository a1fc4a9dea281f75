"""The synthetic cohort: known truth in the shapes of real exports."""

from twinlib.synthetic.generate import generate

__all__ = ["generate"]
