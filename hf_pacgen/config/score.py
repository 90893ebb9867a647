"""Settings of the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_pacgen.config.settings import SUBSET, Config, Count, Natural, NonNegative, Positive, Seed, Temperature, option
from hf_pacgen.facts import Choice
from hf_pacgen.maths.likelihoods import Likelihood
from hf_pacgen.maths.score import EPSILON, GAMMA, EpsilonScale


@dataclass(frozen=True, kw_only=True)
class EstimatorFacts:
    """What an estimator of the Hessian diagonal needs."""

    needs_products: bool = False
    needs_labels: bool = False  # sampled from the model's own logits, which only a cross-entropy has
    needs_whole_model: bool = False  # for second derivatives, which a model sharded over processes does not have
    most_parameters: int | None = None  # trainable ones
    has_standard_errors: bool = True  # entries without are exact


class Estimator(Choice):
    """How the Hessian diagonal is estimated."""

    facts: EstimatorFacts

    # Gauss-Newton is quiet but biased: Hutchinson corrects it
    BLEND = "blend", EstimatorFacts(needs_products=True, needs_labels=True)
    HUTCHINSON = "hutchinson", EstimatorFacts(needs_products=True)
    GAUSS_NEWTON = "gauss_newton", EstimatorFacts(needs_labels=True)
    # one backward pass for every parameter and batch
    EXACT = "exact", EstimatorFacts(needs_whole_model=True, most_parameters=20_000, has_standard_errors=False)


@dataclass(frozen=True, kw_only=True)
class HVPFacts:
    """What a Hessian-vector product needs of the model."""

    chooses: bool = False  # stands for whichever of the others suits the model
    differences: bool = False  # of gradients: they need float32, and no second derivatives
    passes_checkpoints: bool = False  # of activations
    passes_reentrant: bool = False  # checkpoints that allow one backward pass only
    reads_all_rows: bool = False  # weights are read before the model does it, so all embedding rows must be displaced


class HVPMethod(Choice):
    """How a Hessian-vector product is computed."""

    facts: HVPFacts

    AUTO = "auto", HVPFacts(chooses=True)
    REVERSE_OVER_REVERSE = "reverse_over_reverse", HVPFacts(passes_checkpoints=True)
    # torch.func substitutes the weights, and has no rule for a checkpoint
    FORWARD_OVER_REVERSE = "forward_over_reverse", HVPFacts(reads_all_rows=True)
    FINITE_DIFFERENCE = "finite_difference", HVPFacts(differences=True, passes_checkpoints=True, passes_reentrant=True)


RELATIVE_EPSILON = 1.0
"""ε of the default, in root mean squares: what ranked LeNets by their gap best, see examples/evidence.md."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """Settings of :func:`hf_pacgen.pacgen`.

    ``gamma`` and ``epsilon`` are γ and ε of N_i = γ|w_i| + ε, ``eta`` is η of K(η)
    (Wang et al. 2018, arXiv 1809.07402).

    >>> ScoreConfig(estimator="hutchinson", passes=4).to_dict()["estimator"]
    'hutchinson'
    """

    gamma: NonNegative = option(GAMMA, "γ of the neighborhood N_i = γ|w_i| + ε in which ρ is measured.")
    epsilon: NonNegative | None = option(
        None, "ε of the neighborhood N_i = γ|w_i| + ε. By default the root mean square of each tensor."
    )
    epsilon_scale: EpsilonScale | str | None = option(
        None,
        "What ε is measured in: 'absolute', as in the article, or 'rms', the root mean square of each tensor. By "
        "default 'absolute' for an ε that is given.",
    )
    eta: Temperature = option("n", "η of K(η): a number, or 'n', the size of the training set.")
    estimator: Estimator | str = option(
        Estimator.BLEND,
        "Estimator of the Hessian diagonal: 'blend' (Gauss-Newton corrected by Hutchinson where that is significant), "
        "'hutchinson' (unbiased, noisy), 'gauss_newton' (quiet, one gradient a batch, biased), 'exact' (small models).",
    )
    likelihood: Likelihood | str | None = option(
        None,
        "Likelihood whose negative logarithm the loss is, up to a factor and a constant: 'softmax', 'bernoulli', "
        "'gaussian' or 'spans' (two softmaxes, of an answer's beginning and end). It is checked. By default it is "
        "found out; a loss without one is differentiated twice through the model's outputs.",
    )
    hvp: HVPMethod | str = option(
        HVPMethod.AUTO,
        "Hessian-vector product: 'auto' takes finite differences of gradients where weights and compute are "
        "float32, and reverse_over_reverse (the derivative of the gradient) otherwise.",
    )
    passes: Count | None = option(
        None,
        "Number of times the estimator goes over the data, each time with new probes. By default once, or as often as "
        "it takes to make 8 products, so that their spread is known.",
    )
    lipschitz_directions: Natural = option(
        4, "Random displacements u, each on batches of its own, of which ρ is the median; 0 takes --rho."
    )
    lipschitz_iterations: Count = option(2, "Lanczos steps for the norm of H(w+u) - H(w), for each u.")
    lipschitz_batches: Count = option(1, "Number of batches for each of them, drawn at random.")
    rho: NonNegative = option(0.0, "ρ, the Lipschitz constant of the Hessian, for lipschitz_directions=0.")
    max_examples: Count | None = option(None, SUBSET)
    num_training_examples: Count | None = option(None, "Size of the training set, for eta='n'. By default the data's.")
    standard_error: bool = option(False, "Keep the standard errors of the Hessian diagonal (one more buffer like it).")
    displacement: Positive | None = option(
        None, "Norm ‖h z‖ of the step of a finite difference. By default a fraction of ‖w‖ that suits the dtype."
    )
    seed: Seed = option(0, "Seed of the probes, the sampled labels, the displacements u and the subset.")

    def __post_init__(self) -> None:
        super().__post_init__()
        # an ε that is given stays the length that it was in release 0.1
        scale = self.epsilon_scale
        if scale is None:
            scale = EpsilonScale.RMS if self.epsilon is None else EpsilonScale.ABSOLUTE
            object.__setattr__(self, "epsilon_scale", scale)
        if self.epsilon is None:
            of_tensor = EpsilonScale(scale).facts.of_tensor
            object.__setattr__(self, "epsilon", RELATIVE_EPSILON if of_tensor else EPSILON)
        if self.gamma == 0 and self.epsilon == 0:
            raise ValueError(
                "gamma and epsilon are both 0, so every neighborhood N_i = gamma*|w_i| + epsilon is empty; "
                "make at least one of them positive."
            )
        if self.likelihood is not None and not Estimator(self.estimator).facts.needs_labels:
            raise ValueError(
                f"likelihood={Likelihood(self.likelihood).value!r} was given together with "
                f"estimator={Estimator(self.estimator).value!r}, which draws no targets; leave likelihood out, or take "
                "estimator='blend' or 'gauss_newton'."
            )
        # one of the two would be ignored in silence
        if self.rho and self.lipschitz_directions:
            raise ValueError(
                f"rho={self.rho} was given together with lipschitz_directions={self.lipschitz_directions}; "
                "set lipschitz_directions=0 to use your rho, or leave rho at 0 to have it estimated."
            )

    @property
    def box(self) -> tuple[float, EpsilonScale]:
        """ε and what it is measured in, as they were settled."""
        if self.epsilon is None or self.epsilon_scale is None:
            raise LookupError("epsilon is settled where a ScoreConfig is made, and may not be taken away afterwards.")
        return self.epsilon, EpsilonScale(self.epsilon_scale)

    @classmethod
    def article(cls, **settings: Any) -> ScoreConfig:
        """The settings of the article, γ = ε = 0.1, whatever the defaults of this release are; others may be added.

        Source: Wang, Keskar, Xiong, Socher 2018, arXiv 1809.07402.
        """
        return cls(**{"gamma": 0.1, "epsilon": 0.1, "epsilon_scale": EpsilonScale.ABSOLUTE, **settings})
