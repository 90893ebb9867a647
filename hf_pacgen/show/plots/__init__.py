"""Pictures of our results.  Each function takes a result, draws on matplotlib Axes and returns them.

    axes = plot_by_module(result)
    save_figure(axes, "modules.svg")

They draw on the Axes ``ax``, or by default on a figure of their own, which is ``axes.figure``.  matplotlib is an extra,
and an ImportError says so: ``pip install "hf_pacgen[plots]"``.  Nothing here touches pyplot's state of the process, so
these work in servers and threads too; in a notebook, ``axes.figure`` as the last line of a cell shows the picture.
"""

from hf_pacgen.show.plots.gap import plot_gap
from hf_pacgen.show.plots.landscape import plot_loss_slice
from hf_pacgen.show.plots.promise import plot_coverage_risk
from hf_pacgen.show.plots.reliability import plot_reliability
from hf_pacgen.show.plots.runs import plot_runs
from hf_pacgen.show.plots.score import plot_by_module, plot_hessian_diagonal
from hf_pacgen.show.plots.spectrum import plot_spectral_density
from hf_pacgen.show.plots.style import save_figure

__all__ = [
    "plot_by_module",
    "plot_coverage_risk",
    "plot_gap",
    "plot_hessian_diagonal",
    "plot_loss_slice",
    "plot_reliability",
    "plot_runs",
    "plot_spectral_density",
    "save_figure",
]
