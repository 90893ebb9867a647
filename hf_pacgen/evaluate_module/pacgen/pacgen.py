"""The ``pacgen`` metric of ``evaluate``: how well a model's solution should generalize, from training data alone.

This folder is laid out as a Space on the Hugging Face hub.  ``evaluate`` copies this file and takes the first metric
class that it finds in it: import modules that define metrics as modules, never a class from them.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os

import datasets
import evaluate

from hf_pacgen.config import RelativeSharpnessConfig, ScoreConfig
from hf_pacgen.config.settings import flag
from hf_pacgen.errors import InputError
from hf_pacgen.maths.arrays import to_number, to_tensors
from hf_pacgen.maths.score import pacgen_score
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.measures.relative_sharpness import relative_sharpness as relative_rise
from hf_pacgen.measures.session import DataOptions
from hf_pacgen.results.pacgen import PACGenResult, score_fields
from hf_pacgen.results.relative_sharpness import RelativeSharpness
from hf_pacgen.show.wording import composition

logger = logging.getLogger("hf_pacgen.evaluate_module")

_CITATION = """\
@article{wang2018identifying,
    title = {Identifying Generalization Properties in Neural Networks},
    author = {Wang, Huan and Keskar, Nitish Shirish and Xiong, Caiming and Socher, Richard},
    journal = {arXiv preprint arXiv:1809.07402},
    year = {2018}
}
"""

_DESCRIPTION = """\
PACGen says how well a model's solution should generalize, from the model and its training data alone: no held-out
data, no predictions and no references. It is small where the loss around the weights is flat.

    PACGen = sum_i log( (|w_i| + N_i) * max( sqrt(H_ii + rho * sqrt(m) * N_i), 1 / N_i ) )

with the m weights w_i, the neighborhood N_i = gamma * |w_i| + epsilon, the diagonal H_ii of the Hessian of the training
loss, and the Lipschitz constant rho of that Hessian. Beside it comes K(eta), the complexity in the PAC-Bayes bound from
which PACGen was derived. Lower is better.
"""

_KWARGS_DESCRIPTION = """
Either from a model and its training data:
    model: a loaded model, the folder of a saved one, or the id of one on the Hugging Face hub.
    data: its training data, with labels: a DataLoader, a `datasets.Dataset` of model inputs, or a list of batches.
        Where the model is given by name, the name of a data set (a file, a folder or a hub id) will do.
    loss_fn: `loss_fn(model, batch) -> (loss_sum, num_units)`, instead of the model's own loss: a sum over the
        batch's units (reduction="sum"), not their mean.
    collate_fn, batch_size: how a dataset becomes batches (by default padded batches of 8).
    accelerator: an `accelerate.Accelerator`, which shares the batches out over its processes.
    progress: whether to show a progress bar (True).
    relative_sharpness: whether to measure the rise of the loss under noise in proportion to the weights too (False).
or from numbers, without a model:
    weights: a tensor, an array or a list; or these by parameter name.
    hessian_diagonal: H_ii, shaped and named like `weights`.
    hessian_lipschitz: rho, at least 0 (0 leaves the smoothness of the Hessian out).

Settings, the fields of `hf_pacgen.ScoreConfig`; of these only `gamma`, `epsilon`, `epsilon_scale`, `eta` and
`num_training_examples` apply without a model:
SETTINGS

Returns a dictionary of floats; those of K(eta) are left out where neither `eta` nor the number of examples is known:
RETURNS

Examples:

    >>> import evaluate
    >>> metric = evaluate.load("pacgen")
    >>> results = metric.compute(
    ...     weights=[0.5, -1.0, 2.0], hessian_diagonal=[400.0, 100.0, -5.0], hessian_lipschitz=3.0, eta=1000.0,
    ...     epsilon=0.1,
    ... )
    >>> {name: round(value, 4) for name, value in results.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'pacgen': 7.0929, 'pacgen_per_parameter': 2.3643, 'pacgen_kl': 12.8979, 'pacgen_kl_per_parameter': 4.2993,
     'pacgen_kl_excess': 7.603, 'pacgen_kl_curvature': 5.8121, 'pacgen_active_fraction': 0.6667,
     'pacgen_kl_active_fraction': 0.6667, 'hessian_trace': 495.0, 'hessian_lipschitz': 3.0}
"""
for _place, _lines in {  # settings and numbers are described where they are declared, and only there
    "SETTINGS": [f"    {f.name}: {f.metadata['help'].replace('--', '')}" for f in dataclasses.fields(ScoreConfig)],
    "RETURNS": [
        f"    {facts.key}: {facts.meaning}"
        for facts in (*PACGenResult.facts().values(), *RelativeSharpness.facts().values())
        if facts.key
    ],
}.items():
    _KWARGS_DESCRIPTION = _KWARGS_DESCRIPTION.replace(_place, "\n".join(_lines))

_SETTINGS = {field.name: getattr(ScoreConfig(), field.name) for field in dataclasses.fields(ScoreConfig)}
# the settings that mean something without a model
_NUMBER_SETTINGS = ("gamma", "epsilon", "epsilon_scale", "eta", "num_training_examples")
_OPTIONS = [inspect.signature(pacgen).parameters[name] for name in DataOptions.__annotations__]
_NUMBERS = ("weights", "hessian_diagonal", "hessian_lipschitz")


def _with_keywords(compute):
    # the signature of a function with the options and the settings as keywords instead of ``**more``
    *rest, _ = inspect.signature(compute).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    settings = [inspect.Parameter(name, kind, default=default) for name, default in _SETTINGS.items()]
    options = [option.replace(annotation=inspect.Parameter.empty) for option in _OPTIONS]
    return inspect.Signature([*rest, *options, *settings])


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PACGen(evaluate.Metric):
    """See the metric card.

    Attributes:
        result: of the last computation on a model, the ``hf_pacgen.PACGenResult`` with all that is known about it.
        relative_sharpness: of the last one with ``relative_sharpness=True``, its result, with all levels and errors.
    """

    result = None
    relative_sharpness: RelativeSharpness | None = None
    name = "pacgen"  # evaluate would make pac_gen of the class's name
    _has_warned = False  # by instance, not by process: another metric tells again

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._module_info.module_name = self.name

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({}),  # there are no predictions and no references
            reference_urls=["https://arxiv.org/abs/1809.07402"],
        )

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Compute PACGen.  All arguments are keywords; there are no predictions and no references.

        What it raises is a ``ValueError`` that says what was expected, what came and what to do; a ``TypeError`` for a
        keyword that there is not.  A model is left exactly as it was found.
        """
        if predictions is not None or references is not None:
            raise InputError(
                "PACGen takes no predictions and no references: give model= with its training data=, "
                "or weights= with hessian_diagonal= and hessian_lipschitz=."
            )
        # The base class would write predictions to a file and read them back; there are none.
        return self._compute(**kwargs)

    def _compute(
        self,
        *,
        model=None,
        data=None,
        weights=None,
        hessian_diagonal=None,
        hessian_lipschitz=None,
        relative_sharpness=False,
        **more,
    ):
        options = {option.name: more.pop(option.name) for option in _OPTIONS if option.name in more}
        config = ScoreConfig(**more)
        given = dict(zip(_NUMBERS, (weights, hessian_diagonal, hessian_lipschitz), strict=True))
        numbers = {name: value for name, value in given.items() if value is not None}
        with_sharpness = flag(relative_sharpness, "relative_sharpness")
        if model is None and data is None:
            if with_sharpness:
                raise InputError("relative_sharpness=True is measured on a model: give model= and data=.")
            return self._from_numbers(numbers, config)
        if numbers:
            raise InputError(
                f"Both a model or data and {', '.join(numbers)} were given. Give model= and data=, "
                "or weights=, hessian_diagonal= and hessian_lipschitz=, and not both."
            )
        if model is None or data is None:
            missing = "model" if model is None else "data"
            raise InputError(f"{missing}= is missing: a score needs a model and its training data.")
        notes = ()
        if isinstance(model, (str, os.PathLike)):
            from hf_pacgen.command_line.inputs.load import load_named  # only now: it brings transformers

            model, data, notes = load_named(model, data, seed=config.seed)
        self.result = pacgen(model, data, config=config, **options)
        self._tell(*notes, *self.result.status)
        found = self.result.metrics()
        if with_sharpness:
            same = RelativeSharpnessConfig(max_examples=config.max_examples, seed=config.seed)
            self.relative_sharpness = measured = relative_rise(model, data, config=same, **options)
            self._tell(*measured.status)
            found |= measured.metrics()
        return found

    # Options and settings are declared once, elsewhere; tools see them one by one.
    _compute.__signature__ = _with_keywords(_compute)

    def _from_numbers(self, numbers, config):
        missing = [name for name in _NUMBERS if name not in numbers]
        if missing:
            raise InputError(
                f"Not given: {', '.join(missing)}. A score needs model= and data=, or all of weights=, "
                "hessian_diagonal= and hessian_lipschitz= (0 leaves the smoothness of the Hessian out)."
            )
        # a setting that cannot matter here is a mistake, and would be taken for granted in silence
        changed = [name for name, default in _SETTINGS.items() if getattr(config, name) != default]
        useless = [name for name in changed if name not in _NUMBER_SETTINGS]
        if useless:
            raise InputError(
                f"{', '.join(useless)} cannot be heeded without a model: with weights= and hessian_diagonal= there is "
                f"nothing left to estimate. Leave it out; the settings are {', '.join(_NUMBER_SETTINGS)}."
            )
        # K(η) at η = n needs n; Ψ and the trace do not, and are what is left then
        eta = config.num_training_examples if config.eta == "n" else config.eta
        rho = to_number(numbers["hessian_lipschitz"], "hessian_lipschitz")
        w, h = (to_tensors(numbers[name], name) for name in ("weights", "hessian_diagonal"))
        # the two may come from different places; names that do not match are refused by the score
        h = {name: value.to(w[name].device) if name in w else value for name, value in h.items()}
        epsilon, scale = config.box
        settings = {"gamma": config.gamma, "epsilon": epsilon, "epsilon_scale": scale, "eta": float(eta or 1)}
        terms = pacgen_score(w, h, rho, **settings)
        found = {
            **score_fields(terms),
            "hessian_trace": sum(value.double().sum().item() for value in h.values()),
            "hessian_lipschitz": rho,
        }
        if eta is None:
            found = {name: value for name, value in found.items() if not name.startswith("kl_")}
            self._tell(
                "K(η) is left out: eta='n' is the number of training examples, which is not known without a model and "
                "data. Give num_training_examples=, or eta= a number, to have it."
            )
        else:
            self._tell(*composition(terms, float(eta)))
        return PACGenResult.keyed(found)

    def _tell(self, *sentences):
        # warn at the first computation; a training run that computes the metric a hundred times is told once
        for sentence in sentences:
            logger.log(logging.INFO if self._has_warned else logging.WARNING, "%s", sentence)
        self._has_warned = self._has_warned or bool(sentences)
