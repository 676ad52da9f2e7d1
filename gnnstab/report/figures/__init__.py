"""Figures of a diagnosis, as matplotlib `Figure` objects made without pyplot and without global state.

::

    figure = heat_map(diagnosis, "attention.entropy")
    figure.savefig("entropy.svg")

Each function raises `NothingEvaluable` when the diagnosis holds nothing that it could draw. Importing this package
imports matplotlib.
"""

from gnnstab.report.figures._change import before_after as before_after
from gnnstab.report.figures._change import scaling_curve as scaling_curve
from gnnstab.report.figures._growth import growth_figures as growth_figures
from gnnstab.report.figures._growth import write_growth as write_growth
from gnnstab.report.figures._heat import heat_map as heat_map
from gnnstab.report.figures._profile import depth_profile as depth_profile
from gnnstab.report.figures._scores import score_distribution as score_distribution
from gnnstab.report.figures._scores import score_ranges as score_ranges
from gnnstab.report.figures._scores import spectral_norms as spectral_norms
from gnnstab.report.figures._writing import write_all as write_all
