"""Drug models that configurations of tests can name."""

from twinlib.models.pharmacokinetics import Pharmacokinetics

ONE = Pharmacokinetics(oral=False, error="proportional")
TWO = Pharmacokinetics(compartments=2, oral=False, error="proportional", name="pharmacokinetics_two_compartments")
ADDITIVE = Pharmacokinetics(oral=False, name="pharmacokinetics_additive")
