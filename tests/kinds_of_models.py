"""Seventy-odd kinds of models of transformers, each tiny, with six examples of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

Rows = list[dict[str, Any]]
COUNT = 6
TEXT: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Kind:
    """A model, its examples, and what is expected of a score.

    Attributes:
        make: the model.
        rows: the examples.
        says: what a note or a refusal has to say; empty where numbers alone are expected.
        refused: whether a sentence takes the place of the numbers.
        double: whether it can be computed in float64.
        inside: whether its loss makes tensors of torch's default type, which must then be float64, too.
        depends: whether the loss depends on the batching.
        notes: what another note says, for the page.
        needs: a package that tests may lack, and the class and precision that the page then names.
    """

    make: Callable[[], nn.Module]
    rows: Callable[[], Rows]
    says: str = ""
    refused: bool = False
    double: bool = True
    inside: bool = False
    depends: bool = False
    notes: str = ""
    needs: tuple[str, str, str] | None = None

    @property
    def model(self) -> str:
        """The class of the model, inside of adapters."""
        if self.needs is not None:
            return self.needs[1]
        made: Any = self.make()
        made = getattr(made, "_orig_mod", made)
        made = made.get_base_model() if hasattr(made, "get_base_model") else made
        return type(getattr(made, "inner", made)).__name__

    @property
    def precision(self) -> str:
        """What the weights are in."""
        if self.needs is not None:
            return self.needs[2]
        dtype = next(p.dtype for p in self.make().parameters() if p.is_floating_point())
        return "float64" if self.double else str(dtype).removeprefix("torch.")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int, low: int = 3, high: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def rows(**columns: Any) -> Callable[[], Rows]:
    return lambda: [{name: values[i] for name, values in columns.items()} for i in range(COUNT)]


def some(labels: Tensor) -> Tensor:
    """Labels of which a part does not count, more in some rows than in others."""
    dropped = torch.rand(labels.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    dropped[0, 2:] = True
    dropped[:, 1] = False
    return labels.masked_fill(dropped, -100)


IDS, CLASSES = tokens(COUNT, 5), tokens(COUNT, low=0, high=3)
sentences = rows(input_ids=IDS, labels=CLASSES)
tagged = rows(input_ids=IDS, labels=some(tokens(COUNT, 5, low=0, high=3)))
causal = rows(input_ids=IDS, labels=some(IDS))
translated = rows(input_ids=IDS, labels=some(tokens(COUNT, 4, seed=2)))
images = rows(pixel_values=drawn(COUNT, 3, 16, 16), labels=CLASSES)
BOXES = [
    {"class_labels": torch.arange(n) % 2, "boxes": torch.full((n, 4), 0.2 + 0.1 * n, dtype=torch.float64)}
    for n in (1, 2, 3, 1, 0, 2)
]
detected = rows(pixel_values=drawn(COUNT, 3, 16, 16), labels=BOXES)
heard = rows(input_values=drawn(COUNT, 400), labels=CLASSES)
SPOKEN = tokens(COUNT, 4, low=1, high=8)
SPOKEN[::2, 2:] = -100
spoken = rows(input_values=drawn(COUNT, 400), labels=SPOKEN)
MAP = tokens(COUNT, 16, 16, low=0, high=3)
MAP[1, :8] = 255
mapped = rows(pixel_values=drawn(COUNT, 3, 16, 16), labels=MAP)
paired = rows(input_ids=IDS, pixel_values=drawn(COUNT, 3, 16, 16))

forecast = rows(
    past_values=drawn(COUNT, 10),
    past_time_features=drawn(COUNT, 10, 1, seed=1),
    past_observed_mask=torch.ones(COUNT, 10),
    future_values=drawn(COUNT, 4, seed=2),
    future_time_features=drawn(COUNT, 4, 1, seed=3),
)
WORDS = tokens(COUNT, 5, high=11)
chats_of_images = rows(
    input_ids=torch.cat([torch.full((COUNT, 4), 11), WORDS], 1),
    pixel_values=drawn(COUNT, 3, 16, 16),
    labels=torch.cat([torch.full((COUNT, 4), -100), some(WORDS)], 1),
)

LABELED: dict[str, Any] = TEXT | {"num_labels": 3}
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 3,
}
SPEECH: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "conv_dim": (4, 4),
    "conv_stride": (4, 4),
    "conv_kernel": (4, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "feat_extract_norm": "layer",
    "classifier_proj_size": 4,
    "num_labels": 3,
}


def of(model: str, sizes: dict[str, Any] = TEXT, config: str | None = None, **changes: Any) -> Callable[[], nn.Module]:
    """A model of a class of transformers, of random weights."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        kind = getattr(t, model)
        made = kind(getattr(t, config or kind.config_class.__name__)(**(sizes | changes)))
        for module in made.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = 0.0  # running statistics stay as they are in a step of training
        return moved(made)

    return make


def moved(made: Any) -> nn.Module:
    """Larger weights than those of an initialization, or there is hardly any curvature, or that of a division by 0."""
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made  # type: ignore[no-any-return]


def adapted(method: str, base: Callable[[], nn.Module], **settings: Any) -> Callable[[], nn.Module]:
    """An adapter of PEFT around a model."""

    def make() -> nn.Module:
        import peft

        torch.manual_seed(1)
        made = peft.get_peft_model(base(), getattr(peft, method)(**settings))  # type: ignore[arg-type]
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return made

    return make


def checkpointed(base: Callable[[], nn.Module], reentrant: bool) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: Any = base()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        return model  # type: ignore[no-any-return]

    return make


def cast(base: Callable[[], nn.Module], dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: base().to(dtype)


def compiled(base: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    # no compiler of machine code, which tests would wait for
    return lambda: torch.compile(base(), backend="eager")  # type: ignore[return-value]


def quantized() -> nn.Module:
    """A language model of 4 bits, for an adapter."""
    import bitsandbytes

    model = of("LlamaForCausalLM", hidden_size=64, intermediate_size=64)()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "proj" in name:
            sizes = module.in_features, module.out_features
            new = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            weight = module.weight.data.clone()
            new.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, new.to("cpu"))
    return model


def two_encoders() -> nn.Module:
    torch.manual_seed(0)
    encoder, decoder = t.BertConfig(**TEXT), t.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return t.EncoderDecoderModel(config=config)


class Contrastive(nn.Module):
    """A model of images and texts, whose loss is between the examples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = t.CLIPConfig(text_config=dict(TEXT), vision_config=VISION | {"num_labels": 2}, projection_dim=8)
        self.inner, self.config = t.CLIPModel(config), config

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
        return self.inner(input_ids=input_ids, pixel_values=pixel_values, return_loss=True)


class SigmoidPairs(nn.Module):
    """A model of images and texts, whose loss is a binary one of every pair in a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        vision = {key: value for key, value in VISION.items() if key != "num_labels"}
        config = t.SiglipConfig(text_config=TEXT | {"projection_size": 8}, vision_config=vision)
        self.inner, self.config = t.SiglipModel(config), config
        moved(self)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
        return self.inner(input_ids=input_ids, pixel_values=pixel_values, return_loss=True)


def detection_transformer() -> nn.Module:
    torch.manual_seed(0)
    sizes: Any = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    bare: Any = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    backbone = t.ResNetConfig(**sizes | {"out_features": ["stage2"]})
    return moved(t.DetrForObjectDetection(t.DetrConfig(**bare, **DETR, backbone_config=backbone)))


def image_chat() -> nn.Module:
    torch.manual_seed(0)
    vision = {key: value for key, value in VISION.items() if key != "num_labels"}
    text, seen = t.LlamaConfig(**TEXT, num_key_value_heads=2), t.CLIPVisionConfig(**vision)
    config: Any = {"text_config": text, "vision_config": seen, "image_token_index": 11, "vision_feature_layer": -1}
    return moved(t.LlavaForConditionalGeneration(t.LlavaConfig(**config)))


def image_texts() -> nn.Module:
    torch.manual_seed(0)
    encoder, decoder = t.ViTConfig(**VISION), t.GPT2Config(**GPT, add_cross_attention=True, is_decoder=True)  # type: ignore
    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return t.VisionEncoderDecoderModel(config=config)


GPT: dict[str, Any] = {"vocab_size": 12, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
T5: dict[str, Any] = {"vocab_size": 12, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0}
BART: dict[str, Any] = {"vocab_size": 12, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
BART |= {"max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART |= {"decoder_start_token_id": 1, "forced_eos_token_id": None}
SERIES: dict[str, Any] = {name: value for name, value in BART.items() if name.startswith(("encoder", "decoder", "d_"))}
del SERIES["decoder_start_token_id"]
SERIES |= {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}
SERIES |= {"num_static_categorical_features": 0, "num_static_real_features": 0}
EXPERTS: dict[str, Any] = TEXT | {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}
EXPERTS |= {"output_router_logits": True, "router_aux_loss_coef": 0.5}
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
DETR: dict[str, Any] = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
DETR |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_queries": 4, "num_labels": 2}
LLAMA = of("LlamaForCausalLM", num_key_value_heads=2)
CUT = "depends on how the data is cut into batches"

KINDS: dict[str, Kind] = {
    "BERT": Kind(of("BertForSequenceClassification", LABELED), sentences),
    "BERT, return_dict=False": Kind(of("BertForSequenceClassification", LABELED, return_dict=False), sentences),
    "BERT, regression": Kind(
        of("BertForSequenceClassification", TEXT | {"num_labels": 1}), rows(input_ids=IDS, labels=drawn(COUNT))
    ),
    "BERT, several labels": Kind(
        of("BertForSequenceClassification", LABELED, problem_type="multi_label_classification"),
        rows(input_ids=IDS, labels=(drawn(COUNT, 3) > 0).double()),
    ),
    "RoBERTa, tokens": Kind(of("RobertaForTokenClassification", LABELED, max_position_embeddings=24), tagged),
    "DistilBERT": Kind(
        of(
            "DistilBertForSequenceClassification",
            {"vocab_size": 12, "dim": 8, "n_layers": 1, "n_heads": 2} | {"hidden_dim": 8, "num_labels": 3},
        ),
        sentences,
    ),
    "ALBERT (shared layers)": Kind(
        of("AlbertForSequenceClassification", LABELED, embedding_size=8, num_hidden_layers=3), sentences
    ),
    "ELECTRA, tokens": Kind(of("ElectraForTokenClassification", LABELED, embedding_size=8), tagged),
    "DeBERTa": Kind(of("DebertaV2ForSequenceClassification", LABELED), sentences),
    "BERT, masked tokens": Kind(of("BertForMaskedLM"), rows(input_ids=IDS, labels=some(IDS))),
    "BERT, questions": Kind(
        of("BertForQuestionAnswering"),
        rows(input_ids=IDS, start_positions=tokens(COUNT, low=0, high=5), end_positions=tokens(COUNT, low=0, high=5)),
    ),
    "BERT, two losses": Kind(
        of("BertForPreTraining"),
        rows(input_ids=IDS, labels=some(IDS), next_sentence_label=CLASSES % 2),
        says=CUT,
        depends=True,
    ),
    "BERT, multiple choice": Kind(
        of("BertForMultipleChoice"), rows(input_ids=tokens(COUNT, 3, 5), labels=tokens(COUNT, low=0, high=3))
    ),
    "LayoutLM, tokens": Kind(
        of("LayoutLMForTokenClassification", LABELED),
        rows(
            input_ids=IDS,
            bbox=tokens(COUNT, 5, 4, low=0, high=9).sort(-1).values,
            labels=some(tokens(COUNT, 5, low=0, high=3)),
        ),
    ),
    "GPT-2": Kind(of("GPT2LMHeadModel", GPT), causal),
    "Llama": Kind(LLAMA, causal),
    "Llama, sequences": Kind(of("LlamaForSequenceClassification", LABELED, num_key_value_heads=2), sentences),
    "Qwen2": Kind(of("Qwen2ForCausalLM", num_key_value_heads=2), causal),
    "Gemma 2": Kind(of("Gemma2ForCausalLM", num_key_value_heads=2, head_dim=4), causal),
    "OPT": Kind(
        of(
            "OPTForCausalLM",
            {k: v for k, v in TEXT.items() if k != "intermediate_size"},
            ffn_dim=8,
            word_embed_proj_dim=8,
        ),
        causal,
    ),
    "GPT-NeoX": Kind(of("GPTNeoXForCausalLM"), causal),
    "BLOOM": Kind(of("BloomForCausalLM", {"vocab_size": 12, "hidden_size": 8, "n_layer": 1, "n_head": 2}), causal),
    "Mixtral (mixture of experts)": Kind(
        of("MixtralForCausalLM", EXPERTS), causal, says=CUT, depends=True, double=False
    ),
    "Mamba (state space)": Kind(
        of("MambaForCausalLM", {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}), causal
    ),
    "Mamba 2": Kind(
        of(
            "Mamba2ForCausalLM",
            {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "num_heads": 4}
            | {"head_dim": 4, "n_groups": 1, "chunk_size": 4},
        ),
        causal,
    ),
    "T5": Kind(of("T5ForConditionalGeneration", T5), translated),
    "BERT to BERT": Kind(two_encoders, translated),
    "BART": Kind(of("BartForConditionalGeneration", BART), translated),
    "Pegasus": Kind(of("PegasusForConditionalGeneration", BART), translated),
    "ViT": Kind(of("ViTForImageClassification", VISION), images),
    "DeiT": Kind(of("DeiTForImageClassification", VISION), images),
    "BEiT": Kind(of("BeitForImageClassification", VISION), images),
    "Swin": Kind(
        of(
            "SwinForImageClassification",
            {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1]}
            | {"num_heads": [2], "window_size": 2, "num_labels": 3},
        ),
        images,
    ),
    "LeViT (cached biases)": Kind(
        of(
            "LevitForImageClassification",
            {"num_labels": 3, "image_size": 16, "hidden_sizes": [8] * 3, "num_attention_heads": [2] * 3}
            | {"depths": [1] * 3, "key_dim": [4] * 3, "mlp_ratio": [1] * 3, "attention_ratio": [1] * 3}
            | {"down_ops": [["Subsample", 4, 2, 1, 1, 2]] * 2},
        ),
        images,
    ),
    "ConvNeXt": Kind(
        of(
            "ConvNextForImageClassification",
            {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2} | {"num_labels": 3},
        ),
        images,
    ),
    "ResNet (batch norm)": Kind(
        of(
            "ResNetForImageClassification",
            {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
            | {"layer_type": "basic", "hidden_act": "tanh", "num_labels": 3},
        ),
        images,
    ),
    "YOLOS (detection)": Kind(
        of("YolosForObjectDetection", VISION | {"image_size": [16, 16], "num_detection_tokens": 4}),
        detected,
        says=CUT,
        depends=True,
        inside=True,
    ),
    "DETR (detection)": Kind(
        detection_transformer,
        rows(pixel_values=drawn(COUNT, 3, 32, 32), pixel_mask=torch.ones(COUNT, 32, 32).long(), labels=BOXES),
        says=CUT,
        depends=True,
        inside=True,
    ),
    "SegFormer (255 ignored)": Kind(
        of(
            "SegformerForSemanticSegmentation",
            {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1]}
            | {"hidden_sizes": [4], "patch_sizes": [3], "strides": [2], "num_attention_heads": [1], "mlp_ratios": [1]}
            | {"decoder_hidden_size": 4, "num_labels": 3},
        ),
        mapped,
    ),
    "ViT-MAE (random masks)": Kind(
        of(
            "ViTMAEForPreTraining",
            VISION
            | {"decoder_num_attention_heads": 2, "decoder_hidden_size": 8}
            | {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 8},
        ),
        rows(pixel_values=drawn(COUNT, 3, 16, 16)),
        says="differs between two identical passes",
        refused=True,
    ),
    "wav2vec 2.0, CTC": Kind(of("Wav2Vec2ForCTC", SPEECH), spoken, says="is a sum over its examples", double=False),
    "wav2vec 2.0, mean CTC": Kind(of("Wav2Vec2ForCTC", SPEECH, ctc_loss_reduction="mean"), spoken, double=False),
    "wav2vec 2.0, x-vectors (margins)": Kind(
        of(
            "Wav2Vec2ForXVector",
            SPEECH | {"tdnn_dim": (4, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 4},
        ),
        heard,
    ),
    "wav2vec 2.0, sequences": Kind(of("Wav2Vec2ForSequenceClassification", SPEECH), heard),
    "HuBERT, sequences": Kind(of("HubertForSequenceClassification", SPEECH), heard),
    "Whisper": Kind(
        of(
            "WhisperForConditionalGeneration",
            BART
            | {"num_mel_bins": 4, "max_source_positions": 8}
            | {"max_target_positions": 16, "suppress_tokens": None, "begin_suppress_tokens": None},
        ),
        rows(input_features=drawn(COUNT, 4, 16), labels=some(tokens(COUNT, 4, seed=2))),
    ),
    "CLIP (contrastive)": Kind(Contrastive, paired, says=CUT, depends=True),
    "ViT and GPT-2": Kind(
        image_texts, rows(pixel_values=drawn(COUNT, 3, 16, 16), labels=some(tokens(COUNT, 4, seed=2)))
    ),
    "PatchTST (time series)": Kind(
        of(
            "PatchTSTForPrediction",
            {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "d_model": 8}
            | {"num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8, "prediction_length": 4, "loss": "mse"}
            | {"norm_type": "layernorm"},
        ),
        rows(past_values=drawn(COUNT, 16, 2), future_values=drawn(COUNT, 4, 2)),
    ),
    "LoRA": Kind(adapted("LoraConfig", LLAMA, **LORA), causal),
    "LoRA, modules_to_save": Kind(adapted("LoraConfig", LLAMA, **LORA, modules_to_save=["lm_head"]), causal),
    "LoRA on a tied head": Kind(
        adapted(
            "LoraConfig",
            of("LlamaForCausalLM", num_key_value_heads=2, tie_word_embeddings=True),
            **LORA | {"target_modules": ["lm_head", "q_proj"]},
        ),
        causal,
    ),
    "QLoRA (4 bits)": Kind(
        adapted("LoraConfig", quantized, **LORA),
        causal,
        double=False,
        needs=("bitsandbytes", "LlamaForCausalLM", "float32"),
    ),
    "AdaLoRA": Kind(
        adapted(
            "AdaLoraConfig", LLAMA, init_r=2, target_r=2, total_step=10, **{k: v for k, v in LORA.items() if k != "r"}
        ),
        causal,
    ),
    "Prefix tuning": Kind(adapted("PrefixTuningConfig", LLAMA, num_virtual_tokens=2, task_type="CAUSAL_LM"), causal),
    "DoRA": Kind(
        adapted("LoraConfig", LLAMA, **LORA, use_dora=True),
        causal,
        notes="the gradient that trains the model is not the derivative of its loss",
    ),
    "IA3": Kind(
        adapted(
            "IA3Config",
            LLAMA,
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            task_type="CAUSAL_LM",
        ),
        causal,
    ),
    "Prompt tuning": Kind(adapted("PromptTuningConfig", LLAMA, num_virtual_tokens=2, task_type="CAUSAL_LM"), causal),
    "Llama, torch.compile": Kind(compiled(LLAMA), causal),
    "Llama, checkpointing": Kind(checkpointed(LLAMA, False), causal),
    "Llama, reentrant checkpointing": Kind(checkpointed(LLAMA, True), causal, double=False),
    "RWKV (recurrent)": Kind(
        of(
            "RwkvForCausalLM",
            {"vocab_size": 12, "hidden_size": 8, "attention_hidden_size": 8, "num_hidden_layers": 2}
            | {"intermediate_size": 8, "context_length": 16},
        ),
        causal,
    ),
    "RecurrentGemma": Kind(
        of(
            "RecurrentGemmaForCausalLM",
            TEXT | {"num_hidden_layers": 3, "lru_width": 8, "num_key_value_heads": 1, "head_dim": 4},
            attention_window_size=4,
            block_types=["recurrent", "recurrent", "attention"],
        ),
        causal,
    ),
    "Falcon-H1 (attention and Mamba)": Kind(
        of(
            "FalconH1ForCausalLM",
            TEXT | {"num_key_value_heads": 2, "head_dim": 4, "mamba_d_ssm": 16, "mamba_n_heads": 4},
            mamba_d_head=4,
            mamba_n_groups=1,
            mamba_d_state=4,
            mamba_chunk_size=4,
        ),
        causal,
    ),
    "Gemma 3": Kind(of("Gemma3ForCausalLM", num_key_value_heads=2, head_dim=4), causal),
    "Nemotron": Kind(of("NemotronForCausalLM", num_key_value_heads=2, head_dim=4), causal),
    "LongT5": Kind(
        of("LongT5ForConditionalGeneration", T5, encoder_attention_type="local", local_radius=3),
        translated,
        notes="the products are differences of gradients instead of reverse_over_reverse",
    ),
    "CANINE (characters)": Kind(
        of(
            "CanineForSequenceClassification",
            LABELED | {"max_position_embeddings": 64, "num_hash_functions": 2, "num_hash_buckets": 64},
            local_transformer_stride=8,
            downsampling_rate=4,
            upsampling_kernel_size=4,
        ),
        rows(input_ids=tokens(COUNT, 16), labels=CLASSES),
        double=False,  # its mask is NaN in float64
    ),
    "XLNet": Kind(
        of(
            "XLNetForSequenceClassification",
            {"vocab_size": 12, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8, "num_labels": 3},
        ),
        sentences,
    ),
    "Time series transformer": Kind(of("TimeSeriesTransformerForPrediction", SERIES), forecast),
    "Informer (time series)": Kind(of("InformerForPrediction", SERIES), forecast),
    "LLaVA (images and text)": Kind(image_chat, chats_of_images),
    "Funnel, tokens": Kind(
        of(
            "FunnelForTokenClassification",
            {"vocab_size": 12, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 8, "n_head": 2}
            | {"d_head": 4, "d_inner": 8, "num_labels": 3},
        ),
        rows(input_ids=tokens(COUNT, 8), labels=some(tokens(COUNT, 8, low=0, high=3))),
    ),
    "BigBird, masked tokens": Kind(of("BigBirdForMaskedLM", attention_type="original_full"), causal),
    "Longformer": Kind(
        of("LongformerForSequenceClassification", LABELED, attention_window=[4], max_position_embeddings=24),
        rows(input_ids=tokens(COUNT, 8), labels=CLASSES),
    ),
    "ViLT (images and text)": Kind(
        of(
            "ViltForImagesAndTextClassification",
            TEXT | {"image_size": 16, "patch_size": 8, "num_labels": 3, "num_images": 1, "max_image_length": -1},
            modality_type_vocab_size=2,
        ),
        rows(input_ids=IDS, pixel_values=drawn(COUNT, 1, 3, 16, 16), labels=CLASSES),
    ),
    "VideoMAE (videos)": Kind(
        of("VideoMAEForVideoClassification", VISION | {"num_frames": 2, "tubelet_size": 1}),
        rows(pixel_values=drawn(COUNT, 2, 3, 16, 16), labels=CLASSES),
    ),
    "Perceiver, masked tokens": Kind(
        of(
            "PerceiverForMaskedLM",
            {"vocab_size": 12, "d_model": 8, "d_latents": 8, "num_latents": 4, "num_blocks": 1}
            | {"num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}
            | {"max_position_embeddings": 16, "qk_channels": 8, "v_channels": 8},
        ),
        rows(input_ids=tokens(COUNT, 16), labels=some(tokens(COUNT, 16))),
    ),
    "Data2Vec (texts)": Kind(
        of("Data2VecTextForSequenceClassification", LABELED, max_position_embeddings=24), sentences
    ),
    "Data2Vec (images)": Kind(of("Data2VecVisionForImageClassification", VISION), images),
    "Reformer (reversible layers)": Kind(
        of(
            "ReformerForSequenceClassification",
            {"vocab_size": 12, "hidden_size": 8, "num_attention_heads": 2, "attention_head_size": 4}
            | {"feed_forward_size": 8, "attn_layers": ["local", "local"], "local_attn_chunk_length": 4}
            | {"axial_pos_shape": [2, 4], "axial_pos_embds_dim": [4, 4], "max_position_embeddings": 8}
            | {"num_labels": 3, "pad_token_id": 0, "is_decoder": False},
        ),
        rows(input_ids=tokens(COUNT, 8), labels=CLASSES),
        says="has a backward pass of its own for training mode alone",
        refused=True,
    ),
    "SigLIP (pairwise contrastive)": Kind(SigmoidPairs, paired, says=CUT, depends=True),
    "BERT, bfloat16": Kind(cast(of("BertForSequenceClassification", LABELED), torch.bfloat16), sentences, double=False),
    "BERT, float16": Kind(cast(of("BertForSequenceClassification", LABELED), torch.float16), sentences, double=False),
}


def table() -> str:
    """The page of the documentation."""
    lines = [
        "# Kinds of models",
        "",
        "A test scores each of these, tiny, with `pacgen()`, with a `PACGenCallback` in a plain `Trainer` and with a",
        "`PACGenTrainer`. All three must give the loss that the Trainer minimizes and the same curvature, in any",
        "batches (unless a note says that the loss depends on them), and products with the Hessian must be differences",
        "of the gradient. This page is made of the test's own list by `python tests/kinds_of_models.py`.",
        "",
        "| kind | model | score, callback, Trainer | precision of the test |",
        "|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        what = "equal the oracle"
        if kind.refused:
            what = f'refused: "{kind.says}"'
        elif kind.says:
            what += f"; a note says that the loss {kind.says}"
        if kind.notes:
            what += f"; a note says that {kind.notes}"
        lines.append(f"| {name} | `{kind.model}` | {what} | {kind.precision} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("docs", "guides", "kinds.md").write_text(table(), encoding="utf-8")
