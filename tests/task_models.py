"""A tiny model of every task, saved as ``Trainer.save_model`` leaves it; its tokenizer cuts words into pieces."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from hf_pacgen import ScoreConfig, pacgen
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.load import Subject, load_subject
from hf_pacgen.command_line.inputs.models import ModelArguments

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|im_start|>", "<|im_end|>"]
WORDS = ["good", "bad", "movie", "was", "the", "user", "assistant", "blue", "sky", "is", "what", "color", ".", "?"]
LETTERS = [*string.ascii_letters, *string.digits, *"#:-,\n"]
VOCABULARY = {
    token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS)]))
}
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
SPEECH: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "conv_dim": (4, 4),
    "conv_stride": (4, 4),
    "conv_kernel": (4, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "classifier_proj_size": 4,
}
QUICK = ScoreConfig(estimator="hutchinson", passes=1, lipschitz_directions=0)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}OPEN{{ message.content + '<|im_end|>' }}CLOSE{% else %}"
    "{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = CHATML.replace("OPEN", "").replace("CLOSE", "")
MARKED = CHATML.replace("OPEN", "{% generation %}").replace("CLOSE", "{% endgeneration %}")


def tokenizer(*, pairs: bool = True, **settings: Any) -> t.PreTrainedTokenizerFast:
    """Words it knows are tokens, others are cut into letters; ``pairs`` are framed as BERT's are."""
    made = Tokenizer(WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if pairs:
        frame = [(name, VOCABULARY[name]) for name in ("[CLS]", "[SEP]")]
        made.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", frame)
    settings = {"pad_token": "[PAD]", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], **settings}
    known = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return t.PreTrainedTokenizerFast(tokenizer_object=made, **(known | settings))


def save(model: Any, folder: Path, *processors: Any) -> Path:
    """The model with larger weights than those of an initialization, which have hardly any curvature."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return folder


def bert(folder: Path, head: str, **changes: Any) -> Path:
    torch.manual_seed(0)
    return save(getattr(t, f"BertFor{head}")(t.BertConfig(**TEXT, **changes)), folder, tokenizer())


def llama(folder: Path, *, template: str | None = None, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = t.LlamaConfig(**TEXT, bos_token_id=2, eos_token_id=3)
    tokens = tokenizer(**{"pairs": False, "eos_token": "[SEP]", **settings})
    tokens.chat_template = template
    return save(t.LlamaForCausalLM(config), folder, tokens)


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes: Any = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    config = t.T5Config(vocab_size=len(VOCABULARY), pad_token_id=0, eos_token_id=3, **sizes)
    return save(t.T5ForConditionalGeneration(config), folder, tokenizer(eos_token="[SEP]"))


def bart(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes: Any = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 64}
    ids: Any = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    config = t.BartConfig(vocab_size=len(VOCABULARY), **sizes, **ids, forced_eos_token_id=None)
    return save(t.BartForConditionalGeneration(config), folder, tokenizer(eos_token="[SEP]"))


def image_processor(kind: str, **settings: Any) -> Any:
    """A processor of images that needs no torchvision."""
    return getattr(t, f"{kind}Pil")(**settings)


def vit(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = t.ViTConfig(**VISION, **changes)
    return save(
        t.ViTForImageClassification(config),
        folder,
        image_processor("ViTImageProcessor", size={"height": 16, "width": 16}),
    )


def segformer(folder: Path, *, processor: bool = True, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes: Any = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [4, 8]}
    sizes |= {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [1, 1]}
    config = t.SegformerConfig(**sizes, decoder_hidden_size=8, **changes)
    processors = [image_processor("SegformerImageProcessor", size={"height": 16, "width": 16})] if processor else []
    return save(t.SegformerForSemanticSegmentation(config), folder, *processors)


def yolos(folder: Path, *, processor: bool = True, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = VISION | {"image_size": [16, 16]}
    config = t.YolosConfig(**sizes, num_detection_tokens=3, **changes)
    processors = [image_processor("YolosImageProcessor", size={"height": 16, "width": 16})] if processor else []
    return save(t.YolosForObjectDetection(config), folder, *processors)


def listener(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = t.Wav2Vec2Config(**SPEECH, vocab_size=8, **changes)
    extractor = t.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    return save(t.Wav2Vec2ForSequenceClassification(config), folder, extractor)


def writer(folder: Path) -> Path:
    """A model of speech with its processor, as the scripts of transformers save them."""
    torch.manual_seed(0)
    letters = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokens = t.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = t.Wav2Vec2FeatureExtractor(sampling_rate=16_000, return_attention_mask=True)
    config = t.Wav2Vec2Config(**SPEECH, vocab_size=len(letters), pad_token_id=0, ctc_loss_reduction="mean")
    processor = t.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokens)
    return save(t.Wav2Vec2ForCTC(config), folder, processor)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def subject(folder: Path, data: Path | list[dict[str, Any]], *, task: str | None = None, **settings: Any) -> Subject:
    """What a command makes of a model's folder and data, which may be given as rows."""
    if isinstance(data, list):
        data = write_rows(folder.parent / f"{folder.name}.jsonl", data)
    arguments = DataArguments(dataset=[str(data)], **settings)
    return load_subject(str(folder), ModelArguments(task=task), arguments, device=torch.device("cpu"))  # type: ignore[arg-type]


def loss_of(folder: Path, data: Path | list[dict[str, Any]], **settings: Any) -> float:
    """The loss of a score of both, in batches of two."""
    found = subject(folder, data, **settings)
    return pacgen(found.model, found.examples, config=QUICK, batch_size=2, progress=False).loss


def loaded(folder: Path, head: str) -> tuple[Any, Any]:
    """The model with its tokenizer, as a user loads them by hand."""
    tokens = t.AutoTokenizer.from_pretrained(folder)
    return getattr(t, f"AutoModelFor{head}").from_pretrained(folder).eval(), tokens


def mean_loss(model: Any, examples: list[dict[str, Any]], units: list[int] | None = None) -> float:
    """The model's own loss of examples one at a time, weighted by the number of their labels."""
    with torch.no_grad():
        losses = [model(**{key: torch.as_tensor(value)[None] for key, value in one.items()}).loss for one in examples]
    weights = torch.tensor([1] * len(losses) if units is None else units, dtype=torch.float64)
    return float((torch.stack(losses).double() * weights).sum() / weights.sum())


def loaded_model(folder: Path, head: str) -> Any:
    """The model alone."""
    return getattr(t, f"AutoModelFor{head}").from_pretrained(folder).eval()
