"""The flags of every command, for completion; their parsers would import torch.  By tests/flag_table.py."""

from __future__ import annotations

FLAGS = {
    "score": (
        "--assistant-only --audio-column --base-model --batch-size --checkpoint --checkpoint-dir "
        "--checkpoint-every --choice-columns --completion-only --dataset --dataset-config --device "
        "--displacement --dry-run --dtype --eos --epsilon --epsilon-scale --estimator --eta --gamma --help "
        "--hvp --image-column --label-column --likelihood --lipschitz-batches --lipschitz-directions "
        "--lipschitz-iterations --load-in-4bit --mask-share --max-examples --max-length --no-completion-only "
        "--no-progress --num-training-examples --output --passes --processes --progress --quiet --random-head "
        "--revision --rho --sample-by --seed --source-prefix --split --standard-error --streaming --task "
        "--template --text-column --text-pair-column --top-modules --trust-remote-code -h"
    ),
    "sharpness": (
        "--antithetic --ascent-starts --ascent-steps --assistant-only --audio-column --base-model --batch-size "
        "--box --checkpoint --choice-columns --completion-only --dataset --dataset-config --device "
        "--distribution --draws --dtype --eigenvalues --eos --epsilon --gamma --help --image-column "
        "--iterations --label-column --levels --load-in-4bit --mask-share --max-examples --max-length "
        "--no-antithetic --no-completion-only --no-progress --noise-scale --output --probes --progress --quiet "
        "--random-head --relative --revision --sample-by --seed --source-prefix --split --streaming --task "
        "--template --text-column --text-pair-column --tolerance --trust-remote-code -h"
    ),
    "compare": (
        "--assistant-only --audio-column --base-model --batch-size --checkpoint --choice-columns "
        "--completion-only --csv --dataset --dataset-config --device --displacement --draws --dtype --eos "
        "--epsilon --epsilon-scale --estimator --eta --eval-dataset --eval-split --gamma --help --hvp "
        "--image-column --iterations --json --label-column --likelihood --lipschitz-batches "
        "--lipschitz-directions --lipschitz-iterations --load-in-4bit --mask-share --max-examples --max-length "
        "--measures --no-completion-only --no-progress --noise-scale --num-training-examples --output --passes "
        "--plot --progress --quiet --random-head --revision --rho --sample-by --seed --source-prefix --split "
        "--standard-error --streaming --task --template --text-column --text-pair-column --trust-remote-code -h"
    ),
    "promise": (
        "--assistant-only --assume-independent --audio-column --base-model --batch-size --blocks --candidates "
        "--checkpoint --choice-columns --cold-start --completion-only --coverage --dataset --dataset-config "
        "--delta --device --dtype --eos --expected-error --held-out --help --how --image-column --label-column "
        "--load-in-4bit --loss --mask-share --max-error --max-examples --max-length --no-completion-only "
        "--no-progress --output --plot --progress --quiet --random-head --revision --sample-by --save-models "
        "--seed --source-prefix --split --streaming --task --template --text-column --text-pair-column --train "
        "--train-fraction --trainer-state --training-data --training-split --trust-remote-code --unlabeled -h"
    ),
    "predict": (
        "--assistant-only --audio-column --base-model --batch-size --checkpoint --choice-columns "
        "--completion-only --data --dataset --dataset-config --device --draws --dtype --eos --help "
        "--image-column --label-column --load-in-4bit --mask-share --max-examples --max-length "
        "--max-training-examples --no-completion-only --no-progress --noise-scale --output --plot --predictions "
        "--progress --quiet --random-head --revision --sample-by --seed --source-prefix --split --streaming "
        "--task --template --text-column --text-pair-column --top-classes --training-data --training-split "
        "--trust-remote-code -h"
    ),
    "certify": (
        "--assistant-only --assume-independent --audio-column --base-model --batch-size --bound --checkpoint "
        "--choice-columns --completion-only --dataset --dataset-config --delta --device --distribution --draws "
        "--dtype --eos --epsilon --estimator --eta --etas --gamma --held-out --help --image-column "
        "--label-column --load-in-4bit --mask-share --max-examples --max-length --no-completion-only "
        "--no-progress --no-refine-mean --output --parameters --prior --prior-groups --prior-is-independent "
        "--prior-scales --progress --quiet --random-head --refine-learning-rate --refine-mean --refine-steps "
        "--revision --sample-by --search-examples --seed --source-prefix --split --streaming --task --template "
        "--text-column --text-pair-column --top-modules --trust-remote-code -h"
    ),
    "card": ("--certificate --dataset --dataset-name --force --help --model --model-name --split --task -h"),
    "register": ("--help -h"),
}
"""By command."""
SWITCHES = (
    "--antithetic --assistant-only --assume-independent --cold-start --completion-only --dry-run --force "
    "--held-out --help --load-in-4bit --no-antithetic --no-completion-only --no-progress --no-refine-mean "
    "--prior-is-independent --progress --quiet --random-head --refine-mean --relative --standard-error "
    "--streaming --trust-remote-code -h"
)
"""Those that take no value."""
SEVERAL = (
    "--choice-columns --data --dataset --etas --eval-dataset --held-out --levels --parameters --prior-scales "
    "--processes --training-data --unlabeled"
)
"""Those that take several."""
CHOICES = {
    "--bound": ("kl hoeffding hoeffding_article"),
    "--distribution": ("uniform truncated_normal normal"),
    "--dtype": ("auto float64 float32 bfloat16 float16"),
    "--eos": ("auto add none"),
    "--estimator": ("blend hutchinson gauss_newton exact"),
    "--hvp": ("auto reverse_over_reverse forward_over_reverse finite_difference"),
    "--loss": ("zero_one exact_match token_error brier f1"),
    "--prior-groups": ("model kind module"),
    "--sample-by": ("line paragraph document"),
    "--task": (
        "sequence-classification token-classification question-answering seq2seq causal-lm masked-lm "
        "multiple-choice image-classification image-segmentation object-detection audio-classification ctc"
    ),
}
"""The values of those that take one of a few."""
